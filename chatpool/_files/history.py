"""What a journal tells of the runs that wrote it: counts, and what went on at each time. Draws nothing."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from chatpool._protocol.results import PathLike
from chatpool.errors import JournalError

from .journal import Journal

_SILENCE = 5.0  # seconds without any call, from which on a run is over and what follows another
_MOST_BINS = 150
_BIN_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)  # seconds
_REFUSAL = "RateLimitError"
_MOST = 1e11


class Spans:
    """Intervals of time, of which it is asked how many there were at once. A million take 16 MB."""

    def __init__(self) -> None:
        self._began, self._ended = array("d"), array("d")

    def add(self, began: float, ended: float) -> None:
        """Take one in: seconds since the epoch."""
        self._began.append(began)
        self._ended.append(max(began, ended))

    def stretches(self) -> list[tuple[float, float]]:
        """Return when there was any, with short silences counted in."""
        found: list[tuple[float, float]] = []
        for began, ended in sorted(zip(self._began, self._ended)):
            if found and began <= found[-1][1] + _SILENCE:
                found[-1] = found[-1][0], max(found[-1][1], ended)
            else:
                found.append((began, ended))
        return found

    @property
    def covered(self) -> float:
        """Seconds in which there was any."""
        return sum(ended - began for began, ended in self.stretches())

    @property
    def total(self) -> float:
        """Seconds of all of them, added up."""
        return sum(self._ended) - sum(self._began)

    def means(self, edges: Sequence[float]) -> list[float]:
        """Return how many there were on average between each edge and the next."""
        began, ended = _Passed(self._began), _Passed(self._ended)
        areas = [began.until(edge) - ended.until(edge) for edge in edges]
        return [(late - early) / (b - a) for early, late, a, b in zip(areas, areas[1:], edges, edges[1:])]


class _Passed:
    """Answers: how many seconds have passed since each of these moments, all added up?"""

    def __init__(self, moments: Sequence[float]) -> None:
        self._moments = sorted(moments)
        # From the first one on: the clock's own count is so large that small differences would drown in it.
        self._zero = self._moments[0] if self._moments else 0.0
        self._sums = [0.0, *accumulate(moment - self._zero for moment in self._moments)]

    def until(self, now: float) -> float:
        count = bisect_left(self._moments, now)
        return count * (now - self._zero) - self._sums[count]


class Series:
    """Amounts, each at a moment, of which it is asked how much there was from one moment to another."""

    def __init__(self) -> None:
        self._moments, self._amounts = array("d"), array("d")

    def add(self, moment: float, amount: float = 1) -> None:
        """Take one in."""
        self._moments.append(moment)
        self._amounts.append(amount)

    @property
    def total(self) -> int:
        """All amounts together."""
        return int(sum(self._amounts))

    def sums(self, edges: Sequence[float]) -> list[float]:
        """Return how much there was from each edge to before the next."""
        ordered = sorted(zip(self._moments, self._amounts))
        moments = [moment for moment, _ in ordered]
        sums = [0.0, *accumulate(amount for _, amount in ordered)]
        places = [sums[bisect_left(moments, edge)] for edge in edges]
        return [late - early for early, late in zip(places, places[1:])]


class Cause(NamedTuple):
    """Why a prompt failed: the name of the error's class, and the server's words for it."""

    name: str
    status: int | None
    code: str | None

    def __str__(self) -> str:
        words = [self.name, self.status, None if self.code == self.name else self.code]
        return " ".join(str(word) for word in words if word is not None)


class History:
    """The runs of one journal. Every line is a call that was made; the last one of a prompt tells how it ended."""

    def __init__(self, documents: Iterable[tuple[Mapping[str, Any], bool]] = ()) -> None:
        self.requests = 0
        self.latencies = array("d")  # seconds from the first try to the answer, waits included
        self.failures: Counter[Cause] = Counter()  # of prompts
        self.examples: dict[Cause, str] = {}  # the message of each failure's first
        self.setbacks: Counter[str] = Counter()  # of tries
        self.calls, self.tries = Spans(), Spans()
        self.refusals, self.tokens_in, self.tokens_out = Series(), Series(), Series()
        for document, is_last in documents:
            self.add(document, is_last=is_last)

    @property
    def prompts(self) -> int:
        """How many the journal knows."""
        return len(self.latencies) + sum(self.failures.values())

    def add(self, document: Mapping[str, Any], *, is_last: bool) -> None:
        """Take a line in; ``is_last``: it is its prompt's last."""
        ours = document["chatpool"]
        self.requests += int(_number(ours["attempts"]))
        began, elapsed = _number(ours["started"]), _number(ours["elapsed"])
        self.calls.add(began, began + elapsed)
        self._add_tries(began, ours.get("tries") or [(0.0, elapsed, None)])
        self._add_tokens(began + elapsed, ((document["response"] or {}).get("body") or {}).get("usage") or {})
        if is_last and document["error"] is None:
            self.latencies.append(elapsed)
        elif is_last:
            self._add_failure(document["error"], ours)

    def edges(self) -> list[list[float]]:
        """Cut the time of each run into bins of about equal width. Seconds since the epoch."""
        runs = [(start, max(end, start + _BIN_WIDTHS[0])) for start, end in self.calls.stretches()]
        busy = sum(end - start for start, end in runs)
        width = next((width for width in _BIN_WIDTHS if busy / width <= _MOST_BINS), _BIN_WIDTHS[-1])
        return [_cut(start, end, max(1, round((end - start) / width))) for start, end in runs]

    def _add_tries(self, began: float, tries: Iterable[tuple[float, float, str | None]]) -> None:
        for start, end, error in tries:
            self.tries.add(began + _number(start), began + _number(end))
            if error is not None:
                self.setbacks[str(error)] += 1
            if error == _REFUSAL:
                self.refusals.add(began + end)

    def _add_tokens(self, moment: float, usage: Mapping[str, Any]) -> None:
        # Chat completions and embeddings name them so; the Responses API otherwise.
        self.tokens_in.add(moment, _number(usage.get("prompt_tokens") or usage.get("input_tokens") or 0))
        self.tokens_out.add(moment, _number(usage.get("completion_tokens") or usage.get("output_tokens") or 0))

    def _add_failure(self, error: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        cause = Cause(str(ours.get("error")), ours.get("status_code"), error.get("code"))
        self.failures[cause] += 1
        self.examples.setdefault(cause, str(error.get("message")))


def _cut(start: float, end: float, bins: int) -> list[float]:
    return [start + (end - start) * n / bins for n in range(bins)] + [math.nextafter(end, math.inf)]


def read_history(path: PathLike) -> History:
    """Read a journal, also one that is being written. Raises JournalError for what is none."""
    history, number = History(), 0
    with Journal(path, is_read_only=True) as journal:
        for number, (document, is_last) in enumerate(journal.documents(), 1):
            try:
                history.add(document, is_last=is_last)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise JournalError(
                    f"{journal.path}: line {number} was changed by other hands, and tells nothing"
                ) from None
    return history


def _number(value: Any) -> float:
    """Return a number as a journal may hold it: seconds, of which there were never more than that, or tokens."""
    if not isinstance(value, (int, float)) or not 0 <= value < _MOST:
        raise ValueError(value)
    return value
