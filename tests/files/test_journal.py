"""The journal: an answered prompt is not sent again, whatever happened in between."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc

import pytest

from chatpool import DEFAULT_MODEL, ChatPool, JournalError, NotSentError
from chatpool._files.batch_format import Key, digest_of, is_answer, key_of, line_of, parse_head, parse_line, result_of
from chatpool._protocol.requests import CHAT_PATH, BatchRequest
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
    """Return the three ways to use a journal; each returns the values in order."""
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
def test_second_run_sends_nothing(server, pool, path, way):
    """All three ways write the file and read it."""
    assert usage(pool, PROMPTS, path)[way]() == PROMPTS
    assert usage(pool, PROMPTS, path)[way]() == PROMPTS
    assert len(server.requests) == 20
    assert len(lines(path)) == 20


def test_line_lists_the_attempts_if_one_failed(server, pool, path):
    """Start and end of each, in seconds from the start of the first, and its error; nothing after one good attempt."""
    server.script("b", Reply(status=429), Reply(status=500), Reply("b"))
    server.script("c", Reply(status=400))
    pool.map(["a", "b", "c"], journal=path)
    tries = {len(line["chatpool"].get("tries", ())): line["chatpool"] for line in lines(path)}
    assert sorted(tries) == [0, 1, 3]
    assert [one["error"] for one in tries[3]["tries"]] == ["RateLimitError", "InternalServerError", None]
    assert [one["error"] for one in tries[1]["tries"]] == ["BadRequestError"]
    moments = [one[name] for one in tries[3]["tries"] for name in ("began", "ended")]
    assert moments == sorted(moments)
    assert moments[0] == 0
    assert moments[-1] == round(tries[3]["elapsed"], 3)


def test_line_is_batch_output(server, pool, path):
    """The Batch API's fields with its meaning, and chatpool's own under one key."""
    server.script("bad", Reply(status=400, code="too_long"))
    server.script("refused", Reply(body={"choices": [{"message": {"content": None, "refusal": "no"}}]}))
    answers = pool.map(["a", "bad", "refused"], journal=path)
    names = ["a", "bad", "refused"]
    digests = [digest_of(CHAT_PATH, pool._mapper()._builder.body(name)) for name in names]
    by_index = {digests.index(line["custom_id"]): line for line in lines(path)}
    assert all(list(line) == ["id", "custom_id", "response", "error", "chatpool"] for line in by_index.values())
    assert len({line["id"] for line in by_index.values()} | {line["custom_id"] for line in by_index.values()}) == 6
    good = by_index[0]
    assert good["error"] is None
    assert good["response"]["status_code"] == 200
    assert good["response"]["request_id"] == answers.results[0].request_id
    assert good["response"]["body"] == answers.results[0].response
    assert good["chatpool"].keys() - {"ends"} == {"hash", "attempts", "started", "elapsed", "usage", "run"}
    assert abs(good["chatpool"]["started"] - time.time()) < 60
    error = answers.results[1].error
    assert by_index[1]["error"] is None  # a failure over HTTP is a response
    assert by_index[1]["response"]["status_code"] == 400
    assert by_index[1]["response"]["request_id"] == error.request_id != ""
    assert by_index[1]["response"]["body"]["error"]["code"] == "too_long"
    own = by_index[1]["chatpool"]
    assert (own["error"], own["message"], own["code"]) == ("BadRequestError", str(error), "too_long")
    assert by_index[2]["response"]["body"]["choices"][0]["message"]["refusal"] == "no"
    assert by_index[2]["error"]["code"] == "refusal"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_resumed_results_are_complete(server, pool, path):
    """Text, usage, response, request id, attempts and elapsed are restored; the summary counts them separately."""
    server.script("a", Reply(status=500), Reply("hello"))
    before = pool.map(["a"], journal=path).results[0]
    answers = pool.map(["a", "b"], journal=path)
    after = answers.results[0]
    for name in ("index", "prompt", "text", "value", "finish_reason", "response", "request_id", "attempts"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.attempts == 2
    assert after.elapsed == pytest.approx(before.elapsed, abs=1e-5)
    assert "(1 resumed)" in answers.summary()
    assert "requests: 1, 0 retries" in answers.summary()


def test_failed_prompts_are_sent_again_and_their_lines_replaced(server, pool, path):
    server.script("b", Reply(status=400), Reply("better"))
    assert pool.map(["a", "b"], journal=path) == ["a", None]
    assert pool.map(["a", "b"], journal=path) == ["a", "better"]
    assert pool.map(["a", "b"], journal=path) == ["a", "better"]
    assert len(lines(path)) == 2
    assert (server.count("a"), server.count("b")) == (1, 2)


def test_retry_writes_to_the_same_journal(server, pool, path):
    """The second of two equal prompts failed: it is sent, and does not get the first one's answer."""
    server.script("a", Reply("first"), Reply(status=400), Reply("third"))
    with ChatPool(1, base_url=server.url) as one:
        answers = one.map(["a", "a", "b"], journal=path)
        assert answers == ["first", None, "b"]
        assert one.retry(answers) == ["first", "third", "b"]
        assert one.map(["a", "a", "b"], journal=path) == ["first", "third", "b"]
    assert len(server.requests) == 4


