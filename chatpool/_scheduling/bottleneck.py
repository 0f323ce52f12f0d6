"""Measures what holds calls back: seconds, by cause. Pure arithmetic on given times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from chatpool._limits.limits import BACK_OFF, SLOTS

from .backlog import Backlog

_NOTABLE = 0.1  # share of a run's time that calls were held back, from which on a limit is named


class Bottleneck:
    """Counts the seconds in which a call waited, by cause: one cause at a time, the one that it waited for.

    A slot stands empty meanwhile; or all are in use, and then the number of slots is the cause.
    """

    def __init__(self, slots: int) -> None:
        self.waits: Counter[str] = Counter()
        self._slots = slots
        self._counted_at = time.monotonic()
        self._cause: str | None = None  # since then

    def count(self, now: float) -> None:
        """Add the time since the last count."""
        if self._cause is not None:
            self.waits[self._cause] += now - self._counted_at  # type: ignore[assignment]  # a Counter may count in seconds
        self._counted_at = now

    def note(self, in_flight: int, blocked_by: str | None, backlog: Backlog) -> None:
        """Note what holds calls back from now on. ``blocked_by``: the limit for which the next call waits."""
        if in_flight >= self._slots:
            self._cause = SLOTS if backlog.is_waiting else None
        else:
            self._cause = blocked_by or (BACK_OFF if backlog.delayed else None)


def name_bottleneck(waits: Mapping[str, float], slots: int, seconds: float) -> str:
    """Name what held calls back for the longest time; ``nothing`` if that was less than a tenth of the run's time."""
    cause = max(waits, key=lambda name: waits[name], default="")
    if not cause or waits[cause] < _NOTABLE * seconds:
        return "nothing"
    return f"{SLOTS}={slots}" if cause == SLOTS else cause
