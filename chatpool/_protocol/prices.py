"""What tokens cost. Pure: no table of prices, as those change; the caller passes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Union

from chatpool.errors import ConfigurationError

from .results import Usage

_MILLION = 1e6


class Price(NamedTuple):
    """Dollars for a million tokens: of the prompt, of the answer, and of prompt tokens that the server had cached.

    ``cached``: default: the price of ``input``.
    """

    input: float
    output: float
    cached: float | None = None

    def cost(self, usage: Usage) -> float:
        """Return the dollars for these tokens."""
        cached = self.input if self.cached is None else self.cached
        new = usage.prompt_tokens - usage.cached_tokens
        # Gemini's total includes reasoning that the other two counts lack; it is charged like an answer.
        answer = max(usage.completion_tokens, usage.total_tokens - usage.prompt_tokens)
        return (new * self.input + usage.cached_tokens * cached + answer * self.output) / _MILLION

    def most(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return the dollars for at most so many tokens."""
        return (prompt_tokens * max(self.input, self.cached or 0.0) + answer_tokens * self.output) / _MILLION


Prices = Mapping[str, Union[Price, tuple[float, float]]]


def check_prices(prices: Prices | None) -> dict[str, Price]:
    """Return a Price for each model; raise ConfigurationError for anything else."""
    if prices is not None and not isinstance(prices, Mapping):
        raise ConfigurationError('prices must be a dict, such as {"gpt-6-luna": (0.10, 0.50)}')
    return {str(model): _check_price(model, price) for model, price in (prices or {}).items()}


def cost_of(document: Any, usage: Usage | None, price: Price | None) -> float | None:
    """Return the dollars for a reply: what the server says (``usage.cost``, as OpenRouter's), else by the price.

    None if neither is known.
    """
    reported = document.get("usage") if isinstance(document, dict) else None
    cost = reported.get("cost") if isinstance(reported, dict) else None
    if isinstance(cost, (int, float)) and not isinstance(cost, bool) and 0 <= cost < math.inf:
        return float(cost)
    return None if usage is None or price is None else price.cost(usage)


def show_cost(dollars: float) -> str:
    """Return an amount with as many digits as it needs."""
    return f"${dollars:,.2f}" if dollars >= 1 else f"${dollars:.4f}" if dollars >= 0.01 else f"${dollars:.2g}"


def _check_price(model: Any, price: Any) -> Price:
    numbers = tuple(price) if isinstance(price, (tuple, list)) else ()
    valid = all(_is_price(number) for number in numbers[:2]) and all(n is None or _is_price(n) for n in numbers[2:])
    if not 2 <= len(numbers) <= 3 or not valid:
        raise ConfigurationError(
            f"prices: {model!r} needs (input, output) or Price(input, output, cached) in dollars for a million tokens, "
            f"not {price!r}"
        )
    return Price(*(None if number is None else float(number) for number in numbers))  # type: ignore[arg-type]  # checked


def _is_price(number: Any) -> bool:
    try:
        return not isinstance(number, (bool, str)) and 0 <= float(number) < math.inf
    except (TypeError, ValueError):
        return False
