"""chatpool on Dask: real schedulers, real worker processes, real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="needs Dask: pip install 'chatpool[dask]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # Dask's own warnings are not what is tested

from distributed import Client, LocalCluster  # noqa: E402 - after the skip

from chatpool import AuthenticationError, ChatPool, ConfigurationError, DeadlineError, NotSentError, distributed  # noqa: E402
from chatpool.testing import FakeChatServer, Reply  # noqa: E402
from tests.conftest import wait_until  # noqa: E402

PROMPTS = [f"p{number}" for number in range(300)]


def make_cluster(workers=2):
    return LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    )


@pytest.fixture(scope="module")
def client():
    """Two worker processes that all tests share which do no harm to them."""
    with make_cluster() as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def frail():
    """Three worker processes to be killed, in a cluster that starts others in their place."""
    with make_cluster(3) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def pool(server):
    return ChatPool(4, base_url=server.url, max_wait=0.01)


def test_map_is_the_pools_map(client, server, pool):
    """Every answer in its place, each prompt asked once, over connections that are kept; results and summary are whole."""
    server.script("p7", Reply(status=400, code="too_long"))
    answers = distributed.map(pool, PROMPTS, client, params={"temperature": 0})
    assert answers == [None if prompt == "p7" else prompt for prompt in PROMPTS]
    assert len(server.requests) == 300
    assert server.connections <= 2 * 4
    assert server.most_in_flight <= 2 * 4
    assert {request.body["temperature"] for request in server.requests} == {0}
    assert [result.prompt for result in answers.results] == PROMPTS
    assert answers.failures[0].error.code == "too_long"
    assert "300 prompts: 299 answered, 1 failed" in answers.summary()


def test_imap_unordered_reads_a_little_ahead(client, server, pool):
    """From an endless input, no more is taken than four prompts for each place that the cluster has."""
    taken = []
    results = distributed.imap_unordered(pool, (taken.append(n) or str(n) for n in range(10**9)), client)
    for given in range(1, 200):
        result = next(results)
        assert result.text == str(result.index)
        assert len(taken) <= given + 4 * 2 * 4
    results.close()


def test_all_processes_work(client, server, pool):
    """The prompts are spread over the workers, however few there are."""
    server._latency = 0.05
    answers = distributed.map(pool, ["a", "b"], client, parse=lambda text: (text, get_pid()))
    assert [text for text, _ in answers] == ["a", "b"]
    assert len({pid for _, pid in answers}) == 2


def get_pid():
    return os.getpid()


def test_parse_runs_where_the_answer_is(client, server, pool):
    """A lambda travels, its ValueError asks again, and what it returns comes back."""
    server.script("n", Reply("x"), Reply("41"))
    assert distributed.map(pool, ["n"], client, parse=lambda text: int(text) + 1) == [42]
    assert server.count("n") == 2


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


def test_answers_are_values_of_a_type(client, server, pool, tmp_path):
    """Of a type of this module, and of one that only this program knows; also from the journal."""

    @dataclass
    class City:
        name: str
        population: int

    server.script("How?", Reply('{"value": "good"}'))
    server.script("Where?", Reply('{"name": "Lima", "population": 10000000}'))
    for prompt, kind, value in [("How?", Mood, Mood.GOOD), ("Where?", City, City("Lima", 10_000_000))]:
        for _ in range(2):
            answers = distributed.map(pool, [prompt], client, response_format=kind, journal=tmp_path / "j.jsonl")
            assert answers == [value]
            assert type(answers[0]) is kind
        assert server.count(prompt) == 1
    assert server.requests[0].body["response_format"]["type"] == "json_schema"
    (result,) = distributed.imap_unordered(pool, ["How?"], client, response_format=Mood)
    assert result.value is Mood.GOOD


@pytest.mark.parametrize("reask", [True, False])
def test_a_worker_shows_the_model_its_bad_answer(client, server, pool, reask):
    server.script("How?", Reply("so so"), Reply("good"))
    assert distributed.map(pool, ["How?"], client, response_format=Mood, reask=reask) == [Mood.GOOD]
    assert len(server.requests[1].body["messages"]) == (3 if reask else 1)


def test_a_worker_finds_the_way_to_ask_a_server_that_knows_only_json_object(client, server, pool):
    unknown = Reply(status=400, body={"error": {"message": "response_format json_schema is not supported"}})
    server.script("How?", unknown, Reply('{"value": "bad"}'))
    assert distributed.map(pool, ["How?"], client, response_format=Mood) == [Mood.BAD]
    assert server.requests[1].body["response_format"] == {"type": "json_object"}


def test_parse_and_a_type_exclude_each_other(client, pool):
    with pytest.raises(ConfigurationError, match="not both"):
        distributed.map(pool, ["a"], client, response_format=Mood, parse=str)


def test_bug_in_parse_is_raised(client, server, pool):
    """With what was answered on the exception, as by any map."""
    with pytest.raises(ZeroDivisionError) as caught:
        distributed.map(pool, ["a", "b"], client, parse=lambda text: 1 / 0)
    assert len(caught.value.answers) == 2


def test_what_cannot_travel_is_told_and_shows_no_key(client, server, caplog, capfd):
    """A parse or its value that does not pickle: the error says so, and no log quotes the pool."""
    lock, key = threading.Lock(), "sk-secret-of-mine"
    pool = ChatPool(4, base_url=server.url, api_key=key)
    with pytest.raises(TypeError, match="cannot pickle"):
        distributed.map(pool, ["a"], client, parse=lambda text: lock)
    with pytest.raises(TypeError, match="what parse returned cannot be sent back"):
        distributed.map(pool, ["a"], client, parse=lambda text: threading.Lock())
    assert key not in caplog.text + "".join(capfd.readouterr())


def test_worker_without_a_key_is_named(client, monkeypatch):
    """A key from the caller's environment stays there."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with pytest.raises(ConfigurationError, match=r"on the Dask worker tcp://.* no API key"):
        distributed.map(ChatPool(4), ["a"], client)


