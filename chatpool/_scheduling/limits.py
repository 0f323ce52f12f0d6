"""When the next request may leave: places in flight, the server's cool-down, an adaptive pace, budgets. No HTTP.

The law (``Pace``): a refusal for rate pauses the whole pool for the server's delay. When the pause is over, requests
leave one by one at 0.85 of the rate at which the server took them since the last pause. What was sent and not refused
counts as taken, because answers may be long in coming and refusals are not. Where it refused more than one, and more
than a few of them, the new pause counts as time, too: then the rate before it was a burst, not what the server can
sustain. From there the rate grows, at first by a twentieth a second, then faster and faster until the next refusal, and
the sooner the less there was to measure. At four times where it began it begins anew from there, and at sixteen times
the limit is taken for gone, which without a refusal is after 24 seconds at most. Nothing of this is in force before the
first refusal.

An outage (``Outage``) is when requests in a row meet nothing but connection failures and 5xx, among them the first
tries of a quarter more prompts than there are places, or of as many if twice as many requests failed; fewer than 20
places count as 20. Then one call at a time probes, at growing intervals, and the others wait. It is waited out for five
times ``max_wait``, or for 10 seconds if nothing was ever answered; then what waits is given up.
"""

from __future__ import annotations

import math
import time

from chatpool.errors import CallError, NotSentError

from .call import Call

# Names of what holds a call back, as the summary shows them.
SLOTS = "max_workers"
COOL_DOWN = "the server's rate limit (cool-down)"
PACE = "the server's rate limit (pace)"
REQUESTS = "requests_per_minute"
TOKENS = "tokens_per_minute"
BACK_OFF = "back-off after failures"
OUTAGE = "an outage of the server"

_CUT = 0.85  # of the measured rate, at each episode of refusals
_FEW = 0.1  # refusals for each request taken, in one episode
_GROWTH = 0.05  # of the cut rate, each second, and beside it:
_CUBIC = 9.0  # seconds after which the cubic term alone has doubled the rate;
_SURE = 90  # requests taken since the last pause that it takes for this; with fewer, it comes sooner,
_SOONEST = 3.0  # but not before so many seconds
_AGAIN = 4.0  # times the cut rate: from there growth begins anew,
_FORGET = 2  # so often; a limit so much higher is another limit
_FIRST_COOL_DOWN = 1.0  # seconds, where a refusal names no delay; doubles with each further one
_WINDOW = 60.0  # seconds over which the rate is measured; older counts fade
_FEWEST_FAILURES = 20  # in a row, that make an outage
_FIRST_PROBE = 0.25  # seconds after it began; the interval doubles with each probe that fails
_LONGEST_PROBE = 5.0  # seconds between two probes
_OUTAGE_WAITS = 5  # times max_wait: so long is an outage waited out
_NEVER_ANSWERED = 10.0  # seconds: how long at most, if there never was an answer
_BURST = 1.0  # seconds' worth of a budget that may leave at once


