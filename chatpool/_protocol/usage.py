"""How many tokens a reply says it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .results import Usage

# The longest context on offer holds 10 million tokens (Llama 4 Scout). A larger count is an error of the server's.
_MOST_TOKENS = 10_000_000

# What the count of a kind of tokens is called; a name may lead through an inner object. The first that holds a number.
USAGE_FIELDS = {
    "prompt": "prompt_tokens input_tokens inputTokens prompt_eval_count",
    "completion": "completion_tokens output_tokens outputTokens eval_count",
    "total": "total_tokens totalTokens",
    "cached": "prompt_tokens_details.cached_tokens input_tokens_details.cached_tokens prompt_cache_hit_tokens "
    "cached_tokens cache_read_input_tokens",  # OpenAI's two APIs, DeepSeek, Moonshot, Anthropic
    "reasoning": "completion_tokens_details.reasoning_tokens output_tokens_details.reasoning_tokens reasoning_tokens",
}
_PATHS = {kind: [name.split(".") for name in names.split()] for kind, names in USAGE_FIELDS.items()}


def read_usage(document: Any) -> Usage | None:
    """Return the tokens that a reply reports; None if it says nothing, or nothing sensible.

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
    """Return a number of tokens; 0 for what can be none. Whole floats and digits are read."""
    digits = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20
    if digits or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return value if 0 < value <= _MOST_TOKENS else 0


def _find(usage: Mapping[str, Any], kind: str) -> int:
    return next((count for path in _PATHS[kind] if (count := _count_at(usage, path))), 0)


def _count_at(usage: Mapping[str, Any], path: list[str]) -> int:
    value: Any = usage
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return read_count(value)
