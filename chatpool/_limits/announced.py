"""Limits that the server announces: how much of them is left, and when it comes back. Pure arithmetic.

Some servers announce what is not so: that nothing is left, while they answer. So a limit that says this is tried, with
one request at a time. A refusal proves it, and an answer speaks against it. Until it is proven, it may hold requests
back for a twentieth of the time at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from chatpool._protocol.announced_limits import TOKENS as TOKENS_NAME
from chatpool._protocol.announced_limits import Announced

from .meter import REQUESTS, TOKENS
from .wire import Sent

UNPROVEN = 1 / 20  # of the time
SHORTEST_HOLD, LONGEST_HOLD = 0.01, 1.0  # seconds: a refusal takes so long
PROOF = 2  # refusals of requests that it ruled out
MOVED = 0.5  # seconds: two announcements that are closer do not show whether the reset moves with what is used


class Quota:
    """One announced limit. ``size`` is 1 for a request, or its tokens where the limit counts tokens."""

    def __init__(self, announced: Announced, now: float, began: float, sent: float) -> None:
        self.unit = announced.unit
        self._latest, self._updated_at, self._began = announced, now, began
        self._number = 0  # of the request with the latest announcement
        self._left = math.inf  # what may still be sent
        self._sent = sent  # since the latest reset
        self._is_reset = self._is_hit = False  # its time has passed; a request was refused since
        self._refills = False  # it comes back bit by bit, as OpenAI's does, else all at once
        self._counts_late = False  # what remains is counted when the reply is sent, else when the request came
        self._hits = self._misses = 0  # requests that it ruled out: refused, and answered
        self._ruled_out: dict[Any, bool] = {}  # of those in flight; True: even what was sent since was not counted
        self._probe: Any = None
        self._hold_until, self._held = -math.inf, 0.0

    @property
    def is_proven(self) -> bool:
        """Whether it came true as often as not, and more than once: a single refusal may be chance."""
        return self._hits >= PROOF and self._hits >= self._misses

    @property
    def figure(self) -> str | None:
        """The limit in words, if it is known."""
        limit = self._latest.limit
        return f"{limit:,g} {self.unit}" if limit else None

    def update(self, now: float, announced: Announced, number: int, sent_since: float) -> None:
        """Take in what the reply to a request announces; ``sent_since``: the size of what was sent after that one."""
        self._reset(now)
        if number < self._number:
            return
        self._compare(now, announced)
        self._latest, self._updated_at, self._number = announced, now, number
        self._left = announced.remaining - (0.0 if self._counts_late else sent_since)
        self._is_reset = False
        if announced.remaining < 1 and not self._is_hit and self._sent < (announced.limit or 0.0) / 2:
            self._hits = self._misses = 0  # nothing left, though little was sent: it has to be proven again

    def _compare(self, now: float, announced: Announced) -> None:
        """Does the reset move away as more is used? Then the limit is a bucket that refills."""
        before = self._latest
        if None in (announced.reset, announced.limit, before.reset, before.limit):
            return
        ends, ended = now + announced.reset, self._updated_at + before.reset  # type: ignore[operator]  # none is None
        used, used_before = (each.limit - each.remaining for each in (announced, before))  # type: ignore[operator]
        if used_before <= 0 or now >= ended:
            return
        expected = now - self._updated_at + (used - used_before) * (ended - self._updated_at) / used_before
        if abs(expected) > MOVED:
            self._refills = abs(ends - ended - expected) < abs(ends - ended)

    def delay(self, now: float, size: float, longest: float) -> float:
        """Return the seconds until there is room; 0 if that is longer than ``longest``: so long nobody waits."""
        wait = self._wait(now, size)
        if not 0 < wait <= longest:
            return 0.0
        return wait if self.is_proven else max(0.0, self._hold_until - now)

    def sent(self, call: Any, now: float, size: float) -> None:
        """Count a request."""
        if self._wait(now, size) > 0:
            self._ruled_out[call] = self._latest.remaining < size
            self._try(call, now)
        self._left -= size
        self._sent += size

    def _try(self, call: Any, now: float) -> None:
        """Hold the others back until it is known what comes of this one, if there is time for that."""
        hold = min(UNPROVEN * (now - self._began) - self._held, LONGEST_HOLD)
        is_free = self._probe is None or (self._latest.remaining < 1 and now >= self._hold_until)
        if is_free and hold >= SHORTEST_HOLD and not self.is_proven:
            self._probe, self._hold_until = call, now + hold
            self._held += hold

    def accepted(self, call: Any, now: float) -> None:
        """Note that a request was accepted."""
        if call in self._ruled_out:
            was_certain = self._ruled_out[call]
            self._misses += was_certain
            self._counts_late = self._counts_late or not was_certain
        self.gone(call, now)

    def refused(self, call: Any, now: float, size: float) -> bool:
        """Note a refusal; return whether the limit ruled the request out."""
        is_hit = call in self._ruled_out
        self._hits += is_hit
        self._is_hit = self._is_hit or is_hit
        self._left += size
        self._sent -= size
        self.gone(call, now)
        return is_hit

    def gone(self, call: Any, now: float) -> None:
        """Note that a request is off the wire."""
        self._ruled_out.pop(call, None)
        if self._probe is call:
            self._held -= max(0.0, self._hold_until - now)
            self._probe, self._hold_until = None, -math.inf

    def _reset(self, now: float) -> None:
        """All of it is back, when its time has passed."""
        reset = self._latest.reset
        if reset is not None and not self._is_reset and now >= self._updated_at + reset:
            self._left, self._sent = self._latest.limit or math.inf, 0.0
            self._is_reset, self._is_hit = True, False

    def _wait(self, now: float, size: float) -> float:
        self._reset(now)
        reset, limit = self._latest.reset, self._latest.limit
        if reset is None or self._is_reset or self._left >= size:
            return 0.0
        ends = self._updated_at + reset - now
        if not self._refills or not limit:
            return ends
        used = max(limit - self._latest.remaining, 1.0)
        return min(ends, max(0.0, (size - self._left) * reset / used - (now - self._updated_at)))


class Announcements:
    """All limits that one model's replies announce."""

    def __init__(self, longest_wait: float) -> None:
        self._longest_wait = longest_wait
        self._quotas: dict[str, Quota] = {}
        self._began: float | None = None

    def update(self, now: float, found: Iterable[Announced], request: Sent, total: tuple[float, float]) -> None:
        """Take in what the reply to a request announces; ``total``: requests and tokens sent so far."""
        for announced in found:
            unit = TOKENS if announced.unit == TOKENS_NAME else REQUESTS
            quota = self._quotas.get(announced.name)
            if quota is None:
                began = now if self._began is None else self._began
                quota = self._quotas[announced.name] = Quota(announced, now, began, total[unit])
            quota.update(now, announced, request.number, total[unit] - request.total[unit])

    @property
    def figure(self) -> str | None:
        """A limit that has proven true, in words."""
        proven = (quota.figure for quota in self._quotas.values() if quota.is_proven)
        return next(filter(None, proven), None)

    def delay(self, now: float, tokens: int) -> float:
        """Return the seconds until each limit has room for a request."""
        waits = [quota.delay(now, _size(quota, tokens), self._longest_wait) for quota in self._quotas.values()]
        return max(waits, default=0.0)

    def sent(self, now: float, call: Any) -> None:
        """Count a request."""
        if self._began is None:
            self._began = now
        for quota in self._quotas.values():
            quota.sent(call, now, _size(quota, call.tokens))

    def accepted(self, now: float, call: Any) -> None:
        """Note that a request was accepted."""
        for quota in self._quotas.values():
            quota.accepted(call, now)

    def refused(self, now: float, call: Any) -> bool:
        """Note a refusal; return whether one of the limits ruled the request out, and has proven true."""
        quotas = list(self._quotas.values())
        ruled_out = [quota.refused(call, now, _size(quota, call.tokens)) for quota in quotas]
        return any(is_hit and quota.is_proven for is_hit, quota in zip(ruled_out, quotas))

    def gone(self, now: float, call: Any) -> None:
        """Note that a request is off the wire without a reply."""
        for quota in self._quotas.values():
            quota.gone(call, now)


def _size(quota: Quota, tokens: int) -> float:
    return tokens if quota.unit == TOKENS_NAME else 1.0
