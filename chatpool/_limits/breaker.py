"""A circuit breaker: while it is open, one request at a time probes, at growing intervals. Pure arithmetic."""

from __future__ import annotations

import math
from typing import Any

GROWTH = 1 / 6  # of the time for which it is open already: so much later is the next probe, and the end noticed at most


class Breaker:
    """``first``: seconds until the first probe where nobody asked for more. ``longest``: between two probes at most."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = min(first, longest), longest
        self.since: float | None = None  # when it opened; None: it is closed
        self.probe: Any = None  # the request that probes
        self.probes = 0  # that failed
        self.failed_at = 0.0  # when the latest request failed
        self._next, self._not_before = 0.0, -math.inf
        self._may_hurry = False

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self.since is not None

    def open(self, now: float, since: float, asked: float | None, not_before: float = -math.inf) -> None:
        """Open it. ``asked``: the delay that the server asked for; ``not_before``: no probe comes earlier."""
        self.since, self.probe, self.probes, self.failed_at = since, None, 0, now
        self._not_before, self._may_hurry = not_before, asked is None
        self._next = max(now + min(self._first if asked is None else asked, self._longest), not_before)

    def close(self) -> None:
        """Close it: requests are accepted again."""
        self.since = self.probe = None

    def delay(self, now: float) -> float:
        """Return the seconds until the next probe may be sent; endless while one is under way."""
        return math.inf if self.probe is not None else max(0.0, self._next - now)

    def failed(self, now: float, asked: float | None) -> None:
        """Note that the probe failed."""
        assert self.since is not None
        self.probe, self.failed_at, self._may_hurry = None, now, False
        self.probes += 1
        wait = min(max(asked or self._first, (now - self.since) * GROWTH), self._longest)
        self._next = max(self._next, self._not_before, now + wait)

    def ask(self, now: float, asked: float) -> None:
        """Note that the server asked for a delay."""
        self._next = max(self._next, now + min(asked, self._longest))

    def hurry(self, now: float) -> None:
        """Send the first probe at once, where nobody asked for a delay: an answer may have made room."""
        if self._may_hurry:
            self._may_hurry, self._next = False, max(now, self._not_before)
