"""Server's reply → answer, or the error that explains why there isn't one. Pure: no I/O; the clock only for dates.

``dialects`` has the words of servers and their meaning; ``error_body``, ``message``, ``endpoints``, ``usage`` and
``waits`` read the shapes of bodies; ``reply_errors`` makes errors, and ``judgement`` decides what follows from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Union

from chatpool.errors import CallError, InvalidResponseError

from .dialects import BROKEN_OFF, FILTER, LENGTH, finish_meaning
from .endpoints import Answer, any_answer, chat_answer
from .error_body import find_error, read_error
from .reply import Reply as Reply
from .reply_errors import fail_embedded, fail_status, fail_without_json
from .results import Usage
from .waits import header_delay

_Reader = Callable[[dict[str, Any]], Union[Answer, None]]


class Completion(NamedTuple):
    """A completion, whether or not its content is an answer.

    ``finish_reason``: in OpenAI's words, if the tables have the server's. ``has_content``: whether there is any answer.
    """

    response: dict[str, Any]
    text: str
    finish_reason: str | None
    refusal: str | None
    has_content: bool
    usage: Usage | None
    reasoning: str | None = None


def read_completion(reply: Reply) -> Completion:
    """Return the chat completion in a reply; raise APIStatusError or InvalidResponseError if there is none."""
    return _read(reply, chat_answer, "choices[0].message")


def read_document(reply: Reply) -> Completion:
    """Return the answer in a reply of any other endpoint; raise the same errors, by the same rules."""
    return _read(reply, any_answer, "output, choices or data")


def recall_completion(document: Any, *, is_chat: bool) -> Completion | None:
    """Return the completion in JSON that was saved before; None if there is none."""
    try:
        return _completion_in(Reply.of(document), chat_answer if is_chat else any_answer, "answer")
    except CallError:
        return None


def check_answer(reply: Reply, completion: Completion) -> None:
    """Raise InvalidResponseError if a completion is not an answer: refused, filtered, incomplete or blank."""
    reason, meaning = completion.finish_reason, finish_meaning(completion.finish_reason)
    if reply.is_cut_off:
        message = "the answer is incomplete: its stream ended without a finish reason"
        reply.fail(InvalidResponseError, message, code="broken_off")
    if completion.refusal:
        reply.fail(InvalidResponseError, f"the model refused: {completion.refusal}", code="refusal")
    if meaning == FILTER:
        reply.fail(InvalidResponseError, "the answer was blocked by the content filter", code="content_filter")
    if meaning == BROKEN_OFF:
        message = f"the answer is incomplete, because the server failed ({reason})"
        reply.fail(InvalidResponseError, message, code="broken_off")
    if reason in ("queued", "in_progress"):
        message = f"the response is {reason}; chatpool does not wait for responses in the background"
        reply.fail(InvalidResponseError, message, code="not_finished")
    if completion.has_content:
        return
    if meaning == LENGTH:
        message = "the token limit was used up before any text came (a reasoning model may need a larger one)"
        reply.fail(InvalidResponseError, message, code="length")
    reply.fail(InvalidResponseError, "the answer is blank", code="blank")


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds in a delay header; None if there is none, or no valid one."""
    return header_delay(headers, now)


def _read(reply: Reply, reader: _Reader, wanted: str) -> Completion:
    if not reply.is_success:
        fail_status(reply)
    if reply.json_error is not None:
        fail_without_json(reply)
    return _completion_in(reply, reader, wanted)


def _completion_in(reply: Reply, reader: _Reader, wanted: str) -> Completion:
    document = reply.document
    answer = reader(document) if isinstance(document, dict) else None
    error = find_error(document, has_answer=answer is not None)
    if error is not None:
        fail_embedded(reply, error)
    if not isinstance(document, dict):
        kind = type(document).__name__
        reply.fail(InvalidResponseError, f"the reply is a JSON {kind}, not an object", code="no_object")
    if answer is None:
        said = read_error(document).message
        message = f"the reply has no {wanted}" + (f": {said}" if said else "")
        reply.fail(InvalidResponseError, message, code="no_choices")
    if answer.text is None:
        reply.fail(InvalidResponseError, "the message's content is neither text nor a list of parts", code="no_text")
    return Completion(
        response=document,
        text=answer.text,
        finish_reason=answer.finish_reason,
        refusal=answer.refusal and reply.redact(answer.refusal),
        has_content=answer.has_content,
        usage=reply.usage,
        reasoning=answer.reasoning,
    )
