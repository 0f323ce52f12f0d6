"""Answers that are streamed inside ``map``: the same results as without, and broken streams judged like whole replies.

The server sends each byte as it is written here, over real sockets.
"""

from __future__ import annotations

import gzip
import json
import ssl
import time
import zlib

import pytest
import requests
import trustme

from chatpool import (
    APIConnectionError,
    APITimeoutError,
    BadRequestError,
    ChatPool,
    DeadlineError,
    InternalServerError,
    InvalidResponseError,
    RateLimitError,
    Usage,
)
from chatpool.testing import End, FakeChatServer, Raw, Reply
from tests.streaming import CHUNKED, DONE, HEAD, HELLO, USAGE, chunk, coded, delta, hello, stream

IDLE = 0.3  # seconds: the idle timeout of most pools here
LATEST = (
    5  # seconds, by which an attempt is aborted even on a busy machine; 0.05 s late is usual, and 600 s the read limit
)
LIFE, GAP = 1.5, 0.3  # seconds: an idle timeout that is not reached, and the gap between two signs of life


@pytest.fixture
def make(make_pool):
    """Make pools that stream."""
    return lambda *args, **settings: make_pool(*args, **{"idle_timeout": IDLE, **settings})


def test_streamed_answer_is_the_answer_of_a_whole_reply(server, make):
    """The response has the shape of a reply that was not streamed; the time of the first token comes along."""
    server.script("a", stream(HELLO[0], 0.1, *HELLO[1:]))
    result = make().map(["a"]).results[0]
    assert result.text == result.value == "Hello"
    assert result.response == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    assert (result.usage, result.finish_reason, result.attempts) == (Usage(3, 2, 5), "stop", 1)
    assert 0.1 <= result.first_token <= result.elapsed


def test_request_asks_for_a_stream_with_usage(server, make):
    server.script("a", stream(*HELLO))
    make(params={"temperature": 0}).map(["a"])
    body = server.requests[0].body
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["temperature"], body["messages"]) == (0, [{"role": "user", "content": "a"}])


