"""A streamed answer: its chunks become the reply that the server would have sent without streaming. Pure: no I/O.

Source of the chunks' format: "The chat completion chunk object" in OpenAI's API reference, and what other servers make
of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Callable

from chatpool.errors import BadRequestError, CallError

from .deltas import finished, joined_logprobs, merge
from .error_body import find_error
from .message import content_text
from .reply import Reply, parse_json
from .requests import UNSTREAMED, WITH_USAGE, WITHOUT_USAGE
from .server_sent_events import Event, EventParser

EVENT_STREAM = "text/event-stream"
_DONE = "[DONE]"
_STARTS = (b"data:", b"event:")  # of an event stream; JSON never begins like this
_EMPTY: tuple[Any, ...] = (None, "", {}, [])  # none of these replaces what came before
_NO_REASONS = (None, "", "null")  # finish reasons of chunks that others follow
_NAMES_OPTIONS = re.compile(r"stream_options|include_usage", re.IGNORECASE)
_NAMES_STREAM = re.compile(r"\bstream(ing|ed)?\b", re.IGNORECASE)


class StreamedAnswer:
    """Puts one answer together.

    ``on_begin`` is called when its first piece has arrived: text, reasoning or a tool call. ``on_text`` is called with
    each piece of text of the first choice.
    """

    def __init__(
        self, on_begin: Callable[[], None] | None = None, on_text: Callable[[str], None] | None = None
    ) -> None:
        self._on_begin, self._on_text = on_begin, on_text
        self._parser = EventParser()
        self._fields: dict[str, Any] = {}
        self._latest: dict[str, Any] = {}  # the fields of the latest chunk
        self._choices: dict[Any, dict[str, Any]] = {}
        self._failure: tuple[Any, str | None] | None = None  # the JSON of an error, or why an event is not JSON
        self._failed_event = ""
        self.is_over = False  # nothing that follows counts

    @property
    def can_be_judged(self) -> bool:
        """Whether the stream may end, or its connection fail, without a loss."""
        return self.is_over or self._is_complete

    @property
    def _is_complete(self) -> bool:
        """Whether all of the answer has arrived: every choice has a finish reason, or else [DONE] and usage have come.

        [DONE] alone proves nothing: llama-cpp-python sends it when another request interrupts an answer.
        """
        reasons = [choice.get("finish_reason") for choice in self._choices.values()]
        if reasons and all(reason not in _NO_REASONS for reason in reasons):
            return True
        return self.is_over and isinstance(self._fields.get("usage"), dict)

    def feed(self, piece: bytes) -> None:
        """Take in a piece of the stream."""
        for event in self._parser.feed(piece):
            if self.is_over:
                return
            self._add(event)

    def end(self) -> None:
        """Note that the stream has ended. The blank line after its last event may be missing."""
        if not self.is_over:
            for event in self._parser.feed(b"\n\n"):
                if event.data.strip() == _DONE or parse_json(event.data)[1] is None:  # else it was cut in the middle
                    self._add(event)

    def takes(self, body: bytes) -> bool:
        """Take in a whole body if it is an event stream, whatever its content type says; return whether it is one."""
        is_stream = body.lstrip(b"\xef\xbb\xbf\r\n").startswith(_STARTS)
        if is_stream:
            self.feed(body)
            self.end()
        return is_stream

    def reply(self, status: int, headers: Mapping[str, str], redact: Callable[[str], str], base_url: str) -> Reply:
        """Return the reply that the answer makes, or the error in it."""
        document, problem = self._failure or self._document()
        usage = self._fields.get("usage")
        if isinstance(document, dict) and usage is not None:  # paid for, whatever came after it
            document = {"usage": usage, **document}
        return _StreamedReply(
            status, headers, document, problem, self._failed_event, is_cut_off=not self._is_complete,
            redact=redact, base_url=base_url,
        )  # fmt: skip

    def _add(self, event: Event) -> None:
        text = event.data.strip()
        if text == _DONE:
            self.is_over = True
        elif event.type == "error":
            self._fail(_error_in(text), None, text)
        elif text and event.type != "ping":
            self._add_json(text)

    def _add_json(self, text: str) -> None:
        chunk, problem = parse_json(text)
        if problem is not None:
            self._fail(None, f"event {text[:40]!r}: {problem}", text)
        elif isinstance(chunk, dict) and not _has_error(chunk):
            try:
                self._add_chunk(chunk)
            except RecursionError as error:
                self._fail(None, f"RecursionError: {error}", text)
        else:
            self._fail(chunk, None, text)

    def _fail(self, document: Any, problem: str | None, text: str) -> None:
        self._failure, self._failed_event = (document, problem), text
        self.is_over = True

    def _add_chunk(self, chunk: dict[str, Any]) -> None:
        choices = chunk.pop("choices", None)
        chunk.pop("obfuscation", None)  # random padding of OpenAI's chunks
        if chunk != self._latest:  # most chunks differ only in their choices
            self._latest = chunk
            for name, value in chunk.items():
                if value is not None or name not in self._fields:
                    self._fields[name] = value
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._add_choice(choice)

    def _add_choice(self, part: dict[str, Any]) -> None:
        index = part.get("index", 0)
        index = index if isinstance(index, int) else 0
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = {"index": index, "message": {}, "finish_reason": None}
        for name, value in part.items():
            if name == "delta" or name == "message":
                if isinstance(value, dict) and value:
                    self._add_delta(choice, value)
            elif value in _EMPTY or name == "index":
                choice.setdefault(name, value)
            elif name == "logprobs" and isinstance(value, dict):
                choice[name] = joined_logprobs(choice.get(name), value)
            else:
                choice[name] = value

    def _add_delta(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        merge(choice["message"], delta)
        if self._on_begin is not None and any(value for name, value in delta.items() if name != "role"):
            on_begin, self._on_begin = self._on_begin, None
            on_begin()
        content = delta.get("content")
        if content and choice["index"] == 0 and self._on_text is not None:
            text = content if isinstance(content, str) else content_text(content)
            if text:
                self._on_text(text)

    def _document(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the JSON of the answer, or the reason why it cannot be read."""
        try:
            choices = [finished(self._choices[index]) for index in sorted(self._choices)]
        except RecursionError as error:
            return None, f"RecursionError: {error}"
        document = {**self._fields, "object": "chat.completion", "choices": choices}
        if document.get("usage", 0) is None:
            del document["usage"]
        return document, None


