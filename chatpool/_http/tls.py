"""One TLS context for all connections of a pool. urllib3 makes one, and loads the CA bundle, for each connection: 20 ms
of CPU and 0.7 MB with OpenSSL 3."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import urllib3
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs, resolve_ssl_version

# What of a connection goes into its context.
_ASKED = (
    "cert_reqs",
    "ca_certs",
    "ca_cert_dir",
    "ca_cert_data",
    "cert_file",
    "key_file",
    "key_password",
    "ssl_version",
    "ssl_minimum_version",
    "ssl_maximum_version",
)
_MATCHES_NAMES = hasattr(urllib3, "BaseHTTPResponse")  # 1.26 does not have OpenSSL compare a certificate's names


class SharedContext:
    """An SSLContext that many threads use at once; urllib3 takes it for one of its own.

    urllib3 loads the bundle and sets ALPN again for each connection, and OpenSSL does not allow that while other
    threads read the context (openssl-threads(7)). Here a change is made once, before the first handshake that
    needs it, and repeated ones are passed over.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.__dict__.update(_context=context, _lock=threading.Lock(), _done=set())

    def __getattr__(self, name: str) -> Any:
        """Read anything; only a method that changes the context is made one that does so once."""
        found = getattr(self._context, name)
        if not name.startswith(("load_", "set_")):
            return found
        return lambda *args, **kwargs: self._once(name, found, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        with self._lock:
            if getattr(self._context, name) != value:
                setattr(self._context, name, value)

    def _once(self, name: str, change: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked = f"{name}{args}{kwargs}"
        with self._lock:  # another thread's first handshake waits until all is loaded
            if asked not in self._done:
                change(*args, **kwargs)
                self._done.add(asked)


class Contexts:
    """The contexts of one pool, by what they were made for. Belongs to one process: a forked child makes its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Any, Any] = {}

    def attach(self, connection: Any) -> None:
        """Give a new connection its context, and one for its https proxy, unless it has to have its own."""
        if connection.assert_hostname is None and connection.assert_fingerprint is None:
            connection.ssl_context = self._for_server(connection, connection.ssl_context)
        if _MATCHES_NAMES and connection.proxy is not None and connection.proxy.scheme == "https":
            config = connection.proxy_config
            if (config.ssl_context, config.assert_hostname, config.assert_fingerprint) == (None, None, None):
                connection.proxy_config = config._replace(ssl_context=self._for_proxy(connection))

    def _for_server(self, connection: Any, given: ssl.SSLContext | None) -> Any:
        asked = ("server", given, *_asked_of(connection))
        with self._lock:
            if asked not in self._made:
                self._made[asked] = _share(given or _make(connection)) or given
                if given is None and self._made[asked] is not None:
                    _load_default_certs(connection, self._made[asked])
            return self._made[asked]

    def _for_proxy(self, connection: Any) -> Any:
        """Likewise; but into a proxy's context urllib3 loads nothing."""
        asked = ("proxy", *_asked_of(connection))
        with self._lock:
            if asked not in self._made:
                context = self._made[asked] = _share(_make(connection))
                if context is not None:
                    _load_default_certs(connection, context)
                    if _bundles(connection):
                        context.load_verify_locations(*_bundles(connection))
            return self._made[asked]


def _asked_of(connection: Any) -> tuple[Any, ...]:
    return tuple(getattr(connection, name, None) for name in _ASKED)


def _make(connection: Any) -> ssl.SSLContext:
    """Make what urllib3 would make for this connection."""
    versions = ("ssl_minimum_version", "ssl_maximum_version")  # which 1.26 does not have
    return create_urllib3_context(
        ssl_version=resolve_ssl_version(connection.ssl_version),
        cert_reqs=resolve_cert_reqs(connection.cert_reqs),
        **{name: getattr(connection, name) for name in versions if hasattr(connection, name)},
    )


def _share(context: ssl.SSLContext) -> SharedContext | None:
    """Return None for a class that replaces ssl's: truststore's changes, and locks, with each handshake."""
    return SharedContext(context) if type(context).__module__ == "ssl" else None


def _bundles(connection: Any) -> tuple[Any, ...]:
    found = tuple(getattr(connection, name, None) for name in ("ca_certs", "ca_cert_dir", "ca_cert_data"))
    return found if any(found) else ()


def _load_default_certs(connection: Any, context: Any) -> None:
    """Load the system's certificates where no bundle is named; urllib3 does so only in contexts of its own."""
    if not _bundles(connection) and context.verify_mode != ssl.CERT_NONE:
        context.load_default_certs()
