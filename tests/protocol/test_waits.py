"""How long a server asks to wait: every header, field and word, every form. Heard on a refusal only."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from email.utils import formatdate

import pytest
from requests.structures import CaseInsensitiveDict

from chatpool import errors
from chatpool._protocol.waits import hinted_delay, read_delay

from .made import completion, judge, reply

NOW = 1_800_000_000.0


def rfc3339(seconds, end="Z"):
    return datetime.fromtimestamp(NOW + seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S") + end


FORMS = {
    "3": 3, "0.5": 0.5, " 3 ": 3, "3s": 3, "3 s": 3, "976ms": 0.976, "6m0s": 360, "1m12.5s": 72.5, "1h2m3s": 3723,
    "2m59.56s": 179.56, "45.578569677s": 45.578569677, "1d": 86400, "250us": 0.00025, "3 seconds": 3, "1 minute": 60,
    "1 min 5 sec": 65, "1 hour, 2 minutes and 3 seconds": 3723, "100 milliseconds": 0.1, "3S": 3,
    rfc3339(30): 30, rfc3339(30, ".5Z"): 30.5, rfc3339(30, ".123456789Z"): 30.123456789, rfc3339(30, "+00:00"): 30,
    rfc3339(7200 + 30, "+02:00"): 30, rfc3339(30).replace("T", " ").replace("Z", " UTC"): 30,
    formatdate(NOW + 30, usegmt=True): 30, str(int(NOW) + 30): 30, str((int(NOW) + 30) * 1000): 30,
}  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_forms(text):
    assert read_delay(text, NOW) == pytest.approx(FORMS[text], abs=1e-5)


@pytest.mark.parametrize("text", ["", "soon", "1, 2", "3 meters", "s", "in 3s", "9" * 30 + "x", None, [], True, {}])
def test_what_is_no_form(text):
    assert read_delay(text, NOW) is None


@pytest.mark.parametrize("value", [3, 3.0, {"seconds": 3, "nanos": 0}, {"seconds": "3"}])
def test_values_of_json(value):
    assert read_delay(value, NOW) == 3


# name: (headers, the error's body, seconds)
REFUSALS = {
    "a header with a unit": ({"retry_after": "3s"}, {}, 3),
    "a header in milliseconds": ({"retry_after_ms": "250"}, {}, 0.25),
    "a duration of Go": ({"retry_after": "1m12.5s"}, {}, 72.5),
    "requests are used up": (
        {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "3s"}, {}, 3),
    "tokens are used up": ({"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "6m0s"}, {}, 360),
    "both are used up: the longer wait": (
        {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "3s",
         "x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "976ms"}, {}, 3),
    "one is left, the other used up": (
        {"x_ratelimit_remaining_requests": "7", "x_ratelimit_reset_requests": "6m0s",
         "x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "3s"}, {}, 3),
    "none is used up": ({"x_ratelimit_remaining_requests": "7", "x_ratelimit_reset_requests": "6m0s"}, {}, None),
    "Azure says -1 and 0": ({"x_ratelimit_remaining_tokens": "-1", "x_ratelimit_reset_tokens": "0"}, {}, None),
    "a header that is no number": ({"x_ratelimit_remaining_tokens": "?", "x_ratelimit_reset_tokens": "3s"}, {}, None),
    "words of seconds": ({}, {"error": {"message": "Please try again in 3s."}}, 3),
    "words of milliseconds": ({}, {"error": {"message": "Please try again in 976ms. Visit"}}, 0.976),
    "words of minutes": ({}, {"error": {"message": "try again in 1m12.5s, or"}}, 72.5),
    "Azure's words": ({}, {"error": {"code": "429", "message": "Please retry after 3 seconds."}}, 3),
    "Gemini's words": ({}, {"error": {"message": "Please retry in 45.57s."}}, 45.57),
    "API management's words": ({}, {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 20 seconds."}, 20),
    "LiteLLM's words": ({}, {"error": {"message": "No deployments available, Try again in 5 seconds."}}, 5),
    "words of waiting": ({}, {"error": "please wait 20 seconds"}, 20),
    "words in a text": ({}, "try again in 3s", 3),
    "Google's RetryInfo": ({}, [{"error": {"details": [{"@type": "RetryInfo", "retryDelay": "13s"}]}}], 13),
    "a field": ({}, {"error": {"retry_after": 3}}, 3),
    "a field in milliseconds": ({}, {"error": {"retry_after_ms": 3000}}, 3),
    "Codex": ({}, {"error": {"resets_in_seconds": 30}}, 30),
    "Hugging Face": ({}, {"error": "loading", "estimated_time": 20.5}, 20.5),
    "a field before the words": ({}, {"error": {"retry_after": 3, "message": "try again in 9s"}}, 3),
    "a header before the body": ({"retry_after": "2"}, {"error": {"message": "try again in 9s"}}, 2),
    "a header without sense before the body": ({"retry_after": "0"}, {"error": {"message": "try again in 9s"}}, 9),
    "a reset before the body": (
        {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "2s"},
        {"error": {"message": "try again in 9s"}}, 2),
    "nothing": ({}, {"error": {"message": "try again later"}}, None),
    "a range": ({}, {"error": {"message": "try again in 3-5 seconds"}}, None),
    "longer than a year": ({}, {"error": {"message": "try again in 400d"}}, None),
}  # fmt: skip


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_says_when(name, status):
    headers, body, seconds = REFUSALS[name]
    error = judge(reply(body, status, **headers))
    assert error.retry_after == (None if seconds is None else pytest.approx(seconds))


def test_moments_are_by_the_servers_clock():
    """A date, a reset as RFC 3339 or as seconds since 1970: measured from the reply's own Date header."""
    date = formatdate(NOW, usegmt=True)
    for name, text in (("retry_after", formatdate(NOW + 30, usegmt=True)), ("retry_after", str(int(NOW) + 30))):
        assert judge(reply(b"", 429, date=date, **{name: text})).retry_after == 30
    for text in (rfc3339(30), str(int(NOW) + 30), str((int(NOW) + 30) * 1000), "30", "30s"):
        headers = {"anthropic_ratelimit_requests_remaining": "0", "anthropic_ratelimit_requests_reset": text}
        assert judge(reply(b"", 429, date=date, **headers)).retry_after == 30


