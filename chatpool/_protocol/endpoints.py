"""Finds the answer in the reply of each endpoint: chat, completions, responses, embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

from .dialects import BROKEN_OFF, finish_meaning
from .message import content_text, has_other_content, reasoning_text, refusal_text
from .shown import show_name

# Fields with the answer of other endpoints: responses; completions; embeddings and images; moderations and reranking;
# Cohere's embeddings.
ANSWER_FIELDS = ("output", "choices", "data", "results", "embeddings")


class Answer(NamedTuple):
    """The answer in a reply. ``text``: None if the content is not valid.

    ``finish_reason``: in OpenAI's words, if the tables have the server's. ``has_content``: whether there is any answer.
    """

    text: str | None
    finish_reason: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    has_content: bool = False


def first_choice(document: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice, or an empty dict."""
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def chat_answer(document: dict[str, Any]) -> Answer | None:
    """Return the answer of a chat completion; None if the document is not one."""
    choice = first_choice(document)
    message = choice.get("message")
    return _message_answer(choice, message) if isinstance(message, dict) and message else None


def any_answer(document: dict[str, Any]) -> Answer | None:
    """Return the answer of any other endpoint; None if the document has none."""
    field = next((name for name in ANSWER_FIELDS if name in document), None)
    parts = document.get(field) if field else None
    if field == "output" or document.get("object") == "response":
        return _response_answer(document, parts if isinstance(parts, list) else [])
    if field is None or not parts:
        return None
    if field == "choices":
        return _completion_answer(first_choice(document))
    return Answer("", has_content=not _lacks_embedding(parts))


def _message_answer(choice: dict[str, Any], message: dict[str, Any]) -> Answer:
    text = content_text(message.get("content"))
    return Answer(
        text,
        _finish_reason(choice),
        reasoning_text(message),
        refusal_text(message),
        has_other_content(message) or bool(text and text.strip()),
    )


def _completion_answer(choice: dict[str, Any]) -> Answer | None:
    if isinstance(choice.get("message"), dict):  # a chat completion at another endpoint
        return _message_answer(choice, choice["message"])
    text = choice.get("text")
    if not isinstance(text, str):
        return None
    return Answer(text, _finish_reason(choice), has_content=bool(text.strip()))


def _response_answer(document: dict[str, Any], output: list[Any]) -> Answer:
    items = [item for item in output if isinstance(item, dict)]
    messages = [item for item in items if item.get("type", "message") == "message"]
    text = "".join(content_text(message.get("content")) or "" for message in messages)
    others = [item for item in items if item.get("type", "message") not in ("message", "reasoning")]
    thoughts = [reasoning_text({"reasoning_details": [item]}) for item in items if item.get("type") == "reasoning"]
    refusals = [refusal for message in messages if (refusal := refusal_text(message))]
    return Answer(
        text,
        _response_reason(document),
        "".join(thought for thought in thoughts if thought) or None,
        refusals[0] if refusals and not text.strip() else None,
        bool(text.strip() or others) or any(has_other_content(message) for message in messages),
    )


def _response_reason(document: dict[str, Any]) -> str | None:
    """Return the finish reason for the ``status`` of a response."""
    status, details = document.get("status"), document.get("incomplete_details")
    if status == "incomplete" and isinstance(details, dict):
        status = details.get("reason")
    return _in_openais_words(status)


def _finish_reason(choice: dict[str, Any]) -> str | None:
    """LiteLLM translates DeepSeek's insufficient_system_resource to stop, and keeps it in an inner object."""
    inner = choice.get("provider_specific_fields")
    for fields in (choice, inner) if isinstance(inner, dict) else (choice,):
        native = fields.get("native_finish_reason")  # in which gateways keep the one that they translated
        if native and finish_meaning(native) == BROKEN_OFF:
            return _in_openais_words(native)
    return _in_openais_words(choice.get("finish_reason"))


def _in_openais_words(reason: Any) -> str | None:
    """Return OpenAI's word for a finish reason; the server's own for an incomplete answer, or an unknown one."""
    meaning = finish_meaning(reason)
    if meaning is not None and meaning != BROKEN_OFF:
        return meaning
    return show_name(reason.get("type") if isinstance(reason, dict) else reason)


def _lacks_embedding(parts: Any) -> bool:
    items = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    wanted = [item for item in items if "embedding" in item or item.get("object") == "embedding"]
    return any(not item.get("embedding") for item in wanted)
