"""``chatpool run``: sends the prompts of any file; an answered prompt is never paid for twice."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

from chatpool import ChatPool
from chatpool._cli.main import main
from chatpool.testing import End, FakeChatServer, Reply
from tests.conftest import wait_until
from tests.streaming import HELLO, stream


def batch(name, content, **more):
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body, **more})


# Kinds of input.

INPUTS = {
    "text": ("in.txt", ["a", "", "b", "  ", "c"]),
    "text without a last newline": ("in.txt", [b"a\nb\nc"]),
    "text with CRLF and BOM": ("in.txt", [b"\xef\xbb\xbfa\r\nb\r\n\r\nc\r\n"]),
    "text without an extension": ("prompts", ["a", '{"not": json', '"b" or not', "c"]),
    "strings": ("in.jsonl", ['"a"', '"b"', '"c"']),
    "strings with CRLF and BOM": ("in.jsonl", [b'\xef\xbb\xbf"a"\r\n"b"\r\n\r\n"c"']),
    "strings without an extension": ("prompts", ['"a"', '"b"', '"c"']),
    "prompts": ("in.jsonl", ['{"prompt": "a", "label": 3}', '{"prompt": "b"}', '{"custom_id": "x", "prompt": "c"}']),
    "messages": ("in.jsonl", [json.dumps({"messages": [{"role": "user", "content": c}], "n": 1}) for c in "abc"]),
    "lists of messages": ("in.ndjson", [json.dumps([{"role": "user", "content": c}]) for c in "abc"]),
    "batch": ("in.jsonl", [batch(f"request-{c}", c) for c in "abc"]),
    "CSV": ("in.csv", ["prompt", "a", "b", "c"]),
    "CSV with other columns, quotes and CRLF": ("in.csv", [b'\xef\xbb\xbfid,prompt\r\n1,"a"\r\n2,b\r\n3,c\r\n']),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_input(shell, kind):
    """Every kind of file is recognized by its extension or its first line."""
    name, lines = INPUTS[kind]
    shell.write(name, *lines)
    assert shell.run(name, "-o", "out.jsonl") == 0, shell.err
    expected = ["a", "b", "c"] if kind != "text without an extension" else sorted(lines)
    assert shell.answers() == expected
    assert f"{len(expected)} prompts: {len(expected)} answered, 0 failed" in shell.err
    assert shell.out == ""


def test_csv_cell_with_several_lines(shell):
    shell.write("in.csv", b'prompt,custom_id\n"two\nlines, and a ""quote""",x\n')
    assert shell.run("in.csv", "-o", "out.jsonl") == 0
    assert shell.answers() == ['two\nlines, and a "quote"']


def test_huge_line(shell):
    """8 MB in one line is one prompt."""
    shell.write("in.txt", "x" * 8_000_000, "short")
    assert shell.run("in.txt", "-o", "out.jsonl") == 0
    assert [len(request.prompt) for request in sorted(shell.server.requests, key=lambda r: -len(r.prompt))] == [
        8_000_000,
        5,
    ]


@pytest.mark.parametrize("kind", ["stdin", "fifo"])
def test_input_that_can_be_read_only_once(shell, kind):
    """A pipe is validated before anything is sent, like a file."""
    if kind == "stdin":
        command = [sys.executable, "-m", "chatpool", "run", "-", "--text"]
        done = subprocess.run(command, input=b"a\nb\n", capture_output=True)
        assert (done.returncode, done.stdout) == (0, b"a\nb\n")
    else:
        os.mkfifo("pipe.txt")
        process = subprocess.Popen(["sh", "-c", "printf 'a\\nb\\n' > pipe.txt"])
        assert shell.run("pipe.txt", "--text") == 0
        assert shell.out == "a\nb\n"
        process.wait()


def test_other_columns_of_a_data_set_are_ignored(shell):
    """Unless they are fields of a request's body."""
    shell.write("in.jsonl", '{"prompt": "a", "label": 3, "user": "u7", "metadata": {"source": "web"}}')
    assert shell.run("in.jsonl", "--text") == 0
    assert shell.out == "a\n"


