"""Server's reply → answer or error, with no network: what counts as an answer, and what each failure is called."""

from __future__ import annotations

import json
from email.utils import formatdate

import pytest
from requests.structures import CaseInsensitiveDict

from chatpool import errors
from chatpool._protocol.judgement import is_fatal_for_all, is_transient
from chatpool._protocol.replies import Reply, retry_after

from .made import completion, judge, reply

ANSWERS = {
    "plain": (completion("hi"), "hi"),
    "cut at the token limit": (completion("hi", "length"), "hi"),
    "content in parts": (completion([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]), "hi"),
    "tool calls only": (completion(None, "tool_calls", tool_calls=[{"id": "c"}]), ""),
    "no finish_reason": ({"choices": [{"message": {"content": "hi"}}]}, "hi"),
    "error is null": ({**completion("hi"), "error": None}, "hi"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(completion("hi")).encode(), "hi"),
    "blank lines before (keep-alive of DeepSeek)": (b"\n\n\n" + json.dumps(completion("hi")).encode(), "hi"),
    "lone surrogate": (completion("\ud800"), "\ud800"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name):
    """What is an answer, and its text."""
    body, text = ANSWERS[name]
    assert judge(reply(body)).text == text


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206])
def test_any_2xx_with_a_completion_is_an_answer(status):
    """Some gateways say 201 Created, since a completion was created."""
    assert judge(reply(completion("hi"), status)).text == "hi"