def test_prompts_may_be_reordered_added_edited_and_repeated(server, pool, path):
    """Prompts are matched by their request, not by their position; each of two equal ones has its own answer."""
    pool.map(["a", "b", "c"], journal=path)
    assert pool.map(["c", "new", "a", "a", "B"], journal=path) == ["c", "new", "a", "a", "B"]
    assert [server.count(prompt) for prompt in ("a", "b", "c", "new", "B")] == [2, 1, 1, 1, 1]
    assert pool.map(["a", "a", "a"], journal=path) == ["a"] * 3
    assert server.count("a") == 3


@pytest.mark.parametrize("change", [{"model": "other"}, {"params": {"temperature": 0}}, {"system": "be brief"}])
def test_changed_request_is_sent_again(server, make_pool, path, change):
    make_pool().map(["a"], journal=path)
    make_pool(**change).map(["a"], journal=path)
    make_pool().map(["a"], journal=path)
    assert server.count("a") == 2


def test_parse_is_applied_to_answers_of_the_journal(server, pool, path):
    """A prompt whose answer parse now rejects is sent again."""
    server.script("number", Reply("seven"), Reply("7"))
    assert pool.map(["number"], journal=path) == ["seven"]
    assert pool.map(["number"], journal=path, parse=int) == [7]
    assert pool.map(["number"], journal=path, parse=int) == [7]
    assert server.count("number") == 2


def test_cancelled_calls_are_not_written(server, pool, path):
    """A call that the deadline cancelled, or that was never sent, is not finished."""
    server.script("slow", Reply(fault="stall"))
    pool.map(["a", "slow", "slow"], journal=path, deadline=2)
    assert [line["custom_id"] for line in lines(path)] == [digest("a")]


def digest(prompt, **fields):
    messages = [{"role": "user", "content": prompt}]
    return digest_of("/v1/chat/completions", {"messages": messages, "model": DEFAULT_MODEL, **fields})


def test_line_is_written_before_the_result_is_returned(server, pool, path):
    """Even while other calls hang, and after the iterator is closed."""
    server.script("slow", Reply(fault="stall"))
    results = pool.imap_unordered(["a", "slow", "slow"], journal=path)
    assert next(results).value == "a"
    assert [line["custom_id"] for line in lines(path)] == [digest("a")]
    results.close()
    assert len(lines(path)) == 1
    assert pool.map(["a"], journal=path) == ["a"]  # the lock was released


def test_interrupt_keeps_the_lines_and_releases_the_lock(server, pool, path, monkeypatch):
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


# The content of the file.


def grow(path, data):
    with path.open("ab") as file:
        file.write(data)


@pytest.mark.parametrize(
    "torn", [b'{"id": "chat', b'{"', b"{", b'{"id": "x", "custom_id": "y", "resp', b"\0\0\0", b"\0\n"]
)
def test_incomplete_last_line_is_cut_off(server, pool, path, torn):
    """As kill -9, a full disk or a power failure leaves it."""
    pool.map(["a", "b"], journal=path)
    whole = path.read_bytes()
    grow(path, torn)
    assert pool.map(["a", "b", "c"], journal=path) == ["a", "b", "c"]
    assert path.read_bytes().startswith(whole)
    assert len(lines(path)) == 3
    assert len(server.requests) == 3


