"""Reads the delay that a server asks for, from headers, fields and words, in any of their formats."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

_LONGEST_DELAY = 366 * 86400.0  # seconds; longer delays are ignored
_FIRST_EPOCH = 1e9  # seconds; from this number on it is a point in time, not a duration
_FIRST_EPOCH_MS = 1e12

# Headers with a delay, and their unit in seconds. The first with a valid delay counts.
DELAY_HEADERS = [
    ("retry-after-ms", 0.001, "OpenAI, Azure"),
    ("x-ms-retry-after-ms", 0.001, "Azure"),
    ("retry-after", 1.0, "RFC 9110, section 10.2.3; also as 3s and 6m0s"),
    ("x-retry-after", 1.0, "gateways"),
]
# Headers with the rest of a limit, and the time of its reset. They count on a rate limit, if the rest is 0.
RESET_HEADERS = [
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "OpenAI, Azure, Groq"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "OpenAI, Azure, Groq"),
    ("x-ratelimit-remaining-requests-minute", "x-ratelimit-reset-requests-minute", "Cerebras"),
    ("x-ratelimit-remaining-tokens-minute", "x-ratelimit-reset-tokens-minute", "Cerebras"),
    ("x-ratelimit-remaining-requests-day", "x-ratelimit-reset-requests-day", "Cerebras"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset", "Anthropic, RFC 3339"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset", "Anthropic, RFC 3339"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset", "Anthropic, RFC 3339"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset", "Anthropic, RFC 3339"),
    ("x-ratelimit-remaining", "x-ratelimit-reset", "OpenRouter (milliseconds since 1970), Moonshot"),
    ("ratelimit-remaining", "ratelimit-reset", "the IETF's draft, Mistral"),
]  # fmt: skip
# Fields of an error with a delay, and their unit in seconds.
DELAY_FIELDS = [
    ("retryDelay", 1.0, "Google's RetryInfo"),
    ("retry_after_ms", 0.001, "gateways"),
    ("retry_after", 1.0, "gateways"),
    ("retryAfter", 1.0, "gateways"),
    ("retry_after_seconds", 1.0, "gateways"),
    ("resets_in_seconds", 1.0, "Codex"),
    ("resets_at", 1.0, "OpenRouter's budgets, Codex: a point in time"),
    ("estimated_time", 1.0, "Hugging Face, while a model loads"),
]
# Words of a message before a duration.
DELAY_WORDS = [
    (r"(?:try|retry)(?:ing)?(?: your request)?(?: again)? (?:in|after)", "OpenAI, Groq, Azure, Gemini"),
    (r"(?:please )?wait(?: for)?", "gateways"),
    (r"(?:available|resets?)(?: again)? in", "gateways"),
]

_SECONDS_OF_UNIT = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
# Patterns as text: re compiles and keeps them when they are first needed.
_UNIT = "days?|d|hours?|hrs?|h|milliseconds?|millis|ms|minutes?|mins?|m|us|µs|ns|seconds?|secs?|s"
_STEP = rf"(\d+(?:\.\d+)?)\s*({_UNIT})(?![a-z])"
_STEPS = rf"(?:{_STEP}(?:,|\s|and)*)+"
_ISO = r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+)?\s*(Z|UTC|GMT|[+-]\d\d:?\d\d)?"
_SAID = rf"\b(?:{'|'.join(words for words, _ in DELAY_WORDS)}) (?:about |approximately |another )?({_STEPS})"
_LONGEST_MESSAGE = 2000  # characters that are searched
_MOST_OBJECTS = 100  # of an error's body that are searched


def header_delay(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds in a delay header; None if there is none, or no valid one."""
    for name, unit, _ in DELAY_HEADERS:
        seconds = _sensible(read_delay(headers.get(name), server_time(headers, now), unit))
        if seconds is not None:
            return seconds
    return None


