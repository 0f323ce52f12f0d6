"""The wire: one pooled requests Session, and sockets that can be cut. The only home of requests and urllib3."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse, IncompleteRead, RemoteDisconnected, parse_headers
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Callable
from urllib.parse import unquote_plus, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ._call import Call
from ._messages import CHAT_PATH
from ._replies import Reply
from ._settings import Settings
from .errors import APIConnectionError, APITimeoutError, CallError, ConfigurationError, InvalidResponseError

LookUp = Callable[..., list[Any]]  # socket.getaddrinfo, with the call before its arguments

MAX_ANSWER = 64 * 2**20  # bytes of one answer, decompressed
_MAX_ERROR_BODY = 64 * 2**10  # bytes read of an error's body
_PIECE = 64 * 2**10  # bytes read at a time
_MAX_IDLE = 4.0  # seconds; servers drop an idle connection after 5 (uvicorn, Node.js) or later
_MAX_INTERIM = 100  # interim replies before the real one

# Long calls send nothing for minutes, and a NAT forgets a silent connection: AWS's after 350 s, GCP's after 120 s.
_KEEP_ALIVE = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, option), value)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5))
    if hasattr(socket, option)
]

_CREDENTIAL_NAME = re.compile(r"auth|key|token|secret|password|cookie|sig", re.IGNORECASE)
_SHORTEST_SECRET = 8  # characters; blotting out shorter ones would blot out words

# urllib3's connections are made far below Session.send, but in the same thread.
_present = threading.local()

# What belongs to a parent process is kept, never closed: closing could wait for a lock that nobody holds here.
abandoned: list[object] = []

# In which process adapters of users' making were put to use. One that comes from elsewhere may hold connections which
# another process uses, too.
_homes: weakref.WeakKeyDictionary[HTTPAdapter, int] = weakref.WeakKeyDictionary()
# The transports that send through a Session of the user's, each with its process.
_sharers: weakref.WeakKeyDictionary[requests.Session, set[tuple[int, int]]] = weakref.WeakKeyDictionary()


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


class _Cuttable:
    """Tells the call that uses this connection which socket to cut, and when its phases begin."""

    response_class = _Response
    sock: Any
    served = 0  # replies so far
    idle_since = 0.0
    _guard: socket.socket | None = None  # a second handle on the socket while it is being connected

    def connect(self) -> None:
        call: Call | None = getattr(_present, "call", None)
        if call is None:
            super().connect()  # type: ignore[misc]  # HTTPConnection's
            return
        call.set_limit("connect", _present.settings.connect_timeout)
        try:
            super().connect()  # type: ignore[misc]
        finally:
            call.hold(None)
            if self._guard is not None:
                self._guard.close()
        self.served = 0
        self._begin_request(call)

    def _new_conn(self) -> socket.socket:
        """Connect as urllib3 does, but so that it can be cut, and with one limit for all of a name's addresses."""
        call: Call | None = getattr(_present, "call", None)
        if call is None:
            sock: socket.socket = super()._new_conn()  # type: ignore[misc]
            return sock
        try:
            sock = _connect(call, self)
        except socket.timeout as error:  # before Python 3.10 no TimeoutError
            raise urllib3.exceptions.ConnectTimeoutError(self, "timed out") from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, str(error)) from error  # type: ignore[arg-type]
        # The TLS handshake takes the socket's handle away from it; this one can still be cut.
        self._guard = sock.dup()
        call.hold(self._guard)
        return sock

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        call: Call | None = getattr(_present, "call", None)
        if call is not None and self.sock is not None:
            self._begin_request(call)
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

    def _begin_request(self, call: Call) -> None:
        call.set_limit("read", _present.settings.read_timeout)
        call.hold(self.sock)

    def _note_stale(self) -> None:
        """A kept connection that dies before a byte of the reply was closed while it was idle."""
        call: Call | None = getattr(_present, "call", None)
        if call is not None and self.served:
            call.stale = True


def _connect(call: Call, connection: Any) -> socket.socket:
    """Try the addresses of a connection's host in turn."""
    failure: OSError = socket.gaierror("the name has no address")
    family = urllib3.util.connection.allowed_gai_family()
    host = connection._dns_host.strip("[]")
    found = _present.look_up(call, host, connection.port, family, socket.SOCK_STREAM)
    for kind, type_, protocol, _, address in found:
        sock = socket.socket(kind, type_, protocol)
        call.hold(sock)
        try:
            for option in connection.socket_options or ():
                sock.setsockopt(*option)
            # A call cut just now has no limit any more; what it connects will be cut when it is held.
            sock.settimeout(min(max(call.limit - time.monotonic(), 1e-3), connection.timeout))
            if connection.source_address:
                sock.bind(connection.source_address)
            sock.connect(address)
        except OSError as error:
            failure = error
            call.hold(None)
            sock.close()
        else:
            sock.settimeout(connection.timeout)
            return sock
    raise failure


