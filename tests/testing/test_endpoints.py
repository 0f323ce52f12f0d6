"""The fake server's endpoints besides chat completions."""

from __future__ import annotations

import base64
import json
import math
from array import array

import pytest
import requests

from chatpool import ChatPool
from chatpool._protocol.requests import BatchRequest
from chatpool.testing import FakeChatServer, Reply, Stream


def post(server, path, **body):
    return requests.post(server.url + path, json=body, timeout=5)


def events_of(reply):
    """Return the name and the data of each server-sent event."""
    blocks = [block.splitlines() for block in reply.content.decode().split("\n\n") if block]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


# Models.


def test_models_are_listed_and_described():
    with FakeChatServer(models=["small", "org/large"]) as server:
        listed = requests.get(f"{server.url}/models", timeout=5).json()
        one = requests.get(f"{server.url}/models/org%2Flarge", timeout=5).json()
        missing = requests.get(f"{server.url}/models/huge", timeout=5)
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["small", "org/large"]
    assert one == listed["data"][1]
    assert (one["object"], one["owned_by"]) == ("model", "chatpool")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_requests_have_their_method(server):
    requests.get(f"{server.url}/models", timeout=5)
    post(server, "/embeddings", input="a")
    assert [request.method for request in server.requests] == ["GET", "POST"]


def test_a_wrong_path_names_the_right_ones(server):
    reply = requests.post(f"http://127.0.0.1:{server.port}/chat", json={}, timeout=5)
    assert reply.status_code == 404
    message = reply.json()["error"]["message"]
    assert message.startswith(f"fake server: no such path: /chat; the base URL is {server.url}, and its paths are ")
    assert "/chat/completions" in message


# Embeddings.


def vectors(reply):
    return [item["embedding"] for item in reply.json()["data"]]