def hinted_delay(headers: Mapping[str, str], document: Any, message: str, now: float) -> float | None:
    """Return the seconds that a rate limit asks for elsewhere: in reset headers, else in the body's fields or words."""
    now = server_time(headers, now)
    return _reset_delay(headers, now) or _field_delay(document, now) or _said_delay(message)


def server_time(headers: Mapping[str, str], now: float) -> float:
    """Return the time in the Date header, else ``now``. The server's other dates refer to its own clock."""
    date = _http_date(headers.get("date") or "")
    return now if date is None else date


def read_delay(value: Any, now: float, unit: float = 1.0) -> float | None:
    """Return the seconds from ``now`` on: from a number, a duration, a date, or seconds or milliseconds since 1970."""
    if isinstance(value, dict):  # Google's Duration as an object
        value = value.get("seconds")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    text = str(value).strip()[:100]
    number = _number(text)
    if number is not None:
        return _from_number(number * unit if number < _FIRST_EPOCH else number, now)
    if re.fullmatch(_STEPS, text, re.IGNORECASE):
        return _from_duration(text)
    moment = _iso_date(text) or _http_date(text)
    return None if moment is None else moment - now


def _sensible(seconds: float | None) -> float | None:
    """Return only a positive delay of up to a year. NaN compares false."""
    return seconds if seconds is not None and 0 < seconds <= _LONGEST_DELAY else None


def _from_number(number: float, now: float) -> float | None:
    if not math.isfinite(number):
        return None
    if number >= _FIRST_EPOCH_MS:
        return number / 1000 - now
    return number - now if number >= _FIRST_EPOCH else number


def _from_duration(text: str) -> float:
    return sum(float(number) * _unit(unit.lower()) for number, unit in re.findall(_STEP, text, re.IGNORECASE))


def _unit(name: str) -> float:
    return _SECONDS_OF_UNIT.get(name) or _SECONDS_OF_UNIT["ms" if name.startswith("milli") else name[0]]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _http_date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError, OSError):
        return None


def _iso_date(text: str) -> float | None:
    """Read RFC 3339. Before Python 3.11, fromisoformat accepts neither Z nor fractions of any length."""
    found = re.fullmatch(_ISO, text, re.IGNORECASE)
    if found is None:
        return None
    day, time, fraction, zone = found.groups()
    zone = "+00:00" if zone is None or zone.upper() in ("Z", "UTC", "GMT") else zone
    zone = zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
    try:
        moment = datetime.fromisoformat(f"{day}T{time}{zone}").astimezone(timezone.utc).timestamp()
    except (ValueError, OverflowError):
        return None
    return moment + float(fraction or 0)


def _reset_delay(headers: Mapping[str, str], now: float) -> float | None:
    """Return the longest delay of the limits that are used up."""
    waits = [
        _sensible(read_delay(headers.get(reset), now))
        for remaining, reset, _ in RESET_HEADERS
        if _number(headers.get(remaining, "")) == 0
    ]
    return max((seconds for seconds in waits if seconds is not None), default=None)


def _field_delay(document: Any, now: float) -> float | None:
    for error in _objects(document):
        for name, unit, _ in DELAY_FIELDS:
            seconds = _sensible(read_delay(error.get(name), now, unit))
            if seconds is not None:
                return seconds
        headers = error.get("headers")  # OpenRouter has the headers of its own limits in the body
        if isinstance(headers, dict):
            lower = {str(name).lower(): str(value) for name, value in headers.items()}
            seconds = header_delay(lower, now) or _reset_delay(lower, now)
            if seconds is not None:
                return seconds
    return None


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    todo, seen = [document], 0
    while todo and seen < _MOST_OBJECTS:
        part, seen = todo.pop(0), seen + 1
        if isinstance(part, dict):
            yield part
            todo += [value for value in part.values() if isinstance(value, (dict, list))]
        elif isinstance(part, list):
            todo += part[:_MOST_OBJECTS]


def _said_delay(message: str) -> float | None:
    found = re.search(_SAID, message[:_LONGEST_MESSAGE], re.IGNORECASE)
    return _sensible(_from_duration(found[1])) if found else None
