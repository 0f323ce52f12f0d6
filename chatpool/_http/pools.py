"""The pools that keep connections, and the adapter that puts them under a requests Session."""

from __future__ import annotations

import functools
import queue
import time
from collections import deque
from datetime import timedelta
from functools import cached_property
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.utils import get_encoding_from_headers
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from .cancel import CancelScope, current
from .connections import KEEP_ALIVE, AbortableHTTPConnection, AbortableHTTPSConnection
from .fast_path import FastResponse, build_head, is_enabled
from .repeats import Repeats, is_harmful
from .tls import Contexts

_MAX_IDLE = 4.0  # seconds; servers drop an idle connection after 5 (uvicorn, Node.js) or later
_MOST_FOUND = 64  # addresses of which an adapter remembers what it found


class _Stack:
    """What urllib3 keeps its connections in. Unlike its LifoQueue, this one takes no lock and wakes nobody."""

    def __init__(self, size: int) -> None:
        self._size, self._items = size, deque[Any]()

    def put(self, item: Any, block: bool = False) -> None:
        if len(self._items) >= self._size:
            raise queue.Full
        self._items.append(item)

    def get(self, block: bool = False, timeout: float | None = None) -> Any:
        try:
            return self._items.pop()
        except IndexError:
            raise queue.Empty from None

    def qsize(self) -> int:
        return len(self._items)


class _Pool:
    """Opens a new connection rather than use one that the server is about to close, or after one that it had closed.

    Handles simple requests itself, see ``fast_path``.
    """

    proxy: Any
    checked: Any = None  # the certificates for which requests has prepared this pool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("block"):  # a user's adapter may want threads to wait for a connection
            self.QueueCls: Any = _Stack
        self._repeats = Repeats()
        super().__init__(*args, **kwargs)

    def urlopen(self, method: str, url: str, body: Any = None, headers: Any = None, *args: Any, **how: Any) -> Any:
        scope: CancelScope | None = getattr(current, "scope", None)
        is_simple = scope is not None and self.proxy is None and isinstance(body, bytes) and is_enabled()
        head = build_head(method, url, headers) if is_simple else None
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
        """Send a simple request and read its reply."""
        if connection.sock is None:
            connection.timeout = current.settings.connect_timeout
            self._validate_conn(connection)  # type: ignore[attr-defined]
        if connection.sock is None:
            connection.connect()
        reply = connection.exchange(scope, head, body)
        if isinstance(reply, bytes):
            return connection.hand_over(reply, self)
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
        """Take a connection back when its reply was read."""
        if connection is not None:
            connection.idle_since = time.monotonic()
            scope: CancelScope | None = getattr(current, "scope", None)
            if scope is not None:
                scope.attach(None)  # before another call can get this connection, and be aborted with it
                if scope.is_cut:
                    connection.close()
                self._check(connection)
        super()._put_conn(connection)  # type: ignore[misc]

    def _check(self, connection: Any) -> None:
        """Close a connection on which the server may be out of step."""
        last, seen = connection.last, connection.note_reply(current.asked)
        if seen is not None and self._repeats.are_found(last, seen):
            connection.close()
            current.is_repeated = is_harmful(last, seen)


class _HTTPPool(_Pool, HTTPConnectionPool):
    ConnectionCls = AbortableHTTPConnection


class _HTTPSPool(_Pool, HTTPSConnectionPool):
    ConnectionCls = AbortableHTTPSConnection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._contexts = Contexts()

    def _new_conn(self) -> Any:
        connection: Any = super()._new_conn()
        self._contexts.attach(connection)
        return connection


_OUR_POOLS = {"http": _HTTPPool, "https": _HTTPSPool}


class PoolAdapter(HTTPAdapter):
    """Keeps a connection for every worker, keeps them alive, and never retries: there is one retry layer."""

    def __init__(self, connections: int) -> None:
        self._found: dict[Any, Any] = {}  # pools, by what was asked for
        self._targets: dict[str, str] = {}
        super().__init__(pool_connections=4, pool_maxsize=connections, max_retries=0, pool_block=False)

    def __setstate__(self, state: Any) -> None:
        """Unpickle; a Session of the user's may be pickled with this adapter in it."""
        self._found, self._targets = {}, {}
        super().__setstate__(state)  # type: ignore[misc]  # not in its stubs

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, socket_options=KEEP_ALIVE, **kwargs)
        use_our_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, socket_options=KEEP_ALIVE, **kwargs)
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

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Likewise; requests would look for the files of the certificates before each call."""
        if conn.checked != (verify, cert):
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]  # in its stubs
            conn.checked = (verify, cert)

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
        build = functools.partial(_WholeResponse, self) if isinstance(raw, FastResponse) else super().build_response
        try:
            response = build(request, raw)
        except AttributeError:  # requests 2.32 cannot read a "charset" without a value, as in a head that was cut off
            del raw.headers["content-type"]
            response = build(request, raw)
        if response.is_redirect:
            # Session.send would read the whole body of a redirect, only to say where it leads.
            response.headers["x-chatpool-location"] = response.headers.pop("location")
        current.response = response  # for closing it, should a hook of the Session raise
        return response


class _WholeResponse(requests.Response):
    """What HTTPAdapter.build_response builds, of a body that is there already. Cookies and encoding, which nobody looks
    at, cost as much as all the rest, and so are made when somebody does."""

    def __init__(self, adapter: HTTPAdapter, request: Any, raw: FastResponse) -> None:
        self.status_code, self.reason, self.headers = raw.status, raw.reason, raw.headers
        self.raw, self.request, self.url, self.connection = raw, request, request.url, adapter
        self._content, self._content_consumed, self._next = raw.whole_body, True, None
        self.history, self.elapsed = [], timedelta(0)

    @cached_property
    def encoding(self) -> str | None:  # type: ignore[override]  # an attribute there
        try:
            return get_encoding_from_headers(self.headers)
        except AttributeError:  # see PoolAdapter.build_response
            return None

    @cached_property
    def cookies(self) -> RequestsCookieJar:  # type: ignore[override]  # an attribute there
        return RequestsCookieJar()


def use_our_pools(manager: Any) -> bool:
    """Make a manager's connections abortable; return False if it brings its own kind of them."""
    if manager.pool_classes_by_scheme == urllib3.poolmanager.pool_classes_by_scheme:
        manager.pool_classes_by_scheme = _OUR_POOLS
    return manager.pool_classes_by_scheme is _OUR_POOLS
