"""What comes back: one ``ChatResult`` a prompt, ``Usage`` in tokens, and ``Answers``, the list of a whole map."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ._tally import Tally
from .errors import CallError, NotSentError

# In the place of a ``parse`` that could not be pickled; not callable, so no later use of it passes unnoticed.
LOST_PARSE: Any = "this parse could not be pickled"


@dataclass(frozen=True)
class Usage:
    """Tokens, as the server counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
        )


@dataclass(frozen=True)
class ChatResult:
    """The outcome of one prompt.

    ``index``: the prompt's place in the input, from 0. ``text``: the answer's text. ``value``: ``parse(text)``,
    or the text where no ``parse`` was given; None if the call failed. ``finish_reason``: the server's word;
    ``"length"`` means that the answer was cut at the token limit. ``usage``: tokens of all tries together, or None
    if the server did not say. ``response``: the server's whole reply as a dict, also for a failed call where the
    reply was JSON. ``request_id``: the server's id of the request. ``attempts``: HTTP requests sent. ``elapsed``:
    seconds from the first of them to the outcome, waits included. ``error``: why it failed, or None.
    """

    # dataclass(slots=True) needs Python 3.10; declared by hand it forbids defaults, which nobody misses here.
    __slots__ = (
        "attempts",
        "elapsed",
        "error",
        "finish_reason",
        "index",
        "prompt",
        "request_id",
        "response",
        "text",
        "usage",
        "value",
    )

    index: int
    prompt: Any
    text: str | None
    value: Any
    finish_reason: str | None
    usage: Usage | None
    response: dict[str, Any] | None
    request_id: str | None
    attempts: int
    elapsed: float
    error: CallError | None

    @property
    def ok(self) -> bool:
        """Whether the prompt was answered."""
        return self.error is None

    def for_twin(self, index: int, prompt: Any) -> ChatResult:
        """Return the outcome of an equal prompt that was not sent: the same, but it cost nothing."""
        changes = {"index": index, "prompt": prompt, "usage": None, "attempts": 0, "elapsed": 0.0}
        return replace(self, **changes)

    def __reduce__(self) -> tuple[Any, ...]:
        # Before Python 3.11 a frozen class with slots does not unpickle by itself.
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)


@dataclass(frozen=True)
class Retry:
    """What ``on_retry`` is told: a try failed, and there will be another.

    ``attempt``: requests sent so far for this prompt. ``error``: what went wrong this time. ``wait``: seconds until the
    next try, at the least.
    """

    index: int
    prompt: Any
    attempt: int
    error: CallError
    wait: float


@dataclass(frozen=True)
class Estimate:
    """What prompts would take, if no try failed. Tokens are a guess: one for four bytes of the request.

    ``most_completion_tokens``: the longest answers that the requests allow; None if one of them sets no limit.
    """

    calls: int
    prompt_tokens: int
    most_completion_tokens: int | None


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
        used = [result.usage for result in self.results if result.usage]
        return Usage(
            sum(usage.prompt_tokens for usage in used),
            sum(usage.completion_tokens for usage in used),
            sum(usage.total_tokens for usage in used),
        )

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
        tally = Tally()
        for result in self.results:
            tally.add(result, is_resumed=result.index in self.resumed)
        return "\n".join(tally.lines(self.wall, self.limited_by, self.waits))

    def __getstate__(self) -> dict[str, Any]:
        """The answers travel also where ``parse`` cannot, such as a lambda; ``ChatPool.retry`` asks for it then."""
        import pickle  # noqa: PLC0415 - it is loaded already where this is asked for

        state = dict(self.__dict__)
        try:
            pickle.dumps(self.parse)
        except Exception:  # noqa: BLE001 - pickle raises PicklingError, AttributeError, TypeError and what objects raise
            state["parse"] = LOST_PARSE
        return state

    def __repr__(self) -> str:
        return super().__repr__()
