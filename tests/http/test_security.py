"""The key stays where it belongs: in the one header of the one host.

What a model itself writes into an answer is data, and is not touched.
"""

from __future__ import annotations

import logging
import pickle
import socket
import threading
import traceback

import pytest
import requests

from chatpool import (
    ChatPool,
    ConfigurationError,
    NotSentError,
)
from chatpool.testing import FakeChatServer, Reply

KEY = "sk-secret-1234567890abcdef"
FAULTS = {
    "401 that echoes the key": Reply(status=401, body={"error": {"message": f"bad key {KEY}", "code": KEY}}),
    "400 that echoes the key": Reply(status=400, body=f"key {KEY}", headers={"x-request-id": KEY}),
    "200 that echoes the key": Reply(body=f"<html>{KEY}</html>"),
    "redirect": Reply(status=307, body="", headers={"Location": f"https://elsewhere.example/?k={KEY}"}),
    **{fault: Reply(fault=fault) for fault in ("reset", "close", "truncate", "stall", "drip")},
}


def everything_about(error):
    """All that could show a secret: the texts, the fields, causes and contexts, and what they hold, tracebacks with locals."""
    seen, shown, todo = set(), [], [error]
    while todo:
        item = todo.pop()
        if id(item) in seen or item is None:
            continue
        seen.add(id(item))
        shown += [str(item), repr(item)]
        if isinstance(item, BaseException):
            frames = traceback.TracebackException.from_exception(item, capture_locals=True).stack
            shown += [str(frame.locals) for frame in frames if frame.filename != __file__]  # this test knows the key
            todo += [item.__cause__, item.__context__, *item.args, *vars(item).values()]
        elif isinstance(item, (requests.PreparedRequest, requests.Response)):
            shown.append(str(item.headers))
            todo.append(getattr(item, "request", None))
    return "\n".join(shown)


@pytest.mark.parametrize("credentials", [{"api_key": KEY}, {"headers": {"api-key": KEY}}], ids=["bearer", "azure"])
@pytest.mark.parametrize("name", FAULTS)
def test_key_is_in_no_error(server, credentials, name, caplog):
    """Neither in what the server echoes nor in what requests keeps, nor in any log at DEBUG."""
    caplog.set_level(logging.DEBUG)
    server.script("a", FAULTS[name])
    with ChatPool(1, base_url=server.url, timeout=(1, 0.2), max_tries=2, max_wait=0.01, **credentials) as pool:
        answers = pool.map(["a"])
        with pytest.raises(Exception, match=r".") as caught:
            pool.ask("a")
        with pytest.raises(Exception, match=r".") as raised:
            answers.raise_for_failures()
        error = answers.failures[0].error
        for shown in (error, caught.value, raised.value):
            assert KEY not in everything_about(shown)
        assert KEY not in f"{pool!r} {answers.summary()} {error.__dict__}"
        assert KEY.encode() not in pickle.dumps(error)
    for record in caplog.records:
        assert KEY not in f"{record.getMessage()} {record.args} {record.exc_info}"


