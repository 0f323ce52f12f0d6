"""What went wrong on the wire: requests', urllib3's and the socket's exceptions → class, code and message of ours."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from http.client import IncompleteRead
from typing import Any

import requests
import urllib3

from chatpool.errors import APIConnectionError, APITimeoutError, CallError, InvalidResponseError

# Failures whose message names the address: that is where the mistake may be.
WHERE = frozenset({"connection_refused", "name_not_found", "no_tls", "certificate_verify_failed", "cannot_connect"})
# What another try cannot mend, beside a certificate that does not verify.
_HOPELESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidProxyURL,
    urllib3.exceptions.LocationValueError,
)
_PROXY_REFUSAL = "Tunnel connection failed: 407"  # http.client's words for it


def judge_failure(error: BaseException) -> tuple[type[CallError], str, str]:
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
    if any(_PROXY_REFUSAL in str(cause) for cause in chain):
        return APIConnectionError, "proxy_authentication", f"the proxy does not know this user and password: {told}"
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


def forget_frames(error: BaseException) -> None:
    """Let go of the frames that an error came through: some of urllib3's hold the error itself, and all of ours
    would be kept, threads and all, until the collector came."""
    for cause in _causes(error):
        cause.__traceback__ = None


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
