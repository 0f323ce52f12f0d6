"""The scheduler: it survives its own bugs, sends each call from one place at a time, and needs few threads."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from chatpool import ChatPool, NotSentError
from chatpool._limits.limits import Limits
from chatpool._scheduling.backlog import Backlog
from chatpool._scheduling.sender import Sender
from chatpool.testing import Reply
from tests.conftest import chatpool_threads, wait_until

SPOTS = [
    (Limits, "delay"),
    (Limits, "sent"),
    (Limits, "left_wire"),
    (Limits, "accepted"),
    (Backlog, "enlist"),
    (Sender, "prepare"),
]


class Bug(Exception):
    pass


def once(function, after=0):
    """Return a function that raises a Bug at one of its calls, and otherwise does as this one."""
    calls = iter(range(10**9))

    def wrapper(*args, **kwargs):
        if next(calls) == after:
            raise Bug
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("after", [0, 7], ids=["at first", "later"])
@pytest.mark.parametrize(("owner", "name"), SPOTS)
def test_a_bug_of_the_scheduler_is_raised_and_the_pool_goes_on(pool, monkeypatch, owner, name, after):
    """Whatever it breaks, every waiting thread raises it, and the next map is answered with all slots."""
    if name in ("enlist",) and after:
        pytest.skip("called once a map")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, once(getattr(owner, name), after))
        with pytest.raises(Bug):
            pool.map(["a"] * 20, deadline=20)
    assert pool.map(["b"] * 20, deadline=20) == ["b"] * 20
    barrier = threading.Barrier(3)  # a pool of four parses in three threads
    assert pool.map(["c"] * 3, parse=lambda text: text if barrier.wait(10) >= 0 else None, deadline=20) == ["c"] * 3


def test_a_bug_ends_every_way_of_waiting(server, make_pool, monkeypatch):
    """map, imap, ask and a Future at once: each raises it, none hangs."""
    pool = make_pool(8)
    server.script("held", Reply(fault="stall"))
    raised = []

    def expect(wait):
        try:
            wait()
        except Bug as bug:
            raised.append(bug)

    future = pool.submit("held")
    ways = [lambda: pool.map(["held"]), lambda: list(pool.imap(["held"])), lambda: pool.ask("held"), future.result]
    threads = [threading.Thread(target=expect, args=[way]) for way in ways]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: server.count("held") == 4)
    with monkeypatch.context() as patch:
        patch.setattr(Limits, "sent", once(Limits.sent))
        with pytest.raises(Bug):
            pool.map(["x"])
    for thread in threads:
        thread.join(10)
    assert len(raised) == 4
    assert pool.map(["y"]) == ["y"]


def test_a_bug_that_comes_again_and_again_hangs_nobody(pool, monkeypatch):
    def fail(*args):
        raise Bug

    with monkeypatch.context() as patch:
        patch.setattr(Limits, "delay", fail)
        for _ in range(5):
            with pytest.raises(Bug):
                pool.map(["a"])
    assert pool.map(["a"]) == ["a"]


def test_prompts_of_two_maps_take_turns(server, make_pool):
    """A short map that comes after a long one is not kept waiting until that is through."""
    server._latency = 0.01
    pool = make_pool(2)
    long = threading.Thread(target=lambda: pool.map(["long"] * 400))
    long.start()
    assert wait_until(lambda: server.count("long") > 10)
    assert pool.map(["short"] * 10) == ["short"] * 10
    assert server.count("long") < 400
    long.join()


def test_back_off_takes_no_thread(server, make_pool):
    """200 calls in back-off, 4 slots: 4 workers and the scheduler."""
    server.script("failing", Reply(status=500, headers={"retry-after": "0.5"}), Reply("well"))
    pool = make_pool(4, max_wait=5)
    most = []
    answers = pool.imap_unordered(["failing"] * 200)
    for _ in answers:
        most.append(len(chatpool_threads()))
    assert len(most) == 200
    assert max(most) <= 5


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_many_jobs_at_once_settle_each_to_its_owner(server, make_pool, threads):
    pool = make_pool(3)
    failures = []

    def use(name):
        for number in range(20):
            prompts = [f"{name} {number} {index}" for index in range(4)]
            if pool.map(prompts) != prompts or pool.ask(name) != name:
                failures.append((name, number))

    users = [threading.Thread(target=use, args=[f"user{number}"]) for number in range(4 * threads)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert failures == []


def test_ask_sends_in_its_callers_thread(server, make_pool):
    """Its retries and its parse, too."""
    import requests

    threads = set()
    session = requests.Session()
    session.hooks["response"].append(lambda *args, **kwargs: threads.add(threading.current_thread()))
    server.script("a", Reply(status=500), Reply("1"))
    with session:
        pool = make_pool(2, session=session)
        assert pool.ask("a", parse=lambda text: threads.add(threading.current_thread()) or int(text)) == 1
        assert threads == {threading.current_thread()}
        assert chatpool_threads() == ["chatpool-scheduler"]


def test_interrupted_asks_leave_every_slot_free(server, make_pool, monkeypatch):
    """Ctrl-C in the middle of a request, again and again: the slots are there for the next ones."""
    from chatpool._http.session import Transport

    pool = make_pool(2)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Transport, "send", interrupt)
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                pool.ask("a")
    assert pool.map(["b"] * 8, deadline=10) == ["b"] * 8
    assert wait_until(lambda: not pool._engine()._scheduler._in_flight)


def test_a_body_is_encoded_once(server, make_pool, monkeypatch):
    """Checked, estimated, retried: the encoder runs once a prompt."""
    from chatpool._protocol import request_builder

    encoded = []
    encode = request_builder.encode
    monkeypatch.setattr(request_builder, "encode", lambda *args: encoded.append(1) or encode(*args))
    server.script("a", Reply(status=500), Reply("1"))
    pool = make_pool(2, tokens_per_minute=10**6)
    assert pool.map([{"messages": [{"role": "user", "content": "a"}]}, "b"]) == ["1", "b"]
    assert len(encoded) == 2


FORK_AT_FIRST_USE = """
import os, sys, threading, time
from chatpool import ChatPool
url, delay = sys.argv[1], float(sys.argv[2])
thread = threading.Thread(target=lambda: ChatPool(2, base_url=url).map(["parent"] * 4, progress=True))
thread.start()
time.sleep(delay)
child = os.fork()
if not child:
    os._exit(0 if ChatPool(2, base_url=url).map(["child"] * 4, progress=True) == ["child"] * 4 else 1)
