"""Counts results, and formats the counts in a few lines."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

from chatpool.errors import CallError

from .results import ChatResult
from .terminal import escape_controls

_EXAMPLE_LENGTH = 160  # characters of an error's message


class Summary:
    """Counts results. Keeps one example of each failure, and nothing else of them."""

    def __init__(self) -> None:
        self.prompts = self.answered = self.resumed = 0
        self._new_answers = self._sent = self._retries = self._truncated = 0
        self._tokens_in = self._tokens_out = self._tokens = 0
        self._seconds = array("d")  # for each answer
        self._causes: Counter[tuple[Any, ...]] = Counter()
        self._examples: dict[tuple[Any, ...], str] = {}

    @property
    def failed(self) -> int:
        """The number of prompts without an answer."""
        return self.prompts - self.answered

    def add(self, result: ChatResult, *, is_resumed: bool = False) -> None:
        """Count a result. One from the journal took no request this time."""
        self.prompts += 1
        self.resumed += is_resumed
        if not is_resumed:
            self._sent += result.attempts
            self._retries += max(0, result.attempts - 1)
            self._new_answers += result.ok
        if result.usage is not None:
            self._tokens_in += result.usage.prompt_tokens
            self._tokens_out += result.usage.completion_tokens
            self._tokens += result.usage.total_tokens
        if result.error is None:
            self.answered += 1
            self._truncated += result.finish_reason == "length"
            self._seconds.append(result.elapsed)
        else:
            self._add_failure(result, result.error)

    def format(self, wall: float, limited_by: str, waits: Mapping[str, float]) -> list[str]:
        """Return the lines. ``wall``: seconds that the run took; ``waits``: seconds spent waiting, by cause."""
        rate = self._new_answers / wall * 60 if wall else 0.0
        was = "was" if self.resumed == 1 else "were"
        return [
            f"{plural(self.prompts, 'prompt')}: {self.answered:,} answered, {self.failed:,} failed"
            f" in {wall:.1f} s ({rate:,.0f} answers a minute)",
            *([f"{self.resumed:,} of them {was} in the journal already"] if self.resumed else []),
            *(f"  {count:,} × {self._examples[cause]}" for cause, count in self._causes.most_common()),
            f"requests: {self._sent:,}, of them {plural(self._retries, 'retry', 'retries')};"
            f" truncated answers: {self._truncated:,}",
            f"tokens: {self._tokens_in:,} in, {self._tokens_out:,} out, {self._tokens:,} total",
            f"seconds an answer: {self._latencies()}",
            f"bottleneck: {_bottleneck(limited_by, waits)}",
        ]

    def _add_failure(self, result: ChatResult, error: CallError) -> None:
        cause = (type(error), error.status_code, error.code)
        self._causes[cause] += 1
        if cause not in self._examples:
            self._examples[cause] = _example(result, error)

    def _latencies(self) -> str:
        if not self._seconds:
            return "none was answered"
        seconds = sorted(self._seconds)
        median, high = (seconds[min(len(seconds) - 1, int(share * len(seconds)))] for share in (0.5, 0.95))
        return f"median {median:.2f}, 95th percentile {high:.2f}"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return ``1 noun`` or ``2 nouns``."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def _example(result: ChatResult, error: CallError) -> str:
    name = " ".join(str(word) for word in (type(error).__name__, error.status_code, error.code) if word is not None)
    message = " ".join(str(error).split())
    if len(message) > _EXAMPLE_LENGTH:
        message = message[: _EXAMPLE_LENGTH - 1] + "…"
    line = f"{name}, e.g. prompt {result.index}: {message} (request id {error.request_id or 'none'})"
    return escape_controls(line)


def _bottleneck(limited_by: str, waits: Mapping[str, float]) -> str:
    ordered = sorted(waits.items(), key=lambda item: -item[1])
    times = ", ".join(f"{cause} {seconds:.1f} s" for cause, seconds in ordered if seconds >= 0.05)
    return limited_by + (f" (time spent waiting, summed over calls: {times})" if times else "")
