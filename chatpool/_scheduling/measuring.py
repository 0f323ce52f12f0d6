"""What a server takes, measured between refusals; and limits that come back all at once. Pure arithmetic.

A token bucket is empty whenever it refuses. So from one refusal to the next a server takes exactly what it allows, the
pauses in between included. Answers may be long in coming and refusals are not: what was sent and is not refused counts
as taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

REQUESTS, TOKENS = 0, 1

LONG = 5.0  # seconds: a limit that stays shut so long may be a window that opens all at once, so the first round is
# tried at full speed; for shorter ones a steady pace is as good
WORTH = 2  # times the refusals at its end, at least, are taken in a round: else full speed costs too many
STEPS = 30  # probes in one period: so finely is the opening looked for


@dataclass
class Mark:
    """A refusal: when it came, and what had been taken until then, in requests and in tokens."""

    at: float
    taken: list[float]
    unspent: tuple[float, float]  # what was left, but too little for the refused request: half of that, on average
    paused: float  # seconds of pauses until then


class Meter:
    """Counts what is taken, and measures its rate between two marks."""

    def __init__(self) -> None:
        self.taken = [0.0, 0.0]
        self.paused = 0.0
        self._first: Mark | None = None  # where the measure begins
        self._before: Mark | None = None  # where the measure before it began
        self._latest: Mark | None = None  # the latest refusal

    def sent(self, now: float, tokens: int) -> None:
        """Count a request."""
        if self._first is None:
            self._first = self._mark(now)
        self.taken[REQUESTS] += 1
        self.taken[TOKENS] += tokens

    def not_taken(self, sent_at: float, tokens: int) -> None:
        """Count it no more: the server refused it, or it failed."""
        marks = [mark.taken for mark in self._marks() if sent_at <= mark.at]
        for taken in (self.taken, *marks):
            taken[REQUESTS] -= 1
            taken[TOKENS] -= tokens

    def refused(self, now: float, tokens: int) -> None:
        """Note that a row of refusals begins."""
        self._latest = self._mark(now, (0.5, tokens / 2))

    def restart(self) -> None:
        """Measure from the latest refusal on."""
        self._before, self._first = self._first, self._latest

    def forget(self) -> None:
        """Measure from the next request on."""
        self._first = self._before = None

    @property
    def counted(self) -> float:
        """Requests taken in the measure, up to the latest refusal."""
        assert self._first is not None
        assert self._latest is not None
        return self._latest.taken[REQUESTS] - self._first.taken[REQUESTS]

    def rate(self, unit: int, size: float) -> float:
        """Return what was taken a second, up to the latest refusal, which was of a request of this size."""
        assert self._first is not None
        assert self._latest is not None
        taken = self._latest.taken[unit] - self._first.taken[unit]
        unspent = self._latest.unspent[unit] - self._first.unspent[unit]
        return max(taken + min(unspent, taken), size / 2) / max(self._latest.at - self._first.at, 1e-3)

    def rate_without_pauses(self, unit: int, size: float) -> float:
        """Return the same, for the time between the pauses: a limit that saves nothing up allows so much."""
        assert self._first is not None
        assert self._latest is not None
        span = self._latest.at - self._first.at
        paused = self._latest.paused - self._first.paused
        return self.rate(unit, size) * span / max(span - paused, 1e-3)

    def rate_until(self, now: float, unit: int, enough: float) -> float:
        """Return what was taken a second until now, from before the latest measure if that one has counted too few."""
        assert self._first is not None
        first = self._first
        if self._before is not None and self.taken[REQUESTS] - first.taken[REQUESTS] < enough:
            first = self._before
        return max(self.taken[unit] - first.taken[unit], 1.0) / max(now - first.at, 1e-3)

    def mean_size(self) -> float:
        """Return the tokens of a request that was taken, on average."""
        return max(self.taken[TOKENS], 1.0) / max(self.taken[REQUESTS], 1.0)

    def _mark(self, now: float, unspent: tuple[float, float] = (0.0, 0.0)) -> Mark:
        return Mark(now, list(self.taken), unspent, self.paused)

    def _marks(self) -> list[Mark]:
        marks: dict[int, Mark] = {}
        for mark in (self._before, self._first, self._latest):
            if mark is not None:
                marks[id(mark)] = mark
        return list(marks.values())


class Rounds:
    """A limit that comes back all at once at fixed times, and when it will come back next."""

    def __init__(self) -> None:
        self.size: float | None = None  # requests that the latest round took; None: there are no rounds
        self._opened: tuple[float, float] | None = None  # between these moments the latest round began
        self._period = 0.0  # seconds from one round to the next, at least

    def next(self) -> tuple[float, float]:
        """Return before when the next round does not begin, and how often to look for it from then on."""
        if self.size is None or self._opened is None:
            return -math.inf, math.inf
        return self._opened[0] + self._period, self._period / STEPS

    def begin(self, since: float, failed_at: float, now: float, taken: float, refused: int) -> bool:
        """Note that requests are taken again: is it a new round, which is taken at full speed?

        They were refused since ``since``, and at ``failed_at`` still. Before that, ``taken`` of them were taken, and
        ``refused`` ones were sent in vain.
        """
        is_round = now - since >= LONG if self.size is None else taken >= WORTH * refused
        if self._opened is not None:
            self._period = max(self._period, failed_at - self._opened[1])
        if not is_round:
            self.size = None
            return False
        self._period = max(self._period, failed_at - since)
        self.size, self._opened = taken, (failed_at, now)
        return True
