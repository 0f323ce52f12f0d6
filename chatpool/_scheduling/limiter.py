"""The limiter of one model at one server: when its next request may be sent."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Protocol

from chatpool._protocol.announced_limits import Announced

from .announced import Announcements
from .breaker import Breaker
from .evidence import LEAKY, MORE, Comparison, Row, Suspects
from .measuring import REQUESTS, TOKENS, Meter, Rounds
from .pacing import ENOUGH, Pace
from .window import Window

# Names of what holds a call back, as the summary shows them.
COOL_DOWN = "the server's rate limit (cool-down)"
PACE = "the server's rate limit (pace)"
WINDOW = "the server's limit on calls at once"
ANNOUNCED = "the server's rate limit (announced)"

FIRST_PAUSE = 1.0  # seconds, where a refusal names no delay: AWS's base for throttling
TOLERANCE = 1.1  # times the measured rate at most: where nothing is saved up, a measure is too low
DEEPEST = 0.5  # of the pace is left after one refusal, at least: one measure may be wrong
STRAYS = 50  # requests: two rows of refusals within so many are no strays
CLEAN = 50  # requests taken in a row: what refused some of them is over
LARGE = 2.0  # times the mean tokens of what is taken: a refusal may be for its tokens
TOO_LARGE = 1.5  # times the largest that was ever taken: a refusal says nothing of the others
FIRST_BACK_OFF, LONGEST_BACK_OFF = 0.25, 20.0  # seconds, doubled for each further try: as for other failures
QUICK = 0.5  # seconds, the longest back-off where waiting longer is of no use; doubled with each 8 requests
IN_TURN = 4  # every so many requests of a suspect take a turn of the pace: without one, a tight limit has no room
IDLE = 60.0  # seconds without a request: the measure begins again
SURVIVED = 2.0  # times the slowest refusal: a request that is in flight for so long was taken
AT_ONCE = 0.01  # seconds that this is at least
SLOWEST = 1.0  # seconds; a refusal that takes longer is not waited for
HOLD = 0.05  # seconds for which sending pauses at most until it is known what came of the requests in flight


class Call(Protocol):
    """What a limiter wants to know of a call."""

    sent_at: float  # when its latest request was sent
    tokens: int  # an estimate of what that costs
    attempts: int  # requests sent for it
    tries: int  # of these, the ones that failed, or were refused with nobody answered since the one before was sent
    model: str


@dataclass
class _Request:
    """A request in flight."""

    number: int  # in the order of sending
    position: int  # how many were in flight, with this one
    is_free: bool  # it was sent with no pace
    is_below: bool  # it was sent below the known pace
    is_suspect: bool
    sent: tuple[float, float]  # requests and tokens sent until then


class Limiter:
    """Asked before every request of its model, and notified of every outcome."""

    def __init__(self, longest_wait: float, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._longest_wait, self._uniform = longest_wait, uniform
        self.pace, self.window, self.breaker = Pace(), Window(), Breaker(FIRST_PAUSE, longest_wait)
        self._meter, self._rounds = Meter(), Rounds()
        self._comparison, self._suspects = Comparison(), Suspects()
        self._announced = Announcements(longest_wait)
        self._in_flight: dict[Any, _Request] = {}
        self._number = 0
        self._tokens = 0  # sent so far
        self._taken = 0  # the number of the latest request that was taken, as far as is known
        self._clean = 0  # requests taken in a row
        self._slowest = 0.0  # seconds that refusals take
        self._sent_at = -math.inf
        self._not_before = -math.inf
        self._row: Row | None = None  # refusals in a row, the latest not answered by a request that was taken
        self._row_position = 1
        self._closing: Row | None = None  # the row that opened the breaker
        self._closing_last = 0
        self._cut_at = -math.inf
        self._strays: deque[int] = deque(maxlen=2)
        self._is_random = False  # refusals come whatever the pace is
        self._trusts_delays = True  # a single refusal that asks for a delay means everybody
        self._unit = REQUESTS
        self._large_rows = 0
        self._recent_size = 1.0
        self._largest = 0

    # Asked before a request.

    def delay(self, now: float, call: Call) -> tuple[float, str]:
        """Return the seconds until the call may be sent, 0 if it may now, and what it waits for."""
        if self.breaker.is_open:
            wait = self._probe_delay(now)
            if self.breaker.is_open:
                return wait, COOL_DOWN
        self._settle(now)
        if now < self._not_before:
            return self._not_before - now, COOL_DOWN
        waits = [(self._announced.delay(now, call.tokens), ANNOUNCED), (self._window_delay(now), WINDOW)]
        if not self._suspects.includes(call) or call.attempts % IN_TURN == 0:
            waits.append((self.pace.delay(now, self._size(call)), PACE))
        return max(waits)

    @property
    def prefers_new(self) -> bool:
        """Whether a prompt that was not refused yet should be sent first: those that were may be refused for ever."""
        return self.breaker.is_open

    def _probe_delay(self, now: float) -> float:
        probe = self.breaker.probe
        if probe is None:
            return self.breaker.delay(now)
        wait: float = probe.sent_at + self._decided - now
        if wait <= 0:
            self._reopen(now)
        return wait

    def _window_delay(self, now: float) -> float:
        probe = self.window.probe
        wait = math.inf if probe is None else probe.sent_at + self._decided - now
        if wait <= 0:
            self.window.probe_taken()
        return max(wait, 1e-4) if self.window.is_full(len(self._in_flight)) else 0.0

    @property
    def _decided(self) -> float:
        """Seconds after which a request that is not refused was taken."""
        return max(SURVIVED * self._slowest, AT_ONCE)

    # Notified of what is sent, and what comes of it.

    def sent(self, now: float, call: Call) -> None:
        """Note that a request is sent."""
        if now - self._sent_at > IDLE and not self.breaker.is_open:
            self._meter.forget()
        self._sent_at = now
        self._number += 1
        self._tokens += call.tokens
        self._announced.sent(now, call)
        self.window.sent(call, len(self._in_flight))
        is_suspect, is_free, is_below = self._suspects.includes(call), self.pace.rate is None, self.pace.is_below
        position = len(self._in_flight) + 1
        sent = float(self._number), float(self._tokens)
        self._in_flight[call] = _Request(self._number, position, is_free, is_below, is_suspect, sent)
        if self.breaker.is_open:
            self.breaker.probe = call
        elif not is_suspect:
            self._comparison.sent(is_free=is_free, is_below=is_below)
        if not is_suspect:
            self._count(now, call)

    def _count(self, now: float, call: Call) -> None:
        self._meter.sent(now, call.tokens)
        self._recent_size += (call.tokens - self._recent_size) / ENOUGH
        self._suspects.sent(self._is_large(call))
        self.pace.sent(now, self._size(call))

    def gone(self, now: float, call: Call) -> None:
        """Note that a request came to no reply: the connection failed, or nobody waits for it any more."""
        request = self._in_flight.pop(call, None)
        self.window.gone(call)
        self._announced.gone(now, call)
        if self.breaker.probe is call:
            self.breaker.probe = None
        if request is not None and not request.is_suspect:
            self._meter.not_taken(call.sent_at, call.tokens)

    def ended(self, call: Call) -> None:
        """Note that nothing more is sent for a call."""
        self._suspects.ended(call)

    def taken(self, now: float, call: Call, announced: Sequence[Announced] = ()) -> None:
        """Note that the server took a request, whatever came of it; ``announced``: the limits in its reply."""
        request = self._in_flight.pop(call, None)
        if request is None:
            return
        self._announced.taken(now, call)
        self._tell(now, request, announced)
        self._suspects.taken(call)
        self._largest = max(self._largest, call.tokens)
        self._taken = max(self._taken, request.number)
        self.window.taken(call)
        self._clean += 1
        if self._clean >= CLEAN:
            self._end_random()
        if self.breaker.probe is call:
            self._reopen(now)
        elif self.breaker.is_open:
            self.breaker.hurry(now)

    def _end_random(self) -> None:
        self._clean = 0
        self._comparison.reset()
        if self._is_random:
            self._is_random = False
            self.pace.drop()

    def _tell(self, now: float, request: _Request, announced: Sequence[Announced]) -> None:
        if announced:
            sent = float(self._number), float(self._tokens)
            sent_since = sent[REQUESTS] - request.sent[REQUESTS], sent[TOKENS] - request.sent[TOKENS]
            self._announced.tell(now, announced, request.number, sent, sent_since)

    def refused(self, now: float, call: Call, asked: float | None, announced: Sequence[Announced] = ()) -> float:
        """Note a refusal; the server asked for ``asked`` seconds, or named none. Return the call's own wait."""
        request = self._in_flight.pop(call, None)
        if request is None:
            return asked or 0.0
        took = min(now - call.sent_at, SLOWEST)
        self._slowest = max(0.9 * self._slowest, took)
        self._clean = 0
        if not request.is_suspect:
            self._meter.not_taken(call.sent_at, call.tokens)
            self.pace.refused(now, self._size(call))
        if request.is_free and not request.is_suspect:
            self._comparison.refused_free()
        known = self._known_taken(now)
        self._suspects.refused(call, self._number, known, self._is_large(call))
        was_announced = self._announced.refused(now, call)
        self._tell(now, request, announced)
        is_stray = self._judge(now, call, request, asked, took, was_announced)
        return max(asked or 0.0, self._back_off(call, is_stray))

    # What a refusal means.

    def _judge(
        self, now: float, call: Call, request: _Request, asked: float | None, took: float, was_announced: bool
    ) -> bool:
        """Take a refusal as evidence; return whether it is this prompt's own, and says nothing of a limit."""
        if self.breaker.is_open:
            self._note_while_open(now, call, request.number, asked)
            return False
        if self.window.refused(call, len(self._in_flight)) or was_announced:
            return False
        if request.is_suspect or self._suspects.includes(call) or self._is_too_large(call):
            return True
        self._settle(now)
        if self._row is None:
            self._begin_row(now, call, request)
        assert self._row is not None
        self._row.add(call, request.number)
        if self._row.is_certain(MORE if self._is_random else 0) or self._means_everybody(asked):
            self._shut(now, asked)
        elif self._is_random:
            return True
        elif self._row.is_leaky():
            self._end_row(now)
        elif self.pace.rate is None:
            # Until it is known what came of the others in flight.
            self._not_before = max(self._not_before, now + min(took * len(self._row.calls), HOLD))
        return False

    def _means_everybody(self, asked: float | None) -> bool:
        return asked is not None and self._trusts_delays and self.pace.rate is None and not self._is_random

    def _note_while_open(self, now: float, call: Call, number: int, asked: float | None) -> None:
        if self.breaker.probe is call:
            self.breaker.failed(now, asked)
        elif number <= self._closing_last and self._closing is not None:
            self._closing.add(call, number)
            if asked is not None:
                self.breaker.ask(now, asked)

    def _begin_row(self, now: float, call: Call, request: _Request) -> None:
        self._row, self._row_position = Row(now, request.number), request.position
        if request.is_below:
            self._comparison.refused_below()
        self._try_without_pace(now)
        self._meter.refused(now, call.tokens)
        self._choose_unit(call)
        if self.pace.rate is not None and call.sent_at > self._cut_at:
            self._cut(now, self._size(call))

    def _try_without_pace(self, now: float) -> None:
        if self._is_random and self._comparison.has_failed:
            self._is_random = False
            self._comparison.end_trial()
            self.pace.resume(now)
        elif not self._is_random and self._comparison.calls_for_trial:
            self._is_random = True
            self._comparison.begin_trial()
            self.pace.suspend()

    def _settle(self, now: float) -> None:
        """End a row of refusals if a request sent after it was taken."""
        if self._row is not None and self._known_taken(now) > self._row.last:
            self._end_row(now)

    def _end_row(self, now: float) -> None:
        row, self._row = self._row, None
        if row is not None and row.is_fresh and self.pace.rate is None and not self._is_random:
            self._note_stray(now)

    def _note_stray(self, now: float) -> None:
        """Begin to pace with the second of two rows that are close together."""
        self._strays.append(self._number)
        if len(self._strays) == 2 and self._number - self._strays[0] <= STRAYS:
            self._cut(now, 1.0)

    def _known_taken(self, now: float) -> int:
        """Return the number of the latest request that was taken: answered, or in flight for long."""
        for call in reversed(self._in_flight):
            request = self._in_flight[call]
            if request.number <= self._taken:
                break
            if now - call.sent_at >= self._decided:
                self._taken = request.number
                break
        return self._taken

    # The pace.

    def _cut(self, now: float, size: float) -> None:
        """Pace by what was measured from one refusal to the next, or halve the pace if that is far lower."""
        rate, is_known = self._meter.rate(self._unit, size), self._meter.counted >= ENOUGH
        if self.pace.rate is not None and rate < self.pace.rate:
            most = self._meter.rate_without_pauses(self._unit, size) if is_known else 0.0
            rate = max(min(self.pace.rate, max(TOLERANCE * rate, most)), DEEPEST * self.pace.rate)
        if is_known:
            self._meter.restart()
        self._cut_at = now
        self.pace.set(now, rate, is_known=is_known, typical_size=self._typical_size)

    # The breaker.

    def _shut(self, now: float, asked: float | None) -> None:
        row, self._row = self._row, None
        assert row is not None
        self._closing, self._closing_last = row, self._number
        self._cut_at = now
        if row.is_certain(0):
            self._trusts_delays = True
            if self.pace.rate is None:
                self._comparison.certain(row.share(row.last))
        if self._is_random:
            self._is_random = False
            self._comparison.end_trial()
        self.breaker.open(now, row.began, asked, *self._rounds.next())
        self.window.suppose(self._row_position - 1)

    def _reopen(self, now: float) -> None:
        """Go on after a pause: at full speed if the limit comes back all at once, else at the pace that it allows."""
        since, probes, failed_at = self.breaker.since, self.breaker.probes, self.breaker.failed_at
        assert since is not None
        self.breaker.close()
        self._row = None
        self._meter.paused += now - since
        refused = len(self._closing.calls) if self._closing is not None else 0
        if self._rounds.begin(since, failed_at, now, self._meter.counted, refused):
            self.pace.drop()
            self._meter.restart()
        elif self.pace.base:
            self.pace.resume(now)
        elif probes or self._closing_was_certain():
            self._start_pace(now)
        else:
            self._trusts_delays = False
            self._strays.append(self._number)

    def _closing_was_certain(self) -> bool:
        """Whether most of what was sent before the pause was refused, and not one of many."""
        row = self._closing
        return row is not None and self._closing_last > row.first and row.share(self._closing_last) >= LEAKY[1]

    def _start_pace(self, now: float) -> None:
        """Pace by what was taken until now, the pause included: a guess, because a burst may have been part of it."""
        rate = self._meter.rate_until(now, self._unit, ENOUGH)
        self.pace.set(now, rate, is_known=False, typical_size=self._typical_size)
        self._meter.restart()

    # The unit in which the limit counts.

    def _choose_unit(self, call: Call) -> None:
        """Count tokens while what is refused is mostly large, else requests."""
        change = 2 if self._is_large(call) else -1
        self._large_rows = min(max(self._large_rows + change, 0), 4)
        unit = TOKENS if self._large_rows >= 2 else REQUESTS if self._large_rows == 0 else self._unit
        if unit == self._unit:
            return
        self._unit = unit
        mean = self._meter.mean_size()
        self.pace.convert(mean if unit == TOKENS else 1 / mean, self._largest if unit == TOKENS else 1.0)
        self._comparison.reset()

    def _size(self, call: Call) -> float:
        return call.tokens if self._unit == TOKENS else 1.0

    @property
    def _typical_size(self) -> float:
        return self._recent_size if self._unit == TOKENS else 1.0

    def _is_large(self, call: Call) -> bool:
        return call.tokens >= LARGE * self._meter.mean_size()

    def _is_too_large(self, call: Call) -> bool:
        return 0 < TOO_LARGE * self._largest < call.tokens

    # How long a prompt waits by itself.

    def _back_off(self, call: Call, is_stray: bool) -> float:
        """Return the seconds: full jitter, but longer and longer where one more refusal after the other costs a try."""
        if call.tries >= 2 and not is_stray and not self._is_random:
            return min(2.0**call.tries, self._longest_wait)
        longest = min(LONGEST_BACK_OFF, self._longest_wait)
        if is_stray:
            longest = min(QUICK * 2 ** (call.attempts / 8), longest)
        wait = self._uniform(0.0, min(FIRST_BACK_OFF * 2.0 ** min(call.attempts - 1, 10), longest))
        if is_stray and self.pace.rate is not None:
            wait = max(wait, self._uniform(1.0, 2.0) * self._size(call) / self.pace.rate)
        return min(wait, self._longest_wait)

    # For the summary, and for whoever waits.

    def figures(self) -> dict[str, str]:
        """Return the limits that are kept now, in words, by what they hold back."""
        found: dict[str, str] = {}
        if self.window.limit is not None and self.window.is_confirmed:
            found[WINDOW] = f"the server takes {self.window.limit} at once"
        if self.pace.known is not None:
            unit = "tokens" if self._unit == TOKENS else "requests"
            found[PACE] = f"the server takes {_round(self.pace.known)} {unit} a second"
        return found


def _round(number: float) -> str:
    """Return two digits: more are not known."""
    return f"{float(f'{number:.2g}'):,g}"
