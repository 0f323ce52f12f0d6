"""A forward proxy from the environment. Only it resolves chat.test, so every answer came through it."""

from __future__ import annotations

import os
import ssl

import pytest
import trustme

from chatpool import APIConnectionError, APITimeoutError, ChatPool, NotSentError
from chatpool.testing import FakeChatServer, Reply

from .servers import chatpool, require

require("forward_proxy")

PROMPTS = [f"question {number}" for number in range(500)]


def url_of(server):
    scheme, port = server.url.split("://")[0], server.port
    return f"{scheme}://chat.test:{port}/v1"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(params=["http", "https"])
def server(request, authority, tmp_path, monkeypatch):
    """A server for chat.test; with https, the environment names its certificate authority."""
    tls = None
    if request.param == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("chat.test").configure_cert(tls)
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    with FakeChatServer(tls=tls) as server:
        yield server


@pytest.fixture
def use_proxy(forward_proxy, monkeypatch):
    """Set the environment variables for the proxy."""

    def use(credentials="user:secret@", port=forward_proxy.port):
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://{credentials}127.0.0.1:{port}")

    return use


def test_every_prompt_has_its_own_answer(server, use_proxy):
    """25 workers: in order, one request each."""
    use_proxy()
    with ChatPool(25, base_url=url_of(server)) as pool:
        assert pool.map(PROMPTS) == PROMPTS
    assert len(server.requests) == 500
    assert server.connections <= 25


def test_without_the_proxy_the_server_is_unknown(server):
    """This shows that the test above can fail."""
    with ChatPool(1, base_url=url_of(server), max_tries=1) as pool:
        assert type(pool.map(["a"]).failures[0].error) in (APIConnectionError, APITimeoutError)
    assert server.requests == []


def test_no_proxy_is_obeyed(server, use_proxy, monkeypatch):
    """Hosts in NO_PROXY are resolved directly."""
    use_proxy()
    monkeypatch.setenv("NO_PROXY", "other.test,chat.test")
    with ChatPool(1, base_url=url_of(server), max_tries=1) as pool:
        assert type(pool.map(["a"]).failures[0].error) in (APIConnectionError, APITimeoutError)
    assert server.requests == []


def test_loopback_server_bypasses_the_proxy(use_proxy):
    """No proxy listens on port 1."""
    use_proxy(port=1)
    with FakeChatServer() as server, ChatPool(5, base_url=server.url) as pool:
        assert pool.map(PROMPTS) == PROMPTS


def test_wrong_proxy_password_ends_the_map(server, use_proxy):
    """407: no prompt arrives, no call is retried, and most are not sent."""
    use_proxy("user:wrong@")
    with ChatPool(25, base_url=url_of(server)) as pool:
        answers = pool.map(PROMPTS)
    assert NotSentError in {type(result.error) for result in answers.results}
    assert all("407" in str(result.error) for result in answers.results)
    assert sum(result.attempts for result in answers.results) <= 25
    assert "wrong" not in answers.summary()
    assert server.requests == []


def test_unreachable_proxy_is_a_connection_error(server, use_proxy):
    """No proxy listens on port 1."""
    use_proxy(port=1)
    with ChatPool(1, base_url=url_of(server), max_tries=2, max_wait=0.1) as pool:
        (result,) = pool.map(["a"]).results
    assert type(result.error) is APIConnectionError
    assert result.attempts == 2


def test_faults_behind_the_proxy_lose_no_call(server, use_proxy):
    """Errors, connections lost in the middle of an answer and rate limits are retried."""
    use_proxy()
    faults = [Reply(status=500), Reply(fault="close"), Reply(fault="truncate"), Reply(fault="reset_midway")]
    limit = Reply(status=429, headers={"retry-after": "1"})
    for prompt, fault in zip(PROMPTS, [*faults, limit]):
        server.script(prompt, fault, Reply())
    with ChatPool(25, base_url=url_of(server), max_wait=2) as pool:
        assert pool.map(PROMPTS) == PROMPTS


def test_stalled_call_behind_the_proxy_times_out(server, use_proxy):
    """The time limit of an answer applies."""
    use_proxy()
    server.script("a", Reply(fault="stall_midway"), Reply())
    with ChatPool(25, base_url=url_of(server), timeout=(5, 1), max_wait=0.1) as pool:
        assert pool.map(["a", *PROMPTS]) == ["a", *PROMPTS]


def test_command_uses_the_proxy(server, use_proxy, tmp_path):
    """A second run sends nothing."""
    use_proxy()
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    for _ in range(2):
        done = chatpool(
            tmp_path, "run", "prompts.txt", "-o", "answers.jsonl", "--base-url", url_of(server), **os.environ
        )
        assert done.returncode == 0, done.stderr
    assert len(server.requests) == 500
