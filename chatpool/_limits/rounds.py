"""A limit of so many requests in so many seconds, in a fixed window or a sliding one. Pure arithmetic.

Where nothing is accepted for seconds, the limit allows as many requests as were accepted before, and its period is the
time from the first of them until requests are accepted again. So a request may be sent when the one as many before it
is a period old: a sliding window accepts it for certain, and so does a fixed window, once it has refused some.
One request at a time probes for more: at the end of a round, or for an earlier beginning of the next one, halfway
between the longest period that was too short and the shortest one that was not.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

SHORT, LONG = 3.0, 15.0  # seconds in which nothing is accepted: then there may be such a limit, after SHORT ones where
# probes show it, after LONG ones in any case; where it takes less time, a steady pace is as good
PROBES = 3  # refused probes that show it: by chance, three are refused seldom
FEWEST, MOST = 4, 10_000  # requests in a period: a pace does for fewer; so many times are remembered
PRECISE = 1 / 30  # of the period: so precisely it is looked for
WRONG, RECENT = 4, 10  # surprises in so many periods: there is no such limit if there are more
MARGIN = 1.015  # times the period are waited: requests overtake one another, and a burst that is early is refused


class Rounds:
    """Remembers when requests were sent, and keeps to so many in a period, once both are known."""

    def __init__(self) -> None:
        self.size: int | None = None  # requests in a period, once there seems to be such a limit
        self.is_sure = False  # probes have shown it
        self.probe: Any = None  # the request in flight that probes for more
        self._all: deque[float] = deque(maxlen=MOST)  # when requests were sent
        self._accepted: deque[float] = deque(maxlen=MOST)  # likewise, but for the refused ones
        self._counts_refused = False  # refused requests are among those that the server counts
        self._is_met = False  # it has refused a request since it was supposed
        self._surprises: list[float] = []  # when it refused several although there was room, lately
        self._is_wrong = False  # there is no such limit
        self._low, self._high = 0.0, math.inf  # the period is between these
        self._is_first = False  # it is the first one of a round; the others wait until it is accepted
        self._tried = 0.0  # the period that would allow the probe
        self._step, self._grown_at = 1, -math.inf  # so many more are tried next; when more were refused
        self._not_before = -math.inf  # the server asked for no more requests until then

    @property
    def figure(self) -> str | None:
        """The limit in words, once it is known."""
        return f"{self.size} requests in {self._high:.2g} s" if self._is_met else None

    def delay(self, now: float) -> float:
        """Return the seconds until a request may be sent."""
        if self.probe is not None and self._is_first:
            return math.inf
        oldest = self._oldest
        ready = -math.inf if oldest is None else oldest + MARGIN * self._high
        if ready <= now or oldest is None:
            return 0.0
        if self.probe is None:
            ready = min(ready, max(self._next_probe(oldest), self._not_before))
        return max(0.0, ready - now)

    @property
    def _sent(self) -> deque[float]:
        """When those requests were sent that the server counts."""
        return self._all if self._counts_refused else self._accepted

    @property
    def _oldest(self) -> float | None:
        """When the first request of the latest period's was sent; None if there is room for another one in any case."""
        return None if self.size is None or len(self._sent) < self.size else self._sent[-self.size]

    def _next_probe(self, oldest: float) -> float:
        if self._grown_at + self._high <= self._sent[-1]:
            return -math.inf  # one more at the end of each round
        is_precise = self._high - self._low <= PRECISE * self._high
        return math.inf if is_precise else oldest + (self._low + self._high) / 2

    def sent(self, now: float, call: Any, *, is_paused: bool) -> None:
        """Note that a request is sent. ``is_paused``: it probes for the end of a pause."""
        oldest = self._oldest
        if oldest is not None and self.probe is None and not is_paused:
            self._is_first = now - self._sent[-1] > self._high / 2
            if self._is_first or now < oldest + self._high:
                self.probe, self._tried = call, now - oldest
        self._all.append(now)
        self._accepted.append(now)

    def refused(self, sent_at: float) -> None:
        """Note that a request was refused."""
        if sent_at in self._accepted:
            self._accepted.remove(sent_at)

    def probe_accepted(self) -> None:
        """Note that the server accepted a request that probed for more: there are more, or the period is shorter."""
        self.probe = None
        assert self.size is not None
        if self._tried < self._low:
            self.size += self._step
            self._step *= 2
        else:
            self._high = min(self._tried, self._high)

    def probe_refused(self, now: float, asked: float | None) -> bool:
        """Note that the server refused it, and how many seconds it asked to wait, if it did.

        Return whether it was the first one of a round that should have begun: nothing is accepted any more.
        """
        self.probe, self._not_before = None, now + (asked or 0.0)
        if self._tried >= self._high:
            return True
        self._step, self._grown_at, self._is_met = 1, now, True
        self._low = max(self._low, self._tried)
        return False

    def drop(self) -> None:
        """Forget the limit, as it is another one."""
        self.size, self.probe, self.is_sure, self._is_met = None, None, False, False

    # Pauses.

    def closed(self, now: float, refused: int) -> float:
        """Note that nothing is accepted any more, after so many refusals; return the earliest end of that, if known.

        If the limit had room, the refused requests before these took it, or the period is longer.
        """
        oldest = self._oldest
        if oldest is None or self.size is None:
            return -math.inf
        self._surprises = [time for time in self._surprises if now - time < RECENT * self._high] + [now]
        if len(self._surprises) > WRONG:
            self.drop()
            self._is_wrong = True
            return -math.inf
        self._is_met = True
        recent = sum(time > now - self._high for time in self._all) - refused
        if not self._counts_refused and recent >= self.size:
            self._counts_refused = True
        else:
            self._low = max(self._low, now - oldest)
            self._high = self._high if self._low < self._high else math.inf
        return self._sent[-self.size] + self._low

    def opened(self, now: float, since: float, failed_at: float, probes: int) -> bool:
        """Note that requests are accepted again; return whether there is such a limit.

        None were since ``since``; ``probes`` were refused, the latest of them at ``failed_at``.
        """
        if self.size is None:
            return self._begin(now, since, failed_at, probes)
        passed = now - self._sent[-min(self.size + 1, len(self._sent))]
        if self._high == math.inf or self._low < passed < self._high:
            self._high = max(passed, self._low)
        return True

    def _begin(self, now: float, since: float, failed_at: float, probes: int) -> bool:
        size = sum(time < since for time in self._accepted)
        is_sure = probes >= PROBES
        if self._is_wrong or now - since < (SHORT if is_sure else LONG) or size < FEWEST:
            return False
        self.size, self.is_sure = size, is_sure
        self._low, self._high = failed_at - self._accepted[0], now - self._accepted[0]
        return True
