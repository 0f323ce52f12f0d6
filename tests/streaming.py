"""Streams for tests, byte by byte: what a server sends for an answer that it writes piece by piece."""

from __future__ import annotations

import json
from typing import Any

from chatpool.testing import End, Raw

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(**fields: Any) -> bytes:
    """Return an event with a chunk of an answer."""
    return b"data: " + json.dumps({"id": "chatcmpl-1", "object": "chat.completion.chunk", **fields}).encode() + b"\n\n"


def delta(text: str | None, reason: str | None = None, **more: Any) -> bytes:
    """Return an event with a piece of text."""
    return chunk(choices=[{"index": 0, "delta": {"content": text, **more}, "finish_reason": reason}])


ROLE, END = delta("", role="assistant"), delta("", "stop")
LAST = [END, chunk(choices=[], usage=USAGE), DONE]
HELLO = [ROLE, delta("Hel"), delta("lo"), *LAST]


def named(part: bytes, name: str) -> bytes:
    """Return an event with another id: a reply that is the one before once more would not be believed."""
    return part.replace(b"chatcmpl-1", b"chatcmpl-" + name.encode())


def hello(name: str) -> list[bytes]:
    """Return the answer ``HELLO`` with another id."""
    return [named(part, name) for part in HELLO]


def coded(data: bytes) -> bytes:
    """Return a chunk of the chunked transfer coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream(*parts: bytes | float, end: End = End.KEEP) -> Raw:
    """Return a reply that sends each part in a chunk of its own; a number is a wait."""
    steps = [coded(part) if isinstance(part, bytes) else part for part in parts]
    return Raw([CHUNKED, *steps, *([b"0\r\n\r\n"] if end is End.KEEP else []), end])
