"""Replies that break HTTP's rules, or have no end: bounded in memory and time, and no prompt gets another's answer.

Each is tried both ways: as the fast path sees it, and as http.client and urllib3 do, whatever their version.
"""

from __future__ import annotations

import gzip
import json
import resource
import sys
import zlib

import pytest
import requests

from chatpool import APIConnectionError, APITimeoutError, AuthenticationError, ChatPool, InvalidResponseError
from chatpool._http.cancel import CancelScope
from chatpool.testing import End, FakeChatServer, Raw, Reply

BODY = json.dumps({"id": "1", "choices": [{"message": {"content": "well"}, "finish_reason": "stop"}]}).encode()
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = b"x" * 2**20


@pytest.fixture(params=["fast", "libraries"])
def way(request, monkeypatch):
    """The way that replies are read."""
    if request.param == "libraries":
        monkeypatch.setattr("chatpool._http.pools.is_enabled", lambda: False)


@pytest.fixture
def pool(server, way):
    """One worker, one connection, two attempts."""
    with ChatPool(1, base_url=server.url, max_tries=2, max_wait=0.01, timeout=(1, 5)) as pool:
        yield pool


def ask_odd(server, pool, *steps):
    """Return the result of a prompt with this reply; the prompts before and after it get their own answers."""
    server.script("odd", Raw(steps))
    assert pool.map(["a", "b"]) == ["a", "b"]
    result = pool.submit("odd").result(20)
    assert pool.map(["c", "d", "e"]) == ["c", "d", "e"]
    return result


def encoded(name, body):
    return OK + b"Content-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s" % (name, len(body), body)


# Answers in spite of everything.

ANSWERED = {
    "line feeds alone": OK.replace(b"\r", b"") + LENGTH.replace(b"\r", b"") + b"\n" + BODY,
    "line feeds and both": OK + LENGTH + b"\n" + BODY,
    "a name with a space": OK + b"Bad Name: x\r\n" + LENGTH + b"\r\n" + BODY,
    "a name with a space, continued": OK + b"Bad Name: x\r\n  and more\r\n" + LENGTH + b"\r\n" + BODY,
    "a line without a colon": OK + b"nonsense\r\n" + LENGTH + b"\r\n" + BODY,
    "a first line that continues nothing": OK + b"  x\r\n" + LENGTH + b"\r\n" + BODY,
    "a name with other letters": OK + "Größe: 1\r\n".encode("latin-1") + LENGTH + b"\r\n" + BODY,
    "a space before the colon": OK + LENGTH.replace(b":", b" :") + b"\r\n" + BODY,
    "a header that is continued": OK + b"X-A: 1\r\n 2\r\n" + LENGTH + b"\r\n" + BODY,
    "malformed lines around a chunked reply": CHUNKED.replace(b"\r\n\r\n", b"\r\nBad Name: 1\r\n\r\n")
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a chunk extension and trailers": CHUNKED + b'%x;a="b"\r\n%s\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n' % (len(BODY), BODY),
    "a chunk size with blanks and zeros": CHUNKED + b"000%X \r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "gzip": encoded(b"gzip", gzip.compress(BODY)),
    "X-GZIP": encoded(b"X-GZIP", gzip.compress(BODY)),
    "gzip of two members": encoded(b"gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
    "gzip and other bytes": encoded(b"gzip", gzip.compress(BODY) + b"\0\0\0"),
    "gzip in chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    + b"".join(b"1\r\n%c\r\n" % byte for byte in gzip.compress(BODY))
    + b"0\r\n\r\n",
    "identity": encoded(b"identity", BODY),
    "a charset without a value": OK + b"Content-Type: application/json; charset\r\n" + LENGTH + b"\r\n" + BODY,
    "a charset without a value, in chunks": CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Type: text/html;charset\r\n\r\n")
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("kind", ANSWERED)
def test_answered(server, pool, kind):
    result = ask_odd(server, pool, ANSWERED[kind], End.KEEP)
    assert (result.value, result.attempts) == ("well", 1), result.error


@pytest.mark.parametrize("kind", ["line feeds alone", "a name with a space", "a line without a colon"])
def test_answered_byte_by_byte(server, pool, kind):
    steps = [step for byte in ANSWERED[kind] for step in (bytes([byte]), 0.0002)]
    assert ask_odd(server, pool, *steps, End.KEEP).value == "well"


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 226])
def test_any_2xx_is_read_as_a_whole(server, way, status):
    """Other replies are cut at 64 KiB."""
    server.script("long", Raw([b"HTTP/1.1 %d X\r\nContent-Length: 200000\r\n\r\n" % status + b"x" * 200_000, End.KEEP]))
    with ChatPool(1, base_url=server.url) as pool:
        transport, scope = pool._engine()._core.transport, CancelScope()
        scope.begin(float("inf"))
        reply = transport.send("/v1/chat/completions", b'{"messages": [{"content": "long"}]}', scope)
    assert (reply.status, len(reply.body)) == (status, 200_000)


