"""The pace: how fast requests may be sent, one by one, after a server refused some. Pure arithmetic.

The rate follows CUBIC (RFC 9438, section 4), as the AWS SDKs' adaptive retry mode does: after a refusal it starts a
little below the rate that the server is known to take, approaches it, lingers there, and then grows faster and faster.
At sixteen times that rate the limit counts as gone.
"""

from __future__ import annotations

CUT = 0.15  # after a refusal the rate starts so much below what the server took: RFC 9438 has 0.3, botocore 0.3, TCP's
# early halving 0.5; with 0.15 a limit of 20 a second is used to 99 percent
FORGET = 16.0  # times the known rate: a limit so much higher is another limit; a guess may have been too low by as much
STEADY = 5  # requests' time, at least, until it is back at the rate: it hardly changes from one request to the next
SHORTEST, LONGEST = 5.0, 120.0  # seconds until then
UNSURE = 2.0  # seconds that the shortest is for a rate measured with fewer requests than enough
FIRST = 1.0  # seconds that it is for a guess, which may be far too low
BELOW = 0.98  # of the known rate: what is slower counts as below it


class Pace:
    """A rate that grows, and a bucket that holds at most one request's worth.

    ``size`` is 1 for a request, or its tokens where the limit counts tokens.
    """

    def __init__(self) -> None:
        self.rate: float | None = None  # a second; None: no pace is kept
        self.known: float | None = None  # the latest rate that was measured, not guessed
        self.base = 0.0  # the rate that the server takes, measured or guessed
        self._began, self._period, self._cut = 0.0, SHORTEST, CUT
        self._level, self._filled_at, self._largest = 0.0, 0.0, 1.0

    def guess(self, now: float, rate: float, size: float) -> None:
        """Keep to a rate that the server may take."""
        self._start(now, rate, STEADY / 4 * size, FIRST)

    def set(self, now: float, rate: float, size: float, *, is_known: bool, chance: float = 0.0) -> None:
        """Keep to a rate that was accepted. ``is_known``: it was measured with enough requests.

        ``chance``: the share that is refused whatever the pace, so that more may be sent than is accepted. The rate
        starts below what was accepted all the same: how many are refused there shows whether the share is right.
        """
        if is_known:
            self.known = rate
            self._start(now, rate, STEADY * size, SHORTEST, chance)
        else:
            self._start(now, rate, STEADY / 4 * size, UNSURE, chance)

    def _start(self, now: float, rate: float, steady: float, shortest: float, chance: float = 0.0) -> None:
        self._period = min(max(steady / rate, shortest), LONGEST)
        self.base, self._cut = rate / (1 - chance), 1 - (1 - CUT) * (1 - chance)
        self.resume(now)

    def suspend(self) -> None:
        """Keep no pace for now."""
        self.rate = None

    def resume(self, now: float) -> None:
        """Begin the growth again, after a pause or without having kept a pace."""
        self._began = now
        self.rate = (1 - self._cut) * self.base or None

    def drop(self) -> None:
        """Forget the pace."""
        self.rate = self.known = None
        self.base = 0.0

    def convert(self, factor: float, largest: float) -> None:
        """Count in another unit from now on."""
        if self.rate is not None:
            self.rate *= factor
            self.base *= factor
            self.known = None
        self._level, self._largest = 0.0, largest

    @property
    def is_below(self) -> bool:
        """Whether the rate is lower than the one that the server is known to take."""
        return self.rate is not None and self.known is not None and self.rate < BELOW * self.known

    def delay(self, now: float, size: float) -> float:
        """Return the seconds until a request of this size may be sent."""
        if self.rate is None:
            return 0.0
        self._largest = max(self._largest, size)
        self._fill(now)
        elapsed = (now - self._began) / self._period
        self.rate = self.base * (1 - self._cut * (1 - elapsed) ** 3)
        if self.known is not None and self.rate > FORGET * self.base:
            self.drop()
            return 0.0
        return max(0.0, (size - self._level) / self.rate)

    def sent(self, now: float, size: float) -> None:
        """Note that a request is sent."""
        self._fill(now)
        self._level = max(self._level - size, 0.0)

    def refused(self, now: float, size: float) -> None:
        """Note that the server refused a request: it used nothing up, but the server had less than it needed."""
        self._fill(now)
        self._level = max(self._level, min(self._level + size, size / 2))

    def _fill(self, now: float) -> None:
        if self.rate is None:
            self._level = 0.0
        else:
            self._level = min(self._level + (now - self._filled_at) * self.rate, self._largest)
        self._filled_at = now
