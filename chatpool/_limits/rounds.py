"""Limits that come back all at once, at fixed times: so many requests a minute, say. Pure arithmetic."""

from __future__ import annotations

import math

LONG = 15.0  # seconds: a limit that refuses everything for so long may come back all at once, so it is tried at full
# speed then; where it takes less time, a steady pace is as good
WORTH = 2  # times the refusals at its end, at least, are accepted in a round: else full speed costs too many
STEPS = 30  # probes in one period: so finely is the next beginning looked for


class Rounds:
    """Knows whether the limit comes back in rounds, and when the next one begins."""

    def __init__(self) -> None:
        self.figure: str | None = None  # the limit in words: requests in so many seconds, once two rounds were seen
        self._are_on = False
        self._are_costly = False  # full speed was refused more often than it is worth
        self._began: tuple[float, float] | None = None  # between these moments the latest round began
        self._period = 0.0  # seconds from one round to the next, at least

    def next(self) -> tuple[float, float]:
        """Return before when the next round does not begin, and how often to look for it from then on."""
        if not self._are_on or self._began is None:
            return -math.inf, math.inf
        return self._began[0] + self._period, self._period / STEPS

    def begin(self, since: float, failed_at: float, now: float, accepted: float, refused: int) -> bool:
        """Note that requests are accepted again; return whether this is a new round.

        They were refused since ``since``, and at ``failed_at`` still. Before that, so many were accepted; ``refused``
        is how many it took to notice the end.
        """
        if self._are_on and accepted < WORTH * refused:
            self._are_costly = True
        if self._began is not None:
            self.figure = f"{accepted:.0f} requests in {now - self._began[1]:.2g} s"
            self._period = max(self._period, failed_at - self._began[1])
        self._are_on = not self._are_costly and (self._are_on or now - since >= LONG)
        if self._are_on:
            self._period = max(self._period, failed_at - since)
            self._began = failed_at, now
        return self._are_on