def test_client_must_be_one(pool):
    """The error comes at once, and names its type."""
    with pytest.raises(ConfigurationError, match=r"must be a distributed\.Client, not str"):
        distributed.map(pool, ["a"], "tcp://scheduler:8786")


def test_maps_at_once_and_within_tasks(client, server, pool):
    """Several threads share a client, and a task may map, too; no answer crosses."""
    found = {}

    def run(name):
        found[name] = distributed.map(pool, [f"{name} {number}" for number in range(100)], client)

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [f"{name} {number}" for number in range(100)] for name in "abc"}
    assert client.submit(map_in_task, pool, ["n1", "n2"], pure=False).result(timeout=60) == ["n1", "n2"]


def map_in_task(pool, prompts):
    return list(distributed.map(pool, prompts))


def test_retired_worker_loses_nothing(server, pool):
    """One that leaves in order finishes what it has, or leaves it to the others."""
    server._latency = 0.02
    with make_cluster(3) as cluster, Client(cluster) as client:
        results = distributed.imap_unordered(pool, PROMPTS, client)
        came = [next(results) for _ in range(50)]
        retiring = threading.Thread(target=client.retire_workers, args=([next(iter(client.nthreads()))],))
        retiring.start()
        came += results
        retiring.join()
    assert sorted(result.text for result in came) == sorted(PROMPTS)


def test_wrong_key_stops_all_processes(client, monkeypatch):
    """What no prompt can survive is not tried by each of them for each."""
    with FakeChatServer(key="sk-right") as server:
        answers = distributed.map(ChatPool(4, base_url=server.url, api_key="sk-wrong"), PROMPTS, client)
        assert {type(result.error) for result in answers.results} == {AuthenticationError, NotSentError}
        assert len(server.requests) < 100


def test_deadline_bounds_it(client, server, pool):
    """What is done by then comes back; the workers stop."""
    server.script("hangs", Reply(fault="stall"))
    answers = distributed.map(pool, ["a", "hangs", "b"], client, deadline=2)
    assert answers == ["a", None, "b"]
    assert isinstance(answers.results[1].error, DeadlineError)
    assert wait_until(lambda: client.run(runs_under_way) and not any(client.run(runs_under_way).values()))
    assert distributed.map(pool, ["c"], client) == ["c"]


def runs_under_way():
    from chatpool._cluster import worker

    return len(worker._jobs)


def test_iterator_dropped_half_way_cancels(client, server, pool):
    """Nothing more is sent, and nothing of the run is left behind, there or here."""
    server._latency = 0.02
    results = distributed.imap_unordered(pool, (str(n) for n in range(10**6)), client)
    next(results)
    results.close()
    assert wait_until(lambda: not client.run_on_scheduler(left_on_scheduler))
    assert wait_until(lambda: not any(client.run(runs_under_way).values()))
    assert wait_until(lambda: is_idle(server))  # a task that had just reached its worker had no run yet


