"""``ChatPool.stream``: the pieces of one answer as they arrive; in all else a call like any other."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import signal
import threading
import time

import pytest

from chatpool import (
    APIConnectionError,
    APITimeoutError,
    BadRequestError,
    ChatPool,
    DeadlineError,
    InternalServerError,
    InvalidResponseError,
    NotSentError,
    PoolClosedError,
    Usage,
)
from chatpool.testing import End, FakeChatServer, Raw, Reply
from tests.conftest import chatpool_threads, wait_until
from tests.streaming import CHUNKED, DONE, HELLO, LAST, ROLE, chunk, coded, delta, hello, named, stream


def endless(wait=0.02):
    """Return a stream that goes on for minutes."""
    return stream(ROLE, *[delta("x"), wait] * 5000)


def test_pieces_come_one_by_one(server, pool):
    """Each event's text is a piece; the result follows the last one."""
    server.script("a", stream(*HELLO))
    answer = pool.stream("a")
    assert answer.result is None
    assert list(answer) == ["Hel", "lo"]
    assert (answer.text, answer.result.text, answer.result.usage) == ("Hello", "Hello", Usage(3, 2, 5))
    assert list(answer) == []


def test_pieces_come_as_they_arrive(server, pool):
    """The second is sent only once the first has been seen; the first arrives within 5 ms."""
    delays = []
    for name in "abcdefghij":
        sent, seen = [], threading.Event()
        first, second, *rest = [coded(named(part, name)) for part in (delta("a"), delta("b"), *LAST)]
        note = functools.partial(note_time, sent)
        server.script(name, Steps(coded(ROLE), note, first, seen.wait, second, *rest))
        answer = pool.stream(name)
        assert next(answer) == "a"
        delays.append(time.monotonic() - sent[0])
        seen.set()
        assert list(answer) == ["b"]
    assert min(delays) < 0.005


def note_time(times):
    times.append(time.monotonic())


class Steps:
    """A reply that calls functions between its pieces."""

    def __new__(cls, *steps):
        return type("StepsOfATest", (Raw,), {"steps": lambda self, request: cls.play(steps)})([])

    @staticmethod
    def play(steps):
        yield CHUNKED
        for step in steps:
            if callable(step):
                step()
            else:
                yield step
        yield b"0\r\n\r\n"
        yield End.KEEP


def test_request_is_a_call_like_any_other(server, make_pool):
    """The pool's settings and the params are in its body; it asks for a stream."""
    server.script("a", stream(*HELLO))
    pool = make_pool(model="m", system="s", params={"temperature": 0})
    list(pool.stream("a", params={"top_p": 1}))
    assert server.requests[0].body == {
        "model": "m", "temperature": 0, "top_p": 1, "stream": True, "stream_options": {"include_usage": True},
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
    }  # fmt: skip


def test_prompt_is_checked_at_once(pool):
    with pytest.raises(TypeError, match="prompt 0"):
        pool.stream(3)
    with pytest.raises(ValueError, match="deadline"):
        pool.stream("a", deadline=-1)
    with pytest.raises(TypeError, match="journal"):
        pool.stream("a", journal="x")


def test_stream_that_is_not_read_holds_nothing(server, pool):
    """Neither a request, nor a thread, nor a slot."""
    streams = [pool.stream("a") for _ in range(10)]
    assert (server.requests, chatpool_threads()) == ([], [])
    streams[0].close()
    assert list(streams[0]) == []
    del streams
    assert chatpool_threads() == []


# Ending early.


@pytest.mark.parametrize("how", ["close", "drop", "break"])
def test_closing_frees_the_slot_and_cuts_the_connection(server, make_pool, how):
    server.script("a", endless())
    pool = make_pool(1)
    answer = pool.stream("a")
    assert next(answer) == "x"
    began = time.monotonic()
    gc.disable()
    try:
        if how == "close":
            answer.close()
            assert list(answer) == []
        elif how == "break":
            for _ in answer:
                break
            del answer
        else:
            del answer
        assert pool.ask("well") == "well"
    finally:
        gc.enable()
    assert time.monotonic() - began < 10
    assert wait_until(lambda: server.open_connections == 1)


def test_closing_before_the_first_piece(server, make_pool):
    """From another thread; the one that waits for a piece gets an error."""
    server.script("a", Reply(fault="stall"))
    pool, errors = make_pool(1), []
    answer = pool.stream("a")

    def read():
        try:
            next(answer)
        except NotSentError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert wait_until(lambda: server.count("a") == 1)
    answer.close()
    reader.join(5)
    assert [str(error) for error in errors] == ["cancelled: nobody waits for this answer any more"]
    assert pool.ask("well") == "well"


def test_slow_reader_holds_no_slot(server, make_pool):
    """The answer is read at the server's pace, and kept until its pieces are asked for."""
    server.script("a", stream(*HELLO))
    pool = make_pool(1)
    answer = pool.stream("a")
    assert next(answer) == "Hel"
    assert pool.ask("well") == "well"
    assert list(answer) == ["lo"]


