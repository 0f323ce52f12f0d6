"""The runs of a journal: the server, the summary, the journal and the report count the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest

from chatpool import ChatPool, Usage
from chatpool._cli.main import main
from chatpool._files.batch_format import parse_head
from chatpool._files.history import read_history
from chatpool._files.journal import Journal
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until

END = {"run": 1.5, "ended": 2.5, "how": "finished", "attempts": 0}


class Meter:
    """A server that counts the tokens it charges: of good answers, bad ones and failures."""

    def __init__(self):
        self.usage, self.requests = Usage(), 0
        self._lock, self._seen = threading.Lock(), {}

    def __call__(self, request):
        """Reply to each prompt: badly the first time, if its number asks for it."""
        number = int(request.body["messages"][0]["content"].rpartition(" ")[2])
        with self._lock:
            self._seen[number] = attempt = self._seen.get(number, 0) + 1
            self.requests += 1
        if number % 5 == 1 and attempt == 1:
            return Reply(status=500)
        usage = Usage(10 + number, attempt, 10 + number + attempt, number % 3)
        with self._lock:
            self.usage += usage
        words = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }
        is_bad = (number % 7 == 2 and attempt < 3) or (number % 11 == 3 and attempt < 5)
        return Reply("bad" if is_bad else "good", usage=words)


def good_only(text):
    if text != "good":
        raise ValueError(text)
    return text


@pytest.fixture
def meter():
    return Meter()


@pytest.fixture
def metered_pool(meter):
    prices = {"gpt-6-luna": (1, 10)}
    with (
        FakeChatServer(reply=meter) as server,
        ChatPool(8, base_url=server.url, max_wait=0.01, max_tries=3, prices=prices) as pool,
    ):
        yield pool


def spent(path):
    """Return the requests and the tokens that a journal says were charged."""
    history = read_history(path)
    return history.spent.attempts, history.spent.usage


def dollars(usage):
    return (usage.prompt_tokens + usage.completion_tokens * 10) / 1e6


def test_summary_journal_and_server_count_the_same_tokens(meter, metered_pool, tmp_path):
    """With bad answers that are asked again, prompts that fail, a retry, and a resume with new prompts."""
    path, prompts = tmp_path / "j.jsonl", [f"number {number}" for number in range(60)]
    first = metered_pool.map(prompts[:40], parse=good_only, journal=path)
    assert first.failures
    assert f"requests: {meter.requests:,}," in first.summary()
    assert first.usage == meter.usage
    assert first.cost == pytest.approx(dollars(meter.usage))
    assert spent(path) == (meter.requests, meter.usage)

    again = metered_pool.retry(first)
    assert again.failures == []
    assert again.usage == meter.usage
    assert again.cost == pytest.approx(dollars(meter.usage))
    assert f"requests: {meter.requests:,}," in again.summary()
    assert spent(path) == (meter.requests, meter.usage)

    requests, usage = meter.requests, meter.usage
    resumed = metered_pool.map(prompts, parse=good_only, journal=path)
    assert len(resumed.resumed) == 40
    assert f"requests: {meter.requests - requests:,}," in resumed.summary()
    new = sum((one.usage for one in resumed.results if one.index not in resumed.resumed), Usage())
    assert usage + new == meter.usage
    assert spent(path) == (meter.requests, meter.usage)
    assert read_history(path).spent.cost == pytest.approx(dollars(meter.usage))

    names = [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]
    assert len(set(names)) == len(names)  # the lines of failures were replaced


def test_a_resumed_result_equals_the_first(metered_pool, tmp_path):
    """Tokens, cost and attempts are those of all attempts, not of the last reply."""
    first = metered_pool.map(["number 2", "number 9"], parse=good_only, journal=tmp_path / "j.jsonl")
    again = metered_pool.map(["number 2", "number 9"], parse=good_only, journal=tmp_path / "j.jsonl")
    for one, other in zip(first.results, again.results):
        assert one.attempts == other.attempts == 3
        assert (one.usage, one.value) == (other.usage, other.value)
        assert one.cost == pytest.approx(other.cost)


def test_what_a_cancelled_call_was_charged_is_in_the_journal(tmp_path):
    """A prompt that the deadline cut off after a bad answer has no line, but its tokens were paid for."""
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    with FakeChatServer() as server, ChatPool(2, base_url=server.url, max_wait=0.01) as pool:
        server.script("slow", Reply("bad", usage=usage), Reply(fault="stall"))
        server.script("ok", Reply("good", usage=usage))
        answers = pool.map(["ok", "slow"], parse=good_only, reask=False, journal=tmp_path / "j.jsonl", deadline=1)
        assert answers == ["good", None]
        assert spent(tmp_path / "j.jsonl") == (3, Usage(14, 10, 24))
        assert answers.usage == Usage(14, 10, 24)
        assert read_history(tmp_path / "j.jsonl").spent.unanswered == 1


def test_each_run_writes_its_beginning_and_its_end(server, pool, tmp_path):
    """Two runs, one right after the other, are two."""
    path = tmp_path / "j.jsonl"
    pool.map(["a", "b"], journal=path)
    pool.map(["a", "b", "c"], journal=path)
    lines = [json.loads(line)["chatpool"] for line in path.read_text().splitlines()]
    assert len(lines) == 3
    begins = [line["run"] for line in lines]
    assert begins[0] == begins[1] < begins[2]
    ends = [end for line in lines for end in line.get("ends", [])]
    assert [end["run"] for end in ends] == begins[1:]
    assert [end["how"] for end in ends] == ["finished", "finished"]
    runs = read_history(path).runs
    assert [(run.began, run.how) for run in runs] == [(begins[0], "finished"), (begins[2], "finished")]


def test_a_run_that_sends_nothing_leaves_the_file_as_it_is(server, pool, tmp_path):
    path = tmp_path / "j.jsonl"
    pool.map(["a", "b"], journal=path)
    before = path.read_bytes()
    pool.map(["a", "b"], journal=path)
    assert path.read_bytes() == before


def test_an_interrupted_and_a_dropped_run_say_so(server, pool, tmp_path):
    path = tmp_path / "j.jsonl"
    iterator = pool.imap(["a", "b"], journal=path)
    next(iterator)
    iterator.close()

    def interrupt(result):
        raise KeyboardInterrupt

    with ChatPool(1, base_url=server.url, on_result=interrupt) as other, pytest.raises(KeyboardInterrupt):
        other.map(["c"], journal=path)
    assert [run.how for run in read_history(path).runs] == ["GeneratorExit", "interrupted"]


def test_requests_in_flight_at_ctrl_c_are_counted(server, tmp_path):
    """The server has them, and may charge for them."""
    path = tmp_path / "j.jsonl"
    for prompt in "abc":
        server.script(prompt, Reply(fault="stall"))

    def interrupt(result):
        assert wait_until(lambda: len(server.requests) == 4)
        raise KeyboardInterrupt

    with ChatPool(4, base_url=server.url, on_result=interrupt) as pool, pytest.raises(KeyboardInterrupt):
        pool.map(["fast", "a", "b", "c"], journal=path)
    spent = read_history(path).spent
    assert (spent.attempts, spent.unanswered) == (4, 3)


def test_a_killed_run_has_no_end(server, tmp_path):
    """Its lines count, and the next run is another one."""
    path = tmp_path / "j.jsonl"
    server.script("b", Reply(fault="stall"), Reply("late"))
    code = f"import chatpool; chatpool.ChatPool(2, base_url={server.url!r}).map(['a', 'b'], journal={str(path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until(lambda: path.exists() and path.read_bytes().endswith(b"\n") and len(server.requests) == 2, 30)
    process.kill()
    process.wait()
    with ChatPool(2, base_url=server.url) as pool:
        assert pool.map(["a", "b"], journal=path) == ["a", "late"]
    history = read_history(path)
    assert [run.how for run in history.runs] == [None, "finished"]
    assert history.spent.attempts == 2  # nobody knows of the request that was in flight at the kill


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "x", "custom_id": "a", "response": null, "chatpool": {"hash": "1"}, "error": {"code": "c"}}\n',
        '{"id":"x","custom_id":"a","response":null,"error":null,"chatpool":{"hash":"1"}}\n',
    ],
)
def test_a_line_that_another_tool_rewrote_is_left_as_it_is(tmp_path, line):
    path = tmp_path / "j.jsonl"
    path.write_text(line)
    with Journal(path) as journal:
        journal.end_run(END)
    assert path.read_text() == line


@pytest.mark.parametrize(
    "change", [{"run": [1]}, {"attempts": None}, {"usage": 7}, {"ends": 3}, {"cost": "x"}], ids=str
)
def test_a_line_whose_fields_were_edited_does_not_stop_the_compaction(server, pool, tmp_path, change):
    path = tmp_path / "j.jsonl"
    server.script("a", Reply(status=400), Reply("good"))
    pool.map(["a"], journal=path)
    document = json.loads(path.read_text())
    document["chatpool"].update(change)
    path.write_text(json.dumps(document) + "\n")
    pool.map(["a"], journal=path)
    assert len(path.read_text().splitlines()) == 1
    assert pool.map(["a"], journal=path) == ["good"]


def test_an_end_is_added_to_those_that_a_line_has(server, pool, tmp_path):
    """And the line is read as before, from its two ends."""
    path = tmp_path / "j.jsonl"
    pool.map(['a message with , "ends": [ and , "chatpool": {'], journal=path)
    for _ in range(2):
        with Journal(path) as journal:
            journal.end_run(END)
    (line,) = path.read_bytes().splitlines(keepends=True)
    assert json.loads(line)["chatpool"]["ends"][1:] == [END, END]
    key, is_good = parse_head(line)
    assert (key.custom_id, is_good) == (json.loads(line)["custom_id"], True)


def test_dry_run_says_what_the_journal_was_charged(meter, tmp_path, capsys, monkeypatch):
    """The same numbers as the summary of the run before."""
    (tmp_path / "p.txt").write_text("".join(f"number {number}\n" for number in range(20)))
    monkeypatch.chdir(tmp_path)
    with FakeChatServer(reply=meter) as server:
        command = ["run", "p.txt", "-o", "j.jsonl", "--base-url", server.url, "--max-wait", "0.01"]
        assert main(command) == 0
        summary = capsys.readouterr().err
        assert main([*command, "--dry-run"]) == 0
    assert f"requests: {meter.requests}, " in summary
    assert f"{meter.usage.total_tokens:,} total" in summary
    out = capsys.readouterr().out
    assert "20 prompts: 20 already done, 0 to send" in out
    assert f"so far: {meter.requests} requests, {meter.usage.total_tokens:,} tokens" in out