def is_idle(server):
    sent = len(server.requests)
    time.sleep(0.2)
    return len(server.requests) == sent


def left_on_scheduler(dask_scheduler):
    queues = [name for name in dask_scheduler.extensions["queues"].queues if name.startswith("chatpool")]
    return queues + [key for key in dask_scheduler.tasks if str(key).startswith("chatpool")]


def test_journal_stays_with_the_caller(client, server, pool, tmp_path):
    """One file, the same as any map's: the next run asks only for what is not in it."""
    path = tmp_path / "answers.jsonl"
    server.script("p3", Reply(status=400), Reply("better"))
    server.script("p4", Reply(status=500), Reply("late"))
    assert distributed.map(pool, PROMPTS, client, journal=path)[3] is None
    assert pool.map(PROMPTS[:5], journal=path)[3] == "better"
    assert distributed.map(pool, PROMPTS, client, journal=path)[3] == "better"
    assert len(server.requests) == 300 + 1 + 1
    attempts = [json.loads(line)["chatpool"].get("tries") for line in path.read_text().splitlines()]
    assert sum(len(of_one) for of_one in attempts if of_one) == 2  # p4 twice; the failed line of p3 was replaced
    pool.close()


def test_budget_is_shared_out(client, server):
    """Two processes keep to one budget, from the first second on."""
    pool = ChatPool(4, base_url=server.url, requests_per_minute=1200)
    distributed.map(pool, PROMPTS[:60], client)
    times = sorted(request.time for request in server.requests)
    for first, last in zip(times, times[40:]):
        assert last - first >= 0.9  # 20 a second, and one second's worth at once


def test_budget_is_shared_out_anew_as_workers_come_and_go(server):
    """While a run goes on: each of three has a third, each of two a half, and so on."""
    pool = ChatPool(4, base_url=server.url, requests_per_minute=1200)
    with make_cluster(3) as cluster, Client(cluster) as client:
        results = distributed.imap_unordered(pool, (str(n) for n in range(10**6)), client)

        def settled(workers):
            next(results)  # the run looks after its workers while it is asked for results
            shares = client.run(budgets, on_error="ignore")  # one may go just now
            return len(shares) == workers and all(share == [1200 / workers] for share in shares.values())

        assert wait_until(lambda: settled(3), 30)
        cluster.scale(2)
        assert wait_until(lambda: settled(2), 30)
        cluster.scale(3)
        assert wait_until(lambda: settled(3), 60)
        results.close()


def budgets():
    from chatpool._scheduling import registry

    return [round(core.limits._requests._per_second * 60, 6) for _, _, core in registry._kept]


def test_worker_killed_in_mid_run(frail, server, pool, tmp_path):
    """SIGKILL: every prompt has its answer; paid for twice is at most what was on the wire or not yet reported."""
    server._latency = 0.05
    victim = next(iter(frail.run(os.getpid).values()))
    results, came = distributed.imap_unordered(pool, PROMPTS, frail, journal=tmp_path / "j"), {}
    for result in results:
        came[result.index] = result
        if len(came) == 60:
            os.kill(victim, signal.SIGKILL)
    assert [came[index].text for index in range(300)] == PROMPTS
    assert len((tmp_path / "j").read_text().splitlines()) == 300
    again = sum(count - 1 for count in Counter(request.prompt for request in server.requests).values())
    assert again <= 4 + 16  # on the wire: max_workers; in a tenth of a second and a look at the queue: a few more


def test_prompt_that_kills_its_workers_is_given_up(frail, server, pool):
    """After three workers it is not sent again; the others have their answers."""
    server.script("deadly", Reply("die"))

    def parse(text):
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    answers = distributed.map(pool, ["a", "deadly", "b"], frail, parse=parse)
    assert server.count("deadly") == 3
    assert isinstance(answers.results[1].error, NotSentError)
    assert answers.results[1].error.code == "workers_lost"
    assert (answers[0], answers[2]) in {("a", "b"), (None, "b"), ("a", None), (None, None)}