@pytest.mark.parametrize(
    ("given", "count", "tokens"),
    [
        ("one two", 1, 2),
        (["one", "two three"], 2, 3),
        ([5, 6, 7], 1, 3),
        ([[5, 6], [7]], 2, 3),
    ],
)
def test_embeddings_take_texts_and_tokens(server, given, count, tokens):
    reply = post(server, "/embeddings", model="m", input=given)
    document = reply.json()
    assert [(item["object"], item["index"]) for item in document["data"]] == [("embedding", i) for i in range(count)]
    assert (document["object"], document["model"]) == ("list", "m")
    assert document["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert [len(vector) for vector in vectors(reply)] == [1536] * count


def test_embeddings_have_length_1_and_are_the_same_for_the_same_text(server):
    one, two, again = vectors(post(server, "/embeddings", input=["one", "two", "one"], dimensions=8))
    assert one == again != two
    assert math.hypot(*one) == pytest.approx(1)


def test_base64_holds_the_same_numbers(server):
    (numbers,) = vectors(post(server, "/embeddings", input="one", dimensions=4))
    (text,) = vectors(post(server, "/embeddings", input="one", dimensions=4, encoding_format="base64"))
    assert array("f", base64.b64decode(text)).tolist() == numbers


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [[1], []]}, "input"),
        ({"input": [None]}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_a_bad_body_is_a_400(server, body, word):
    reply = post(server, "/embeddings", **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith(word)


def test_fewer_dimensions_are_the_beginning_of_more(server):
    (four,), (eight,) = (vectors(post(server, "/embeddings", input="one", dimensions=size)) for size in (4, 8))
    factor = math.hypot(*eight[:4])
    assert four == pytest.approx([number / factor for number in eight[:4]], abs=1e-6)


def test_a_text_is_the_prompt_of_a_script(server):
    server.script("one", Reply(status=503))
    assert post(server, "/embeddings", input="one").status_code == 503


# Text completions.


def test_a_text_completion_has_a_text(server):
    document = post(server, "/completions", model="m", prompt="one two").json()
    assert (document["object"], document["model"], document["id"][:5]) == ("text_completion", "m", "cmpl-")
    assert document["choices"] == [{"text": "one two", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert document["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}


def test_a_streamed_text_completion_is_the_same_in_pieces(server):
    server.script("one two", Reply("three four", finish_reason="length"))
    lines = post(server, "/completions", prompt="one two", stream=True, stream_options={"include_usage": True}).text
    *events, done = [line.removeprefix("data: ") for line in lines.split("\n") if line]
    chunks = [json.loads(event) for event in events]
    assert done == "[DONE]"
    assert [[choice["text"] for choice in chunk["choices"]] for chunk in chunks] == [["three"], [" four"], [""], []]
    assert chunks[2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


def test_chatpool_reads_a_text_completion(server):
    with ChatPool(2, base_url=server.url) as pool:
        assert pool.map([BatchRequest({"prompt": "ping", "model": "m"}, "a", "/v1/completions")]) == ["ping"]


# Responses.


def test_a_response_has_output_items_and_usage(server):
    document = post(server, "/responses", model="m", input="one two", instructions="Echo.").json()
    assert (document["object"], document["status"], document["model"]) == ("response", "completed", "m")
    assert (document["error"], document["instructions"]) == (None, "Echo.")
    (item,) = document["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": "one two", "annotations": [], "logprobs": []}]
    assert document["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 4,
    }


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "ping"},
        {"role": "user", "content": [{"type": "input_text", "text": "pi"}, {"type": "input_text", "text": "ng"}]},
        {"type": "function_call_output", "call_id": "c", "output": "ping"},
    ],
)
def test_the_prompt_is_the_text_of_the_last_input_item(server, item):
    server.script("ping", Reply("pong"))
    document = post(server, "/responses", input=[{"role": "user", "content": "before"}, item]).json()
    assert document["output"][0]["content"][0]["text"] == "pong"


CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}
RICH = Reply(
    message={"content": None, "reasoning_content": "look it up", "tool_calls": [CALL]}, finish_reason="tool_calls"
)


def test_reasoning_and_tool_calls_are_items(server):
    server.script("ping", RICH)
    thought, call = post(server, "/responses", input="ping").json()["output"]
    assert (thought["type"], thought["summary"]) == ("reasoning", [{"type": "summary_text", "text": "look it up"}])
    assert (call["type"], call["call_id"], call["name"]) == ("function_call", "call_1", "weather")
    assert call["arguments"] == '{"city": "Lima"}'


def test_an_answer_that_was_cut_is_incomplete(server):
    server.script("ping", Reply("half", finish_reason="length"))
    document = post(server, "/responses", input="ping").json()
    assert (document["status"], document["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_a_streamed_response_ends_with_the_whole_of_it(server):
    events = events_of(post(server, "/responses", input="one two", stream=True))
    names = [name.removeprefix("response.") for name, _ in events]
    assert names == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [data["sequence_number"] for _, data in events] == list(range(10))
    assert all(name == data["type"] for name, data in events)
    assert "".join(data.get("delta", "") for _, data in events) == "one two"
    assert (events[0][1]["response"]["status"], events[0][1]["response"]["output"]) == ("in_progress", [])
    assert events[-1][1]["response"]["output"] == [events[-2][1]["item"]]


def test_streamed_items_begin_empty(server):
    server.script("ping", RICH)
    events = events_of(post(server, "/responses", input="ping", stream=True))
    begun = [data["item"] for name, data in events if name.endswith("output_item.added")]
    assert [item.get("summary", item.get("arguments")) for item in begun] == [[], ""]
    deltas = {name: "" for name, data in events if "delta" in data}
    for name, data in events:
        if "delta" in data:
            deltas[name] += data["delta"]
    assert deltas == {
        "response.reasoning_summary_text.delta": "look it up",
        "response.function_call_arguments.delta": '{"city": "Lima"}',
    }


def test_refusals_and_custom_tools_stream_too(server):
    call = {"id": "call_2", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}}
    message = {"content": None, "refusal": "I will not", "tool_calls": [call]}
    server.script("ping", Reply(message=message, finish_reason="tool_calls"))
    events = events_of(post(server, "/responses", input="ping", stream=True))
    ends = {name: data for name, data in events if name.endswith("done")}
    assert ends["response.refusal.done"]["refusal"] == "I will not"
    assert ends["response.custom_tool_call_input.done"]["input"] == "ls -l"
    assert [item["type"] for item in events[-1][1]["response"]["output"]] == ["message", "custom_tool_call"]


def test_an_incomplete_response_ends_with_an_event_of_that_name(server):
    server.script("ping", Reply("half", finish_reason="length"))
    assert events_of(post(server, "/responses", input="ping", stream=True))[-1][0] == "response.incomplete"


def test_an_error_in_a_streamed_response_is_an_event_of_its_own(server):
    server.script("ping", Reply(stream=Stream(error_after=3)))
    *events, (name, error) = events_of(post(server, "/responses", input="ping", stream=True))
    assert len(events) == 3
    assert name == "error"
    assert error == {
        "type": "error",
        "code": "server_error",
        "message": "fake server: The stream failed.",
        "param": None,
        "sequence_number": 3,
    }


def test_without_a_finish_a_response_has_no_last_event(server):
    server.script("ping", Reply(stream=Stream(finish=False)))
    assert events_of(post(server, "/responses", input="ping", stream=True))[-1][0] == "response.output_item.done"
