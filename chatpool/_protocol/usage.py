"""Reads the token counts of a reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .results import Usage

# The longest context of a model is 10 million tokens (Llama 4 Scout). A larger count is an error of the server.
_MOST_TOKENS = 10_000_000

# The names of each count, with a dot for a field of an inner object. The first with a valid number counts.
USAGE_FIELDS = {
    "prompt": "prompt_tokens input_tokens inputTokens prompt_eval_count",
    "completion": "completion_tokens output_tokens outputTokens eval_count",
    "total": "total_tokens totalTokens",
    "cached": "prompt_tokens_details.cached_tokens input_tokens_details.cached_tokens prompt_cache_hit_tokens "
    "cached_tokens cache_read_input_tokens",  # OpenAI's two APIs, DeepSeek, Moonshot, Anthropic
    "reasoning": "completion_tokens_details.reasoning_tokens output_tokens_details.reasoning_tokens reasoning_tokens",
}
_PATHS = {kind: [name.partition(".")[::2] for name in names.split()] for kind, names in USAGE_FIELDS.items()}


def read_usage(document: Any) -> Usage | None:
    """Return the tokens that a reply reports; None if it has no valid count.

    Some servers send zeros, nulls, an empty object, or digits as text (LocalAI#1920); some gateways count 10^12.
    """
    usage = document.get("usage") if isinstance(document, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, completion, total = (_find(usage, kind) for kind in ("prompt", "completion", "total"))
    total = max(total, prompt + completion)
    if not total:
        return None
    cached = min(_find(usage, "cached"), prompt or total)
    return Usage(prompt, completion, total, cached, _find(usage, "reasoning"))


def read_count(value: Any) -> int:
    """Return a number of tokens, also from a whole float or from digits; 0 if it is not valid."""
    if type(value) is not int:
        digits = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20
        if not digits and not (isinstance(value, float) and value.is_integer()):
            return 0
        value = int(value)
    return value if 0 < value <= _MOST_TOKENS else 0


def _find(usage: Mapping[str, Any], kind: str) -> int:
    for name, inner in _PATHS[kind]:
        value = usage.get(name)
        if value and inner:
            value = value.get(inner) if isinstance(value, dict) else None
        if value and (count := read_count(value)):
            return count
    return 0
