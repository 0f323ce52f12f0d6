"""The runs that wrote a journal: counts, and how much happened when. Pure but for ``read_history``."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from chatpool._protocol.results import PathLike
from chatpool.errors import JournalError

from .batch_format import is_answer
from .journal import Journal
from .runs import Spending, ends_of, spending_of

_IDLE_GAP = 5.0  # seconds without a call, after which a new run begins if the lines name none
_MAX_BINS = 150
_BIN_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400)  # seconds
_MAX_NUMBER = 1e11
_RATE_LIMIT = "RateLimitError"
_MAX_FAILED = 100  # prompts whose failure is listed


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


class Cumulative:
    """An amount that only grows, known at some instants, linear in between."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def add(self, instant: float, amount: float) -> None:
        """Add what is known at an instant."""
        self._points.append((instant, amount))

    def rates(self, edges: Sequence[float]) -> list[float]:
        """Return the mean growth a second between each edge and the next."""
        self._points.sort()
        values = [self._at(edge) for edge in edges]
        return [(late - early) / (b - a) for early, late, a, b in zip(values, values[1:], edges, edges[1:])]

    def _at(self, instant: float) -> float:
        number = bisect_left(self._points, (instant,))
        if number == 0:
            return 0.0
        (before, low), (after, high) = self._points[number - 1], self._points[min(number, len(self._points) - 1)]
        share = (instant - before) / (after - before) if after > before else 0.0
        return low + (high - low) * share


class Cause(NamedTuple):
    """Why a prompt failed: the name of the error's class, the HTTP status, and the server's code."""

    name: str
    status: int | None
    code: str | None

    def __str__(self) -> str:
        words = [self.name, self.status, None if self.code == self.name else self.code]
        return " ".join(str(word) for word in words if word is not None)


class Failure(NamedTuple):
    """A prompt that failed: the custom_id of its line, the cause, and the error's message."""

    name: str
    cause: Cause
    message: str


@dataclass
class Run:
    """One run: when it began and ended (Unix time), and how it ended.

    ``how`` is None if nobody wrote it down: the run was killed, or goes on, or an older version wrote the journal.
    ``waits``: seconds in which calls were held back, by cause.
    """

    began: float
    ended: float
    how: str | None = None
    waits: dict[str, float] = field(default_factory=dict)


