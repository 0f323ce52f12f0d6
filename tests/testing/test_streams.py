"""Streamed replies of the fake server, read with plain sockets and requests."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time

import pytest
import requests
import trustme

from chatpool.testing import FakeChatServer, Raw, Reply, Stream
from tests.conftest import wait_until

ASK = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "ping"}]}
WITH_USAGE = {**ASK, "stream_options": {"include_usage": True}}
LONG = "one two three four five six"


def post(server, body=ASK, **options):
    return requests.post(f"{server.url}/chat/completions", json=body, **{"timeout": 10, **options})


def data_of(text):
    """Return the data of each event; chunks are parsed."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def stream(server, reply, body=ASK):
    server.script("ping", reply)
    return data_of(post(server, body).content.decode())


def choices(events):
    return [choice for event in events if event != "[DONE]" for choice in event["choices"]]


def pieces(events, name="content", index=0):
    deltas = [choice["delta"] for choice in choices(events) if choice["index"] == index]
    return [delta[name] for delta in deltas if delta.get(name)]


def connect(server, body=ASK):
    """Send a request on a plain socket."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    data = json.dumps(body).encode()
    sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
    return sock


def read_until(sock, mark):
    received = b""
    while mark not in received:
        data = sock.recv(65536)
        assert data, received
        received += data
    return received


# The shape of a stream.


def test_a_stream_begins_with_the_role_and_ends_with_a_finish_reason_and_done(server):
    first, *middle, last, done = stream(server, Reply("to be or not"))
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert pieces(middle) == ["to", " be", " or", " not"]
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert done == "[DONE]"
    assert {(event["object"], event["id"], event["model"]) for event in [first, *middle, last]} == {
        ("chat.completion.chunk", "chatcmpl-req_0", "m")
    }
    assert not any("usage" in event for event in [first, *middle, last])


def test_headers_are_those_of_server_sent_events(server):
    reply = post(server)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["transfer-encoding"] == "chunked"
    assert reply.headers["x-request-id"] == "req_0"


def test_usage_comes_in_a_chunk_without_choices_if_it_is_asked_for(server):
    *chunks, usage, done = stream(server, Reply("pong"), WITH_USAGE)
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    assert all(chunk["usage"] is None for chunk in chunks)
    assert done == "[DONE]"


def test_text_outside_ascii_is_sent_as_utf_8(server):
    server.script("ping", Reply("déjà 🦜 vu"))
    reply = post(server)
    assert "🦜".encode() in reply.content
    assert "".join(pieces(data_of(reply.content.decode()))) == "déjà 🦜 vu"


@pytest.mark.parametrize("text", ["", " ", "  two  spaces \n", "half \ud83d pair", "x" * 100])
def test_pieces_add_up_to_the_text(server, text):
    assert "".join(pieces(stream(server, Reply(text)))) == text


def test_reasoning_comes_before_the_content(server):
    events = stream(server, Reply("It is 42", message={"reasoning_content": "six times seven"}))
    names = [name for choice in choices(events) for name in choice["delta"] if name != "role"]
    assert names == ["content", *["reasoning_content"] * 3, *["content"] * 3]
    assert "".join(pieces(events, "reasoning_content")) == "six times seven"


def test_a_refusal_is_streamed_in_pieces(server):
    events = stream(server, Reply(message={"content": None, "refusal": "I will not"}))
    assert pieces(events, "refusal") == ["I", " will", " not"]
    assert choices(events)[0]["delta"]["content"] is None


CALLS = [
    {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima", "days": 3}'}},
    {"id": "call_1", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}},
]


def test_tool_calls_begin_with_id_and_name_and_go_on_with_arguments(server):
    events = stream(server, Reply(message={"content": None, "tool_calls": CALLS}, finish_reason="tool_calls"))
    deltas = [call for calls in pieces(events, "tool_calls") for call in calls]
    first, *others = [delta for delta in deltas if delta["index"] == 0]
    assert first == {
        "index": 0,
        "id": "call_0",
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert len(others) > 1
    assert "".join(delta["function"]["arguments"] for delta in others) == CALLS[0]["function"]["arguments"]
    custom = [delta["custom"] for delta in deltas if delta["index"] == 1]
    assert custom == [{"name": "shell", "input": ""}, {"input": "ls"}, {"input": " -l"}]
    assert choices(events)[-1]["finish_reason"] == "tool_calls"


def test_each_token_has_its_log_probability(server):
    entries = [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in ("p", "ong")]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "pong"},
        "logprobs": {"content": entries, "refusal": None},
        "finish_reason": "stop",
    }
    events = stream(server, Reply(body={"choices": [choice]}))
    found = [(choice["delta"]["content"], choice["logprobs"]) for choice in choices(events) if choice["logprobs"]]
    assert found == [(entry["token"], {"content": [entry], "refusal": None}) for entry in entries]


def test_several_choices_alternate(server):
    both = [{"index": i, "message": {"content": text}, "finish_reason": "stop"} for i, text in enumerate(["a b", "c"])]
    events = stream(server, Reply(body={"choices": both}))
    assert [choice["index"] for choice in choices(events)] == [0, 1, 0, 1, 0, 1, 0]
    assert (pieces(events), pieces(events, index=1)) == (["a", " b"], ["c"])


def test_fields_that_only_some_providers_have_are_kept(server):
    choice = {"index": 0, "message": {"content": "a", "annotations": [1]}, "finish_reason": "stop", "matched_stop": 2}
    events = stream(server, Reply(body={"choices": [choice], "system_fingerprint": "fp"}))
    assert all(event["system_fingerprint"] == "fp" for event in events[:-1])
    assert pieces(events, "annotations") == [[1]]
    assert choices(events)[-1]["matched_stop"] == 2


@pytest.mark.parametrize("reply", [Reply(status=503), Reply(body="<html>"), Reply(body={"choices": []})])
def test_what_is_no_completion_is_not_streamed(server, reply):
    server.script("ping", reply)
    assert "content-length" in post(server).headers


# Settings of a stream.


@pytest.mark.parametrize("ignores", [lambda: {"stream": False}, lambda: {"reply": lambda request: Reply(stream=False)}])
def test_a_server_may_ignore_stream(ignores):
    with FakeChatServer(**ignores()) as server:
        assert post(server).json()["choices"][0]["message"]["content"] == "ping"


def test_a_server_may_refuse_stream_options():
    with FakeChatServer(stream_options=False) as server:
        refusal = post(server, WITH_USAGE)
        assert refusal.status_code == 400
        assert "stream_options" in refusal.json()["error"]["message"]
        assert data_of(post(server).text)[-1] == "[DONE]"


def test_the_stream_of_a_reply_goes_before_that_of_the_server():
    with FakeChatServer(stream=Stream(done=False)) as server:
        assert "[DONE]" not in stream(server, Reply())
        assert "[DONE]" in stream(server, Reply(stream=Stream()))


def test_finish_reason_usage_and_done_can_be_left_out(server):
    events = stream(server, Reply("pong", stream=Stream(finish=False, usage=False, done=False)), WITH_USAGE)
    assert [choice["finish_reason"] for choice in choices(events)] == [None, None]
    assert events[-1]["choices"]


def test_tokens_per_second_is_a_pace(server):
    """Six words at forty a second: the sixth comes after 0.125 s, though the first comes at once."""
    server.script("ping", Reply(LONG, stream=Stream(tokens_per_second=40)))
    began = time.monotonic()
    moments = [time.monotonic() for line in post(server, stream=True).iter_lines() if b'"content":' in line]
    assert len(moments) == 7
    assert moments[0] < moments[-1]
    assert moments[-1] - began >= 0.125


def test_first_token_and_comments_come_before_the_first_event(server):
    """At 0, 0.1 and 0.2 s; the first event after 0.25 s."""
    server.script("ping", Reply(stream=Stream(first_token=0.25, comments_every=0.1)))
    lines = [line for line in post(server).text.splitlines() if line]
    assert lines[:3] == [": keep-alive"] * 3
    assert lines[3].startswith("data: ")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_three_ways(server, newline):
    server.script("ping", Reply(stream=Stream(newline=newline)))
    content = post(server).content.decode()
    assert content.endswith(f"data: [DONE]{newline}{newline}")
    assert set(content) & {"\r", "\n"} == set(newline)


def test_gzip(server):
    server.script("ping", Reply(LONG, stream=Stream(gzip=True, tokens_per_second=1000)))
    reply = post(server)
    assert reply.headers["content-encoding"] == "gzip"
    assert "".join(pieces(data_of(reply.text))) == LONG


def test_without_chunks_the_end_of_the_connection_is_the_end(server):
    server.script("ping", Reply("pong", stream=Stream(chunked=False)))
    with connect(server) as sock, sock.makefile("rb") as reader:
        head, body = reader.read().split(b"\r\n\r\n", 1)
    assert b"Transfer-Encoding" not in head
    assert data_of(body.decode())[-1] == "[DONE]"


def test_connections_are_kept_open_after_a_stream(server):
    with requests.Session() as session:
        for _ in range(3):
            assert session.post(f"{server.url}/chat/completions", json=ASK, timeout=5).text.endswith("[DONE]\n\n")
    assert server.connections == 1


# Broken streams.


def test_cut_after_closes_without_the_last_chunk(server):
    server.script("ping", Reply(LONG, stream=Stream(cut_after=3)))
    with connect(server) as sock, sock.makefile("rb") as reader:
        received = reader.read()
    assert received.count(b"data: ") == 3
    assert not received.endswith(b"0\r\n\r\n")


def test_cut_after_0_sends_only_headers(server):
    server.script("ping", Reply(LONG, stream=Stream(cut_after=0)))
    with connect(server) as sock, sock.makefile("rb") as reader:
        assert reader.read().endswith(b"\r\n\r\n")


def test_reset_after_resets(server):
    server.script("ping", Reply(LONG, stream=Stream(reset_after=2, tokens_per_second=100)))
    with connect(server) as sock, pytest.raises(ConnectionResetError):
        while sock.recv(65536):
            pass


def test_error_after_sends_an_error_and_ends_the_stream(server):
    *chunks, error = stream(server, Reply(LONG, stream=Stream(error_after=2)))
    assert len(chunks) == 2
    assert error["error"]["type"] == "server_error"


def test_the_error_can_be_set(server):
    error = {"error": {"code": 429, "message": "Rate limit exceeded"}}
    assert stream(server, Reply(LONG, stream=Stream(error_after=0, error=error))) == [error]


def test_stall_after_is_silence(server):
    server.script("ping", Reply(LONG, stream=Stream(stall_after=2)))
    with connect(server) as sock:
        assert read_until(sock, b'"one"').count(b"data: ") == 2
        sock.settimeout(0.2)
        with pytest.raises(socket.timeout):
            sock.recv(1)


def test_comments_go_on_in_a_stall(server):
    server.script("ping", Reply(LONG, stream=Stream(stall_after=2, comments_every=0.02)))
    with connect(server) as sock:
        received = read_until(sock, b'"one"')
        while received.count(b": keep-alive") < 5:
            received += sock.recv(65536)
    assert received.count(b"data: ") == 2


@pytest.mark.parametrize("fault", ["truncate", "stall_midway", "reset_midway", "drip"])
def test_faults_hold_for_streams(server, fault):
    server.script("ping", Reply("pong", fault=fault))
    with connect(server) as sock:
        assert b"text/event-stream" in read_until(sock, b"data: " if fault != "drip" else b"\r\n\r\n")


def test_a_stream_breaks_off_once():
    with pytest.raises(ValueError, match="give one of stall_after, cut_after"):
        Stream(stall_after=1, cut_after=2)


@pytest.mark.parametrize("name", ["tokens_per_second", "comments_every"])
def test_a_pace_is_more_than_0(name):
    with pytest.raises(ValueError, match=f"{name} must be more than 0, not 0"):
        Stream(**{name: 0})


def test_a_reply_has_either_a_fault_or_a_stream():
    with pytest.raises(ValueError, match="fault or stream"):
        Reply(fault="stall", stream=Stream())


# Clients that leave, and servers that close.

WAITING = {
    "pace": Reply(LONG, stream=Stream(tokens_per_second=0.5)),
    "stall": Reply(LONG, stream=Stream(stall_after=1)),
    "comments": Reply(LONG, stream=Stream(stall_after=1, comments_every=0.05)),
    "delay": Reply(LONG, delay=60),
    "plain stall": Reply(fault="stall_midway"),
    "raw": Raw([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 60.0]),
}


@pytest.mark.parametrize("name", WAITING)
def test_a_request_is_cancelled_when_its_client_leaves(server, name):
    server.script("ping", WAITING[name])
    with connect(server):
        assert wait_until(lambda: server.requests)
    (request,) = server.requests
    assert request.wait_until_cancelled(5)
    assert wait_until(lambda: server.open_connections == 0)


def test_a_request_is_not_cancelled_when_its_client_stays(server):
    post(server)
    server.script("ping", Reply(LONG, stream=Stream(cut_after=1)))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        post(server)
    assert [request.cancelled for request in server.requests] == [False, False]
    assert not server.requests[0].wait_until_cancelled(0.02)


def test_a_client_leaves_a_tls_connection():
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with FakeChatServer(tls=context, reply=lambda request: WAITING["pace"]) as server:
        with trust.wrap_socket(connect_plainly(server), server_hostname="localhost") as sock:
            data = json.dumps(ASK).encode()
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
            read_until(sock, b'"one"')
            assert not server.requests[0].cancelled
        assert server.requests[0].wait_until_cancelled(5)


def connect_plainly(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


@pytest.mark.parametrize("name", WAITING)
def test_close_ends_a_waiting_reply_at_once(name):
    server = FakeChatServer().start()
    server.script("ping", WAITING[name])
    with connect(server) as sock:
        assert wait_until(lambda: server.requests)
        began = time.monotonic()
        server.close()
        while sock.recv(65536):
            pass
        assert time.monotonic() - began < 1
    assert wait_until(lambda: not server_threads(), 1)
    assert not server.requests[0].cancelled


def server_threads():
    return [thread for thread in threading.enumerate() if thread.name == "fake-chat-server"]


def test_a_pipelined_request_waits_for_its_turn(server):
    """A client that sends its next request early has not left."""
    server.script("ping", Reply("pong", stream=Stream(tokens_per_second=50)))
    with connect(server) as sock:
        data = json.dumps(ASK).encode()
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data))
        received = read_until(sock, b"[DONE]")
        while received.count(b"[DONE]") < 2:
            received += sock.recv(65536)
