"""Why a call is cancelled: the errors that say so."""

from __future__ import annotations

from chatpool.errors import CallError, DeadlineError, NotSentError


def deadline_passed(cause: CallError | None = None) -> DeadlineError:
    """Return the error of a prompt that was not answered by the deadline; ``cause``: its last failure."""
    error = DeadlineError("the deadline passed before this prompt was answered")
    error.__cause__ = cause
    return error


def nobody_waits() -> NotSentError:
    """Return the error of a prompt whose result nobody waits for."""
    return NotSentError("cancelled: nobody waits for this answer any more")


def pool_closed() -> NotSentError:
    """Return the error of a prompt whose pool was closed."""
    return NotSentError("cancelled: the pool was closed")


def interrupted() -> NotSentError:
    """Return the error of a prompt whose map was interrupted."""
    return NotSentError("cancelled: the run was interrupted")


def exiting() -> NotSentError:
    """Return the error of a prompt that was pending when the interpreter exited."""
    return NotSentError("cancelled: the interpreter is exiting")


def exception_elsewhere() -> NotSentError:
    """Return the error of a prompt whose map ended with an exception."""
    return NotSentError("cancelled because of an exception in another call")


def no_call_can_succeed(cause: CallError) -> NotSentError:
    """Return the error of a call that was not made, because another one showed that none can succeed."""
    if isinstance(cause, NotSentError) and isinstance(cause.__cause__, CallError):
        cause = cause.__cause__
    error = NotSentError(f"not sent, because no call can succeed: {cause}", code=cause.code)
    error.__cause__ = cause
    return error


def outage(cause: CallError | None) -> NotSentError:
    """Return the error of a call that was not made, because the server was out for too long."""
    error = NotSentError(f"not sent, because the server was out for too long: {cause}", code="outage")
    error.__cause__ = cause
    return error
