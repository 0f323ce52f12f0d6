"""Every error that chatpool raises, or records on a result.

::

    ChatPoolError
    ├── ConfigurationError        an invalid setting (also a ValueError)
    ├── PoolClosedError           the pool was used after close() (also a RuntimeError)
    ├── JournalError              a journal that cannot be opened, locked, read or written (also an OSError)
    └── CallError                 one prompt's call failed; recorded as ChatResult.error
        ├── APIConnectionError    no complete reply arrived: refused, reset, DNS, TLS, cut off
        │   └── APITimeoutError   the connect, read or max_time limit was reached
        ├── APIStatusError        the server replied with an error status
        │   ├── BadRequestError           400, 422
        │   ├── AuthenticationError       401
        │   ├── PermissionDeniedError     403
        │   ├── NotFoundError             404
        │   ├── ConflictError             409
        │   ├── RateLimitError            429
        │   │   └── QuotaExceededError    the account has no credit left, or reached its spend limit
        │   └── InternalServerError       500 and above
        ├── InvalidResponseError  a reply without an answer: not valid JSON, no choices, blank, a refusal
        ├── ParseError            the caller's ``parse`` or ``response_format`` rejected the answer
        ├── DeadlineError         the ``deadline`` of the whole map passed first
        └── NotSentError          cancelled before it was sent (``__cause__`` is the reason)
            └── SpendLimitError   request_budget or token_budget was reached first

The names are those of OpenAI's Python SDK, where it has the same error.
"""

from __future__ import annotations

from typing import Any


class ChatPoolError(Exception):
    """The base class of all errors of chatpool."""


class ConfigurationError(ChatPoolError, ValueError):
    """A setting is invalid; the message says what to change. Raised before anything is sent."""


class PoolClosedError(ChatPoolError, RuntimeError):
    """The pool was used after ``close()``."""


class JournalError(ChatPoolError, OSError):
    """A journal cannot be used: it is another kind of file, in use by another run, or the disk is full.

    If it ends a run, its ``.answers`` holds the results so far.
    """


class CallError(ChatPoolError):
    """One prompt's call failed.

    ``status_code``: the HTTP status, or None without a reply. ``code``: the server's error code, or chatpool's own
    short name. ``request_id``: the server's id of the request, for its support. ``retry_after``: seconds that the
    server asked to wait. ``attempts``: HTTP requests sent for the prompt. ``body``: the start of the server's reply,
    with the key redacted. ``should_retry``: the server's header ``x-should-retry``, or None. ``text``: of an answer
    that ``ChatPool.stream`` yielded in part, the text so far; None for other calls.
    """

    should_retry: bool | None = None
    text: str | None = None

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        attempts: int = 0,
        body: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.attempts = attempts
        self.body = body

    def __reduce__(self) -> tuple[Any, ...]:
        # By default, exceptions pickle without their cause.
        return _rebuild, (type(self), self.args, self.__dict__, self.__cause__)


def _rebuild(
    kind: type[CallError], args: tuple[Any, ...], fields: dict[str, Any], cause: BaseException | None
) -> CallError:
    error = kind(*args)
    error.__dict__.update(fields)
    error.__cause__ = cause
    return error


class APIConnectionError(CallError):
    """No complete reply arrived: refused, reset, name not found, TLS failure, connection lost half-way."""


class APITimeoutError(APIConnectionError):
    """The connect, read or ``max_time`` limit was reached."""


class APIStatusError(CallError):
    """The server replied with an error status."""


class BadRequestError(APIStatusError):
    """400 or 422: the request is invalid, so a retry would fail too."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing, wrong or revoked."""


class PermissionDeniedError(APIStatusError):
    """403: the API key has no permission for this."""


class NotFoundError(APIStatusError):
    """404: the model or the URL does not exist."""


class ConflictError(APIStatusError):
    """409: the request conflicts with another one."""


class RateLimitError(APIStatusError):
    """429: too many requests or tokens a minute; a later retry can succeed."""


class QuotaExceededError(RateLimitError):
    """The account has no credit left, or reached its spend limit; waiting does not help."""


class InternalServerError(APIStatusError):
    """500 and above: the server failed."""


class InvalidResponseError(CallError):
    """A reply without an answer: not valid JSON, no choices, blank, a refusal, filtered, too large."""


class ParseError(CallError):
    """The caller's ``parse`` or ``response_format`` rejected the answer of the last attempt."""


class DeadlineError(CallError):
    """The ``deadline`` of the whole map passed before this call was answered."""


class NotSentError(CallError):
    """Cancelled before it was sent, or before a retry; ``__cause__`` is the reason."""


class SpendLimitError(NotSentError):
    """The run's ``request_budget`` or ``token_budget`` was reached before this call was sent, or before a retry."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: BadRequestError,
    429: RateLimitError,
}


def status_error(status: int) -> type[APIStatusError]:
    """Return the error class of an HTTP status."""
    return _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)


def class_named(name: str) -> type[CallError]:
    """Return the CallError class of this name; CallError itself for an unknown name."""
    kind = globals().get(name)
    return kind if isinstance(kind, type) and issubclass(kind, CallError) else CallError


def add_note(error: BaseException, note: str) -> None:
    """Have a traceback show a note below the exception, where Python has notes (3.11 and newer)."""
    add = getattr(error, "add_note", None)
    if add is not None:
        add(note)
