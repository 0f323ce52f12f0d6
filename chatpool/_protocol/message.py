"""Reads a model's message: text, reasoning, refusal, and other content."""

from __future__ import annotations

from typing import Any

# Fields that are an answer without text.
ANSWER_FIELDS = ("tool_calls", "function_call", "audio", "images", "image", "videos")
_ANSWER_FIELDS = frozenset(ANSWER_FIELDS)
# Fields with the model's reasoning. The first that has text counts: OpenRouter sends two of them.
REASONING_FIELDS = (
    "reasoning_content",  # DeepSeek, vLLM, SGLang, Moonshot, Qwen
    "reasoning",  # OpenRouter, Groq, vLLM since 0.11, LM Studio
    "reasoning_details",  # OpenRouter: a list of parts
    "thinking",  # Ollama
    "thinking_blocks",  # LiteLLM: a list of parts
)
# Types of the parts of a content.
_REASONING_PARTS = frozenset({"thinking", "reasoning", "redacted_thinking", "reasoning_content"})
_TEXT_PARTS = frozenset({"text", "output_text", "input_text", "refusal"})
_TEXT_FIELDS = ("text", "thinking", "reasoning", "summary", "content", "reasoning_text")
_DEEPEST = 6


def content_text(content: Any) -> str | None:
    """Return the text of a content: a string, or a list of strings and parts. None if it is not valid."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return None
    return "".join(_part_text(part) for part in content)


def has_other_content(message: dict[str, Any]) -> bool:
    """Whether a message has an answer other than text: tool calls, images, audio."""
    content = message.get("content")
    if isinstance(content, list) and any(_is_other(part) for part in content):
        return True
    return not _ANSWER_FIELDS.isdisjoint(message) and any(message.get(name) for name in ANSWER_FIELDS)


def reasoning_text(message: dict[str, Any]) -> str | None:
    """Return the reasoning of a message, or None. ``<think>`` in the text is left there."""
    for name in REASONING_FIELDS:
        if (value := message.get(name)) and (text := _joined(value)):
            return text
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    return "".join(_joined(part) for part in parts if _type_of(part) in _REASONING_PARTS) or None


def refusal_text(message: dict[str, Any]) -> str | None:
    """Return the refusal of a message, from its own field or part, or None."""
    refusal, content = message.get("refusal"), message.get("content")
    if isinstance(refusal, str) and refusal.strip():
        return refusal
    for part in content if isinstance(content, list) else ():
        refusal = part.get("refusal") if _type_of(part) == "refusal" else None
        if isinstance(refusal, str) and refusal.strip():
            return refusal
    return None


def _type_of(part: Any) -> str:
    return str(part.get("type") or "") if isinstance(part, dict) else ""


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or _type_of(part) in _REASONING_PARTS:
        return ""
    text = part.get("text")
    if isinstance(text, dict):  # the Assistants API
        text = text.get("value")
    return text if isinstance(text, str) else ""


def _is_other(part: Any) -> bool:
    kind = _type_of(part)
    return bool(kind) and kind not in _TEXT_PARTS and kind not in _REASONING_PARTS


def _joined(value: Any, depth: int = 0) -> str:
    """Return the text of a reasoning: a string, a list of parts, or a part that has a list of parts."""
    if isinstance(value, str):
        return value if value.strip() else ""
    if depth > _DEEPEST:
        return ""
    if isinstance(value, list):
        return "".join(_joined(part, depth + 1) for part in value)
    if isinstance(value, dict):
        return next((text for name in _TEXT_FIELDS if (text := _joined(value.get(name), depth + 1))), "")
    return ""
