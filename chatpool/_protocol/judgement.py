"""Decides what follows from an error: a retry, the end of the run, a slower rate. Pure."""

from __future__ import annotations

import re

from chatpool.errors import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    CallError,
    InternalServerError,
    InvalidResponseError,
    ParseError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
)

from .dialects import (
    FILTERED,
    MODEL_FAILED,
    OVERLOAD_STATUSES,
    OVERLOADED,
    TOO_LARGE,
    TRANSIENT_STATUSES,
    code_meaning,
    words_meaning,
)

# chatpool's own codes.
REQUEST_TOO_LARGE = "request_too_large"  # a rate limit that only one prompt exceeds
FATAL_CONNECTION_CODES = frozenset({"certificate_verify_failed", "proxy_authentication"})
PERMANENT_CONNECTION_CODES = FATAL_CONNECTION_CODES | {"no_tls", "cannot_connect", "max_time"}
PERMANENT_RESPONSE_CODES = frozenset({"refusal", "content_filter", "length", "too_large", "not_finished"})

_TRANSIENT = frozenset(status for status, _, _ in TRANSIENT_STATUSES)
_OVERLOAD = frozenset(status for status, _, _ in OVERLOAD_STATUSES)
_OUTAGE = frozenset({424, 499})  # in addition to every 5xx
_ACCOUNT_WORDS = r"(?i)(\b|_)(key|project|organi[sz]ation|account|team|workspace|country)(\b|_)"


def is_transient(error: CallError) -> bool:
    """Whether a retry may succeed. The header ``x-should-retry`` overrides the tables."""
    if error.should_retry is not None:
        return error.should_retry
    if isinstance(error, APIStatusError):
        return _status_is_transient(error)
    if isinstance(error, APIConnectionError):
        return error.code not in PERMANENT_CONNECTION_CODES
    if isinstance(error, InvalidResponseError):
        return error.code not in PERMANENT_RESPONSE_CODES
    return isinstance(error, ParseError)


def is_fatal_for_all(error: CallError) -> bool:
    """Whether no other prompt can succeed, because of the key, the account, the certificate or the proxy."""
    if isinstance(error, (AuthenticationError, QuotaExceededError)):
        return True
    if isinstance(error, PermissionDeniedError):
        return re.search(_ACCOUNT_WORDS, f"{error.code} {error}") is not None
    if isinstance(error, APIConnectionError):
        return error.code in FATAL_CONNECTION_CODES
    return error.status_code == 407  # the proxy requires authentication


def is_refusal(error: CallError) -> bool:
    """Whether the server rejected the request because of its load: a rate limit, or overload in any words."""
    if isinstance(error, RateLimitError):
        return not isinstance(error, QuotaExceededError) and error.code != REQUEST_TOO_LARGE
    if not isinstance(error, APIStatusError) or _meaning(error) in (TOO_LARGE, FILTERED):
        return False
    status = error.status_code or 0
    if status in _OVERLOAD:
        return True
    is_server_error = isinstance(error, InternalServerError)
    return is_server_error and OVERLOADED in (_meaning(error), words_meaning(str(error)))


def is_outage_sign(error: CallError) -> bool:
    """Whether the server may be down: no connection, or a transient server error other than overload."""
    if isinstance(error, APIConnectionError):
        return is_transient(error) and error.code != "stale_connection"
    is_outage = isinstance(error, APIStatusError) and error.status_code in _OUTAGE
    is_server_error = isinstance(error, InternalServerError) or is_outage
    return is_server_error and not is_refusal(error) and is_transient(error) and not is_bad_answer(error)


def is_bad_answer(error: CallError) -> bool:
    """Whether the model returned a useless answer, which says nothing about the state of the server."""
    if isinstance(error, APIStatusError):
        return _meaning(error) == MODEL_FAILED
    return isinstance(error, (ParseError, InvalidResponseError))


def _status_is_transient(error: APIStatusError) -> bool:
    meaning, status = _meaning(error), error.status_code or 0
    if isinstance(error, QuotaExceededError) or error.code == REQUEST_TOO_LARGE or meaning in (TOO_LARGE, FILTERED):
        return False
    if isinstance(error, (RateLimitError, InternalServerError)) or meaning == MODEL_FAILED:
        return True
    return status in _TRANSIENT or status >= 500


def _meaning(error: CallError) -> str | None:
    found = code_meaning([error.code]) if error.code else None
    return found[0] if found else None
