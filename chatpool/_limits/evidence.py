"""What refusals are evidence of: a limit, chance, or the prompt itself. Pure counting.

Calls are kept by their ids alone: limits outlive calls, and a call would keep its pool alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Of one row of refusals.
CERTAIN = 7  # prompts refused in a row, with none accepted in between, are no chance: where three in ten requests are
# refused at random, so long a row begins with one refusal in 1,400
NEARLY = 9, 0.85  # nor are so many, of so large a share of the requests: replies overtake one another
SHUT = 12  # requests in a row, though of a few prompts: nothing is accepted any more
SERIOUS = 5  # in a row may be a limit: a prompt waits longer each time, so as not to spend its attempts on it
LEAKY = 10, 0.7  # of so many requests a smaller share was refused: others are accepted meanwhile

# Of the pace.
USELESS = 1 / 3  # of the share without a pace: if so large a share is refused with one, the pace does not help
PROOF, FEWEST = 3, 10  # refusals below the pace, and requests without one, before this is known
SAMPLE = 20  # requests of such a trial before it is judged
MOST = 0.6  # of them refused: so many are no chance
CROWD = 0.22  # a smaller share may come of other clients: they would get less if this one did not slow down, too
EXCESS = 0.1  # of the requests: so many more than by chance may be refused, and the pace is not cut
RUN = 30  # times the chance: so many refusals beyond that cut it; chance alone takes some hundred requests for that
FADE = 200  # requests, after which older ones count half

# Of one prompt.
ALONE = 8, 3  # others accepted since a prompt was last refused, at least, and times the others refused: it is suspect


class Row:
    """Refusals in a row, in the order of sending. A prompt that was refused before in this row says nothing new."""

    def __init__(self, now: float, number: int) -> None:
        self.began = now
        self.first = self.last = self._begin = number
        self.sent = 0  # the number of the latest request, when sending paused because of this row
        self._requests = 0
        self.calls: set[int] = set()
        self.is_cut = False  # the pace was cut because of it
        self.is_fresh = False  # a prompt's first request is among them
        self._is_own = True  # others passed all of these prompts by before: it is their own case

    def add(self, call: Any, number: int, *, was_passed: bool = False) -> None:
        """Add a refusal of the request with this number. ``was_passed``: by others that were sent later."""
        self._requests += 1
        if id(call) in self.calls:
            self.first += 1
        self.calls.add(id(call))
        self.first, self.last = min(self.first, number), max(self.last, number)
        self.is_fresh = self.is_fresh or call.attempts == 1
        self._is_own = self._is_own and was_passed

    def skip(self) -> None:
        """Note a refusal in between that says nothing."""
        self.first += 1
        self._begin += 1

    def is_certain(self) -> bool:
        """Whether so many refusals in a row must come from a limit."""
        refused, sent = len(self.calls), self.last - self.first + 1
        is_long = refused >= CERTAIN and refused >= sent
        is_dense = refused >= NEARLY[0] and refused >= NEARLY[1] * sent
        is_shut = self._requests >= max(SHUT, self.last - self._begin + 1)
        return is_shut or ((is_long or is_dense) and not self._is_own)

    @property
    def is_serious(self) -> bool:
        """Whether there may be a limit after all."""
        return self._requests >= SERIOUS

    def is_leaky(self) -> bool:
        """Whether others were accepted in between."""
        return self.last - self.first + 1 >= LEAKY[0] and self.share(self.last) < LEAKY[1]

    def was_for_most(self) -> bool:
        """Whether most of what was sent before the pause was refused, and not one of many."""
        return self.sent > self.first and self.share(self.sent) >= LEAKY[1]

    def share(self, last: int) -> float:
        """Return the share of refused ones among the requests from the first of the row to this one."""
        return len(self.calls) / max(last - self.first + 1, 1)


class Share:
    """A share of refusals. Older requests count less and less."""

    def __init__(self) -> None:
        self.sent = self.refused = 0.0

    def count(self) -> None:
        """Count a request."""
        self.sent += 1
        if self.sent >= FADE:
            self.sent /= 2
            self.refused /= 2

    @property
    def value(self) -> float:
        """The share."""
        return self.refused / max(self.sent, 1.0)


class Comparison:
    """Compares the refusals below the known pace with those without a pace.

    If as many come, it is of no use to pace, and it is tried without. Each trial that fails puts off the next one.
    """

    def __init__(self) -> None:
        self.is_trial = False  # refusals seem to come at random, whatever the pace is
        self._patience = 1  # times as much has to be seen before the next trial
        self._excess = 0.0  # refusals more than come by chance, lately: a cumulative sum ("CUSUM", Page, 1954)
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._free, self._below = Share(), Share()
        self._rows = 0  # of refusals below the pace

    def sent(self, *, is_free: bool, is_below: bool) -> None:
        """Count a request. Between the two, at a pace that may be too fast, nothing is counted."""
        self._excess = max(0.0, self._excess - self.chance - EXCESS)
        if is_free:
            self._free.count()
        elif is_below:
            self._below.count()

    @property
    def chance(self) -> float:
        """The share of requests that are refused whatever the pace, as far as is known."""
        if self.is_trial:
            return min(self._free.value, MOST) if self._free.sent >= SAMPLE else 0.0
        if self._rows < PROOF:
            return 0.0
        return min((self._below.refused - 1) / max(self._below.sent, FEWEST), MOST)

    def refused(self) -> None:
        """Count a refusal with a pace."""
        self._excess += 1

    @property
    def is_excess(self) -> bool:
        """Whether more were refused lately than come by chance."""
        return self.chance < CROWD or self._excess > RUN * self.chance

    def restart(self) -> None:
        """Count more than chance from zero: the pace was cut."""
        self._excess = 0.0

    def refused_free(self) -> None:
        """Count a refusal without a pace."""
        self._free.refused += 1

    def refused_below(self, *, is_first: bool) -> None:
        """Count a refusal below the pace. ``is_first``: of a row; one row may have a cause of its own."""
        self._below.refused += 1
        self._rows += is_first

    def certain(self, share: float, *, is_free: bool) -> None:
        """Note the share of refusals when a limit was met for certain."""
        self._below, self._rows = Share(), 0
        if is_free:
            self._free.refused = max(self._free.refused, share * self._free.sent)

    @property
    def calls_for_trial(self) -> bool:
        """Whether going without a pace may be as good."""
        refused = self._below.refused / self._patience
        return refused >= PROOF and self._free.sent >= FEWEST and not self._helps

    def begin_trial(self) -> None:
        """Go without a pace from now on."""
        self.is_trial, self._free = True, Share()

    @property
    def has_failed(self) -> bool:
        """Whether the trial shows that a pace helps, or that there is a limit."""
        return self.is_trial and self._free.sent >= SAMPLE and (self._helps or self._free.value >= MOST)

    def end_trial(self) -> None:
        """Pace again."""
        self.is_trial, self._below = False, Share()
        self._rows = 0
        self._patience *= 2

    @property
    def _helps(self) -> bool:
        return self._below.value < USELESS * self._free.value


@dataclass
class History:
    """What is known of a prompt that was refused, until it is answered or cancelled."""

    number: int = 0  # of the latest request of all when it was last refused
    was_passed: bool = False  # others that were sent later were accepted, with no pause in between
    strikes: int = 0  # refusals while many others were accepted
    others: tuple[int, int] = (0, 0)  # sent and refused when it was last refused


@dataclass
class Suspects:
    """Prompts that are refused again and again while others, as large as they are, are accepted.

    What they meet is not evidence of a limit. Each suspect that is accepted after all makes suspicion slower.
    """

    patience: int = 1  # strikes that make a suspect
    _histories: dict[int, History] = field(default_factory=dict)
    _sent: list[int] = field(default_factory=lambda: [0, 0])  # of ordinary and of large requests
    _refused: list[int] = field(default_factory=lambda: [0, 0])

    def includes(self, call: Any) -> bool:
        """Whether a prompt is suspect."""
        history = self._histories.get(id(call))
        return history is not None and history.strikes >= self.patience

    def knows(self, call: Any) -> bool:
        """Whether a prompt was refused before."""
        return id(call) in self._histories

    def was_passed(self, call: Any) -> bool:
        """Whether others that were sent later were accepted when it was refused before."""
        history = self._histories.get(id(call))
        return history is not None and history.was_passed

    def sent(self, *, is_large: bool) -> None:
        """Count a request for a prompt that is not suspect."""
        self._sent[is_large] += 1

    def refused(self, call: Any, number: int, accepted: int, paused_at: int, *, is_large: bool) -> None:
        """Note a refusal. The numbers are of requests.

        ``number``: of the latest that was sent; ``accepted``: of the latest that is known to be accepted;
        ``paused_at``: of the latest before a pause.
        """
        history = self._histories.setdefault(id(call), History())
        self._refused[is_large] += history.strikes < self.patience
        sent, refused = self._sent[is_large] - history.others[0], self._refused[is_large] - history.others[1]
        were_many = sent - refused >= max(ALONE[0], ALONE[1] * (refused - 1))
        was_passed = paused_at < history.number < accepted
        history.was_passed = history.was_passed or was_passed
        history.strikes += was_passed and were_many
        history.number, history.others = number, (self._sent[is_large], self._refused[is_large])

    def accepted(self, call: Any) -> None:
        """Note that a prompt was accepted after all."""
        history = self._histories.pop(id(call), None)
        if history is not None and history.strikes >= self.patience:
            self.patience += 1

    def ended(self, call: Any) -> None:
        """Forget a prompt."""
        self._histories.pop(id(call), None)
