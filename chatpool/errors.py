"""Every error that chatpool raises or records.

::

    ChatPoolError
    ├── ConfigurationError        a setting that cannot work (also a ValueError)
    ├── PoolClosedError           the pool was used after close() (also a RuntimeError)
    ├── JournalError              a journal that cannot be opened, locked, read or written (also an OSError)
    └── CallError                 one prompt's call failed; stands on ChatResult.error
        ├── APIConnectionError    no usable reply came: refused, reset, DNS, TLS, cut off
        │   └── APITimeoutError   connect, read or max_time ran out
        ├── APIStatusError        the server replied with an error status
        │   ├── BadRequestError           400, 422
        │   ├── AuthenticationError       401
        │   ├── PermissionDeniedError     403
        │   ├── NotFoundError             404
        │   ├── ConflictError             409
        │   ├── RateLimitError            429
        │   │   └── QuotaExceededError    the account is out of credit or over its spend limit
        │   └── InternalServerError       500 and above
        ├── InvalidResponseError  a reply that holds no answer: no JSON, no choices, blank, a refusal
        ├── ParseError            the caller's ``parse`` refused the answer with a ValueError
        ├── DeadlineError         the ``deadline`` of the whole map passed first
        └── NotSentError          given up before it was sent (its ``__cause__`` tells why)
            └── SpendLimitError   max_requests or max_tokens was reached first

The names are those of OpenAI's Python SDK where it has one.
"""

from __future__ import annotations

from typing import Any


class ChatPoolError(Exception):
    """The base of every error of chatpool."""


class ConfigurationError(ChatPoolError, ValueError):
    """A setting that cannot work; the message names the remedy. Raised before anything is sent."""


class PoolClosedError(ChatPoolError, RuntimeError):
    """The pool was used after ``close()``."""


class JournalError(ChatPoolError, OSError):
    """A journal cannot be used: it is another kind of file, in use by another run, or the disk is full.

    Raised out of a run that was under way, it carries what was done as ``.answers``.
    """


class CallError(ChatPoolError):
    """One prompt's call failed.

    ``status_code``: the HTTP status, or None if no reply came. ``code``: the server's error code, or
    a short name of ours. ``request_id``: the server's id of the request, to quote to its support.
    ``retry_after``: seconds the server asked to wait. ``attempts``: HTTP requests sent for the prompt.
    ``body``: the start of the server's reply, the key blotted out. ``should_retry``: the server's word on
    whether another try is of use (``x-should-retry``), or None.
    """

    should_retry: bool | None = None

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
        # Exception's own way of pickling calls the class with ``args`` and drops the cause.
        return _rebuild, (type(self), self.args, self.__dict__, self.__cause__)


def _rebuild(
    kind: type[CallError], args: tuple[Any, ...], fields: dict[str, Any], cause: BaseException | None
) -> CallError:
    error = kind(*args)
    error.__dict__.update(fields)
    error.__cause__ = cause
    return error


class APIConnectionError(CallError):
    """No usable reply came: refused, reset, name not found, TLS failure, connection cut half-way."""


class APITimeoutError(APIConnectionError):
    """The connect, read or ``max_time`` limit ran out."""


class APIStatusError(CallError):
    """The server replied with a status other than 200."""


class BadRequestError(APIStatusError):
    """400 or 422: the request is wrong, so sending it again is of no use."""


class AuthenticationError(APIStatusError):
    """401: the key is missing, wrong or revoked."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this."""


class NotFoundError(APIStatusError):
    """404: no such model or address."""


class ConflictError(APIStatusError):
    """409."""


class RateLimitError(APIStatusError):
    """429: too many requests or tokens a minute; goes away by waiting."""


class QuotaExceededError(RateLimitError):
    """The account has no credit left or met its spend limit; waiting does not help."""


class InternalServerError(APIStatusError):
    """500 and above: the server's own trouble."""


class InvalidResponseError(CallError):
    """A reply that holds no answer: no JSON, no choices, blank, a refusal, filtered, too large."""


class ParseError(CallError):
    """The caller's ``parse`` raised a ValueError on the last try."""


class DeadlineError(CallError):
    """The ``deadline`` of the whole map passed before this call was answered."""


class NotSentError(CallError):
    """Given up before it was sent, or before it was sent again; ``__cause__`` says why."""


class SpendLimitError(NotSentError):
    """``max_requests`` or ``max_tokens`` of the run was spent before this could be sent, or be sent again."""


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
    """Return the class of error that stands for an HTTP status."""
    return _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)


def class_named(name: str) -> type[CallError]:
    """Return the CallError of this name; CallError itself for a name that is none."""
    found, todo = {"CallError": CallError}, [CallError]
    while todo:
        kinds = todo.pop().__subclasses__()
        found.update((kind.__name__, kind) for kind in kinds)
        todo += kinds
    return found.get(name, CallError)
