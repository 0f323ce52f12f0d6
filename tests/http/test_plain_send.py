"""A short request leaves in one step that keeps the interpreter lock; whatever that cannot do, the socket does."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

import chatpool._http.plain_send
import chatpool._scheduling.preload
from chatpool import ChatPool
from chatpool._http.fast_path import is_enabled, send
from chatpool._http.plain_send import load_send, send_at_once

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems use socket.send")


@pytest.fixture(autouse=True)
def loaded():
    load_send()


def receive(sock, size):
    data = b""
    while len(data) < size and (more := sock.recv(size)):
        data += more
    return data


class Spy(socket.socket):
    """Another class of sockets, as a tool may bring it."""


@linux
def test_short_request_leaves_whole(ends):
    client, server = ends
    assert send_at_once(client, b"head\0body") == 9
    assert receive(server, 9) == b"head\0body"


@linux
def test_what_the_kernel_does_not_take_is_sent_when_it_does(ends):
    client, server = ends
    while send_at_once(client, b"x" * 10_000) == 10_000:
        pass
    unsent = b"y" * 40_000
    sender = threading.Thread(target=send, args=(client, b"head", unsent))
    sender.start()
    data = b""
    while not data.endswith(unsent) and (more := server.recv(2**20)):
        data += more
    sender.join()
    assert data.endswith(b"xhead" + unsent)


def test_rest_of_a_request_that_was_sent_in_part_follows(ends, monkeypatch):
    client, server = ends
    monkeypatch.setattr("chatpool._http.plain_send._libc_send", lambda fd, data, size, flags: client.send(data[:3]))
    send(client, b"head", b"body")
    assert receive(server, 8) == b"headbody"


@linux
def test_first_call_of_a_pool_loads_it(server, monkeypatch):
    monkeypatch.setattr(chatpool._http.plain_send, "_libc_send", None)
    monkeypatch.setattr(chatpool._scheduling.preload, "_is_done", False)
    with ChatPool(1, base_url=server.url) as pool:
        assert pool.map(["a"]) == ["a"]
    assert chatpool._http.plain_send._libc_send is not None


@pytest.mark.skipif(not is_enabled(), reason="with urllib3 1.26, http.client sends head and body by themselves")
@pytest.mark.parametrize("how", ["method", "class"])
def test_tool_that_watches_sockets_sees_every_request(how, server, monkeypatch):
    sent, send = [], socket.socket.send

    def watch(self, data, *flags):
        sent.append(bytes(data))
        return send(self, data, *flags)

    if how == "method":
        monkeypatch.setattr(socket.socket, "send", watch)
    else:
        monkeypatch.setattr(socket, "socket", type("Watched", (socket.socket,), {"send": watch}))
    with ChatPool(1, base_url=server.url) as pool:
        assert pool.map(["a", "b"]) == ["a", "b"]
    assert sum(data.startswith(b"POST ") for data in sent) == 2


@linux
def test_socket_that_cannot_send_raises(ends):
    client, _ = ends
    client.shutdown(socket.SHUT_WR)
    assert send_at_once(client, b"x") == 0
    with pytest.raises(BrokenPipeError):
        send(client, b"head", b"body")


def test_other_kinds_of_sockets_send_by_themselves(ends):
    client, server = ends
    spy = Spy(fileno=client.detach())
    with spy:
        assert send_at_once(spy, b"x") == 0
        send(spy, b"head", b"body")
        assert receive(server, 8) == b"headbody"


def test_python_without_ctypes_uses_socket_send(ends, monkeypatch):
    monkeypatch.setitem(sys.modules, "ctypes", None)
    monkeypatch.setattr(chatpool._http.plain_send, "_libc_send", None)
    load_send()
    client, server = ends
    assert send_at_once(client, b"x") == 0
    send(client, b"head", b"body")
    assert receive(server, 8) == b"headbody"
