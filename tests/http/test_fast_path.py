"""The fast path and the libraries give the same results, whatever a server sends and in whatever pieces."""

from __future__ import annotations

import http.client

import pytest
import requests

import chatpool._http.pools
from chatpool import ChatPool
from chatpool._http.fast_path import build_head, is_enabled, receive_rest
from chatpool.testing import FakeChatServer, Raw

BODY = b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
REPLIES = {
    "plain": b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "no reason": b"HTTP/1.1 200\r\n" + LENGTH + b"\r\n" + BODY,
    "many headers": b"HTTP/1.1 200 OK\r\nx-request-id:  r1 \r\nX-A: 1\r\nx-a: 2\r\n" + LENGTH + b"X-B:\r\n\r\n" + BODY,
    "connection: close": b"HTTP/1.1 200 OK\r\nConnection: Close\r\n" + LENGTH + b"\r\n" + BODY,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "line feeds alone": (b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + BODY,
    "folded header": b"HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\n" + LENGTH + b"\r\n" + BODY,
    "two lengths alike": b"HTTP/1.1 200 OK\r\n" + LENGTH + LENGTH + b"\r\n" + BODY,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "chunked, with a length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    + LENGTH
    + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "until the end": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY,
    "102 first": b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "103 with headers first": b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "cut in the body": b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY[:-9],
    "cut in the head": b"HTTP/1.1 200 OK\r\nConte",
    "400": b"HTTP/1.1 400 Bad\r\nContent-Length: 33\r\n\r\n" + b'{"error": {"message": "too long"}',
    "204": b"HTTP/1.1 204 Nothing\r\nContent-Length: 0\r\n\r\n",
    "302": b"HTTP/1.1 302 There\r\nLocation: http://evil.test/x\r\nContent-Length: 0\r\n\r\n",
    "length no number": b"HTTP/1.1 200 OK\r\nContent-Length: 7x\r\n\r\n" + BODY,
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "bytes beyond": b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY + b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
}


def outcome(raw, step):
    """Answer one prompt with these bytes, so many at a time, and the next with another text; return the outcome of the first."""
    pieces = [raw[start : start + step] for start in range(0, len(raw), step)]
    with FakeChatServer() as server:
        server.script("odd", Raw([piece for part in pieces for piece in (part, 0.0005)]))
        with ChatPool(1, base_url=server.url, max_tries=2, max_wait=0.01) as pool:
            odd, next_one = pool.map(["odd", "next"]).results
    assert next_one.value == "next"
    return (
        type(odd.error),
        odd.error and (odd.error.code, odd.error.status_code, str(odd.error)),
        odd.value,
        odd.request_id,
    )


@pytest.mark.parametrize("step", [10_000, 7])
@pytest.mark.parametrize("kind", REPLIES)
def test_both_paths_see_the_same(kind, step, monkeypatch):
    here = outcome(REPLIES[kind], step)
    monkeypatch.setattr(chatpool._http.pools, "is_enabled", lambda: False)
    assert here == outcome(REPLIES[kind], step)


def test_simple_replies_are_read_here_and_others_are_not():
    """Of the others no byte is lost."""
    simple = {"plain", "no reason", "many headers", "connection: close", "400", "302", "bytes beyond"}
    for kind, raw in REPLIES.items():
        reply = receive_rest(raw, lambda size: b"")
        assert (reply != raw) is (kind in simple), kind
        assert reply == raw or reply.is_last is (kind in {"connection: close", "bytes beyond"}), kind


def test_headers_of_one_name_are_joined():
    reply = receive_rest(REPLIES["many headers"], lambda size: b"")
    assert reply.headers["X-A"] == "1, 2"
    assert reply.headers["X-Request-Id"] == "r1"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb", "\u20ac"])
def test_header_that_would_break_out_is_left_to_http_client(value):
    """It refuses those."""
    assert build_head("POST", "/v1/chat/completions", {"Host": "h", "Content-Length": "1", "X": value}) is None


needs_fast_path = pytest.mark.skipif(not is_enabled(), reason="urllib3 1.26 has no fast path")


@needs_fast_path
@pytest.mark.parametrize("name", ["putrequest", "getresponse"])
def test_a_tool_that_watches_http_client_sees_every_call(server, pool, monkeypatch, name):
    """As Sentry does."""
    seen, original = [], getattr(http.client.HTTPConnection, name)
    monkeypatch.setattr(http.client.HTTPConnection, name, lambda *a, **k: seen.append(name) or original(*a, **k))
    assert pool.map(["a"] * 10) == ["a"] * 10
    assert len(seen) == 10


@needs_fast_path
def test_hooks_and_adapters_see_a_whole_response(server):
    """A Session's hook finds all that it finds in a response of requests itself."""
    seen = []
    with requests.Session() as session:
        session.hooks["response"].append(lambda response, **_: seen.append(response))
        with ChatPool(1, base_url=server.url, session=session) as pool:
            assert pool.map(["a"]) == ["a"]
    (response,) = seen
    assert (response.status_code, response.reason, response.ok, response.encoding) == (200, "Fake", True, "utf-8")
    assert response.json()["choices"][0]["message"]["content"] == "a"
    assert b"".join(response.iter_content(10)) == response.content == response.text.encode()
    assert response.url == response.request.url == server.url + "/chat/completions"
    assert response.raw.status == 200
    assert response.elapsed.total_seconds() > 0
