"""What a message holds: text, and answers that are no text; reasoning beside the text or in its place."""

from __future__ import annotations

import pytest

from chatpool import ChatResult

from .made import completion, judge, reply

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
NO_TEXT = {
    "images": {"images": [IMAGE]},
    "a content of image parts only": {"content": [IMAGE]},
    "an image of the Responses API": {"content": [{"type": "output_image", "image": "AAAA"}]},
    "tool calls": {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    "a function call": {"function_call": {"name": "f", "arguments": "{}"}},
    "audio": {"audio": {"id": "a", "data": "AAAA"}},
    "a tool call among the parts": {"content": [{"type": "tool_use", "id": "t", "input": {}}]},
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_answers_that_are_no_text(name):
    """They are answers, with an empty text; the message has the rest."""
    body = completion(**{"content": None, **NO_TEXT[name]})
    assert judge(reply(body)).text == ""
    result = ChatResult(0, "p", "", "", None, "stop", None, body, None, 1, 0.1, None)
    assert NO_TEXT[name].items() <= result.message.items()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["h", "i"], "hi"),
        ([{"type": "text", "text": "h"}, "i"], "hi"),
        ([{"type": "output_text", "text": "hi"}], "hi"),
        ([{"text": "hi"}], "hi"),
        ([{"type": "text", "text": {"value": "hi", "annotations": []}}], "hi"),
        ({"type": "text", "text": "hi"}, "hi"),
        ([IMAGE, {"type": "text", "text": "hi"}], "hi"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}], "hi"),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "hi"}], "hi"),
        ([None, 3, {"type": "text", "text": "hi"}], "hi"),
    ],
)
def test_text_in_parts_is_joined(content, text):
    assert judge(reply(completion(content))).text == text


@pytest.mark.parametrize("content", [[], [""], [{"type": "text", "text": " "}], {}, [{}], [None]])
def test_parts_without_anything_are_blank(content):
    assert judge(reply(completion(content))).code == "blank"


THOUGHTS = {
    "DeepSeek, vLLM, SGLang": {"reasoning_content": "hm"},
    "OpenRouter, Groq": {"reasoning": "hm"},
    "both, as gateways send them": {"reasoning_content": "hm", "reasoning": "hm"},
    "an empty one and a full one": {"reasoning_content": "", "reasoning": "hm"},
    "OpenRouter's details": {"reasoning_details": [{"type": "reasoning.text", "text": "h"}, {"text": "m"}]},
    "OpenRouter's summary": {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
    "encrypted beside a text": {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}, {"text": "hm"}]},
    "LiteLLM's blocks": {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}]},
    "Mistral's parts": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "hi"]},
    "Anthropic's parts": {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]},
    "a part of reasoning": {"content": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "hi"}]},
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_reasoning_is_apart_from_the_text(name):
    answer = judge(reply(completion(**{"content": "hi", **THOUGHTS[name]})))
    assert (answer.text, answer.reasoning) == ("hi", "hm")


@pytest.mark.parametrize(
    "message", [{}, {"reasoning": None}, {"reasoning": ""}, {"reasoning_details": []}, {"reasoning": 3}]
)
def test_no_reasoning_is_none(message):
    assert judge(reply(completion("hi", **message))).reasoning is None


def test_thoughts_within_the_text_are_left_there():
    """Only the server knows whether <think> is a thought or what was asked for."""
    answer = judge(reply(completion("<think>hm</think>hi")))
    assert (answer.text, answer.reasoning) == ("<think>hm</think>hi", None)


@pytest.mark.parametrize(("reason", "code"), [("stop", "blank"), ("length", "length"), (None, "blank")])
def test_reasoning_alone_is_no_answer(reason, code):
    assert judge(reply(completion(None, reason, reasoning_content="hm"))).code == code


@pytest.mark.parametrize("message", [{"refusal": "no"}, {"content": [{"type": "refusal", "refusal": "no"}]}])
def test_a_refusal_in_a_field_or_a_part(message):
    error = judge(reply(completion(**{"content": None, **message})))
    assert (error.code, str(error)) == ("refusal", "the model refused: no")


@pytest.mark.parametrize(
    "response", [None, {}, {"choices": None}, {"choices": []}, {"choices": ["x"]}, {"choices": [{}]}]
)
def test_a_result_without_a_message_has_an_empty_one(response):
    assert ChatResult(0, "p", None, None, None, None, None, response, None, 1, 0.1, None).message == {}
