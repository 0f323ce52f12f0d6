"""Prompts → requests. A request's body is encoded once, by whichever thread needs it first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .prices import Price
from .requests import (
    BYTES_A_TOKEN,
    CHAT_PATH,
    BatchRequest,
    build_body,
    check_shape,
    encode,
    encode_text,
    estimate,
    longest_answer,
    path_of,
)
from .results import Estimate
from .settings import Settings

_AFTER_TEXT = b"}]}"  # the ends of a message, of the messages, and of the body


class Request:
    """One prompt on its way. ``payload`` and ``digest`` are filled in by the first who needs them."""

    __slots__ = ("digest", "index", "model", "path", "payload", "prompt")

    def __init__(self, index: int, prompt: Any, model: str) -> None:
        self.index, self.prompt, self.model = index, prompt, model
        self.path = path_of(prompt)  # that the body is posted to, as a Batch file names it
        self.payload: bytes | None = None  # the encoded body
        self.digest: str | None = None  # by which a journal finds its answer

    @property
    def size(self) -> int:
        """The length of the prompt, for comparing it with others."""
        return len(self.prompt) if isinstance(self.prompt, str) else len(self.payload or b"")


class RequestBuilder:
    """Knows what one map adds to each prompt: model, system message and parameters."""

    def __init__(self, settings: Settings, params: Mapping[str, Any]) -> None:
        self._system = settings.system
        self.params = {**settings.params, **params}
        self._model, self._prices = settings.model, settings.prices
        self._default_model = str(self.params.get("model", settings.model))
        self._before_text: bytes | None = None  # the body of a str, up to its text

    def request(self, index: int, prompt: Any) -> Request:
        """Check a prompt. Raises TypeError or ValueError, with its index, if it cannot be sent."""
        check_shape(prompt, index)
        request = Request(index, prompt, self._model_of(prompt))
        if not isinstance(prompt, str):  # a str can always be encoded; anything else is only known to be sendable then
            self.payload(request)
        return request

    def body(self, prompt: Any) -> dict[str, Any]:
        """Return the body that is sent for a prompt."""
        return build_body(prompt, model=self._model, system=self._system, params=self.params)

    def payload(self, request: Request) -> bytes:
        """Return the encoded body."""
        if request.payload is None:
            encode_prompt = self._encode_text if type(request.prompt) is str else self._encode
            request.payload = encode_prompt(request.prompt, f"prompt {request.index}")
        return request.payload

    def price(self, request: Request) -> Price | None:
        """Return the price of a request's model, if it is known."""
        return self._prices.get(request.model)

    def most_cost(self, request: Request, payload: bytes) -> float:
        """Return the most dollars that a request may cost, if it limits its answer; else those for its prompt alone.

        A token has one byte at least. Pictures and the like are a guess.
        """
        price, body = self.price(request), self.body(request.prompt)
        if price is None:
            return 0.0
        return price.most(len(payload) + estimate(payload, body).media, longest_answer(body) or 0)

    def _encode(self, prompt: Any, name: str) -> bytes:
        return encode(self.body(prompt), name)

    def _encode_text(self, text: str, name: str) -> bytes:
        """Encode only the text: it comes last in the body, and all else is the same for each str."""
        if self._before_text is None:
            self._before_text = self._encode("", name).removesuffix(b'""' + _AFTER_TEXT)
        return self._before_text + encode_text(text) + _AFTER_TEXT

    def _model_of(self, prompt: Any) -> str:
        fields = prompt.prompt if isinstance(prompt, BatchRequest) else prompt
        if isinstance(fields, dict) and "model" in fields:
            return str(fields["model"])
        return "" if path_of(prompt) != CHAT_PATH else self._default_model


def estimate_run(builder: RequestBuilder, prompts: Iterable[Any]) -> Estimate:
    """Estimate the calls, tokens and dollars of a run in which no attempt fails."""
    calls = size = 0
    longest = cost = 0.0  # infinite if one request sets no limit, or has no price
    for index, prompt in enumerate(prompts):
        request = builder.request(index, prompt)
        length, price = len(builder.payload(request)), builder.price(request)
        answer = longest_answer(builder.body(prompt))
        calls, size = calls + 1, size + length
        longest += math.inf if answer is None else answer
        cost += math.inf if answer is None or price is None else price.most(length // BYTES_A_TOKEN, answer)
    most_tokens = int(longest) if longest < math.inf else None
    return Estimate(calls, size // BYTES_A_TOKEN, most_tokens, cost if cost < math.inf else None)
