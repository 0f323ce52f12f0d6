"""The journal: what was answered is never asked again, whatever happened in between."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from chatpool import ChatPool, JournalError, NotSentError
from chatpool._files.batch_format import Key, digest_of, key_of, line_of, parse_head, parse_line, result_of
from chatpool._protocol.requests import BatchRequest
from chatpool.journal import Journal
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until

PROMPTS = [f"p{number}" for number in range(20)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def usage(pool, prompts, path, **options):
    """The ways to use a journal; each returns the values by prompt."""
    return {
        "map": lambda: pool.map(prompts, journal=path, **options),
        "imap": lambda: [result.value for result in pool.imap(prompts, journal=path, **options)],
        "imap_unordered": lambda: [
            result.value
            for result in sorted(pool.imap_unordered(prompts, journal=path, **options), key=lambda r: r.index)
        ],
    }


WAYS = ["map", "imap", "imap_unordered"]


@pytest.mark.parametrize("way", WAYS)
def test_second_run_asks_nothing(server, pool, path, way):
    """All three ways write the file and read it."""
    assert usage(pool, PROMPTS, path)[way]() == PROMPTS
    assert usage(pool, PROMPTS, path)[way]() == PROMPTS
    assert len(server.requests) == 20
    assert len(lines(path)) == 20


def test_line_tells_of_tries_that_failed(server, pool, path):
    """When each of them began and ended, in seconds from the first, and what came of it; for one good try, nothing."""
    server.script("b", Reply(status=429), Reply(status=500), Reply("b"))
    server.script("c", Reply(status=400))
    pool.map(["a", "b", "c"], journal=path)
    tries = {len(line["chatpool"].get("tries", ())): line["chatpool"] for line in lines(path)}
    assert sorted(tries) == [0, 1, 3]
    assert [name for _, _, name in tries[3]["tries"]] == ["RateLimitError", "InternalServerError", None]
    assert [name for _, _, name in tries[1]["tries"]] == ["BadRequestError"]
    moments = [moment for began, ended, _ in tries[3]["tries"] for moment in (began, ended)]
    assert moments == sorted(moments)
    assert moments[0] == 0
    assert moments[-1] == round(tries[3]["elapsed"], 3)


def test_line_is_batch_output(server, pool, path):
    """The Batch API's fields with its meaning, and ours beside them under one key."""
    server.script("bad", Reply(status=400, code="too_long"))
    server.script("refused", Reply(body={"choices": [{"message": {"content": None, "refusal": "no"}}]}))
    answers = pool.map(["a", "bad", "refused"], journal=path)
    found = {line["chatpool"]["index"]: line for line in lines(path)}
    assert all(list(line) == ["id", "custom_id", "response", "error", "chatpool"] for line in found.values())
    assert len({line["id"] for line in found.values()} | {line["custom_id"] for line in found.values()}) == 6
    good = found[0]
    assert good["error"] is None
    assert good["response"]["status_code"] == 200
    assert good["response"]["request_id"] == answers.results[0].request_id
    assert good["response"]["body"] == answers.results[0].response
    assert set(good["chatpool"]) == {"hash", "index", "attempts", "started", "elapsed"}
    assert abs(good["chatpool"]["started"] - time.time()) < 60
    assert found[1]["response"] is None
    assert found[1]["error"] == {"code": "too_long", "message": str(answers.results[1].error)}
    assert found[2]["response"]["body"]["choices"][0]["message"]["refusal"] == "no"
    assert found[2]["error"]["code"] == "refusal"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_resumed_results_are_whole(server, pool, path):
    """Text, usage, response, request id, attempts and elapsed come back; the summary tells them from new ones."""
    server.script("a", Reply(status=500), Reply("hello"))
    before = pool.map(["a"], journal=path).results[0]
    answers = pool.map(["a", "b"], journal=path)
    after = answers.results[0]
    for name in ("index", "prompt", "text", "value", "finish_reason", "response", "request_id", "attempts"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.attempts == 2
    assert after.elapsed == pytest.approx(before.elapsed, abs=1e-5)
    assert "1 of them were in the journal already" in answers.summary()
    assert "requests: 1, of them 0 retries" in answers.summary()


def test_failed_calls_are_asked_again_and_the_last_line_counts(server, pool, path):
    server.script("b", Reply(status=400), Reply("better"))
    assert pool.map(["a", "b"], journal=path) == ["a", None]
    assert pool.map(["a", "b"], journal=path) == ["a", "better"]
    assert pool.map(["a", "b"], journal=path) == ["a", "better"]
    assert len(lines(path)) == 3
    assert (server.count("a"), server.count("b")) == (1, 2)


def test_retry_writes_to_the_same_journal(server, pool, path):
    """Also where the second of two equal prompts failed: it is asked, not given the first one's answer."""
    server.script("a", Reply("first"), Reply(status=400), Reply("third"))
    with ChatPool(1, base_url=server.url) as one:
        answers = one.map(["a", "a", "b"], journal=path)
        assert answers == ["first", None, "b"]
        assert one.retry(answers) == ["first", "third", "b"]
        assert one.map(["a", "a", "b"], journal=path) == ["first", "third", "b"]
    assert len(server.requests) == 4


def test_order_inserts_edits_and_repeats(server, pool, path):
    """Prompts are known by what is asked, not by where they stand; equal ones each have an answer of their own."""
    pool.map(["a", "b", "c"], journal=path)
    assert pool.map(["c", "new", "a", "a", "B"], journal=path) == ["c", "new", "a", "a", "B"]
    assert [server.count(prompt) for prompt in ("a", "b", "c", "new", "B")] == [2, 1, 1, 1, 1]
    assert pool.map(["a", "a", "a"], journal=path) == ["a"] * 3
    assert server.count("a") == 3


@pytest.mark.parametrize("change", [{"model": "other"}, {"params": {"temperature": 0}}, {"system": "be brief"}])
def test_changed_request_is_asked_anew(server, make_pool, path, change):
    make_pool().map(["a"], journal=path)
    make_pool(**change).map(["a"], journal=path)
    make_pool().map(["a"], journal=path)
    assert server.count("a") == 2


def test_parse_is_applied_to_what_the_journal_holds(server, pool, path):
    """An answer that parse now refuses is asked for again."""
    server.script("number", Reply("seven"), Reply("7"))
    assert pool.map(["number"], journal=path) == ["seven"]
    assert pool.map(["number"], journal=path, parse=int) == [7]
    assert pool.map(["number"], journal=path, parse=int) == [7]
    assert server.count("number") == 2


def test_given_up_calls_are_not_written(server, pool, path):
    """Past the deadline or never sent is not finished."""
    server.script("slow", Reply(fault="stall"))
    pool.map(["a", "slow", "slow"], journal=path, deadline=0.3)
    assert [line["custom_id"] for line in lines(path)] == [digest("a")]


def digest(prompt, **fields):
    messages = [{"role": "user", "content": prompt}]
    return digest_of("/v1/chat/completions", {"messages": messages, "model": "gpt-4o-mini", **fields})


def test_line_is_there_before_the_answer_is(server, pool, path):
    """Whoever holds a result finds it in the file; also while the rest hangs, and after the iterator is dropped."""
    server.script("slow", Reply(fault="stall"))
    results = pool.imap_unordered(["a", "slow", "slow"], journal=path)
    assert next(results).value == "a"
    assert [line["custom_id"] for line in lines(path)] == [digest("a")]
    results.close()
    assert len(lines(path)) == 1
    assert pool.map(["a"], journal=path) == ["a"]  # the lock is free


def test_interrupt_leaves_lines_and_frees_the_lock(server, pool, path, monkeypatch):
    server.script("slow", Reply(fault="stall"))

    def interrupt():
        wait_until(lambda: path.exists() and path.stat().st_size > 0)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        pool.map(["a", "slow"], journal=path)
    assert caught.value.answers == ["a", None]
    assert len(lines(path)) == 1
    assert pool.map(["a"], journal=path) == ["a"]


# What a file may look like.


def grow(path, data):
    with path.open("ab") as file:
        file.write(data)


@pytest.mark.parametrize(
    "torn", [b'{"id": "chat', b'{"', b"{", b'{"id": "x", "custom_id": "y", "resp', b"\0\0\0", b"\0\n"]
)
def test_torn_line_is_cut_off(server, pool, path, torn):
    """As kill -9, a full disk or a failure of power leave it."""
    pool.map(["a", "b"], journal=path)
    whole = path.read_bytes()
    grow(path, torn)
    assert pool.map(["a", "b", "c"], journal=path) == ["a", "b", "c"]
    assert path.read_bytes().startswith(whole)
    assert len(lines(path)) == 3
    assert len(server.requests) == 3


def test_every_prefix_of_a_line_is_a_torn_line(server, pool, path, tmp_path):
    """Wherever a line is cut, the lines before it are kept, and it is made again."""
    pool.map(["a", "b"], journal=path)
    first, second = path.read_bytes().splitlines(keepends=True)
    torn = tmp_path / "torn.jsonl"
    for length in range(len(second)):
        torn.write_bytes(first + second[:length])
        with Journal(torn) as journal:
            assert journal.find(key_of(json.loads(first))) is not None
        is_torn = length < len(second) - 1  # only its newline
        assert torn.read_bytes() == (first if is_torn else first + second)


@pytest.mark.parametrize("is_only_line", [True, False])
def test_last_line_without_its_newline_is_kept(server, pool, path, is_only_line):
    """Some editors save a file so. Whole as it is, it was paid for."""
    pool.map(["a"] if is_only_line else ["a", "b"], journal=path)
    path.write_bytes(path.read_bytes()[:-1])
    asked = len(server.requests)
    assert pool.map(["a", "b", "c"], journal=path) == ["a", "b", "c"]
    assert len(server.requests) == asked + (2 if is_only_line else 1)
    assert len(lines(path)) == 3


def test_good_answer_outlives_what_comes_after_it(server, pool, path):
    """Another model under the same journal and back again; a parse that refused the answer, and is taken out."""
    pool.map(["a"], journal=path)
    pool.map(["a"], journal=path, params={"model": "other"})
    pool.map(["a"], journal=path, parse=int)
    asked = len(server.requests)
    assert pool.map(["a"], journal=path) == ["a"]
    assert pool.map(["a"], journal=path, params={"model": "other"}) == ["a"]
    assert len(server.requests) == asked


def test_name_used_for_two_requests_keeps_both_answers(server, make_pool, path):
    """An edited input, sent, and the old one taken back."""
    pool = make_pool()
    for prompt in ["old", "new", "old", "new"]:
        (result,) = pool._mapper(journal=path).stream([BatchRequest(prompt, "the-name")], in_order=True)
        assert result.text == prompt
    assert [request.prompt for request in server.requests] == ["old", "new"]


BATCH_OUTPUT = b'{"id": "batch_req_1", "custom_id": "r", "response": {"status_code": 200, "body": {}}, "error": null}\n'


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"hello",
        b'{"prompt": "a"}\n',
        b"[1]\n",
        b"\x89PNG\r\n",
        b"\n",
        b"prompt\na\n",
        BATCH_OUTPUT,
        BATCH_OUTPUT[:-1],
        BATCH_OUTPUT[:-20],
        b'{"id": "x", "te',
        b'{"id": "chatpool-1", "custom_id": \n',
        b"{",
        b"\0\0\0",
        b'{"id": ' + b"[" * 100_000,
    ],
)
def test_file_of_another_kind_is_refused_untouched(server, pool, path, content):
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"is no journal: line 1 was not written by chatpool; it was left as it is"):
        pool.map(["a"], journal=path)
    assert path.read_bytes() == content
    assert server.requests == []


