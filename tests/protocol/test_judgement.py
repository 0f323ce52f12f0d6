"""What follows from an error: another try, the end of the map, a slower pace, an outage."""

from __future__ import annotations

import pytest

from chatpool import errors
from chatpool._protocol.judgement import is_bad_answer, is_fatal_for_all, is_outage_sign, is_refusal, is_transient

from .made import completion, judge, reply

AGAIN, FATAL, REFUSED, OUT, BAD = "tried again", "ends the map", "refusal", "outage", "bad answer"
JUDGEMENTS = {
    AGAIN: is_transient, FATAL: is_fatal_for_all, REFUSED: is_refusal, OUT: is_outage_sign, BAD: is_bad_answer,
}  # fmt: skip


def error_of(status, body=b"", **headers):
    return judge(reply(body, status, **headers))


def connection(code):
    return errors.APIConnectionError("x", code=code)


ERRORS = {
    "a rate limit": (error_of(429), {AGAIN, REFUSED}),
    "a spent account": (error_of(402), {FATAL}),
    "a prompt too large for the limit": (error_of(429, {"error": {"code": "request_too_large"}}), set()),
    "no capacity": (error_of(498), {AGAIN, REFUSED}),
    "overloaded: 503": (error_of(503), {AGAIN, REFUSED}),
    "overloaded: 529": (error_of(529), {AGAIN, REFUSED}),
    "overloaded: a 500 by code": (error_of(500, {"error": {"type": "overloaded_error"}}), {AGAIN, REFUSED}),
    "overloaded: a 500 by its words": (
        error_of(500, {"error": {"type": "api_error", "message": "Overloaded"}}), {AGAIN, REFUSED}),
    "overloaded: a 400 by code": (error_of(400, {"error": {"code": "ServiceUnavailableException"}}), {AGAIN, REFUSED}),
    "overloaded, inside a 200": (error_of(200, {"error": {"type": "overloaded_error"}}), {AGAIN, REFUSED}),
    "a rate limit, inside a 200": (error_of(200, {"error": {"code": 429}}), {AGAIN, REFUSED}),
    "a failure: 500": (error_of(500), {AGAIN, OUT}),
    "a failure: 502": (error_of(502, b"<html>"), {AGAIN, OUT}),
    "a failure: 424": (error_of(424), {AGAIN, OUT}),
    "a failure: 499": (error_of(499), {AGAIN, OUT}),
    "a timeout: 408": (error_of(408), {AGAIN}),
    "a conflict": (error_of(409), {AGAIN}),
    "a prompt too long, with 500": (error_of(500, {"error": {"type": "exceed_context_size_error"}}), set()),
    "a mistake": (error_of(400), set()),
    "an unknown model": (error_of(404), set()),
    "a wrong key": (error_of(401), {FATAL}),
    "no permission for the key": (error_of(403, {"error": {"message": "key disabled"}}), {FATAL}),
    "no permission for the team": (error_of(403, {"error": {"message": "Your team has none"}}), {FATAL}),
    "no permission for the prompt": (error_of(403, {"error": {"message": "flagged"}}), set()),
    "a proxy that wants a password": (error_of(407), {FATAL}),
    "the server says again": (error_of(400, x_should_retry="true"), {AGAIN}),
    "the server says never again": (error_of(500, x_should_retry="false"), set()),
    "the model failed": (error_of(400, {"error": {"code": "json_validate_failed"}}), {AGAIN, BAD}),
    "the model failed: TGI": (error_of(424, {"error": "x", "error_type": "generation"}), {AGAIN, BAD}),
    "blank": (error_of(200, completion("")), {AGAIN, BAD}),
    "broken off": (error_of(200, completion("h", "abort")), {AGAIN, BAD}),
    "blank at the limit": (error_of(200, completion("", "length")), {BAD}),
    "filtered": (error_of(200, completion("", "content_filter")), {BAD}),
    "a web page": (error_of(200, b"<html>"), {AGAIN, BAD}),
    "parse refused it": (errors.ParseError("x"), {AGAIN, BAD}),
    "nobody listens": (connection("connection_refused"), {AGAIN, OUT}),
    "too slow": (errors.APITimeoutError("x", code="read_timeout"), {AGAIN, OUT}),
    "out of time": (errors.APITimeoutError("x", code="max_time"), set()),
    "a closed kept connection": (connection("stale_connection"), {AGAIN}),
    "a certificate": (connection("certificate_verify_failed"), {FATAL}),
    "no TLS": (connection("no_tls"), set()),
    "not sent": (errors.NotSentError("x"), set()),
    "past the deadline": (errors.DeadlineError("x"), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_judgements(name):
    """What is listed is so, and what is not listed is not."""
    error, expected = ERRORS[name]
    assert {verdict for verdict, judges in JUDGEMENTS.items() if judges(error)} == expected
