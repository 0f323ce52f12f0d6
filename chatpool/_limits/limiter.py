"""The limiter of one model at one server: when its next request may be sent. Pure arithmetic on given times."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Callable, Protocol

from chatpool._protocol.announced_limits import Announced

from .announced import Announcements
from .breaker import Breaker
from .evidence import Comparison, Row, Suspects
from .meter import REQUESTS, TOKENS, Meter
from .own_wait import FEW, wait_for_chance, wait_for_limit
from .pacing import Pace
from .rounds import Rounds
from .sizes import Sizes
from .window import Window
from .wire import Sent, Wire

# Names of what holds a call back, as the summary shows them.
COOL_DOWN = "the server's rate limit (cool-down)"
PACE = "the server's rate limit (pace)"
WINDOW = "the server's limit on calls at once"
ANNOUNCED = "the server's rate limit (announced)"

FIRST_PAUSE = 1.0  # seconds, where a refusal names no delay: AWS's base for throttling
TOLERANCE = 1.1  # times the measured rate at most: where nothing is saved up, a measure is too low
DEEPEST = 0.5  # of the pace is left after one refusal, at least: one measure may be wrong
STRAYS = 50  # requests: two rows of refusals within so many are no strays
PROBES = 2  # of a pause failed: it is a limit, though few prompts were refused
IN_TURN = 4  # every so many requests, a suspect waits for the pace: without a turn, a tight limit never has room for it
IDLE = 60.0  # seconds without a request: the measure begins again
HOLD = 0.05  # seconds for which sending pauses at most until it is known what came of the requests in flight
SOON = 1e-4  # seconds
SURE = 3  # times as long until a request beyond the window counts as accepted: a late refusal would drop the window


class Call(Protocol):
    """What a limiter wants to know of a call."""

    sent_at: float  # when its latest request was sent
    tokens: int  # an estimate of what that costs
    attempts: int  # requests sent for it
    tries: int  # of these, the ones that failed, or were refused with nobody answered since the one before was sent
    model: str


class Limiter:
    """Asked before every request of its model, and notified of every outcome."""

    def __init__(self, longest_wait: float, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._longest_wait, self._uniform = longest_wait, uniform
        self.pace, self.window, self.breaker = Pace(), Window(), Breaker(FIRST_PAUSE, longest_wait)
        self._wire, self._meter, self._rounds = Wire(), Meter(), Rounds()
        self._sizes = Sizes(self._meter)
        self._comparison, self._suspects = Comparison(), Suspects()
        self._announced = Announcements(longest_wait)
        self._row: Row | None = None  # refusals in a row, with no later request accepted
        self._opened_by: Row | None = None  # the row that opened the breaker
        self._strays: deque[int] = deque(maxlen=2)  # numbers of requests at the ends of rows that proved nothing
        self._paused_at = 0  # the number of the latest request when the latest pause began, or ended
        self._not_before = self._cut_at = -math.inf
        self._answered_at = -math.inf  # an answer came, and not to the probe of a pause
        self._measured = 0.0  # the latest rate: what the summary shows
        self._has_answered = False  # the server has accepted a request
        self._is_proven = False  # so many were refused in a row that there is a limit
        self._trusts_delays = True  # a single refusal that asks for a delay means everybody

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
        waits = [
            (self._announced.delay(now, call.tokens), ANNOUNCED),
            (self._window_delay(now), WINDOW),
            (self._round_delay(now), COOL_DOWN),
        ]
        takes_turn = call.attempts % IN_TURN == 0 and not self._sizes.is_futile(call)
        if takes_turn or not self._is_apart(call):
            waits.append((self.pace.delay(now, self._sizes.of(call)), PACE))
        return max(waits)

    @property
    def prefers_new(self) -> bool:
        """Whether a prompt that was not refused yet should be sent first: those that were may be refused for ever."""
        return self.breaker.is_open

    def _probe_delay(self, now: float) -> float:
        probe = self.breaker.probe
        if probe is None:
            return self.breaker.delay(now)
        wait: float = probe.sent_at + SURE * self._wire.decided - now
        if wait <= 0:
            self._close_breaker(now)
        return wait

    def _window_delay(self, now: float) -> float:
        probe = self.window.probe
        wait = math.inf if probe is None else probe.sent_at + SURE * self._wire.decided - now
        if wait <= 0:
            self.window.probe_accepted()
        return max(wait, SOON) if self.window.is_full(self._wire.in_flight) else 0.0

    def _round_delay(self, now: float) -> float:
        delay, probe = self._rounds.delay(now), self._rounds.probe
        if delay <= 0 or probe is None:
            return delay
        wait: float = probe.sent_at + SURE * self._wire.decided - now
        if wait <= 0:
            self._rounds.probe_accepted()
            return self._rounds.delay(now)
        return min(delay, wait)

    def _is_apart(self, call: Call) -> bool:
        """Whether a prompt is refused for its own sake: it says nothing of a limit, and no pace helps it."""
        is_too_large = self._sizes.is_too_large(call) and self._suspects.knows(call)
        return is_too_large or self._suspects.includes(call) or self._sizes.is_futile(call)

    # Notified of what is sent, and what comes of it.

    def sent(self, now: float, call: Call) -> None:
        """Note that a request is sent."""
        if now - self._wire.sent_at > IDLE and not self.breaker.is_open:
            self._meter.forget()
        self._announced.sent(now, call)
        self._rounds.sent(now, call, is_paused=self.breaker.is_open)
        self.window.sent(call, self._wire.in_flight)
        is_free, is_below, is_apart = self.pace.rate is None, self.pace.is_below, self._is_apart(call)
        self._wire.sent(now, call, is_free=is_free, is_below=is_below, is_apart=is_apart)
        if self.breaker.is_open:
            self.breaker.probe = call
        elif not is_apart:
            self._comparison.sent(is_free=is_free, is_below=is_below)
        if not is_apart:
            self._count(now, call)

    def _count(self, now: float, call: Call) -> None:
        self._meter.sent(now, call.tokens)
        self._suspects.sent(is_large=self._sizes.is_large(call))
        self.pace.sent(now, self._sizes.of(call))

    def gone(self, now: float, call: Call) -> None:
        """Note that a request came to no reply: the connection failed, or nobody waits for it any more."""
        request = self._wire.gone(call)
        self.window.gone(call)
        self._announced.gone(now, call)
        for each in (self.breaker, self._rounds):
            if each.probe is call:
                each.probe = None
        if request is not None and not request.is_apart:
            self._meter.not_accepted(call.sent_at, call.tokens)

    def ended(self, call: Call) -> None:
        """Note that nothing more is sent for a call."""
        self._suspects.ended(call)

    def accepted(self, now: float, call: Call, announced: Sequence[Announced] = ()) -> None:
        """Note that the server accepted a request, whatever came of it; ``announced``: the limits in its reply."""
        request = self._wire.gone(call)
        if request is None:
            return
        self._announced.accepted(now, call)
        self._announced.update(now, announced, request, self._wire.total)
        for each in (self._suspects, self._sizes, self.window):
            each.accepted(call)
        self._wire.accepted(request)
        if self._rounds.probe is call:
            self._rounds.probe_accepted()
        if self.breaker.probe is call:
            self._close_breaker(now)
        else:
            self._answered_at = now
            self.breaker.hurry(now)
        self._has_answered = True

    def refused(self, now: float, call: Call, asked: float | None, announced: Sequence[Announced] = ()) -> float:
        """Note a refusal; the server asked for ``asked`` seconds, or named none. Return the call's own wait."""
        request = self._wire.gone(call)
        if request is None:
            return asked or 0.0
        self._wire.refused(now - call.sent_at)
        self._rounds.refused(call.sent_at)
        self._count_refusal(now, call, request)
        is_announced = self._announced.refused(now, call)
        self._announced.update(now, announced, request, self._wire.total)
        is_own = self._judge(now, call, request, asked, is_announced=is_announced)
        return max(asked or 0.0, self._own_wait(call, is_own=is_own))

    def _count_refusal(self, now: float, call: Call, request: Sent) -> None:
        self._sizes.refused(call)
        if not request.is_apart:
            self._meter.not_accepted(call.sent_at, call.tokens)
            self.pace.refused(now, self._sizes.of(call))
            if request.is_free:
                self._comparison.refused_free()
        accepted, is_large = self._wire.latest_accepted(now), self._sizes.is_large(call)
        if self._rounds.size is None:
            self._suspects.refused(call, self._wire.number, accepted, self._paused_at, is_large=is_large)

    def _own_wait(self, call: Call, *, is_own: bool) -> float:
        is_serious = self._row is not None and self._row.is_serious
        if not is_own or (is_serious and call.tries >= FEW):
            return wait_for_limit(call.tries, call.attempts, self._longest_wait, self._uniform)
        turn = 0.0
        if self.pace.rate is not None and not self._sizes.is_futile(call):
            turn = self._sizes.of(call) / self.pace.rate
        return wait_for_chance(call.tries, call.attempts, turn, self._longest_wait, self._uniform)

    # What a refusal means.

    def _judge(self, now: float, call: Call, request: Sent, asked: float | None, *, is_announced: bool) -> bool:
        """Take a refusal as evidence; return whether it is this prompt's own, and says nothing of a limit."""
        if self.breaker.is_open:
            self._note_while_open(now, call, request.number, asked)
            return False
        tried_for_more = self._rounds.probe is call
        if tried_for_more and self._rounds.probe_refused(now, asked):
            row = self._begin_row(now, call, request)
            row.add(call, request.number)
            self._open_breaker(now, row, asked)
            return False
        if self._is_explained_by_window(call) or is_announced or tried_for_more:
            return False
        if request.is_apart or self._is_apart(call):
            if self._row is not None:
                self._row.skip()
            return True
        self._settle(now)
        self._compare(now, call, request)
        row = self._row = self._row or self._begin_row(now, call, request)
        was_passed = self._suspects.was_passed(call) and not self._is_proven
        row.add(call, request.number, was_passed=was_passed)
        self._cut_for(now, call, row)
        means_all = asked is not None and self._trusts_delays and not was_passed and self._is_free
        if means_all or row.is_certain():
            self._open_breaker(now, row, asked)
            return False
        self._wait_for_more(now, call, row)
        return was_passed or self._comparison.is_trial

    def _is_explained_by_window(self, call: Call) -> bool:
        """Whether the window explains a refusal. Then other limits that were guessed are dropped."""
        probe = self.window.probe
        is_near = probe is not None and abs(probe.sent_at - call.sent_at) <= self._wire.decided
        if not self.window.refused(call, self._wire.in_flight, is_near=is_near):
            return False
        if self.window.limit is not None and self.window.limit > 1:  # one at once may be a pace, too
            if self.pace.known is None:
                self.pace.drop()
            if not self._rounds.is_sure:
                self._rounds.drop()
        return True

    @property
    def _is_free(self) -> bool:
        """Whether nothing is known of a limit."""
        return self.pace.rate is None and not self._comparison.is_trial

    def _note_while_open(self, now: float, call: Call, number: int, asked: float | None) -> None:
        if self._rounds.probe is call:
            self._rounds.probe = None
        if self.breaker.probe is call:
            self.breaker.failed(now, asked)
        elif self._opened_by is not None and number <= self._opened_by.sent:
            self._opened_by.add(call, number)
            self.window.suppose_less()
            if asked is not None:
                self.breaker.ask(now, asked)

    def _compare(self, now: float, call: Call, request: Sent) -> None:
        if request.is_below and call.sent_at > self._cut_at:
            before = self._comparison.chance
            self._comparison.refused_below(is_first=self._row is None and self._sizes.unit == REQUESTS)
            if self._comparison.chance and not before and self.pace.known is not None:
                self.pace.set(now, self.pace.known, 1.0, is_known=True, chance=self._comparison.chance)
        if self._comparison.has_failed:
            self._comparison.end_trial()
            self.pace.resume(now)
            self._cut_at = now

    def _begin_row(self, now: float, call: Call, request: Sent) -> Row:
        if not self._comparison.is_trial and self._sizes.unit == REQUESTS and self._comparison.calls_for_trial:
            self._comparison.begin_trial()
            self.pace.suspend()
            self._is_proven = False
        self._meter.refused(now, call.tokens)
        if self._sizes.changes_unit(call):
            self._change_unit()
        return Row(now, request.number)

    def _wait_for_more(self, now: float, call: Call, row: Row) -> None:
        """Have the next request wait until it is known what came of those in flight, if the row may become certain."""
        is_decided = now - row.began >= self._wire.decided  # refusals overtake one another
        if not self._comparison.is_trial and is_decided and row.is_leaky():
            self._end_row(now)
        elif self._is_free:
            took = now - call.sent_at
            self._not_before = max(self._not_before, now + min(took, HOLD))

    def _settle(self, now: float) -> None:
        """End a row of refusals if a request that was sent after it was accepted."""
        if self._row is not None and self._wire.latest_accepted(now) > self._row.last:
            self._end_row(now)

    def _end_row(self, now: float) -> None:
        """Begin to pace with the second of two rows that are close together."""
        row, self._row = self._row, None
        if row is None or not row.is_fresh or not self._is_free or self._rounds.size is not None:
            return
        self._strays.append(self._wire.number)
        if len(self._strays) == 2 and self._wire.number - self._strays[0] <= STRAYS:
            self._cut(now, 1.0)

    # The pace.

    def _cut_for(self, now: float, call: Call, row: Row) -> None:
        """Cut the pace if this refusal says that it is too fast, once for each row."""
        if self.pace.rate is None or call.sent_at <= self._cut_at:
            return
        self._comparison.refused()
        if not row.is_cut and self._comparison.is_excess:
            row.is_cut = True
            self._cut(now, self._sizes.of(call))

    def _cut(self, now: float, size: float) -> None:
        """Pace by what was measured from one refusal to the next, or halve the pace if that is far lower."""
        rate, is_known = self._meter.rate(self._sizes.unit, size), self._meter.is_enough(self._sizes.unit, size)
        self._comparison.restart()
        self._measured = rate
        if self.pace.rate is not None and rate < self.pace.rate:
            most = self._meter.rate_without_pauses(self._sizes.unit, size)
            rate = max(min(self.pace.rate, max(TOLERANCE * rate, most)), DEEPEST * self.pace.rate)
        if is_known:
            self._meter.restart()
        self._cut_at = now
        self.pace.set(now, rate, size, is_known=is_known, chance=self._comparison.chance)

    def _guess_pace(self, now: float) -> None:
        """Pace by what was accepted until now, the pause included: a guess, as a burst may have been part of it."""
        self.pace.guess(now, self._meter.rate_until(now, self._sizes.unit), self._sizes.mean)
        self._meter.restart()

    def _change_unit(self) -> None:
        tokens = self._meter.mean_tokens()
        if self._sizes.unit == TOKENS:
            self.pace.convert(tokens, self._sizes.largest)
        else:
            self.pace.convert(1 / tokens, 1.0)
        self._comparison.reset()

    # The breaker.

    def _open_breaker(self, now: float, row: Row, asked: float | None) -> None:
        self._row, self._opened_by = None, row
        row.sent = self._paused_at = self._wire.number
        self._cut_at = now
        if row.is_certain():
            self._trusts_delays = self._is_proven = True
            self._comparison.certain(row.share(row.last), is_free=self.pace.rate is None)
        if self._comparison.is_trial:
            self._comparison.end_trial()
        self.breaker.open(now, row.began, asked, self._rounds.closed(now, len(row.calls)))
        if not self._rounds.is_sure:
            self.window.suppose(self._wire.in_flight)

    def _close_breaker(self, now: float) -> None:
        """Go on after a pause: as fast as a period allows if there is one, else at a pace."""
        since, probes, failed_at = self.breaker.since, self.breaker.probes, self.breaker.failed_at
        assert since is not None
        assert self._opened_by is not None
        self.breaker.close()
        self._row, self._paused_at = None, self._wire.number
        self._meter.paused += now - since
        if self._comes_in_rounds(now, since, failed_at, probes):
            self.pace.drop()
            self._meter.restart()
        elif self.pace.base:
            self.pace.resume(now)
        elif not self._has_answered:
            self._meter.restart()  # the server was not ready: that says nothing of a rate
        elif probes >= PROBES or self._opened_by.was_for_most():
            self._guess_pace(now)
        else:
            self._trusts_delays = False
            self._strays.append(self._wire.number)

    def _comes_in_rounds(self, now: float, since: float, failed_at: float, probes: int) -> bool:
        """Whether so many requests are allowed in a period. If an answer made room, they are rather so many at once."""
        may_be_window = probes >= PROBES and self._answered_at > failed_at
        if may_be_window and self._rounds.size is None:
            return False
        found = self._rounds.opened(now, since, failed_at, probes)
        if found and self._rounds.is_sure:
            self.window.drop()
        return found

    # For the summary.

    def figures(self) -> dict[str, str]:
        """Return the limits that are known, in words, by the waits that they cause.

        Each of them also causes cool-downs, and waits for the others that were guessed first.
        """
        found: dict[str, str] = {}
        if self.window.is_confirmed:
            found[WINDOW] = f"the server takes {self.window.limit} at once"
        if self.pace.known is not None:
            unit = "tokens" if self._sizes.unit == TOKENS else "requests"
            found[PACE] = f"rate limit of {_round(self._measured)} {unit} a second"
        if (figure := self._rounds.figure) is not None:
            found[COOL_DOWN] = f"rate limit of {figure}"
        if (announced := self._announced.figure) is not None:
            found[ANNOUNCED] = f"rate limit of {announced} (announced)"
        known = next((found[cause] for cause in (COOL_DOWN, PACE, WINDOW) if cause in found), None)
        return found if known is None else {**dict.fromkeys((COOL_DOWN, PACE, WINDOW), known), **found}


def _round(number: float) -> str:
    """Return two digits: more are not known."""
    return f"{float(f'{number:.2g}'):,g}"