ends = time.monotonic() + 20
while not (done := os.waitpid(child, os.WNOHANG))[0]:
    if time.monotonic() > ends:
        os.kill(child, 9)
        sys.exit("the child hangs")
    time.sleep(0.01)
thread.join()
sys.exit(done[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("milliseconds", [0, 3, 6, 10, 15, 20, 30, 45])
def test_fork_in_the_first_milliseconds_of_the_first_use(server, milliseconds):
    """While another thread imports what a first call needs: the child finds no module's lock held."""
    program = [sys.executable, "-c", FORK_AT_FIRST_USE, server.url, str(milliseconds / 1000)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_maps_within_parse_at_any_depth_and_through_helper_threads(server):
    """Three levels, as many prompts as slots at each, every one of them waiting in a thread of its own."""
    with ChatPool(2, base_url=server.url) as pool:

        def level(depth):
            def parse(text):
                if not depth:
                    return text
                found = []
                helper = threading.Thread(target=lambda: found.append(pool.map([text] * 2, parse=level(depth - 1))))
                helper.start()
                helper.join()
                return found[0]

            return parse

        answers = pool.map(["a"] * 2, parse=level(3), deadline=60)
    expected = "a"
    for _ in range(4):
        expected = [expected] * 2
    assert answers == expected


def test_slow_parse_starts_no_more_threads_than_slots(server):
    """Only tasks that wait for the pool get further threads; slow ones wait for their turn."""
    most = []

    def parse(text):
        time.sleep(0.15)
        most.append(len(chatpool_threads()))
        return text

    with ChatPool(4, base_url=server.url) as pool:
        assert pool.map(["a"] * 16, parse=parse) == ["a"] * 16
    assert max(most) <= 2 * 4


def test_cancelled_answers_are_not_parsed_any_more(server):
    parsed = []

    def parse(text):
        parsed.append(text)
        time.sleep(0.3)
        return text

    with ChatPool(2, base_url=server.url) as pool:
        pool.map(["a"] * 20, parse=parse, deadline=0.2)
        before = len(parsed)
        assert pool.map(["b"]) == ["b"]
    assert len(parsed) - before <= 1


def test_message_that_comes_too_late_is_not_lost(server):
    """A pool closed by another thread at any moment: each Future is done, and each map ends."""
    for _ in range(30):
        pool = ChatPool(2, base_url=server.url)
        pool.map(["warm"])
        closer = threading.Thread(target=pool.close)
        futures = []
        closer.start()
        try:
            while True:
                futures.append(pool.submit("a"))
        except RuntimeError:
            pass
        closer.join()
        assert wait_until(lambda futures=futures: all(future.done() for future in futures))
        assert all(future.result().ok or isinstance(future.result().error, NotSentError) for future in futures)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signal")
def test_interrupts_at_random_moments_leave_the_pool_sound(server, make_pool):
    """A signal handler raises in the waiting thread anywhere: the next map is answered, and no call stays in flight."""

    def interrupt(*args):
        raise KeyboardInterrupt

    pool = make_pool(4)
    caught = []
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0002 * (number % 30))
                ends = time.monotonic() + 1  # Python drops an interrupt that comes within a finalizer
                while time.monotonic() < ends:
                    pool.map(["a"] * 50)
            except KeyboardInterrupt as error:
                caught.append(len(getattr(error, "answers", [])))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(caught) >= 50
    assert set(caught) <= {0, 50}
    assert pool.map(["b"] * 40, deadline=10) == ["b"] * 40
    assert wait_until(lambda: not pool._engine()._scheduler._in_flight)


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 may interrupt a with statement before its exit")
# An interrupt within a finalizer is dropped with a warning; one as a connection is taken leaves it to its destructor.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_interrupt_after_any_call_leaves_the_pool_sound(server, make_pool):
    """Python runs signal handlers at the start of its functions and after those written in C: at each of these in
    turn, ask is interrupted. While the exception is there, as in a notebook, the same thread can ask again."""
    pool, moments, failures = make_pool(1), itertools.count(1), []

    def interrupt(frame, event, arg):
        nonlocal left
        # Python 3.15 runs no signal handler between a lock's __enter__ and the block. 3.14 does: python/cpython#148874.
        is_entering = event == "c_return" and arg.__name__ == "__enter__"
        if (
            event in ("call", "c_return")
            and not is_entering
            and "chatpool" in frame.f_code.co_filename + frame.f_back.f_code.co_filename
        ):
            left -= 1
            if not left:
                raise KeyboardInterrupt

    pool.ask("a")
    for moment in moments:
        left = moment
        try:
            sys.setprofile(interrupt)
            pool.ask("a", parse=str.upper)
            if left > 0:  # else Python dropped the interrupt, which came within a finalizer
                break
        except KeyboardInterrupt:
            sys.setprofile(None)
            try:
                assert pool.ask("b", deadline=5) == "b"
                assert pool.map(["c"] * 2, parse=str.upper, deadline=5) == ["C"] * 2
            except Exception as error:
                failures.append((moment, error))
        finally:
            sys.setprofile(None)
    gc.collect()  # the destructors' warnings belong to this test
    assert moment > 50
    assert failures == []


@pytest.mark.parametrize("way", ["map", "ask"])
def test_a_hook_that_uses_the_pool_it_is_called_by_is_refused(server, make_pool, way):
    """In a sentence, and at once: it would wait for the slot that it occupies."""
    import requests

    with requests.Session() as session:
        pool = make_pool(1, session=session)
        odd = [True]
        session.hooks["response"].append(lambda *args, **kwargs: pool.ask("inner") if odd else None)
        with pytest.raises(RuntimeError, match="use another pool"):
            pool.map(["a"]) if way == "map" else pool.ask("a")
        odd.clear()
        assert pool.map(["b"] * 3, deadline=5) == ["b"] * 3


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signal")
def test_a_signal_handler_that_uses_the_pool_while_ask_waits_is_refused(server, make_pool):
    """In the same sentence: ask would get the slot that the handler waits for."""
    server.script("hangs", Reply(fault="stall"))
    pool = make_pool(1)
    pool.submit("hangs", deadline=2)
    assert wait_until(lambda: server.count("hangs") == 1)
    before = signal.signal(signal.SIGALRM, lambda *args: pool.ask("b"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(RuntimeError, match="use another pool"):
            pool.ask("a", deadline=10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert pool.map(["c"], deadline=10) == ["c"]


def test_a_hook_may_use_another_pool(server, make_pool):
    """In the middle of a request: a token service that is itself asked through a pool, for example."""
    import requests

    other, asked = make_pool(1), []
    with requests.Session() as session:
        session.hooks["response"].append(lambda *args, **kwargs: asked.append(other.ask("inner")))
        pool = make_pool(2, session=session)
        assert pool.map(["a"] * 4) == ["a"] * 4
    assert asked == ["inner"] * 4


@pytest.mark.skipif(importlib.util.find_spec("eventlet") is None, reason="eventlet is not installed")
def test_eventlet_is_refused():
    code = (
        "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()\n"
        "from chatpool import ChatPool; ChatPool(base_url='http://127.0.0.1:9/v1').map(['a'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert "ConfigurationError: eventlet's patched threads are not supported" in done.stderr


def test_interpreter_without_daemon_threads_is_refused(server, monkeypatch):
    """Such as those of an InterpreterPoolExecutor (Python 3.14)."""
    from chatpool import ConfigurationError

    monkeypatch.setattr(threading, "_daemon_threads_allowed", lambda: False, raising=False)
    with pytest.raises(ConfigurationError, match="main interpreter"):
        ChatPool(base_url=server.url).map(["a"])


@pytest.mark.skipif(sys.version_info < (3, 14), reason="InterpreterPoolExecutor is new in Python 3.14")
def test_interpreter_pool_gets_the_reason(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from concurrent.futures import InterpreterPoolExecutor\n"
        "def ask():\n"
        "    from chatpool import ChatPool\n"
        "    return ChatPool(base_url='http://127.0.0.1:9/v1').ask('a')\n"
        "if __name__ == '__main__':\n"
        "    with InterpreterPoolExecutor(1) as executor:\n"
        "        print(repr(executor.submit(ask).exception()))\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("ConfigurationError('chatpool needs daemon threads"), done.stderr