# Invalid input and usage: an error before anything is sent.

BAD = {
    "not JSON": ('{"prompt": ', "not valid JSON: Expecting value at column 12"),
    "a number": ("7", "a prompt is a string, a list of messages or an object, not 7"),
    "no prompt": ('{"text": "a"}', "an object needs 'body', 'messages' or 'prompt'"),
    "prompt of another type": ('{"prompt": 7}', "'prompt' must be a string or a list of messages"),
    "empty list": ("[]", "a list prompt must be a non-empty list of message dicts"),
    "body of another type": ('{"body": []}', "'body' must be an object"),
    "no messages in a chat body": ('{"body": {"input": "a"}}', "a dict prompt holds body fields and needs 'messages'"),
    "another method": (batch("r", "a", method="GET"), "'method' must be POST"),
    "a whole URL": (batch("r", "a", url="https://evil.test/v1/x"), "'url' must be a path such as /v1/chat/compl"),
    "custom_id not a string": (batch(7, "a"), "'custom_id' must be a non-empty string"),
    "stream": (
        '{"messages": [{"role": "user", "content": "a"}], "stream": true}',
        "'stream' is not supported; answers are read",
    ),
    "not UTF-8": (b'"\xff"\n', "not UTF-8"),
    "NaN": ('{"messages": [{"role": "user", "content": "a"}], "top_p": NaN}', "it cannot be sent as JSON"),
    "nested too deep": ("[" * 200_000, "not valid JSON: nested too deep"),
    "an ignored field": ('{"prompt": "a", "temperature": 0}', "'temperature' would not be sent; use 'messages' in pla"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_line_is_reported_by_number(shell, kind):
    line, problem = BAD[kind]
    shell.write("in.jsonl", '"good"', "", line, '"good, too"')
    assert shell.run("in.jsonl", "-o", "out.jsonl") == 2
    assert shell.err.startswith(f"chatpool: in.jsonl has one bad line; nothing was sent:\n  line 3: {problem}"), (
        shell.err
    )
    assert shell.server.requests == []
    assert not os.path.exists("out.jsonl")


def test_first_twenty_bad_lines_are_shown_and_all_are_counted(shell):
    shell.write("in.jsonl", *(['"good"', "bad"] * 30))
    assert shell.run("in.jsonl", "-o", "out.jsonl") == 2
    shown = re.findall(r"^  line (\d+): not valid JSON", shell.err, re.MULTILINE)
    assert shown == [str(number) for number in range(2, 42, 2)]
    assert "has 30 bad lines" in shell.err
    assert "and 10 more" in shell.err


def test_duplicate_custom_ids_are_refused(shell):
    shell.write("in.jsonl", batch("x", "a"), batch("y", "b"), batch("x", "c"), batch("x", "a"))
    assert shell.run("in.jsonl", "-o", "out.jsonl") == 2
    assert "line 3: duplicate custom_id 'x', first used in line 1" in shell.err
    assert "line 4: duplicate custom_id 'x', first used in line 1" in shell.err
    assert shell.server.requests == []


CSV_BAD = {
    "no such column": (b"text\na\n", "line 1: no column 'prompt' among text; pass --prompt-field text to send a col"),
    "nothing but empty cells": (b"id,prompt\n1,\n2\n", "in.csv contains no prompts; 2 rows have no prompt"),
    "comma without quotes": (
        b"prompt\nHello, you\n",
        "line 2: more cells than columns (2 and 1); put double quotes around a cell that contains separators",
    ),
    "two such columns": (b"prompt,prompt\na,b\n", "line 1: 2 columns are named 'prompt': prompt, prompt"),
    "open quote": (b'prompt\na\n"b\n', "line 3: the quote that begins in this row is never closed"),
    "not UTF-8": (b"prompt\n\xff\n", "not UTF-8"),
}


@pytest.mark.parametrize("kind", CSV_BAD)
def test_bad_csv(shell, kind):
    content, problem = CSV_BAD[kind]
    shell.write("in.csv", content)
    assert shell.run("in.csv", "-o", "out.jsonl") == 2
    assert problem in shell.err


USAGE = {
    "no output": ([], "no output: pass -o OUTPUT, or --text to write plain text to stdout"),
    "no such input": (["missing.txt", "--text"], "chatpool: cannot read missing.txt: No such file or directory"),
    "input is a folder": ([".", "--text"], "chatpool: cannot read .: Is a directory"),
    "input is output": (["-o", "in.txt"], "chatpool: in.txt is the input; choose another file for the output"),
    "output is not a journal": (["-o", "other.txt"], "chatpool: other.txt is not a chatpool journal: line 1 was not"),
    "output in no folder": (["-o", "no/out.jsonl"], "the folder no of the output does not exist; create it first"),
    "bad workers": (["--text", "--workers", "0"], "chatpool: --workers must be"),
    "workers not a number": (["--text", "--workers", "many"], "argument --workers: invalid int value: 'many'"),
    "bad param": (["--text", "--param", "temperature"], "argument --param: 'temperature' is not KEY=VALUE"),
    "bad timeout": (["--text", "--timeout", "1,2,3"], "argument --timeout: '1,2,3' is neither SECONDS nor CONNECT,READ"),
    "a table without an extension": (["table", "--text"], "chatpool: table looks like a table with the columns id, q"),
    "a table as text": (["table.txt", "--text"], "chatpool: table.txt looks like a table with the columns id, q; pas"),
    "answers to stdout": (["-o", "-"], "chatpool: -o needs a file, from which the next run can continue; --text"),
    "empty input": (["empty.txt", "--text"], "chatpool: empty.txt contains no prompts"),
}  # fmt: skip


@pytest.mark.parametrize("kind", USAGE)
def test_usage_error_is_a_sentence_and_exit_code_2(shell, kind):
    arguments, message = USAGE[kind]
    shell.write("in.txt", "a")
    shell.write("other.txt", "a")
    shell.write("empty.txt", "", " ")
    shell.write("table", "id,q", "1,a")
    shell.write("table.txt", "id\tq", "1\ta")
    has_input = bool(arguments) and not arguments[0].startswith("-")
    assert shell.run(*([] if has_input else ["in.txt"]), *arguments) == 2
    assert message in shell.err
    assert "Traceback" not in shell.err
    assert shell.server.requests == []


def test_no_key_for_openai(shell, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL")
    shell.write("in.txt", "a")
    assert shell.run("in.txt", "--text") == 2
    assert shell.err.startswith("chatpool: no API key: set the environment variable OPENAI_API_KEY")


# Requests and output.


def test_options_reach_the_request(shell):
    shell.write("in.txt", "a")
    options = ["--model", "mine", "--system", "be brief", "--param", "temperature=0", "--param", "user=me"]
    more = ["--param", 'stop=["x"]', "--rpm", "6000", "--tpm", "600000", "--timeout", "2,9", "--max-tries", "2"]
    assert shell.run("in.txt", "--text", *options, *more, "--max-wait", "1", "--deadline", "30") == 0
    (request,) = shell.server.requests
    assert request.body == {
        "model": "mine",
        "temperature": 0,
        "user": "me",
        "stop": ["x"],
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}],
    }


def test_idle_timeout_streams_inside(shell):
    """An answer that falls silent is asked for again; the output is the same as ever."""
    shell.write("in.txt", "a")
    shell.server.script("a", stream(*HELLO[:3], end=End.STALL), stream(*HELLO))
    assert shell.run("in.txt", "--text", "--idle-timeout", "0.3", "--max-wait", "0.1") == 0
    assert shell.out == "Hello\n"
    assert "first token: median" in shell.err
    assert shell.run("in.txt", "--text", "--idle-timeout", "0") == 2
    assert "--idle-timeout must be a number of seconds, more than 0" in shell.err


def test_batch_bodies_are_sent_as_they_are(shell):
    """With their own model and messages; --system is ignored, and --param adds only missing fields."""
    shell.write("in.jsonl", batch("r", "a"))
    assert shell.run("in.jsonl", "-o", "out.jsonl", "--system", "no", "--param", "seed=1") == 0
    (request,) = shell.server.requests
    assert request.body == {"model": "m", "messages": [{"role": "user", "content": "a"}], "seed": 1}


@pytest.mark.parametrize(
    ("path", "reply", "text"),
    [
        ("/v1/embeddings", {"object": "list", "data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 3}}, None),
        ("/v1/completions", {"choices": [{"text": "done"}]}, "done"),
        ("/v1/responses", {"output": [{"content": [{"type": "output_text", "text": "hi"}]}], "error": None}, "hi"),
    ],
)
def test_other_endpoints(shell, path, reply, text):
    """The body goes to the line's URL and the reply to the output, both unchanged."""
    shell.server._reply = lambda request: Reply(body=reply)
    body = {"model": "m", "input": "a"}
    shell.write("in.jsonl", json.dumps({"custom_id": "r", "method": "POST", "url": path, "body": body}))
    assert shell.run("in.jsonl", "-o", "out.jsonl", "--text") == 0
    (request,) = shell.server.requests
    assert (request.path, request.body) == (path, body)
    with open("out.jsonl") as file:
        (line,) = map(json.loads, file)
    assert line["custom_id"] == "r"
    assert line["response"]["body"] == reply
    assert shell.out == (text or json.dumps(reply)) + "\n"
    assert shell.run("in.jsonl", "-o", "out.jsonl", "--text") == 0
    assert len(shell.server.requests) == 1


def test_errors_of_other_endpoints_are_errors(shell):
    shell.server._reply = lambda request: Reply(status=404, body={"error": {"message": "no such model"}})
    shell.write("in.jsonl", '{"custom_id": "r", "url": "/v1/embeddings", "body": {"model": "x", "input": "a"}}')
    assert shell.run("in.jsonl", "-o", "out.jsonl") == 1
    assert "1 × NotFoundError 404, e.g. prompt 1 (req_0): 404: no such model" in shell.err


def test_text_is_one_line_an_answer_in_order(shell):
    """Line ends are escaped, and a failed call is an empty line."""
    shell.server.script("a", Reply("two\nlines \\ and\r more", delay=0.3))
    shell.server.script("b", Reply(status=400))
    shell.write("in.txt", "a", "b", "c")
    assert shell.run("in.txt", "--text") == 1
    assert shell.out == "two\\nlines \\\\ and\\r more\n\nc\n"


TERMINAL_CODES = "\x1b[31mred\x1b]0;title\x07 \x00\x7f\x9b2J \u2028\u2029 \u202e\u2066 caf\u00e9 \t\r\n\\"


def test_control_characters_are_escaped_on_a_terminal(tmp_path, server):
    """An answer can neither colour, clear nor retitle the terminal; other characters are printed as they are."""
    pty = pytest.importorskip("pty")
    server.script("a", Reply(TERMINAL_CODES))
    (tmp_path / "in.txt").write_text("a\n")
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "chatpool", "run", "in.txt", "--text", "--no-progress", "--base-url", server.url]
    subprocess.run(command, cwd=tmp_path, stdout=end, stderr=subprocess.DEVNULL, check=True, timeout=60)
    os.close(end)
    output = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert output == (r"\x1b[31mred\x1b]0;title\x07 \x00\x7f\x9b2J \u2028\u2029 \u202e\u2066 café \t\r\n\\" "\r\n")


def test_control_characters_are_written_unchanged_to_a_file(tmp_path, server):
    """All but line ends, as everywhere."""
    server.script("a", Reply(TERMINAL_CODES))
    (tmp_path / "in.txt").write_text("a\n")
    with (tmp_path / "out.txt").open("wb") as file:
        command = [sys.executable, "-m", "chatpool", "run", "in.txt", "--text", "--base-url", server.url]
        subprocess.run(command, cwd=tmp_path, stdout=file, check=True, timeout=60)
    expected = TERMINAL_CODES.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
    assert (tmp_path / "out.txt").read_bytes().decode() == expected + os.linesep


@pytest.mark.skipif(os.name == "nt", reason="needs file modes")
def test_output_that_other_users_can_access_is_made_private(shell):
    """And stderr says so."""
    shell.write("in.txt", "a")
    shell.write("out.jsonl")
    os.chmod("out.jsonl", 0o666)
    assert shell.run("in.txt", "-o", "out.jsonl") == 0
    assert stat.S_IMODE(os.stat("out.jsonl").st_mode) == 0o600
    assert "chatpool: other users had access to out.jsonl (mode 0666); its mode is now 0600\n" in shell.err


def test_exit_code_1_and_the_reason(shell):
    shell.server.script("b", Reply(status=400, code="too_long"))
    shell.write("in.txt", "a", "b", "c")
    assert shell.run("in.txt", "-o", "out.jsonl") == 1
    assert "3 prompts: 2 answered, 1 failed" in shell.err
    assert "1 × BadRequestError 400 too_long, e.g. prompt 2" in shell.err
    assert shell.answers() == ["a", "c"]


def test_second_run_sends_failed_and_new_prompts(shell):
    shell.server.script("b", Reply(status=400), Reply("better"))
    shell.write("in.txt", "a", "b")
    assert shell.run("in.txt", "-o", "out.jsonl") == 1
    shell.write("in.txt", "new", "b", "a", "a")
    assert shell.run("in.txt", "-o", "out.jsonl") == 0
    assert "4 prompts: 4 answered (1 resumed), 0 failed" in shell.err
    assert "(1 resumed)" in shell.err
    assert shell.answers() == ["a", "a", "better", "new"]
    assert len(shell.server.requests) == 2 + 3


def test_no_retry_failed_does_not_send_failures_again(shell):
    """They count as failed, with the same error as before."""
    shell.server.script("b", Reply(status=400, code="too_long"), Reply("better"))
    shell.write("in.txt", "a", "b")
    shell.run("in.txt", "-o", "out.jsonl")
    assert shell.run("in.txt", "-o", "out.jsonl", "--no-retry-failed") == 1
    assert "2 prompts: 1 answered (1 resumed), 1 failed" in shell.err
    assert "1 × BadRequestError 400 too_long" in shell.err
    assert len(shell.server.requests) == 2


def test_run_resumes_from_the_journal_of_a_map(shell, make_pool):
    """Command and library share one file format."""
    make_pool().map(["a", "b"], journal="out.jsonl")
    shell.write("in.txt", "b", "a", "b")
    assert shell.run("in.txt", "-o", "out.jsonl") == 0
    assert len(shell.server.requests) == 3


def test_dry_run_sends_and_writes_nothing(shell):
    shell.write("in.txt", "a" * 400, "b" * 400, "c" * 400)
    assert shell.run("in.txt", "--dry-run") == 0
    assert "3 prompts: 0 already done, 3 to send\n" in shell.out
    shell.run("in.txt", "-o", "out.jsonl")
    shell.write("in.txt", "a" * 400, "new" * 100)
    before = os.stat("out.jsonl")
    assert shell.run("in.txt", "-o", "out.jsonl", "--dry-run", "--param", "max_tokens=1000") == 0
    assert "2 prompts: 0 already done, 2 to send" in shell.out  # other parameters make other requests
    assert shell.run("in.txt", "-o", "out.jsonl", "--dry-run") == 0
    assert "2 prompts: 1 already done, 1 to send\nabout " in shell.out
    tokens = int(shell.out.split("about ")[1].split()[0])
    assert 75 < tokens < 150
    assert os.stat("out.jsonl").st_mtime_ns == before.st_mtime_ns
    assert shell.run("in.txt", "-o", "nowhere.jsonl", "--dry-run") == 0
    assert not os.path.exists("nowhere.jsonl")
    assert len(shell.server.requests) == 3


def test_second_command_is_refused_while_the_first_one_runs(shell):
    from chatpool.journal import Journal

    shell.write("in.txt", "a")
    with Journal("out.jsonl"):
        assert shell.run("in.txt", "-o", "out.jsonl") == 2
    assert shell.err.startswith("chatpool: the journal out.jsonl is in use by another run")


def start(*arguments, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "chatpool", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **more,
    )


def test_ctrl_c_says_how_to_continue(tmp_path):
    """Exit code 130; the answers so far are in the file, and the same command sends the rest."""
    gate = {"p3": Reply(fault="stall")}
    (tmp_path / "in.txt").write_text("".join(f"p{number}\n" for number in range(10)))
    with FakeChatServer(reply=lambda request: gate.get(request.prompt, Reply())) as server:
        command = ["run", "in.txt", "-o", "out.jsonl", "--base-url", server.url, "--workers", "2"]
        process = start(*command, cwd=tmp_path)
        assert wait_until(lambda: len(server.requests) == 10, 20)
        time.sleep(0.2)  # for the last replies to be written
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (130, ""), err
        assert err == "interrupted: 9 of 10 prompts answered; run the same command again to continue\n"
        gate.clear()
        process = start(*command, cwd=tmp_path)
        process.communicate(timeout=20)
        assert process.returncode == 0
        assert len(server.requests) == 11


def test_full_disk_is_a_clear_error(tmp_path, server):
    (tmp_path / "in.txt").write_text("".join(f"p{number}\n" for number in range(100)))
    command = f"ulimit -f 8; exec {sys.executable} -m chatpool run in.txt -o out.jsonl --base-url {server.url}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    message = (
        "chatpool: the journal out.jsonl cannot be written: File too large; run the same command again to continue\n"
    )
    assert done.stderr == message


def test_closed_pipe_is_not_a_traceback(tmp_path, server):
    (tmp_path / "in.txt").write_text("a\n" * 3000)
    command = f"{sys.executable} -m chatpool run in.txt --text --base-url {server.url} | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "a\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: os.truncate(path, 20_000), "it had 20,000 prompts, now it has 10,000"),
        (lambda path: path.write_text("a\n" * 20_001), "it had 20,000 prompts, now it has more"),
        (lambda path: path.write_bytes(b"\xff\n" * 20_000), "in.txt has changed: line "),
    ],
    ids=["shorter", "longer", "damaged"],
)
def test_input_that_changes_during_the_run_is_an_error(shell, tmp_path, monkeypatch, change, message):
    """The answers so far are kept, and the message says how to continue."""
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{number % 10}\n" for number in range(20_000)))
    monkeypatch.setattr("chatpool._cli.main.ChatPool._mapper", changing(ChatPool._mapper, lambda: change(path)))
    monkeypatch.setattr("chatpool._files.sources._BUFFER", 2)
    assert shell.run("in.txt", "-o", "out.jsonl") == 1
    assert message in shell.err
    assert shell.err.endswith("; run the same command again to continue\n")