def test_key_is_in_no_result_and_no_pickle_of_the_environments(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ChatPool(2, base_url=server.url) as pool:
        answers = pool.map(["a"])
        assert KEY not in f"{answers.results!r} {pool!r} {pool._settings!r}"
        assert KEY.encode() not in pickle.dumps(answers)
        assert KEY.encode() not in pickle.dumps(pool)


def test_netrc_does_not_replace_the_key(server, tmp_path, monkeypatch):
    """Not even its default entry; and without a key it adds none."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password netrc-password\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert ChatPool(base_url=server.url, api_key=KEY).map(["a"]) == ["a"]
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert ChatPool(base_url=server.url).map(["a"]) == ["a"]
    assert "authorization" not in server.requests[-1].headers
    with requests.Session() as session:
        assert ChatPool(base_url=server.url, api_key=KEY, session=session).map(["a"]) == ["a"]
    assert server.requests[-1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("credentials", [{"api_key": KEY}, {"headers": {"api-key": KEY}}], ids=["bearer", "azure"])
def test_key_does_not_follow_a_redirect(server, status, credentials):
    """Neither to another port nor to another host, neither as Authorization nor in a header of its own."""
    with FakeChatServer() as elsewhere:
        for host in ("127.0.0.1", "localhost"):
            target = f"http://{host}:{elsewhere.port}/v1/chat/completions"
            server.script("a", Reply(status=status, body="", headers={"Location": target}))
            with ChatPool(1, base_url=server.url, **credentials) as pool:
                assert pool.map(["a"]) == [None]
        assert elsewhere.requests == []
        assert elsewhere.connections == 0


class Proxy:
    """Notes the first bytes of each connection, sends its reply and hangs up."""

    def __init__(self, reply=b""):
        self.reply = reply

    def __enter__(self):
        self.seen = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def run(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock:
                self.seen.append(sock.recv(65536))
                sock.sendall(self.reply)

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_goes_past_the_environments_proxies(server, monkeypatch, host):
    """A local server's key must not reach a proxy, which could not reach that server anyway."""
    with Proxy() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        url = server.url.replace("127.0.0.1", host)
        assert ChatPool(base_url=url, api_key=KEY).map(["a"]) == ["a"]
        assert proxy.seen == []


def test_environments_proxy_is_used_and_read_once(monkeypatch):
    """For a server elsewhere; over https the proxy sees a CONNECT and no key."""
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with ChatPool(1, base_url="https://api.example.com/v1", api_key=KEY, max_tries=2, max_wait=0.01) as pool:
            pool.map(["a"])
            monkeypatch.delenv("HTTPS_PROXY")
            pool.map(["a"])
        assert len(proxy.seen) == 4
        assert all(seen.startswith(b"CONNECT api.example.com:443") for seen in proxy.seen)
        assert not any(KEY.encode() in seen for seen in proxy.seen)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_the_password_ends_the_map(monkeypatch, scheme):
    """No prompt can pass it: it is named at once, and neither tried again nor taken for an outage."""
    with Proxy(
        b"HTTP/1.1 407 Proxy Authentication Required\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    ) as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", proxy.url.replace("//", "//user:wrong-password@"))
        with ChatPool(5, base_url=f"{scheme}://api.example.com/v1") as pool:
            answers = pool.map(["a"] * 100)
    assert len(proxy.seen) <= 5
    assert {type(result.error) for result in answers.results} > {NotSentError}
    assert all("407" in str(result.error) for result in answers.results)
    assert all(f"proxy {proxy.url} refuses this user" in str(result.error) for result in answers.results)
    assert "wrong-password" not in answers.summary()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_and_got_none(monkeypatch, scheme):
    """The error says that none was given, and where to put it."""
    with Proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv(f"{scheme}_proxy", proxy.url)
        with ChatPool(5, base_url=f"{scheme}://api.example.com/v1") as pool:
            answers = pool.map(["a"] * 100)
    assert len(proxy.seen) <= 5
    message = f"the proxy {proxy.url} asks for a user and a password, and none was given"
    assert all(message in str(result.error) for result in answers.results)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_dead(monkeypatch, scheme):
    """The error names the proxy and its variables, not the server."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv(f"{scheme}_proxy", proxy.replace("//", "//user:password@"))
        with ChatPool(1, base_url=f"{scheme}://api.example.com/v1", max_tries=1) as pool:
            error = pool.map(["a"]).results[0].error
    assert error.code == "connection_refused"
    assert f"through the proxy {proxy}" in str(error)
    assert "HTTPS_PROXY" in str(error)
    assert "password" not in str(error)


def test_a_proxy_whose_name_does_not_exist(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://no-such-proxy.invalid:3128")
    monkeypatch.setattr("socket.getaddrinfo", fail_look_up)
    with ChatPool(1, base_url="https://api.example.com/v1", max_tries=1) as pool:
        error = pool.map(["a"]).results[0].error
    assert error.code == "name_not_found"
    assert "through the proxy http://no-such-proxy.invalid:3128" in str(error)


def fail_look_up(*_, **__):
    raise socket.gaierror(-2, "Name or service not known")


def test_a_proxy_that_does_not_tunnel(monkeypatch):
    with Proxy(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with ChatPool(1, base_url="https://api.example.com/v1", max_tries=1) as pool:
            error = pool.map(["a"]).results[0].error
    assert "503" in str(error)
    assert f"through the proxy {proxy.url}" in str(error)


@pytest.mark.parametrize(
    "proxy", ["htp://proxy:3128", "http//proxy:3128", "http://", "http://proxy:port", "http://[::1"]
)
def test_a_proxy_that_is_misspelt(monkeypatch, proxy):
    """It is refused, without its password, before anything is sent."""
    monkeypatch.setenv("https_proxy", proxy.replace("//", "//user:password@"))
    pool = ChatPool(1, base_url="https://api.example.com/v1")
    with pytest.raises(ConfigurationError, match="fix HTTPS_PROXY") as caught:
        pool.map(["a"])
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("is_watched", [False, True])
def test_secret_in_the_query_is_in_no_log(server, caplog, monkeypatch, is_watched):
    """urllib3 logs the whole path at DEBUG, where it handles a call: while a tool watches it, or for a proxy."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("chatpool._http.pools.is_enabled", lambda: not is_watched)
    url = f"{server.url}?api-version=7&subscription-key={KEY}"
    with ChatPool(1, base_url=url) as pool:
        assert pool.map(["a"]) == ["a"]
    assert server.requests[0].path.endswith(f"subscription-key={KEY}")
    assert KEY not in caplog.text
    assert not is_watched or "api-version=7&subscription-key=[redacted]" in caplog.text


def test_key_with_white_space_around_it_is_stripped(server):
    with ChatPool(base_url=server.url, api_key=f"  {KEY}\r\n") as pool:
        pool.map(["a"])
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


class Auth(requests.auth.AuthBase):
    def __call__(self, request):
        request.headers["Authorization"] = f"Bearer {KEY}"
        return request


@pytest.mark.parametrize("way", ["header", "other header", "session header", "session auth"])
def test_credentials_of_every_kind_are_redacted(server, way):
    """However the key came, also where a message is cut in the middle of it."""
    session = requests.Session()
    headers = {"header": {"Authorization": f"Bearer {KEY}"}, "other header": {"Ocp-Apim-Subscription-Key": KEY}}
    if way == "session header":
        session.headers["Authorization"] = f"Bearer {KEY}"
    if way == "session auth":
        session.auth = Auth()
    server.script("a", Reply(status=400, body={"error": {"message": "x" * 490 + KEY}}))
    server.script("b", Reply(status=400, body={"error": {"message": f"key: {KEY}"}}))
    with ChatPool(1, base_url=server.url, session=session, headers=headers.get(way)) as pool:
        shown = " ".join(f"{result.error} {result.error.body}" for result in pool.map(["a", "b"]).failures)
    session.close()
    assert KEY[:8] not in shown


def test_secret_in_the_query_is_redacted(server):
    """Where the server's error echoes the path, encoded or not."""
    server.script("a", Reply(status=404, body={"error": {"message": f"no route /x?sig={KEY}%2F1 or {KEY}/1"}}))
    with ChatPool(1, base_url=f"{server.url}?api-version=2024-02-01&sig={KEY}%2F1") as pool:
        (failure,) = pool.map(["a"]).failures
    assert KEY not in f"{failure.error} {failure.error.body}"
    assert "no route" in str(failure.error)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("ollama", "ollama pull; ollama_pull"),  # a word that local servers take for a key
        ("password1", "[redacted] pull; password1_pull"),
        ("sk-0123456789abcdef", "[redacted] pull; [redacted]_pull"),
    ],
)
def test_only_what_looks_like_a_secret_is_redacted(server, key, shown):
    """Eight characters or more; below sixteen, a whole word."""
    server.script("a", Reply(status=404, body={"error": {"message": f"{key} pull; {key}_pull"}}))
    with ChatPool(1, base_url=server.url, api_key=key) as pool:
        assert f"404: {shown}" in str(pool.map(["a"]).failures[0].error)
