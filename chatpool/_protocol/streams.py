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

from .error_body import find_error
from .message import content_text
from .reply import Reply, parse_json
from .requests import UNSTREAMED, WITH_USAGE, WITHOUT_USAGE
from .server_sent_events import Event, EventParser

EVENT_STREAM = "text/event-stream"
_DONE = "[DONE]"
_STARTS = (b"data:", b"event:")  # of an event stream; no JSON begins like this
# Strings that are no pieces of a longer one. Some servers send them with every chunk.
_WHOLE = frozenset({"role", "type", "format", "status", "object", "mime_type"})
_NOT_IN_REPLIES = frozenset({"choices", "object", "obfuscation"})  # the last: random padding of OpenAI's chunks
_NAMES_OPTIONS = re.compile(r"stream_options|include_usage", re.IGNORECASE)
_NAMES_STREAM = re.compile(r"\bstream(ing|ed)?\b", re.IGNORECASE)
_EMPTY: tuple[Any, ...] = (None, {}, [])


class _Pieces(list[Any]):
    """Text that is still being written: its pieces, joined at the end. A content may also have parts among them."""

    def joined(self) -> Any:
        if all(isinstance(piece, str) for piece in self):
            return "".join(self)
        parts: list[Any] = []
        for piece in self:
            if isinstance(piece, str) and parts and isinstance(parts[-1], str):
                parts[-1] += piece
            elif piece != "":
                parts.append(piece)
        return parts


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
        self._choices: dict[Any, dict[str, Any]] = {}
        self._failure: tuple[Any, str | None] | None = None  # the JSON of an error, or why an event is not JSON
        self._failed_event = ""
        self.is_over = False  # nothing that follows counts

    @property
    def is_complete(self) -> bool:
        """Whether all of the answer has arrived: the server said so, or every choice has its finish reason."""
        choices = self._choices.values()
        return self.is_over or (bool(choices) and all(choice.get("finish_reason") for choice in choices))

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
        document, problem = self._failure or (self._document(), None)
        usage = self._fields.get("usage")
        if isinstance(document, dict) and usage is not None:  # paid for, whatever came after it
            document = {"usage": usage, **document}
        return _StreamedReply(
            status, headers, document, problem, self._failed_event, is_cut_off=not self.is_complete,
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
            self._add_chunk(chunk)
        else:
            self._fail(chunk, None, text)

    def _fail(self, document: Any, problem: str | None, text: str) -> None:
        self._failure, self._failed_event = (document, problem), text
        self.is_over = True

    def _add_chunk(self, chunk: dict[str, Any]) -> None:
        fields = self._fields
        for name, value in chunk.items():
            if name in _NOT_IN_REPLIES:
                continue
            if value is not None or name not in fields:
                fields[name] = value
        choices = chunk.get("choices")
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
            if name in ("delta", "message"):
                if isinstance(value, dict) and value:
                    self._add_delta(choice, value)
            elif name == "logprobs" and isinstance(value, dict):
                choice[name] = _longer(choice.get(name), value)
            elif value not in _EMPTY or name not in choice:
                choice[name] = value

    def _add_delta(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        _merge(choice["message"], delta)
        if self._on_begin is not None and any(value for name, value in delta.items() if name != "role"):
            on_begin, self._on_begin = self._on_begin, None
            on_begin()
        content = delta.get("content")
        if content and choice["index"] == 0 and self._on_text is not None:
            text = content if isinstance(content, str) else content_text(content)
            if text:
                self._on_text(text)

    def _document(self) -> dict[str, Any]:
        choices = [_finished(self._choices[index]) for index in sorted(self._choices)]
        document = {**self._fields, "object": "chat.completion", "choices": choices}
        if document.get("usage", 0) is None:
            del document["usage"]
        return document


class _StreamedReply(Reply):
    """The reply that a streamed answer makes; it is judged like any other."""

    is_stream = True

    def __init__(
        self, status: int, headers: Mapping[str, str], document: Any, problem: str | None, event: str,
        *, is_cut_off: bool, redact: Callable[[str], str], base_url: str,
    ) -> None:  # fmt: skip
        super().__init__(status, headers, event.encode("utf-8", "replace"), redact, base_url)
        self._json = document, problem
        self.is_cut_off = is_cut_off

    def _start(self) -> str:
        if not self.body:
            self.body = json.dumps(self.document, ensure_ascii=False).encode("utf-8", "replace")
        return super()._start()


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


def _longer(logprobs: Any, more: dict[str, Any]) -> dict[str, Any]:
    """Return log probabilities with those of the next tokens at the end of each list."""
    known: dict[str, Any] = logprobs if isinstance(logprobs, dict) else {}
    for name, value in more.items():
        if isinstance(value, list) and isinstance(known.get(name), list):
            known[name] += value
        elif value is not None or name not in known:
            known[name] = value
    return known


def _merge(known: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add the fields of a delta to a message, or to a part of one."""
    for name, value in delta.items():
        old = known.get(name)
        if isinstance(value, str) and name not in _WHOLE:
            if isinstance(old, _Pieces):
                _append(name, old, value)
            else:
                known[name] = _Pieces([value])
        elif value is None:
            known.setdefault(name, None)
        elif name == "content" and isinstance(value, (list, dict)):
            pieces = known[name] = old if isinstance(old, _Pieces) else _Pieces()
            pieces.extend(value if isinstance(value, list) else [value])
        elif isinstance(value, dict):
            known[name] = old if isinstance(old, dict) else {}
            _merge(known[name], value)
        elif isinstance(value, list):
            known[name] = old if isinstance(old, list) else []
            _merge_list(name, known[name], value)
        else:
            known[name] = value


def _append(name: str, pieces: _Pieces, value: str) -> None:
    """Add a piece of text. Ids and names come whole; some servers send them again with each chunk."""
    if name == "id":
        if not pieces.joined():
            pieces[:] = [value]
    elif name != "name" or value != pieces.joined():
        pieces.append(value)


def _merge_list(name: str, known: list[Any], parts: list[Any]) -> None:
    """Add the parts of a list: those with an index to the part that has it, others at the end."""
    for part in parts:
        is_call = name == "tool_calls"
        if not isinstance(part, dict) or not (is_call or isinstance(part.get("index"), int)):
            known.append(part)
            continue
        place = _place_of_call(known, part) if is_call else _place(known, part)
        if place is None:
            known.append({})
            place = -1
        _merge(known[place], part)


def _place(known: list[Any], part: dict[str, Any]) -> int | None:
    index = part["index"]
    return next((place for place, old in enumerate(known) if isinstance(old, dict) and old.get("index") == index), None)


def _place_of_call(known: list[dict[str, Any]], part: dict[str, Any]) -> int | None:
    """Return the place of the tool call that a part belongs to; None if it is a new one.

    Gemini sends calls without an index, and some gateways give index 0 to all of them: then a new id with a name
    begins a new call. vLLM once sent a new id with every piece, but the name only with the first.
    """
    call_id, function = part.get("id"), part.get("function")
    is_named = isinstance(function, dict) and bool(function.get("name"))
    latest = len(known) - 1 if known else None
    place = _place(known, part) if isinstance(part.get("index"), int) else latest
    if place is None or not call_id or not is_named:
        return place
    same = next((at for at, old in enumerate(known) if _text(old.get("id")) == call_id), None)
    return same if same is not None or _text(known[place].get("id")) else place


def _text(value: Any) -> Any:
    return value.joined() if isinstance(value, _Pieces) else value


def _finished(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice as it is without streaming."""
    whole: dict[str, Any] = _joined(choice)
    message = whole["message"]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict):
            call.pop("index", None)
    whole["message"] = {"role": "assistant", "content": None, **message} if message else {}
    return whole


def _joined(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return value.joined()
    if isinstance(value, dict):
        return {name: _joined(part) for name, part in value.items()}
    return [_joined(part) for part in value] if isinstance(value, list) else value
