"""The part of an input that a run sends, and the outcome of each of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Callable

from chatpool._files.batch_format import Key, hash64
from chatpool._files.inputs import Input, InputError, Item
from chatpool._files.journal_view import JournalView
from chatpool._files.tables import Outcome, outcome_of
from chatpool._protocol.request_builder import Request
from chatpool._protocol.requests import BatchRequest
from chatpool._protocol.results import ChatResult
from chatpool.errors import DeadlineError, NotSentError


class Selection:
    """The prompts of an input that are sent: the first ``limit``, and each once if ``is_deduped``.

    ``repeats``: the ``hash64`` of the digests of repeated requests. ``unsent``: why a prompt has no result.
    """

    def __init__(
        self,
        prompts: Input,
        repeats: frozenset[int],
        digest_of: Callable[[BatchRequest], str],
        *,
        limit: int | None,
        is_deduped: bool,
    ) -> None:
        self.prompts, self.repeats, self.limit = prompts, repeats, limit
        self._digest_of, self._is_deduped = digest_of, is_deduped
        self.unsent = "not sent; run the same command again"

    def __len__(self) -> int:
        count = len(self.prompts) - (self.prompts.copies if self._is_deduped else 0)
        return count if self.limit is None else min(count, self.limit)

    def __iter__(self) -> Iterator[BatchRequest]:
        return islice(self._distinct(), self.limit)

    def repeated(self, prompt: BatchRequest) -> int | None:
        """Return the number by which equal prompts are recognized; None if this one is sent in any case."""
        if not self._is_deduped or not self.repeats:
            return None
        number = hash64(self._digest_of(prompt))
        return number if number in self.repeats else None

    def note(self, result: ChatResult) -> None:
        """Remember why prompts are not sent."""
        if isinstance(result.error, (NotSentError, DeadlineError)):
            self.unsent = f"{type(result.error).__name__}: {result.error}"

    def copy_equals(self, view: JournalView) -> None:
        """Give each prompt that was not sent, because the journal has an equal one, a line of its own."""
        for index, prompt in enumerate(self.prompts):
            view.copy_equal(Request(index, prompt, ""))

    def _distinct(self) -> Iterator[BatchRequest]:
        seen: set[int] = set()
        for prompt in self.prompts:
            number = self.repeated(prompt)
            if number is None or number not in seen:
                yield prompt
            if number is not None:
                seen.add(number)


class Outcomes:
    """Finds the outcome of each row in the journal, in the order of the input."""

    def __init__(self, selection: Selection, view: JournalView) -> None:
        self._selection, self._view = selection, view
        self._firsts: dict[int, Key] = {}  # of prompts that are repeated, if each is sent once
        self._sent = 0

    def of(self, item: Item) -> Outcome:
        """Return the outcome of the next row."""
        if item.entry is None:
            return Outcome(error="no prompt in this row")
        if isinstance(item.entry, str):
            raise InputError(f"{self._selection.prompts.name} has changed: line {item.line}: {item.entry}")
        limit = self._selection.limit
        request = Request(self._sent, item.entry, "")
        key, is_first = self._key(request)
        is_over = is_first and limit is not None and self._sent >= limit
        self._sent += is_first
        result = self._view.read(request, key)
        result = result and self._view.parsed(result)
        if result is not None:
            return outcome_of(result)
        return Outcome(error=f"not sent: beyond --limit {limit}" if is_over else self._selection.unsent)

    def _key(self, request: Request) -> tuple[Key, bool]:
        """Return a request's key in the journal, and whether it is the first of its equals."""
        number = self._selection.repeated(request.prompt)
        if number is not None and number in self._firsts:
            return self._firsts[number], False
        key = self._view.key(request)
        if number is not None:
            self._firsts[number] = key
        return key, True


class EmptyLines:
    """Counts the rows without a prompt, so that each row has its line in the output of ``--text``."""

    def __init__(self, prompts: Input) -> None:
        self._empty, self._row, self._passed = prompts.empty, 0, 0

    def before_next(self) -> int:
        """Return the number of rows without a prompt before the next prompt."""
        first = self._passed
        while self._passed < len(self._empty) and self._empty[self._passed] == self._row:
            self._passed += 1
            self._row += 1
        self._row += 1
        return self._passed - first

    def rest(self) -> int:
        """Return the number of those after the last prompt."""
        return len(self._empty) - self._passed
