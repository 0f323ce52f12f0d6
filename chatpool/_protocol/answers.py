"""``Answers``: the list that a whole map returns."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any, Callable

from chatpool.errors import NotSentError

from .results import ChatResult, Usage
from .summary import Summary

# Stands for a ``parse`` that could not be pickled; not callable, so that no later use of it passes unnoticed.
UNPICKLABLE_PARSE: Any = "this parse could not be pickled"


class Answers(list[Any]):
    """The answers of one map, in the order of the prompts; None where a call failed.

    A plain list in every respect, so ``==``, JSON and pandas work. ``results`` holds a ``ChatResult`` for every
    prompt, ``wall`` the seconds that the map took, ``limited_by`` the limit that held it back most, ``waits`` the
    seconds that its calls waited, all added up, by cause; ``params``, ``parse``, ``journal`` and ``dedupe`` are what
    ``ChatPool.retry`` uses again. ``resumed`` holds the indexes of the answers that came from the journal.
    """

    def __init__(
        self,
        results: Iterable[ChatResult],
        *,
        wall: float = 0.0,
        limited_by: str = "nothing",
        waits: Mapping[str, float] | None = None,
        params: Mapping[str, Any] | None = None,
        parse: Callable[[str], Any] | None = None,
        journal: str | os.PathLike[str] | None = None,
        resumed: Iterable[int] = (),
        dedupe: bool = False,
    ) -> None:
        self.results: list[ChatResult] = list(results)
        super().__init__(result.value for result in self.results)
        self.wall = wall
        self.limited_by = limited_by
        self.waits: dict[str, float] = dict(waits or {})
        self.params, self.parse, self.journal = params, parse, journal
        self.resumed, self.dedupe = frozenset(resumed), dedupe

    @property
    def failures(self) -> list[ChatResult]:
        """The results of the calls that failed."""
        return [result for result in self.results if not result.ok]

    @property
    def usage(self) -> Usage:
        """Tokens of all answers together."""
        return sum((result.usage for result in self.results if result.usage), Usage())

    def raise_for_failures(self) -> None:
        """Raise the first failure, if there is one; its message tells how many there are.

        What is raised has the class and the fields of that call's error, which is its ``__cause__``. A call that
        was never sent is passed over for the failure that stopped it.
        """
        failures = self.failures
        if not failures:
            return
        first = next((result for result in failures if not isinstance(result.error, NotSentError)), failures[0])
        assert first.error is not None
        error = copy.copy(first.error)
        error.args = (f"{len(failures)} of {len(self)} calls failed; prompt {first.index}: {first.error}",)
        raise error from first.error

    def summary(self) -> str:
        """Say in a few lines what was answered, what failed and why, and what it took."""
        summary = Summary()
        for result in self.results:
            summary.add(result, is_resumed=result.index in self.resumed)
        return "\n".join(summary.format(self.wall, self.limited_by, self.waits))

    def __getstate__(self) -> dict[str, Any]:
        """The answers travel also where ``parse`` cannot, such as a lambda; ``ChatPool.retry`` asks for it then."""
        import pickle  # noqa: PLC0415 - it is loaded already where this is asked for

        state = dict(self.__dict__)
        try:
            pickle.dumps(self.parse)
        except Exception:  # noqa: BLE001 - pickle raises PicklingError, AttributeError, TypeError and what objects raise
            state["parse"] = UNPICKLABLE_PARSE
        return state

    def __repr__(self) -> str:
        return super().__repr__()