def test_stream_takes_a_slot(server, make_pool):
    """At most max_workers requests are in flight, streams among them."""
    for number in range(6):
        server.script(str(number), stream(ROLE, 0.05, *hello(str(number))[1:]))
    pool = make_pool(2)
    streams = [pool.stream(str(number)) for number in range(6)]
    threads = [threading.Thread(target=list, args=(answer,)) for answer in streams]
    for thread in threads:
        thread.start()
    pool.map(["a"] * 20)
    for thread in threads:
        thread.join()
    assert [answer.text for answer in streams] == ["Hello"] * 6
    assert server.most_in_flight == 2


# Failures.


def test_failure_before_the_first_piece_is_retried(server, make_pool):
    """on_retry and on_result are called in the thread that reads."""
    log = []
    server.script(
        "a",
        Reply(status=503),
        Reply(fault="reset"),
        stream(ROLE, end=End.CLOSE),
        stream(ROLE, chunk(choices=[{"delta": {"reasoning_content": "hm"}}]), end=End.CLOSE),
        stream(*HELLO),
    )
    pool = make_pool(
        on_retry=lambda retry: log.append((retry.attempt, threading.current_thread())),
        on_result=lambda result: log.append((result.text, threading.current_thread())),
    )
    answer = pool.stream("a")
    assert list(answer) == ["Hel", "lo"]
    me = threading.current_thread()
    assert log == [(1, me), (2, me), (3, me), (4, me), ("Hello", me)]
    assert answer.result.attempts == 5
    assert 0 < answer.result.first_token < 1


LATE = {
    "cut": ({}, stream(*HELLO[:3], end=End.CLOSE), APIConnectionError),
    "an error event": (
        {},
        stream(*HELLO[:3], b'data: {"error": {"code": 500, "message": "x"}}\n\n'),
        InternalServerError,
    ),
    "no finish reason": ({}, stream(*HELLO[:3]), InvalidResponseError),
    "bad JSON": ({}, stream(*HELLO[:3], b"data: {]\n\n"), InvalidResponseError),
    "silence": ({"idle_timeout": 0.3}, stream(*HELLO[:3], end=End.STALL), APITimeoutError),
    "the read limit": ({"timeout": (2, 0.3)}, stream(*HELLO[:3], end=End.STALL), APITimeoutError),
    "max_time": ({"max_time": 0.3}, stream(*HELLO[:3], end=End.STALL), APITimeoutError),
    "a content filter": ({}, stream(*HELLO[:3], delta("", "content_filter"), DONE), InvalidResponseError),
}


@pytest.mark.parametrize("kind", LATE)
def test_failure_after_the_first_piece_is_raised(server, make_pool, kind):
    """With the text so far, which the error keeps when it is pickled; on_result gets the failed result."""
    settings, reply, error_class = LATE[kind]
    results = []
    server.script("a", reply)
    answer = make_pool(on_result=results.append, **settings).stream("a")
    pieces = []
    with pytest.raises(error_class) as caught:
        for piece in answer:
            pieces.append(piece)
    assert pieces == ["Hel", "lo"]
    assert caught.value.text == pickle.loads(pickle.dumps(caught.value)).text == "Hello"
    assert caught.value.attempts == server.count("a") == 1
    assert results == [answer.result]
    assert answer.result.error is caught.value
    assert list(answer) == []


def test_failure_that_is_final(server, pool):
    server.script("a", Reply(status=400))
    with pytest.raises(BadRequestError) as caught:
        list(pool.stream("a"))
    assert caught.value.text == ""
    assert server.count("a") == 1


def test_deadline(server, pool):
    """It counts from the call of stream(); what came before it is yielded."""
    server.script("a", endless())
    server.script("b", Reply(fault="stall"))
    began = time.monotonic()
    with pytest.raises(DeadlineError) as caught:
        for _ in pool.stream("a", deadline=0.4):
            pass
    assert 0.3 < time.monotonic() - began < 10
    assert caught.value.text.strip("x") == ""
    assert len(caught.value.text) > 1
    late = pool.stream("b", deadline=0.05)
    time.sleep(0.06)
    with pytest.raises(DeadlineError):
        next(late)
    assert server.count("b") == 0


def test_hook_that_raises_ends_the_stream(server, make_pool):
    def fail(retry):
        raise ZeroDivisionError

    server.script("a", Reply(status=503))
    pool = make_pool(1, on_retry=fail)
    answer = pool.stream("a")
    with pytest.raises(ZeroDivisionError):
        next(answer)
    assert list(answer) == []
    assert pool.ask("well") == "well"


# Servers that do not stream.


def test_answer_that_comes_whole_is_one_piece(server, pool):
    server.script("a", Reply("some words", stream=False))
    answer = pool.stream("a")
    assert list(answer) == ["some words"]
    assert answer.result.first_token is None


