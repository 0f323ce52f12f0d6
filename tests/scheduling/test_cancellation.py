"""Cancelling: by Ctrl-C, close(), a deadline, or the end of an outer map. Every prompt keeps an outcome."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatpool import (
    APITimeoutError,
    ChatPool,
    DeadlineError,
)
from chatpool._scheduling.job import Job
from chatpool.testing import Reply
from tests.conftest import wait_until


def test_call_cancelled_just_before_its_request_is_not_sent(server, monkeypatch):
    """A cancellation that comes just before an attempt begins holds for that attempt."""
    import chatpool._http.cancel as module

    begin, reached, go_on = module.CancelScope.set_timeout, threading.Event(), threading.Event()

    def begin_late(call, *args):
        reached.set()
        go_on.wait(5)
        begin(call, *args)

    monkeypatch.setattr(module.CancelScope, "set_timeout", begin_late)
    pool = ChatPool(1, base_url=server.url)
    future = pool.submit("a")
    assert reached.wait(5)
    closing = threading.Thread(target=pool.close)
    closing.start()
    assert wait_until(future.done)
    go_on.set()
    closing.join(5)
    assert server.requests == []


def test_a_deadline_holds_for_the_maps_within_parse(server):
    """A deadline of the outer map holds for what parse has asked for."""
    server.script("slow", Reply(delay=0.05))
    with ChatPool(4, base_url=server.url) as pool:
        answers = pool.map(["a", "b"], parse=lambda text: pool.map(["slow"] * 1000), deadline=0.3)
        assert {type(result.error) for result in answers.results} == {DeadlineError}
        assert wait_until(lambda: not pool._engine()._scheduler._in_flight)
        sent = len(server.requests)
        assert pool.map(["well"], deadline=5) == ["well"]
        assert len(server.requests) == sent + 1


def test_prompts_not_begun_are_cancelled_in_bulk(server):
    """A deadline holds with 300,000 prompts waiting: what was not sent is settled in bulk."""
    server.script("p", Reply(fault="stall"))
    with ChatPool(2, base_url=server.url) as pool:
        job = pool._make_job(Job, None, None, None)
        settled = []
        settle, job.settle = job.settle, lambda results: settled.append(len(results)) or settle(results)
        job.backend.start(job, [job.builder.request(index, "p") for index in range(300_000)])
        job.stop(lambda: DeadlineError("over"))
        assert sum(settled) == 300_000
        assert len(settled) <= 3  # two may have been in flight
        assert len({id(result.error) for result in job.take_settled()}) <= 3
        job.end()


def test_interrupt_while_threads_start_costs_no_worker(server, monkeypatch):
    """Ctrl-C at the fifth start of 16: afterwards all 16 can be on the wire again."""
    submit, starts = ThreadPoolExecutor.submit, itertools.count(1)

    def interrupted(*args, **kwargs):
        if next(starts) == 5:
            raise KeyboardInterrupt
        return submit(*args, **kwargs)

    barrier = threading.Barrier(15)
    with ChatPool(16, base_url=server.url) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt) as caught:
                pool.map(["a"] * 100)
        assert len(caught.value.answers) == 100
        assert pool.map(["b"] * 15, parse=lambda text: text if barrier.wait(10) >= 0 else None) == ["b"] * 15


def test_answer_is_not_lost_between_two_lines(server, monkeypatch):
    """Wherever Ctrl-C breaks into the gathering thread, ``.answers`` has a result for every prompt."""
    inner, calls = Job.take_settled, itertools.count()

    def interrupted(self, *args):
        fresh = inner(self, *args)
        if threading.current_thread() is threading.main_thread() and self.results and next(calls) == 0:
            raise KeyboardInterrupt
        return fresh

    monkeypatch.setattr(Job, "take_settled", interrupted)
    with ChatPool(1, base_url=server.url) as pool, pytest.raises(KeyboardInterrupt) as caught:
        pool.map(["a", "b", "c"])
    assert len(caught.value.answers) == 3
    assert "a" in caught.value.answers


def test_interrupted_retry_carries_all_answers(server, monkeypatch):
    server.script("bad", Reply(status=400))
    with ChatPool(1, base_url=server.url) as pool:
        answers = pool.map(["a", "bad", "c"])
        monkeypatch.setattr(Job, "gather", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt) as caught:
            pool.retry(answers)
    assert caught.value.answers == ["a", None, "c"]


@pytest.mark.parametrize("target", ["chatpool-scheduler"])
def test_interrupt_while_the_scheduler_starts(server, monkeypatch, target):
    """Ctrl-C in ask, just there: limits hold in the next call, and names are looked up."""
    start = threading.Thread.start

    def interrupted(self):
        if self.name == target:
            raise KeyboardInterrupt
        start(self)

    server.script("failing", Reply(fault="stall"))
    with ChatPool(1, base_url=f"http://localhost:{server.port}/v1", timeout=(2, 0.3), max_tries=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.ask("a")
        with pytest.raises(APITimeoutError, match="read timeout"):
            pool.ask("failing")
        assert pool.ask("b") == "b"


def test_futures_and_close_settle_once(server, caplog):
    """Whether a worker or close() is first, a Future is set running and finished once."""
    for _ in range(60):
        pool = ChatPool(2, base_url=server.url)
        futures = [pool.submit("a") for _ in range(8)]
        pool.close()
        assert all(future.done() for future in futures)
    assert "unexpected state" not in caplog.text


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signal")
@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 may interrupt a with statement before its exit")
def test_interrupt_while_futures_are_polled_blocks_nothing(server, make_pool):
    """The interrupted thread leaves no Future's lock taken, for which the scheduler would wait for ever."""

    def interrupt(*args):
        raise KeyboardInterrupt

    def poll(futures):
        ends = time.monotonic() + 1  # Python drops an interrupt that comes within a finalizer
        while time.monotonic() < ends:
            all(future.done() for future in futures)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(20):
            pool = make_pool(4)
            futures = [pool.submit("a") for _ in range(100)]
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.005 + 0.001 * number)
                poll(futures)
            closer = threading.Thread(target=pool.close, daemon=True)
            closer.start()
            closer.join(10)
            assert not closer.is_alive()
            assert all(future.done() for future in futures)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_destructor_that_closes_the_pool_may_run_in_any_thread(server):
    """Such as the scheduler's, when the last answer of an object's method has been parsed there."""
    server.script("hangs", Reply(fault="stall"))
    pool = ChatPool(2, base_url=server.url)
    closed_in = []

    class Client:
        def parse(self, text):
            return text

        def __del__(self):
            pool.close()
            closed_in.append(threading.current_thread().name)

    pool.submit("hangs", parse=Client().parse, deadline=0.2)
    other = pool.submit("hangs")
    assert "closed" in str(other.result(5).error)
    assert wait_until(lambda: closed_in == ["chatpool-scheduler"])
