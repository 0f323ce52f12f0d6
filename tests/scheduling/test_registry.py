"""Pools that came out of a pickle: one process, one engine for equal settings, whatever the number of tasks."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from chatpool import ChatPool, NotSentError, PoolClosedError
from chatpool._scheduling import registry
from chatpool.testing import FakeChatServer, RateLimit, Reply
from tests.conftest import chatpool_threads, wait_until


def travel(pool):
    """What a task gets that brought the pool along."""
    return pickle.loads(pickle.dumps(pool))


def test_small_tasks_share_connections(server):
    """Two hundred tasks, each with a pool of its own that it closes or just drops, need no more than one pool would."""
    pool = ChatPool(4, base_url=server.url)
    for number in range(100):
        with travel(pool) as copy:
            assert copy.map([f"a{number}", f"b{number}"]) == [f"a{number}", f"b{number}"]
        assert travel(pool).map([f"c{number}"]) == [f"c{number}"]
    assert server.connections <= 4


def test_tasks_at_once_share_threads_and_places(server):
    """Sixteen tasks together have no more calls in flight and no more threads than one pool may have."""
    server._latency = 0.01
    pool, threads = pickle.dumps(ChatPool(3, base_url=server.url)), []

    def task(number):
        with pickle.loads(pool) as copy:
            prompts = [f"{number} {part}" for part in range(20)]
            assert copy.map(prompts) == prompts
            threads.append(len(chatpool_threads()))

    with ThreadPoolExecutor(16) as tasks:
        list(tasks.map(task, range(64)))
    assert server.most_in_flight == 3
    assert server.connections <= 3
    assert max(threads) <= 2 * 3


def test_cool_down_is_shared_and_outlives_a_task():
    """A refusal that one task met holds back the next one, which could not know."""
    with FakeChatServer(rate_limit=RateLimit(100, 1, retry_after=0.5)) as server:
        pool = ChatPool(2, base_url=server.url)
        server.script("last", Reply(status=429, headers={"Retry-After": "0.5"}))
        with travel(pool) as copy:
            copy.map(["last"], deadline=0.2)
        refused_at = server.requests[-1].time
        assert travel(pool).map(["next"]) == ["next"]
        assert server.requests[-1].time - refused_at >= 0.45


def test_budget_is_shared(server):
    """Each task alone keeps within the budget; together they do, too."""
    pool = ChatPool(4, base_url=server.url, requests_per_minute=600)
    began = time.monotonic()
    for number in range(3):
        travel(pool).map([f"{number} {part}" for part in range(10)])
    assert time.monotonic() - began >= 1.9  # 10 at once, then 10 a second


def test_closing_one_gives_up_only_its_own(server):
    """The others go on, and the one that was closed says so."""
    server.script("hangs", Reply(fault="stall"))
    pool = ChatPool(4, base_url=server.url)
    first, second = travel(pool), travel(pool)
    hanging, other = first.submit("hangs"), second.submit("hangs")
    assert wait_until(lambda: len(server.requests) == 2)
    first.close()
    assert isinstance(hanging.result(5).error, NotSentError)
    with pytest.raises(PoolClosedError):
        first.map(["a"])
    assert second.map(["a"]) == ["a"]
    assert not other.done()
    second.close()
    assert isinstance(other.result(5).error, NotSentError)


def test_leaving_one_waits_for_its_own_only(server):
    """The end of a with block does not wait for what other tasks submitted."""
    server.script("hangs", Reply(fault="stall"))
    pool = ChatPool(4, base_url=server.url)
    with travel(pool) as busy:
        busy.submit("hangs")
        with travel(pool) as copy:
            future = copy.submit("a")
        assert future.result().text == "a"
        busy.close()


def test_threads_go_with_the_last_task(server):
    """Between two tasks nothing runs, though the connections are kept."""
    pool = ChatPool(4, base_url=server.url)
    travel(pool).map(["a", "b", "c"])
    assert wait_until(lambda: not chatpool_threads())
    assert server.open_connections > 0


@pytest.mark.parametrize(
    "reply", [Reply(status=500), Reply(fault="close"), Reply(fault="truncate"), Reply(fault="drip")]
)
@pytest.mark.parametrize("way", ["own", "of the libraries"])
def test_threads_go_at_once_after_a_failure(server, monkeypatch, reply, way):
    """No retry, failure or deadline leaves a cycle behind that would keep the threads until the collector comes."""
    if way == "of the libraries":
        monkeypatch.setattr("chatpool._http.pools.is_enabled", lambda: False)
    server.script("fails", reply)
    pool = ChatPool(4, base_url=server.url, max_tries=2, max_wait=0.01, timeout=(5, 0.2))
    gc.collect()
    gc.disable()
    try:
        assert travel(pool).map(["fails", "a"], deadline=30) == [None, "a"]
        assert wait_until(lambda: not chatpool_threads())
    finally:
        gc.enable()


@pytest.mark.parametrize("other", [{"max_workers": 3}, {"model": "m"}, {"api_key": "sk-2"}, {"requests_per_minute": 9}])
def test_other_settings_are_another_pool(server, other):
    """Only equal settings share; and a pool that was made here, not unpickled, is its own."""
    pool = ChatPool(**{"base_url": server.url, "max_workers": 4, **other})
    same, different = travel(pool), travel(ChatPool(4, base_url=server.url))
    assert same._engine() is travel(pool)._engine()
    assert same._engine() is not different._engine()
    assert same._engine() is not pool._engine()
    pool.close()


def test_equal_sessions_are_shared(server):
    """A Session travels along; tasks that bring the same one share it, others do not."""
    session = requests.Session()
    session.headers["X-Team"] = "a"
    pool = ChatPool(4, base_url=server.url, session=session)
    for number in range(5):
        assert travel(pool).map([str(number)]) == [str(number)]
    assert server.connections == 1
    assert {request.headers["x-team"] for request in server.requests} == {"a"}
    session.headers["X-Team"] = "b"
    travel(pool).map(["x"])
    assert server.requests[-1].headers["x-team"] == "b"


def test_first_use_by_many_tasks_at_once(server):
    """Of many tasks that come first, one makes the engine for all."""
    blob, start, engines = pickle.dumps(ChatPool(4, base_url=server.url)), threading.Barrier(16), []

    def task(_):
        copy = pickle.loads(blob)
        start.wait()
        engines.append(copy._engine())

    with ThreadPoolExecutor(16) as tasks:
        list(tasks.map(task, range(16)))
    assert len(set(map(id, engines))) == 1


def test_only_the_latest_are_kept(server):
    """A process that meets ever new settings does not collect connections for ever."""
    for number in range(30):
        travel(ChatPool(2, base_url=server.url, params={"n": number})).map(["a"])
    assert len(registry._kept) <= registry._MOST
    assert wait_until(lambda: server.open_connections <= registry._MOST)


def test_forked_child_has_a_core_of_its_own(server):
    """What the parent kept is not touched in the child: neither's answers cross to the other."""
    blob = pickle.dumps(ChatPool(2, base_url=server.url))
    assert pickle.loads(blob).map(["parent"]) == ["parent"]
    child = os.fork()
    if child == 0:
        answers = [pickle.loads(blob).map([f"child {n}"]) for n in range(20)]
        os._exit(0 if answers == [[f"child {n}"] for n in range(20)] else 1)
    mine = [pickle.loads(blob).map([f"parent {n}"]) for n in range(20)]
    assert os.waitpid(child, 0)[1] == 0
    assert mine == [[f"parent {n}"] for n in range(20)]
    assert server.connections == 2
