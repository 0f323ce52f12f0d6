"""A plugin of proxy.py: the name chat.test, which nobody else knows, is this machine."""

from __future__ import annotations

from proxy.http.proxy import HttpProxyBasePlugin


class Names(HttpProxyBasePlugin):
    """Whatever arrives at a server called chat.test came by way of this proxy."""

    def resolve_dns(self, host: str, port: int) -> tuple[str | None, tuple[str, int] | None]:
        """Return the address of a name; None has it looked up."""
        return ("127.0.0.1" if host == "chat.test" else None), None
