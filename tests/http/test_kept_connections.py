"""Before a kept connection is used again: has the server closed it, or sent anything that nobody asked for?"""

from __future__ import annotations

import socket
import struct
import sys

import pytest
from urllib3.connection import HTTPConnection

import chatpool._http.connections
from chatpool._http.connections import AbortableHTTPConnection, _is_quiet
from tests.conftest import wait_until

pytestmark = pytest.mark.skipif(not hasattr(HTTPConnection, "is_connected"), reason="urllib3 1.26 polls by itself")


def send_a_byte(server):
    server.sendall(b"H")


def end(server):
    server.shutdown(socket.SHUT_WR)


def reset(server):
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()


def send_and_end(server):
    server.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    server.close()


EVENTS = [send_a_byte, end, reset, send_and_end]


@pytest.fixture
def connection(ends):
    connection = AbortableHTTPConnection("127.0.0.1")
    connection.sock = ends[0]
    return connection


@pytest.mark.parametrize("can_ask_the_kernel", [True, False])
@pytest.mark.parametrize("event", EVENTS)
def test_connection_is_not_used_again_after(event, can_ask_the_kernel, connection, ends, monkeypatch):
    if not can_ask_the_kernel:
        monkeypatch.setattr(chatpool._http.connections, "_is_quiet", lambda sock: False)
    assert connection.is_connected
    event(ends[1])
    assert wait_until(lambda: not connection.is_connected)


def test_connection_is_used_again_once_all_is_read(connection, ends):
    client, server = ends
    server.sendall(b"x" * 100_000)
    missing = 100_000
    while missing:
        missing -= len(client.recv(missing))
    assert connection.is_connected


@pytest.mark.skipif(sys.platform != "linux", reason="other systems poll")
@pytest.mark.parametrize("event", EVENTS)
def test_kernel_says_whether_a_connection_is_quiet(event, ends):
    client, server = ends
    assert _is_quiet(client)
    event(server)
    assert wait_until(lambda: not _is_quiet(client))


def test_socket_that_is_no_tcp_is_polled():
    client, server = socket.socketpair()
    with client, server:
        assert not _is_quiet(client)
        connection = AbortableHTTPConnection("127.0.0.1")
        connection.sock = client
        assert connection.is_connected
        server.sendall(b"x")
        assert not connection.is_connected