def changing(make, change):
    """Call ``change`` after the first prompt of the second reading."""

    def changed(*args, **options):
        mapper = make(*args, **options)
        read = mapper.stream
        mapper.stream = lambda prompts, **how: read(after_first(prompts, change), **how)
        return mapper

    return changed


def after_first(prompts, change):
    for number, prompt in enumerate(prompts):
        yield prompt
        if not number:
            change()


def test_characters_that_stdout_cannot_encode_are_escaped(tmp_path, server):
    """A lone surrogate in an answer, and an ASCII terminal."""
    server.script("a", Reply("caf\u00e9 \ud800"))
    (tmp_path / "in.txt").write_text("a\n")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = start("run", "in.txt", "--text", "--base-url", server.url, cwd=tmp_path, env=environment)
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == ("caf\\xe9 \\ud800\n", 0), err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        ("in.txt --text > /dev/full", 1, "chatpool: cannot write to stdout: No space left on device; with -o OUTPUT"),
        ("one.txt --text > /dev/full", 1, "chatpool: cannot write to stdout: No space left on device; with -o OUTPUT"),
        ("in.txt --text >&-", 2, "chatpool: stdout is closed, and --text writes to it\n"),
        ("- -o out.jsonl <&-", 2, "chatpool: cannot read stdin: it is closed\n"),
    ],
)
def test_full_or_closed_stdout_and_closed_stdin(tmp_path, server, redirection, code, message):
    (tmp_path / "in.txt").write_text("a\n" * 3000)
    (tmp_path / "one.txt").write_text("a\n")
    command = f"{sys.executable} -m chatpool run --base-url {server.url} {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith(message)
    assert "Exception" not in done.stderr
    assert done.returncode == code


