"""Other tools read the output: the format of the Batch API, to the letter."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from chatpool._cli.main import main
from chatpool.testing import Reply

COUNT = 300  # more lines than polars and duckdb look at to infer a schema


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The output of a run with failures of several kinds, retries and odd characters, and of a second run."""
    from chatpool.testing import FakeChatServer

    folder = tmp_path_factory.mktemp("readers")
    path, out = folder / "in.jsonl", folder / "out.jsonl"
    prompts = [f"p{number}" for number in range(COUNT)] + ["bad", "late", "refused", "html", "lost", "ends"]
    path.write_text("".join(json.dumps({"custom_id": f"r-{prompt}", "prompt": prompt}) + "\n" for prompt in prompts))
    with FakeChatServer() as server:
        server.script("bad", *[Reply(status=400, code="too_long")] * 2)
        server.script("late", Reply(status=429, headers={"Retry-After": "0"}), Reply("late"))
        server.script("refused", *[Reply(body={"choices": [{"message": {"content": None, "refusal": "no"}}]})] * 2)
        server.script("html", *[Reply(status=404, body="<html>no such page</html>")] * 2)
        server.script("lost", *[Reply(fault="reset")] * 4)
        server.script("ends", Reply("a\u2028b\u2029c\x85d"))
        for _ in range(2):
            command = ["run", str(path), "-o", str(out), "--base-url", server.url, "--max-tries", "2", "--no-progress"]
            assert main([*command, "--max-wait", "0.01"]) == 1
    return out


def by_name(output):
    return {line["custom_id"]: line for line in map(json.loads, output.read_bytes().splitlines())}


def test_one_line_for_each_custom_id(output):
    lines = output.read_text(encoding="utf-8").splitlines()  # which also splits at U+2028, U+2029 and U+0085
    assert len(lines) == len(by_name(output)) == COUNT + 6


def test_failure_over_http_is_a_response(output):
    """With its status, request id and body; a body that is not JSON is quoted in an error object."""
    bad, html = by_name(output)["r-bad"], by_name(output)["r-html"]
    for line, status in ((bad, 400), (html, 404)):
        assert line["error"] is None
        assert line["response"]["status_code"] == status
        assert line["response"]["request_id"].startswith("req_")
    assert bad["response"]["body"]["error"]["code"] == "too_long"
    assert "no such page" in html["response"]["body"]["error"]["message"]


def test_error_is_for_what_got_no_answer(output):
    """No reply, or a reply that is not an answer, which is kept."""
    lost, refused = by_name(output)["r-lost"], by_name(output)["r-refused"]
    assert lost["response"] is None
    assert set(lost["error"]) == {"code", "message"}
    assert refused["error"]["code"] == "refusal"
    assert refused["response"]["status_code"] == 200
    assert refused["response"]["body"]["choices"][0]["message"]["refusal"] == "no"


def test_no_field_looks_like_a_row_number(output):
    assert not any("index" in line["chatpool"] for line in by_name(output).values())


def test_pandas(output):
    pd = pytest.importorskip("pandas")
    frame = pd.read_json(output, lines=True)
    assert len(frame) == COUNT + 6
    assert frame.set_index("custom_id").loc["r-bad", "response"]["status_code"] == 400


def test_pyarrow(output):
    pytest.importorskip("pyarrow")
    import pyarrow.json

    table = pyarrow.json.read_json(output)
    assert table.num_rows == COUNT + 6
    rows = {row["custom_id"]: row for row in table.to_pylist()}
    assert rows["r-bad"]["response"]["status_code"] == 400
    assert rows["r-late"]["chatpool"]["tries"][0]["error"] == "RateLimitError"


def test_polars(output):
    pl = pytest.importorskip("polars")
    frame = pl.read_ndjson(output, infer_schema_length=None)
    assert frame.height == COUNT + 6
    assert frame.filter(pl.col("custom_id") == "r-bad")["response"][0]["status_code"] == 400


def test_duckdb(output):
    duckdb = pytest.importorskip("duckdb")
    query = f"select count(*), max(response.status_code) from read_json('{output}', sample_size=-1)"
    assert duckdb.sql(query).fetchall() == [(COUNT + 6, 404)]


def test_jq(output):
    if shutil.which("jq") is None:
        pytest.skip("not installed: jq")
    program = "select(.response.status_code == 200 and .error == null) | .response.body.choices[0].message.content"
    done = subprocess.run(["jq", "-r", program, str(output)], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == COUNT + 2
    assert "late" in done.stdout


def test_openai_models(output):
    """Good bodies are ChatCompletions, and the loop of OpenAI's documentation finds each answer."""
    types = pytest.importorskip("openai.types.chat")
    good = [
        line for line in by_name(output).values() if line["error"] is None and line["response"]["status_code"] == 200
    ]
    assert len(good) == COUNT + 2
    for line in good:
        completion = types.ChatCompletion.model_validate(line["response"]["body"])
        assert completion.choices[0].message.content
