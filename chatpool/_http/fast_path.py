"""The plain case of HTTP/1.1, in one send and mostly one receive. Whatever is not plain goes the libraries' way.

Of a call's CPU time, http.client's and urllib3's handling of headers is the largest part. Nearly all calls are alike: a
short request, and a reply with a status, simple headers and a Content-Length. Those are handled here. Any other reply,
interim, chunked, compressed, large, torn or odd, is handed to http.client with all its bytes, as if nothing had been
read of it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from http.client import HTTPConnection, RemoteDisconnected
from types import FunctionType
from typing import Any, Callable

import urllib3
from requests.structures import CaseInsensitiveDict
from urllib3.connectionpool import HTTPConnectionPool

_LARGEST = 2**20  # bytes of a plain body
_LARGEST_HEAD = 2**16
_PIECE = 2**16  # bytes received at a time
_ONE_SEND = 2**16  # bytes up to which a body is sent together with the head
_HEAD = re.compile(rb"HTTP/1\.1 ([2-9]\d\d)(?: ([^\r\n]*))?\r\n((?:[!#-'*+\-.^-z|~0-9A-Z]+:[^\r\n]*\r\n)+)\r\n")
_NOT_PLAIN = re.compile(rb"^(?:transfer-encoding|content-encoding|upgrade):", re.IGNORECASE | re.MULTILINE)
_LENGTH = re.compile(rb"^content-length:[ \t]*([^\r]*)", re.IGNORECASE | re.MULTILINE)
_CLOSES = re.compile(rb"^connection:[^\r]*close", re.IGNORECASE | re.MULTILINE)
_BODILESS = (204, 304)

# Who wants to see every request of a process patches these: Sentry the first two, OpenTelemetry the third.
_WATCHED = ((HTTPConnection, "putrequest"), (HTTPConnection, "getresponse"), (HTTPConnectionPool, "urlopen"))
_ORIGINALS = [getattr(owner, name) for owner, name in _WATCHED]
_IS_ENABLED = hasattr(urllib3, "BaseHTTPResponse") and all(  # which 1.26 has not
    isinstance(function, FunctionType) and function.__code__.co_filename.endswith(("client.py", "connectionpool.py"))
    for function in _ORIGINALS
)


def is_enabled() -> bool:
    """Whether plain requests may be handled here: not with urllib3 1.26, and not while others watch the libraries."""
    return _IS_ENABLED and all(getattr(owner, name) is original for (owner, name), original in zip(_WATCHED, _ORIGINALS))


def build_head(method: str, target: str, headers: Mapping[str, str]) -> bytes | None:
    """Return the head of a request; None if it is not plain."""
    if "Host" not in headers or "Content-Length" not in headers or not all(map(_is_text, headers.values())):
        return None
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in headers.items()], "", ""]
    try:
        head = "\r\n".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        return None
    is_whole = head.count(b"\n") == head.count(b"\r") == len(lines) - 1  # no value brings a line of its own
    return head if is_whole and target.isascii() and " " not in target else None


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def send(sock: Any, head: bytes, body: bytes) -> None:
    """Send a request."""
    if len(body) <= _ONE_SEND:
        sock.sendall(head + body)
        return
    sock.sendall(head)
    sock.sendall(body)


class FastResponse:
    """A plain reply, read to its end. Stands where urllib3's response does."""

    version = 11

    def __init__(self, status: int, reason: str, block: bytes, body: bytes) -> None:
        self.status, self.reason, self.headers, self.whole_body = status, reason, _headers(block), body
        self.keeps_alive = _CLOSES.search(block) is None  # the connection may be used again
        self._rest = io.BytesIO(body)

    def read(self, amt: int | None = None, **_: Any) -> bytes:
        """Read the body, as from urllib3's response."""
        return self._rest.read(amt)

    def close(self) -> None:
        """There is nothing to close."""

    def release_conn(self) -> None:
        """The connection is back in its pool already."""


def receive(recv: Callable[[int], bytes]) -> tuple[FastResponse | None, bytes]:
    """Receive a reply, by a socket's ``recv``; raise RemoteDisconnected, as http.client does, if there is none at all.

    Returns the reply and the bytes beyond it; if it is not plain, None and all that was received.
    """
    data = recv(_PIECE)
    if not data:
        raise RemoteDisconnected("Remote end closed connection without response")
    while b"\r\n\r\n" not in data and len(data) < _LARGEST_HEAD and (more := recv(_PIECE)):
        data += more
    found = _HEAD.match(data)
    length = _length(found[3]) if found else None
    if found is None or length is None or int(found[1]) in _BODILESS:
        return None, data
    end = found.end() + length
    pieces, missing = [data], end - len(data)
    while missing > 0 and (more := recv(min(missing, _PIECE))):
        pieces.append(more)
        missing -= len(more)
    data = b"".join(pieces)
    if missing > 0:
        return None, data
    reply = FastResponse(int(found[1]), (found[2] or b"").decode("latin-1"), found[3], data[found.end() : end])
    return reply, data[end:]


def _headers(block: bytes) -> CaseInsensitiveDict[str]:
    lines = [line.partition(":") for line in block.decode("latin-1").split("\r\n")[:-1]]
    headers: CaseInsensitiveDict[str] = CaseInsensitiveDict((name, value.strip(" \t")) for name, _, value in lines)
    if len(headers) < len(lines):  # some have one name
        headers.clear()
        for name, _, value in lines:
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip(" \t")
    return headers


def _length(block: bytes) -> int | None:
    """Return a plain body's length; None if the body is not plain."""
    lengths = _LENGTH.findall(block)
    if len(lengths) != 1 or not 0 < len(lengths[0]) < 8 or not lengths[0].isdigit() or _NOT_PLAIN.search(block):
        return None
    return int(lengths[0]) if int(lengths[0]) <= _LARGEST else None


class PrefixedStream(io.RawIOBase):
    """A socket's stream, with what was received put back in front. For http.client, which makes a file of it."""

    def __init__(self, sock: Any, data: bytes) -> None:
        self._sock, self._data = sock.makefile("rb", buffering=0), data

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the stream."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what was put back, and then from the socket."""
        if not self._data:
            return self._sock.readinto(buffer)  # type: ignore[no-any-return]
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count

    def close(self) -> None:
        """Let go of the socket."""
        if not self.closed:
            self._sock.close()
        super().close()