class _HTTPConnection(_Cuttable, HTTPConnection):  # type: ignore[misc]  # typeshed and urllib3 differ
    pass


class _HTTPSConnection(_Cuttable, HTTPSConnection):  # type: ignore[misc]  # likewise
    pass


class _DropsIdle:
    """Opens a new connection rather than use one that the server is about to close, or after one that it had closed."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]  # HTTPConnectionPool's
        if connection.idle_since:
            call: Call | None = getattr(_present, "call", None)
            if time.monotonic() - connection.idle_since > _MAX_IDLE or (call is not None and call.wants_fresh):
                connection.close()
        return connection

    def _put_conn(self, connection: Any) -> None:
        if connection is not None:
            connection.idle_since = time.monotonic()
            call: Call | None = getattr(_present, "call", None)
            if call is not None:
                call.hold(None)  # before another call can get this connection, and be cut with it
                if call.severed:
                    connection.close()
        super()._put_conn(connection)  # type: ignore[misc]


class _HTTPPool(_DropsIdle, HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(_DropsIdle, HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    """Keeps a connection for every worker, keeps them alive, and never retries: there is one retry layer."""

    def __init__(self, connections: int) -> None:
        super().__init__(pool_connections=4, pool_maxsize=connections, max_retries=0, pool_block=False)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, socket_options=_KEEP_ALIVE, **kwargs)
        _use_our_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, socket_options=_KEEP_ALIVE, **kwargs)
        if not proxy.lower().startswith("socks"):  # SOCKS brings its own connections
            _use_our_pools(manager)
        return manager

    def build_response(self, request: Any, raw: Any) -> requests.Response:
        response = super().build_response(request, raw)
        if response.is_redirect:
            # Session.send would read the whole body of a redirect, only to tell where it leads.
            response.headers["x-chatpool-location"] = response.headers.pop("location")
        return response


def _use_our_pools(manager: Any) -> None:
    """Make a manager's connections cuttable, unless it brings its own kind of them."""
    if manager.pool_classes_by_scheme == urllib3.poolmanager.pool_classes_by_scheme:
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}


