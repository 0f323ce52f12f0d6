"""Reads the rate limits that a server announces in the headers of its replies, before it refuses anything. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from .waits import read_delay, server_time

REQUESTS, TOKENS = "requests", "tokens"

# The headers of a limit: what remains, its limit, the time of its reset, its unit, and who sends them.
ANNOUNCEMENTS = [
    *(
        (f"x-ratelimit-remaining-{name}", f"x-ratelimit-limit-{name}", f"x-ratelimit-reset-{name}", unit, source)
        for name, unit, source in [
            ("requests", REQUESTS, "OpenAI, Azure, Groq, LiteLLM: platform.openai.com/docs/guides/rate-limits"),
            ("tokens", TOKENS, "OpenAI, Azure, Groq, LiteLLM"),
            ("requests-minute", REQUESTS, "Cerebras"),
            ("requests-day", REQUESTS, "Cerebras"),
            ("tokens-minute", TOKENS, "Cerebras"),
        ]
    ),
    *(
        (f"anthropic-ratelimit-{name}-remaining", f"anthropic-ratelimit-{name}-limit",
         f"anthropic-ratelimit-{name}-reset", unit, "Anthropic, RFC 3339: docs.anthropic.com/en/api/rate-limits")
        for name, unit in [("requests", REQUESTS), ("tokens", TOKENS), ("input-tokens", TOKENS)]
    ),
    ("x-ratelimit-remaining", "x-ratelimit-limit", "x-ratelimit-reset", REQUESTS, "OpenRouter, Moonshot, gateways"),
    ("ratelimit-remaining", "ratelimit-limit", "ratelimit-reset", REQUESTS,
     "draft-ietf-httpapi-ratelimit-headers-06, Mistral"),
]  # fmt: skip
_NAMES = "ratelimit"  # is in the name of each of them
_LONGEST_FIELD = 1000  # characters of the draft's fields that are read


class Announced(NamedTuple):
    """A limit as a reply announces it."""

    name: str  # of its header, by which one limit differs from another
    unit: str  # REQUESTS or TOKENS
    remaining: float  # what may still be sent before the reset
    limit: float | None
    reset: float | None  # seconds until all of it, or a part of it, comes back


def announced_limits(headers: Mapping[str, str], now: float) -> list[Announced]:
    """Return the limits in the headers of a reply.

    ``now``: seconds since 1970, for resets that are points in time; a ``Date`` header comes first. What makes no sense,
    such as a negative rest or no rest at all, is left out.
    """
    fields = {lower: value for name, value in headers.items() if _NAMES in (lower := name.lower())}
    if not fields:
        return []
    now = server_time(headers, now)
    found = [
        _announced(remaining, unit, fields[remaining], fields.get(limit), fields.get(reset), now)
        for remaining, limit, reset, unit, _ in ANNOUNCEMENTS
        if remaining in fields
    ]
    found += _draft_limits(fields.get("ratelimit", ""), fields.get("ratelimit-policy", ""))
    return [announced for announced in found if announced is not None]


def _announced(
    name: str, unit: str, remaining: str | None, limit: str | None, reset: str | None, now: float
) -> Announced | None:
    rest = _number(remaining)
    if rest is None or rest < 0:
        return None
    seconds = None if reset is None else read_delay(reset, now)
    most = _number((limit or "").split(",")[0])
    return Announced(name, unit, rest, most or None, max(seconds, 0.0) if seconds is not None else None)


def _draft_limits(field: str, policy: str) -> list[Announced | None]:
    """Read ``RateLimit: "name";r=50;t=30`` and its policy, ``"name";q=100;w=60``; and draft 07's ``limit=, reset=``."""
    policies = dict(_items(policy))
    found: list[Announced | None] = []
    for name, parameters in _items(field):
        rest = parameters.get("r", parameters.get("remaining"))
        of_policy = policies.get(name, {})
        unit = of_policy.get("qu", REQUESTS).strip('" ')
        if unit not in (REQUESTS, TOKENS):
            continue  # such as content-bytes
        limit = of_policy.get("q", parameters.get("limit"))
        reset = parameters.get("t", parameters.get("reset"))
        found.append(_announced(f"ratelimit {name}", unit, rest, limit, reset, 0.0))
    return found


def _items(field: str) -> list[tuple[str, dict[str, str]]]:
    """Return the items of a structured field (RFC 9651) that has only simple ones: their names and parameters."""
    field = field[:_LONGEST_FIELD].strip()
    if re.match(r"[a-z]+\s*=", field, re.IGNORECASE):  # draft 07: a dictionary without a name
        return [("", _parameters(field.replace(",", ";")))]
    items = [item.split(";", 1) for item in field.split(",") if item.strip()]
    return [(item[0].strip(' "'), _parameters(item[1] if len(item) > 1 else "")) for item in items]


def _parameters(text: str) -> dict[str, str]:
    pairs = [pair.split("=", 1) for pair in text.split(";") if "=" in pair]
    return {name.strip().lower(): value.strip() for name, value in pairs}


def _number(text: str | None) -> float | None:
    try:
        number = float((text or "").strip())
    except ValueError:
        return None
    return number if math.isfinite(number) else None