def test_every_prefix_of_a_line_is_cut_off(server, pool, path, tmp_path):
    """The lines before it are kept, wherever the last line ends."""
    pool.map(["a", "b"], journal=path)
    first, second = path.read_bytes().splitlines(keepends=True)
    torn = tmp_path / "torn.jsonl"
    for length in range(len(second)):
        torn.write_bytes(first + second[:length])
        with Journal(torn) as journal:
            assert journal.find(key_of(json.loads(first))) is not None
        is_torn = length < len(second) - 1  # without its newline alone it is complete
        assert torn.read_bytes() == (first if is_torn else first + second)


@pytest.mark.parametrize("is_only_line", [True, False])
def test_last_line_without_its_newline_is_kept(server, pool, path, is_only_line):
    """Some editors save a file like that. The line is complete, and was paid for."""
    pool.map(["a"] if is_only_line else ["a", "b"], journal=path)
    path.write_bytes(path.read_bytes()[:-1])
    sent = len(server.requests)
    assert pool.map(["a", "b", "c"], journal=path) == ["a", "b", "c"]
    assert len(server.requests) == sent + (2 if is_only_line else 1)
    assert len(lines(path)) == 3


def test_later_lines_do_not_replace_a_good_answer(server, pool, path):
    """Lines for another model in the same journal; a failure, because a parse rejected the answer."""
    pool.map(["a"], journal=path)
    pool.map(["a"], journal=path, params={"model": "other"})
    pool.map(["a"], journal=path, parse=int)
    sent = len(server.requests)
    assert pool.map(["a"], journal=path) == ["a"]
    assert pool.map(["a"], journal=path, params={"model": "other"}) == ["a"]
    assert len(server.requests) == sent


def test_custom_id_of_two_requests_keeps_both_answers(server, make_pool, path):
    """The input is edited and sent, and then the edit is reverted."""
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
def test_another_kind_of_file_is_refused_and_left_unchanged(server, pool, path, content):
    path.write_bytes(content)
    with pytest.raises(
        JournalError, match="is not a chatpool journal: line 1 was not written by chatpool; it was left"
    ):
        pool.map(["a"], journal=path)
    assert path.read_bytes() == content
    assert server.requests == []


HOLE = 2**31  # bytes, which take no space on the disk


@pytest.mark.parametrize("start", [b"", b"x" * 100, b'{"id": "', b'[{"custom_id": "a"'], ids=str)
def test_huge_file_without_a_line_end_is_refused_after_its_first_piece(path, start):
    """2 GB are neither read nor held in memory."""
    path.write_bytes(start)
    os.truncate(path, HOLE)
    tracemalloc.start()
    try:
        with pytest.raises(JournalError, match="is not a chatpool journal: line 1"):
            Journal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == HOLE


def test_huge_line_after_good_ones_is_refused(server, pool, path, monkeypatch):
    """No line is longer than an answer can be, so no more than that is read of it."""
    monkeypatch.setattr("chatpool._files.journal._MAX_LINE", 2**20)
    pool.map(["a"], journal=path)
    os.truncate(path, HOLE)
    with pytest.raises(JournalError, match="is not a chatpool journal: line 2"):
        Journal(path)
    assert path.stat().st_size == HOLE


def test_journal_damaged_in_the_middle_is_refused_and_left_unchanged(server, pool, path):
    """Cutting the file there would lose the answers after the damage."""
    pool.map(["a", "b"], journal=path)
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + first[:40] + b"\n" + second)
    with pytest.raises(JournalError, match="line 2 was not written by chatpool"):
        pool.map(["a"], journal=path)
    assert path.read_bytes() == first + first[:40] + b"\n" + second