class Pace:
    """The control law: pure arithmetic on the times it is given."""

    def __init__(self) -> None:
        self.not_before = -math.inf  # the end of the cool-down
        self.rate: float | None = None  # requests a second; None: no limit was met
        self._next = -math.inf  # when the next request may leave
        self._since: float | None = None  # since when ``_taken`` counts
        self._taken = 0.0  # requests that the server took, or is not known to have refused
        self._sent_at = -math.inf
        self._cut_at = -math.inf  # the last episode's first refusal
        self._cut_due = False  # the pause of an episode is not over yet
        self._refused = 0  # in this episode
        self._base, self._grows_from = 0.0, 0.0  # the rate where growth began, and when that was
        self._steps = 0  # how often it began since the latest cut
        self._period = _CUBIC
        self._silent = 0  # refusals in a row that named no delay

    def delay(self, now: float) -> tuple[float, str]:
        """Return the seconds until the next request may leave, 0 if it may now, and what it waits for."""
        if now < self.not_before:
            return self.not_before - now, COOL_DOWN
        if self._cut_due:
            self._cut(now)
        if self.rate is not None:
            self._grow(now)
        return max(0.0, self._next - now), PACE

    def sent(self, now: float) -> None:
        """Note that a request leaves."""
        if self._since is None or (now - self._sent_at > _WINDOW and not self._cut_due):
            self._since, self._taken = now, 0.0
        elif now - self._since > 2 * _WINDOW:
            self._since, self._taken = (self._since + now) / 2, self._taken / 2
        self._sent_at = now
        self._taken += 1
        if self.rate is not None:
            self._next = max(self._next, now) + 1 / self.rate

    def taken(self) -> None:
        """Note that the server is known to have taken a request, whatever came of it."""
        self._silent = 0

    def not_taken(self, sent_at: float) -> None:
        """Note that it did not take one that was sent then."""
        if self._since is not None and sent_at >= self._since:
            self._taken = max(0.0, self._taken - 1)

    def refused(self, now: float, sent_at: float, delay: float | None, longest: float) -> None:
        """Note a refusal of a request sent at ``sent_at``; the server asked for ``delay`` seconds, or named none."""
        self.not_taken(sent_at)
        new_episode = sent_at > self._cut_at and not self._cut_due
        if delay is None:
            delay = min(_FIRST_COOL_DOWN * 2 ** min(self._silent, 16), longest)
            self._silent += new_episode
        self.not_before = max(self.not_before, now + delay)
        if new_episode:
            self._cut_at, self._cut_due, self._refused = now, True, 0
        self._refused += 1

    def _cut(self, now: float) -> None:
        began = self._cut_at if self._since is None else self._since
        ended = self._cut_at if self._refused <= max(1, _FEW * self._taken) else now
        span = max(ended - began, 1e-3)
        self._base = self.rate = _CUT * max(self._taken, 1) / span
        self._period = max(_CUBIC * min(self._taken / _SURE, 1), _SOONEST)
        self._cut_due, self._since, self._taken = False, now, 0.0
        self._next = self._grows_from = now
        self._steps = 1

    def _grow(self, now: float) -> None:
        age = now - max(self._grows_from, self.not_before)
        self.rate = self._base * (1 + _GROWTH * age + (age / self._period) ** 3)
        if self.rate <= _AGAIN * self._base:
            return
        self._steps += 1
        self._base, self._grows_from = self.rate, now
        if self._steps > _FORGET:
            self.rate, self._next = None, -math.inf


class Outage:
    """Notices an outage and says when to probe: pure arithmetic on the times it is given."""

    def __init__(self, places: int, longest_wait: float) -> None:
        self._places = max(_FEWEST_FAILURES, places)
        self._longest_wait = longest_wait
        self._failures = 0  # in a row
        self._row_began = 0.0
        self._prompts = 0  # of them, those of first tries: prompts that fail again and again may be sick themselves
        self._since: float | None = None  # when the present outage began
        self._probe: Call | None = None  # the call that probes now
        self._probes = 0
        self._next = 0.0  # when the next one may
        self.cause: CallError | None = None  # the latest failure

    def delay(self, now: float) -> float:
        """Return the seconds until a call may be sent: 0 while there is no outage, infinite while one probes."""
        if self._since is None:
            return 0.0
        return math.inf if self._probe is not None else max(0.0, self._next - now)

    def left(self, now: float, *, ever_answered: bool) -> float:
        """Return the seconds that the outage, if there is one, will still be waited out."""
        if self._since is None:
            return math.inf
        longest = _OUTAGE_WAITS * self._longest_wait
        return self._since + (longest if ever_answered else min(longest, _NEVER_ANSWERED)) - now

    def sent(self, call: Call) -> None:
        """Note that a call is sent; in an outage it is the probe."""
        if self._since is not None:
            self._probe = call

    def left_wire(self, call: Call) -> None:
        """Note that a call is off the wire, whatever came of it."""
        if self._probe is call:
            self._probe = None

    def failed(self, now: float, call: Call, cause: CallError) -> None:
        """Note a connection failure or a 5xx."""
        if self._failures == 0:
            self._row_began = now
        self._failures += 1
        self._prompts += call.attempts == 1
        self.cause = cause
        if self._since is not None:
            self._probes += 1
        elif self._prompts >= (1 if self._failures >= 2 * self._places else 1.25) * self._places:
            self._since, self._probes = now, 0
        else:
            return
        wait = min(_FIRST_PROBE * 2.0 ** min(self._probes, 16), _LONGEST_PROBE, self._longest_wait)
        self._next = max(self._next, now + wait)

    def replied(self, call: Call) -> None:
        """Note a reply that is no failure. One to a request from before the row says nothing of the server now."""
        if not self._failures or call.sent_at > self._row_began:
            self.over()

    def over(self) -> None:
        """Note that the server is there, or that it is not waited for any more."""
        self._failures = self._prompts = 0
        self._since = self._probe = None


