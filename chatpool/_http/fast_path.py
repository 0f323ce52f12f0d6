"""The simple case of HTTP/1.1, in one send and mostly one receive; anything else falls back to http.client and urllib3.

Of a call's CPU time, http.client's and urllib3's handling of headers is the largest part. Nearly all calls are alike: a
short request, and a reply with a status, simple headers and a Content-Length. Those are handled here. Any other reply,
interim, chunked, compressed, large, torn or odd, is handed to ``framing`` with all its bytes, as if nothing had been
read of it.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping
from http.client import HTTPConnection, RemoteDisconnected
from types import FunctionType
from typing import Any, Callable

import urllib3
from requests.structures import CaseInsensitiveDict
from urllib3.connectionpool import HTTPConnectionPool

from .plain_send import send_at_once

_LARGEST = 2**20  # bytes of a simple body
_LARGEST_HEAD = 2**16
_PIECE = 2**16  # bytes received at a time
_ONE_SEND = 2**16  # bytes up to which a body is sent together with the head
_HEAD = re.compile(rb"HTTP/1\.1 ([2-9]\d\d)(?: ([^\r\n]*))?\r\n((?:[!#-'*+\-.^-z|~0-9A-Z]+:[^\r\n]*\r\n)+)\r\n")
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_NOT_SIMPLE = {"transfer-encoding", "content-encoding", "upgrade"}
_Fields = dict[str, tuple[str, str]]  # a head: names in lower case, and for each the name as given and the value
_BODILESS = (b"204", b"304")

# Tools that watch every request of a process patch these: Sentry the first two, OpenTelemetry the third.
_PUTREQUEST, _GETRESPONSE, _URLOPEN = HTTPConnection.putrequest, HTTPConnection.getresponse, HTTPConnectionPool.urlopen
_IS_ENABLED = hasattr(urllib3, "BaseHTTPResponse") and all(  # which 1.26 does not have
    isinstance(function, FunctionType) and function.__code__.co_filename.endswith(("client.py", "connectionpool.py"))
    for function in (_PUTREQUEST, _GETRESPONSE, _URLOPEN)
)


def is_enabled() -> bool:
    """Whether simple requests may be handled here: not with urllib3 1.26, and not while others watch the libraries."""
    return (
        _IS_ENABLED
        and HTTPConnection.putrequest is _PUTREQUEST
        and HTTPConnection.getresponse is _GETRESPONSE
        and HTTPConnectionPool.urlopen is _URLOPEN
    )


def copy_headers(headers: CaseInsensitiveDict[str]) -> CaseInsensitiveDict[str]:
    """Copy headers. Their own copy() takes 2 µs a header, a tenth of a call's CPU time in all."""
    return _make_headers(_store_of(headers).copy())


def lower_names(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers as a dict, by their names in lower case. Each look-up in requests' own kind takes 0.5 µs."""
    if type(headers) is CaseInsensitiveDict:
        return {lower: value for lower, (_, value) in _store_of(headers).items()}
    return {name.lower(): value for name, value in headers.items()}


def build_head(method: str, target: str, headers: Mapping[str, str]) -> bytes | None:
    """Return the head of a request; None if it is not simple."""
    is_ours = type(headers) is CaseInsensitiveDict  # whose items() are as slow as its copy()
    store = _store_of(headers) if is_ours else {name.lower(): (name, value) for name, value in headers.items()}
    if "host" not in store or "content-length" not in store:
        return None
    lines = [f"{method} {target} HTTP/1.1"]
    try:
        lines += [name + ": " + value for name, value in store.values()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    except (TypeError, UnicodeEncodeError):
        return None
    is_whole = head.count(b"\n") == head.count(b"\r") == len(lines) + 1  # no value brings a line of its own
    return head if is_whole and target.isascii() and " " not in target else None


def send(sock: Any, head: bytes, body: bytes) -> None:
    """Send a request."""
    if len(body) > _ONE_SEND:
        sock.sendall(head)
        sock.sendall(body)
        return
    data = head + body
    sent = send_at_once(sock, data) or sock.send(data)  # which costs less than an SSLSocket's sendall
    if sent < len(data):
        sock.sendall(data[sent:])


class FastResponse:
    """A simple reply, read to its end. Takes the place of urllib3's response."""

    version = 11

    def __init__(self, head: re.Match[bytes], fields: _Fields, body: bytes) -> None:
        self.status, self.reason = int(head[1]), (head[2] or b"").decode("latin-1")
        self.headers, self.whole_body = _make_headers(fields), body
        # The connection cannot be used again.
        self.is_last = "connection" in fields and "close" in fields["connection"][1].lower()
        self._block = head[3]
        self._rest: io.BytesIO | None = None

    def read(self, amt: int | None = None, **_: Any) -> bytes:
        """Read the body, as from urllib3's response."""
        self._rest = self._rest or io.BytesIO(self.whole_body)
        return self._rest.read(amt)

    def close(self) -> None:
        """There is nothing to close."""

    def release_conn(self) -> None:
        """The connection is back in its pool already."""

    def summary(self) -> tuple[int, int, bool, bytes]:
        """Return status, checksum, whether the body holds an id, and head."""
        return self.status, zlib.crc32(self.whole_body), b'"id"' in self.whole_body, self._block


def receive_first(recv: Callable[[int], bytes]) -> bytes:
    """Receive a reply's first bytes by a socket's ``recv``; raise RemoteDisconnected, as http.client, if none come."""
    data = recv(_PIECE)
    if not data:
        raise RemoteDisconnected("Remote end closed connection without response")
    return data


def receive_rest(data: bytes, recv: Callable[[int], bytes]) -> FastResponse | bytes:
    """Receive the rest of a reply and return it; if it is not simple, return all that was received."""
    while not _END_OF_HEAD.search(data) and len(data) < _LARGEST_HEAD and (more := recv(_PIECE)):
        data += more
    found = _HEAD.match(data)
    fields = _fields(found[3]) if found else {}
    length = _length(fields)
    if found is None or length is None or found[1] in _BODILESS:
        return data
    end = found.end() + length
    pieces, missing = [data], end - len(data)
    while missing > 0 and (more := recv(min(missing, _PIECE))):
        pieces.append(more)
        missing -= len(more)
    data = b"".join(pieces)
    if missing > 0:
        return data
    reply = FastResponse(found, fields, data[found.end() : end])
    reply.is_last = reply.is_last or len(data) > end  # more would be taken for the next reply
    return reply


def _store_of(headers: Any) -> _Fields:
    """Return what a CaseInsensitiveDict keeps."""
    store: _Fields = headers._store
    return store


def _make_headers(store: _Fields) -> CaseInsensitiveDict[str]:
    headers: Any = CaseInsensitiveDict.__new__(CaseInsensitiveDict)
    headers._store = store
    return headers  # type: ignore[no-any-return]


def _fields(block: bytes) -> _Fields:
    fields: _Fields = {}
    for line in block.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        key, value = name.lower(), value.strip(" \t")
        fields[key] = (name, f"{fields[key][1]}, {value}" if key in fields else value)
    return fields


def _length(fields: _Fields) -> int | None:
    """Return a simple body's length; None if the body is not simple."""
    _, digits = fields.get("content-length", ("", ""))
    if not (digits.isdecimal() and len(digits) < 8 and _NOT_SIMPLE.isdisjoint(fields)):
        return None
    if fields.get("content-type", ("", ""))[1].lower().startswith("text/event-stream"):
        return None  # it is read as it comes
    return int(digits) if int(digits) <= _LARGEST else None