def test_lines_that_another_tool_rewrote_are_read(server, pool, path):
    """Without spaces, in another order: still the same journal."""
    pool.map(["a", "b"], journal=path)
    rewritten = [json.dumps(dict(reversed(list(line.items()))), separators=(",", ":")) for line in lines(path)]
    path.write_text("".join(line + "\n" for line in rewritten))
    assert pool.map(["a", "b"], journal=path) == ["a", "b"]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/answers.jsonl", "cannot be opened: No such file or directory"),
        (".", "cannot be opened: Is a directory"),
    ],
)
def test_path_that_cannot_be_a_journal(server, pool, tmp_path, name, message):
    with pytest.raises(JournalError, match=message):
        pool.map(["a"], journal=tmp_path / name)
    assert server.requests == []


def test_fifo_is_refused(pool, path):
    os.mkfifo(path)
    with pytest.raises(JournalError, match="must be a regular file"):
        pool.map(["a"], journal=path)


@pytest.mark.skipif(os.name == "nt", reason="needs file modes")
@pytest.mark.parametrize("mode", [0o666, 0o644, 0o660])
def test_journal_that_other_users_can_access_is_made_private(server, pool, path, caplog, mode):
    """And that is logged, once."""
    caplog.set_level(logging.INFO, "chatpool")
    path.touch()
    path.chmod(mode)
    for _ in range(2):
        pool.map(["a"], journal=path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    message = f"other users had access to {path} (mode {mode:04o}); its mode is now 0600"
    assert [record.getMessage() for record in caplog.records] == [message]


@pytest.mark.skipif(os.name == "nt", reason="needs file modes")
def test_mode_of_another_kind_of_file_is_left_unchanged(pool, path):
    path.write_text("hello\n")
    path.chmod(0o644)
    with pytest.raises(JournalError):
        pool.map(["a"], journal=path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


# Two runs at once.


@pytest.mark.parametrize("way", WAYS)
def test_second_run_is_refused_while_the_first_one_runs(server, make_pool, path, way):
    """Also in the same process; the first one continues undisturbed."""
    server.script("slow", Reply("slow", delay=0.3))
    first = make_pool().imap(["a", "slow"], journal=path)
    assert next(first).value == "a"
    with pytest.raises(JournalError, match="in use by another run"):
        usage(make_pool(), ["b"], path)[way]()
    assert next(first).value == "slow"
    assert list(first) == []
    assert usage(make_pool(), ["b"], path)[way]() == ["b"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_lock_ends_with_its_process_even_if_a_child_survives(path):
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


# Crashes and full disks.

RUN = """
import sys
from chatpool import ChatPool
pool = ChatPool(8, base_url=sys.argv[1], max_wait=0.05, progress=False)
print(len(pool.map([f"p{number}" for number in range(400)], journal=sys.argv[2])))
"""


def test_kill_at_twenty_random_moments(path):
    """No finished prompt is sent again, by the server's count."""
    rng = random.Random(4)
    finished, sent_again = set(), []
    names = {digest(f"p{number}"): f"p{number}" for number in range(400)}

    def reply(request):
        if request.prompt in finished:
            sent_again.append(request.prompt)
        return Reply(status=500) if rng.random() < 0.1 else Reply(delay=rng.uniform(0.005, 0.05))

    with FakeChatServer(reply=reply) as server:
        for _ in range(20):
            process = subprocess.Popen([sys.executable, "-c", RUN, server.url, str(path)], stdout=subprocess.DEVNULL)
            sent = len(server.requests)
            wait_until(lambda sent=sent: len(server.requests) > sent, 20)
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            process.wait()
            finished.update(
                names[head[0].custom_id]
                for line in path.read_bytes().splitlines(keepends=True)
                if (head := parse_head(line))
            )
        done = subprocess.run([sys.executable, "-c", RUN, server.url, str(path)], capture_output=True, check=True)
        assert wait_until(lambda: server.open_connections == 0)
    assert done.stdout == b"400\n"
    assert len(finished) > 50
    assert sent_again == []
    good = [line for line in lines(path) if line["error"] is None]
    assert sorted(names[line["custom_id"]] for line in good) == sorted(names.values())


def test_full_disk(path):
    """A clear error with the answers in memory; the file ends with a complete line; with space again, the run resumes."""
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
        sent = len(server.requests)
    message, counts, second = done.stdout.splitlines()
    assert message == f"the journal {path} cannot be written: File too large", done.stderr
    in_memory, total = map(int, counts.split())
    assert total == 100
    assert in_memory > 5  # those in the file, and the one that could not be written
    assert second == "True"
    assert sent <= 100 + 4  # the one that could not be written, and those in flight
    assert len(lines(path)) == 100


def test_full_file_system(path, tmp_path, server):
    """The same on a file system of 64 KiB, if one can be mounted."""
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


# Other processes, the garbage collector and forks.


@pytest.mark.parametrize("end", ["removed", "replaced", "cut short"])
def test_journal_that_disappears_is_an_error(server, pool, path, tmp_path, end):
    """The lines written from then on are lost."""
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


def test_garbage_collector_may_close_the_journal_while_a_line_is_written(server, pool, path, monkeypatch):
    """A worker that writes collects an iterator in a cycle: no deadlock, and no write after close."""
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
def test_child_forked_while_a_line_is_written_may_close_its_iterator(server, pool, path, monkeypatch):
    """At the fork, the lock was held by a thread that the child does not have."""
    write, is_writing, may_go_on = Journal._write, threading.Event(), threading.Event()

    def slow_disk(journal, line):
        if b"slow" in line:
            is_writing.set()
            may_go_on.wait(20)
        write(journal, line)

    monkeypatch.setattr(Journal, "_write", slow_disk)
    server.script("a", Reply("a", delay=0.5))  # imap sends what follows before this one is answered
    server.script("slow", Reply("slow", delay=1.0))
    answers = pool.imap(["a", "slow"], journal=path)
    assert next(answers).value == "a"
    assert is_writing.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            answers.close()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    may_go_on.set()
    assert [result.value for result in answers] == ["slow"]


def test_bug_in_parse_names_the_prompt_on_resume_too(server, pool, path):
    pool.map(["a", "b"], journal=path)
    with pytest.raises(ZeroDivisionError) as caught:
        pool.map(["a", "b"], journal=path, parse=lambda text: 1 // (text != "b"))
    assert caught.value.prompt_index == 1


def test_request_with_keys_that_cannot_be_sorted(server, pool, path):
    """JSON turns them into strings; the journal finds the request."""
    params = {"metadata": {1: "one", "two": 2}}
    for _ in range(2):
        assert pool.map(["a"], journal=path, params=params) == ["a"]
    assert len(server.requests) == 1


# The lines themselves.


def test_line_preserves_every_character(server, pool, path):
    """Lone surrogates, line separators, control characters."""
    odd = 'a\ud800 \u2028 \x85 \x00 "quoted\\" }} , "chatpool": {"'
    server.script("odd", Reply(body={"choices": [{"message": {"content": odd}, "finish_reason": "stop"}]}))
    assert pool.map(["odd"], journal=path) == [odd]
    assert pool.map(["odd"], journal=path) == [odd]
    assert server.count("odd") == 1
    assert path.read_bytes().count(b"\n") == 1


def refuse(constant):
    raise ValueError(constant)


def test_nan_and_infinity_are_written_as_null(server, pool, path):
    """Some servers send them as a logprob; each line is still strict JSON."""
    logprobs = '[-Infinity, NaN, {"deep": [1e999, "NaN", 0.5]}]'
    body = f'{{"choices": [{{"message": {{"content": "hi"}}, "finish_reason": "stop", "logprobs": {logprobs}}}]}}'
    server.script("a", Reply(body=body))
    for _ in range(2):
        assert pool.map(["a"], journal=path) == ["hi"]
    (document,) = [json.loads(line, parse_constant=refuse) for line in path.read_bytes().splitlines()]
    assert document["response"]["body"]["choices"][0]["logprobs"] == [None, None, {"deep": [None, "NaN", 0.5]}]
    assert len(server.requests) == 1


def test_parse_head_agrees_with_parse_line(server, pool, path):
    """On every kind of line."""
    server.script("bad", Reply(status=400))
    server.script("odd", Reply('", "chatpool": {'))
    pool.map(["a", "bad", "odd"], journal=path)
    for line in path.read_bytes().splitlines(keepends=True):
        document = parse_line(line)
        assert parse_head(line) == (key_of(document), is_answer(document))


def test_failure_is_restored_as_the_same_error(server, pool, path):
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
    """The index holds two numbers a line: 20,000 lines of 3 kB are read in under 10 MB."""
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
