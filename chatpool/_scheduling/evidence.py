"""What refusals are evidence of: a limit, chance, or the prompt itself. Pure counting.

Calls are kept by their ids alone: limits outlive calls, and a call would keep its pool alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CERTAIN = 7  # prompts refused in a row, with none taken in between, are no chance: where three in ten requests are
# refused at random, so long a row begins with one refusal in 1,400
NEARLY = 9, 0.85  # nor are so many, of so large a share of the requests: replies overtake one another
MORE = 5  # in a row, once it is known that refusals come at random
LEAKY = 10, 0.7  # of so many requests a smaller share was refused: others are taken meanwhile
PROOF = 3  # rows of refusals below the pace, before they prove anything
SAMPLE = 20  # requests without a pace, before there is anything to compare with
HALF = 0.5  # of the share without a pace: if so large a share is refused with one, the pace does not help
TRIAL, MANY = 8, 0.1  # rows of refusals below the pace, and so large a share: going without a pace shows what it is for
FADE = 200  # requests, after which older ones count half
ALONE = 8, 3  # others taken since a prompt was last refused, at least, and times the others refused: it is suspect


class Row:
    """Refusals in a row, in the order of sending. A prompt that was refused before in this row says nothing new."""

    def __init__(self, now: float, number: int) -> None:
        self.began = now
        self.first = self.last = number
        self.calls: set[int] = set()
        self.is_fresh = False  # a prompt's first request is among them

    def add(self, call: Any, number: int) -> None:
        """Add a refusal of the request with this number."""
        if id(call) in self.calls:
            self.first += 1
        self.calls.add(id(call))
        self.first, self.last = min(self.first, number), max(self.last, number)
        self.is_fresh = self.is_fresh or call.attempts == 1

    def is_certain(self, extra: int) -> bool:
        """Whether so many refusals in a row must come from a limit."""
        refused, sent = len(self.calls), self.last - self.first + 1
        if refused >= CERTAIN + extra and refused >= sent:
            return True
        return refused >= NEARLY[0] + extra and refused >= NEARLY[1] * sent

    def is_leaky(self) -> bool:
        """Whether others were taken in between."""
        return self.last - self.first + 1 >= LEAKY[0] and self.share(self.last) < LEAKY[1]

    def share(self, last: int) -> float:
        """Return the share of refused ones among the requests from the first of the row to this one."""
        return len(self.calls) / max(last - self.first + 1, 1)


class Comparison:
    """Are requests refused less often below the known pace than with no pace at all? Else it is of no use to pace."""

    def __init__(self) -> None:
        self._patience = TRIAL
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._free, self._below = Share(), Share()

    def sent(self, *, is_free: bool, is_below: bool) -> None:
        """Count a request. Between the two, at a pace that is not known to be taken, nothing is counted."""
        if is_free:
            self._free.count()
        elif is_below:
            self._below.count()

    def refused_free(self) -> None:
        """Count a refusal."""
        self._free.refused += 1

    def refused_below(self) -> None:
        """Count a row of refusals: below the pace, one more in a row says nothing new."""
        self._below.refused += 1

    def certain(self, share: float) -> None:
        """Note the share of refusals when a limit was met for certain."""
        self._free.refused = max(self._free.refused, share * self._free.sent)

    @property
    def calls_for_trial(self) -> bool:
        """Whether so many are refused below the pace that going without it may be as good."""
        if self._below.refused < PROOF or self._free.sent < SAMPLE:
            return False
        return not self._helps or (self._below.value >= MANY and self._below.refused >= self._patience)

    def begin_trial(self) -> None:
        """Go without a pace from now on."""
        self._free = Share()

    @property
    def has_failed(self) -> bool:
        """Whether the trial shows that a pace helps."""
        return self._free.sent >= SAMPLE and self._helps

    def end_trial(self) -> None:
        """Pace again: the next trial comes later."""
        self._patience *= 2
        self._below = Share()

    @property
    def _helps(self) -> bool:
        return self._below.value < HALF * self._free.value


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


@dataclass
class History:
    """What is known of a prompt that was refused, until it is answered or given up."""

    number: int = 0  # of the latest request of all when it was last refused
    strikes: int = 0  # refusals while many others were taken
    others: tuple[float, float] = (0.0, 0.0)  # sent and refused when it was last refused


@dataclass
class Suspects:
    """Prompts that are refused again and again while others, as large as they are, are taken.

    What they meet is not evidence of a limit. Each suspect that is answered after all makes the pool slower to suspect.
    """

    patience: int = 1  # strikes that make a suspect
    _histories: dict[int, History] = field(default_factory=dict)
    _sent: list[int] = field(default_factory=lambda: [0, 0])  # of ordinary and of large requests
    _refused: list[int] = field(default_factory=lambda: [0, 0])

    def includes(self, call: Any) -> bool:
        """Whether a prompt is suspect."""
        history = self._histories.get(id(call))
        return history is not None and history.strikes >= self.patience

    def sent(self, is_large: bool) -> None:
        """Count a request for a prompt that is not suspect."""
        self._sent[is_large] += 1

    def refused(self, call: Any, number: int, known_taken: int, is_large: bool) -> None:
        """Note a refusal.

        ``number``: of the latest request that was sent; ``known_taken``: of the latest that is known to be taken.
        """
        history = self._histories.setdefault(id(call), History())
        self._refused[is_large] += history.strikes < self.patience
        sent, refused = self._sent[is_large] - history.others[0], self._refused[is_large] - history.others[1]
        were_taken = sent - refused >= max(ALONE[0], ALONE[1] * (refused - 1))
        history.strikes += 0 < history.number < known_taken and were_taken
        history.number, history.others = number, (self._sent[is_large], self._refused[is_large])

    def taken(self, call: Any) -> None:
        """Note that a prompt was taken after all."""
        history = self._histories.pop(id(call), None)
        if history is not None and history.strikes >= self.patience:
            self.patience += 1

    def ended(self, call: Any) -> None:
        """Forget a prompt."""
        self._histories.pop(id(call), None)
