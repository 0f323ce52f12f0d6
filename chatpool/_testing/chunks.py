"""A chat completion as the chunks in which OpenAI's API streams it.

The shape of chunks is from OpenAI's description of ``chat.completion.chunk`` and of ``stream_options``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from .streams import DONE, Event, json_event

_PIECE = re.compile(r"\s*\S{1,12}|\s+")


def pieces(text: str) -> list[str]:
    """Split a text into pieces like tokens: a word with the space before it; a long word is cut."""
    return _PIECE.findall(text)


def is_completion(document: Any) -> bool:
    """Whether a body is a completion, with choices that have messages."""
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices:
        return False
    return all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices)


def chunk_events(completion: Mapping[str, Any], include_usage: bool) -> Iterator[Event]:
    """Return the events of a completion. Those of several choices alternate."""
    shared = {name: value for name, value in completion.items() if name not in ("choices", "usage")}
    shared["object"] = "chat.completion.chunk"
    nothing = {"usage": None} if include_usage else {}
    streams = [list(_choices(choice)) for choice in completion["choices"]]
    for together in zip_longest(*streams):
        for kind, choice in filter(None, together):
            yield json_event({**shared, "choices": [choice], **nothing}, kind)
    if include_usage:
        yield json_event({**shared, "choices": [], "usage": completion.get("usage")}, "usage")
    yield DONE


def _choices(choice: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the choice of each chunk, with the kind of its event."""
    message = choice["message"]
    index = {"index": choice.get("index", 0)}
    content = "" if isinstance(message.get("content"), str) else None
    start = {"role": message.get("role", "assistant"), "content": content, **_nulls(message)}
    yield "start", {**index, "delta": start, "logprobs": None, "finish_reason": None}
    for delta, logprobs in _deltas(message, choice.get("logprobs") or {}):
        yield "piece", {**index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
    others = {name: value for name, value in choice.items() if name not in ("message", "logprobs")}
    yield "finish", {**index, "delta": {}, "logprobs": None, **others}


def _nulls(message: Mapping[str, Any]) -> dict[str, None]:
    return {name: None for name, value in message.items() if value is None}


def _deltas(message: Mapping[str, Any], logprobs: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Return the deltas with their log probabilities: reasoning comes first, tool calls last."""
    fields = sorted(message.items(), key=lambda item: not item[0].startswith("reasoning"))
    for name, value in fields:
        if name in ("role", "tool_calls") or value is None:
            continue
        if not isinstance(value, str):
            yield {name: value}, None
            continue
        for piece, entries in with_logprobs(value, logprobs.get(name) or []):
            yield {name: piece}, {"content": None, "refusal": None, name: entries} if entries else None
    for index, call in enumerate(message.get("tool_calls") or []):
        yield from ((delta, None) for delta in _tool_call_deltas(index, call))


def with_logprobs(text: str, entries: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Split a text into its tokens if log probabilities name them; otherwise the first piece has them all."""
    tokens = [str(entry.get("token")) for entry in entries]
    if entries and "".join(tokens) == text:
        yield from ((token, [entry]) for token, entry in zip(tokens, entries))
        return
    for number, piece in enumerate(pieces(text)):
        yield piece, entries if number == 0 else []


def _tool_call_deltas(index: int, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the call's id and name, and then the pieces of its arguments or of a custom tool's input."""
    kind = call.get("type", "function")
    inner = call.get(kind, {})
    text = "arguments" if "arguments" in inner else "input"
    yield {"tool_calls": [{"index": index, **call, kind: {**inner, text: ""}}]}
    for piece in pieces(str(inner.get(text, ""))):
        yield {"tool_calls": [{"index": index, kind: {text: piece}}]}
