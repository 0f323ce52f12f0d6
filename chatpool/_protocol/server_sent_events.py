"""Server-sent events: bytes in, events out. Pure.

Follows "Interpreting an event stream" in the HTML standard (html.spec.whatwg.org/multipage/server-sent-events.html),
without ``id`` and ``retry``, which are for reconnecting.
"""

from __future__ import annotations

from typing import NamedTuple

_MARK = b"\xef\xbb\xbf"  # byte order mark


class Event(NamedTuple):
    """An event. ``type``: "message", unless the server names another."""

    type: str
    data: str


class EventParser:
    """Takes a stream in pieces of any size, and returns the events that each piece completes."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # the pieces of a line that has no end yet
        self._data: list[bytes] = []  # the lines of the data of an event that has no end yet
        self._type = b""
        self._has_begun = False  # a byte order mark may precede the first line only
        self._ends_in_cr = False  # a line feed that comes next belongs to it

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that end in this piece. Bytes that are not UTF-8 become U+FFFD."""
        if not self._has_begun:
            piece = self._without_mark(piece)
        if self._ends_in_cr or b"\r" in piece:
            piece = self._with_line_feeds(piece)
        head, *lines = piece.split(b"\n")
        self._line.append(head)
        if not lines:
            return []
        first, self._line = b"".join(self._line), [lines.pop()]
        events: list[Event] = []
        for line in (first, *lines):
            if line:
                self._read(line)
            elif self._data:
                events.append(Event((self._type or b"message").decode("utf-8", "replace"), self._take_data()))
            else:
                self._type = b""
        return events

    def _read(self, line: bytes) -> None:
        """Read a line. A comment begins with a colon: its field has no name."""
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value[1:] if value[:1] == b" " else value)
        elif field == b"event":
            self._type = value[1:] if value[:1] == b" " else value

    def _take_data(self) -> str:
        data, self._data, self._type = b"\n".join(self._data), [], b""
        return data.decode("utf-8", "replace")

    def _without_mark(self, piece: bytes) -> bytes:
        piece = b"".join([*self._line, piece])
        self._line = []
        if len(piece) < len(_MARK) and _MARK.startswith(piece):
            self._line = [piece]  # it may be the first bytes of one
            return b""
        self._has_begun = True
        return piece[len(_MARK) :] if piece.startswith(_MARK) else piece

    def _with_line_feeds(self, piece: bytes) -> bytes:
        """Have all lines end in a line feed: a carriage return, or both together, are the same."""
        if self._ends_in_cr and piece[:1] == b"\n":
            piece = piece[1:]
            self._ends_in_cr = False
        if piece:
            self._ends_in_cr = piece[-1:] == b"\r"
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
