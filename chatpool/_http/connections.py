"""Connections that another thread can abort, whose phases have limits, and that read replies by our own framing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import time
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from .cancel import CancelScope, current
from .fast_path import FastResponse, receive_first, receive_rest, send
from .framing import MalformedReply, Response
from .repeats import Seen

# A server may close a kept connection just as a request leaves. Then the loss shows after one round trip, which takes
# 0.3 s between the most distant regions of the large clouds. A connection lost later was lost in the middle of a call.
_STALE_WITHIN = 0.3  # seconds

# Long calls send nothing for minutes, and a NAT forgets a silent connection: AWS's after 350 s, GCP's after 120 s.
KEEP_ALIVE = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, option), value)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5))
    if hasattr(socket, option)
]
_SO_MEMINFO = 55  # of Linux, see sock_diag(7); its first four bytes: the memory of what waits to be read
_ESTABLISHED = b"\x01"
# With these a server ends a connection that it no longer reads from. What it sent before counts.
_HANG_UPS = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


class AbortableConnection:
    """Says to the attempt that uses it which socket to shut down, and when its phases begin."""

    response_class = Response
    sock: Any
    timeout: Any
    close: Any
    idle_since = 0.0
    asked_at = 0.0  # when the request began to be sent
    reply: FastResponse | Response | None = None  # that is being read
    last: Seen | None = None  # the latest that was read
    _guard: socket.socket | None = None  # a second handle on the socket while it is being connected
    _is_unread = False  # the server has closed before it read the whole request

    @property
    def is_connected(self) -> bool:
        """Whether the server has neither closed the connection nor sent anything since the last reply."""
        is_quiet = isinstance(self.sock, socket.socket) and _is_quiet(self.sock)
        return is_quiet or super().is_connected  # type: ignore[misc]  # HTTPConnection's, which polls

    def connect(self) -> None:
        scope: CancelScope | None = getattr(current, "scope", None)
        if scope is None:
            super().connect()  # type: ignore[misc]  # HTTPConnection's
            return
        scope.set_timeout("connect", current.settings.connect_timeout)
        try:
            super().connect()  # type: ignore[misc]
        finally:
            scope.attach(None)
            if self._guard is not None:
                self._guard.close()
        self.reply = self.last = None
        self._begin_request(scope)

    def _new_conn(self) -> socket.socket:
        """Connect as urllib3 does, but so that it can be aborted, and with one limit for all of a name's addresses."""
        scope: CancelScope | None = getattr(current, "scope", None)
        if scope is None:
            sock: socket.socket = super()._new_conn()  # type: ignore[misc]
            return sock
        try:
            sock = _connect(scope, self)
        except socket.timeout as error:  # before Python 3.10 no TimeoutError
            raise urllib3.exceptions.ConnectTimeoutError(self, "timed out") from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, str(error)) from error  # type: ignore[arg-type]
        # The TLS handshake takes the socket's handle away from it; this one can still be shut down.
        self._guard = sock.dup()
        scope.attach(self._guard)
        return sock

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        scope: CancelScope | None = getattr(current, "scope", None)
        if scope is not None and self.sock is not None:
            self._begin_request(scope)
        self._is_unread = False
        super().putrequest(*args, **kwargs)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        """Send, unless the server has stopped reading: it may have replied before, and that is to be read."""
        if self._is_unread:
            return
        try:
            super().send(data)  # type: ignore[misc]
        except _HANG_UPS:
            self._is_unread = True

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = super().getresponse(*args, **kwargs)  # type: ignore[misc]
        except _HANG_UPS:  # RemoteDisconnected is a ConnectionResetError
            self._note_stale()
            raise
        except ValueError as error:  # http.client's, of a head that it cannot read
            raise MalformedReply(f"{error}") from error
        self.reply = getattr(response, "_original_response", response)
        return response

    def exchange(self, scope: CancelScope, head: bytes, body: bytes) -> FastResponse | bytes:
        """Send a simple request and receive the reply; see ``fast_path.receive_rest``."""
        self._begin_request(scope)
        if self.sock.gettimeout() is not None:  # urllib3 has used this connection, for another request
            self.sock.settimeout(None)
        try:
            with contextlib.suppress(*_HANG_UPS):  # as in send() above
                send(self.sock, head, body)
            recv = scope.watched(self.sock.recv)
            data = receive_first(recv)
        except _HANG_UPS:
            self._note_stale()
            raise
        reply = receive_rest(data, recv)
        self.reply = reply if isinstance(reply, FastResponse) else None
        return reply

    def hand_over(self, received: bytes, pool: Any) -> Any:
        """Have a reply that is not simple read by http.client and urllib3, from its first byte on."""
        self.reply = response = Response(self.sock, method="POST", received=received)
        response.begin()
        if response.will_close:
            self.close()
        return urllib3.response.HTTPResponse(
            body=response,
            headers=urllib3.HTTPHeaderDict(response.msg.items()),
            status=response.status,
            version=response.version,
            reason=response.reason,
            preload_content=False,
            decode_content=False,
            original_response=response,
            request_method="POST",
            connection=self,  # type: ignore[arg-type]  # it is mixed into one
            pool=pool,
        )

    def note_reply(self, asked: int) -> Seen | None:
        """Note the reply that was read, and close the connection if that was its last; return None if there is none."""
        reply, self.reply = self.reply, None
        summary = None if reply is None else reply.summary()
        if reply is None or summary is None or reply.is_last:
            self.close()
        self.last = None if summary is None else Seen(asked, *summary)
        return self.last

    def _begin_request(self, scope: CancelScope) -> None:
        scope.set_timeout("read", current.settings.read_timeout)
        scope.attach(self.sock)
        self.asked_at = time.monotonic()

    def _note_stale(self) -> None:
        """A kept connection that dies at once, before a byte of the reply, was closed while it was idle."""
        scope: CancelScope | None = getattr(current, "scope", None)
        if scope is not None and self.last is not None:
            scope.is_stale = time.monotonic() - self.asked_at < _STALE_WITHIN


