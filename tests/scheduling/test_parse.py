"""``parse`` runs in threads of its own, and may wait for the pool in any way, at any depth."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

import pytest

from chatpool import (
    AuthenticationError,
    ChatPool,
)
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until


def test_parse_may_wait_for_a_future(pool):
    """Workers that wait for what they submitted make it themselves."""
    assert pool.map(["a"] * 20, parse=lambda text: pool.submit(text + "1").result().value) == ["a1"] * 20


def test_errors_of_other_calls_within_parse_are_the_callers(server, pool):
    """An AuthenticationError out of parse is no failure of this call, and stops nothing by itself."""
    with FakeChatServer(key="right") as other, ChatPool(1, base_url=other.url, api_key="wrong") as wrong:
        with pytest.raises(AuthenticationError):
            pool.map(["a"], parse=wrong.ask)
        assert other.count("a") == 1
    assert server.count("a") == 1


def test_parse_may_map_in_a_thread_of_its_own(pool):
    """All workers wait within parse for maps that need workers: those who wait for these maps make the calls."""

    def parse(text):
        with ThreadPoolExecutor(1) as helper:
            return helper.submit(pool.map, [text + "1", text + "2"]).result()

    assert pool.map(["a"] * 8, parse=parse) == [["a1", "a2"]] * 8


WAYS_TO_WAIT = {
    "future": lambda pool, text: pool.submit(text).result().value,
    "future, in time": lambda pool, text: pool.submit(text).result(20).value,
    "as_completed": lambda pool, text: next(as_completed([pool.submit(text)])).result().value,
    "wait": lambda pool, text: wait([pool.submit(text)]).done.pop().result().value,
    "map in a thread": lambda pool, text: in_thread(lambda: pool.map([text])[0]),
    "submit in a thread": lambda pool, text: in_thread(lambda: pool.submit(text).result().value),
}


def in_thread(work):
    with ThreadPoolExecutor(1) as helper:
        return helper.submit(work).result()


@pytest.mark.parametrize("way", WAYS_TO_WAIT)
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "beside others"])
def test_parse_may_wait_for_the_pool_in_any_way(server, way, is_busy):
    """All workers are within parse and wait for calls that need workers: a spare one makes them."""
    stop = threading.Event()
    with ChatPool(2, base_url=server.url) as pool:

        def keep_asking():
            while not stop.is_set():
                pool.ask("other")

        thread = threading.Thread(target=keep_asking)
        if is_busy:
            thread.start()
        try:
            answers = pool.map(["a"] * 6, parse=lambda text: WAYS_TO_WAIT[way](pool, text + "1"), deadline=20)
        finally:
            stop.set()
        if is_busy:
            thread.join()
        assert answers == ["a1"] * 6


def test_a_deadline_holds_while_parse_is_slow(pool):
    """The thread that waits for a map makes none of its calls."""
    threads, is_over = set(), threading.Event()

    def parse(text):
        threads.add(threading.current_thread().name)
        is_over.wait(20)
        return text

    began = time.monotonic()
    answers = pool.map(["a"] * 20, parse=parse, deadline=0.5)
    assert time.monotonic() - began < 10
    is_over.set()
    assert answers == [None] * 20
    assert all(name.startswith("chatpool-callback") for name in threads)


def test_parse_that_waits_for_a_back_off_delays_no_other_map(server):
    """All threads wait out a back-off within parse; a map beside them is made by the spare worker."""
    server.script("late", Reply(status=503, headers={"retry-after": "20"}))
    pool = ChatPool(2, base_url=server.url)
    futures = [pool.submit("a", parse=lambda text: pool.ask("late")) for _ in range(6)]
    assert wait_until(lambda: server.count("late") >= 1)
    assert pool.map(["quick"] * 10, deadline=5) == ["quick"] * 10
    assert not any(future.done() for future in futures)
    pool.close()


def test_parse_may_wait_for_a_future_that_was_submitted_before(server):
    """Each in its turn, though there is one callback thread, and the last answers come first."""
    with ChatPool(2, base_url=server.url) as pool:
        futures = []

        def parse(text):
            return text if text == "0" else futures[int(text) - 1].result().value + text

        server.script("0", Reply("0", delay=0.3))
        futures.append(pool.submit("0", parse=parse))
        for number in range(1, 3):
            futures.append(pool.submit(str(number), parse=parse))
        assert futures[2].result(20).value == "012"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_child_that_parse_forks_may_exit(server):
    """sys.exit in the child ends the child, not only its task."""

    def parse(text):
        child = os.fork()
        if not child:
            sys.exit()
        return os.waitpid(child, 0)[1]

    with ChatPool(2, base_url=server.url) as pool:
        assert pool.map(["a", "b"], parse=parse) == [0, 0]
