"""How long to wait between two attempts. The only home of backoff; the sender decides whether there is another."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Generator
from typing import Any, Callable, NoReturn

from chatpool.errors import CallError

_FIRST_WAIT = 0.25  # seconds, doubled for each further try
_LONGEST_OWN_WAIT = 20.0  # seconds; a server may ask for more, up to max_wait


def delay_before_retry(error: CallError, attempts: int, max_wait: float) -> float:
    """Return the seconds to wait after so many attempts: the server's word if it gave one, else full jitter.

    Full jitter: a random share of an exponentially growing bound ("Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015). A kept connection that turned out closed is no reason to wait.
    """
    if error.code == "stale_connection":
        return 0.0
    if error.retry_after is not None:
        return error.retry_after
    bound = min(_FIRST_WAIT * 2.0 ** min(attempts - 1, 32), _LONGEST_OWN_WAIT, max_wait)
    return random.uniform(0, bound)


class Postponed(Exception):
    """The next attempt is due in so many seconds; no thread waits for it."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay


def back_off(delay: float) -> NoReturn:
    """Raise Postponed: backoff decides that a failed attempt is made again, and the scheduler waits in its place.

    Entered only with a failure at hand: to enter backoff costs some 8 µs, and most calls do not fail.
    """
    load_backoff()(delay)
    raise AssertionError("backoff neither raised nor waited")


class _Failure(Exception):
    """An attempt failed; the next one is due in ``delay`` seconds."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay


def _waits() -> Generator[float, Any, None]:
    """Give backoff the wait that each failure names. backoff sends the first None, then every exception."""
    delay = (yield 0.0).delay
    while True:
        delay = (yield delay).delay  # the exception itself is not kept: its frames hold this generator


def _postpone(details: Any) -> None:
    """Called by backoff before it would sleep, in a thread that others need."""
    details["exception"].__traceback__ = None  # its frames hold the call, and python-backoff's hold the exception
    raise Postponed(details["wait"]) from None


@functools.cache
def load_backoff() -> Callable[[float], None]:
    """Import backoff, which imports asyncio, only when a pool is used: it would be a quarter of our import time.

    It is backoff 2.2.1 or its successor python-backoff, which has the same import name; setup.cfg chooses.
    """
    import backoff  # noqa: PLC0415 - see above

    def attempt_again(delay: float) -> None:
        raise _Failure(delay)

    decorate = backoff.on_exception(_waits, _Failure, jitter=None, logger=None, on_backoff=_postpone)
    with warnings.catch_warnings():
        # backoff 2.2.1 calls it. Users who turn warnings into errors, as in their tests, can do nothing about it.
        warnings.filterwarnings("ignore", "'asyncio.iscoroutinefunction' is deprecated", DeprecationWarning)
        return decorate(attempt_again)
