"""Outages: when every request fails, one at a time probes. Pure arithmetic on the times that it is given."""

from __future__ import annotations

import math
from typing import Any

from chatpool.errors import CallError

from .breaker import Breaker

FEWEST = 20  # failures in a row make an outage, even in a small pool
PROMPTS = 1.25  # times the slots: so many prompts whose first request failed; or as many as there are slots, if
REQUESTS = 2  # times as many requests failed: one prompt that fails again and again may be at fault itself
FIRST_PROBE = 0.25  # seconds after it began
LONGEST_PROBE = 5.0  # seconds between two probes: so late is its end noticed at most
NOBODY_LISTENS = 10.0  # seconds for which a server is waited for that refused every connection since the pool began
_REFUSED = frozenset({"connection_refused", "name_not_found"})


class Outage:
    """Notices an outage, and says when to probe."""

    def __init__(self, slots: int, longest_wait: float) -> None:
        self._slots, self._longest_wait = max(FEWEST, slots), longest_wait
        self._breaker = Breaker(FIRST_PROBE, min(LONGEST_PROBE, longest_wait))
        self._failures = 0  # in a row
        self._row_began = 0.0
        self._prompts = 0  # whose first request is among them
        self._has_listened = False  # the server accepted a connection once
        self.cause: CallError | None = None  # the latest failure

    @property
    def is_on(self) -> bool:
        """Whether there is an outage now."""
        return self._breaker.is_open

    def delay(self, now: float) -> float:
        """Return the seconds until a call may be sent: 0 while there is no outage, endless while one probes."""
        return self._breaker.delay(now) if self._breaker.is_open else 0.0

    def left(self, now: float, longest: float) -> float:
        """Return the seconds for which the outage is still waited out, ``longest`` in all; endless without one."""
        if self._breaker.since is None:
            return math.inf
        return self._breaker.since + (longest if self._has_listened else min(longest, NOBODY_LISTENS)) - now

    def sent(self, call: Any) -> None:
        """Note that a call is sent; in an outage it is the probe."""
        if self._breaker.is_open:
            self._breaker.probe = call

    def left_wire(self, call: Any) -> None:
        """Note that a call is off the wire, whatever came of it."""
        if self._breaker.probe is call:
            self._breaker.probe = None

    def failed(self, now: float, call: Any, cause: CallError) -> None:
        """Note a connection failure or a 5xx."""
        self.cause = cause
        self._has_listened = self._has_listened or cause.code not in _REFUSED
        if self._failures == 0:
            self._row_began = now
        self._failures += 1
        self._prompts += call.attempts == 1
        if self._breaker.is_open:
            self._breaker.failed(now, cause.retry_after)
        elif self._prompts >= (1 if self._failures >= REQUESTS * self._slots else PROMPTS) * self._slots:
            self._breaker.open(now, now, cause.retry_after)

    def replied(self, call: Any) -> None:
        """Note a reply that is no failure. One to a request from before the row says nothing about the server now."""
        self._has_listened = True
        if not self._failures or call.sent_at > self._row_began:
            self.over()

    def over(self) -> None:
        """Note that the server is back, or that it is not waited for any more."""
        self._failures = self._prompts = 0
        self._breaker.close()
