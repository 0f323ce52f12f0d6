"""Connections and addresses of the tests of HTTP."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection's two ends, the client's and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with client, server:
            server.settimeout(10)
            yield client, server


@contextlib.contextmanager
def black_hole(ip: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Open a port that answers no attempt to connect, as its backlog is full; yield its number."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind((ip, port))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((ip, port))
        yield port
