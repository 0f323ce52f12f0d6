"""Reads a JSON array, or JSON values one after the other, in any layout and in flat memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TextIO

_PIECE = 2**16  # characters
_NEAR_END = 16  # characters; an error so close to the end of what was read may be that of an incomplete value
_SPACE = " \t\r\n"
Document = tuple[int, Any, "str | None"]  # a line's number, and its value or the problem with it


def read_documents(text: TextIO) -> Iterator[Document]:
    """Yield each value with the number of its first line. An error ends the reading.

    An array is read element by element, unless it is a list of messages, which is one prompt.
    """
    scanner = _Scanner(text)
    try:
        if scanner.peek() == "[" and not _is_prompt(scanner):
            yield from _elements(scanner)
            if scanner.peek():
                yield scanner.line, None, "something follows the end of the array; a file has one array, or JSON lines"
            return
        while scanner.peek():
            line = scanner.line
            yield line, scanner.value(), None
    except json.JSONDecodeError as error:
        yield scanner.line_at(error.pos), None, f"not valid JSON: {error.msg}"
    except (RecursionError, ValueError):
        yield scanner.line, None, "not valid JSON: nested too deep, or with too long a number"


def is_message(value: Any) -> bool:
    """Whether a JSON value is a message, and not a row."""
    return isinstance(value, dict) and "role" in value and not {"prompt", "messages", "body"} & value.keys()


def _is_prompt(scanner: _Scanner) -> bool:
    """Whether an array is a list of messages, by its first element; leaves the scanner where it is."""
    start = scanner.mark()
    scanner.skip()
    if scanner.peek() != "{":
        scanner.reset(start)
        return False
    found = is_message(scanner.value())
    scanner.reset(start)
    return found


def _elements(scanner: _Scanner) -> Iterator[Document]:
    scanner.skip()
    if scanner.peek() == "]":
        scanner.skip()
        return
    while True:
        scanner.peek()
        line = scanner.line
        yield line, scanner.value(), None
        following = scanner.peek()
        if following not in (",", "]"):
            raise json.JSONDecodeError("Expecting ',' or ']'", scanner.buffer, scanner.position)
        scanner.skip()
        if following == "]":
            return


class _Scanner:
    """Decodes values from a text that is read piece by piece."""

    def __init__(self, text: TextIO) -> None:
        self._text, self._decoder = text, json.JSONDecoder()
        self._is_over = False
        self.buffer, self.position, self.line = "", 0, 1
        self._marked = False

    def peek(self) -> str:
        """Skip white space and return the next character; empty at the end."""
        while True:
            rest = self.buffer[self.position : self.position + 1]
            if rest and rest not in _SPACE:
                return rest
            if rest:
                self._advance(self.position + 1)
            elif not self._read():
                return ""

    def skip(self) -> None:
        """Skip one character."""
        self._advance(self.position + 1)

    def value(self) -> Any:
        """Decode the value that begins here; raise JSONDecodeError if it is not valid."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.buffer) - _NEAR_END or error.msg.startswith("Unterminated string")
                if not is_cut or not self._read():
                    raise
                continue
            if end == len(self.buffer) and self._read():  # the rest of a number may follow
                continue
            self._advance(end)
            return value

    def mark(self) -> tuple[int, int]:
        """Return the position, and keep what follows it until ``reset``."""
        self._marked = True
        return self.position, self.line

    def reset(self, mark: tuple[int, int]) -> None:
        """Return to a marked position."""
        self._marked = False
        self.position, self.line = mark

    def line_at(self, position: int) -> int:
        """Return the number of the line at a position of the buffer."""
        return self.line + self.buffer.count("\n", self.position, position)

    def _advance(self, end: int) -> None:
        self.line = self.line_at(end)
        self.position = end

    def _read(self) -> bool:
        """Read more; return whether there was any. As much again as is unread, so that a large value costs little."""
        if self._is_over:
            return False
        if not self._marked:
            self.buffer, self.position = self.buffer[self.position :], 0
        piece = self._text.read(max(_PIECE, len(self.buffer)))
        self._is_over = not piece
        self.buffer += piece
        return bool(piece)
