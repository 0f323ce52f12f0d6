"""The requests in flight, in the order of sending, and which of them the server accepted. Pure arithmetic.

A refusal comes at once, and an answer late. So a request that is in flight for longer than refusals take was accepted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SURVIVED = 2.0  # times the slowest refusal: a request that is in flight for so long was accepted
AT_ONCE = 0.01  # seconds that this is at least
SLOWEST = 1.0  # seconds; a refusal that takes longer is not waited for
FADE = 0.9  # of the slowest refusal is kept with each that is faster


@dataclass
class Sent:
    """A request in flight."""

    number: int  # in the order of sending
    total: tuple[float, float]  # requests and tokens sent until then, with this one
    is_free: bool  # it was sent with no pace
    is_below: bool  # it was sent below the known pace
    is_apart: bool  # it says nothing of the limit


class Wire:
    """Knows what is in flight."""

    def __init__(self) -> None:
        self.number = 0  # of the latest request
        self.sent_at = -math.inf  # when it was sent
        self._tokens = 0
        self._requests: dict[Any, Sent] = {}
        self._accepted = 0  # the number of the latest request that was accepted, as far as is known
        self._slowest = 0.0  # seconds that refusals take

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        return len(self._requests)

    @property
    def total(self) -> tuple[float, float]:
        """Requests and tokens sent so far."""
        return float(self.number), float(self._tokens)

    @property
    def decided(self) -> float:
        """Seconds after which a request that is not refused was accepted."""
        return max(SURVIVED * self._slowest, AT_ONCE)

    def sent(self, now: float, call: Any, *, is_free: bool, is_below: bool, is_apart: bool) -> Sent:
        """Note that a request is sent."""
        self.number, self.sent_at = self.number + 1, now
        self._tokens += call.tokens
        request = Sent(self.number, self.total, is_free, is_below, is_apart)
        self._requests[call] = request
        return request

    def gone(self, call: Any) -> Sent | None:
        """Note that a request is off the wire; return it, if it was in flight."""
        return self._requests.pop(call, None)

    def accepted(self, request: Sent) -> None:
        """Note that the server accepted a request."""
        self._accepted = max(self._accepted, request.number)

    def refused(self, seconds: float) -> None:
        """Note how long a refusal took."""
        self._slowest = max(FADE * self._slowest, min(seconds, SLOWEST))

    def latest_accepted(self, now: float) -> int:
        """Return the number of the latest request that was accepted: answered, or in flight for long."""
        for call in reversed(self._requests):
            number = self._requests[call].number
            if number <= self._accepted:
                break
            if now - call.sent_at >= self.decided:
                self._accepted = number
                break
        return self._accepted