def test_without_a_date_moments_are_by_our_clock():
    text = formatdate(time.time() + 30, usegmt=True)
    assert 25 < judge(reply(b"", 429, retry_after=text)).retry_after <= 31
    assert 25 < judge(reply(b"", 429, retry_after=text, date="some time ago")).retry_after <= 31


def test_headers_within_the_body():
    """OpenRouter passes on those of its own limits there: milliseconds since 1970."""
    headers = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW + 30) * 1000)}
    body = {"error": {"message": "free-models-per-min", "code": 429, "metadata": {"headers": headers}}}
    assert hinted_delay(CaseInsensitiveDict(), body, "", NOW) == 30


QUIET = {
    "an answer": (completion("try again in 3s"), 200),
    "a blank answer": (completion(""), 200),
    "a mistake of ours": ({"error": {"message": "try again in 3s", "retry_after": 3}}, 400),
    "an empty account": ({"error": {"code": "insufficient_quota", "message": "try again in 3s"}}, 429),
    "a prompt that is too large": ({"error": {"message": "Request too large, try again in 3s"}}, 429),
    "a failure": ({"error": {"message": "try again in 3s"}}, 500),
}


@pytest.mark.parametrize("name", QUIET)
def test_what_is_no_refusal_asks_for_no_delay(name):
    """Resets are on every good reply, and words may be the model's."""
    body, status = QUIET[name]
    got = judge(reply(body, status, x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="3s"))
    assert getattr(got, "retry_after", None) is None


@pytest.mark.parametrize("status", [408, 409, 424, 500, 502])
def test_retry_after_itself_is_heard_on_every_failure(status):
    assert judge(reply(b"", status, retry_after="3")).retry_after == 3


def test_an_overloaded_500_is_a_refusal_and_says_when():
    error = judge(reply({"error": {"type": "overloaded_error", "message": "try again in 3s"}}, 500))
    assert (type(error), error.retry_after) == (errors.InternalServerError, 3)


@pytest.mark.parametrize("size", [10**6])
def test_a_hostile_message_costs_no_time(size):
    """Neither digits without end nor objects in objects."""
    for message in ("try again in " + "1" * size, "try again in " + "1s, " * size, "x" * size):
        began = time.thread_time()
        hinted_delay(CaseInsensitiveDict(), {"error": {"message": message}}, message, NOW)
        assert time.thread_time() - began < 1
