"""Over TLS: one context for a pool's connections, certificates as requests checks them, early replies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading

import pytest
import requests
import trustme
from urllib3.exceptions import InsecureRequestWarning

from chatpool import APIConnectionError, APIStatusError, ChatPool, ConfigurationError, NotSentError
from chatpool.testing import FakeChatServer, Reply


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def bundle(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_context(authority, *names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("localhost", "127.0.0.1"))).configure_cert(context)
    return context


@pytest.fixture
def tls_server(authority):
    with FakeChatServer(tls=server_context(authority), latency=0.02) as server:
        yield server


@pytest.fixture
def trusted_server(tls_server, bundle, monkeypatch):
    """The server; the environment names its authority."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    return tls_server


@pytest.fixture
def changes(monkeypatch):
    """The names of the methods that changed a client's context, in turn."""
    seen = []

    def record(name, real):
        def change(self, *args, **kwargs):
            seen.append(name)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(ssl.SSLContext, name, change)

    for name in ("load_verify_locations", "load_cert_chain", "load_default_certs", "set_alpn_protocols"):
        record(name, getattr(ssl.SSLContext, name))
    return seen


class TLSProxy:
    """A proxy that is itself spoken to over TLS: tunnels what CONNECT asks for, and forwards what is plain http."""

    def __init__(self, authority):
        self.context = server_context(authority)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self.listener.getsockname()[1]}"
        self.tunnels = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        with contextlib.suppress(OSError), self.context.wrap_socket(sock, server_side=True) as client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(65536)
            method, target = head.split()[:2]
            host = target.rpartition(b"//")[2].partition(b"/")[0].decode()
            with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2]))) as upstream:
                if method == b"CONNECT":
                    self.tunnels += 1
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    upstream.sendall(head)
                self.relay(client, upstream)

    def relay(self, client, upstream):
        def back():
            with contextlib.suppress(OSError):
                while data := upstream.recv(65536):
                    client.sendall(data)

        threading.Thread(target=back, daemon=True).start()
        while data := client.recv(65536):
            upstream.sendall(data)


# One context.


def test_all_connections_share_one_context(trusted_server, changes):
    """It is made once, and after the first handshake never changed."""
    with ChatPool(10, base_url=trusted_server.url) as pool:
        assert pool.map(["a"] * 50) == ["a"] * 50
    assert trusted_server.connections == 10
    assert sorted(changes) == ["load_verify_locations", "set_alpn_protocols"]


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")  # requests' for a forwarding proxy
@pytest.mark.parametrize("target", ["http", "https"])
def test_https_proxy(authority, bundle, changes, target, request):
    """The context for the proxy is shared, too; but urllib3 1.26 makes one for each connection."""
    server = request.getfixturevalue("tls_server" if target == "https" else "server")
    server._latency = 0.02
    with TLSProxy(authority) as proxy, requests.Session() as session:
        session.proxies, session.verify = {target: proxy.url}, bundle
        with ChatPool(4, base_url=server.url, session=session) as pool:
            assert pool.map(["a"] * 20) == ["a"] * 20
        assert proxy.tunnels == (4 if target == "https" else 0)
    if not requests.urllib3.__version__.startswith("1."):
        assert changes.count("load_verify_locations") <= 2


def test_a_forked_child_makes_its_own(trusted_server):
    """A context's locks may be held, at the moment of the fork, by threads that the child does not have."""
    with ChatPool(2, base_url=trusted_server.url) as pool:
        assert pool.map(["a"] * 4) == ["a"] * 4
        fork = multiprocessing.get_context("fork")
        answers = fork.SimpleQueue()
        child = fork.Process(target=lambda: answers.put(list(pool.map(["b"] * 4))))
        child.start()
        assert answers.get() == ["b"] * 4
        child.join()
        assert pool.map(["c"] * 4) == ["c"] * 4