@pytest.mark.parametrize(("field", "wanted"), [("stream_options", ["Hel", "lo"]), ("stream", ["whole"])])
def test_server_that_refuses_how_it_was_asked(field, wanted):
    """It is asked in another way, also by the next stream."""

    def reply(request):
        if field in request.body:
            return Reply(status=400, body={"error": {"message": f"unknown field: {field}"}})
        return stream(*hello(request.id)) if "stream" in request.body else Reply("whole")

    with FakeChatServer(reply=reply) as server, ChatPool(1, base_url=server.url) as pool:
        assert [list(pool.stream("a")) for _ in range(3)] == [wanted] * 3
        assert len(server.requests) == 4


def test_answer_without_text_has_no_pieces(server, pool):
    function = {"name": "f", "arguments": "{}"}
    calls = chunk(
        choices=[{"delta": {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": function}]}}]
    )
    server.script("a", stream(ROLE, calls, delta(None, "tool_calls"), DONE))
    answer = pool.stream("a")
    assert list(answer) == []
    assert answer.result.message["tool_calls"] == [{"id": "1", "type": "function", "function": function}]


# In other people's programs.


def test_ctrl_c(server, make_pool):
    """It ends the stream, and the slot is free."""
    server.script("a", stream(*HELLO[:3], end=End.STALL))
    pool = make_pool(1)
    answer = pool.stream("a")
    assert [next(answer), next(answer)] == ["Hel", "lo"]
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(answer)
    assert time.monotonic() - began < 10
    timer.join()
    assert pool.ask("well") == "well"
    assert list(answer) == []


def test_closing_the_pool_ends_its_streams(server, pool):
    server.script("a", endless())
    answer, unread = pool.stream("a"), pool.stream("a")
    next(answer)
    pool.close()
    with pytest.raises(NotSentError, match="the pool was closed") as caught:
        for _ in answer:
            pass
    assert caught.value.text == answer.text
    with pytest.raises(PoolClosedError):
        next(unread)
    with pytest.raises(PoolClosedError):
        pool.stream("a")


def test_two_threads_on_one_stream(server, pool):
    """The second is refused; the first goes on."""
    go_on = threading.Event()
    server.script("a", Steps(go_on.wait, *map(coded, HELLO)))
    answer, pieces = pool.stream("a"), []
    reader = threading.Thread(target=lambda: pieces.extend(answer))
    reader.start()
    assert wait_until(lambda: server.count("a") == 1)
    with pytest.raises(RuntimeError, match="another thread is reading this stream"):
        next(answer)
    go_on.set()
    reader.join(5)
    assert pieces == ["Hel", "lo"]


def test_one_stream_may_move_from_thread_to_thread(server, pool):
    server.script("a", stream(*HELLO))
    answer, pieces = pool.stream("a"), []
    for _ in range(2):
        thread = threading.Thread(target=lambda: pieces.append(next(answer)))
        thread.start()
        thread.join()
    assert pieces == ["Hel", "lo"]


def test_fork(server, pool):
    """A child cannot read its parent's stream, and does not disturb it; it can make streams of its own."""
    go_on = threading.Event()
    server.script("a", Steps(coded(delta("x")), go_on.wait, *map(coded, HELLO)))
    server.script("b", stream(*HELLO))
    answer = pool.stream("a")
    assert next(answer) == "x"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                next(answer)
            except RuntimeError as error:
                code = 2 if "parent process" in str(error) else 3
            del answer
            code = 0 if (code, list(pool.stream("b"))) == (2, ["Hel", "lo"]) else 4
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    assert list(answer) == ["Hel", "lo"]


def test_stream_within_parse(server, make_pool):
    """A pool of one worker may stream in the parse of its own map."""
    server.script("b", stream(*HELLO))
    pool = make_pool(1)
    assert pool.map(["a"] * 3, parse=lambda text: "".join(pool.stream("b"))) == ["Hello"] * 3


def test_stream_keeps_its_pool(server):
    server.script("a", stream(*HELLO))
    assert list(ChatPool(1, base_url=server.url).stream("a")) == ["Hel", "lo"]
    assert wait_until(lambda: not chatpool_threads())


def test_many_streams_at_once():
    """Each reader gets its own answer."""

    def reply(request):
        pieces = [delta(f"{request.prompt}.{number} ") for number in range(20)]
        return stream(*[named(part, request.id) for part in [ROLE, *pieces, *LAST]])

    with FakeChatServer(reply=reply) as server, ChatPool(20, base_url=server.url) as pool:
        texts: dict[int, str] = {}

        def read(name):
            texts[name] = "".join(pool.stream(str(name)))

        threads = [threading.Thread(target=read, args=(name,)) for name in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {name: "".join(f"{name}.{number} " for number in range(20)) for name in range(60)}


def test_outage_and_rate_limit_are_the_pools(server, make_pool):
    """A stream waits for the budget that another call has used up."""
    server.script("a", stream(*HELLO))
    pool = make_pool(requests_per_minute=600)  # one every 0.1 s, ten at once
    began = time.monotonic()
    pool.map(["x"] * 12)
    list(pool.stream("a"))
    assert time.monotonic() - began > 0.15
