"""Measures what a server accepts a second, between refusals. Pure arithmetic.

A token bucket is empty whenever it refuses. So from one refusal to the next a server accepts exactly what it allows,
the pauses in between included. Answers may be long in coming and refusals are not: a request that was sent and is not
refused counts as accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

REQUESTS, TOKENS = 0, 1

ENOUGH = 16  # accepted requests make a rate that is known; with fewer, it is uncertain
SIZES = 8  # times the size of the refused request, at least, likewise: else it is the rate of a few large ones
MOMENT = 1e-3  # seconds that a measure takes at least


@dataclass
class Mark:
    """A refusal: when it came, and how much had been accepted until then, in requests and in tokens."""

    at: float
    accepted: list[float]
    unspent: tuple[float, float]  # how much was left, too little for the refused request: half of that, on average
    paused: float  # seconds of pauses until then


class Meter:
    """Counts what is accepted, and measures its rate from one mark to the next."""

    def __init__(self) -> None:
        self.accepted = [0.0, 0.0]
        self.paused = 0.0
        self._first: Mark | None = None  # where the measure begins
        self._before: Mark | None = None  # where the measure before it began
        self._latest: Mark | None = None  # the latest refusal

    def sent(self, now: float, tokens: int) -> None:
        """Count a request."""
        if self._first is None:
            self._first = self._mark(now)
        self.accepted[REQUESTS] += 1
        self.accepted[TOKENS] += tokens

    def not_accepted(self, sent_at: float, tokens: int) -> None:
        """Do not count it any more: the server refused it, or it failed."""
        later = {id(mark): mark for mark in (self._before, self._first, self._latest) if mark and sent_at <= mark.at}
        for accepted in (self.accepted, *(mark.accepted for mark in later.values())):
            accepted[REQUESTS] -= 1
            accepted[TOKENS] -= tokens

    def refused(self, now: float, tokens: int) -> None:
        """Note that a row of refusals begins."""
        self._latest = self._mark(now, (0.5, tokens / 2))
        self._first = self._first or self._latest

    def restart(self) -> None:
        """Measure from the latest refusal on."""
        self._before, self._first = self._first, self._latest

    def forget(self) -> None:
        """Measure from the next request on."""
        self._first = self._before = None

    # After a refusal.

    def is_enough(self, unit: int, size: float) -> bool:
        """Whether so much was accepted that its rate is known."""
        return self._gain(REQUESTS) >= ENOUGH and self._gain(unit) >= SIZES * size

    def rate(self, unit: int, size: float) -> float:
        """Return how much was accepted a second, up to the latest refusal, which was of a request of this size."""
        first, latest = self._span()
        gain, unspent = self._gain(unit), latest.unspent[unit] - first.unspent[unit]
        return max(gain + min(unspent, gain), size / 2) / max(latest.at - first.at, MOMENT)

    def rate_without_pauses(self, unit: int, size: float) -> float:
        """Return the same, for the time between the pauses: a limit that saves nothing up allows so much."""
        first, latest = self._span()
        span = latest.at - first.at
        return self.rate(unit, size) * span / max(span - (latest.paused - first.paused), MOMENT)

    def rate_until(self, now: float, unit: int) -> float:
        """Return how much was accepted a second until now, from before the measure if it has counted too few."""
        first, _ = self._span()
        if self._before is not None and self.accepted[REQUESTS] - first.accepted[REQUESTS] < ENOUGH:
            first = self._before
        return max(self.accepted[unit] - first.accepted[unit], 1.0) / max(now - first.at, MOMENT)

    def mean_tokens(self) -> float:
        """Return the tokens of an accepted request, on average."""
        return max(self.accepted[TOKENS], 1.0) / max(self.accepted[REQUESTS], 1.0)

    def _gain(self, unit: int) -> float:
        first, latest = self._span()
        return latest.accepted[unit] - first.accepted[unit]

    def _span(self) -> tuple[Mark, Mark]:
        assert self._first is not None
        assert self._latest is not None
        return self._first, self._latest

    def _mark(self, now: float, unspent: tuple[float, float] = (0.0, 0.0)) -> Mark:
        return Mark(now, list(self.accepted), unspent, self.paused)
