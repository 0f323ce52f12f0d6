"""Programs that were written for OpenAI's Batch API: their input files are read, and they read the output.

Follows the steps and fields of the notebook "Batch processing with the Batch API" in OpenAI's cookbook
(examples/batch_processing.ipynb in the repository openai/openai-cookbook), of the guide "Batch API", section "Retrieve
the results", and of the models of OpenAI's SDK.
"""

from __future__ import annotations

import functools
import http.server
import json
import sys
import threading

import pytest

from chatpool.testing import Reply

ANSWER = '{"categories": ["drama"], "summary": "Life\u2028goes\x85on – é"}'


def movies():
    """A DataFrame whose index is not that of its rows' positions."""
    pd = pytest.importorskip("pandas")
    return pd.DataFrame({"Title": ["A", "B", "C"], "Overview": ["of a", "of b\nand c", "of ü"]}, index=[7, 3, 5])


def tasks_of(frame):
    """The notebook's step of making one request for each row, named by its index."""
    for index, row in frame.iterrows():
        messages = [{"role": "system", "content": "Categorize."}, {"role": "user", "content": row["Overview"]}]
        body = {
            "model": "gpt-3.5-turbo",
            "temperature": 0.1,
            "response_format": {"type": "json_object"},
            "messages": messages,
        }
        yield {"custom_id": f"task-{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_tasks(frame, name="tasks.jsonl"):
    with open(name, "w") as file:
        for task in tasks_of(frame):
            file.write(json.dumps(task) + "\n")


def results_in(name="results.jsonl"):
    """The notebook's loop over the lines of the result file, in the platform's encoding."""
    results = []
    with open(name) as file:
        for line in file:
            results.append(json.loads(line.strip()))
    return results


@pytest.mark.skipif(sys.platform == "win32", reason="the notebook opens the file in the platform's encoding")
def test_notebook(shell):
    """Each result finds its row, also after prompts that failed at first were sent again by a second run."""
    frame = movies()
    shell.server.script("of b\nand c", Reply(status=400), Reply(ANSWER))
    for prompt in ("of a", "of ü"):
        shell.server.script(prompt, Reply(ANSWER))
    write_tasks(frame)
    assert shell.run("tasks.jsonl", "-o", "results.jsonl") == 1
    assert shell.run("tasks.jsonl", "-o", "results.jsonl") == 0
    results = results_in()
    assert len(results) == len(frame)
    titles = []
    for result in results:
        index = int(result["custom_id"].split("-")[-1])
        answer = json.loads(result["response"]["body"]["choices"][0]["message"]["content"], strict=False)
        assert answer["categories"] == ["drama"]
        titles.append(frame.loc[index, "Title"])
    assert sorted(titles) == ["A", "B", "C"]


@pytest.fixture
def files_server(tmp_path):
    """Serves ``files/results/content`` as the Files API serves the content of a file named ``results``."""
    (tmp_path / "files" / "results").mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_guide(shell, files_server):
    """``client.files.content(…).text`` has a line for each request, however it is split."""
    openai = pytest.importorskip("openai")
    shell.server.script("of a", Reply(ANSWER))
    write_tasks(movies())
    assert shell.run("tasks.jsonl", "-o", "files/results/content") == 0
    with openai.OpenAI(base_url=files_server, api_key="sk-test", max_retries=0) as client:
        text = client.files.content("results").text
    for lines in (text.splitlines(), text.strip().split("\n")):
        assert {json.loads(line)["custom_id"] for line in lines} == {"task-7", "task-3", "task-5"}


def test_models_of_the_sdk(shell):
    """A good body is a ChatCompletion, a failed one has an ErrorObject: from the server, or made of its text."""
    types = pytest.importorskip("openai.types")
    shell.server.script("of a", Reply(status=400, code="too_long"))
    shell.server.script("of ü", Reply(status=404, body="no such page"))
    write_tasks(movies())
    assert shell.run("tasks.jsonl", "-o", "results.jsonl", "--max-tries", "1") == 1
    results = {result["custom_id"]: result["response"] for result in results_in()}
    completion = types.chat.ChatCompletion.model_validate(results["task-3"]["body"])
    assert completion.choices[0].message.content == "of b\nand c"
    errors = {
        name: types.shared.ErrorObject.model_validate(results[name]["body"]["error"]) for name in ("task-7", "task-5")
    }
    assert errors["task-7"].code == "too_long"
    assert errors["task-5"].message == "no such page"
    assert [results[name]["status_code"] for name in errors] == [400, 404]