def test_pipe_as_a_journal_is_refused(shell):
    """Opening it would wait for a writer."""
    shell.write("in.txt", "a")
    os.mkfifo("fifo")
    for command in [["run", "in.txt", "-o", "fifo", "--dry-run"], ["run", "in.txt", "-o", "fifo"]]:
        assert main(command) == 2
    assert "the journal fifo must be a regular file" in shell._capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "demo", "fake-server"])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert re.search(r"examples?:\s+chatpool " + command, capsys.readouterr().out)


def test_fake_server_serves_until_ctrl_c(tmp_path):
    """For programs in any language; here the client is the command itself."""
    server = start("fake-server", "--latency", "0.01", "--error-rate", "0.3", "--rpm", "6000", "--key", "sk-test")
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", server.stdout.readline())[0]
        (tmp_path / "in.txt").write_text("a\nb\nc\n")
        environment = {**os.environ, "OPENAI_API_KEY": "sk-test"}
        command = ["run", "in.txt", "--text", "--base-url", url, "--max-wait", "0.1"]
        client = start(*command, cwd=tmp_path, env=environment)
        assert client.communicate(timeout=20)[0] == "a\nb\nc\n"
        environment["OPENAI_API_KEY"] = "sk-other"
        client = start(*command, cwd=tmp_path, env=environment)
        assert "AuthenticationError 401" in client.communicate(timeout=20)[1]
        assert client.returncode == 1
    finally:
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=20)
    assert (err, server.returncode) == ("", 130)


