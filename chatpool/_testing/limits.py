"""Limits of every shape that a server may have, for ``FakeChatServer`` and for simulations.

Each limit is plain arithmetic on the times that it is given: ``check`` returns the refusal of a request, or None if the
server takes it; ``headers`` returns the headers of every reply. A limit keeps counts, so a server works on a copy.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Union

from .replies import Reply, Request

EXACT = "exact"  # a ``retry_after``: the seconds until the limit takes the request
RetryAfter = Union[float, str, None]


class Limit(Protocol):
    """Decides which requests a server refuses."""

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Return the refusal of a request, or None if the server takes it.

        ``now``: seconds of a monotonic clock; ``in_flight``: requests taken and not answered yet, without this one.
        """

    def headers(self, now: float) -> Mapping[str, str]:
        """Return the headers that announce the limit, on whatever reply is sent now."""


def count_tokens(request: Request) -> int:
    """Guess a request's tokens as OpenAI's limits do: one for four characters, and all that the answer may have."""
    longest = request.body.get("max_completion_tokens") or request.body.get("max_tokens") or 0
    return max(1, len(request.prompt) // 4) + int(longest)


@dataclass
class RateLimit:
    """A token bucket: ``per_second`` requests, ``burst`` at once; a refusal asks for ``retry_after`` seconds.

    ``retry_after``: None to name no delay, ``"exact"`` for the true one. ``unit``: ``"requests"`` or ``"tokens"``.
    ``refusals_count``: a refused request takes from the bucket, too, up to a second's debt. ``status``: of a refusal.
    ``announced``: every reply says what is left, and when the bucket is full again, as OpenAI's do.
    """

    per_second: float
    burst: float = 1
    retry_after: RetryAfter = None
    unit: str = "requests"
    refusals_count: bool = False
    status: int = 429
    announced: bool = False
    _level: float = field(default=math.nan, init=False, repr=False, compare=False)
    _filled_at: float = field(default=0.0, init=False, repr=False, compare=False)

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Refuse what the bucket has no room for."""
        need = count_tokens(request) if self.unit == "tokens" else 1
        self._fill(now)
        missing = need - self._level
        if missing <= 1e-9:  # but for rounding
            self._level -= need
            return None
        if self.refusals_count:
            self._level = max(self._level - need, -self.per_second)
        return refusal(self.status, self.retry_after, missing / self.per_second, self.headers(now))

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce what is left, and when all of it is back."""
        if not self.announced:
            return {}
        self._fill(now)
        left = max(0, math.floor(self._level))
        return announce(self.unit, self.burst, left, (self.burst - self._level) / self.per_second)

    def _fill(self, now: float) -> None:
        level = self.burst if math.isnan(self._level) else self._level
        self._level = min(self.burst, level + (now - self._filled_at) * self.per_second)
        self._filled_at = now


@dataclass
class FixedWindow:
    """``limit`` requests in each window of ``seconds``, all of which come back at its end.

    ``passed``: seconds of the first window that are over when the first request comes. ``announced``: every reply
    carries ``x-ratelimit-{limit,remaining,reset}-requests``.
    """

    limit: int
    seconds: float
    retry_after: RetryAfter = None
    passed: float = 0.0
    announced: bool = False
    status: int = 429
    _began: float = field(default=math.nan, init=False, repr=False, compare=False)
    _taken: int = field(default=0, init=False, repr=False, compare=False)

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Refuse what comes after the window's last."""
        self._turn(now)
        if self._taken < self.limit:
            self._taken += 1
            return None
        return refusal(self.status, self.retry_after, self._left(now), self.headers(now))

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce what remains, and when it comes back."""
        if not self.announced:
            return {}
        self._turn(now)
        return announce("requests", self.limit, self.limit - self._taken, self._left(now))

    def _turn(self, now: float) -> None:
        if math.isnan(self._began):
            self._began = now - self.passed
        windows = (now - self._began) // self.seconds
        if windows > 0:
            self._began, self._taken = self._began + windows * self.seconds, 0

    def _left(self, now: float) -> float:
        return self._began + self.seconds - now


@dataclass
class SlidingWindow:
    """At most ``limit`` requests in any ``seconds``. ``refusals_count``: refused ones are among them."""

    limit: int
    seconds: float
    retry_after: RetryAfter = None
    refusals_count: bool = False
    status: int = 429
    _times: deque[float] = field(default_factory=deque, init=False, repr=False, compare=False)

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Refuse what would be one too many in the seconds before it."""
        while self._times and self._times[0] <= now - self.seconds:
            self._times.popleft()
        is_taken = len(self._times) < self.limit
        left = 0.0 if is_taken else self._times[-self.limit] + self.seconds - now
        if is_taken or self.refusals_count:
            self._times.append(now)
        return None if is_taken else refusal(self.status, self.retry_after, left)

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce nothing."""
        return {}


@dataclass
class InFlight:
    """At most ``limit`` requests at once. ``status``: 429, or 503 or 529 as overloaded servers have it."""

    limit: int
    status: int = 429
    retry_after: RetryAfter = None

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Refuse what comes while so many are in flight."""
        return None if in_flight < self.limit else refusal(self.status, self.retry_after, 1.0)

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce nothing."""
        return {}


@dataclass
class RandomRefusals:
    """Refuses this share of the requests, whatever their pace: one of several backends has its own limit.

    ``seed``: the same one refuses the same requests.
    """

    share: float
    retry_after: RetryAfter = None
    status: int = 429
    seed: int = 0
    _random: random.Random | None = field(default=None, init=False, repr=False, compare=False)

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Refuse at random."""
        self._random = self._random or random.Random(self.seed)
        return refusal(self.status, self.retry_after, 1.0) if self._random.random() < self.share else None

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce nothing."""
        return {}


@dataclass
class RefusedPrompts:
    """Refuses some requests for ever, such as those that are larger than the whole limit; never the others."""

    is_refused: Callable[[Request], bool]
    retry_after: RetryAfter = None
    status: int = 429

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Refuse the requests that the function names."""
        return refusal(self.status, self.retry_after, 1.0) if self.is_refused(request) else None

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce nothing."""
        return {}


@dataclass
class PerModel:
    """A limit for each model; models without one have none."""

    limits: Mapping[str, Limit]

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Ask the limit of the request's model."""
        limit = self.limits.get(str(request.body.get("model")))
        return None if limit is None else limit.check(request, now, in_flight)

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce nothing: the reply's model is not known here."""
        return {}


@dataclass
class Shared:
    """A limit that other clients use, too: ``per_second`` requests, evenly."""

    limit: Limit
    per_second: float
    _next: float = field(default=math.nan, init=False, repr=False, compare=False)

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Let the others' requests come first."""
        if math.isnan(self._next):
            self._next = now
        while self._next <= now:
            self.limit.check(request, self._next, in_flight)
            self._next += 1 / self.per_second
        return self.limit.check(request, now, in_flight)

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce what the limit does."""
        return self.limit.headers(now)


@dataclass
class Together:
    """Several limits; the first that refuses decides, and those after it do not count the request."""

    limits: Sequence[Limit]

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Return the first refusal."""
        return next(filter(None, (limit.check(request, now, in_flight) for limit in self.limits)), None)

    def headers(self, now: float) -> Mapping[str, str]:
        """Announce what each of them does."""
        return {name: value for limit in self.limits for name, value in limit.headers(now).items()}


@dataclass
class Announcing:
    """Refuses nothing, and has these headers on every reply, be they true or not."""

    fields: Mapping[str, str]

    def check(self, request: Request, now: float, in_flight: int) -> Reply | None:
        """Refuse nothing."""
        return None

    def headers(self, now: float) -> Mapping[str, str]:
        """Return the fields."""
        return self.fields


def announce(unit: str, limit: float, remaining: float, reset: float) -> dict[str, str]:
    """Return the headers that announce a limit, as OpenAI names them; ``reset``: seconds."""
    fields = {"limit": f"{limit:g}", "remaining": f"{remaining:g}", "reset": f"{reset:.3f}s"}
    return {f"x-ratelimit-{name}-{unit}": value for name, value in fields.items()}


def refusal(status: int, retry_after: RetryAfter, exact: float, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a refusal that asks for ``retry_after`` seconds, ``exact`` ones if it is ``"exact"``."""
    seconds = exact if isinstance(retry_after, str) else retry_after
    fields = dict(headers or {})
    if seconds is not None:
        fields["retry-after"] = str(math.ceil(seconds))
        fields["retry-after-ms"] = str(math.ceil(seconds * 1000))
    code = "rate_limit_exceeded" if status == 429 else "server_is_overloaded"
    return Reply(status=status, code=code, headers=fields)
