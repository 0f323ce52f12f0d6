"""submit and ask: one prompt at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, as_completed, wait
from contextlib import suppress

import pytest

from chatpool import (
    CallError,
    ChatPool,
    ChatResult,
    ConfigurationError,
    DeadlineError,
    InternalServerError,
    NotSentError,
)
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import chatpool_threads, wait_until


def test_submit_returns_a_future_of_a_result(pool):
    future = pool.submit("a")
    assert isinstance(future, Future)
    result = future.result(5)
    assert isinstance(result, ChatResult)
    assert (result.value, result.index, result.attempts) == ("a", 0, 1)


def test_submit_never_raises_a_call_error(server, make_pool):
    """``ok`` is False for it."""
    server.script("a", Reply(status=500))
    result = make_pool(max_tries=2).submit("a").result(5)
    assert not result.ok
    assert type(result.error) is InternalServerError


def test_submit_checks_its_prompt_at_once(pool):
    with pytest.raises(TypeError, match="prompt 0"):
        pool.submit(5)


def test_futures_work_with_as_completed(pool):
    assert {future.result().value for future in as_completed([pool.submit(name) for name in "abcdefgh"])} == set(
        "abcdefgh"
    )


def test_errors_of_parse_are_raised_by_the_future(pool):
    with pytest.raises(ZeroDivisionError):
        pool.submit("a", parse=lambda text: 1 / 0).result(5)


def test_cancelled_future_is_not_sent(server, make_pool):
    """One that did not begin can be cancelled, as with any executor."""
    server.script("slow", Reply("slow", delay=0.2))
    pool = make_pool(1)
    first, second = pool.submit("slow"), pool.submit("b")
    assert second.cancel()
    assert first.result(5).value == "slow"
    assert second.cancelled()
    assert server.count("b") == 0
    assert pool.submit("c").result(5).value == "c"


@pytest.mark.parametrize("end", ["deadline", "close"])
def test_who_waits_for_a_cancelled_future_is_woken_when_its_call_ends(server, make_pool, end):
    """``wait`` and ``as_completed`` count a cancelled Future only once the pool has noticed."""
    server.script("hangs", Reply(fault="stall"))
    pool = make_pool(1)
    pool.submit("hangs")
    assert wait_until(lambda: server.count("hangs") == 1)
    future = pool.submit("b", deadline=0.1 if end == "deadline" else None)
    assert future.cancel()
    if end == "close":
        pool.close()
    assert wait([future], 5).done == {future}


def test_with_waits_for_what_was_submitted(server):
    """As with an executor: leaving the block finishes the work."""
    server._latency = 0.05
    with ChatPool(2, base_url=server.url) as pool:
        futures = [pool.submit("a") for _ in range(6)]
    assert [future.result(0).value for future in futures] == ["a"] * 6


def test_with_does_not_wait_when_an_exception_is_on_its_way(server):
    """Calls in flight are cancelled at once, with the cause."""
    server.script("slow", Reply(fault="stall"))
    with pytest.raises(ZeroDivisionError), ChatPool(2, base_url=server.url) as pool:
        future = pool.submit("slow")
        assert wait_until(lambda: server.requests)
        raise ZeroDivisionError
    assert type(future.result(0).error) is NotSentError


def test_dropped_pool_finishes_what_was_submitted(server):
    """The future keeps its call alive; the threads go afterwards."""
    server._latency = 0.05
    assert ChatPool(2, base_url=server.url).submit("a").result(5).value == "a"
    assert wait_until(lambda: not chatpool_threads())


def test_map_within_a_callback_works(pool):
    """The callback of a Future runs in a callback thread, so that a map in it is never blocked."""
    answers, done = [], threading.Event()

    def callback(future):
        answers.extend(pool.map([future.result().value] * 3))
        answers.append(pool.submit("b").result().value)
        done.set()

    pool.submit("a").add_done_callback(callback)
    assert done.wait(5)
    assert answers == ["a", "a", "a", "b"]


def test_ask_returns_the_answer(server, pool):
    """In the caller's thread: no worker is started, and the scheduler only decides when."""
    assert pool.ask("a") == "a"
    assert pool.ask("3", parse=int) == 3
    assert chatpool_threads() == ["chatpool-scheduler"]


