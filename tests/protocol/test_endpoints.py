"""Other endpoints than chat, judged by the same rules: /v1/responses, /v1/completions, /v1/embeddings."""

from __future__ import annotations

import pytest

from chatpool import errors
from chatpool._protocol.judgement import is_transient

from .made import judge_document, reply


def response(text="hi", status="completed", **fields):
    content = [{"type": "output_text", "text": text}] if text else []
    output = [{"type": "message", "role": "assistant", "content": content}]
    return {"object": "response", "status": status, "error": None, "output": output, **fields}


def text_completion(text="hi", reason="stop"):
    return {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason}]}


def embeddings(*vectors):
    data = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(vectors)]
    return {"object": "list", "data": data}


CUT, FILTERED = {"reason": "max_output_tokens"}, {"reason": "content_filter"}
ANSWERS = {
    "a response": (response(), "hi", "stop"),
    "a response cut at the limit": (response("hi", "incomplete", incomplete_details=CUT), "hi", "length"),
    "a response without a status": ({"output": response()["output"]}, "hi", None),
    "a response that calls a function": (
        {"status": "completed", "output": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "", "stop"),
    "a response with a picture": (
        {"status": "completed", "output": [{"type": "image_generation_call", "result": "AAAA"}]}, "", "stop"),
    "a completion": (text_completion(), "hi", "stop"),
    "a completion cut at the limit": (text_completion("hi", "max_tokens"), "hi", "length"),
    "a chat completion": ({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}, "hi", "stop"),
    "an embedding": (embeddings([0.1, 0.2]), "", None),
    "an embedding as base64": (embeddings("AACAPwAAAEA="), "", None),
    "a moderation": ({"results": [{"flagged": False}]}, "", None),
    "a picture": ({"created": 1, "data": [{"b64_json": "AAAA"}]}, "", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name):
    body, text, reason = ANSWERS[name]
    answer = judge_document(reply(body))
    assert (answer.text, answer.finish_reason) == (text, reason)


def test_reasoning_of_a_response():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    body = response()
    body["output"].insert(0, thought)
    answer = judge_document(reply(body))
    assert (answer.text, answer.reasoning) == ("hi", "hm")


# name: (body, code, is it tried again)
NO_ANSWERS = {
    "an incomplete response without text": (response("", "incomplete", incomplete_details=CUT), "length", False),
    "a filtered response": (response("h", "incomplete", incomplete_details=FILTERED), "content_filter", False),
    "a failed response": (response("", "failed", error={"code": "server_error", "message": "x"}), "server_error", True),
    "a failed response without a reason": (response("half", "failed"), "broken_off", True),
    "a cancelled response": (response("half", "cancelled"), "broken_off", True),
    "a response in the background": (response("", "queued"), "not_finished", False),
    "a refused response": (
        response("", output=[{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]), "refusal", False),
    "a response that only reasons": (
        response("", output=[{"type": "reasoning", "summary": [{"text": "hm"}]}]), "blank", True),
    "a response without output": (response("", output=[]), "blank", True),
    "a blank completion": (text_completion(" "), "blank", True),
    "a blank completion at the limit": (text_completion("", "length"), "length", False),
    "a completion that broke off": (text_completion("half", "abort"), "broken_off", True),
    "no choices": ({"object": "text_completion", "choices": []}, "no_choices", True),
    "a choice without text": ({"choices": [{}]}, "no_choices", True),
    "no data": (embeddings(), "no_choices", True),
    "an embedding that is null": (embeddings([0.1], None), "blank", True),
    "an embedding that is empty": (embeddings([]), "blank", True),
    "an embedding that is missing": ({"data": [{"object": "embedding", "index": 0}]}, "blank", True),
    "something else": ({"status": "ok"}, "no_choices", True),
    "a rate limit inside a 200": ({"error": {"code": "rate_limit_exceeded"}}, "rate_limit_exceeded", True),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_no_answers(name):
    body, code, again = NO_ANSWERS[name]
    error = judge_document(reply(body))
    assert isinstance(error, errors.CallError)
    assert (error.code, is_transient(error)) == (code, again)


def test_a_failed_response_has_the_class_of_its_code():
    body = response("", "failed", error={"code": "rate_limit_exceeded", "message": "slow down"})
    assert type(judge_document(reply(body))) is errors.RateLimitError
