"""The old endpoint for completions: an answer as plain text, and as the chunks in which it streams.

The shapes are from "Completions" in OpenAI's API reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .chunks import pieces
from .streams import DONE, Event, json_event

_OBJECT = "text_completion"


def text_completion(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text completion with the content of a chat completion."""
    choice = completion["choices"][0]
    return {
        **completion,
        "id": completion["id"].replace("chatcmpl-", "cmpl-", 1),
        "object": _OBJECT,
        "choices": [_choice(choice["message"]["content"] or "", choice["finish_reason"])],
    }


def is_text_completion(document: Any) -> bool:
    """Whether a body is a text completion."""
    return isinstance(document, dict) and document.get("object") == _OBJECT and bool(document.get("choices"))


def text_events(document: Mapping[str, Any], include_usage: bool) -> Iterator[Event]:
    """Return the events of a text completion."""
    shared = {name: value for name, value in document.items() if name not in ("choices", "usage")}
    choice = document["choices"][0]
    nothing = {"usage": None} if include_usage else {}
    for piece in pieces(choice["text"]):
        yield json_event({**shared, "choices": [_choice(piece, None)], **nothing}, "piece")
    yield json_event({**shared, "choices": [_choice("", choice["finish_reason"])], **nothing}, "finish")
    if include_usage:
        yield json_event({**shared, "choices": [], "usage": document.get("usage")}, "usage")
    yield DONE


def _choice(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}
