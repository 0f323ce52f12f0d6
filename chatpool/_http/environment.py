"""Proxies and CA bundle, as requests reads them from a Session and the environment: once for each pool."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import requests
from requests.utils import prepend_scheme_if_needed, select_proxy
from urllib3.util.url import Url, parse_url

from chatpool.errors import ConfigurationError

from .failures import Route

_CERT_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


def resolve_environment(session: requests.Session, url: str, *, is_loopback: bool) -> dict[str, Any]:
    """Return requests' options for a server. requests would read the whole environment for each call.

    Raises ConfigurationError for a CA bundle that is not there. A server on this machine goes past the environment's
    proxies.
    """
    # requests lets REQUESTS_CA_BUNDLE override a Session's own verify (psf/requests#3829); passed outright it holds.
    verify = None if session.verify is True else session.verify
    found: dict[str, Any] = {**session.merge_environment_settings(url, {}, True, verify, None)}
    if found["verify"] is True and session.trust_env and url.startswith("https://"):
        found["verify"] = _openssl_bundle() or True
    if is_loopback:
        found["proxies"] = dict(session.proxies)
    bundle = found["verify"]
    if isinstance(bundle, str) and not os.path.exists(bundle):
        source = next((name for name in _CERT_VARIABLES if os.environ.get(name) == bundle), "session.verify")
        raise ConfigurationError(f"no CA bundle at {bundle!r}; fix {source}")
    return found


def find_route(url: str, shown_url: str, proxies: Mapping[str, str]) -> Route:
    """Return how requests reach a server; raise ConfigurationError for a proxy's address that is none."""
    proxy = select_proxy(url, dict(proxies))
    if not proxy:
        return Route(shown_url)
    shown = proxy.rpartition("@")[2]
    try:
        parts = parse_url(prepend_scheme_if_needed(proxy, "http"))  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):  # requests' of one that holds a password and no host
        parts = Url()
    if parts.scheme not in _PROXY_SCHEMES or not parts.host or parts.path not in (None, "", "/"):
        raise ConfigurationError(
            f"the proxy {shown!r} is not an address such as http://host:port; "
            "fix HTTPS_PROXY, HTTP_PROXY, ALL_PROXY or session.proxies"
        )
    return Route(shown_url, f"{parts.scheme}://{shown.rpartition('//')[2].rstrip('/')}", bool(parts.auth))


def _openssl_bundle() -> str | None:
    """OpenSSL's own variables, which requests does not read, but curl, httpx and so the OpenAI SDK do."""
    return os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR") or None
