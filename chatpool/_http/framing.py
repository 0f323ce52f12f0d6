"""HTTP/1.1 replies as http.client reads them, but bounded, and lenient where a server's slip does no harm.

How much of a malformed or hostile reply http.client and urllib3 accept differs from version to version. So heads,
chunks and gzip are read here, for every version alike, and urllib3 gets a plain body that ends where its stream ends.
"""

from __future__ import annotations

import io
import re
import time
import zlib
from collections.abc import Iterator
from functools import cache
from http.client import HTTPException, HTTPResponse, IncompleteRead, parse_headers
from typing import Any

from .cancel import CancelScope, current

MAX_BODY = 64 * 2**20  # bytes of a reply's body, decompressed
_MAX_LINE = 64 * 2**10  # bytes of a line: http.client's limit for those of a head, here also for those between chunks
_MAX_LINES = 100  # trailers, or malformed header lines: http.client's limit for headers
_MAX_INTERIM = 100  # interim replies before the real one
_PIECE = 64 * 2**10  # bytes read at a time
# Texts, compiled when they are first used: most replies take the fast path.
_HEADER = rb"(?s)([!-9;-~]+)[ \t]*:(.*)"
_CHUNK_SIZE = rb"[0-9A-Fa-f]{1,15}"
_END_OF_HEAD = (b"\r\n", b"\n", b"")


class MalformedReply(HTTPException):
    """The framing breaks the rules, or has no end."""


class BadEncoding(HTTPException):
    """The body is compressed in a way that was not asked for, or not as it claims to be."""


class BodyTooLarge(HTTPException):
    """The body is larger than ``MAX_BODY``."""


