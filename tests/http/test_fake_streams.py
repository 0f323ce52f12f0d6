"""The real client reads the fake server's streams: the same answers as without, and broken streams are retried."""

from __future__ import annotations

import dataclasses

import pytest

from chatpool import APIConnectionError, APITimeoutError, ChatPool, InternalServerError
from chatpool.testing import FakeChatServer, Reply, Stream

IDLE = 0.3  # seconds
CALLS = [
    {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima", "days": 3}'}},
    {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
]
LOGPROBS = {
    "content": [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in ("p", "ong")],
    "refusal": None,
}


def choice(text, index=0, **fields):
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "finish_reason": "stop", **fields}


def completion(*choices):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return Reply(body={"id": "c", "object": "chat.completion", "model": "m", "choices": list(choices), "usage": usage})


ANSWERS = {
    "content": Reply("To be, or not to be"),
    "text outside ASCII": Reply("déjà 🦜 vu"),
    "tool calls": Reply(message={"content": None, "tool_calls": CALLS}, finish_reason="tool_calls"),
    "content and tool calls": Reply("Let me look.", message={"tool_calls": CALLS}, finish_reason="tool_calls"),
    "reasoning": Reply("It is 42", message={"reasoning_content": "six times seven"}),
    "refusal": Reply(message={"content": None, "refusal": "I will not"}),
    "length": Reply("half of", finish_reason="length"),
    "usage": Reply("pong", usage={"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}),
    "logprobs": completion(choice("pong", logprobs=LOGPROBS)),
    "several choices": completion(choice("a b c"), choice("d", 1, finish_reason="length")),
}
STREAMS = {
    "plain": Stream(),
    "CR LF": Stream(newline="\r\n"),
    "gzip": Stream(gzip=True),
    "comments": Stream(first_token=0.03, comments_every=0.01),
    "without chunks": Stream(chunked=False),
}


def ask(server, **settings):
    """Return the result of the prompt "ping"."""
    with ChatPool(1, base_url=server.url, max_wait=0.01, **settings) as pool:
        return pool.map(["ping"]).results[0]


def without_null_fields(value):
    """Leave out fields that are null or empty, and those that differ from reply to reply."""
    if isinstance(value, dict):
        kept = {name: without_null_fields(part) for name, part in value.items() if name not in ("id", "created")}
        return {name: part for name, part in kept.items() if part not in (None, {}, [])}
    return [without_null_fields(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", ANSWERS)
def test_a_streamed_answer_equals_the_whole_one(server, name):
    server.script("ping", ANSWERS[name])
    whole, streamed = ask(server), ask(server, idle_timeout=5)
    assert [bool(request.body.get("stream")) for request in server.requests] == [False, True]
    assert without_null_fields(streamed.response) == without_null_fields(whole.response)
    for field in ("value", "text", "reasoning", "usage", "finish_reason", "is_truncated", "attempts"):
        assert getattr(streamed, field, None) == getattr(whole, field, None), field
    assert type(streamed.error) is type(whole.error)


@pytest.mark.parametrize("name", STREAMS)
def test_the_shape_of_the_stream_does_not_matter(server, name):
    server.script("ping", Reply("To be, or not to be", stream=STREAMS[name]))
    result = ask(server, idle_timeout=5)
    assert (result.text, result.finish_reason, result.attempts) == ("To be, or not to be", "stop", 1)


BROKEN = {
    "a stall": (Stream(stall_after=3), APITimeoutError, "idle_timeout"),
    "a cut": (Stream(cut_after=3), APIConnectionError, None),
    "a reset": (Stream(reset_after=3, tokens_per_second=200), APIConnectionError, None),
    "an error event": (Stream(error_after=3), InternalServerError, "server_error"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_retried(server, name):
    server.script("ping", Reply("one two three", stream=BROKEN[name][0]), Reply("whole"))
    result = ask(server, idle_timeout=IDLE)
    assert (result.text, result.attempts) == ("whole", 2)


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_that_is_always_broken_is_an_error(server, name):
    broken, kind, code = BROKEN[name]
    server.script("ping", Reply("one two three", stream=broken))
    result = ask(server, idle_timeout=IDLE, max_tries=2)
    assert isinstance(result.error, kind)
    assert code is None or result.error.code == code
    assert server.count("ping") == 2


def test_the_server_notices_that_a_stall_was_cut(server):
    server.script("ping", Reply("one two three", stream=Stream(stall_after=3)), Reply("whole"))
    ask(server, idle_timeout=IDLE)
    first, second = server.requests
    assert first.wait_until_cancelled(5)
    assert not second.cancelled


def test_a_stream_without_a_finish_reason_or_done_is_retried(server):
    server.script("ping", Reply("one two", stream=Stream(finish=False, done=False)), Reply("whole"))
    assert ask(server, idle_timeout=5).attempts == 2


def test_a_slow_answer_outlasts_the_idle_timeout(server):
    """Forty-one words at twenty a second take two seconds: longer than the idle timeout, but no pause does."""
    server.script("ping", Reply("x " * 40 + "x", stream=Stream(tokens_per_second=20)))
    result = ask(server, idle_timeout=1.5)
    assert (result.finish_reason, result.attempts) == ("stop", 1)
    assert result.elapsed >= 2


def test_a_server_that_refuses_stream_options_is_asked_without_them():
    with FakeChatServer(stream_options=False) as server:
        assert ask(server, idle_timeout=5).text == "ping"
        refused, taken = server.requests
    assert "stream_options" in refused.body
    assert (taken.body["stream"], "stream_options" in taken.body) == (True, False)


def test_a_server_that_ignores_stream_is_understood():
    with FakeChatServer(stream=False) as server:
        assert ask(server, idle_timeout=5).text == "ping"


# pool.stream


@pytest.fixture
def pool(server):
    with ChatPool(1, base_url=server.url, max_wait=0.01, idle_timeout=IDLE) as pool:
        yield pool


def test_pieces_add_up_to_the_answer(server, pool):
    server.script("ping", Reply("to be or not", message={"reasoning_content": "that is the question"}))
    answer = pool.stream("ping")
    assert list(answer) == ["to", " be", " or", " not"]
    whole = pool.map(["ping"]).results[0]
    assert (answer.text, answer.result.usage, answer.result.finish_reason) == (whole.text, whole.usage, "stop")
    assert answer.result.reasoning == whole.reasoning == "that is the question"


@pytest.mark.parametrize("name", BROKEN)
def test_a_break_before_the_first_piece_is_retried(server, pool, name):
    broken = BROKEN[name][0]
    fields = ("stall_after", "cut_after", "reset_after", "error_after")
    earlier = {field: 1 for field in fields if getattr(broken, field) is not None}
    server.script("ping", Reply("one two", stream=dataclasses.replace(broken, **earlier)), Reply("whole"))
    assert "".join(pool.stream("ping")) == "whole"


@pytest.mark.parametrize("name", BROKEN)
def test_a_break_after_the_first_piece_is_raised(server, pool, name):
    broken, kind, _ = BROKEN[name]
    server.script("ping", Reply("one two three", stream=broken))
    answer = pool.stream("ping")
    with pytest.raises(kind) as caught:
        list(answer)
    assert caught.value.text == answer.text == "one two"
    assert server.count("ping") == 1


def test_a_closed_stream_is_seen_by_the_server(server, pool):
    server.script("ping", Reply("one two three", stream=Stream(tokens_per_second=0.1)))
    answer = pool.stream("ping")
    assert next(answer) == "one"
    answer.close()
    assert server.requests[0].wait_until_cancelled(5)
