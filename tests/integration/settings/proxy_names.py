"""A plugin of proxy.py that resolves chat.test to this machine."""

from __future__ import annotations

from proxy.http.proxy import HttpProxyBasePlugin


class Names(HttpProxyBasePlugin):
    """No other resolver knows the name, so a request to chat.test arrives only through this proxy."""

    def resolve_dns(self, host: str, port: int) -> tuple[str | None, tuple[str, int] | None]:
        """Return the address of a name; None for the system's resolver."""
        return ("127.0.0.1" if host == "chat.test" else None), None
