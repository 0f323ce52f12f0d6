"""What comes back: one ``ChatResult`` a prompt, ``Usage`` in tokens, and ``Answers``, the list of a whole map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, NamedTuple

from chatpool.errors import CallError

Parse = Callable[[str], Any]


@dataclass(frozen=True)
class Usage:
    """Tokens, as the server counted them.

    ``cached_tokens``: of the prompt's, those that the server had in its cache. ``reasoning_tokens``: those that the
    model spent on thinking; most servers count them among ``completion_tokens``, xAI does not.
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
    """One request for a prompt, and what came of it. Times are seconds since the call's first attempt began."""

    began: float
    ended: float
    error: str | None  # the name of its class


@dataclass(frozen=True)
class ChatResult:
    """The outcome of one prompt.

    ``index``: the prompt's place in the input, from 0. ``text``: the answer's text. ``value``: ``parse(text)``,
    or the text where no ``parse`` was given; None if the call failed. ``reasoning``: what the model thought before it
    answered, where the server shows it, or None. ``finish_reason``: why the model stopped, in OpenAI's words:
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
        "reasoning",
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
    reasoning: str | None
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

    @property
    def message(self) -> dict[str, Any]:
        """The whole message of the model, with its tool calls, images and audio; empty if there is none."""
        choices = (self.response or {}).get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        return message if isinstance(message, dict) else {}

    def for_duplicate(self, index: int, prompt: Any) -> ChatResult:
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