def test_damage_in_the_middle_is_refused_untouched(server, pool, path):
    """What stands before the last line was whole once; cutting there would lose what was paid for."""
    pool.map(["a", "b"], journal=path)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + first[:40] + b"\n" + second)
    with pytest.raises(JournalError, match="line 2 was not written by chatpool"):
        pool.map(["a"], journal=path)
    assert path.read_bytes() == first + first[:40] + b"\n" + second


def test_lines_that_another_tool_wrote_anew_are_read(server, pool, path):
    """Without spaces, in another order: still the same journal."""
    pool.map(["a", "b"], journal=path)
    anew = [json.dumps(dict(reversed(list(line.items()))), separators=(",", ":")) for line in lines(path)]
    path.write_text("".join(line + "\n" for line in anew))
    assert pool.map(["a", "b"], journal=path) == ["a", "b"]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing/answers.jsonl", "cannot be opened: No such file or directory"),
        (".", "cannot be opened: Is a directory"),
    ],
)
def test_path_that_cannot_be_a_journal(server, pool, tmp_path, name, told):
    with pytest.raises(JournalError, match=told):
        pool.map(["a"], journal=tmp_path / name)
    assert server.requests == []


def test_fifo_is_refused(pool, path):
    os.mkfifo(path)
    with pytest.raises(JournalError, match="must be a regular file"):
        pool.map(["a"], journal=path)