# 5 calls hang; the 8 slots leave one free for the other prompt, whichever batch begins first.
SCRIPT = """
import sys, threading, os, signal
from distributed import Client
from chatpool import ChatPool, distributed
pool = ChatPool(4, base_url=sys.argv[2])
with Client(sys.argv[1]) as client:
    try:
        distributed.map(pool, ["a"] + ["hangs"] * 5, client, journal=sys.argv[3])
    except KeyboardInterrupt as error:
        print("ANSWERED", [result.text for result in error.answers.results if result.ok], flush=True)
"""


def test_ctrl_c_cancels_what_is_out(client, server, tmp_path):
    """In well under the calls' time: what was done is on the exception and in the journal, and the workers let go."""
    server.script("hangs", Reply(fault="stall"))
    address = client.scheduler_info()["address"]
    journal = tmp_path / "j"
    words = [sys.executable, "-c", SCRIPT, address, server.url, str(journal)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert wait_until(lambda: journal.exists() and journal.read_text().count("\n") == 1, 30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert "ANSWERED ['a']" in out, err
    assert wait_until(lambda: not any(client.run(runs_under_way).values()))


def test_caller_that_is_killed_leaves_no_endless_work(client, server, tmp_path):
    """Its batches end by themselves, and the cluster is as good as before."""
    server._latency = 0.05
    code = SCRIPT.replace('["a"] + ["hangs"] * 5', "[str(n) for n in range(100000)]")
    address, journal = client.scheduler_info()["address"], tmp_path / "j"
    with subprocess.Popen([sys.executable, "-c", code, address, server.url, str(journal)]) as process:
        assert wait_until(lambda: journal.exists() and journal.read_text().count("\n") > 20, 30)
        process.kill()
    assert wait_until(lambda: not any(client.run(runs_under_way).values()), 20)
    assert distributed.map(ChatPool(4, base_url=server.url), ["b"], client) == ["b"]


@pytest.fixture
def started(tmp_path):
    """A scheduler and workers from the commands that Dask's users start them with."""
    processes, scheduler_file = [], tmp_path / "scheduler.json"
    dask = Path(sys.executable).with_name("dask")

    def start(*words):
        log = (tmp_path / f"{len(processes)}.log").open("w")
        processes.append(subprocess.Popen([dask, *words], stdout=log, stderr=log, cwd=tmp_path))
        return processes[-1]

    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(scheduler_file))
    yield (
        scheduler_file,
        lambda: start("worker", "--scheduler-file", str(scheduler_file), "--nthreads", "2", "--no-dashboard"),
    )
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        process.wait(20)


def test_command_on_a_scheduler_with_workers(started, server, tmp_path):
    """``chatpool run --dask`` waits for workers that come late, uses one that comes later, and ends with the answers."""
    scheduler_file, start_worker = started
    server._latency = 0.05
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    words = ["run", "prompts.txt", "-o", "out.jsonl", "--text", "--workers", "4", "--base-url", server.url]
    assert wait_until(scheduler_file.exists, 60)
    with subprocess.Popen(
        [sys.executable, "-m", "chatpool", *words, "--dask", str(scheduler_file)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        start_worker()
        assert wait_until(lambda: len(server.requests) > 40, 60)
        start_worker()
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.splitlines() == PROMPTS
    assert "300 prompts: 300 answered, 0 failed" in err
    assert len(server.requests) == 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dask", "tcp://127.0.0.1:9"], "cannot connect to a Dask scheduler at tcp://127.0.0.1:9"),
        (["--dask", "nonsense://"], "cannot connect to a Dask scheduler at nonsense://"),
        (["--dask", "tcp://127.0.0.1:9", "--token-budget", "5"], "--token-budget does not work with --dask"),
    ],
)
def test_mistakes_of_the_command_are_sentences(tmp_path, monkeypatch, words, message):
    """Exit code 2 and no traceback."""
    (tmp_path / "p.txt").write_text("a\n")
    monkeypatch.setenv("CHATPOOL_TEST", "1")
    run = [sys.executable, "-m", "chatpool", "run", "p.txt", "-o", "o", "--base-url", "http://127.0.0.1:9"]
    done = subprocess.run([*run, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_dask_it_says_what_to_install():
    """The import names the extra; the rest of the package does without."""
    code = "import sys; sys.modules['distributed'] = None\nimport chatpool\nimport chatpool.distributed"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "chatpool.distributed needs Dask; pip install distributed" in done.stderr.splitlines()[-1]
