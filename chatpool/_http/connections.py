"""Sockets that can be cut, the pools that keep them, and the adapter that puts both under a requests Session."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from http.client import HTTPResponse, RemoteDisconnected, parse_headers
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_encoding_from_headers
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from .cancel import CancelScope
from .fast_path import FastResponse, PrefixedStream, build_head, is_enabled, receive, send

_MAX_IDLE = 4.0  # seconds; servers drop an idle connection after 5 (uvicorn, Node.js) or later
_MOST_FOUND = 64  # addresses of which an adapter remembers what it found
_MAX_INTERIM = 100  # interim replies before the real one

# Long calls send nothing for minutes, and a NAT forgets a silent connection: AWS's after 350 s, GCP's after 120 s.
_KEEP_ALIVE = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, option), value)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5))
    if hasattr(socket, option)
]

# The scope of the try that this thread makes now: connections are made far below Session.send, but in the same thread.
current = threading.local()


class _Response(HTTPResponse):
    """Skips interim replies. http.client skips only 100, and a 103 left in place would be taken for the answer,
    and the answer then for that of the connection's next request."""

    def _read_status(self) -> Any:
        for _ in range(_MAX_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
            if not 102 <= status <= 199:
                return version, status, reason
            parse_headers(self.fp)
        raise RemoteDisconnected("interim replies without end")


class _AbortableConnection:
    """Tells the call that uses this connection which socket to cut, and when its phases begin."""

    response_class = _Response
    sock: Any
    timeout: Any
    close: Any
    served = 0  # replies so far
    idle_since = 0.0
    _guard: socket.socket | None = None  # a second handle on the socket while it is being connected

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
        self.served = 0
        self._begin_request(scope)

    def _new_conn(self) -> socket.socket:
        """Connect as urllib3 does, but so that it can be cut, and with one limit for all of a name's addresses."""
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
        # The TLS handshake takes the socket's handle away from it; this one can still be cut.
        self._guard = sock.dup()
        scope.attach(self._guard)
        return sock

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        scope: CancelScope | None = getattr(current, "scope", None)
        if scope is not None and self.sock is not None:
            self._begin_request(scope)
        super().putrequest(*args, **kwargs)  # type: ignore[misc]

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            response = super().getresponse(*args, **kwargs)  # type: ignore[misc]
        except (ConnectionError, ssl.SSLEOFError):  # RemoteDisconnected is a ConnectionResetError
            self._note_stale()
            raise
        self.served += 1
        return response

    def send(self, data: Any) -> None:
        try:
            super().send(data)  # type: ignore[misc]
        except (ConnectionError, ssl.SSLEOFError):
            self._note_stale()
            raise

    def exchange(self, scope: CancelScope, head: bytes, body: bytes) -> tuple[FastResponse | None, bytes]:
        """Send a plain request and receive the reply; see ``_plain.receive``."""
        self._begin_request(scope)
        self.sock.settimeout(self.timeout)
        try:
            # A server may reply before it has read the whole request, and close: what it said counts.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                send(self.sock, head, body)
            found = receive(self.sock.recv)
        except (ConnectionError, ssl.SSLEOFError):
            self._note_stale()
            raise
        self.served += 1
        return found

    def hand_over(self, data: bytes, pool: Any) -> Any:
        """Have a reply that is not plain read by http.client and urllib3, from its first byte on."""
        response = _Response(PrefixedStream(self.sock, data), method="POST")  # type: ignore[arg-type]
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

    def _begin_request(self, scope: CancelScope) -> None:
        scope.set_timeout("read", current.settings.read_timeout)
        scope.attach(self.sock)

    def _note_stale(self) -> None:
        """A kept connection that dies before a byte of the reply was closed while it was idle."""
        scope: CancelScope | None = getattr(current, "scope", None)
        if scope is not None and self.served:
            scope.is_stale = True


def _connect(scope: CancelScope, connection: Any) -> socket.socket:
    """Try the addresses of a connection's host in turn."""
    failure: OSError = socket.gaierror("the name has no address")
    family = urllib3.util.connection.allowed_gai_family()
    host = connection._dns_host.strip("[]")
    found = current.look_up(scope, host, connection.port, family, socket.SOCK_STREAM)
    for kind, type_, protocol, _, address in found:
        sock = socket.socket(kind, type_, protocol)
        scope.attach(sock)
        try:
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            # A call cut just now has no limit any more; what it connects will be cut when it is held.
            sock.settimeout(min(max(scope.timeout_at - time.monotonic(), 1e-3), connection.timeout))
            if connection.source_address:
                sock.bind(connection.source_address)
            sock.connect(address)
        except OSError as error:
            failure = error
            scope.attach(None)
            sock.close()
        else:
            sock.settimeout(connection.timeout)
            return sock
    raise failure


class _HTTPConnection(_AbortableConnection, HTTPConnection):  # type: ignore[misc]  # typeshed and urllib3 differ
    pass


class _HTTPSConnection(_AbortableConnection, HTTPSConnection):  # type: ignore[misc]  # likewise
    pass


class _Pool:
    """Opens a new connection rather than use one that the server is about to close, or after one that it had closed.

    Takes plain requests to itself, see ``_plain``.
    """

    proxy: Any

    def urlopen(self, method: str, url: str, body: Any = None, headers: Any = None, *args: Any, **how: Any) -> Any:
        scope: CancelScope | None = getattr(current, "scope", None)
        is_plain = scope is not None and self.proxy is None and isinstance(body, bytes) and is_enabled()
        head = build_head(method, url, headers) if is_plain else None
        if scope is None or head is None:
            return super().urlopen(method, url, body, headers, *args, **how)  # type: ignore[misc]
        connection = self._get_conn()
        try:
            return self._exchange(connection, scope, head, body)
        except BaseException:
            connection.close()
            self._put_conn(None)
            raise

    def _exchange(self, connection: Any, scope: CancelScope, head: bytes, body: bytes) -> Any:
        """Send a plain request and read its reply."""
        connection.timeout = current.settings.connect_timeout
        self._validate_conn(connection)  # type: ignore[attr-defined]
        if connection.sock is None:
            connection.connect()
        connection.timeout = current.settings.read_timeout
        reply, rest = connection.exchange(scope, head, body)
        if reply is None:
            return connection.hand_over(rest, self)
        if rest or not reply.keeps_alive:  # bytes that nobody asked for would be taken for the next reply
            connection.close()
        self._put_conn(connection)
        return reply

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]  # HTTPConnectionPool's
        if connection.idle_since:
            scope: CancelScope | None = getattr(current, "scope", None)
            if time.monotonic() - connection.idle_since > _MAX_IDLE or (scope is not None and scope.wants_fresh):
                connection.close()
        return connection

    def _put_conn(self, connection: Any) -> None:
        if connection is not None:
            connection.idle_since = time.monotonic()
            scope: CancelScope | None = getattr(current, "scope", None)
            if scope is not None:
                scope.attach(None)  # before another call can get this connection, and be cut with it
                if scope.is_cut:
                    connection.close()
        super()._put_conn(connection)  # type: ignore[misc]