# Two at once.


@pytest.mark.parametrize("way", WAYS)
def test_second_run_is_refused_while_the_first_lives(server, make_pool, path, way):
    """In the same process, too; and the first goes on undisturbed."""
    server.script("slow", Reply("slow", delay=0.3))
    first = make_pool().imap(["a", "slow"], journal=path)
    assert next(first).value == "a"
    with pytest.raises(JournalError, match="in use by another run"):
        usage(make_pool(), ["b"], path)[way]()
    assert next(first).value == "slow"
    assert list(first) == []
    assert usage(make_pool(), ["b"], path)[way]() == ["b"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_lock_dies_with_its_process_even_if_a_child_lives_on(path):
    """The child of a killed run inherits the file, but not the lock."""
    code = "\n".join(
        [
            "import os, sys, time",
            "from chatpool.journal import Journal",
            "journal = Journal(sys.argv[1])",
            "if os.fork() == 0: print('up', flush=True); time.sleep(60)",
            "time.sleep(60)",
        ]
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(JournalError, match="in use"):
            Journal(path)
        process.kill()
        process.wait()
        Journal(path).close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()


# What must not lose a line.

RUN = """
import sys
from chatpool import ChatPool
pool = ChatPool(8, base_url=sys.argv[1], max_wait=0.05, progress=False)
print(len(pool.map([f"p{number}" for number in range(400)], journal=sys.argv[2])))
"""


def test_kill_at_twenty_random_moments(path):
    """No finished prompt is asked twice: the server's count is the proof."""
    chance = random.Random(4)
    finished, asked_again = set(), []
    names = {digest(f"p{number}"): f"p{number}" for number in range(400)}

    def reply(request):
        if request.prompt in finished:
            asked_again.append(request.prompt)
        return Reply(status=500) if chance.random() < 0.1 else Reply(delay=chance.uniform(0.005, 0.05))

    with FakeChatServer(reply=reply) as server:
        for _ in range(20):
            process = subprocess.Popen([sys.executable, "-c", RUN, server.url, str(path)], stdout=subprocess.DEVNULL)
            sent = len(server.requests)
            wait_until(lambda sent=sent: len(server.requests) > sent, 20)
            time.sleep(chance.uniform(0, 0.15))
            process.kill()
            process.wait()
            finished.update(
                names[told[0].custom_id]
                for line in path.read_bytes().splitlines(keepends=True)
                if (told := parse_head(line))
            )
        done = subprocess.run([sys.executable, "-c", RUN, server.url, str(path)], capture_output=True, check=True)
        assert wait_until(lambda: server.open_connections == 0)
    assert done.stdout == b"400\n"
    assert len(finished) > 50
    assert asked_again == []
    good = [line for line in lines(path) if line["error"] is None]
    assert sorted(names[line["custom_id"]] for line in good) == sorted(names.values())


def test_full_disk(path):
    """A clear error with the answers in memory; the file ends with a whole line; once there is room, it goes on."""
    code = "\n".join(
        [
            "import resource, sys, signal",
            "from chatpool import ChatPool, JournalError",
            "pool = ChatPool(4, base_url=sys.argv[1])",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))",
            "prompts = [f'p{number}' for number in range(100)]",
            "try: pool.map(prompts, journal=sys.argv[2])",
            "except JournalError as error:",
            "    print(error)",
            "    print(sum(answer is not None for answer in error.answers), len(error.answers))",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
            "print(pool.map(prompts, journal=sys.argv[2]) == prompts)",
        ]
    )
    with FakeChatServer() as server:
        done = subprocess.run([sys.executable, "-c", code, server.url, str(path)], capture_output=True, text=True)
        asked = len(server.requests)
    told, counts, second = done.stdout.splitlines()
    assert told == f"the journal {path} cannot be written: File too large", done.stderr
    in_memory, total = map(int, counts.split())
    assert total == 100
    assert in_memory > 5  # those written, and the one that was not
    assert second == "True"
    assert asked <= 100 + 4  # the one that could not be written, and those that were on the wire
    assert len(lines(path)) == 100