class Budget:
    """So much a minute, evenly: at most a second's share at once. A larger need is met when the bucket is full.

    What is taken beyond the level is a debt that later needs wait out, so the average holds in any case.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._keep_to(1.0)
        self._level = self._size
        self._filled_at: float | None = None

    def share(self, part: float) -> None:
        """Keep to a part of the budget. A new part begins empty: others had it until just now."""
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


class Limits:
    """Asked before every request of a pool, told of every reply: pure arithmetic, for the scheduler's thread alone."""

    def __init__(
        self,
        places: int,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        longest_wait: float = math.inf,
    ) -> None:
        self._pace = Pace()
        self._outage = Outage(places, longest_wait)
        self._requests = Budget(requests_per_minute) if requests_per_minute else None
        self._tokens = Budget(tokens_per_minute) if tokens_per_minute else None
        self._tokens_per_minute = tokens_per_minute
        self._longest_wait = longest_wait
        self.answers = 0  # calls of this pool answered so far

    @property
    def outage_cause(self) -> CallError | None:
        """The latest failure of the present outage."""
        return self._outage.cause

    def delay(self, now: float, call: Call) -> tuple[float, str]:
        """Return the seconds until the call may be sent, 0 if it may now, and what it waits for."""
        waits = [self._pace.delay(now), (self._outage.delay(now), OUTAGE)]
        if self._requests:
            waits.append((self._requests.delay(now, 1), REQUESTS))
        if self._tokens:
            waits.append((self._tokens.delay(now, call.tokens), TOKENS))
        return max(waits)

    def refusal(self, call: Call) -> NotSentError | None:
        """Return the error of a call that is larger than the whole budget."""
        if not self._tokens_per_minute or call.tokens <= self._tokens_per_minute:
            return None
        return NotSentError(
            f"this prompt needs about {call.tokens:,} tokens, "
            f"more than tokens_per_minute={self._tokens_per_minute:,.0f} allows in a whole minute",
            code="over_budget",
        )

    def outage_left(self, now: float) -> float:
        """Return how long an outage will still be waited out."""
        return self._outage.left(now, ever_answered=self.answers > 0)

    def outage_over(self) -> None:
        """Wait it out no longer."""
        self._outage.over()

    def sent(self, now: float, call: Call) -> None:
        """Note that a call is sent."""
        self._pace.sent(now)
        self._outage.sent(call)
        if self._requests:
            self._requests.take(1)
        if self._tokens:
            self._tokens.take(call.tokens)

    def left_wire(self, call: Call) -> None:
        """Note that a call is off the wire, whatever came of it."""
        self._outage.left_wire(call)

    def failed(self, call: Call, error: CallError) -> None:
        """Note a connection failure or a 5xx: the server may be out."""
        self._pace.not_taken(call.sent_at)
        self._outage.failed(time.monotonic(), call, error)

    def taken(self, call: Call, tokens: int | None) -> None:
        """Note that the server took the call's request, and how many tokens it really used."""
        self._outage.replied(call)
        self._pace.taken()
        if self._tokens and tokens is not None:
            self._tokens.take(tokens - call.tokens)

    def refused(self, call: Call, delay: float | None) -> None:
        """Note a refusal for rate; the server asked for ``delay`` seconds, or named none."""
        self._outage.replied(call)
        self._pace.refused(time.monotonic(), call.sent_at, delay, self._longest_wait)
        if self._tokens:
            self._tokens.take(-call.tokens)

    def share_budgets(self, part: float) -> None:
        """Keep to a part of the budgets from now on; the rest is for other processes."""
        for budget in (self._requests, self._tokens):
            if budget is not None:
                budget.share(part)
