"""Replies of the fake server. A reply is a list of steps; ``Reply`` and ``Raw`` make them."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from typing import Any, Union

from chatpool._protocol.schemas import REJECTED

from .chunks import chunk_events, is_completion
from .endpoints import embeddings
from .responses import is_response, response, response_events
from .streams import Event, Stream
from .text_completions import is_text_completion, text_completion, text_events
from .wire import End, Step, head

_POLL = 0.005  # seconds between two looks at a request that a test expects to be cancelled


@dataclass(frozen=True)
class Reply:
    """One reply: a completion with ``text``, or an error with ``status``.

    ``text``: the answer; default: the prompt. ``status``: any other than 200 makes the body an error. ``code``: the
    error's code. ``headers``: additional headers. ``delay``: seconds before the first byte. ``body``: replaces the
    body. ``message``: additional fields of the completion's message, such as ``tool_calls`` or ``reasoning_content``.
    ``finish_reason``, ``usage``: of the completion. ``stream``: how a request for a stream is answered, a ``Stream``;
    False: as if it had not asked for one; default: as the server is set. ``fault``: one of

    ``"close"``, ``"reset"``: send nothing, and close or reset the connection; ``"truncate"``, ``"reset_midway"``,
    ``"stall_midway"``: close, reset or stall after half the body; ``"stall"``: send nothing at all; ``"drip"``: send
    one byte of the body every 0.1 s; ``"drip_headers"``: likewise from the first byte of the headers.
    """

    text: str | None = None
    status: int = 200
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    body: bytes | str | dict[str, Any] | list[Any] | None = None
    finish_reason: str = "stop"
    usage: Mapping[str, int] | None = None
    fault: str | None = None
    message: Mapping[str, Any] = field(default_factory=dict)
    stream: Stream | bool | None = None

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault not in _FAULTS:
            raise ValueError(f"fault must be one of {', '.join(sorted(_FAULTS))}, not {self.fault!r}")
        if self.fault is not None and isinstance(self.stream, Stream):
            raise ValueError("give fault or stream; a Stream has its own ways to break off")

    def steps(self, request: Request) -> Iterable[Step]:
        """Return the steps."""
        document = self._document(request)
        if request.body.get("stream") and self.stream is not False:
            events = _events(document, request.body)
            if events is not None:
                return self._streamed(request, events)
        body = _encode(document)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        return self._played(self._head(request, fields), body)

    def _streamed(self, request: Request, events: Iterable[Event]) -> Iterable[Step]:
        stream = self.stream if isinstance(self.stream, Stream) else Stream()
        start = self._head(request, stream.headers())
        if self.fault is None:
            return chain([self.delay] if self.delay else [], stream.steps(start, events))
        body = b"".join(step for step in stream.steps(b"", events) if isinstance(step, bytes))
        return self._played(start, body)

    def _head(self, request: Request, fields: Mapping[str, str]) -> bytes:
        return head(self.status, {**fields, "x-request-id": request.id, **self.headers})

    def _played(self, start: bytes, body: bytes) -> list[Step]:
        delay: list[Step] = [self.delay] if self.delay else []
        if self.fault is not None:
            return delay + _FAULTS[self.fault](start, body)
        return [*delay, start + body, End.KEEP]

    def _document(self, request: Request) -> Any:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return self._error()
        if request.endpoint == "/embeddings":
            return embeddings(request.body, self.usage)
        completion = self._completion(request)
        if request.endpoint == "/responses":
            return response(completion, request.body)
        is_chat = request.path.partition("?")[0].endswith("/chat/completions")
        return completion if is_chat else text_completion(completion)

    def _completion(self, request: Request) -> dict[str, Any]:
        text = request.prompt if self.text is None else self.text
        tokens_in, tokens_out = len(request.prompt.split()), len(text.split())
        message = {"role": "assistant", "content": text, **self.message}
        return {
            "id": f"chatcmpl-{request.id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.body.get("model", "fake"),
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            "usage": self.usage
            or {
                "prompt_tokens": tokens_in,
                "completion_tokens": tokens_out,
                "total_tokens": tokens_in + tokens_out,
            },
        }

    def _error(self) -> dict[str, Any]:
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Error"
        return {"error": {"message": f"fake server: {phrase}", "type": "fake_error", "code": self.code}}


@dataclass(frozen=True)
class Raw:
    """A reply as a list of steps: bytes to send, seconds to wait, and an ``End`` (default: CLOSE)."""

    script: Sequence[Step]

    def steps(self, request: Request) -> list[Step]:
        """Return the steps."""
        return list(self.script)


AnyReply = Union[Reply, Raw]
Handler = Callable[["Request"], AnyReply]


@dataclass
class Request:
    """A request that the server received. ``headers``: with lower-case names. ``connection``: its number, from 0.

    ``cancelled``: the client disconnected before the whole reply was sent.
    """

    id: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    connection: int
    time: float
    method: str = "POST"
    cancelled: bool = field(default=False, compare=False)

    def wait_until_cancelled(self, seconds: float = 5.0) -> bool:
        """Wait until the server notices that the client has disconnected; return whether it did within ``seconds``."""
        end = time.monotonic() + seconds
        while not self.cancelled and time.monotonic() < end:
            time.sleep(_POLL)
        return self.cancelled

    @property
    def endpoint(self) -> str:
        """The last part of the path, such as ``"/embeddings"``."""
        return "/" + self.path.partition("?")[0].rpartition("/")[2]

    @property
    def prompt(self) -> str:
        """The content of the last message, or the ``input`` or ``prompt`` of another endpoint; JSON if it is not text.

        Without the two messages with which chatpool asks again after a rejected answer.
        """
        asked = self.body.get("messages", self.body.get("input", self.body.get("prompt", "")))
        if isinstance(asked, list) and len(asked) > 2 and _asks_again(asked[-1]):
            asked = asked[:-2]
        if isinstance(asked, list) and asked and isinstance(asked[-1], dict):
            asked = _text_of(asked[-1])
        return asked if isinstance(asked, str) else json.dumps(asked)


def chaos(error_rate: float, *, seed: int = 0) -> Handler:
    """Return a handler that fails a share of the requests with a 500: at random, the same ones for the same seed."""
    rng, lock = random.Random(seed), threading.Lock()

    def reply(request: Request) -> AnyReply:
        with lock:
            fails = rng.random() < error_rate
        return Reply(status=500) if fails else Reply()

    return reply


def _asks_again(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    return isinstance(content, str) and content.startswith(REJECTED)


def _text_of(item: Mapping[str, Any]) -> Any:
    """Return the content of a message, or the text of an input item of the Responses API; else what it has in place."""
    content = item.get("content", item.get("output"))
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "input_text" for part in content
    ):
        return "".join(str(part.get("text")) for part in content)
    return content


def _drip(data: bytes) -> list[Step]:
    return [step for byte in data for step in (bytes([byte]), 0.1)]


_FAULTS: dict[str, Callable[[bytes, bytes], list[Step]]] = {
    "close": lambda head, body: [End.CLOSE],
    "reset": lambda head, body: [End.RESET],
    "truncate": lambda head, body: [head + body[: len(body) // 2], End.CLOSE],
    "reset_midway": lambda head, body: [head + body[: len(body) // 2], 0.05, End.RESET],
    "stall": lambda head, body: [End.STALL],
    "stall_midway": lambda head, body: [head + body[: len(body) // 2], End.STALL],
    "drip": lambda head, body: [head, *_drip(body), End.KEEP],
    "drip_headers": lambda head, body: [*_drip(head + body), End.KEEP],
}


def _events(document: Any, body: Mapping[str, Any]) -> Iterable[Event] | None:
    """Return the events that stream a document; None if it is not one that streams."""
    if is_response(document):
        return response_events(document)
    options = body.get("stream_options")
    include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    if is_text_completion(document):
        return text_events(document, include_usage)
    return chunk_events(document, include_usage) if is_completion(document) else None


def _encode(document: Any) -> bytes:
    if isinstance(document, bytes):
        return document
    return (document if isinstance(document, str) else json.dumps(document)).encode()
