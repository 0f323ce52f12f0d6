"""Replies of the fake server. A reply is a list of steps; ``Reply`` and ``Raw`` make them."""

from __future__ import annotations

import enum
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Union

from chatpool._protocol.schemas import REJECTED


class End(enum.Enum):
    """How a reply ends."""

    KEEP = "keep the connection open for the next request"
    CLOSE = "close the connection"
    RESET = "reset the connection (RST)"
    STALL = "send nothing more, until the client disconnects or the server is closed"


Step = Union[bytes, float, End]


@dataclass(frozen=True)
class Reply:
    """One reply: a completion with ``text``, or an error with ``status``.

    ``text``: the answer; default: the prompt. ``status``: any other than 200 makes the body an error. ``code``: the
    error's code. ``headers``: additional headers. ``delay``: seconds before the first byte. ``body``: replaces the
    body. ``finish_reason``, ``usage``: of the completion. ``fault``: one of

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

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault not in _FAULTS:
            raise ValueError(f"fault must be one of {', '.join(sorted(_FAULTS))}, not {self.fault!r}")

    def steps(self, request: Request) -> list[Step]:
        """Return the steps."""
        body = self._body(request)
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        fields["x-request-id"] = request.id
        fields.update(self.headers)
        head = _head(self.status, fields)
        steps: list[Step] = [self.delay] if self.delay else []
        if self.fault is not None:
            return steps + _FAULTS[self.fault](head, body)
        return [*steps, head + body, End.KEEP]

    def _body(self, request: Request) -> bytes:
        body = self.body
        if body is None:
            body = self._completion(request) if self.status == 200 else self._error()
        if isinstance(body, bytes):
            return body
        return (body if isinstance(body, str) else json.dumps(body)).encode()

    def _completion(self, request: Request) -> dict[str, Any]:
        text = request.prompt if self.text is None else self.text
        tokens_in, tokens_out = len(request.prompt.split()), len(text.split())
        return {
            "id": f"chatcmpl-{request.id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.body.get("model", "fake"),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": self.finish_reason,
                }
            ],
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


@dataclass(frozen=True)
class Request:
    """A request that the server received. ``headers``: with lower-case names. ``connection``: its number, from 0."""

    id: str
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    connection: int
    time: float

    @property
    def prompt(self) -> str:
        """The content of the last message, or the ``input`` or ``prompt`` of another endpoint.

        Without the two messages with which chatpool asks again after a rejected answer.
        """
        messages = self.body.get("messages")
        if isinstance(messages, list) and len(messages) > 2 and _asks_again(messages[-1]):
            messages = messages[:-2]
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            content = messages[-1].get("content")
            return content if isinstance(content, str) else json.dumps(content)
        return json.dumps(self.body.get("input", self.body.get("prompt", "")))


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


def _head(status: int, fields: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Fake", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
