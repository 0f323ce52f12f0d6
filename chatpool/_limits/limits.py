"""When the next request may be sent. Pure arithmetic on given times; only the scheduler's thread asks.

**A refusal is evidence, not a verdict** (``evidence.py``). Refusals of seven prompts in a row, in the order of sending
and with none accepted in between, come from a limit: sending pauses, and one request at a time probes (``breaker.py``).
A single refusal that asks for a delay pauses everybody, too, unless such a pause proved needless. Refusals among
requests that are accepted are followed by a pace slightly below what the server accepts. If about as many come with the
pace as without, they come at random: the pace is dropped, and each of those prompts backs off by itself
(``own_wait.py``). So does a prompt that is refused again and again while others as large are accepted. If many come at
random beside a limit, the pace is cut only for more than that (``Comparison.is_excess``).

**Two limits hold, and the narrower decides.** The *pace*, in requests or tokens a second (``pacing.py``): it starts
from what the server accepted from one refusal to the next (``meter.py``), and grows along a cubic curve. The
*window*, in requests at once (``window.py``): what was in flight when the refusals began. One request beyond it shows
which of the two it is, because a limit on requests a second accepts that one. Where nothing is accepted for seconds, so
many requests are allowed in a *period*, and a request is sent when the one as many before it is that old
(``rounds.py``). Limits that replies announce are kept before they are exceeded, as far as they prove true
(``announced.py``).

All of this is per model (``limiter.py``). The **outage** (``outage.py``), when nothing but connection failures and
server errors comes back, is the server's: it is probed likewise. Both are waited out for five times ``max_wait``. The
**budgets** that the user sets (``token_bucket.py``) are the pool's.

Sources: token buckets and cubic growth as in botocore's adaptive retry mode and RFC 9438; additive increase of the
window as in Netflix's concurrency-limits; the breaker as in Nygard's "Release It!". Each constant has its reason beside
it; ``python benchmarks/rate_limit.py`` plays every shape of limit against all this.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

from chatpool._protocol.announced_limits import Announced
from chatpool.errors import CallError, NotSentError

from .limiter import ANNOUNCED, COOL_DOWN, PACE, WINDOW, Call, Limiter
from .outage import Outage
from .token_bucket import Budget

__all__ = ["ANNOUNCED", "BACK_OFF", "COOL_DOWN", "OUTAGE", "PACE", "REQUESTS", "SLOTS", "TOKENS", "WINDOW", "Limits"]

# Names of what holds a call back, as the summary shows them; more are in limiter.py.
SLOTS = "max_workers"
REQUESTS = "requests_per_minute"
TOKENS = "tokens_per_minute"
BACK_OFF = "back-off after failures"
OUTAGE = "an outage of the server"

_WAITS = 5  # times max_wait: for so long an outage, or nothing but refusals, is waited out


class Limits:
    """Asked before every request of a pool, and notified of every outcome."""

    def __init__(
        self,
        slots: int,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        longest_wait: float = math.inf,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._limiters: dict[str, Limiter] = {}
        self._outage = Outage(slots, longest_wait)
        self._requests = Budget(requests_per_minute) if requests_per_minute else None
        self._tokens = Budget(tokens_per_minute) if tokens_per_minute else None
        self._tokens_per_minute = tokens_per_minute
        self._longest_wait, self._uniform = longest_wait, uniform
        self._answers: Counter[str] = Counter()
        self._accepted_at = -math.inf  # when the server accepted a request for the last time, whatever its model
        self._refusal: CallError | None = None  # the latest

    # Asked.

    def delay(self, now: float, call: Call) -> tuple[float, str]:
        """Return the seconds until the call may be sent, 0 if it may now, and what it waits for."""
        waits = [self._limiter(call.model).delay(now, call), (self._outage.delay(now), OUTAGE)]
        if self._requests:
            waits.append((self._requests.delay(now, 1), REQUESTS))
        if self._tokens:
            waits.append((self._tokens.delay(now, call.tokens), TOKENS))
        return max(waits)

    def prefers_new(self, model: str) -> bool:
        """Whether the next call of a model should be one that was not refused yet, if there is one."""
        return model in self._limiters and self._limiters[model].prefers_new

    def refusal(self, text: int) -> NotSentError | None:
        """Return the error of a prompt whose text alone has more tokens than the whole budget.

        Pictures, other media and the answer are a rough guess: a call that needs more with them waits for a full one.
        """
        if not self._tokens_per_minute or text <= self._tokens_per_minute:
            return None
        return NotSentError(
            f"this prompt needs about {text:,} tokens, "
            f"more than tokens_per_minute={self._tokens_per_minute:,.0f} allows in a whole minute",
            code="over_budget",
        )

    @property
    def answers(self) -> int:
        """How many calls were answered."""
        return sum(self._answers.values())

    def answers_of(self, model: str) -> int:
        """Return how many calls of a model were answered."""
        return self._answers[model]

    def outage_left(self, now: float) -> float:
        """Return the seconds for which an outage, or nothing but refusals, is still waited out; endless without one."""
        longest = _WAITS * self._longest_wait
        refused = [limiter.breaker.since for limiter in self._limiters.values() if limiter.breaker.since is not None]
        since = max(min(refused), self._accepted_at) if refused else math.inf
        return min(self._outage.left(now, longest), since + longest - now)

    @property
    def outage_cause(self) -> CallError | None:
        """The latest failure, or the latest refusal."""
        return self._outage.cause if self._outage.is_on else self._refusal

    def figures(self) -> dict[str, str]:
        """Return the limits of the server that are known, in words, by the waits they cause. Any thread may ask."""
        found: dict[str, str] = {}
        for limiter in list(self._limiters.values()):
            found.update(limiter.figures())
        return found

    # Notified.

    def sent(self, now: float, call: Call) -> None:
        """Note that a call is sent."""
        self._limiter(call.model).sent(now, call)
        self._outage.sent(call)
        if self._requests:
            self._requests.take(1)
        if self._tokens:
            self._tokens.take(call.tokens)

    def left_wire(self, now: float, call: Call) -> None:
        """Note that a call is off the wire, whatever came of it; to be called after its outcome, if there is one."""
        self._outage.left_wire(call)
        self._limiter(call.model).gone(now, call)

    def ended(self, call: Call) -> None:
        """Note that nothing more is sent for a call."""
        self._limiter(call.model).ended(call)

    def answered(self, call: Call) -> None:
        """Note that a call has its answer."""
        self._answers[call.model] += 1

    def accepted(self, now: float, call: Call, tokens: int | None, announced: Sequence[Announced] = ()) -> None:
        """Note that the server accepted a request, how many tokens it used, and which limits its reply announces."""
        self._accepted_at = now
        self._outage.replied(call)
        self._limiter(call.model).accepted(now, call, announced)
        if self._tokens and tokens is not None:
            self._tokens.take(tokens - call.tokens)

    def refused(self, now: float, call: Call, error: CallError, announced: Sequence[Announced] = ()) -> float:
        """Note that the server refused a request because of its load; return the call's own wait in seconds."""
        self._refusal = error
        self._outage.replied(call)
        if self._tokens:
            self._tokens.take(-call.tokens)
        return self._limiter(call.model).refused(now, call, error.retry_after, announced)

    def failed(self, now: float, call: Call, error: CallError) -> None:
        """Note a connection failure or a 5xx: the server may be out."""
        self._outage.failed(now, call, error)
        self._limiter(call.model).gone(now, call)

    def outage_over(self) -> None:
        """Wait no longer, neither for the outage to end nor for the refusals."""
        self._outage.over()
        for limiter in self._limiters.values():
            limiter.breaker.close()

    def share_budgets(self, part: float) -> None:
        """Keep to a part of the budgets from now on; the rest is for other processes."""
        for budget in (self._requests, self._tokens):
            if budget is not None:
                budget.share(part)

    def _limiter(self, model: str) -> Limiter:
        limiter = self._limiters.get(model)
        if limiter is None:
            limiter = self._limiters[model] = Limiter(self._longest_wait, self._uniform)
        return limiter
