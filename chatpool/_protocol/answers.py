"""``Answers``: the list that ``map`` returns."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, Callable, Optional, TypeVar

from chatpool.errors import NotSentError

from .results import ChatResult, Usage
from .summary import Summary

# Replaces a ``parse`` that could not be pickled. Not callable, so that calling it by mistake fails.
UNPICKLABLE_PARSE: Any = "this parse could not be pickled"


_T = TypeVar("_T")


class Answers(list[Optional[_T]]):
    """The answers of one map, in the order of the prompts; None where a call failed.

    A list in every respect, so ``==``, JSON and pandas work. ``results``: a ``ChatResult`` for every prompt. ``wall``:
    seconds that the map took. ``limited_by``: its bottleneck. ``waits``: seconds in which calls were held back, by
    cause. ``resumed``: indexes of the answers that came from the journal. ``replaced``: failed results that ``retry``
    replaced; their requests were charged for, too. ``params``, ``parse``, ``reask``, ``journal``
    and ``dedupe`` are kept for ``ChatPool.retry``.
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
        reask: bool = True,
        replaced: Iterable[ChatResult] = (),
    ) -> None:
        self.results: list[ChatResult] = list(results)
        super().__init__(result.value for result in self.results)
        self.wall = wall
        self.limited_by = limited_by
        self.waits: dict[str, float] = dict(waits or {})
        self.replaced = list(replaced)
        self.params, self.parse, self.journal = params, parse, journal
        self.resumed, self.dedupe, self.reask = frozenset(resumed), dedupe, reask

    @property
    def failures(self) -> list[ChatResult]:
        """The results of the failed calls."""
        return [result for result in self.results if not result.ok]

    @property
    def usage(self) -> Usage:
        """The tokens of all attempts, summed; those of resumed answers were paid for by an earlier run."""
        return sum((result.usage for result in (*self.results, *self.replaced) if result.usage), Usage())

    @property
    def cost(self) -> float | None:
        """The dollars for all attempts, summed, as far as they are known; None if none is."""
        costs = [result.cost for result in (*self.results, *self.replaced) if result.cost is not None]
        return math.fsum(costs) if costs else None

    def to_records(self) -> list[dict[str, Any]]:
        """Return a dict for each prompt, for ``pandas.DataFrame`` or a CSV file: plain values, no exceptions.

        Its keys: index, prompt, answer, error (its class and message), finish_reason, prompt_tokens, completion_tokens,
        cached_tokens, reasoning_tokens, cost (dollars), attempts, elapsed (seconds); first_token (seconds) if an answer
        was streamed.
        """
        records = [_record_of(result) for result in self.results]
        if any(result.first_token is not None for result in self.results):
            for record, result in zip(records, self.results):
                record["first_token"] = result.first_token
        return records

    def raise_for_failures(self) -> None:
        """Raise the first failure, if there is one; its message includes the number of failures.

        The exception has the class and the fields of that call's error, which is its ``__cause__``. A NotSentError is
        raised only if there is no other failure, because another call caused it.
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
        """Return five lines at most: prompts answered or failed and why, requests, tokens, time, bottleneck."""
        summary = Summary()
        for result in self.results:
            summary.add(result, is_resumed=result.index in self.resumed)
        for result in self.replaced:
            summary.add_replaced(result)
        return "\n".join(summary.format(self.wall, self.limited_by))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without a ``parse`` that cannot be pickled, such as a lambda; ``ChatPool.retry`` then asks for it."""
        import pickle  # noqa: PLC0415 - the caller has imported it already

        state = dict(self.__dict__)
        try:
            pickle.dumps(self.parse)
        except Exception:  # noqa: BLE001 - PicklingError, AttributeError, TypeError, or what the object raises
            state["parse"] = UNPICKLABLE_PARSE
        return state


def _record_of(result: ChatResult) -> dict[str, Any]:
    usage = result.usage or Usage()
    return {
        "index": result.index,
        "prompt": result.prompt,
        "answer": result.value,
        "error": None if result.error is None else f"{type(result.error).__name__}: {result.error}",
        "finish_reason": result.finish_reason,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost": result.cost,
        "attempts": result.attempts,
        "elapsed": result.elapsed,
    }
