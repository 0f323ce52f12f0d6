"""A budget that the user sets: so many requests or tokens a minute. Pure arithmetic."""

from __future__ import annotations

_BURST = 1.0  # seconds' worth of a budget that may be sent at once


class Budget:
    """A token bucket that holds a second's share. A larger need is met when the bucket is full.

    What is taken beyond the level is a debt that later needs wait out, so the average holds in any case.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._keep_to(1.0)
        self._level = self._size
        self._filled_at: float | None = None

    def share(self, part: float) -> None:
        """Keep to a part of the budget. A new part begins empty: other processes had it until just now."""
        if part != self._part:
            self._keep_to(part)
            self._level = min(self._level, 0.0)

    def _keep_to(self, part: float) -> None:
        self._part = part
        self._per_second = part * self._per_minute / 60
        self._size = max(1.0, self._per_second * _BURST)

    def delay(self, now: float, need: float) -> float:
        """Return the seconds until ``need`` may be taken."""
        if self._filled_at is not None:
            self._level = min(self._size, self._level + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        return max(0.0, (min(need, self._size) - self._level) / self._per_second)

    def take(self, need: float) -> None:
        """Take ``need``; a negative one gives back."""
        self._level -= need
