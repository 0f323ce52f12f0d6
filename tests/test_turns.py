"""The threads of a large pool run by turns, called by one that polls for all: over real sockets, none is forgotten."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time

import pytest

from chatpool import ChatPool, DeadlineError
from chatpool._turns import Turns, Usher, away
from chatpool.testing import FakeChatServer, Reply

from .conftest import chatpool_threads, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="turns are called by epoll, which is Linux's")

LARGE = 300  # workers


@pytest.fixture
def called():
    """A turn of its kind, an usher that runs, and the two ends of a connection."""
    turns = Turns(LARGE)
    turns.usher = Usher(turns)
    usher = threading.Thread(target=turns.usher.run, daemon=True)
    usher.start()
    here, there = socket.socketpair()
    turn = turns.join()
    turn.take()
    yield turn, turns, here, there
    turns.close()
    usher.join(10)
    assert not usher.is_alive()
    turns.join().give()
    here.close()
    there.close()


def free_turns(turns):
    return turns._free.qsize()


def test_thread_is_called_with_its_turn(called):
    turn, turns, here, there = called
    threading.Timer(0.05, there.send, [b"x"]).start()
    assert turn.wait_for_read(here, 10)
    assert turn.is_taken
    assert free_turns(turns) == 7
    turn.give()
    assert free_turns(turns) == 8


def test_turn_is_others_while_its_thread_waits(called):
    turn, turns, here, there = called
    seen = []
    threading.Timer(0.05, lambda: (seen.append(free_turns(turns)), there.send(b"x"))).start()
    turn.wait_for_read(here, 10)
    assert seen == [8]


def test_who_is_not_called_in_time_goes_on_with_a_turn(called):
    turn, turns, here, there = called
    assert not turn.wait_for_read(here, 0.02)
    assert turn.is_taken
    there.send(b"x")  # too late, and nobody is taken for who waits next
    assert turn.wait_for_read(here, 10)
    turn.give()
    assert free_turns(turns) == 8


def test_number_of_a_socket_is_used_again(called):
    """A call that timed out leaves nothing behind that would call the owner of the next socket of the same number."""
    turn, _, here, there = called
    copy = here.dup()  # keeps the old connection open, as a forked child would
    number = copy.fileno()
    assert not turn.wait_for_read(copy, 0.01)
    other, far = socket.socketpair()
    os.dup2(other.fileno(), number)
    there.send(b"x")
    assert not turn.wait_for_read(copy, 0.05)
    far.send(b"y")
    assert turn.wait_for_read(copy, 10)
    assert copy.recv(9) == b"y"
    for sock in (copy, other, far):
        sock.close()


def test_many_that_time_out_just_as_they_are_called(called):
    """Whichever comes first, bell or time: the turn is theirs once, and none is lost."""
    turn, turns, here, there = called
    for _ in range(200):
        threading.Timer(0.001, there.send, [b"x"]).start()
        while not turn.wait_for_read(here, 0.001):
            assert turn.is_taken
        assert here.recv(9) == b"x"
    turn.give()
    assert free_turns(turns) == 8


def test_who_waits_at_the_end_is_called(called):
    turn, turns, here, _ = called
    threading.Timer(0.05, turns.close).start()
    turn.wait_for_read(here, 10)
    assert turn.is_taken
    assert not turn.wait_for_read(here, 0.01)  # without an usher


def test_large_pool_answers_everything():
    """Also where parse maps on the same pool, or waits for another thread that does."""
    with FakeChatServer(latency=0.05) as server, ChatPool(300, base_url=server.url, timeout=(5, 20)) as pool:
        prompts = [str(number) for number in range(1200)]
        assert pool.map(prompts) == prompts

        def parse(text):
            found = []
            thread = threading.Thread(target=lambda: found.append(pool.ask(text + "!")))
            thread.start()
            thread.join()
            return found + pool.map([text + "?"])

        assert pool.map(prompts[:40], parse=parse) == [[f"{text}!", f"{text}?"] for text in prompts[:40]]


def test_server_that_drips_holds_up_nobody():
    """No turn is kept while its thread waits, before the first byte or after."""
    with FakeChatServer() as server:
        server.script("sick", Reply("x" * 200, fault="drip"))
        with ChatPool(300, base_url=server.url, timeout=(30, 60), max_tries=1) as pool:
            results = pool.imap_unordered(["sick"] * 100 + ["well"] * 400)
            came = [next(results).prompt for _ in range(400)]
            results.close()
    assert came == ["well"] * 400


def test_turn_is_given_up_while_away_and_taken_again():
    turns = Turns(300)
    turn, others = turns.join(), []

    def run_too():
        all_of_them = [turns.join() for _ in range(8)]
        for other in all_of_them:
            other.take()
        for other in all_of_them:
            other.give()
        others.append(True)

    turn.take()
    with away():
        thread = threading.Thread(target=run_too)
        thread.start()
        thread.join(5)
    assert others == [True]
    assert turn.is_taken
    turn.give()
    turns_of_small_pool = Turns(20).join()
    turns_of_small_pool.take()
    assert not turns_of_small_pool.is_taken


def test_deadline_of_a_large_pool():
    with FakeChatServer(latency=30) as server, ChatPool(LARGE, base_url=server.url) as pool:
        answers = pool.map(["x"] * 600, deadline=0.5)
    assert {type(failure.error) for failure in answers.failures} == {DeadlineError}
    assert len(answers.failures) == 600


def test_nothing_is_left_of_a_large_pool():
    with FakeChatServer() as server:
        pool = ChatPool(LARGE, base_url=server.url)
        pool.map(["x"] * 600)
        assert "chatpool-usher" in chatpool_threads()
        pool.close()
        assert chatpool_threads() == []
        pool = ChatPool(LARGE, base_url=server.url)
        pool.map(["x"] * 600)
        del pool
        gc.collect()
        assert wait_until(lambda: chatpool_threads() == [])


def test_large_pool_without_an_usher(monkeypatch):
    """Where no descriptor is to be had, each thread polls for itself."""

    def fail(*_):
        raise OSError("too many open files")

    monkeypatch.setattr("chatpool._threads.Usher", fail)
    with FakeChatServer() as server, ChatPool(LARGE, base_url=server.url) as pool:
        assert pool.map(["x"] * 600) == ["x"] * 600
        assert "chatpool-usher" not in chatpool_threads()


def test_closed_from_one_of_its_own_threads():
    with FakeChatServer() as server:
        pool = ChatPool(LARGE, base_url=server.url)
        server.script("slow", Reply("slow", delay=30))
        futures = [pool.submit("slow") for _ in range(20)]
        pool.submit("x").add_done_callback(lambda _: pool.close())
        assert wait_until(lambda: all(future.done() for future in futures))
        assert wait_until(lambda: chatpool_threads() == [])


def test_forked_child_has_its_own_usher(server):
    with ChatPool(LARGE, base_url=server.url) as pool:
        pool.map(["x"] * 600)
        child = os.fork()
        if not child:
            is_right = pool.map(["y"] * 600) == ["y"] * 600
            pool.close()
            os._exit(0 if is_right else 1)
        assert pool.map(["x"] * 600) == ["x"] * 600
        began = time.monotonic()
        assert os.waitpid(child, 0)[1] == 0
        assert time.monotonic() - began < 30
