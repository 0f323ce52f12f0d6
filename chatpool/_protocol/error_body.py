"""Reads the message and the names of an error from a reply's body, whatever its shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .shown import show_name

# Fields with an error's message. The first that has text counts.
MESSAGE_FIELDS = (
    "message", "msg", "error_message", "errorMessage", "error_msg", "errmsg", "status_msg", "error_description",
    "error", "errors", "detail", "base_resp", "description", "title",
)  # fmt: skip
# Fields with an error's names.
NAME_FIELDS = (
    "code", "error_code", "errorCode", "err_code", "errcode", "status_code", "statusCode", "reason", "type",
    "error_type", "errorType", "__type", "status", "limit_source", "quotaId",
)  # fmt: skip
# Fields with objects or lists that describe the error.
_INNER_FIELDS = ("error", "errors", "base_resp", "detail", "details", "violations", "metadata", "innererror")
# Fields that only errors have: in a 2xx without an answer they mark an error.
_ERROR_FIELDS = (
    "errors", "error_code", "error_msg", "error_message", "errorMessage", "error_type", "err_code", "errcode",
    "errmsg", "detail",
)  # fmt: skip

BASE_RESP = "base_resp "  # prefix for MiniMax's numbers, as others use the same ones
_NOTHING = frozenset({"", "0", "200", "ok", "none", "null", "success", "succeeded"})  # codes that mean success
_NOT_NAMES = frozenset({"error", "fail", "failed", "object", "about:blank"})
_MOST_OBJECTS = 50  # of a body that are read
_MOST_NAMES = 20
_LONGEST_MESSAGE = 4000  # characters that are read
_DEEPEST = 6


class ErrorBody(NamedTuple):
    """An error as a body describes it. ``names``: its codes and types, the outermost first, safe to show."""

    message: str
    names: tuple[str, ...]
    document: Any

    @property
    def status(self) -> int | None:
        """The HTTP status among the names, or None."""
        return next((int(name) for name in self.names if name.isdecimal() and 400 <= int(name) <= 599), None)


def read_error(document: Any) -> ErrorBody:
    """Read the JSON of a failed reply: an object, a list or a string."""
    message = _message(document)
    parameter = _parameter(document)
    if parameter and parameter not in message:
        message += f" (parameter {parameter})"
    return ErrorBody(message, _names(document), document)


def find_error(document: Any, *, has_answer: bool) -> ErrorBody | None:
    """Return the error in a 2xx; None if there is none.

    An error object next to an answer may be empty. Without an answer, weaker signs of an error count, too.
    """
    if isinstance(document, list) and len(document) == 1:  # Gemini
        return find_error(document[0], has_answer=has_answer)
    if not isinstance(document, dict):
        return None
    for part in (document, *_dicts(document.get("choices"))[:1]):
        if says_something(part.get("error")):
            return read_error(part)
    base = document.get("base_resp")  # MiniMax
    if isinstance(base, dict) and says_something(base.get("status_code")):
        return read_error({"base_resp": base})
    return read_error(document) if not has_answer and _looks_like_error(document) else None


def says_something(value: Any) -> bool:
    """Whether a field has a meaning: the code of an error may also be 0, null or "success"."""
    if isinstance(value, dict):
        return any(says_something(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return any(says_something(part) for part in value)
    return value is not None and value is not False and str(value).strip().lower() not in _NOTHING


def _looks_like_error(document: dict[str, Any]) -> bool:
    if "error" in (document.get("object"), document.get("type")) or document.get("success") is False:
        return True
    if any(says_something(document.get(name)) for name in _ERROR_FIELDS):
        return True
    has_code = any(says_something(document.get(name)) for name in ("code", "status_code", "statusCode"))
    return has_code and any(says_something(document.get(name)) for name in ("message", "msg"))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _message(value: Any, depth: int = 0) -> str:
    if isinstance(value, str):
        return value[:_LONGEST_MESSAGE].strip()
    if depth > _DEEPEST:
        return ""
    if isinstance(value, list):
        return "; ".join(text for part in value[:3] if (text := _message(part, depth + 1)))
    if not isinstance(value, dict):
        return ""
    found = next((text for name in MESSAGE_FIELDS if (text := _message(value.get(name), depth + 1))), "")
    return _further(value, found)


def _further(error: dict[str, Any], message: str) -> str:
    """Add details to a message: FastAPI's location in the body, and the provider's words from OpenRouter."""
    place, metadata = error.get("loc"), error.get("metadata")
    if message and isinstance(place, list) and place:
        return ".".join(str(step) for step in place[:5]) + f": {message}"
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    return f"{message}: {raw.strip()}" if message and isinstance(raw, str) and raw.strip() else message


def _names(document: Any) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for part in _parts(document):
        prefix = BASE_RESP if "status_msg" in part else ""
        for field in NAME_FIELDS:
            name = _name(part.get(field))
            if name is not None and name.lower() not in _NOTHING | _NOT_NAMES:
                found.setdefault(prefix + name)
    return tuple(found)[:_MOST_NAMES]


def _name(value: Any) -> str | None:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return show_name(value)


def _parameter(document: Any) -> str | None:
    return next((name for part in _parts(document) if (name := show_name(part.get("param")))), None)


def _parts(document: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects that describe an error, the outermost first."""
    level, seen = [document], 0
    while level and seen < _MOST_OBJECTS:
        part, seen = level.pop(0), seen + 1
        if isinstance(part, list):
            level += part[:_MOST_OBJECTS]
        elif isinstance(part, dict):
            yield part
            level += [part[name] for name in _INNER_FIELDS if isinstance(part.get(name), (dict, list))]