# name: (status, body, class, code, is it tried again, does it stop the whole map)
NO = False
FAILURES = {
    "HTML": (200, b"<html>", errors.InvalidResponseError, "no_json", True, NO),
    "empty": (200, b"", errors.InvalidResponseError, "no_json", True, NO),
    "truncated JSON": (200, b'{"choices": [', errors.InvalidResponseError, "no_json", True, NO),
    "not UTF-8": (200, b'{"a": "\xff"}', errors.InvalidResponseError, "no_json", True, NO),
    "nested 200,000 deep": (200, b"[" * 200_000, errors.InvalidResponseError, "no_json", True, NO),
    "a list": (200, [1], errors.InvalidResponseError, "no_object", True, NO),
    "a number": (200, 3, errors.InvalidResponseError, "no_object", True, NO),
    "null": (200, None, errors.InvalidResponseError, "no_object", True, NO),
    "no choices": (200, {"choices": []}, errors.InvalidResponseError, "no_choices", True, NO),
    "choices null": (200, {"choices": None}, errors.InvalidResponseError, "no_choices", True, NO),
    "message empty": (200, {"choices": [{"message": {}}]}, errors.InvalidResponseError, "no_choices", True, NO),
    "choice no object": (200, {"choices": ["hi"]}, errors.InvalidResponseError, "no_choices", True, NO),
    "content a number": (200, completion(5), errors.InvalidResponseError, "no_text", True, NO),
    "content null": (200, completion(None), errors.InvalidResponseError, "blank", True, NO),
    "content blank": (200, completion(" \n\t"), errors.InvalidResponseError, "blank", True, NO),
    "blank at the limit": (200, completion("", "length"), errors.InvalidResponseError, "length", NO, NO),
    "refusal": (200, completion(None, refusal="no"), errors.InvalidResponseError, "refusal", NO, NO),
    "filtered": (200, completion("h", "content_filter"), errors.InvalidResponseError, "content_filter", NO, NO),
    "error 429 in a 200": (200, {"error": {"code": 429, "message": "x"}}, errors.RateLimitError, None, True, NO),
    "error '503' in a 200": (200, {"error": {"code": "503"}}, errors.InternalServerError, None, True, NO),
    "error 400 in a 200": (200, {"error": {"code": 400}}, errors.BadRequestError, None, NO, NO),
    "error by name in a 200": (
        200, {"error": {"code": "rate_limit_exceeded"}}, errors.RateLimitError, "rate_limit_exceeded", True, NO),
    "error unknown in a 200": (200, {"error": "oops"}, errors.InvalidResponseError, "error_in_200", True, NO),
    "error in the choice": (
        200, {"choices": [{"error": {"code": 502}, "message": {"content": "x"}}]},
        errors.InternalServerError, None, True, NO),
    "finish_reason error": (200, completion("x", "error"), errors.InvalidResponseError, "broken_off", True, NO),
    "204": (204, b"", errors.InvalidResponseError, "no_json", True, NO),
    "301": (301, b"", errors.APIStatusError, None, NO, NO),
    "400": (400, {"error": {"code": "context_length_exceeded"}}, errors.BadRequestError, "context_length_exceeded", NO, NO),
    "401": (401, {"error": {"code": "invalid_api_key"}}, errors.AuthenticationError, "invalid_api_key", NO, True),
    "401 of llama.cpp": (401, {"detail": "bad key"}, errors.AuthenticationError, None, NO, True),
    "402": (402, {"error": {"message": "credits"}}, errors.QuotaExceededError, None, NO, True),
    "403 naming the key": (403, {"error": {"message": "key disabled"}}, errors.PermissionDeniedError, None, NO, True),
    "403 of a prompt": (403, {"error": {"message": "flagged"}}, errors.PermissionDeniedError, None, NO, NO),
    "404": (404, {"error": {"code": "model_not_found"}}, errors.NotFoundError, "model_not_found", NO, NO),
    "405": (405, b"", errors.APIStatusError, None, NO, NO),
    "408": (408, b"", errors.APIStatusError, None, True, NO),
    "409": (409, b"", errors.ConflictError, None, True, NO),
    "413": (413, b"", errors.APIStatusError, None, NO, NO),
    "422": (422, {"detail": [{"msg": "x"}]}, errors.BadRequestError, None, NO, NO),
    "424": (424, {"error": "x", "error_type": "generation"}, errors.APIStatusError, "generation", True, NO),
    "425": (425, b"", errors.APIStatusError, None, True, NO),
    "429 rate": (429, {"error": {"code": "rate_limit_exceeded"}}, errors.RateLimitError, "rate_limit_exceeded", True, NO),
    "429 quota": (429, {"error": {"code": "insufficient_quota"}}, errors.QuotaExceededError, "insufficient_quota", NO, True),
    "429 quota by type": (
        429, {"error": {"code": None, "type": "insufficient_quota"}},
        errors.QuotaExceededError, "insufficient_quota", NO, True),
    "429 spend limit": (
        429, {"error": {"code": "project_spend_limit_exceeded"}},
        errors.QuotaExceededError, "project_spend_limit_exceeded", NO, True),
    "498": (498, b"", errors.APIStatusError, None, True, NO),
    "499": (499, {"error": {"code": 499, "status": "CANCELLED"}}, errors.APIStatusError, "CANCELLED", True, NO),
    "500": (500, b"oops", errors.InternalServerError, None, True, NO),
    "502": (502, b"<html>", errors.InternalServerError, None, True, NO),
    "503": (503, b"", errors.InternalServerError, None, True, NO),
    "504": (504, b"", errors.InternalServerError, None, True, NO),
    "524": (524, b"", errors.InternalServerError, None, True, NO),
    "529": (529, {"error": {"type": "overloaded"}}, errors.InternalServerError, "overloaded", True, NO),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_failures(name):
    """What each reply that is no answer is called, and what follows from it."""
    status, body, kind, code, again, fatal = FAILURES[name]
    error = judge(reply(body, status, x_request_id="req_1"))
    assert type(error) is kind
    assert error.code == code
    assert is_transient(error) is again
    assert is_fatal_for_all(error) is fatal
    assert error.request_id == "req_1"
    assert error.status_code == status or "in a 200" in name or "choice" in name
    assert error.__context__ is None
    assert str(error)


def test_huge_integer_is_passed_over():
    """Newer Pythons refuse to read an integer of 6,000 digits; the answer beside it is good all the same."""
    outcome = judge(reply(json.dumps(completion("hi")).encode()[:-1] + b', "x": ' + b"9" * 6000 + b"}"))
    assert outcome.text == "hi"


@pytest.mark.parametrize(("said", "again"), [("true", True), ("false", False), ("maybe", None)])
def test_the_servers_word_on_retrying_comes_first(said, again):
    """x-should-retry overrides the table; other words than true and false do not."""
    for status, own in ((400, False), (500, True)):
        error = judge(reply(b"", status, x_should_retry=said))
        assert is_transient(error) is (own if again is None else again)


def test_secrets_are_redacted():
    """A server that echoes the key does not get it into an error."""
    got = Reply(
        401, {}, b'{"error": {"message": "bad key sk-1", "code": "sk-1"}}', lambda text: text.replace("sk-1", "*")
    )
    error = judge(got)
    assert "sk-1" not in f"{error} {error.code} {error.body}"


def test_redirect_names_only_the_origin():
    """The message has the target's origin, without path and query, which may hold secrets."""
    error = judge(reply(b"", 307, location="https://elsewhere.example/login?token=abc"))
    assert "https://elsewhere.example " in str(error)
    assert "abc" not in str(error)


NOW = 1_800_000_000.0
WAITS = [
    ({"retry-after": "3"}, 3),
    ({"retry-after": "0.5"}, 0.5),
    ({"retry-after-ms": "250"}, 0.25),
    ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
    ({"retry-after-ms": "x", "retry-after": "3"}, 3),
    ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30),
    ({"retry-after": "36000"}, 36000),
    ({}, None),
    ({"retry-after": ""}, None),
    ({"retry-after": "soon"}, None),
    ({"retry-after": "0"}, None),
    ({"retry-after": "-10"}, None),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after": "-inf"}, None),
    ({"retry-after": "9" * 35}, None),
    ({"retry-after": formatdate(NOW - 30, usegmt=True)}, None),
    ({"retry-after": "Fri, 31 Dec 100000 23:59:59 GMT"}, None),
    ({"retry-after": "Zun, 29 Sep 2026 16:26:27"}, None),
    ({"retry-after": "Fri, 99 Feb 2026 99:99:99 GMT"}, None),
    ({"retry-after": "1, 2"}, None),
]


@pytest.mark.parametrize(("headers", "seconds"), WAITS)
def test_retry_after(headers, seconds):
    """All three forms are read, and absurd ones ignored."""
    assert retry_after(CaseInsensitiveDict(headers), NOW) == (None if seconds is None else pytest.approx(seconds))