def test_ask_raises_its_error(server, make_pool):
    server.script("a", Reply(status=500))
    with pytest.raises(InternalServerError) as caught:
        make_pool(max_tries=3).ask("a")
    assert caught.value.attempts == 3


def test_ask_within_parse_works(pool):
    assert pool.map(["a"] * 8, parse=lambda text: pool.ask(text + "1")) == ["a1"] * 8


def test_callback_that_raises_system_exit_costs_no_thread(caplog):
    go_on = threading.Event()

    def leave(future):
        raise SystemExit

    with (
        FakeChatServer(reply=lambda request: go_on.wait(5) and Reply()) as server,
        ChatPool(4, base_url=server.url) as pool,
    ):
        for _ in range(8):
            pool.submit("a").add_done_callback(leave)
        go_on.set()  # not before: a callback that comes late runs in this thread
        assert wait_until(lambda: caplog.text.count("a callback raised") == 8)
        assert pool.map(["a"] * 8, deadline=5) == ["a"] * 8


def test_chain_of_submits_in_callbacks_does_not_nest(server, pool):
    """Each submit within a callback comes back at once; 500 in a chain do not overflow the stack."""
    done, over = [], threading.Event()

    def step(future):
        done.append(future.result().value)
        if len(done) == 500:
            over.set()
        else:
            pool.submit(str(len(done))).add_done_callback(step)

    pool.submit("0").add_done_callback(step)
    assert over.wait(20)
    assert done == [str(number) for number in range(500)]


# The deadline.


@pytest.mark.parametrize("way", ["ask", "submit"])
def test_deadline_counts_from_the_call(server, make_pool, way):
    """With the only worker busy for long, the time in the queue counts."""
    server.script("slow", Reply("slow", delay=30))
    pool, began = make_pool(1), time.monotonic()
    pool.submit("slow")
    assert wait_until(lambda: server.count("slow") == 1)
    error = error_of(pool, way, "late", deadline=0.3)
    assert type(error) is DeadlineError
    assert time.monotonic() - began < 5
    assert server.count("late") == 0


@pytest.mark.parametrize("way", ["ask", "submit"])
def test_deadline_ends_a_request_in_flight(server, pool, way):
    server.script("stalls", Reply(fault="stall"))
    assert type(error_of(pool, way, "stalls", deadline=0.3)) is DeadlineError
    assert pool.ask("next", deadline=20) == "next"


@pytest.mark.parametrize("way", ["ask", "submit"])
def test_deadline_ends_a_back_off(server, pool, way):
    """Its cause is the last failure."""
    server.script("fails", Reply(status=500, headers={"retry-after": "20"}))
    with ChatPool(1, base_url=server.url) as patient:
        error = error_of(patient, way, "fails", deadline=0.5)
    assert type(error) is DeadlineError
    assert type(error.__cause__) is InternalServerError


def test_ten_threads_that_ask_two_workers_are_all_done_by_their_deadline(server, make_pool):
    """Each answer takes longer than the deadline allows for ten in a row."""
    pool = make_pool(2)
    server.script("slow", Reply("slow", delay=4))
    took = []

    def ask():
        began = time.monotonic()
        with suppress(DeadlineError):
            pool.ask("slow", deadline=1.0)
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(took) == 10
    assert max(took) < 1.0 + GRACE


GRACE = 5.0  # seconds, for a busy machine


def error_of(pool, way, prompt, **settings):
    if way == "submit":
        return pool.submit(prompt, **settings).result(20).error
    try:
        pool.ask(prompt, **settings)
    except CallError as error:
        return error
    return None


def test_deadline_is_checked(pool):
    for way in (pool.ask, pool.submit):
        with pytest.raises(ConfigurationError, match="deadline must be a number of seconds"):
            way("a", deadline=-1)


def test_calls_that_have_ended_leave_no_deadline_behind(server, make_pool):
    """A service asks a million times with a deadline of ten minutes: that does not fill its memory."""
    pool = make_pool(2)
    for _ in range(600):
        assert pool.ask("a", deadline=600) == "a"
    assert len(pool._engine()._scheduler._deadlines._heap) <= 256