def test_fake_server_names_the_right_base_url(tmp_path):
    """A real server would not know the path either."""
    server = start("fake-server")
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", server.stdout.readline())[0]
        (tmp_path / "in.txt").write_text("a\n")
        for base in (url[: -len("/v1")], f"{url}/v1"):
            client = start("run", "in.txt", "--text", "--base-url", base, cwd=tmp_path)
            err = " ".join(client.communicate(timeout=20)[1].split())
            assert client.returncode == 1
            assert f"the base URL of this server is {url}" in err
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=20)


def test_fake_server_streams_at_a_pace():
    """Five words at twenty a second: the last comes after 0.2 s."""
    server = start("fake-server", "--tokens-per-second", "20")
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", server.stdout.readline())[0]
        with ChatPool(1, base_url=url, idle_timeout=10) as pool:
            result = pool.map(["one two three four five"]).results[0]
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=20)
    assert result.text == "one two three four five"
    assert result.elapsed >= 0.2


def test_fake_server_refuses_invalid_options(capsys, server):
    assert main(["fake-server", "--port", str(server.port)]) == 2
    assert f"cannot serve on port {server.port}: " in capsys.readouterr().err
    assert main(["fake-server", "--error-rate", "5"]) == 2
    assert "--error-rate must be from 0 to 1, not 5" in capsys.readouterr().err
    for option, value in [
        ("--tokens-per-second", "0"),
        ("--rpm", "0"),
        ("--rpm", "nan"),
        ("--port", "99999"),
        ("--latency", "-1"),
    ]:
        assert main(["fake-server", option, value]) == 2
        assert f"{option} must be" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's count of memory")
def test_a_large_input_runs_in_flat_memory(tmp_path, server):
    """8,000 prompts of 4 kB, with answers as long, take as much memory as 300."""
    code = (
        "import sys; from chatpool._cli.main import main; code = main(sys.argv[1:])\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for count in (300, 8000):
        path = tmp_path / f"{count}.txt"
        with path.open("w") as file:
            file.writelines(f"{number} {'x' * 4000}\n" for number in range(count))
        command = [sys.executable, "-c", code, "run", str(path), "-o", str(path) + ".out", "--base-url", server.url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] - peaks[0] < 8, peaks