class History:
    """All runs of one journal. Every line is a finished call; the one that counts gives its prompt's outcome."""

    def __init__(self) -> None:
        self.spent = Spending()  # by all attempts, also those of cancelled calls
        self.copies = 0  # answers for equal prompts that were not sent
        self.truncated = 0  # answers that ended at the token limit
        self.latencies = array("d")  # seconds from a prompt's first attempt to its answer, waits included
        self.first_tokens = array("d")  # seconds to the first token, of streamed answers
        self.failures: Counter[Cause] = Counter()  # of prompts
        self.failed: list[Failure] = []  # the first hundred
        self.failed_attempts: Counter[str] = Counter()
        self.models: Counter[str] = Counter()  # of answers, as the server names them
        self.attempts = Intervals()
        self.answers, self.rate_limited = TimeSeries(), TimeSeries()
        self.tokens_in, self.tokens_out = TimeSeries(), TimeSeries()
        self._runs: dict[float, Run] = {}
        self._waits: list[tuple[float, float, Mapping[str, Any]]] = []  # run, instant, what held calls back until then
        self._unnamed = Intervals()  # the calls of lines that name no run, as older versions wrote them

    @property
    def prompts(self) -> int:
        """The number of prompts."""
        return len(self.latencies) + sum(self.failures.values()) + self.copies

    @property
    def runs(self) -> list[Run]:
        """The runs, in order."""
        unnamed = [Run(began, ended) for began, ended in self._unnamed.merged()]
        return sorted([*self._runs.values(), *unnamed], key=lambda run: run.began)

    @property
    def seconds(self) -> float:
        """The length of all runs."""
        return sum(run.ended - run.began for run in self.runs)

    def add(self, document: Mapping[str, Any], *, counts: bool) -> None:
        """Add a line. ``counts``: whether it gives its prompt's outcome."""
        own = document["chatpool"]
        began, elapsed = _number(own["started"]), _number(own["elapsed"])
        _number(own["attempts"])
        for end in ends_of(document):
            self._add_end(end)
        if own.get("copy"):
            self._add_copy(document, counts=counts)
            return
        spent = spending_of(document)
        self.spent = self.spent.plus(spent)
        self._add_to_run(own, began, began + elapsed)
        self._add_attempts(began, own.get("tries") or [{"began": 0.0, "ended": elapsed, "error": None}])
        self.tokens_in.add(began + elapsed, spent.usage.prompt_tokens)
        self.tokens_out.add(began + elapsed, spent.usage.completion_tokens)
        if counts and is_answer(document):
            self._add_answer(document, began + elapsed, elapsed)
        elif counts:
            self._add_failure(document, own)

    def edges(self) -> list[list[float]]:
        """Divide each run into bins of about equal width; return the edges, in seconds since the epoch."""
        runs = [(run.began, max(run.ended, run.began + _BIN_WIDTHS[0])) for run in self.runs]
        busy = sum(end - start for start, end in runs)
        width = next((width for width in _BIN_WIDTHS if busy / width <= _MAX_BINS), _BIN_WIDTHS[-1])
        return [_divide(start, end, max(1, round((end - start) / width))) for start, end in runs]

    def held_back(self, edges: Sequence[Sequence[float]]) -> dict[str, list[float]]:
        """Return, for each cause, the share of the time in which it held calls back, also between two runs."""
        causes = sorted({cause for run in self.runs for cause in run.waits})
        return {cause: self._held_back_by(cause, edges) for cause in causes}

    def _held_back_by(self, cause: str, edges: Sequence[Sequence[float]]) -> list[float]:
        rates: list[float] = []
        for run, run_edges in zip(self.runs, edges):
            series = Cumulative()
            series.add(run.began, 0.0)
            for began, instant, waits in self._waits:
                if began == run.began:
                    series.add(instant, _amount(waits.get(cause)))
            series.add(max(run.ended, run_edges[-1]), run.waits.get(cause, 0.0))
            rates += [*([0.0] if rates else []), *series.rates(run_edges)]
        return rates

    def _add_to_run(self, own: Mapping[str, Any], began: float, ended: float) -> None:
        if "run" not in own:
            self._unnamed.add(began, ended)
            return
        run = self._run(_number(own["run"]))
        run.ended = max(run.ended, ended)
        waits = own.get("waits")
        if isinstance(waits, dict):
            self._waits.append((run.began, ended, waits))
            run.waits = {cause: max(run.waits.get(cause, 0.0), _amount(value)) for cause, value in waits.items()}

    def _add_end(self, end: Mapping[str, Any]) -> None:
        self.spent = self.spent.plus(Spending.read(end))
        if not _is_valid(end.get("ended")):  # of a line that was removed, not of a run
            return
        run = self._run(_number(end["run"]))
        run.ended, run.how = max(run.ended, _number(end["ended"])), str(end.get("how"))
        waits = end.get("waits")
        run.waits.update({cause: _amount(value) for cause, value in waits.items()} if isinstance(waits, dict) else {})

    def _run(self, began: float) -> Run:
        return self._runs.setdefault(began, Run(began, began))

    def _add_copy(self, document: Mapping[str, Any], *, counts: bool) -> None:
        """Add the line of a prompt that was not sent, as an equal one was."""
        if counts and is_answer(document):
            self.copies += 1
        elif counts:
            self._add_failure(document, document["chatpool"])

    def _add_attempts(self, began: float, attempts: Iterable[Any]) -> None:
        for attempt in attempts:
            start, end, error = _read_attempt(attempt)
            self.attempts.add(began + _number(start), began + _number(end))
            if error is not None:
                self.failed_attempts[str(error)] += 1
            if error == _RATE_LIMIT:
                self.rate_limited.add(began + end)

    def _add_answer(self, document: Mapping[str, Any], instant: float, elapsed: float) -> None:
        self.latencies.append(elapsed)
        self.answers.add(instant)
        own, body = document["chatpool"], (document["response"] or {}).get("body")
        if _is_valid(own.get("first_token")):
            self.first_tokens.append(own["first_token"])
        if isinstance(body, dict) and isinstance(body.get("model"), str):
            self.models[body["model"]] += 1
        self.truncated += _is_truncated(body)

    def _add_failure(self, document: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        error = document["error"] or own
        cause = Cause(str(own.get("error")), own.get("status_code"), error.get("code"))
        self.failures[cause] += 1
        if len(self.failed) < _MAX_FAILED:
            self.failed.append(Failure(str(document["custom_id"]), cause, str(error.get("message"))))


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


def _amount(value: Any) -> float:
    return float(value) if _is_valid(value) else 0.0


def _is_truncated(body: Any) -> bool:
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(choice, dict) and choice.get("finish_reason") == "length"


def _is_valid(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER
