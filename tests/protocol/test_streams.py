"""A streamed answer becomes the reply that the server would have sent without streaming."""

from __future__ import annotations

import json

import pytest

from chatpool import BadRequestError, CallError, InternalServerError
from chatpool._protocol.requests import UNSTREAMED, WITH_USAGE, WITHOUT_USAGE, streamed
from chatpool._protocol.streams import StreamedAnswer, is_event_stream, level_below
from chatpool._protocol.usage import read_usage


def assemble(*chunks, end=True, **callbacks):
    """Return the answer that these chunks make."""
    answer = StreamedAnswer(**callbacks)
    for chunk in chunks:
        data = chunk if isinstance(chunk, str) else json.dumps(chunk)
        answer.feed(f"data: {data}\n\n".encode())
    if end:
        answer.end()
    return answer


def reply_of(*chunks):
    return assemble(*chunks).reply(200, {}, str, "")


def message_of(*deltas, reason="stop"):
    """Return the message and the finish reason that these deltas make."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    (choice,) = reply_of(*chunks, last, "[DONE]").document["choices"]
    assert choice["finish_reason"] == reason
    return choice["message"]


def call(index=None, call_id=None, name=None, arguments=None, **more):
    """Return a delta with a piece of a tool call."""
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not None}
    fields = {"index": index, "id": call_id, "function": function, **more}
    return {"tool_calls": [{key: value for key, value in fields.items() if value not in (None, {})}]}


def test_openais_example():
    """The chunks of OpenAI's API reference, with usage in the last one."""
    head = {
        "id": "chatcmpl-123", "object": "chat.completion.chunk", "created": 1694268190, "model": "gpt-4o-mini",
        "service_tier": "default", "system_fingerprint": "fp_44709d6fcb", "obfuscation": "xxYQ",
    }  # fmt: skip
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    deltas = [({"role": "assistant", "content": "", "refusal": None}, None), ({"content": "Hello"}, None), ({}, "stop")]
    chunks = [
        {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], "usage": None}
        for delta, reason in deltas
    ]
    assert reply_of(*chunks, {**head, "choices": [], "usage": usage}, "[DONE]").document == {
        "id": "chatcmpl-123", "object": "chat.completion", "created": 1694268190, "model": "gpt-4o-mini",
        "service_tier": "default", "system_fingerprint": "fp_44709d6fcb",
        "choices": [
            {
                "index": 0, "message": {"role": "assistant", "content": "Hello", "refusal": None}, "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
    }  # fmt: skip


TEXT = {"role": "assistant", "content": "ab"}
ONE_CALL = [{"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
TWO_CALLS = [*ONE_CALL, {"id": "call_2", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
MESSAGES = {
    "text": ([{"role": "assistant"}, {"content": "a"}, {"content": "b"}], TEXT),
    "the role in each chunk": ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], TEXT),
    "no role at all": ([{"content": "a"}, {"content": "b"}], TEXT),
    "refusal": (
        [{"role": "assistant", "content": None, "refusal": ""}, {"refusal": "I ca"}, {"refusal": "n't"}],
        {"role": "assistant", "content": None, "refusal": "I can't"},
    ),
    "reasoning of DeepSeek and others": (
        [{"reasoning_content": "hm"}, {"reasoning_content": "m"}, {"content": "ab", "reasoning_content": None}],
        {**TEXT, "reasoning_content": "hmm"},
    ),
    "reasoning of OpenRouter": (
        [
            {"content": "", "reasoning": "h", "reasoning_details": [_ := {"type": "reasoning.text", "text": "h", "index": 0, "format": "x"}]},
            {"content": "", "reasoning": "m", "reasoning_details": [{**_, "text": "m"}]},
            {"content": "ab"},
        ],
        {**TEXT, "reasoning": "hm", "reasoning_details": [{**_, "text": "hm"}]},
    ),
    "a tool call": (
        [
            call(0, "call_1", "add", "", type="function"),
            call(0, arguments='{"a"'),
            call(0, arguments=": 1}"),
        ],
        {"role": "assistant", "content": None, "tool_calls": ONE_CALL},
    ),
    "two tool calls, their pieces mixed": (
        [
            call(0, "call_1", "add", "", type="function"),
            call(1, "call_2", "add", "{", type="function"),
            call(0, arguments='{"a": 1}'),
            call(1, arguments="}"),
        ],
        {"role": "assistant", "content": None, "tool_calls": TWO_CALLS},
    ),
    "the second call first": (
        [call(1, "call_2", "add", "{}", type="function"), call(0, "call_1", "add", '{"a": 1}', type="function")],
        {"role": "assistant", "content": None, "tool_calls": TWO_CALLS},
    ),
    "both calls in one chunk, without indexes (Gemini)": (
        [{"tool_calls": TWO_CALLS}],
        {"role": "assistant", "content": None, "tool_calls": TWO_CALLS},
    ),
    "calls without indexes, in pieces": (
        [
            call(None, "call_1", "add", "", type="function"),
            call(arguments='{"a": 1}'),
            call(None, "call_2", "add", "{}", type="function"),
        ],
        {"role": "assistant", "content": None, "tool_calls": TWO_CALLS},
    ),
    "all calls with the index 0": (
        [
            call(0, "call_1", "add", '{"a": 1}', type="function"),
            call(0, "call_2", "add", "{", type="function"),
            call(0, arguments="}"),
        ],
        {"role": "assistant", "content": None, "tool_calls": TWO_CALLS},
    ),
    "id, type and name in each chunk": (
        [
            call(0, "call_1", "add", '{"a"', type="function"),
            call(0, "call_1", "add", ": 1}", type="function"),
        ],
        {"role": "assistant", "content": None, "tool_calls": ONE_CALL},
    ),
    "another id in each chunk (vLLM 0.6)": (
        [call(0, "call_1", "add", '{"a"', type="function"), call(0, "other", arguments=": 1}", type="function")],
        {"role": "assistant", "content": None, "tool_calls": ONE_CALL},
    ),
    "a name in pieces": (
        [call(0, "call_1", "ad", "", type="function"), call(0, None, "d", '{"a": 1}')],
        {"role": "assistant", "content": None, "tool_calls": ONE_CALL},
    ),
    "a function call": (
        [{"content": None, "function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}}],
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
    ),
    "audio": (
        [
            {"audio": {"id": "audio_1", "transcript": "Hel"}},
            {"audio": {"id": "audio_1", "transcript": "lo", "data": "QUJD"}},
            {"audio": {"data": "REVG", "expires_at": 9}},
        ],
        {
            "role": "assistant", "content": None,
            "audio": {"id": "audio_1", "transcript": "Hello", "data": "QUJDREVG", "expires_at": 9},
        },
    ),
    "content in parts (Mistral)": (
        [
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            {"content": "a"},
            {"content": "b"},
        ],
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "ab"],
        },
    ),
    "annotations and images": (
        [{"content": "ab", "annotations": [{"a": 1}]}, {"annotations": [{"a": 2}], "images": [{"index": 0, "b": 1}]}],
        {**TEXT, "annotations": [{"a": 1}, {"a": 2}], "images": [{"index": 0, "b": 1}]},
    ),
    "unknown fields: text is joined, of others the last one counts": (
        [{"content": "ab", "x": "1", "y": 1, "z": {"t": "a", "n": 1}}, {"x": "2", "y": 2, "z": {"t": "b", "n": 2}}],
        {**TEXT, "x": "12", "y": 2, "z": {"t": "ab", "n": 2}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MESSAGES)
def test_message(kind):
    deltas, wanted = MESSAGES[kind]
    assert message_of(*deltas) == wanted


def test_several_choices():
    """Their chunks come mixed; each choice has its own text, finish reason and logprobs."""
    tokens = [{"token": text, "logprob": -0.1, "top_logprobs": []} for text in "abcd"]
    chunks = [
        {"choices": [{"index": index, "delta": {"content": token["token"]}, "logprobs": {"content": [token], "refusal": None}}]}
        for index, token in zip([1, 0, 1, 0], tokens)
    ]  # fmt: skip
    ends = [
        {"choices": [{"index": index, "delta": {}, "finish_reason": reason}]}
        for index, reason in [(0, "stop"), (1, "length")]
    ]
    first, second = reply_of(*chunks, *ends, "[DONE]").document["choices"]
    assert (first["index"], first["message"]["content"], first["finish_reason"]) == (0, "bd", "stop")
    assert (second["index"], second["message"]["content"], second["finish_reason"]) == (1, "ac", "length")
    assert first["logprobs"] == {"content": [tokens[1], tokens[3]], "refusal": None}
    assert second["logprobs"] == {"content": [tokens[0], tokens[2]], "refusal": None}


def test_logprobs_of_a_refusal():
    chunks = [
        {"choices": [{"index": 0, "delta": {"refusal": "x"}, "logprobs": {"content": None, "refusal": [n]}}]}
        for n in (1, 2)
    ]
    assert reply_of(*chunks, "[DONE]").document["choices"][0]["logprobs"] == {"content": None, "refusal": [1, 2]}


@pytest.mark.parametrize(
    "usages",
    [[None, None, 7], [5, 6, 7], [7, None, None], [5, 7, None]],
    ids=["in the last chunk", "in each chunk", "in the first chunk", "null at the end"],
)
def test_usage(usages):
    """The latest report counts: servers that report with each chunk count up."""
    chunks = [
        {"choices": [{"delta": {"content": "x"}}], "usage": total and {"prompt_tokens": 2, "total_tokens": total}}
        for total in usages
    ]
    assert read_usage(reply_of(*chunks, "[DONE]").document).total_tokens == 7
    assert "usage" not in reply_of({"choices": [{"delta": {"content": "x"}}], "usage": None}, "[DONE]").document


USAGE = {"usage": {"total_tokens": 3}}


@pytest.mark.parametrize(
    ("chunks", "is_complete"),
    [
        ([], False),
        (["[DONE]"], False),
        ([{"choices": [{"delta": {"content": "x"}}], **USAGE}, " [DONE] "], True),
        ([{"choices": [{"delta": {"content": "x"}}], **USAGE}], False),
        ([{"choices": []}], False),
        ([{"choices": [{"delta": {"content": "x"}}]}], False),
        ([{"choices": [{"delta": {"content": "x"}}]}, "[DONE]"], False),
        ([{"choices": [{"delta": {}, "finish_reason": "stop"}]}], True),
        ([{"choices": [{"delta": {}, "finish_reason": reason}]} for reason in ("stop", "", None)], True),
        ([{"choices": [{"delta": {}, "finish_reason": "null"}]}], False),
        ([{"choices": [{"delta": {}, "finish_reason": ""}]}], False),
        ([{"choices": [{"index": 0, "finish_reason": "stop"}, {"index": 1, "delta": {"content": "x"}}]}], False),
    ],
)
def test_is_complete(chunks, is_complete):
    """With a finish reason for each choice, or else with usage and [DONE]."""
    assert assemble(*chunks).reply(200, {}, str, "").is_cut_off == (not is_complete)


def test_nothing_counts_after_the_end():
    assert (
        assemble({"choices": [{"delta": {"content": "x"}}]}, "[DONE]", {"choices": [{"delta": {"content": "y"}}]})
        .reply(200, {}, str, "")
        .document["choices"][0]["message"]["content"]
        == "x"
    )


def test_pieces_are_reported_as_they_come():
    """Only text of the first choice; and once, when anything of the answer has come."""
    log = []
    deltas = [
        (0, {"role": "assistant", "content": ""}),
        (0, {"reasoning_content": "hm"}),
        (0, {"content": "a"}),
        (1, {"content": "other"}),
        (0, {"content": [{"type": "text", "text": "b"}, {"type": "thinking", "thinking": "hm"}]}),
        (0, {"content": None}),
    ]
    answer = StreamedAnswer(lambda: log.append("begins"), log.append)
    for index, delta in deltas:
        log.append(len(log))
        answer.feed(b"data: %s\n\n" % json.dumps({"choices": [{"index": index, "delta": delta}]}).encode())
    assert log == [0, 1, "begins", 3, "a", 5, 6, "b", 8]


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": None}, {"choices": {}}, {"choices": [None, 1, "x"]}, {"choices": [{"index": "a", "delta": 3}]},
        {"choices": [{"index": [], "delta": {"tool_calls": 3}}]}, {"choices": [{"delta": {"tool_calls": [None, 1]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": 3}, {"index": 0, "function": {"name": 1}}]}}]},
        {"choices": [{"delta": {"content": 7}}]}, {"choices": [{"delta": {"content": {"text": "x"}}}]},
        {"choices": [{"delta": {"content": "x", "audio": 1}}, {"delta": {"audio": {"id": 3}}}]},
        {"choices": [{"logprobs": 3}, {"logprobs": {"content": 3}}, {"logprobs": {"content": [1]}}]},
        {"choices": [{"delta": {"x": "a"}}, {"delta": {"x": ["b"]}}, {"delta": {"x": {"c": 1}}}, {"delta": {"x": "d"}}]},
        {"usage": 3}, {"id": [1]}, {"object": None}, {}, {"choices": [{"delta": {"role": {}, "tool_calls": {"id": 1}}}]},
        {"choices": [{"delta": {"content": "x"}}, {"delta": {"content": 3}}, {"delta": {"content": [3, None]}}]},
    ],
    ids=str,
)  # fmt: skip
def test_any_chunk_can_be_read(chunk):
    """Whatever a server sends, an answer or an error comes of it, never an exception of ours."""
    reply = reply_of({"choices": [{"delta": {"content": "x"}}]}, chunk, "[DONE]")
    json.dumps(reply.document)
    assert reply.usage is None


@pytest.mark.parametrize("levels", [200, 900, 5000, 100_000])
@pytest.mark.parametrize("level", ["[]", "{}"])
def test_deep_chunks_are_read_or_are_not_valid(levels, level):
    """Never an exception of ours."""
    opening, closing = ("[", "]") if level == "[]" else ('{"a":', "}")
    answer = StreamedAnswer()
    nested = opening * levels + "1" + closing * levels
    answer.feed(f'data: {{"choices": [{{"delta": {{"x": {nested}}}}}]}}\n\ndata: [DONE]\n\n'.encode())
    reply = answer.reply(200, {}, str, "")
    assert (reply.document is None) == (reply.json_error is not None)
    assert reply.json_error is None or "RecursionError" in reply.json_error


def test_long_answers_cost_time_in_proportion():
    """A text of a million pieces is joined once: two minutes otherwise."""
    piece = b'data: {"choices": [{"delta": {"content": "' + b"x" * 10 + b'"}}]}\n\n'
    answer = StreamedAnswer()
    for _ in range(100):
        answer.feed(piece * 1000)
    answer.end()
    assert len(answer.reply(200, {}, str, "").document["choices"][0]["message"]["content"]) == 1_000_000


@pytest.mark.parametrize(
    ("content_type", "is_one"),
    [("text/event-stream", True), ("Text/Event-Stream; charset=utf-8", True), ("application/json", False), ("", False)],
)
def test_is_event_stream(content_type, is_one):
    assert is_event_stream({"content-type": content_type}) is is_one


# Asking for a stream.


@pytest.mark.parametrize(
    ("body", "level", "wanted"),
    [
        ({"a": 1}, WITH_USAGE, {"a": 1, "stream": True, "stream_options": {"include_usage": True}}),
        ({"a": 1}, WITHOUT_USAGE, {"a": 1, "stream": True}),
        ({"a": 1}, UNSTREAMED, None),
        ({"stream": False}, WITH_USAGE, None),
        ({"stream": True}, WITH_USAGE, {"stream": True, "stream_options": {"include_usage": True}}),
        (
            {"stream_options": {"include_usage": False, "b": 1}},
            WITH_USAGE,
            {"stream": True, "stream_options": {"include_usage": False, "b": 1}},
        ),
        ({"stream_options": {"b": 1}}, WITHOUT_USAGE, {"stream": True}),
        (
            {"messages": [{"content": '"stream": false'}]},
            WITH_USAGE,
            {
                "messages": [{"content": '"stream": false'}],
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
        (
            {"messages": [{"stream": False}]},
            WITH_USAGE,
            {"messages": [{"stream": False}], "stream": True, "stream_options": {"include_usage": True}},
        ),
    ],
)
def test_streamed_body(body, level, wanted):
    made = streamed(json.dumps(body, separators=(",", ":")).encode(), level)
    assert (made and json.loads(made)) == wanted


@pytest.mark.parametrize(
    ("level", "error", "below"),
    [
        (WITH_USAGE, BadRequestError("400: Unknown parameter: 'stream_options'."), WITHOUT_USAGE),
        (WITH_USAGE, BadRequestError("422: body.stream_options: Extra inputs are not permitted"), WITHOUT_USAGE),
        (WITHOUT_USAGE, BadRequestError("400: Unknown parameter: 'stream_options'."), UNSTREAMED),
        (
            WITH_USAGE,
            BadRequestError("400: Unsupported value: 'stream' does not support true with this model."),
            UNSTREAMED,
        ),
        (WITH_USAGE, BadRequestError("400: Streaming is not supported"), UNSTREAMED),
        (WITH_USAGE, BadRequestError("400: no (parameter stream)", code="unsupported_value"), UNSTREAMED),
        (WITH_USAGE, BadRequestError("400: the temperature is too high, upstream says"), None),
        (WITH_USAGE, InternalServerError("500: stream"), None),
        (WITH_USAGE, CallError("stream"), None),
    ],
)
def test_level_below(level, error, below):
    assert level_below(level, error) == below