def _is_quiet(sock: socket.socket) -> bool:
    """Whether nothing waits in a socket, neither a byte nor its end. False if this system does not say.

    A poll would answer that as well. But it releases the interpreter lock, and to get that back takes a thread of a
    busy pool longer than all else that it does before it sends.
    """
    if sys.platform != "linux":
        return False
    try:
        is_open = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _ESTABLISHED
        return is_open and not any(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4))
    except OSError:  # no TCP, or another kernel that is only called Linux
        return False


def _connect(scope: CancelScope, connection: Any) -> socket.socket:
    """Try the addresses of a connection's host in turn."""
    failure: OSError = socket.gaierror("the name has no address")
    family = urllib3.util.connection.allowed_gai_family()
    asked = (connection._dns_host.strip("[]"), connection.port, family, socket.SOCK_STREAM)
    for found in current.resolver.look_up(scope, *asked):
        try:
            return _connect_to(found, scope, connection)
        except OSError as error:
            failure = error
        if scope.error is None:  # else the call was cancelled
            current.resolver.note_failure(found[4])
        if scope.is_cut or time.monotonic() >= scope.timeout_at:
            break  # there is no time for another address
    current.resolver.forget(*asked)
    raise failure


def _connect_to(found: Any, scope: CancelScope, connection: Any) -> socket.socket:
    kind, type_, protocol, _, address = found
    sock = socket.socket(kind, type_, protocol)
    scope.attach(sock)
    try:
        for option in connection.socket_options or ():
            sock.setsockopt(*option)
        # An attempt aborted just now has no limit any more; its socket is shut down when it is attached.
        sock.settimeout(min(max(scope.timeout_at - time.monotonic(), 1e-3), connection.timeout))
        if connection.source_address:
            sock.bind(connection.source_address)
        sock.connect(address)
    except OSError:
        scope.attach(None)
        sock.close()
        raise
    # From here on the scope's limits hold. For the socket's own, Python polls before each send and receive.
    sock.settimeout(None)
    return sock


class AbortableHTTPConnection(AbortableConnection, HTTPConnection):  # type: ignore[misc]  # typeshed and urllib3 differ
    """Over plain TCP."""


class AbortableHTTPSConnection(AbortableConnection, HTTPSConnection):  # type: ignore[misc]  # likewise
    """Over TLS."""
