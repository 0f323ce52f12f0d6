"""Streamed replies of the fake server: paced, and broken off after as many events as a test wants."""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .wire import End, Step, joined

ERROR: Mapping[str, Any] = {
    "error": {"message": "fake server: The stream failed.", "type": "server_error", "code": None}
}
_BREAKS = {"stall_after": End.STALL, "cut_after": End.CLOSE, "reset_after": End.RESET, "error_after": None}


class Event(NamedTuple):
    """A server-sent event. ``kind``: ``"start"``, ``"piece"``, ``"finish"``, ``"usage"``, ``"done"`` or ``"error"``."""

    data: str
    kind: str
    name: str | None = None

    def encode(self, newline: str = "\n") -> bytes:
        """Return the event as the WHATWG's HTML standard, section 9.2, defines it."""
        lines = [f"event: {self.name}"] if self.name else []
        lines += [f"data: {line}" for line in self.data.split("\n")]
        # A half of a surrogate pair has no UTF-8; its escape is the same in Python and in JSON.
        return (newline.join(lines) + newline * 2).encode("utf-8", "backslashreplace")


DONE = Event("[DONE]", "done")


def json_event(document: Mapping[str, Any], kind: str, name: str | None = None) -> Event:
    """Return an event with JSON; text outside ASCII is sent as it is."""
    return Event(json.dumps(document, ensure_ascii=False, separators=(",", ":")), kind, name)


@dataclass(frozen=True)
class Stream:
    """How the fake server streams a reply: paced, or broken. The default is at once and complete.

    ``tokens_per_second``: the pace of the pieces; a piece is about a word. ``first_token``: seconds from the headers to
    the first event. ``comments_every``: seconds between two comments (``: keep-alive``), the first of which comes with
    the headers. The stream breaks off after as many events, of which the first has only the role, with one of

    ``stall_after``: nothing more is sent, but for comments; ``cut_after``: the connection is closed;
    ``reset_after``: it is reset; ``error_after``: an event with ``error`` is the last one.

    ``finish=False``: no finish reason (of the Responses API: no last event); ``usage=False``: no chunk with usage, even
    if the request asks for it; ``done=False``: no ``[DONE]``. ``newline``: the end of a line: LF, CR LF or CR.
    ``gzip``: compress, whatever the client accepts.
    ``chunked=False``: without chunks, so the end of the connection is the end of the reply.
    """

    tokens_per_second: float | None = None
    first_token: float = 0.0
    comments_every: float | None = None
    stall_after: int | None = None
    cut_after: int | None = None
    reset_after: int | None = None
    error_after: int | None = None
    error: Mapping[str, Any] = field(default_factory=lambda: ERROR)
    finish: bool = True
    usage: bool = True
    done: bool = True
    newline: str = "\n"
    gzip: bool = False
    chunked: bool = True

    def __post_init__(self) -> None:
        if len(breaks := [name for name in _BREAKS if getattr(self, name) is not None]) > 1:
            raise ValueError(f"a stream breaks off once: give one of {', '.join(breaks)}")
        for name in ("tokens_per_second", "comments_every"):
            pace = getattr(self, name)
            if pace is not None and not 0 < pace < math.inf:
                raise ValueError(f"{name} must be more than 0, not {pace!r}")

    def headers(self) -> dict[str, str]:
        """Return the headers of the reply."""
        fields = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        fields.update({"Transfer-Encoding": "chunked"} if self.chunked else {"Connection": "close"})
        if self.gzip:
            fields["Content-Encoding"] = "gzip"
        return fields

    def steps(self, head: bytes, events: Iterable[Event]) -> Iterator[Step]:
        """Return the steps, which are made as they are played: their waits are until moments on a clock."""
        return joined(self._steps(head, events))

    def _steps(self, head: bytes, events: Iterable[Event]) -> Iterator[Step]:
        yield head
        body = _Body(self.gzip, self.chunked)
        sent, end = self._break_off([event for event in events if event.kind not in self._left_out()])
        for step in self._timed(sent, end):
            yield body.encode(step) if isinstance(step, bytes) else step
        if end is End.KEEP:
            yield body.end()
        yield end if self.chunked or end is not End.KEEP else End.CLOSE

    def _left_out(self) -> list[str]:
        return [kind for kind in ("finish", "usage", "done") if not getattr(self, kind)]

    def _break_off(self, events: list[Event]) -> tuple[list[Event], End]:
        for name, end in _BREAKS.items():
            count = getattr(self, name)
            if count is not None and count <= len(events):
                return (events[:count], end) if end else ([*events[:count], self._error_event(events, count)], End.KEEP)
        return events, End.KEEP

    def _error_event(self, events: Sequence[Event], count: int) -> Event:
        """Return the event of the error. One of the Responses API has a name, a number, and the error's own fields."""
        if not events[0].name:
            return json_event(self.error, "error")
        error = self.error.get("error", self.error)
        code = error.get("code") or error.get("type")
        fields = {"code": code, "message": error.get("message"), "param": error.get("param")}
        return json_event({"type": "error", **fields, "sequence_number": count}, "error", "error")

    def _timed(self, events: Sequence[Event], end: End) -> Iterator[Step]:
        clock, due, pieces = _Clock(self), self.first_token, 0
        for event in events:
            if event.kind == "piece":
                due += 1 / self.tokens_per_second if self.tokens_per_second and pieces else 0
                pieces += 1
            yield from clock.wait_until(due)
            yield event.encode(self.newline)
        if end is End.STALL and self.comments_every:
            yield from clock.wait_until(math.inf)


class _Clock:
    """Waits until moments, in seconds from the headers, and sends the comments that are due until then."""

    def __init__(self, stream: Stream) -> None:
        self._begin = time.monotonic()
        self._comment = f": keep-alive{stream.newline * 2}".encode()
        self._comments_every = stream.comments_every
        self._next_comment = 0.0

    def wait_until(self, moment: float) -> Iterator[Step]:
        while self._comments_every and self._next_comment <= moment:
            yield from self._pause(self._next_comment)
            yield self._comment
            self._next_comment += self._comments_every
        yield from self._pause(moment)

    def _pause(self, moment: float) -> Iterator[Step]:
        left = self._begin + moment - time.monotonic()
        if left > 0:
            yield left


class _Body:
    """Puts data into chunks (RFC 9112, section 7.1), and compresses it first if that is wanted."""

    def __init__(self, gzip: bool, chunked: bool) -> None:
        self._compressor = zlib.compressobj(wbits=31) if gzip else None  # 31: with the header of gzip
        self._chunked = chunked

    def encode(self, data: bytes) -> bytes:
        if self._compressor:
            data = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return self._frame(data)

    def end(self) -> bytes:
        rest = self._frame(self._compressor.flush()) if self._compressor else b""
        return rest + (b"0\r\n\r\n" if self._chunked else b"")

    def _frame(self, data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data
