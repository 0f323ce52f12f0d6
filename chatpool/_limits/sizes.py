"""In which unit a server's limit counts, requests or tokens, and how large a request is. Pure counting."""

from __future__ import annotations

import math
from typing import Any

from .meter import REQUESTS, TOKENS, Meter

LARGE = 2.0  # times the mean tokens of what is accepted: a refusal may be for its tokens
TOO_LARGE = 1.5  # times the largest that was ever accepted: a refusal says nothing of the others
FUTILE = 2  # prompts that are too large were refused, and none accepted: the pace need not save up for another one
FOR_LARGE, FOR_OTHERS, MOST = 2, -1, 4  # a refusal of a large request weighs twice as much; four in all


class Sizes:
    """Counts tokens while mostly large requests are refused, else requests."""

    def __init__(self, meter: Meter) -> None:
        self.unit: int = REQUESTS
        self.largest = 0  # tokens of the largest request that was accepted
        self._meter = meter
        self._weight = 0
        self._smallest = math.inf  # tokens of the smallest request that was refused
        self._refused: set[int] = set()  # prompts that were refused, by their ids; only so many

    def of(self, call: Any) -> float:
        """Return the size of a request, in the limit's unit."""
        return float(call.tokens) if self.unit == TOKENS else 1.0

    @property
    def mean(self) -> float:
        """The size of the mean request."""
        return self._meter.mean_tokens() if self.unit == TOKENS else 1.0

    def is_large(self, call: Any) -> bool:
        """Whether a request is far larger than the mean."""
        return bool(call.tokens >= LARGE * self._meter.mean_tokens())

    def is_too_large(self, call: Any) -> bool:
        """Whether a request is far larger than all that were accepted."""
        return bool(0 < TOO_LARGE * self.largest < call.tokens)

    def is_futile(self, call: Any) -> bool:
        """Whether a request is too large, and only such ones were refused, at least two of them."""
        spares_others = self._smallest > TOO_LARGE * self.largest  # so the limit is not on tokens a second
        return spares_others and len(self._refused) >= FUTILE and self.is_too_large(call)

    def accepted(self, call: Any) -> None:
        """Note that the server accepted a request."""
        self.largest = max(self.largest, call.tokens)

    def refused(self, call: Any) -> None:
        """Note a refusal."""
        self._smallest = min(self._smallest, call.tokens)
        if len(self._refused) < FUTILE:
            self._refused.add(id(call))

    def changes_unit(self, call: Any) -> bool:
        """Note that a row of refusals begins with this one; return whether the unit is another one now."""
        self._weight = min(max(self._weight + (FOR_LARGE if self.is_large(call) else FOR_OTHERS), 0), MOST)
        before = self.unit
        if self._weight >= FOR_LARGE:
            self.unit = TOKENS
        elif self._weight == 0:
            self.unit = REQUESTS
        return self.unit != before