class _HTTPPool(_Pool, HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


_OUR_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class PoolAdapter(HTTPAdapter):
    """Keeps a connection for every worker, keeps them alive, and never retries: there is one retry layer."""

    def __init__(self, connections: int) -> None:
        self._found: dict[Any, Any] = {}  # pools, by what was asked for
        self._targets: dict[str, str] = {}
        super().__init__(pool_connections=4, pool_maxsize=connections, max_retries=0, pool_block=False)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, socket_options=_KEEP_ALIVE, **kwargs)
        use_our_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, socket_options=_KEEP_ALIVE, **kwargs)
        use_our_pools(manager)  # but not SOCKS's, which brings its own connections
        return manager

    def close(self) -> None:
        for pool in list(self._found.values()):
            pool.close()
        self._found.clear()
        super().close()

    def get_connection_with_tls_context(self, request: Any, verify: Any, proxies: Any = None, cert: Any = None) -> Any:
        """Find the pool for an address once; requests would take its address apart for each call."""
        if proxies:
            return super().get_connection_with_tls_context(request, verify, proxies, cert)
        asked = (request.url, verify, cert if isinstance(cert, str) or cert is None else tuple(cert))
        pool = self._found.get(asked)
        if pool is None or pool.pool is None:  # closed
            if len(self._found) >= _MOST_FOUND:
                self._found.clear()
            pool = self._found[asked] = super().get_connection_with_tls_context(request, verify, proxies, cert)
        return pool

    def request_url(self, request: Any, proxies: Any) -> str:
        """Likewise, what follows the host in an address."""
        if proxies:
            return super().request_url(request, proxies)
        target = self._targets.get(request.url)
        if target is None:
            if len(self._targets) >= _MOST_FOUND:
                self._targets.clear()
            target = self._targets[request.url] = super().request_url(request, proxies)
        return target

    def build_response(self, request: Any, raw: Any) -> requests.Response:
        response = _whole_response(self, request, raw) if isinstance(raw, FastResponse) else None
        if response is None:
            response = super().build_response(request, raw)
        if response.is_redirect:
            # Session.send would read the whole body of a redirect, only to tell where it leads.
            response.headers["x-chatpool-location"] = response.headers.pop("location")
        return response


def _whole_response(adapter: HTTPAdapter, request: Any, raw: FastResponse) -> requests.Response:
    """Build what HTTPAdapter.build_response does, of a body that is there already."""
    response = requests.Response()
    response.status_code, response.reason, response.headers = raw.status, raw.reason, raw.headers
    response.encoding = get_encoding_from_headers(response.headers)
    response.raw, response.request, response.url = raw, request, request.url
    response.connection = adapter
    response._content = raw.whole_body
    response._content_consumed = True  # type: ignore[attr-defined]  # not in typeshed
    return response


def use_our_pools(manager: Any) -> bool:
    """Make a manager's connections cuttable; return False if it brings its own kind of them."""
    if manager.pool_classes_by_scheme == urllib3.poolmanager.pool_classes_by_scheme:
        manager.pool_classes_by_scheme = _OUR_POOLS
    return manager.pool_classes_by_scheme is _OUR_POOLS