class _Bearer(AuthBase):
    """Sends the key. As an auth object rather than a header, because .netrc replaces the header."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def __repr__(self) -> str:
        return "<the API key>"


class Transport:
    """Sends one request after another, from any number of threads, through one Session.

    The Session is set up once and only read afterwards, which is what makes sharing it sound.
    """

    def __init__(self, settings: Settings, session: requests.Session | None, user_agent: str, look_up: LookUp) -> None:
        self._settings, self._look_up = settings, look_up
        self._is_own = session is None
        self.session = _new_session() if session is None else session
        self._mount(settings)
        self._secrets = settings.secrets + _secrets_of_query(settings.base_url)
        self._user_agent = user_agent
        self._templates = {CHAT_PATH: self._prepare_template(CHAT_PATH)}
        self._secrets += _secrets_in(self._templates[CHAT_PATH].headers)
        self._options = self._resolve_environment(settings)
        self._auth_each_time = None if settings.api_key or self._is_own else self.session.auth
        _warn_of_plain_http(settings)

    def close(self) -> None:
        """Close the connections; a Session of the user's stays open."""
        if self._is_own:
            self.session.close()
            return
        # Of two pools on one Session the later's adapter serves both; the last to leave closes it.
        sharers, me = _sharers.setdefault(self.session, set()), (os.getpid(), id(self))
        sharers.discard(me)
        mounted = self.session.get_adapter(self._settings.chat_url)
        is_last = all(pid != os.getpid() for pid, _ in list(sharers))
        for adapter in (self._adapter, mounted):
            if isinstance(adapter, _Adapter) and (is_last or adapter is not mounted):
                adapter.close()

    def redact(self, text: str) -> str:
        """Blot the secrets out of a text."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    def send(self, call: Call) -> Reply:
        """Send the call's payload and read the whole reply; raise the CallError that says why there is none."""
        request = self._request(call)
        failure: CallError | None = None
        call.set_limit("connect", self._settings.connect_timeout + self._settings.read_timeout)
        _present.call, _present.settings, _present.look_up = call, self._settings, self._look_up
        try:
            response = self.session.send(request, **self._options)
            reply = self._read(response)
        except CallError as error:
            failure = error
        except (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            if not _is_of_the_wire(error):
                raise
            failure = self._translate(error, call)
        finally:
            del _present.call
            cut = call.end_try()
        # Raised outside the except block: requests' errors carry the request, and the request the key.
        if cut is not None:
            raise cut
        if failure is not None:
            raise failure
        return reply

    def _mount(self, settings: Settings) -> None:
        """Put our adapter in place of requests' own; one of the user's making stays."""
        url = settings.chat_url
        self._adapter = _Adapter(settings.max_workers)
        present = self.session.get_adapter(url)
        if type(present) in (HTTPAdapter, _Adapter):
            prefix = url.split("://")[0] + "://" if self._is_own else settings.shown_url
            self.session.mount(prefix, self._adapter)
        elif isinstance(present, HTTPAdapter):
            if _homes.get(present) != os.getpid() and (len(present.poolmanager.pools) or present.proxy_manager):
                abandoned.append((present.poolmanager, present.proxy_manager))
                vars(HTTPAdapter)["__setstate__"](present, vars(HTTPAdapter)["__getstate__"](present))
            _homes[present] = os.getpid()
            _use_our_pools(present.poolmanager)
        if not self._is_own:
            _sharers.setdefault(self.session, set()).add((os.getpid(), id(self)))

    def _prepare_template(self, path: str) -> requests.PreparedRequest:
        settings = self._settings
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._is_own:
            headers["User-Agent"] = self._user_agent
        auth = None if self.session.auth and not settings.api_key else _Bearer(settings.api_key)
        request = requests.Request("POST", settings.url_for(path), headers={**headers, **settings.headers}, auth=auth)
        try:
            return self.session.prepare_request(request)
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise ConfigurationError(f"base_url or headers cannot be used: {self.redact(str(error))}") from None

    def _resolve_environment(self, settings: Settings) -> dict[str, Any]:
        """Proxies and CA bundle, once. requests would read the whole environment for each call."""
        session, url = self.session, settings.chat_url
        # requests lets REQUESTS_CA_BUNDLE override a Session's own verify (psf/requests#3829); told outright it holds.
        verify = None if session.verify is True else session.verify
        found = session.merge_environment_settings(url, {}, True, verify, None)
        if settings.is_loopback:
            found["proxies"] = dict(session.proxies)
        if isinstance(found["verify"], str) and not os.path.exists(found["verify"]):
            raise ConfigurationError(f"no CA bundle at {found['verify']!r}; mend REQUESTS_CA_BUNDLE or verify")
        timeout = (settings.connect_timeout, settings.read_timeout)
        return {**found, "stream": True, "allow_redirects": False, "timeout": timeout}

    def _request(self, call: Call) -> requests.PreparedRequest:
        template = self._templates.get(call.path)
        if template is None:
            template = self._templates[call.path] = self._prepare_template(call.path)
        request = template.copy()
        request.body = call.payload
        request.headers["Content-Length"] = str(len(call.payload))
        if self._auth_each_time is not None:  # it may sign the body
            request.prepare_auth(self._auth_each_time, request.url or "")
        return request

    def _read(self, response: requests.Response) -> Reply:
        ok = response.status_code == 200
        body, shown = bytearray(), self._settings.shown_url
        try:
            for piece in _pieces(response):
                body += piece
                if len(body) > (MAX_ANSWER if ok else _MAX_ERROR_BODY):
                    break
            else:
                if ok:
                    _check_length(response, len(body))
                return Reply(response.status_code, response.headers, bytes(body), self.redact, shown)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError):
            if ok:
                raise
        finally:
            response.close()  # what was not read to its end is closed, never reused
        if ok:
            told = f"the answer is larger than {MAX_ANSWER // 2**20} MiB"
            raise InvalidResponseError(told, status_code=200, code="too_large")
        return Reply(response.status_code, response.headers, bytes(body[:_MAX_ERROR_BODY]), self.redact, shown)

    def _translate(self, error: BaseException, call: Call) -> CallError:
        kind, code, told = _judge_failure(error)
        if kind is APITimeoutError:
            return call.out_of_time(time.monotonic())
        if code in _WHERE:
            told = f"{told} ({self._settings.shown_url})"
        if call.stale and kind is APIConnectionError:
            code, told = "stale_connection", "the server had closed the kept connection"
        return kind(self.redact(told), code=code)


def _new_session() -> requests.Session:
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # a jar that fills up slows every call
    return session


def _secrets_in(headers: Mapping[str, str]) -> list[str]:
    """Return the values of headers that hold credentials by their names, and what follows a scheme in them."""
    values = [str(value) for name, value in headers.items() if _CREDENTIAL_NAME.search(name)]
    return [
        secret for value in values for secret in (value, value.partition(" ")[2]) if len(secret) >= _SHORTEST_SECRET
    ]


