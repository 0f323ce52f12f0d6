"""What went wrong on the wire: requests', urllib3's and the socket's exceptions → class, code and message of ours."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from http.client import IncompleteRead
from typing import Any, NamedTuple

import requests
import urllib3
from urllib3.util.ssl_match_hostname import CertificateError  # no ssl.SSLError; urllib3 1.26 raises it

from chatpool.errors import APIConnectionError, APITimeoutError, CallError, InvalidResponseError

from .framing import BadEncoding, BodyTooLarge, MalformedReply
from .repeats import RepeatedReply

# Failures whose message names the address: that is where the mistake may be.
_NAMES_ADDRESS = frozenset(
    {"connection_refused", "name_not_found", "no_tls", "certificate_verify_failed", "cannot_connect"}
)
# Another attempt cannot help here, beside a certificate that does not verify.
_HOPELESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidProxyURL,
    urllib3.exceptions.LocationValueError,
)
_PROXY_REFUSAL = "Tunnel connection failed: 407"  # http.client's words for it
_CERTIFICATE_HINTS = {
    True: "check the host in base_url",
    False: "if an authority of your own signed it, name that authority's file in REQUESTS_CA_BUNDLE or session.verify",
}
_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH (openssl/x509_vfy.h)
_PROXY_HINT = "check HTTPS_PROXY, HTTP_PROXY, ALL_PROXY or session.proxies"


class Route(NamedTuple):
    """How requests reach the server: its address, and that of the proxy, if there is one. Both are fit to be shown."""

    server: str
    proxy: str | None = None
    has_proxy_password: bool = False


Failure = tuple[type[CallError], str, str]


def judge_failure(error: BaseException, route: Route) -> Failure:
    """Return the class, the code and the message for a failure on the wire.

    Looks at every cause in the chain, because the outermost class misleads: requests raises ConnectionError
    for a body that stalls and for a certificate that does not verify.
    """
    chain = list(causes(error))
    kind, code, message = _judge_connecting(chain, route) or _judge_timeout(chain) or _judge_rest(chain)
    if route.proxy is not None and _find(chain, urllib3.exceptions.ProxyError, *_HOPELESS) is not None:
        message += f" (through the proxy {route.proxy}; {_PROXY_HINT})"
    elif code in _NAMES_ADDRESS:
        message += f" ({route.server})"
    return kind, code, message


def proxy_refusal(route: Route) -> str:
    """Return the message for a proxy that replies 407."""
    if route.has_proxy_password:
        return f"407: the proxy {route.proxy} refuses this user and password"
    hint = "set HTTPS_PROXY or HTTP_PROXY to http://user:password@host:port"
    return f"407: the proxy {route.proxy} asks for a user and a password, and none was given; {hint}"


def _judge_connecting(chain: list[BaseException], route: Route) -> Failure | None:
    cause = _describe(chain)
    certificate = _find(chain, ssl.SSLCertVerificationError, CertificateError)
    if certificate is not None:
        is_name = isinstance(certificate, CertificateError) or getattr(certificate, "verify_code", 0) in _WRONG_NAME
        message = f"the certificate does not verify: {cause}; {_CERTIFICATE_HINTS[is_name]}"
        return APIConnectionError, "certificate_verify_failed", message
    if any(_PROXY_REFUSAL in str(error) for error in chain):
        return APIConnectionError, "proxy_authentication", proxy_refusal(route)
    if _find(chain, *_HOPELESS):
        return APIConnectionError, "cannot_connect", f"no request can be made: {cause}"
    if _find(chain, socket.gaierror):
        return APIConnectionError, "name_not_found", f"the host name cannot be looked up: {cause}"
    return None


def _judge_timeout(chain: list[BaseException]) -> Failure | None:
    if _find(chain, urllib3.exceptions.ConnectTimeoutError) and not _find(chain, urllib3.exceptions.NewConnectionError):
        return APITimeoutError, "connect_timeout", "no connection within the connect timeout"
    is_late = _find(chain, socket.timeout, urllib3.exceptions.TimeoutError, requests.Timeout)
    if is_late and not _find(chain, ConnectionRefusedError):
        return APITimeoutError, "read_timeout", "no whole answer within the read timeout"
    return None


def _judge_rest(chain: list[BaseException]) -> Failure:
    cause = _describe(chain)
    found = _find(chain, ssl.SSLError)
    if found is not None:
        is_hopeless = (getattr(found, "reason", None) or "") in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")
        return APIConnectionError, "no_tls" if is_hopeless else "tls_failed", f"TLS failed: {cause}"
    if _find(chain, BadEncoding, requests.exceptions.ContentDecodingError, urllib3.exceptions.DecodeError):
        return InvalidResponseError, "bad_encoding", f"the answer cannot be decompressed: {cause}"
    if _find(chain, BodyTooLarge):
        return InvalidResponseError, "too_large", f"the answer is too large: {cause}"
    if _find(chain, RepeatedReply):
        return APIConnectionError, "stale_connection", str(cause)
    if _find(chain, MalformedReply) and _find(chain, requests.exceptions.ChunkedEncodingError):
        return APIConnectionError, "incomplete_read", f"the answer is malformed: {cause}"
    is_incomplete = _find(chain, IncompleteRead, requests.exceptions.ChunkedEncodingError)
    if is_incomplete and not _find(chain, ConnectionError):
        return APIConnectionError, "incomplete_read", "the connection closed in mid-answer"
    if _find(chain, ConnectionRefusedError):
        return APIConnectionError, "connection_refused", f"nothing listens at that address: {cause}"
    return APIConnectionError, "connection_failed", f"the connection failed: {cause}"


def is_of_the_wire(error: BaseException) -> bool:
    """A ValueError is the wire's only if requests or urllib3 raised it; any other is a bug, and is not hidden."""
    known = (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError, CertificateError)
    return not isinstance(error, ValueError) or isinstance(error, known)


def forget_frames(error: BaseException) -> None:
    """Let go of the frames that an error came through: some of urllib3's hold the error itself, and all of ours
    would be kept, threads and all, until the collector came."""
    for cause in causes(error):
        cause.__traceback__ = None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that is behind it: __cause__, __context__, and what requests and urllib3 wrap."""
    seen: set[int] = set()
    todo: list[Any] = [error]
    while todo:
        cause = todo.pop()
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            todo += [cause.__context__, cause.__cause__, getattr(cause, "reason", None), *cause.args]


def _find(chain: list[BaseException], *kinds: type[BaseException]) -> BaseException | None:
    return next((cause for cause in chain if isinstance(cause, kinds)), None)


def _describe(chain: list[BaseException]) -> str:
    """Name the innermost cause. The outer ones print the whole address, and addresses may hold secrets."""
    found = _find(chain, MalformedReply, BadEncoding, BodyTooLarge, RepeatedReply)
    if found is not None:  # ours, and sentences
        return str(found)
    cause = next((cause for cause in reversed(chain) if isinstance(cause, OSError) and cause.strerror), chain[-1])
    return f"{type(cause).__name__}: {cause}"[:300]
