"""Counts results, and formats the counts in at most five lines of 80 columns."""

from __future__ import annotations

import textwrap
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from chatpool.errors import CallError, NotSentError

from .prices import show_cost
from .results import ChatResult, Usage
from .shown import escape

_MOST_LINES = 5
_NO_BREAK = "\xa0"  # a space at which textwrap does not break a line
_WIDTH = 80  # columns
_EXAMPLE_LENGTH = 160  # characters of an error's message


class Summary:
    """Counts results. Keeps one example of each failure, and nothing else of them.

    Requests, tokens and times are those of this run; answers from a journal were paid for before, and are counted
    apart. ``first``: the number of the first prompt; the command counts from 1, as lines are counted. ``failures``:
    where all of them are.
    """

    def __init__(self, *, first: int = 0, failures: str = "answers.failures") -> None:
        self._first, self._where = first, failures
        self.prompts = self.answered = self.resumed = 0
        self._new_answers = self._sent = self._retries = self._truncated = self._unanswered = 0
        self._usage = self._resumed_usage = Usage()
        self._cost: float | None = None
        self._resumed_cost: float | None = None
        self._uncosted = 0  # prompts with tokens, but without a price for their model
        self._seconds = array("d")  # for each answer
        self._first_tokens = array("d")  # seconds to the first piece of each answer that was streamed
        self._causes: Counter[tuple[Any, ...]] = Counter()
        self._examples: dict[tuple[Any, ...], str] = {}
        self._request_ids: dict[tuple[Any, ...], str] = {}  # in those

    @property
    def failed(self) -> int:
        """The number of prompts without an answer."""
        return self.prompts - self.answered

    def add(self, result: ChatResult, *, is_resumed: bool = False) -> None:
        """Count a result. One from the journal took no request this time."""
        self.prompts += 1
        self.resumed += is_resumed
        if is_resumed:
            self._resumed_usage += result.usage or Usage()
            self._resumed_cost = _sum(self._resumed_cost, result.cost)
        else:
            self._add_costs(result)
        if result.error is not None:
            self._add_failure(result, result.error)
            return
        self.answered += 1
        self._truncated += result.finish_reason == "length"
        if not is_resumed:
            self._new_answers += 1
            self._seconds.append(result.elapsed)
            if result.first_token is not None:
                self._first_tokens.append(result.first_token)

    def add_replaced(self, result: ChatResult) -> None:
        """Count what a failed call took that was made again; its prompt is counted with its new result."""
        self._add_costs(result)
        self._retries += min(1, result.attempts)  # the first attempt of the new call is one after the first

    def format(self, wall: float, limited_by: str) -> list[str]:
        """Return the lines. ``wall``: seconds that the run took; ``limited_by``: its bottleneck."""
        spent, times = list(self._spent()), [self._latencies(), f"bottleneck: {limited_by}"]
        lines = [*_wrap_parts(spent, 2), *_wrap_parts(times, 1)]
        together = _wrap_parts([*spent, *times], _MOST_LINES)
        if len(together) < len(lines):  # more room for failures
            lines = together
        return [self._counts(wall), *lines, *self._failures(_MOST_LINES - 1 - len(lines))]

    def _add_costs(self, result: ChatResult) -> None:
        self._sent += result.attempts
        self._retries += max(0, result.attempts - 1)
        self._unanswered += result.unanswered
        if result.usage is not None:
            self._usage += result.usage
        self._cost = _sum(self._cost, result.cost)
        self._uncosted += result.cost is None and result.usage is not None

    def _add_failure(self, result: ChatResult, error: CallError) -> None:
        cause = (type(error), error.status_code, error.code)
        self._causes[cause] += 1
        if cause not in self._examples:
            self._examples[cause] = _example(result, error, self._first)
            self._request_ids[cause] = escape(error.request_id or "")

    def _counts(self, wall: float) -> str:
        old = self.answered - self._new_answers
        resumed = f" ({old:,} resumed)" if old else ""
        unsent = f" ({self._unsent:,} not sent)" if self._unsent else ""
        counts = f"{self.answered:,} answered{resumed}, {self.failed:,} failed{unsent}"
        line = f"{plural(self.prompts, 'prompt')}: {counts} in {wall:.1f} s"
        rate = f" ({self._new_answers / wall * 60 if wall else 0.0:,.0f} a minute)"
        return line + rate if len(line + rate) <= _WIDTH else line

    def _spent(self) -> Iterator[str]:
        usage = self._usage
        yield f"requests: {self._sent:,}, {plural(self._retries, 'retry', 'retries')}"
        if self._unanswered:
            yield f"stopped waiting for {self._unanswered:,}, which may be charged"
        if usage.total_tokens or self.answered:
            yield f"tokens: {usage.prompt_tokens:,} in, {usage.completion_tokens:,} out, {usage.total_tokens:,} total"
        if self._cost is not None:
            rest = f", unknown for {plural(self._uncosted, 'prompt')}" if self._uncosted else ""
            yield f"cost: {show_cost(self._cost)}{rest}"
        if self._truncated:
            yield f"truncated answers: {self._truncated:,}"
        if self._first_tokens:
            yield f"first token: {_median_and_p95(self._first_tokens)}"
        if self._resumed_usage.total_tokens:
            cost = "" if self._resumed_cost is None else f", {show_cost(self._resumed_cost)}"
            yield f"resumed: {self._resumed_usage.total_tokens:,} tokens{cost}"

    @property
    def _unsent(self) -> int:
        """The number of prompts that were not sent because of the other failures, which say more."""
        count = sum(count for cause, count in self._causes.items() if cause[0] is NotSentError)
        return count if count < self.failed else 0

    def _latencies(self) -> str:
        if not self._seconds:
            return "no new answer"
        return _median_and_p95(self._seconds)

    def _failures(self, room: int) -> list[str]:
        """Return a line for each cause, and more lines for the first if there is room; the last one for the rest."""
        causes = [item for item in self._causes.most_common() if not self._unsent or item[0][0] is not NotSentError]
        shown = causes if len(causes) <= room else causes[: max(1, room - 1)]
        lines: list[str] = []
        for number, (cause, count) in enumerate(shown, 1):
            left = room - len(lines) - (min(len(causes), room) - number)
            example = self._examples[cause]
            if left == 1 and len(example) > _WIDTH:  # the message says more than the request's id
                example = example.replace(f" ({self._request_ids[cause]})", "", 1)
            lines += _wrap(f"  {count:,} × {example}", left, "    ")
        if len(shown) < len(causes) and len(lines) < room:
            rest = sum(count for _, count in causes[len(shown) :])
            lines.append(f"  {rest:,} × other errors, see {self._where}")
        return lines


def _median_and_p95(values: array[float]) -> str:
    seconds = sorted(values)
    median, high = (seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.95))
    return f"median {median:.2f} s, p95 {high:.2f} s"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return ``1 noun`` or ``2 nouns``."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def _wrap_parts(parts: Iterable[str], most: int) -> list[str]:
    """Return the parts in so many lines at most, and break none of them."""
    text = "; ".join(part.replace(" ", _NO_BREAK) for part in parts)
    return [line.replace(_NO_BREAK, " ") for line in _wrap(text, most)]


def _wrap(text: str, most: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent=indent, max_lines=most, placeholder=" …", break_on_hyphens=False
    )


def _sum(dollars: float | None, more: float | None) -> float | None:
    return dollars if more is None else more + (dollars or 0.0)


def _example(result: ChatResult, error: CallError, first: int) -> str:
    name = " ".join(str(word) for word in (type(error).__name__, error.status_code, error.code) if word is not None)
    message = " ".join(str(error).split())
    if len(message) > _EXAMPLE_LENGTH:
        message = message[: _EXAMPLE_LENGTH - 1] + "…"
    request = f" ({error.request_id})" if error.request_id else ""
    return escape(f"{name}, e.g. prompt {result.index + first}{request}: {message}")
