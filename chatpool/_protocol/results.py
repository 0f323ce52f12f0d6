"""The result of a call: ``ChatResult``, with ``Usage`` in tokens. Also ``Retry`` and ``Estimate``."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any, Callable, NamedTuple, TypeVar, Union

from chatpool.errors import CallError

_C = TypeVar("_C")

Parse = Callable[[str], Any]
# What a ``parse`` raises for an answer with another shape than it expects, such as KeyError for a missing field.
REJECTIONS = (ValueError, LookupError, TypeError, AttributeError)
PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class Usage:
    """Tokens, as the server counted them.

    ``cached_tokens``: tokens of the prompt that were in the server's cache. ``reasoning_tokens``: tokens of the
    reasoning; most servers include them in ``completion_tokens``, xAI does not.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class Attempt(NamedTuple):
    """One request for a prompt. Times are in seconds from the start of the call's first attempt."""

    began: float
    ended: float
    error: str | None  # the name of the error's class, None if it succeeded


def _with_slots(kind: type[_C]) -> type[_C]:
    """Return a dataclass with slots for its fields. ``dataclass(slots=True)`` needs Python 3.10."""
    names = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]  # it is a dataclass
    left = {"__dict__", "__weakref__", *names}
    body = {name: value for name, value in vars(kind).items() if name not in left}
    metaclass: Any = type(kind)
    slotted: type[_C] = metaclass(kind.__name__, kind.__bases__, {**body, "__slots__": names})
    return slotted


@_with_slots
@dataclass(frozen=True)
class ChatResult:
    """The outcome of one prompt.

    ``index``: the prompt's position in the input, from 0. ``text``: the answer's text. ``value``: ``parse(text)``, or
    the text without a ``parse``; None if the call failed. ``reasoning``: the model's reasoning, if the server returns
    it. ``finish_reason``: why the model stopped, in OpenAI's words; ``"length"`` means that the answer was truncated at
    the token limit. ``usage``: tokens of all attempts, summed; None if the server sent no usage. ``response``: the
    server's reply as a dict, also of a failed call if the reply was JSON. ``request_id``: the server's id of the
    request. ``attempts``: HTTP requests sent. ``elapsed``: seconds from the first of them to the outcome, waits
    included. ``error``: why the call failed, or None. ``cost``: dollars for all attempts: what the server reports, else
    by the pool's ``prices``; None if neither is known. ``unanswered``: requests that chatpool stopped waiting for, at a
    time limit or because the call was cancelled; the server may charge for them. ``first_token``: seconds from the last
    request to the first piece of its answer: text, reasoning or a tool call; None if it was not streamed.
    """

    index: int
    prompt: Any
    text: str | None
    value: Any
    reasoning: str | None
    finish_reason: str | None
    usage: Usage | None
    response: dict[str, Any] | None
    request_id: str | None
    attempts: int
    elapsed: float
    error: CallError | None
    cost: float | None = None
    unanswered: int = 0
    first_token: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the prompt was answered."""
        return self.error is None

    @property
    def message(self) -> dict[str, Any]:
        """The model's message with its tool calls, images and audio; empty if there is none."""
        choices = (self.response or {}).get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        return message if isinstance(message, dict) else {}

    def for_duplicate(self, index: int, prompt: Any) -> ChatResult:
        """Return the result of an equal prompt that was not sent: the same answer, at no cost."""
        cost = None if self.cost is None else 0.0
        return replace(
            self, index=index, prompt=prompt, usage=None, attempts=0, elapsed=0.0, cost=cost, unanswered=0,
            first_token=None,
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        # Before Python 3.11, pickle cannot restore a frozen dataclass with slots.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Retry:
    """The argument of ``on_retry``: an attempt failed, and a retry will follow.

    ``attempt``: requests sent so far for this prompt. ``error``: why this one failed. ``wait``: least seconds until the
    retry.
    """

    index: int
    prompt: Any
    attempt: int
    error: CallError
    wait: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a map in which no attempt fails. Prompt tokens are estimated as one for four bytes of the request.

    ``most_completion_tokens``: tokens of the longest answers that the requests allow; None if a request sets no limit.
    ``most_cost``: dollars for both, by the pool's ``prices``; None without a limit, or without a price for a model.
    """

    calls: int
    prompt_tokens: int
    most_completion_tokens: int | None
    most_cost: float | None = None