def _secrets_of_query(url: str) -> list[str]:
    """Return the values of a query's fields that hold credentials by their names, as they stand there and decoded."""
    fields = [field.partition("=") for field in urlsplit(url).query.split("&")]
    values = [value for name, _, value in fields if _CREDENTIAL_NAME.search(name)]
    return [secret for value in values for secret in (value, unquote_plus(value)) if len(secret) >= _SHORTEST_SECRET]


def _warn_of_plain_http(settings: Settings) -> None:
    if settings.secrets and settings.base_url.startswith("http://") and not settings.is_loopback:
        warnings.warn(
            f"the API key goes over plain http to {settings.shown_url}; anyone on the way can read it: use https",
            stacklevel=2,
        )


def _pieces(response: requests.Response) -> Iterator[bytes]:
    pieces: Iterator[bytes | str] = response.iter_content(_PIECE)
    for piece in pieces:
        yield piece if isinstance(piece, bytes) else piece.encode()


def _check_length(response: requests.Response, length: int) -> None:
    """urllib3 1.26 takes a body cut short for a whole one."""
    declared = response.headers.get("content-length", "")
    if "content-encoding" not in response.headers and declared.isdecimal() and int(declared) > length:
        raise IncompleteRead(b"", int(declared) - length)


def _is_of_the_wire(error: BaseException) -> bool:
    """A ValueError is the wire's only if requests or urllib3 raised it; any other is a bug, and is not hidden."""
    return not isinstance(error, ValueError) or isinstance(
        error, (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError)
    )


# Failures whose message names the address: that is where the mistake may be.
_WHERE = frozenset({"connection_refused", "name_not_found", "no_tls", "certificate_verify_failed", "cannot_connect"})
# What another try cannot mend, beside a certificate that does not verify.
_HOPELESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidProxyURL,
    urllib3.exceptions.LocationValueError,
)


def _judge_failure(error: BaseException) -> tuple[type[CallError], str, str]:
    """Return the class, the code and the message for a failure on the wire.

    Looks at every cause in the chain, because the outermost class misleads: requests raises ConnectionError
    for a body that stalls and for a certificate that does not verify.
    """
    chain = list(_causes(error))

    def find(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in chain if isinstance(cause, kinds)), None)

    told = _describe(chain)
    found = find(ssl.SSLCertVerificationError)
    if found is not None:
        return APIConnectionError, "certificate_verify_failed", f"the server's certificate does not verify: {told}"
    if find(*_HOPELESS):
        return APIConnectionError, "cannot_connect", f"no request can be made: {told}"
    if find(socket.gaierror):
        return APIConnectionError, "name_not_found", f"the server's name cannot be looked up: {told}"
    if find(urllib3.exceptions.ConnectTimeoutError) and not find(urllib3.exceptions.NewConnectionError):
        return APITimeoutError, "connect_timeout", "no connection within the connect timeout"
    if find(socket.timeout, urllib3.exceptions.TimeoutError, requests.Timeout) and not find(ConnectionRefusedError):
        return APITimeoutError, "read_timeout", "no whole answer within the read timeout"
    found = find(ssl.SSLError)
    if found is not None:
        reason = getattr(found, "reason", None) or ""
        hopeless = reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
        return APIConnectionError, "no_tls" if hopeless else "tls_failed", f"TLS failed: {told}"
    if find(requests.exceptions.ContentDecodingError, urllib3.exceptions.DecodeError):
        return InvalidResponseError, "bad_encoding", f"the answer cannot be decompressed: {told}"
    if find(IncompleteRead, requests.exceptions.ChunkedEncodingError) and not find(ConnectionError):
        return APIConnectionError, "incomplete_read", "the connection closed in mid-answer"
    if find(ConnectionRefusedError):
        return APIConnectionError, "connection_refused", f"nothing listens at that address: {told}"
    return APIConnectionError, "connection_failed", f"the connection failed: {told}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that is behind it: __cause__, __context__, and what requests and urllib3 wrap."""
    seen: set[int] = set()
    todo: list[Any] = [error]
    while todo:
        cause = todo.pop()
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            todo += [cause.__context__, cause.__cause__, getattr(cause, "reason", None), *cause.args]


def _describe(chain: list[BaseException]) -> str:
    """Name the innermost cause. The outer ones print the whole address, and addresses may hold secrets."""
    told = next((cause for cause in reversed(chain) if isinstance(cause, OSError) and cause.strerror), chain[-1])
    return f"{type(told).__name__}: {told}"[:300]