def test_pools_with_other_certificates_have_other_contexts(tls_server, authority, bundle):
    """Also on one Session, whose adapter they share: verify=False of one is not the other's."""
    with requests.Session() as session:
        session.verify = False
        with ChatPool(2, base_url=tls_server.url, session=session) as pool, pytest.warns(InsecureRequestWarning):
            assert pool.map(["a"] * 4) == ["a"] * 4
        session.verify = True
        with ChatPool(2, base_url=tls_server.url, session=session, max_tries=1) as pool:
            assert pool.map(["a"]).results[0].error.code == "certificate_verify_failed"
        session.verify = bundle
        with ChatPool(2, base_url=tls_server.url, session=session) as pool:
            assert pool.map(["a"] * 4) == ["a"] * 4


# What requests allows.


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "SSL_CERT_DIR"])
def test_folder_of_authorities(tls_server, bundle, name, tmp_path, monkeypatch):
    subprocess.run(["openssl", "rehash", str(tmp_path)], check=True)
    monkeypatch.setenv(name, str(tmp_path))
    with ChatPool(4, base_url=tls_server.url) as pool:
        assert pool.map(["a"] * 20) == ["a"] * 20


def test_client_certificate(authority, bundle, tmp_path, changes):
    """Read once; without it the server lets nobody in."""
    authority.issue_cert("me@example.test").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "me.pem"))
    context = server_context(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    del changes[:]
    with FakeChatServer(tls=context, latency=0.02) as server, requests.Session() as session:
        session.verify, session.cert = bundle, str(tmp_path / "me.pem")
        with ChatPool(4, base_url=server.url, session=session) as pool:
            assert pool.map(["a"] * 20) == ["a"] * 20
        assert changes.count("load_cert_chain") == 1
        session.cert = None
        with ChatPool(1, base_url=server.url, session=session, max_tries=1) as pool:
            assert isinstance(pool.map(["a"]).results[0].error, APIConnectionError)


class OwnContext(ssl.SSLContext):
    """A class that a user's adapter brings."""

    handshakes = 0

    def wrap_socket(self, *args, **kwargs):
        type(self).handshakes += 1
        return super().wrap_socket(*args, **kwargs)


@pytest.mark.parametrize("kind", [ssl.SSLContext, OwnContext])
def test_context_of_a_users_adapter(tls_server, authority, bundle, kind):
    """It is the one that is used, with what the user loaded into it, and with the bundle that requests adds."""

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            context = kind(ssl.PROTOCOL_TLS_CLIENT)
            authority.configure_trust(context)
            super().init_poolmanager(*args, ssl_context=context, **kwargs)

    OwnContext.handshakes = 0
    with requests.Session() as session:
        session.mount("https://", Adapter(pool_maxsize=4))
        with ChatPool(4, base_url=tls_server.url, session=session) as pool:
            assert pool.map(["a"] * 20) == ["a"] * 20
    assert OwnContext.handshakes == (tls_server.connections if kind is OwnContext else 0)


TRUSTSTORE = """
import sys, truststore
truststore.inject_into_ssl() if sys.argv[2] == "before" else None
from chatpool import ChatPool
truststore.inject_into_ssl() if sys.argv[2] == "after" else None
print(ChatPool(4, base_url=sys.argv[1]).map(["a"] * 20) == ["a"] * 20)
"""


@pytest.mark.skipif(sys.version_info < (3, 10), reason="truststore needs Python 3.10")
@pytest.mark.parametrize("order", ["before", "after"])
def test_truststore(tls_server, bundle, order):
    """Its class replaces ssl's own; each connection has its own, as in requests."""
    pytest.importorskip("truststore")
    environment = {**os.environ, "SSL_CERT_FILE": bundle}
    command = [sys.executable, "-c", TRUSTSTORE, tls_server.url, order]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_variables_that_name_a_bundle(tls_server, bundle, name, monkeypatch, tmp_path):
    """Also OpenSSL's, which requests does not read; one that names no file is refused by its name."""
    monkeypatch.setenv(name, bundle)
    assert ChatPool(1, base_url=tls_server.url).map(["a"]) == ["a"]
    monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    with pytest.raises(ConfigurationError, match=f"none.pem'; fix {name}"):
        ChatPool(1, base_url=tls_server.url).map(["a"])


# Certificates that do not verify.


def test_certificate_of_an_unknown_authority(tls_server):
    """The map ends, and the error says where to name the authority."""
    with ChatPool(2, base_url=tls_server.url) as pool:
        answers = pool.map(["a"] * 50)
    assert tls_server.requests == []
    assert {type(result.error) for result in answers.results} == {APIConnectionError, NotSentError}
    error = answers.results[0].error
    assert error.code == "certificate_verify_failed"
    assert "REQUESTS_CA_BUNDLE or session.verify" in str(error)


def test_certificate_for_another_name(authority, bundle, monkeypatch):
    """Likewise; here the address is to be checked."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    context = server_context(authority, "elsewhere.test")
    with FakeChatServer(tls=context) as server, ChatPool(2, base_url=server.url) as pool:
        answers = pool.map(["a"] * 50)
        assert server.requests == []
        assert server.connections <= 4
    error = answers.results[0].error
    assert error.code == "certificate_verify_failed"
    assert "base_url" in str(error)
    assert {type(result.error) for result in answers.results} == {APIConnectionError, NotSentError}


@pytest.mark.parametrize(("name", "code"), [("localhost", None), ("elsewhere.test", "certificate_verify_failed")])
def test_name_that_a_users_adapter_asks_for(tls_server, bundle, name, code):
    """urllib3 compares it with the certificate itself, in a context of the connection's own."""

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            super().init_poolmanager(*args, assert_hostname=name, **kwargs)

    with requests.Session() as session:
        session.mount("https://", Adapter())
        session.verify = bundle
        with ChatPool(1, base_url=tls_server.url, session=session, max_tries=1) as pool:
            result = pool.map(["a"]).results[0]
    assert (result.error and result.error.code) == code


# Replies that come before the whole request was read.


class EarlyServer:
    """Reads 64 kB of a request, replies and closes."""

    def __init__(self, reply, tls=None):
        self.reply, self.tls, self.connections = reply, tls, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' if tls else ''}://localhost:{self.listener.getsockname()[1]}/v1"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.connections += 1
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or close() may drop the reply
                with contextlib.suppress(OSError):
                    sock = self.tls.wrap_socket(sock, server_side=True) if self.tls else sock
                    sock.recv(65536)
                    sock.sendall(self.reply)
                sock.close()


TOO_LARGE = (
    b"HTTP/1.1 413 Too Large\r\nContent-Length: 38\r\nConnection: close\r\n\r\n"
    + (b'{"error": {"message": "it is too big"}}'[:38])
)


@pytest.mark.parametrize("kind", ["plain", "tls"])
@pytest.mark.parametrize("way", ["fast", "libraries"])
def test_early_reply_is_heard(authority, bundle, monkeypatch, kind, way):
    """413 while 8 MB are being sent: the prompt's own fault, asked once."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    if way == "libraries":
        monkeypatch.setattr("chatpool._http.pools.is_enabled", lambda: False)
    with (
        EarlyServer(TOO_LARGE, server_context(authority) if kind == "tls" else None) as server,
        ChatPool(1, base_url=server.url, max_wait=0.01) as pool,
    ):
        result = pool.map(["x" * 8_000_000]).results[0]
        assert (type(result.error), result.error.status_code, result.attempts) == (APIStatusError, 413, 1), result.error
        assert server.connections == 1


def test_reply_over_tls_is_read_in_pieces(trusted_server):
    """A long answer takes many TLS records."""
    text = "long " * 100_000
    trusted_server.script("a", Reply(text))
    with ChatPool(1, base_url=trusted_server.url) as pool:
        assert pool.map(["a", "b"]) == [text, "b"]
    assert trusted_server.connections == 1


@pytest.mark.parametrize("size", [10, 16_000, 17_000, 60_000, 70_000, 1_000_000])
def test_request_over_tls_leaves_whole(trusted_server, size):
    """TLS takes 16 kB at a time."""
    texts = [letter * size for letter in "ab"]
    with ChatPool(2, base_url=trusted_server.url) as pool:
        assert pool.map(texts * 2) == texts * 2
