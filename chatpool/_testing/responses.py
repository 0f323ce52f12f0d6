"""The Responses API: an answer as a response object, and as the events in which it streams.

The shapes are from "The response object" and "Streaming events" in OpenAI's API reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .chunks import with_logprobs
from .streams import Event, json_event

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_SETTINGS: Mapping[str, Any] = {  # with the defaults that a response shows
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}
_PARTS = {  # the types of items with parts: the field with the parts, that with a part's number, and their events
    "message": ("content", "content_index", "response.content_part"),
    "reasoning": ("summary", "summary_index", "response.reasoning_summary_part"),
}
_TEXTS = {  # the types of parts and calls: the field with the text, and its events
    "output_text": ("text", "response.output_text"),
    "summary_text": ("text", "response.reasoning_summary_text"),
    "refusal": ("refusal", "response.refusal"),
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}


def response(completion: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the response with the content of a chat completion. ``body``: the request's."""
    choice = completion["choices"][0]
    reason = _INCOMPLETE.get(choice["finish_reason"])
    status = "incomplete" if reason else "completed"
    key = completion["id"].partition("-")[2]
    return {
        "id": f"resp_{key}",
        "object": "response",
        "created_at": completion["created"],
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": completion["model"],
        **{name: body.get(name, default) for name, default in _SETTINGS.items()},
        "output": list(_items(choice, key, status)),
        "usage": _usage(completion["usage"]),
    }


def is_response(document: Any) -> bool:
    """Whether a body is a response."""
    return isinstance(document, dict) and document.get("object") == "response" and bool(document.get("output"))


def response_events(document: Mapping[str, Any]) -> Iterator[Event]:
    """Return the events of a response. The last one has all of it; there is no ``[DONE]``."""
    for number, (kind, fields) in enumerate(_events(document)):
        yield json_event({**fields, "sequence_number": number}, kind, fields["type"])


# Objects.


def _items(choice: Mapping[str, Any], key: str, status: str) -> Iterator[dict[str, Any]]:
    message = choice["message"]
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning:
        summary = [{"type": "summary_text", "text": reasoning}]
        yield {"id": f"rs_{key}", "type": "reasoning", "status": status, "summary": summary}
    parts = list(_parts(message, choice.get("logprobs") or {}))
    if parts:
        yield {"id": f"msg_{key}", "type": "message", "status": status, "role": "assistant", "content": parts}
    for number, call in enumerate(message.get("tool_calls") or []):
        yield _call(call, f"{key}_{number}", status)


def _parts(message: Mapping[str, Any], logprobs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    text = message.get("content")
    if text or (text == "" and not message.get("tool_calls")):
        yield {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs.get("content") or []}
    if message.get("refusal"):
        yield {"type": "refusal", "refusal": message["refusal"]}


def _call(call: Mapping[str, Any], key: str, status: str) -> dict[str, Any]:
    kind = call.get("type", "function")
    names = {"function": ("fc", "function_call"), "custom": ("ctc", "custom_tool_call")}
    prefix, item_type = names[kind]
    return {"id": f"{prefix}_{key}", "type": item_type, "status": status, "call_id": call.get("id"), **call[kind]}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    tokens_in = usage.get("input_tokens", usage.get("prompt_tokens", 0))
    tokens_out = usage.get("output_tokens", usage.get("completion_tokens", 0))
    details_in = usage.get("input_tokens_details", usage.get("prompt_tokens_details")) or {}
    details_out = usage.get("output_tokens_details", usage.get("completion_tokens_details")) or {}
    return {
        "input_tokens": tokens_in,
        "input_tokens_details": {"cached_tokens": 0, **details_in},
        "output_tokens": tokens_out,
        "output_tokens_details": {"reasoning_tokens": 0, **details_out},
        "total_tokens": usage.get("total_tokens", tokens_in + tokens_out),
    }


# Events.


def _events(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the fields of each event, with its kind."""
    begun = {**document, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    yield "start", {"type": "response.created", "response": begun}
    yield "start", {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(document["output"]):
        yield "start", {"type": "response.output_item.added", "output_index": index, "item": _begun_item(item)}
        yield from _item_events(item, {"item_id": item.get("id"), "output_index": index})
        yield "start", {"type": "response.output_item.done", "output_index": index, "item": item}
    yield "finish", {"type": f"response.{document.get('status', 'completed')}", "response": document}


def _begun_item(item: Mapping[str, Any]) -> dict[str, Any]:
    parts = _PARTS.get(item.get("type", ""))
    return {**item, "status": "in_progress", **({parts[0]: []} if parts else _emptied(item))}


def _emptied(part: Mapping[str, Any]) -> dict[str, Any]:
    empty = {_TEXTS[part["type"]][0]: ""} if part.get("type") in _TEXTS else {}
    return {**empty, "logprobs": []} if "logprobs" in part else empty


def _item_events(item: Mapping[str, Any], place: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if item.get("type") not in _PARTS:
        yield from _text_events(item, place)
        return
    name, number_name, event = _PARTS[item["type"]]
    for number, part in enumerate(item.get(name) or []):
        inner = {**place, number_name: number}
        yield "start", {"type": f"{event}.added", **inner, "part": {**part, **_emptied(part)}}
        yield from _text_events(part, inner)
        yield "start", {"type": f"{event}.done", **inner, "part": part}


def _text_events(part: Mapping[str, Any], place: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if part.get("type") not in _TEXTS:
        return
    name, event = _TEXTS[part["type"]]
    logprobs = part.get("logprobs") or []
    has_logprobs = part["type"] == "output_text"
    for piece, entries in with_logprobs(part[name], logprobs):
        yield "piece", {"type": f"{event}.delta", **place, "delta": piece, **_logprobs(has_logprobs, entries)}
    yield "start", {"type": f"{event}.done", **place, name: part[name], **_logprobs(has_logprobs, logprobs)}


def _logprobs(has_them: bool, entries: list[Any]) -> dict[str, list[Any]]:
    return {"logprobs": entries} if has_them else {}