def test_fields_that_the_user_set_stay(server, make):
    """``stream: False`` of a prompt means that prompt; other stream_options are sent along."""
    server.script("a", stream(*HELLO))
    pool, messages = make(), [{"role": "user", "content": "a"}]
    pool.map([{"messages": messages, "stream_options": {"include_obfuscation": False}}])
    server.script("a", Reply("whole"))
    assert pool.map([{"messages": messages, "stream": False}]) == ["whole"]
    first, second = (request.body for request in server.requests)
    assert first["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert second["stream"] is False
    assert "stream_options" not in second


def test_prompt_that_asks_for_a_stream_itself(server, pool):
    """Such as a line of a Batch file: its answer is put together, too."""
    server.script("a", stream(*HELLO))
    assert pool.map([{"messages": [{"role": "user", "content": "a"}], "stream": True}]) == ["Hello"]
    assert "stream_options" not in server.requests[0].body


def test_without_idle_timeout_nothing_is_streamed(server, pool):
    assert pool.map(["a"]) == ["a"]
    assert "stream" not in server.requests[0].body
    assert pool.map(["a"]).results[0].first_token is None


def test_connection_is_kept_after_a_stream(server, make):
    """Also if the end of the body comes a little after [DONE]."""
    server.script("a", *[stream(*hello(name), wait) for name, wait in zip("abcde", [0.0, 0.05, 0.05, 0.0, 0.05])])
    assert make(1).map(["a"] * 5) == ["Hello"] * 5
    assert server.connections == 1


@pytest.mark.parametrize(
    "reply",
    [
        stream(*HELLO, end=End.STALL),
        Raw([CHUNKED, *map(coded, HELLO), b": more", End.STALL]),
        stream(*HELLO, *[b": keep-alive\n\n", 0.05] * 100, end=End.STALL),
    ],
    ids=["silence", "half a chunk", "comments"],
)
def test_server_that_does_not_end_after_done_is_not_waited_for(server, make, reply):
    server.script("a", reply)
    result = make(idle_timeout=20).map(["a"]).results[0]
    assert result.value == "Hello"
    assert result.elapsed < 5


def test_silence_after_the_finish_reason_loses_nothing(server, make):
    """The answer is there; only its usage is not."""
    server.script("a", stream(*HELLO[:4], end=End.STALL))
    result = make().map(["a"]).results[0]
    assert (result.value, result.attempts, result.usage) == ("Hello", 1, None)


# How the bytes may come.


def by_bytes(data, size=1):
    return [data[start : start + size] for start in range(0, len(data), size)]


STREAM = b"".join(HELLO)
COMPRESSED = gzip.compress(STREAM)
SHAPES = {
    "all in one chunk": stream(STREAM),
    "one packet": Raw([CHUNKED + coded(STREAM) + b"0\r\n\r\n", End.KEEP]),
    "a byte in each chunk": stream(*by_bytes(STREAM)),
    "with a length": Raw([HEAD + b"Content-Length: %d\r\n\r\n" % len(STREAM), *by_bytes(STREAM, 50), End.KEEP]),
    "until the connection closes": Raw([HEAD + b"Connection: close\r\n\r\n", *HELLO, End.CLOSE]),
    "gzip": Raw(
        [
            HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(COMPRESSED),
            *by_bytes(COMPRESSED, 7),
            End.KEEP,
        ]
    ),
    "gzip in chunks": Raw(
        [
            HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
            *map(coded, by_bytes(COMPRESSED, 7)),
            b"0\r\n\r\n",
            End.KEEP,
        ]
    ),
    "CR LF": stream(*[part.replace(b"\n", b"\r\n") for part in HELLO]),
    "CR": stream(*[part.replace(b"\n", b"\r") for part in HELLO]),
    "comments": stream(b": OPENROUTER PROCESSING\n\n", *HELLO[:2], b":\n\n", *HELLO[2:]),
    "several lines of data": stream(*[part.replace(b', "object"', b',\ndata: "object"') for part in HELLO]),
    "a byte order mark": stream(b"\xef\xbb\xbf", *HELLO),
    "no blank line after the last event": stream(*HELLO[:-1], DONE.strip()),
    "no [DONE]": stream(*HELLO[:-1]),
    "no finish reason, but usage and [DONE]": stream(*HELLO[:3], HELLO[4], DONE),
    "no [DONE], and cut": stream(*HELLO[:-1], end=End.RESET),
    "cut after [DONE]": stream(*HELLO, end=End.RESET),
    "no content type": Raw([b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", *HELLO, End.CLOSE]),
    "another content type": Raw(
        [b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(STREAM), STREAM]
    ),
    "after an interim reply": Raw([b"HTTP/1.1 103 Early Hints\r\n\r\n", *stream(*HELLO).script]),
    "pings": stream(b'event: ping\ndata: {"type": "ping"}\n\n', b"data: \n\n", *HELLO),
    "a whole completion in one event": stream(
        chunk(
            choices=[
                {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"},
            ],
            usage=USAGE,
        ),
        DONE,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shape(server, make, shape):
    """However the bytes come, the answer is the same, at the first attempt."""
    server.script("a", SHAPES[shape])
    result = make(1).map(["a"]).results[0]
    assert (result.value, result.usage, result.attempts) == ("Hello", Usage(3, 2, 5), 1)


@pytest.mark.parametrize("own_adapter", [False, True])
def test_session_of_the_users(server, own_adapter):
    """Also with an adapter of the user's; and the silence there is cut, too."""

    class Adapter(requests.adapters.HTTPAdapter):
        pass

    server.script("a", stream(*HELLO))
    server.script("failing", stream(*HELLO[:2], end=End.STALL))
    with requests.Session() as session:
        if own_adapter:
            session.mount("http://", Adapter())
        with ChatPool(1, base_url=server.url, session=session, idle_timeout=IDLE, max_tries=1) as pool:
            good, bad = pool.map(["a", "failing"]).results
    assert good.value == "Hello"
    assert bad.error.code == "idle_timeout"
    assert bad.elapsed < LATEST


def test_split_character(server, make):
    """The bytes of a character may come in two chunks, and in two packets."""
    data = delta("naïve 😀").replace(b"\\u00ef", "ï".encode()).replace(b"\\ud83d\\ude00", "😀".encode())
    cuts = [data.index(b"\xaf"), data.index(b"\x9f"), data.index(b"\x98"), data.index(b"\x80")]
    parts = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)])]
    server.script("a", stream(*[step for part in parts for step in (part, 0.02)], *HELLO[3:]))
    assert make().map(["a"]) == ["naïve 😀"]


def test_event_of_more_than_a_megabyte(server, make):
    server.script("a", stream(*by_bytes(delta("x" * 3_000_000), 10_000), *HELLO[3:]))
    assert len(make().map(["a"])[0]) == 3_000_000


def test_stream_over_64_mib_is_too_large(server, make):
    """Whether in one event, in many, or compressed. It is not asked for again."""
    bomb = gzip.compress(b": " + b"x" * (65 * 2**20) + b"\n\n")
    endless = Raw([HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb), bomb, End.KEEP])
    server.script("a", endless)
    result = make(idle_timeout=20).map(["a"]).results[0]
    assert (type(result.error), result.error.code, result.attempts) == (InvalidResponseError, "too_large", 1)


# Time.


def test_silence_is_cut_and_the_prompt_sent_again(server, make):
    """In the middle of an answer, and before the first byte."""
    server.script("a", stream(*HELLO[:3], end=End.STALL), stream(*HELLO))
    server.script("b", Reply(fault="stall"), stream(*hello("b")))
    answers = make().map(["a", "b"])
    assert answers == ["Hello", "Hello"]
    assert [(result.attempts, result.unanswered) for result in answers.results] == [(2, 1), (2, 1)]
    assert max(result.elapsed for result in answers.results) < LATEST


def test_idle_timeout_is_an_error_of_its_own(server, make):
    server.script("a", stream(*HELLO[:3], end=End.STALL))
    error = make(max_tries=3).map(["a"]).results[0].error
    assert (type(error), error.code, error.attempts) == (APITimeoutError, "idle_timeout", 3)
    assert "no byte of the answer within the idle timeout of 0.3 s" in str(error)


def test_silence_before_the_first_token_is_tried_twice(server, make):
    """A model that thinks for longer than the idle timeout would be paid for each time."""
    server.script("a", stream(HELLO[0], end=End.STALL))
    assert make().map(["a"]).results[0].attempts == 2


@pytest.mark.parametrize("tls", [False, True])
def test_steady_answer_may_take_longer_than_the_idle_timeout(server, make, tls, tmp_path, monkeypatch):
    """Here twice as long."""
    reply = stream(*[step for part in [HELLO[0], *[delta("")] * 5, *HELLO[1:]] for step in (part, GAP)])
    if not tls:
        server.script("a", reply)
        result = make(idle_timeout=LIFE).map(["a"]).results[0]
    else:
        context, authority = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trustme.CA()
        authority.issue_cert("localhost").configure_cert(context)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        with FakeChatServer(tls=context) as server, ChatPool(1, base_url=server.url, idle_timeout=LIFE) as pool:
            server.script("a", reply)
            result = pool.map(["a"]).results[0]
    assert (result.value, result.attempts) == ("Hello", 1)
    assert result.elapsed > 2 * LIFE


LIVELY = {
    "a drip of bytes": Raw([CHUNKED, *[step for byte in by_bytes(STREAM) for step in (coded(byte), 0.05)]]),
    "a drip within a chunk": Raw(
        [CHUNKED, b"%x\r\n" % len(STREAM), *[step for byte in by_bytes(STREAM) for step in (byte, 0.05)]]
    ),
    "a drip of the head": Raw([step for byte in by_bytes(CHUNKED) for step in (byte, 0.05)] + [End.STALL]),
    "comments": stream(*[b": keep-alive\n\n", 0.1] * 100),
    "blank lines": stream(*[b"\n", 0.1] * 100),
}


@pytest.mark.parametrize("shape", LIVELY)
def test_signs_of_life_are_bounded_by_the_read_limit(server, make, shape):
    """Every byte counts as one; the read limit is for the whole answer."""
    server.script("a", LIVELY[shape])
    error = make(idle_timeout=LIFE, timeout=(2, 2 * LIFE), max_tries=1).map(["a"]).results[0].error
    assert (type(error), error.code) == (APITimeoutError, "read_timeout")


def test_compressed_drip_is_a_sign_of_life(server, make):
    """Although nothing can be decompressed of it for a while."""
    head = HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    steps = [step for part in by_bytes(COMPRESSED, len(COMPRESSED) // 8) for step in (coded(part), GAP)]
    server.script("a", Raw([head, *steps, b"0\r\n\r\n", End.KEEP]))
    result = make(idle_timeout=LIFE).map(["a"]).results[0]
    assert result.attempts == 1
    assert result.elapsed > LIFE


def test_deadline_cuts_a_stream(server, make):
    server.script("a", stream(*[delta("x"), 0.05] * 200))
    began = time.monotonic()
    (result,) = make().map(["a"], deadline=0.4).results
    assert 0.3 < time.monotonic() - began < LATEST
    assert type(result.error) is DeadlineError


# Broken streams.

ERROR = {"error": {"message": "The server had an error", "type": "server_error", "code": "server_error"}}
BROKEN = {
    "cut": (stream(*HELLO[:3], end=End.CLOSE), APIConnectionError, "incomplete_read"),
    "cut within a chunk": (Raw([CHUNKED, coded(HELLO[0]), b"100\r\ndata: {"]), APIConnectionError, "incomplete_read"),
    "cut short of its length": (
        Raw([HEAD + b"Content-Length: 9999\r\n\r\n", *HELLO[:2]]),
        APIConnectionError,
        "incomplete_read",
    ),
    "reset": (stream(*HELLO[:3], 0.05, end=End.RESET), APIConnectionError, "connection_failed"),
    "no finish reason and no [DONE]": (stream(*HELLO[:3]), InvalidResponseError, "broken_off"),
    "[DONE] alone, as of an answer that llama-cpp-python interrupts": (
        stream(*HELLO[:3], DONE),
        InvalidResponseError,
        "broken_off",
    ),
    "[DONE] alone, and no end": (stream(*HELLO[:3], DONE, end=End.STALL), InvalidResponseError, "broken_off"),
    "closed without a finish reason": (
        Raw([HEAD + b"Connection: close\r\n\r\n", *HELLO[:3]]),
        InvalidResponseError,
        "broken_off",
    ),
    "ended within an event": (stream(*HELLO[:3], b'data: {"choices": [{'), InvalidResponseError, "broken_off"),
    "no events": (stream(), InvalidResponseError, "no_choices"),
    "only [DONE]": (stream(DONE), InvalidResponseError, "no_choices"),
    "comments only": (stream(b": a\n\n", b": b\n\n"), InvalidResponseError, "no_choices"),
    "blank": (stream(HELLO[0], *HELLO[3:]), InvalidResponseError, "blank"),
    "an event that is not JSON": (stream(*HELLO[:3], b"data: {]\n\n", *HELLO[3:]), InvalidResponseError, "no_json"),
    "an event that is no object": (stream(*HELLO[:3], b"data: [1, 2]\n\n"), InvalidResponseError, "no_object"),
    "an error event": (
        stream(*HELLO[:3], b"data: %s\n\n" % json.dumps(ERROR).encode(), DONE),
        InternalServerError,
        "server_error",
    ),
    "an error event by its type": (
        stream(*HELLO[:3], b'event: error\ndata: {"message": "overloaded", "type": "overloaded_error"}\n\n'),
        InternalServerError,
        "overloaded_error",
    ),
    "an error event in plain text": (
        stream(b"event: error\ndata: the model crashed\n\n"),
        InvalidResponseError,
        "error_in_200",
    ),
    "an error next to choices": (
        stream(*HELLO[:3], chunk(error={"code": 502, "message": "gone"}, choices=[{"delta": {}}])),
        InternalServerError,
        None,
    ),
    "a rate limit in an event": (
        stream(b'data: {"error": {"code": "rate_limit_exceeded", "message": "slow down"}}\n\n'),
        RateLimitError,
        "rate_limit_exceeded",
    ),
    "a finish reason that says broken off": (stream(delta("x", "error"), DONE), InvalidResponseError, "broken_off"),
    "gzip that is none": (
        Raw([HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"]),
        InvalidResponseError,
        "bad_encoding",
    ),
    "gzip with a wrong checksum": (
        Raw([HEAD + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + COMPRESSED[:40]]),
        InvalidResponseError,
        "no_choices",
    ),
    "another encoding": (
        Raw([HEAD + b"Content-Encoding: deflate\r\nConnection: close\r\n\r\n" + zlib.compress(STREAM)]),
        InvalidResponseError,
        "bad_encoding",
    ),
    "an error status": (Reply(status=503, code="down"), InternalServerError, "down"),
    "an error status with a stream": (
        Raw(
            [
                b"HTTP/1.1 500 Oops\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
                b'data: {"error": {"message": "no memory", "code": "out_of_memory"}}\n\n',
            ]
        ),
        InternalServerError,
        "out_of_memory",
    ),
}


@pytest.mark.parametrize("shape", BROKEN)
def test_broken_stream_is_tried_again(server, make, shape):
    """Each is what a whole reply of its kind is; the next attempt has the answer."""
    reply, kind, code = BROKEN[shape]
    server.script("failing", reply)
    server.script("failing once", reply, stream(*HELLO))
    pool = make(1, max_tries=2)
    error = pool.map(["failing"]).results[0].error
    assert (type(error), error.code) == (kind, code)
    assert error.attempts >= 2
    result = pool.map(["failing once"]).results[0]
    assert (result.value, result.attempts) == ("Hello", 2)


FINAL = {
    "a wrong request": (Reply(status=400, code="bad"), BadRequestError, "bad"),
    "a refusal": (
        stream(delta(None, refusal="I can"), delta(None, refusal="not."), delta(None, "stop"), DONE),
        InvalidResponseError,
        "refusal",
    ),
    "a content filter": (stream(*HELLO[:3], delta("", "content_filter"), DONE), InvalidResponseError, "content_filter"),
    "a limit used up by reasoning": (
        stream(delta(None, reasoning_content="hm"), delta("", "length"), DONE),
        InvalidResponseError,
        "length",
    ),
}


@pytest.mark.parametrize("shape", FINAL)
def test_final_stream_is_not_tried_again(server, make, shape):
    reply, kind, code = FINAL[shape]
    server.script("a", reply)
    result = make().map(["a"]).results[0]
    assert (type(result.error), result.error.code, result.attempts) == (kind, code, 1)


def test_tokens_of_a_stream_that_failed_are_counted(server, make):
    """They are paid for: here the server reports them with each chunk."""
    parts = [chunk(choices=[{"index": 0, "delta": {"content": "x"}}], usage=USAGE) for _ in range(3)]
    server.script("a", stream(*parts, b'data: {"error": {"message": "x", "code": 500}}\n\n'), stream(*HELLO))
    assert make().map(["a"]).results[0].usage == Usage(6, 4, 10)


def test_error_shows_the_event(server, make):
    server.script("a", stream(*HELLO[:2], b'data: {"error": {"message": "no", "code": "server_error"}}\n\n'))
    error = make(max_tries=1).map(["a"]).results[0].error
    assert error.body == '{"error": {"message": "no", "code": "server_error"}}'


# Servers that do not stream, or not like this.


def test_server_that_ignores_stream_is_read_as_ever(server, make):
    """Also if its answers take longer than the idle timeout: once one is known, their silence is no sign of death."""
    server.script("a", Reply("whole", stream=False))
    server.script("slow", Reply("whole", delay=2 * IDLE, stream=False))
    pool = make(1)
    assert pool.map(["a"]) == ["whole"]
    result = pool.map(["slow"]).results[0]
    assert (result.value, result.attempts, result.first_token) == ("whole", 1, None)
    server.script("dies", Raw([CHUNKED, End.STALL]), stream(*HELLO))
    result = pool.map(["dies"]).results[0]  # a stream after all, whose silence is one
    assert (result.value, result.attempts) == ("Hello", 2)
    assert result.elapsed < LATEST


def refuse(field, status=400):
    """Return a server's reply function that rejects requests with a field."""

    def reply(request):
        if field not in request.body:
            return stream(*hello(request.id)) if request.body.get("stream") else Reply("whole")
        message = f"Unrecognized request argument supplied: {field}"
        error = {"message": message, "type": "invalid_request_error", "param": field, "code": None}
        return Reply(status=status, body={"error": error})

    return reply


@pytest.mark.parametrize("status", [400, 422])
def test_server_that_refuses_stream_options(status):
    """It is asked without, at once, and that is remembered for the pool."""
    with FakeChatServer(reply=refuse("stream_options", status)) as server:
        with ChatPool(1, base_url=server.url, idle_timeout=IDLE, max_tries=1) as pool:
            answers = pool.map(["a", "b", "c"])
        assert answers == ["Hello"] * 3
        assert [result.attempts for result in answers.results] == [2, 1, 1]
        assert ["stream_options" in request.body for request in server.requests] == [True, False, False, False]


def test_server_that_refuses_streams_altogether():
    with FakeChatServer(reply=refuse("stream")) as server:
        with ChatPool(1, base_url=server.url, idle_timeout=IDLE, max_tries=1) as pool:
            answers = pool.map(["a", "b", "c"])
        assert answers == ["whole"] * 3
        assert [result.attempts for result in answers.results] == [2, 1, 1]
        assert ["stream" in request.body for request in server.requests] == [True, False, False, False]


def test_answer_that_is_not_streamed_has_no_idle_timeout(server, make):
    server.script("a", Reply("whole", delay=2 * IDLE))
    messages = [{"role": "user", "content": "a"}]
    assert make().map([{"messages": messages, "stream": False}]).results[0].attempts == 1


def test_other_400s_are_not_about_the_stream(server, make):
    server.script("a", Reply(status=400, body={"error": {"message": "temperature must be below 2"}}))
    result = make().map(["a"]).results[0]
    assert (result.attempts, type(result.error)) == (1, BadRequestError)


# Records.


def test_summary_and_records_show_the_first_token(server, make):
    server.script("a", stream(*HELLO))
    answers = make().map(["a"] * 20)
    assert "first token: median 0.0" in answers.summary()
    assert all(0 < record["first_token"] < 1 for record in answers.to_records())


def test_journal_does_not_depend_on_streaming(server, make, tmp_path):
    """What was streamed is found without, and the other way round; the line holds the assembled response."""
    server.script("a", stream(*HELLO))
    journal = tmp_path / "answers.jsonl"
    first = make().map(["a"], journal=journal)
    line = json.loads(journal.read_text())
    assert line["response"]["body"] == first.results[0].response
    assert line["chatpool"]["first_token"] == pytest.approx(first.results[0].first_token, abs=1e-5)
    again = make(idle_timeout=None).map(["a", "b"], journal=journal)
    assert again == ["Hello", "b"]
    assert again.results[0].first_token == pytest.approx(first.results[0].first_token, abs=1e-5)
    assert make().map(["a", "b"], journal=journal) == ["Hello", "b"]
    assert len(server.requests) == 2
