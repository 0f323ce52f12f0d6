"""The runs that wrote a journal: counts, and how much happened when. Pure but for ``read_history``."""

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

from .batch_format import is_answer
from .journal import Journal

_IDLE_GAP = 5.0  # seconds without a call, after which a new run begins
_MAX_BINS = 150
_BIN_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)  # seconds
_MAX_NUMBER = 1e11
_RATE_LIMIT = "RateLimitError"


class Intervals:
    """Intervals of time, and how many of them overlap when. A million take 16 MB."""

    def __init__(self) -> None:
        self._began, self._ended = array("d"), array("d")

    def add(self, began: float, ended: float) -> None:
        """Add an interval, in seconds since the epoch."""
        self._began.append(began)
        self._ended.append(max(began, ended))

    def merged(self) -> list[tuple[float, float]]:
        """Return the union of the intervals, with gaps of up to 5 seconds closed."""
        merged: list[tuple[float, float]] = []
        for began, ended in sorted(zip(self._began, self._ended)):
            if merged and began <= merged[-1][1] + _IDLE_GAP:
                merged[-1] = merged[-1][0], max(merged[-1][1], ended)
            else:
                merged.append((began, ended))
        return merged

    @property
    def covered(self) -> float:
        """Length of the union, in seconds."""
        return sum(ended - began for began, ended in self.merged())

    @property
    def total(self) -> float:
        """Sum of all lengths, in seconds."""
        return sum(self._ended) - sum(self._began)

    def means(self, edges: Sequence[float]) -> list[float]:
        """Return the mean number of intervals between each edge and the next."""
        began, ended = _PrefixSums(self._began), _PrefixSums(self._ended)
        areas = [began.elapsed(edge) - ended.elapsed(edge) for edge in edges]
        return [(late - early) / (b - a) for early, late, a, b in zip(areas, areas[1:], edges, edges[1:])]


class _PrefixSums:
    """Prefix sums over a set of instants."""

    def __init__(self, instants: Sequence[float]) -> None:
        self._instants = sorted(instants)
        # Relative to the first one: seconds since the epoch are so large that small differences would be lost.
        self._zero = self._instants[0] if self._instants else 0.0
        self._sums = [0.0, *accumulate(instant - self._zero for instant in self._instants)]

    def elapsed(self, now: float) -> float:
        """Return the seconds from each instant before ``now`` to ``now``, summed."""
        count = bisect_left(self._instants, now)
        return count * (now - self._zero) - self._sums[count]


class TimeSeries:
    """Amounts, each at an instant, and their sums between two instants."""

    def __init__(self) -> None:
        self._instants, self._amounts = array("d"), array("d")

    def add(self, instant: float, amount: float = 1) -> None:
        """Add an amount."""
        self._instants.append(instant)
        self._amounts.append(amount)

    @property
    def total(self) -> int:
        """Sum of all amounts."""
        return int(sum(self._amounts))

    def sums(self, edges: Sequence[float]) -> list[float]:
        """Return the sum from each edge to the next, which is excluded."""
        ordered = sorted(zip(self._instants, self._amounts))
        instants = [instant for instant, _ in ordered]
        prefix = [0.0, *accumulate(amount for _, amount in ordered)]
        at_edges = [prefix[bisect_left(instants, edge)] for edge in edges]
        return [late - early for early, late in zip(at_edges, at_edges[1:])]


class Cause(NamedTuple):
    """Why a prompt failed: the name of the error's class, the HTTP status, and the server's code."""

    name: str
    status: int | None
    code: str | None

    def __str__(self) -> str:
        words = [self.name, self.status, None if self.code == self.name else self.code]
        return " ".join(str(word) for word in words if word is not None)