def test_disk_that_fills_up_for_real(path, tmp_path, server):
    """The same on a file system of 64 KiB, where one can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with ChatPool(4, base_url=server.url) as pool, pytest.raises(JournalError, match="No space left") as caught:
            pool.map(["x" * 1000] * 200, journal=disk / "answers.jsonl")
        assert 10 < sum(answer is not None for answer in caught.value.answers) < 200
        with Journal(disk / "answers.jsonl") as journal:
            assert len(journal._index) == len(lines(disk / "answers.jsonl"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_synced_once_a_second_and_at_the_end(server, pool, path, monkeypatch):
    """Not for each line: that would cost more than the call."""
    syncs = []
    monkeypatch.setattr(os, "fsync", syncs.append)
    pool.map(PROMPTS, journal=path)
    assert len(syncs) == 1
    monkeypatch.setattr("chatpool._files.journal._SYNC_EVERY", 0.0)
    pool.map([f"more {number}" for number in range(10)], journal=path)
    assert len(syncs) == 1 + 10 + 1


# What the file, the collector and a fork do behind its back.


@pytest.mark.parametrize("end", ["removed", "replaced", "cut short"])
def test_file_that_is_gone_is_told(server, pool, path, tmp_path, end):
    """What would be written to it from then on would be lost."""
    answers = pool.imap_unordered(PROMPTS, journal=path)
    next(answers)
    if end == "removed":
        path.unlink()
    elif end == "replaced":
        (tmp_path / "other").write_text("")
        (tmp_path / "other").replace(path)
    else:
        os.truncate(path, 0)
    with pytest.raises(JournalError, match="was removed, replaced or cut short while it was written"):
        list(answers)


def test_collector_may_close_the_journal_in_the_midst_of_a_line(server, pool, path, monkeypatch):
    """An iterator dropped in a cycle, and found by a worker that is just writing: no deadlock, and no stray write."""
    write, was_dropped, was_closed = Journal._write, threading.Event(), threading.Event()

    def collect_and_write(journal, line):
        if b"slow" in line:
            was_dropped.wait(20)
            gc.collect()
            if journal._file.closed:
                was_closed.set()
        write(journal, line)

    monkeypatch.setattr(Journal, "_write", collect_and_write)
    server.script("slow", Reply("slow", delay=0.05))
    answers = pool.imap_unordered(["a", "slow"], journal=path)
    gc.disable()
    try:
        cycle = [answers]
        cycle.append(cycle)
        assert next(answers).value == "a"
        del cycle, answers
        was_dropped.set()
        assert was_closed.wait(20)
    finally:
        gc.enable()
    assert pool.map(["a", "x"], journal=path) == ["a", "x"]
    assert len(lines(path)) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_forked_amid_a_line_may_close_its_iterator(server, pool, path, monkeypatch):
    """The lock was held at the fork, by a thread that the child has not."""
    write, is_writing, may_go_on = Journal._write, threading.Event(), threading.Event()

    def slow_disk(journal, line):
        if b"slow" in line:
            is_writing.set()
            may_go_on.wait(20)
        write(journal, line)

    monkeypatch.setattr(Journal, "_write", slow_disk)
    answers = pool.imap(["a", "slow"], journal=path)
    assert next(answers).value == "a"
    assert is_writing.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        answers.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    may_go_on.set()
    assert [result.value for result in answers] == ["slow"]


def test_error_of_the_disk_does_not_hide_an_interrupt(server, pool, path, monkeypatch):
    def broken(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    answers = pool.imap(["a", "b"], journal=path)
    next(answers)
    with pytest.raises(KeyboardInterrupt):
        answers.throw(KeyboardInterrupt)


def test_bug_in_parse_names_the_prompt_also_on_resume(server, pool, path):
    pool.map(["a", "b"], journal=path)
    with pytest.raises(ZeroDivisionError) as caught:
        pool.map(["a", "b"], journal=path, parse=lambda text: 1 // (text != "b"))
    assert caught.value.prompt_index == 1


def test_names_that_cannot_be_sorted(server, pool, path):
    """JSON makes strings of them; the journal knows the request again all the same."""
    params = {"metadata": {1: "one", "two": 2}}
    for _ in range(2):
        assert pool.map(["a"], journal=path, params=params) == ["a"]
    assert len(server.requests) == 1


# The lines themselves.


def test_line_survives_what_json_and_utf8_dislike(server, pool, path):
    """Lone surrogates, line separators and control characters come back as they were."""
    odd = 'a\ud800 \u2028 \x85 \x00 "quoted\\" }} , "chatpool": {"'
    server.script("odd", Reply(body={"choices": [{"message": {"content": odd}, "finish_reason": "stop"}]}))
    assert pool.map(["odd"], journal=path) == [odd]
    assert pool.map(["odd"], journal=path) == [odd]
    assert server.count("odd") == 1
    assert path.read_bytes().count(b"\n") == 1


def test_glance_sees_what_parsing_sees(server, pool, path):
    """The quick look and the whole parse agree on every kind of line."""
    server.script("bad", Reply(status=400))
    server.script("odd", Reply('", "chatpool": {'))
    pool.map(["a", "bad", "odd"], journal=path)
    for line in path.read_bytes().splitlines(keepends=True):
        document = parse_line(line)
        assert parse_head(line) == (key_of(document), document["error"] is None)


def test_failed_line_becomes_the_same_error_again(server, pool, path):
    server.script("bad", Reply(status=429, code="insufficient_quota"))
    result = pool.map(["bad"], journal=path).results[0]
    again = result_of(parse_line(line_of(result, Key("k", "d"))), 0, "bad")
    assert type(again.error) is type(result.error)
    assert (str(again.error), again.error.code, again.error.status_code) == (
        str(result.error),
        "insufficient_quota",
        429,
    )
    assert not isinstance(again.error, NotSentError)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's count of memory")
def test_reading_a_large_journal_keeps_no_answers(path):
    """The index is two numbers a line: 20,000 lines of 3 kB are read in under 10 MB."""
    body = {"choices": [{"message": {"content": "x" * 3000}}]}
    with path.open("w") as file:
        for number in range(20_000):
            line = {"id": "chatpool-0", "custom_id": f"r{number}", "response": {"status_code": 200, "body": body}}
            file.write(json.dumps({**line, "error": None, "chatpool": {"hash": "h"}}) + "\n")
    code = (
        "import sys; from chatpool.journal import Journal\n"
        "peak = lambda: [int(line.split()[1]) for line in open('/proc/self/status') if 'VmHWM' in line][0] // 1024\n"
        "before = peak()\nwith Journal(sys.argv[1]) as journal: print(len(journal._index), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, megabytes = map(int, done.stdout.split())
    assert count == 20_000
    assert megabytes < 10