class Response(HTTPResponse):
    """A reply. ``received``: its first bytes, if they were read from the socket already."""

    def __init__(self, sock: Any, *args: Any, received: bytes = b"", **kwargs: Any) -> None:
        super().__init__(_Replay(sock, received), *args, **kwargs)  # type: ignore[arg-type]  # it makes a file of it
        self._head = self.fp = _Head(self.fp)  # type: ignore[assignment]  # as far as a head needs it
        self.body: Body | None = None

    def _read_status(self) -> Any:
        """Skip interim replies. http.client skips only 100, without end, and a 103 left in place would pass for the
        answer, and the answer then for that of the connection's next request."""
        for _ in range(_MAX_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
            self._head.has_status = True
            if status == 101 or not 100 <= status <= 199:
                return version, status, reason
            parse_headers(self.fp)
            self._head.has_status = False
        raise MalformedReply("interim replies without end")

    def begin(self) -> None:
        """Read the head."""
        if self.body is not None:
            return
        super().begin()
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if self.chunked or encoding in ("gzip", "x-gzip"):  # undone here, so hidden from urllib3
            for name in ("transfer-encoding", "content-length", "content-encoding"):
                del self.headers[name]
        self.will_close = self.will_close or self._head.is_malformed
        self.fp = self.body = Body(self._head.file, None if self.chunked else self.length, self.chunked, encoding)  # type: ignore[assignment]
        self.chunked, self.length = False, None

    @property
    def is_last(self) -> bool:
        """Whether the connection cannot be used again."""
        return self.body is None or self.body.has_rest

    def summary(self) -> tuple[int, int, bool, bytes] | None:
        """Return status, checksum, whether the body holds an id, and head; None if it was not read to its end."""
        if self.body is None or not self.body.is_read:
            return None
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return self.status, self.body.checksum, self.body.has_id, head.encode("latin-1", "replace")


class Body(io.RawIOBase):
    """A reply's body, without its chunks and gzip. ``length``: None, if it ends with the connection or in chunks."""

    def __init__(self, file: io.BufferedReader, length: int | None, is_chunked: bool, encoding: str) -> None:
        self._file = file
        self._pieces = _decode(_chunks(file) if is_chunked else _sized(file, length), encoding)
        self._rest = b""
        self._size = 0
        self.checksum, self.has_id = 0, False
        self.is_read = False  # to its end
        self.has_rest = False  # there is more behind it

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is."""
        if not self._rest:
            self._rest = self._next_piece()
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def read1(self, size: int = -1) -> bytes:
        """Likewise."""
        return self.read(size) or b""

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives. urllib3 2 would wait until it has as much as it was asked for."""
        while piece := self._next_piece():
            yield piece

    def drain(self, seconds: float) -> bool:
        """Read to the end if it comes within so many seconds: only then can the connection be used again."""
        ends = time.monotonic() + seconds
        if not self.is_read:
            self._file.raw.set_timeout(seconds)  # type: ignore[attr-defined]  # it is a _Replay
        while not self.is_read and time.monotonic() < ends:
            self._next_piece()
        return self.is_read

    def _next_piece(self) -> bytes:
        piece = next(self._pieces, b"")
        if not piece:
            self.is_read, self.has_rest = True, _has_more(self._file)
        self.checksum, self.has_id = zlib.crc32(piece, self.checksum), self.has_id or b'"id"' in piece
        self._size += len(piece)
        if self._size > MAX_BODY:
            raise BodyTooLarge(f"more than {MAX_BODY // 2**20} MiB")
        return piece

    def close(self) -> None:
        """Let go of the socket."""
        if not self.closed:
            self._file.close()
        super().close()


def _sized(file: io.BufferedReader, length: int | None) -> Iterator[bytes]:
    while length is None or length > 0:
        piece = file.read1(_PIECE if length is None else min(length, _PIECE))
        if not piece and length is None:
            return
        if not piece:
            raise IncompleteRead(b"", length)
        length = None if length is None else length - len(piece)
        yield piece


def _chunks(file: io.BufferedReader) -> Iterator[bytes]:
    """Undo the chunked transfer coding (RFC 9112, section 7.1). Extensions and trailers are bounded and dropped."""
    while True:
        if small := _small_chunks(file):
            yield small
        size = _chunk_size(_line(file))
        if not size:
            break
        yield from _sized(file, size)
        if _line(file).strip():
            raise MalformedReply("a chunk is longer than its size")
    for _ in range(_MAX_LINES):
        if file.readline(_MAX_LINE) in _END_OF_HEAD:  # some servers close without a last line
            return
    raise MalformedReply("trailers without end")


def _small_chunks(file: io.BufferedReader) -> bytes:
    """Return the data of the simple chunks that were received to their end: of a stream, one for each word."""
    received, place, pieces = file.peek(1), 0, []
    while (found := _simple_chunk().match(received, place)) is not None:
        start = found.end()
        end = start + int(found[1], 16)
        if start == end or received[end : end + 2] != b"\r\n":
            break
        pieces.append(received[start:end])
        place = end + 2
    file.read(place)
    return b"".join(pieces)


@cache
def _simple_chunk() -> re.Pattern[bytes]:
    return re.compile(rb"(%s)\r\n" % _CHUNK_SIZE)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not re.fullmatch(_CHUNK_SIZE, digits):  # int() would take "-5", "+5", "0x5" and "1_0"
        raise MalformedReply(f"no chunk size: {digits[:20]!r}")
    return int(digits, 16)


def _line(file: io.BufferedReader) -> bytes:
    line = file.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        raise IncompleteRead(b"") if len(line) < _MAX_LINE else MalformedReply("a line without end")
    return line


def _decode(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    if encoding in ("", "identity"):
        yield from pieces
    elif encoding in ("gzip", "x-gzip"):
        yield from _gunzip(pieces)
    else:  # refused before a byte of it is unpacked
        raise BadEncoding(f"its encoding is {encoding[:40]!r}, which was not asked for")


def _gunzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress, a piece at a time. What follows the last member is dropped, as by gzip itself."""
    member, is_first = zlib.decompressobj(31), True
    for piece in pieces:
        while piece:
            try:
                text = member.decompress(piece, _PIECE)
            except zlib.error as error:
                if is_first:
                    raise BadEncoding(f"it is not gzip: {error}") from None
                break
            if text:
                yield text
            piece = member.unconsumed_tail
            while len(text) == _PIECE and not piece and (text := member.decompress(b"", _PIECE)):
                yield text
            if member.eof:
                piece, member, is_first = member.unused_data, zlib.decompressobj(31), False


class _Head:
    """The lines of a head, without those that are no headers. At the first of them http.client would end the head."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.has_status = self.is_malformed = False
        self._is_dropping = True  # also the lines that continue the last one (RFC 9112, section 5.2)

    def readline(self, limit: int = -1) -> bytes:
        """Read a line."""
        for _ in range(_MAX_LINES):
            line: bytes = self.file.readline(limit)
            if not self.has_status or line in _END_OF_HEAD:
                return line
            header = re.match(_HEADER, line)
            if line[:1] not in b" \t":
                self._is_dropping = header is None
            if not self._is_dropping:
                return b"%s:%s" % header.groups() if header and line[:1] not in b" \t" else line
            self.is_malformed = True
        raise MalformedReply("malformed header lines without end")

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Let go of the socket."""
        self.file.close()


class _Replay(io.RawIOBase):
    """A socket's stream, with what was received put back in front."""

    def __init__(self, sock: Any, received: bytes) -> None:
        self._file, self._received = sock.makefile("rb", buffering=0), received
        self.set_timeout = sock.settimeout
        self.is_stopped = False  # nothing more is read from the socket

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the stream, for http.client, which takes this for the socket."""
        return io.BufferedReader(self, _PIECE)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what was put back, and then from the socket."""
        if not self._received:
            return 0 if self.is_stopped else self._receive(buffer)
        count = min(len(buffer), len(self._received))
        buffer[:count], self._received = self._received[:count], self._received[count:]
        return count

    def _receive(self, buffer: Any) -> int | None:
        count: int | None = self._file.readinto(buffer)
        scope: CancelScope | None = getattr(current, "scope", None)
        if scope is not None:
            scope.note_bytes()
        return count

    def close(self) -> None:
        """Let go of the socket."""
        if not self.closed:
            self._file.close()
        super().close()


def _has_more(file: io.BufferedReader) -> bool:
    """Whether more was received than was read."""
    stream: Any = file.raw
    stream.is_stopped = True
    return bool(file.peek(1))
