"""The runs of a journal: each line names its run, and the last line of a run says how the run ended. Pure: no I/O.

All of it is under our own key, so the file stays what the Batch API returns: one line for each finished call. ``run``
is the Unix time at which the run began. ``waits``, at most once a second, are the seconds in which calls were held back
since then, by cause. ``ends`` is a list, as ``compact`` moves the ends of lines that it removes to the last line:

    {"run": 1700000000.123, "ended": 1700000060.5, "how": "finished", "attempts": 2, "usage": {…}, "waits": {…}}

``attempts``, ``usage``, ``cost`` and ``unanswered`` are those of calls without a line: cancelled ones, and failures
that a later line replaced. So the lines and the ends of a journal add up to what its runs were charged for.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields as fields_of
from typing import Any, Callable, NamedTuple

from chatpool._protocol.results import ChatResult, Usage
from chatpool._protocol.usage import read_usage

_SNAPSHOT_EVERY = 1.0  # seconds
_MOST_REQUESTS = 10**9  # of one call, or of all that were cancelled in a run
_COUNTS = tuple(field.name for field in fields_of(Usage))
_NO_USAGE = Usage()
_TAIL_START = b', "chatpool": {'
_ENDS_START = b', "ends": ['


class Spending(NamedTuple):
    """What some calls took: requests, tokens, dollars, and requests that may be charged for without an answer."""

    attempts: int = 0
    usage: Usage = _NO_USAGE
    cost: float | None = None
    unanswered: int = 0

    def plus(self, other: Spending) -> Spending:
        """Return the sum of two."""
        cost = other.cost if self.cost is None else self.cost + (other.cost or 0.0)
        unanswered = self.unanswered + other.unanswered
        return Spending(self.attempts + other.attempts, self.usage + other.usage, cost, unanswered)

    @classmethod
    def of(cls, result: ChatResult) -> Spending:
        """Return what a result's call took."""
        return cls(result.attempts, result.usage or _NO_USAGE, result.cost, result.unanswered)

    def fields(self) -> dict[str, Any]:
        """Return the fields that a line has for it; those that are zero are left out, except for ``attempts``."""
        fields: dict[str, Any] = {"attempts": self.attempts}
        if self.usage.total_tokens:
            fields["usage"] = {name: count for name in _COUNTS if (count := getattr(self.usage, name))}
        if self.cost is not None:
            fields["cost"] = round(self.cost, 9)
        if self.unanswered:
            fields["unanswered"] = self.unanswered
        return fields

    @classmethod
    def read(cls, fields: Mapping[str, Any], body: Any = None) -> Spending:
        """Return what the fields of a line say. ``body``: of its response, for lines of older versions."""
        usage = read_usage(fields) or read_usage(body) or _NO_USAGE
        cost = fields.get("cost")
        is_known = isinstance(cost, (int, float)) and not isinstance(cost, bool)
        attempts, unanswered = _count(fields.get("attempts"), 1), _count(fields.get("unanswered"), 0)
        return cls(attempts, usage, cost if is_known else None, unanswered)


class RunLog:
    """What a run's lines say about the run. ``waits``: returns what held calls back so far. Thread-safe."""

    def __init__(self, waits: Callable[[], Mapping[str, float]]) -> None:
        self.began = round(time.time(), 3)
        self._waits = waits
        self._next_snapshot = time.monotonic() + _SNAPSHOT_EVERY
        self._unlisted = Spending()  # of calls without a line
        self._has_lines = False

    def fields(self) -> dict[str, Any]:
        """Return the fields for the next line."""
        self._has_lines = True
        fields: dict[str, Any] = {"run": self.began}
        now = time.monotonic()
        if now >= self._next_snapshot:  # two threads at once may both be right: that does no harm
            self._next_snapshot = now + _SNAPSHOT_EVERY
            fields["waits"] = self._rounded_waits()
        return fields

    def add_unlisted(self, result: ChatResult) -> None:
        """Count a call that has no line. For the thread that waits for the run."""
        self._unlisted = self._unlisted.plus(Spending.of(result))

    def end(self, how: str) -> dict[str, Any] | None:
        """Return the run's end; None if it sent nothing."""
        if not self._has_lines and not self._unlisted.attempts:
            return None
        end = {"run": self.began, "ended": round(time.time(), 3), "how": how, **self._unlisted.fields()}
        return {**end, "waits": self._rounded_waits()}

    def _rounded_waits(self) -> dict[str, float]:
        return {cause: round(seconds, 3) for cause, seconds in self._waits().items()}


def ends_suffix(line: bytes, ends: Sequence[Mapping[str, Any]]) -> tuple[int, bytes]:
    """Return how many bytes of a line's end give way to which others, to add these ends to those that it has.

    0 and nothing if our key is not the last one: another tool has rewritten the line.
    """
    start = line.rfind(_TAIL_START)
    own = _load(b"{" + line[start + 2 :]) if start >= 0 else None
    if not ends or not isinstance(own, dict) or list(own) != ["chatpool"] or not line.endswith(b"}}\n"):
        return 0, b""
    added = ", ".join(json.dumps(end) for end in ends).encode("ascii") + b"]}}\n"
    if line.find(_ENDS_START, start) >= 0 and line.endswith(b"]}}\n"):
        return len(b"]}}\n"), b", " + added
    return len(b"}}\n"), _ENDS_START + added


def add_ends(line: bytes, ends: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a line with these ends, after those that it has."""
    cut, suffix = ends_suffix(line, ends)
    return line[: len(line) - cut] + suffix


def _count(value: Any, default: int) -> int:
    """Return a number of requests; the default if somebody has edited it."""
    return value if isinstance(value, int) and 0 <= value < _MOST_REQUESTS else default


def _load(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def ends_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the ends in a parsed line."""
    ends = document["chatpool"].get("ends")
    return [end for end in ends if isinstance(end, dict)] if isinstance(ends, list) else []


def spending_of(document: Mapping[str, Any]) -> Spending:
    """Return what the call of a parsed line took. A copy for an equal prompt took nothing, and has the same body."""
    if document["chatpool"].get("copy"):
        return Spending()
    response = document.get("response")
    return Spending.read(document["chatpool"], response.get("body") if isinstance(response, dict) else None)


def carried(documents: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the ends for lines that are removed: their own, and what their calls took, by run."""
    ends: list[Mapping[str, Any]] = []
    spent: dict[Any, Spending] = {}
    for document in documents:
        ends += ends_of(document)
        run = document["chatpool"].get("run")
        with contextlib.suppress(TypeError):  # somebody has edited the line
            spent[run] = spent.get(run, Spending()).plus(spending_of(document))
    return [*ends, *({"run": run, **spending.fields()} for run, spending in spent.items())]


def with_ends(lines: Iterator[bytes], ends: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """Yield the lines, the last one with these ends."""
    last: bytes | None = None
    for line in lines:
        if last is not None:
            yield last
        last = line
    if last is not None:
        yield add_ends(last, ends)
