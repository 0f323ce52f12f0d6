"""What is worth another try, and how long to wait for it. The only home of backoff."""

from __future__ import annotations

import functools
import random
from collections.abc import Generator
from typing import Any, Callable, TypeVar

from chatpool._protocol.judgement import is_fatal_for_all as is_fatal_for_all
from chatpool._protocol.judgement import is_transient as is_transient
from chatpool.errors import CallError

_T = TypeVar("_T")

_FIRST_WAIT = 0.25  # seconds, doubled for each further try
_LONGEST_OWN_WAIT = 20.0  # seconds; a server may ask for more, up to max_wait


def delay_before_retry(error: CallError, tries: int, max_wait: float) -> float:
    """Return the seconds to wait after so many tries: the server's word if it gave one, else full jitter.

    Full jitter: a random share of an exponentially growing bound ("Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015). A kept connection that turned out closed is no reason to wait.
    """
    if error.code == "stale_connection":
        return 0.0
    if error.retry_after is not None:
        return error.retry_after
    bound = min(_FIRST_WAIT * 2.0 ** min(tries - 1, 32), _LONGEST_OWN_WAIT, max_wait)
    return random.uniform(0, bound)


class TryAgain(Exception):
    """A try failed in a way that another may mend, ``delay`` seconds from now."""

    def __init__(self, error: CallError, delay: float) -> None:
        super().__init__()
        self.error, self.delay = error, delay


class Postponed(Exception):
    """The next try is due in so many seconds; no thread waits for it."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay


def _postpone(details: Any) -> None:
    """Called by backoff where it would sleep next, in a thread that others need."""
    raise Postponed(details["wait"]) from None


def _delays() -> Generator[Any, TryAgain, None]:
    """As backoff.runtime does, but the exception is not kept: its frames hold this generator."""
    delay = (yield).delay
    while True:
        delay = (yield delay).delay


def attempt(step: Callable[[], _T]) -> _T:
    """Make a step of a call: return what it returns, raise its final error, or Postponed."""
    result: _T = load()(step)
    return result


@functools.cache
def load() -> Callable[[Callable[[], Any]], Any]:
    """Decorate once, before the first call: backoff imports asyncio, which would be a quarter of our import."""
    import backoff  # noqa: PLC0415

    @backoff.on_exception(_delays, TryAgain, jitter=None, logger=None, on_backoff=_postpone)
    def make(step: Callable[[], Any]) -> Any:
        return step()

    return make
