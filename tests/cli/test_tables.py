"""``chatpool run table -o table``: the same table with one more column, right after every kind of interruption."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import stat
import subprocess
import sys

import pytest

from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until

TABLE = 'prompt,label\nalpha,0\nbeta,1\ngamma,2\nalpha,3\n"zeta, ""q""",4\n"eta\nline",5\n'


def rows(name="out.csv", separator=","):
    with open(name, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


def is_right(name="out.csv", answer=lambda prompt: prompt):
    """Whether every row has its own answer."""
    return all(row["answer"] == answer(row["prompt"]) and row["error"] == "" for row in rows(name))


def test_table_has_the_input_and_two_more_columns(shell):
    """All as it was, in the input's order; stderr names the journal."""
    shell.write("in.csv", TABLE.encode())
    assert shell.run("in.csv", "-o", "out.csv") == 0
    before = list(csv.DictReader(io.StringIO(TABLE, newline="")))
    assert [{key: row[key] for key in ("prompt", "label")} for row in rows()] == before
    assert list(rows()[0]) == ["prompt", "label", "answer", "error"]
    assert is_right()
    assert "chatpool: the journal of out.csv is out.csv.chatpool.jsonl\n" in shell.err
    assert "chatpool: columns not sent: label\n" in shell.err
    assert stat.S_IMODE(os.stat("out.csv").st_mode) == 0o600
    assert sorted(os.listdir()) == ["in.csv", "out.csv", "out.csv.chatpool.jsonl"]


def test_failed_rows_have_an_error_and_are_sent_again(shell):
    """The next run writes the table again, and asks only what failed."""
    shell.server.script("beta", Reply(status=400, code="too_long"), Reply("beta"))
    shell.write("in.csv", TABLE.encode())
    assert shell.run("in.csv", "-o", "out.csv") == 1
    failed = rows()[1]
    assert failed["answer"] == ""
    assert failed["error"].startswith("BadRequestError: 400: ")
    assert [row["answer"] for row in rows() if row["prompt"] == "alpha"] == ["alpha", "alpha"]
    assert shell.run("in.csv", "-o", "out.csv") == 0
    assert is_right()
    assert len(shell.server.requests) == 7
    assert shell.run("in.csv", "-o", "out.csv") == 0
    assert len(shell.server.requests) == 7


def test_edited_reordered_and_longer_table(shell):
    """Each row keeps its own answer; only new prompts are sent."""
    shell.write("in.csv", TABLE.encode())
    shell.run("in.csv", "-o", "out.csv")
    header, *others = TABLE.replace("\nline", " line").splitlines(keepends=True)
    shell.write("in.csv", (header + "NEW,9\n" + "".join(reversed(others)) + "alpha,10\n").encode())
    assert shell.run("in.csv", "-o", "out.csv") == 0
    assert is_right()
    assert [row["label"] for row in rows()] == ["9", "5", "4", "3", "2", "1", "0", "10"]
    assert len(shell.server.requests) == 6 + 3


def test_rows_without_a_prompt_stay(shell):
    shell.write("in.csv", b"id,prompt\n1,a\n2,\n,\n3,b\n")
    assert shell.run("in.csv", "-o", "out.csv") == 0
    assert [(row["answer"], row["error"]) for row in rows()] == [
        ("a", ""), ("", "no prompt in this row"), ("", "no prompt in this row"), ("b", "")
    ]  # fmt: skip
    assert "chatpool: 2 rows have no prompt, and nothing is sent for them: line 3, line 4\n" in shell.err


def test_table_is_written_after_ctrl_c(tmp_path):
    """What was answered has its answer, and the rest says why not; the same command completes the table."""
    gate = {"p3": Reply(fault="stall")}
    (tmp_path / "in.csv").write_text("prompt\n" + "".join(f"p{number}\n" for number in range(10)))
    with FakeChatServer(reply=lambda request: gate.get(request.prompt, Reply())) as server:
        command = [sys.executable, "-m", "chatpool", "run", "in.csv", "-o", "out.csv", "--base-url", server.url]
        options = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
        signals = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
        process = subprocess.Popen([*command, "--workers", "2"], **options, **signals)
        journal = tmp_path / "out.csv.chatpool.jsonl"
        assert wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") == 9, 20)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=20)[1]
        assert process.returncode == 130
        assert "interrupted: 9 of 10 prompts answered; run the same command again to continue\n" in err
        written = rows(tmp_path / "out.csv")
        assert [row["answer"] for row in written] == [f"p{n}" if n != 3 else "" for n in range(10)]
        assert "run the same command again" in written[3]["error"]
        gate.clear()
        assert subprocess.run(command, **options).returncode == 0
        assert is_right(tmp_path / "out.csv")
        assert len(server.requests) == 11


def test_kill_leaves_the_old_table_and_loses_no_answer(tmp_path):
    gate = {"p3": Reply(fault="stall")}
    (tmp_path / "in.csv").write_text("prompt\n" + "".join(f"p{number}\n" for number in range(10)))
    with FakeChatServer(reply=lambda request: gate.get(request.prompt, Reply())) as server:
        command = [sys.executable, "-m", "chatpool", "run", "in.csv", "-o", "out.csv", "--base-url", server.url]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        journal = tmp_path / "out.csv.chatpool.jsonl"
        assert wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") == 9, 20)
        process.kill()
        process.wait()
        assert not (tmp_path / "out.csv").exists()
        gate.clear()
        assert subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode == 0
        assert is_right(tmp_path / "out.csv")
        assert len(server.requests) == 11


def test_file_that_chatpool_did_not_write_is_not_replaced(shell):
    shell.write("in.csv", TABLE.encode())
    shell.write("out.csv", "my data")
    assert shell.run("in.csv", "-o", "out.csv") == 2
    assert "out.csv exists, and no run of chatpool wrote it; choose another file" in shell.err
    assert shell.run("in.csv", "-o", "in.csv") == 2
    assert "in.csv is the input" in shell.err
    assert shell.run("in.csv", "-o", "out.xlsx") == 2
    assert "-o cannot write .xlsx files; use .csv, .tsv, .parquet or .jsonl" in shell.err
    assert shell.server.requests == []


def test_columns_of_these_names_are_kept(shell):
    """The new ones get a number, and stderr says so."""
    shell.write("in.csv", b"question,answer\nWhat is 1+1?,2\n")
    assert shell.run("in.csv", "-o", "out.csv", "--prompt-field", "question") == 0
    assert rows() == [{"question": "What is 1+1?", "answer": "2", "answer_2": "What is 1+1?", "error": ""}]
    assert "the new ones of out.csv are answer_2, error" in shell.err


def test_columns_of_equal_names_and_odd_cells_are_kept(shell):
    shell.write("in.csv", 'x,prompt,x, y\n" 1",a,NA,"c\rd"\n007,b,"",\u2028\n'.encode())
    assert shell.run("in.csv", "-o", "out.csv") == 0
    with open("out.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["x", "prompt", "x", " y", "answer", "error"],
            [" 1", "a", "NA", "c\rd", "a", ""],
            ["007", "b", "", "\u2028", "b", ""],
        ]


@pytest.mark.parametrize(
    ("content", "name", "separator", "start", "end"),
    [
        (b"id;prompt\r\n1;a\r\n", "out.csv", ";", b"id;prompt;answer;error\r\n", b"1;a;a;\r\n"),
        (b"id;prompt\n1;a\n", "out.tsv", "\t", b"id\tprompt\tanswer\terror\n", b"1\ta\ta\t\n"),
        ("id,prompt\n1,é\n".encode("utf-16"), "out.csv", ",", b"\xef\xbb\xbfid,prompt,", "1,é,é,\n".encode()),
        ("id,prompt\n1,é\n".encode("utf-8-sig"), "out.csv", ",", b"\xef\xbb\xbfid,prompt,", "1,é,é,\n".encode()),
        (b"sep=;\nid;prompt\n1;a\n", "out.csv", ";", b"id;prompt;answer;error\n", b"1;a;a;\n"),
    ],
)
def test_format_of_the_output_is_that_of_the_input(shell, content, name, separator, start, end):
    """Separator and line ends; in UTF-8, with a mark if the input had one, as Excel needs it."""
    shell.write("in.csv", content)
    assert shell.run("in.csv", "-o", name) == 0
    with open(name, "rb") as file:
        written = file.read()
    assert written.startswith(start)
    assert written.endswith(end)


def test_json_lines_become_a_table(shell):
    """Fields become columns; what is neither text nor a number is JSON."""
    shell.write("in.jsonl", '{"prompt": "a", "k": 1, "t": ["x"]}', '{"prompt": "b", "u": null, "k": 2.5}')
    assert shell.run("in.jsonl", "-o", "out.csv") == 0
    assert rows() == [
        {"prompt": "a", "k": "1", "t": '["x"]', "u": "", "answer": "a", "error": ""},
        {"prompt": "b", "k": "2.5", "t": "", "u": "", "answer": "b", "error": ""},
    ]
    shell.write("in.txt", "a", "", "b")
    assert shell.run("in.txt", "-o", "text.csv") == 0
    assert [row["answer"] for row in rows("text.csv")] == ["a", "", "b"]


def test_several_inputs_make_one_table(shell):
    """With the columns of all."""
    shell.write("a.csv", "prompt,x", "a,1")
    shell.write("b.csv", "y,prompt", "2,b")
    assert shell.run("?.csv", "-o", "out.csv") == 0
    assert rows() == [
        {"prompt": "a", "x": "1", "y": "", "answer": "a", "error": ""},
        {"prompt": "b", "x": "", "y": "2", "answer": "b", "error": ""},
    ]


def test_usage_adds_columns(shell):
    shell.server.script("b", Reply(status=400))
    shell.write("in.csv", "prompt", "a", "b")
    shell.run("in.csv", "-o", "out.csv", "--usage")
    first, second = rows()
    assert int(first["prompt_tokens"]) > 0
    assert int(first["completion_tokens"]) > 0
    assert first["finish_reason"] == "stop"
    assert first["cost"] == ""
    assert (second["prompt_tokens"], second["finish_reason"]) == ("", "")
    choices = [{"message": {"role": "assistant", "content": "c"}, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 0.25}
    shell.server.script("c", Reply(body={"choices": choices, "usage": usage}))
    shell.write("in.csv", "prompt", "c")
    shell.run("in.csv", "-o", "out.csv", "--usage")
    assert rows()[0]["cost"] == "0.25"
    assert shell.run("in.csv", "-o", "out.jsonl", "--usage") == 2
    assert "--usage adds columns to a table" in shell.err


def test_limit_sends_the_first_prompts(shell):
    """The others say so; without it, the next run sends only the rest."""
    shell.write("in.csv", TABLE.encode())
    assert shell.run("in.csv", "-o", "out.csv", "--limit", "2") == 0
    assert [row["answer"] for row in rows()] == ["alpha", "beta", "", "", "", ""]
    assert {row["error"] for row in rows()[2:]} == {"not sent: beyond --limit 2"}
    assert len(shell.server.requests) == 2
    assert shell.run("in.csv", "-o", "out.csv") == 0
    assert is_right()
    assert len(shell.server.requests) == 6
    assert shell.run("in.csv", "--text", "--limit", "1") == 0
    assert shell.out == "alpha\n"
    assert shell.run("in.csv", "--text", "--limit", "0") == 2


def test_dedupe_sends_equal_prompts_once(shell):
    """Every row has the answer, also after an edit."""
    shell.write("in.csv", "id,prompt", "1,a", "2,b", "3,a", "4,a")
    assert shell.run("in.csv", "-o", "out.csv", "--dedupe") == 0
    assert is_right()
    assert len(shell.server.requests) == 2
    shell.write("in.csv", "id,prompt", "9,c", "4,a", "1,a", "2,b", "3,a", "7,c")
    assert shell.run("in.csv", "-o", "out.csv", "--dedupe") == 0
    assert is_right()
    assert len(shell.server.requests) == 3
    assert shell.run("in.csv", "--text", "--dedupe") == 2


def test_ids_that_are_no_longer_unique(shell):
    """The answers of a table are found whether or not its rows are named by their id."""
    shell.write("in.csv", "id,prompt", "1,a", "2,b")
    assert shell.run("in.csv", "-o", "out.csv") == 0
    shell.write("in.csv", "id,prompt", "1,a", "2,b", "2,c")
    assert shell.run("in.csv", "-o", "out.csv") == 0
    assert is_right()
    assert len(shell.server.requests) == 3
    shell.write("in.csv", "id,prompt", "1,a", "2,b", "3,c")
    assert shell.run("in.csv", "-o", "out.csv") == 0
    assert is_right()
    assert len(shell.server.requests) == 3


def test_template_and_system_with_columns(shell):
    shell.write("in.csv", "text,lang", "hello,French", "bye,German")
    shell.write("t.txt", "Into {lang}: {text}")
    assert shell.run("in.csv", "-o", "out.csv", "--template", "@t.txt", "--system", "You speak {lang}.") == 0
    assert [row["answer"] for row in rows()] == ["Into French: hello", "Into German: bye"]
    assert {request.body["messages"][0]["content"] for request in shell.server.requests} == {
        "You speak French.", "You speak German."
    }  # fmt: skip
    assert shell.run("in.csv", "-o", "two.csv", "--template", "Into {language}: {text}") == 2
    assert "no column 'language' among text, lang" in shell.err
    assert shell.run("in.csv", "-o", "two.csv", "--template", "Into") == 2
    assert "names no column" in shell.err
    assert shell.run("in.csv", "-o", "two.csv", "--template", "@none.txt") == 2
    assert "cannot read none.txt" in shell.err


def test_header(shell):
    shell.write("in.txt", "a")
    assert shell.run("in.txt", "--text", "--header", "X-Team: blue", "--header", "api-key:k:1") == 0
    (request,) = shell.server.requests
    assert (request.headers["x-team"], request.headers["api-key"]) == ("blue", "k:1")
    assert shell.run("in.txt", "--text", "--header", "blue") == 2
    assert "'blue' is not NAME: VALUE" in shell.err


def test_parquet_to_parquet(shell):
    """Types of the columns are kept."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    import datetime

    day = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
    table = pa.table(
        {"prompt": ["a", None, "b\u2028"], "n": [1, 2, None], "when": [day, None, day], "l": [[1], [], None]}
    )
    parquet.write_table(table, "in.parquet")
    shell.server.script("a", Reply("x\ud800"))
    assert shell.run("in.parquet", "-o", "out.parquet", "--usage") == 0
    written = parquet.read_table("out.parquet")
    assert written.select(table.column_names).equals(table)
    assert written["answer"].to_pylist() == ["x\\ud800", None, "b\u2028"]
    assert written["error"].to_pylist() == [None, "no prompt in this row", None]
    assert written.schema.field("prompt_tokens").type == pa.int64()
    assert shell.run("in.parquet", "-o", "out.csv") == 0
    assert [row["n"] for row in rows()] == ["1", "2", ""]


@pytest.mark.parametrize("name", ["in.csv", "in.csv.gz", "in.parquet", "in.jsonl", "in.json"])
def test_long_table(shell, name):
    """Longer than any buffer, from every kind of file."""
    prompts = [f"prompt {number} {'x' * (number % 50)}" for number in range(6000)]
    if name == "in.parquet":
        pa = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"prompt": prompts}), name)
    elif name.startswith("in.csv"):
        content = "\n".join(["prompt", *prompts]).encode()
        shell.write(name, gzip.compress(content) if name.endswith("gz") else content)
    elif name == "in.json":
        shell.write(name, json.dumps(prompts))
    else:
        shell.write(name, *map(json.dumps, prompts))
    for output in ["out.csv", *(["out.parquet"] if name == "in.parquet" else [])]:
        assert shell.run(name, "-o", output) == 0
    assert [row["answer"] for row in rows()] == prompts
    if name == "in.parquet":
        assert parquet.read_table("out.parquet")["answer"].to_pylist() == prompts


def test_csv_to_parquet(shell):
    pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    shell.write("in.csv", TABLE.encode())
    assert shell.run("in.csv", "-o", "out.parquet") == 0
    written = parquet.read_table("out.parquet").to_pylist()
    assert len(written) == 6
    assert all(row["answer"] == row["prompt"] and row["error"] is None for row in written)


def test_package_that_is_missing_is_named(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    shell.write("in.csv", TABLE.encode())
    shell.write("in.parquet", b"PAR1")
    shell.write("in.zst", b"\x28\xb5\x2f\xfd")
    for source, output, needed in (
        ("in.csv", "out.parquet", "pyarrow"),
        ("in.parquet", "out.csv", "pyarrow"),
        ("in.zst", "out.csv", "zstandard"),
    ):
        assert shell.run(source, "-o", output) == 2
        assert f"pip install {needed}" in shell.err


def test_blank_lines_keep_their_lines_in_the_text_output(shell):
    """So that ``paste`` joins each line with its answer."""
    shell.write("in.txt", "", "a", "", "", "b", "")
    assert shell.run("in.txt", "--text") == 0
    assert shell.out == "\na\n\n\nb\n\n"


def test_unsent_rows_name_the_reason(shell):
    shell.write("in.csv", "prompt", *(f"p{number}" for number in range(10)))
    assert shell.run("in.csv", "-o", "out.csv", "--request-budget", "3", "--workers", "1") == 1
    assert sum(row["answer"] != "" for row in rows()) == 3
    assert all("SpendLimitError" in row["error"] for row in rows() if not row["answer"])


# One line for each custom_id.


def lines(name="out.jsonl"):
    with open(name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_output_has_one_line_for_each_custom_id(shell):
    """After a later success the failed line is gone."""
    shell.server.script("b", Reply(status=400), Reply(status=400), Reply("better"))
    shell.write("in.jsonl", *(json.dumps({"custom_id": f"r-{c}", "prompt": c}) for c in "abc"))
    assert shell.run("in.jsonl", "-o", "out.jsonl") == 1
    assert shell.run("in.jsonl", "-o", "out.jsonl") == 1
    assert sorted(line["custom_id"] for line in lines()) == ["r-a", "r-b", "r-c"]
    assert shell.run("in.jsonl", "-o", "out.jsonl") == 0
    assert sorted(line["custom_id"] for line in lines()) == ["r-a", "r-b", "r-c"]
    assert shell.answers() == ["a", "better", "c"]
    assert stat.S_IMODE(os.stat("out.jsonl").st_mode) == 0o600
    assert sorted(os.listdir()) == ["in.jsonl", "out.jsonl"]


def test_edited_prompt_replaces_its_line(shell):
    shell.write("in.jsonl", '{"custom_id": "x", "prompt": "a"}', '{"custom_id": "y", "prompt": "b"}')
    shell.run("in.jsonl", "-o", "out.jsonl")
    shell.write("in.jsonl", '{"custom_id": "x", "prompt": "new"}', '{"custom_id": "y", "prompt": "b"}')
    shell.run("in.jsonl", "-o", "out.jsonl")
    assert shell.answers() == ["b", "new"]
    assert len(lines()) == 2


def test_output_is_compacted_if_nothing_was_answered_before(shell):
    shell.server.script("a", Reply(status=400), Reply("better"))
    shell.write("in.txt", "a")
    assert shell.run("in.txt", "-o", "out.jsonl") == 1
    assert shell.run("in.txt", "-o", "out.jsonl") == 0
    assert len(lines()) == 1


def test_failed_compaction_changes_nothing(shell, monkeypatch, caplog):
    """The disk is full: the answers stay as they are, and a warning is logged."""

    def full(path, pieces, before_move):
        raise OSError(28, "No space left on device")

    shell.server.script("a", Reply(status=400), Reply("better"))
    shell.write("in.txt", "a", "b")
    shell.run("in.txt", "-o", "out.jsonl")
    monkeypatch.setattr("chatpool._files.compaction.replace_file", full)
    assert shell.run("in.txt", "-o", "out.jsonl") == 0
    assert shell.answers() == ["b", "better"]
    assert len(lines()) == 3
    assert "was not compacted: [Errno 28] No space left on device" in caplog.text


def test_full_disk_keeps_the_old_table(shell, monkeypatch):
    """The answers are in the journal."""
    shell.write("in.csv", TABLE.encode())
    shell.run("in.csv", "-o", "out.csv")
    before = rows()

    def full(path, pieces):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chatpool._files.tables.replace_file", full)
    shell.write("in.csv", (TABLE + "new,7\n").encode())
    assert shell.run("in.csv", "-o", "out.csv") == 1
    message = (
        "cannot write out.csv: No space left on device; the answers are in out.csv.chatpool.jsonl; run the same com"
    )
    assert message in shell.err
    assert rows() == before
    assert sorted(os.listdir()) == ["in.csv", "out.csv", "out.csv.chatpool.jsonl"]
