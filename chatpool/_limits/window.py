"""The window: how many requests may be in flight at once, at a server that refuses more. Pure arithmetic.

A limit on requests in flight looks at first like a limit on requests a second. One request more
than were in flight when the refusals began shows the difference: it is refused by the one, and accepted by the other.
"""

from __future__ import annotations

from typing import Any

SHRINK = 0.85  # a confirmed window explains refusals from this share of it on: others may use the server, too
SOON = 2  # answers for each request of the window, until it is tried again for the first time: it may be chance
ANSWERS = 20  # for each request of the window, until one more is tried: at most 5 percent of the requests are refused
TOO_MANY = 0.25  # of the requests within the window refused, at least three: then it is not the limit
FORGET = 4.0  # times the window that was confirmed: a limit so much higher is another limit


class Window:
    """Supposed when refusals begin, confirmed by a refusal beyond it, grown by answers (additive increase)."""

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Keep no window."""
        self.limit: int | None = None
        self.is_confirmed = False
        self.probe: Any = None  # the request in flight beyond the window
        self._beside = 0  # requests in flight when it was sent, but for those that were refused, too
        self._answers = self._refusals = 0
        self._patience = ANSWERS  # answers for each request of the window, until one more is tried
        self._confirmed, self._step = 0, 1

    def suppose(self, limit: int) -> None:
        """Suppose that the server takes so many at once, unless it is known already how many."""
        if not self.is_confirmed:
            self.drop()
            self.limit = max(1, limit)

    def suppose_less(self) -> None:
        """Note that one of the requests that were in flight then was refused, too."""
        if self.limit is not None and not self.is_confirmed:
            self.limit = max(1, self.limit - 1)

    def is_full(self, in_flight: int) -> bool:
        """Whether nothing may be sent while so many are in flight."""
        if self.limit is None or in_flight < self.limit:
            return False
        return self.probe is not None or (self.is_confirmed and self._answers < self._patience * self.limit)

    def sent(self, call: Any, in_flight: int) -> None:
        """Note that a request is sent while so many others are in flight."""
        if self.limit is not None and in_flight >= self.limit:
            self.probe, self._beside = call, in_flight

    def accepted(self, call: Any) -> None:
        """Note that the server accepted a request."""
        self._answers += 1
        if self.probe is call:
            self.probe_accepted()

    def probe_accepted(self) -> None:
        """Note that the server accepted one beyond the window: grow it, or drop one that was only supposed."""
        self.probe = None
        if self.limit is None or not self.is_confirmed:
            self.drop()
            return
        self.limit += self._step
        self._step *= 2  # a limit that is gone is left behind in a few steps
        self._answers = ANSWERS * self.limit
        if self.limit > FORGET * self._confirmed:
            self.drop()

    def refused(self, call: Any, in_flight: int, *, is_near: bool = False) -> bool:
        """Note a refusal while so many others are in flight; return whether the window explains it.

        ``is_near``: it was sent at about the same time as the probe, which may have overtaken it.
        """
        if self.limit is None:
            return False
        if self.probe is call or (is_near and in_flight >= self.limit):
            self._confirm(max(in_flight, self._beside))
            return True
        self._beside -= 1
        if not self.is_confirmed:
            return False
        self._refusals += 1
        if self._refusals >= 3 and self._refusals >= TOO_MANY * (self._refusals + self._answers):
            self.drop()
            return False
        return in_flight + 1 >= SHRINK * self.limit

    def gone(self, call: Any) -> None:
        """Note that a request is off the wire without a reply."""
        if self.probe is call:
            self.probe = None

    def _confirm(self, limit: int) -> None:
        patience = ANSWERS if self.is_confirmed else SOON
        self.drop()
        self._patience = patience
        self.limit = self._confirmed = max(1, limit)
        self.is_confirmed = True
