"""Measures what holds calls back: slots × seconds, by cause. Pure arithmetic on given times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from .backlog import Backlog
from .limits import BACK_OFF, SLOTS

_NOTABLE = 0.1  # share of the slots' time that calls were held back, from which on a limit is named


class Bottleneck:
    """Counts, for each cause, the empty slots that a call could have used, times the seconds.

    If every slot is in use, and calls wait for one, the cause is the number of slots, and all of them count.
    """

    def __init__(self, slots: int) -> None:
        self.waits: Counter[str] = Counter()
        self._slots = slots
        self._counted_at = time.monotonic()
        self._held: tuple[str, int] | None = None  # the cause since then, and how many slots count

    def count(self, now: float) -> None:
        """Add the time since the last count."""
        if self._held is not None:
            cause, slots = self._held
            self.waits[cause] += slots * (now - self._counted_at)  # type: ignore[assignment]  # a Counter may count in seconds
        self._counted_at = now

    def note(self, in_flight: int, blocked_by: str | None, backlog: Backlog) -> None:
        """Note what holds calls back from now on. ``blocked_by``: the limit for which the next call waits."""
        empty = self._slots - in_flight
        if not empty:
            self._held = (SLOTS, self._slots) if backlog.is_waiting else None
        elif blocked_by is not None:
            self._held = blocked_by, empty
        else:
            self._held = (BACK_OFF, min(empty, backlog.delayed)) if backlog.delayed else None


def name_bottleneck(waits: Mapping[str, float], calls: int, slots: int, seconds: float) -> str:
    """Name what held so many calls back most; ``nothing`` if it was less than a tenth of the slots' time."""
    cause = max(waits, key=lambda name: waits[name], default="")
    if not calls or not cause or waits[cause] < _NOTABLE * min(calls, slots) * seconds:
        return "nothing"
    return f"{SLOTS}={slots}" if cause == SLOTS else cause
