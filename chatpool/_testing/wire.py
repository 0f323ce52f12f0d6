"""Steps of a reply: what the fake server does on a connection, one after another."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Union


class End(enum.Enum):
    """How a reply ends."""

    KEEP = "keep the connection open for the next request"
    CLOSE = "close the connection"
    RESET = "reset the connection (RST)"
    STALL = "send nothing more, until the client disconnects or the server is closed"


Step = Union[bytes, float, End]


def head(status: int, fields: Mapping[str, str]) -> bytes:
    """Return the status line and the headers."""
    lines = [f"HTTP/1.1 {status} Fake", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def joined(steps: Iterable[Step]) -> Iterator[Step]:
    """Join the bytes between two waits, so that they are sent together."""
    pending: list[bytes] = []
    for step in steps:
        if isinstance(step, bytes):
            pending.append(step)
            continue
        if pending:
            yield b"".join(pending)
            pending.clear()
        yield step
    if pending:
        yield b"".join(pending)
