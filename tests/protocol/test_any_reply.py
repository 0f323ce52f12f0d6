"""Whatever a server replies, the outcome is an answer or a CallError that is safe to show."""

from __future__ import annotations

import json
import random

import pytest

from chatpool._protocol.judgement import is_bad_answer, is_fatal_for_all, is_outage_sign, is_refusal, is_transient
from chatpool.errors import CallError

from .made import judge, judge_document, reply

_KEYS = """base_resp choices code content data detail details embedding error errors finish_reason headers image_url
incomplete_details loc message metadata msg native_finish_reason object output param provider_specific_fields prompt_tokens
quotaId raw reason reasoning_details refusal retryDelay retry_after status status_code status_msg success text tool_calls
total_tokens type usage violations"""
VALUES = [
    "", None, 0, 1, -1, 200, 404, 429, "429", 1e999, float("nan"), 10**30, True, False, "hi", "stop", "length", "error",
    "completed", "failed", "incomplete", "text", "thinking", "insufficient_quota", "rate_limit_exceeded", "\x1b[31m\n", "3s",
    "\ud800", "9" * 300, "try again in 3s", "Limit 5, Requested 9", "<html>",
]  # fmt: skip
_HEADERS = """content_type date retry_after retry_after_ms x_ratelimit_remaining_requests x_ratelimit_reset_requests
x_request_id x_should_retry"""
KEYS, HEADERS = _KEYS.split(), _HEADERS.split()
STATUSES = [101, 200, 200, 200, 201, 301, 400, 401, 402, 403, 404, 413, 422, 429, 429, 500, 503, 529]


def document(rng, depth=0):
    kind = rng.random()
    if depth > 5 or kind < 0.35:
        return rng.choice(VALUES)
    if kind < 0.75:
        return {rng.choice(KEYS): document(rng, depth + 1) for _ in range(rng.randint(0, 5))}
    return [document(rng, depth + 1) for _ in range(rng.randint(0, 3))]


def chat(rng):
    choice = {"message": document(rng, 1), "finish_reason": document(rng, 4)}
    return {"choices": [choice], rng.choice(KEYS): document(rng, 2)}


def random_reply(rng):
    headers = {rng.choice(HEADERS): str(rng.choice(VALUES)) for _ in range(3)}
    return reply(rng.choice((document, chat))(rng), rng.choice(STATUSES), **headers)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("judge_reply", [judge, judge_document])
def test_any_reply(seed, judge_reply):
    rng = random.Random(seed)
    for _ in range(50):
        outcome = judge_reply(random_reply(rng))
        if isinstance(outcome, CallError):
            check_error(outcome)
        else:
            check_answer(outcome)


def check_answer(answer):
    assert isinstance(answer.text, str)
    assert all(isinstance(value, (str, type(None))) for value in (answer.finish_reason, answer.reasoning))
    json.dumps(answer.response, allow_nan=False)
    counts = vars(answer.usage).values() if answer.usage else []
    assert all(type(count) is int and 0 <= count <= 20_000_000 for count in counts)


def check_error(error):
    for shown in (str(error), error.code or "", error.request_id or ""):
        assert shown.isprintable()
    assert len(str(error)) <= 500
    assert len(error.code or "") <= 100
    assert error.retry_after is None or 0 < error.retry_after <= 366 * 86400
    for judgement in (is_transient, is_fatal_for_all, is_refusal, is_outage_sign, is_bad_answer):
        assert isinstance(judgement(error), bool)