# Malformed chunks.


@pytest.mark.parametrize("size", [b"-5", b"+5", b"0x5", b"1_0", b"", b" ", b"5 5", b"g", b"-0", b"f" * 16, b"\xb2"])
def test_chunk_size_that_is_none(server, pool, size):
    """The reply is broken: asked again, and nobody else is concerned."""
    result = ask_odd(server, pool, CHUNKED + size + b"\r\nabcdefgh\r\n0\r\n\r\n", End.KEEP)
    assert (type(result.error), result.error.code, result.attempts) == (APIConnectionError, "incomplete_read", 2)


def test_one_malformed_reply_of_forty(server, way):
    server.script("odd", Raw([CHUNKED + b"-5\r\nabc\r\n0\r\n\r\n", End.KEEP]))
    prompts = [str(n) for n in range(39)]
    with ChatPool(8, base_url=server.url, max_tries=3, max_wait=0.01) as pool:
        answers = pool.map(["odd", *prompts])
    assert answers == [None, *prompts]
    assert answers.results[0].attempts == 3


def test_chunk_longer_than_its_size(server, pool):
    result = ask_odd(server, pool, CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n", End.KEEP)
    assert (result.error.code, result.attempts) == ("incomplete_read", 2)


# Without end.

ENDLESS = {
    "chunk size": [CHUNKED, b"0" * 2**20],
    "chunk extension": [CHUNKED, b"5;a=", MEGABYTE],
    "trailer line": [CHUNKED, b"0\r\nX: ", MEGABYTE],
    "trailers": [CHUNKED, b"0\r\n", b"X-Trailer: 1\r\n" * 2**16],
    "header line": [OK, b"X: ", MEGABYTE],
    "headers": [OK, b"X-Header: 1\r\n" * 2**16],
    "malformed header lines": [OK, b"no header\r\n" * 2**16],
    "blanks before a colon": [OK, b" " * 2**20],
    "status line": [b"HTTP/1.1 200 ", MEGABYTE],
    "100 Continue": [b"HTTP/1.1 100 Continue\r\n\r\n" * 2**15],
    "102 Processing": [b"HTTP/1.1 102 Processing\r\n\r\n" * 2**15],
    "100 Continue with headers": [b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n" * 2**15],
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless(server, way, kind):
    """Cut after a small part of it: neither the memory nor the read limit is needed to end it."""
    *start, more = ENDLESS[kind]
    server.script("odd", Raw([*start, *[more] * 200, End.CLOSE]))
    before = peak_megabytes()
    with ChatPool(1, base_url=server.url, max_tries=1, timeout=(1, 20)) as pool:
        result = pool.submit("odd").result(30)
        assert isinstance(result.error, APIConnectionError), result
        assert not isinstance(result.error, APITimeoutError)
        assert pool.map(["a", "b"]) == ["a", "b"]
    assert result.elapsed < 5
    assert peak_megabytes() - before < 50


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# Compressed.


def bomb(megabytes, bits=31):
    press = zlib.compressobj(9, zlib.DEFLATED, bits)
    return b"".join(press.compress(b" " * 2**20) for _ in range(megabytes)) + press.flush()


@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"deflate", b"gzip, gzip", b"GZIP,br", b"compress", b"\x1b[31mx"])
def test_encoding_that_was_not_asked_for(server, pool, encoding):
    """It is refused before a byte is unpacked; gzip alone is understood."""
    result = ask_odd(server, pool, encoded(encoding, b"these bytes cannot be unpacked"), End.KEEP)
    assert (type(result.error), result.error.code, result.attempts) == (InvalidResponseError, "bad_encoding", 2)
    assert "not asked for" in str(result.error)
    assert "\x1b" not in str(result.error)


@pytest.mark.parametrize(
    "make", [lambda: (b"gzip, gzip", gzip.compress(bomb(400))), lambda: (b"deflate", bomb(400, 15))]
)
def test_bombs_that_are_refused(server, pool, make):
    result = ask_odd(server, pool, encoded(*make()), End.KEEP)
    assert result.error.code == "bad_encoding"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_bomb_of_gzip(server, pool, is_chunked):
    """64 MiB of it are unpacked, in pieces, and none is kept."""
    data = bomb(400)
    reply = encoded(b"gzip", data)
    if is_chunked:
        reply = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"%x\r\n" % len(data) + data
    before = peak_megabytes()
    result = ask_odd(server, pool, reply, End.KEEP)
    assert (type(result.error), result.error.code, result.error.status_code) == (InvalidResponseError, "too_large", 200)
    assert peak_megabytes() - before < 200


def test_bomb_that_a_hook_unpacks(server, way):
    """Also where a Session's hook reads the body before us, it is bounded."""
    server.script("odd", Raw([encoded(b"gzip", bomb(400)), End.CLOSE]))
    with requests.Session() as session:
        session.hooks["response"].append(lambda response, **_: response.content)
        with ChatPool(1, base_url=server.url, session=session, max_tries=1, timeout=(1, 20)) as pool:
            error = pool.submit("odd").result(30).error
    assert (type(error), error.code) == (InvalidResponseError, "too_large")


@pytest.mark.parametrize("encoding", [b"br", b"gzip"])
def test_status_counts_whatever_the_encoding(server, pool, encoding):
    """A wrong key is one, though its explanation cannot be unpacked."""
    reply = encoded(encoding, b"not of that kind").replace(b"200 OK", b"401 X")
    server.script("odd", Raw([reply, End.KEEP]))
    assert isinstance(pool.submit("odd").result(10).error, AuthenticationError)


# Sent twice.


class Echoing:
    """Sends each reply twice, the second time so many seconds later."""

    def __init__(self, delay):
        self.delay = delay

    def __call__(self, request):
        steps = Reply().steps(request)
        return Raw([steps[0], self.delay, steps[0], End.KEEP] if self.delay else [steps[0] * 2, End.KEEP])


@pytest.mark.parametrize("delay", [0, 0.0001, 0.002, 0.01])
def test_reply_that_is_sent_twice(way, delay):
    """No prompt gets the answer to another one."""
    prompts = [str(number) for number in range(200)]
    with (
        FakeChatServer(reply=Echoing(delay)) as server,
        ChatPool(4, base_url=server.url, max_wait=0.01, max_tries=2) as pool,
    ):
        answers = pool.map(prompts)
    wrong = [(asked, answer) for asked, answer in zip(prompts, answers) if answer not in (asked, None)]
    assert wrong == []
    assert answers == prompts


@pytest.mark.parametrize("head", [b"", b"X-Request-Id: constant\r\n"])
def test_server_that_always_replies_the_same(server, way, head):
    """As mocks do: once it has shown that, by the first reply of a second connection, it is believed."""
    server._reply = lambda request: Raw([OK + LENGTH + head + b"\r\n" + BODY, End.KEEP])
    prompts = [str(number) for number in range(50)]
    with ChatPool(1, base_url=server.url, max_wait=0.01) as pool:
        assert pool.map(prompts) == ["well"] * 50
    assert server.connections == 2
    assert len(server.requests) == 51


def test_same_prompt_and_same_reply(server, way):
    """It is the answer, whichever request it belongs to."""
    server._reply = lambda request: Raw([OK + LENGTH + b"\r\n" + BODY, End.KEEP])
    with ChatPool(1, base_url=server.url) as pool:
        assert pool.map(["a"] * 20) == ["well"] * 20
    assert len(server.requests) == 20


# Hang-ups.


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
@pytest.mark.parametrize(
    ("steps", "requests"), [([], 2), ([0.5], 1), ([OK + b"Content-Length: 9\r\n\r\nhalf", 0.02], 1)]
)
def test_kept_connection_that_is_lost(server, way, steps, requests, end):
    """At once: the server had closed it as it was idle, and a fresh one costs no try. Later, or in the reply: it failed."""
    server.script("odd", Raw([*steps, end]))
    with ChatPool(1, base_url=server.url, max_tries=1) as pool:
        assert pool.map(["a"]) == ["a"]
        (result,) = pool.map(["odd"]).results
    assert result.attempts == requests
    assert result.error.code in ("connection_failed", "incomplete_read")