class _StreamedReply(Reply):
    """The reply that a streamed answer makes; it is judged like any other."""

    is_stream = True

    def __init__(
        self, status: int, headers: Mapping[str, str], document: Any, problem: str | None, event: str,
        *, is_cut_off: bool, redact: Callable[[str], str], base_url: str,
    ) -> None:  # fmt: skip
        super().__init__(status, headers, b"", redact, base_url)
        self._json, self._event = (document, problem), event
        self.is_cut_off = is_cut_off

    def _body_text(self, most: int) -> str:
        return (self._event or json.dumps(self.document, ensure_ascii=False))[:most]


def is_event_stream(headers: Mapping[str, str]) -> bool:
    """Whether a reply's body is an event stream."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == EVENT_STREAM


def level_below(level: int, error: CallError) -> int | None:
    """Return how else to ask for an answer if a server rejected how its stream was asked for; None if it did not."""
    if not isinstance(error, BadRequestError):
        return None
    text = f"{error.code} {error}"
    if level == WITH_USAGE and _NAMES_OPTIONS.search(text):
        return WITHOUT_USAGE
    return UNSTREAMED if _NAMES_OPTIONS.search(text) or _NAMES_STREAM.search(text) else None


def _error_in(text: str) -> dict[str, Any]:
    """Return the JSON of an event of the type "error"."""
    error, _ = parse_json(text)
    return error if isinstance(error, dict) and "error" in error else {"error": error or text}


def _has_error(chunk: dict[str, Any]) -> bool:
    has_choices = "choices" in chunk
    return (not has_choices or "error" in chunk) and find_error(chunk, has_answer=has_choices) is not None