class History:
    """All runs of one journal. Every line is a finished call; the one that counts gives its prompt's outcome."""

    def __init__(self) -> None:
        self.requests = self.copies = 0
        self.latencies = array("d")  # seconds from a prompt's first attempt to its answer, waits included
        self.failures: Counter[Cause] = Counter()  # of prompts
        self.examples: dict[Cause, str] = {}  # the first message of each cause
        self.failed_attempts: Counter[str] = Counter()
        self.calls, self.attempts = Intervals(), Intervals()
        self.rate_limited, self.tokens_in, self.tokens_out = TimeSeries(), TimeSeries(), TimeSeries()

    @property
    def prompts(self) -> int:
        """The number of prompts."""
        return len(self.latencies) + sum(self.failures.values()) + self.copies

    def add(self, document: Mapping[str, Any], *, counts: bool) -> None:
        """Add a line. ``counts``: whether it gives its prompt's outcome."""
        own = document["chatpool"]
        if counts and not own["attempts"] and own["elapsed"] == 0:  # a copy for an equal prompt, which was not sent
            self.copies += 1
            return
        self.requests += int(_number(own["attempts"]))
        began, elapsed = _number(own["started"]), _number(own["elapsed"])
        self.calls.add(began, began + elapsed)
        self._add_attempts(began, own.get("tries") or [{"began": 0.0, "ended": elapsed, "error": None}])
        self._add_tokens(began + elapsed, document["response"])
        if counts and is_answer(document):
            self.latencies.append(elapsed)
        elif counts:
            self._add_failure(document["error"] or own, own)

    def edges(self) -> list[list[float]]:
        """Divide each run into bins of about equal width; return the edges, in seconds since the epoch."""
        runs = [(start, max(end, start + _BIN_WIDTHS[0])) for start, end in self.calls.merged()]
        busy = sum(end - start for start, end in runs)
        width = next((width for width in _BIN_WIDTHS if busy / width <= _MAX_BINS), _BIN_WIDTHS[-1])
        return [_divide(start, end, max(1, round((end - start) / width))) for start, end in runs]

    def _add_attempts(self, began: float, attempts: Iterable[Any]) -> None:
        for attempt in attempts:
            start, end, error = _read_attempt(attempt)
            self.attempts.add(began + _number(start), began + _number(end))
            if error is not None:
                self.failed_attempts[str(error)] += 1
            if error == _RATE_LIMIT:
                self.rate_limited.add(began + end)

    def _add_tokens(self, instant: float, response: Any) -> None:
        # Chat completions and embeddings use the first name of each pair, the Responses API the second.
        self.tokens_in.add(instant, _tokens(response, "prompt_tokens", "input_tokens"))
        self.tokens_out.add(instant, _tokens(response, "completion_tokens", "output_tokens"))

    def _add_failure(self, error: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        cause = Cause(str(own.get("error")), own.get("status_code"), error.get("code"))
        self.failures[cause] += 1
        self.examples.setdefault(cause, str(error.get("message")))


def read_history(path: PathLike) -> History:
    """Read a journal, even while a run writes it. Raises JournalError for any other file or an invalid line."""
    history = History()
    with Journal(path, is_read_only=True) as journal:
        for number, (document, counts) in enumerate(journal.documents(), 1):
            try:
                history.add(document, counts=counts)
            except (AttributeError, KeyError, TypeError, ValueError):
                raise JournalError(
                    f"{journal.path}: line {number} was edited, and its 'chatpool' fields are invalid; "
                    "remove the line, or restore the file"
                ) from None
    return history


def _divide(start: float, end: float, bins: int) -> list[float]:
    return [start + (end - start) * n / bins for n in range(bins)] + [math.nextafter(end, math.inf)]


def _number(value: Any) -> float:
    """Return a number of seconds or attempts; raise ValueError for any other value."""
    if not _is_valid(value):
        raise ValueError(value)
    return float(value)


def _read_attempt(attempt: Any) -> tuple[Any, Any, Any]:
    """Return when an attempt began and ended, and its error. Older versions wrote a list of the three."""
    if isinstance(attempt, dict):
        return attempt["began"], attempt["ended"], attempt["error"]
    began, ended, error = attempt
    return began, ended, error


def _tokens(response: Any, *names: str) -> float:
    """Return the first usable count in a response's usage, 0 without any: servers send all kinds of values there."""
    for field in ("body", "usage"):
        response = response.get(field) if isinstance(response, dict) else None
    usage = response if isinstance(response, dict) else {}
    return next((usage[name] for name in names if _is_valid(usage.get(name))), 0)


def _is_valid(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER
