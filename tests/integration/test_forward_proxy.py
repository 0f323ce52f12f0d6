"""A forward proxy that the environment names. Its chat.test is known to nobody else, so what is answered went through it."""

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
    """A server at chat.test, whose authority the environment names."""
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
    """Name the proxy in the environment."""

    def use(credentials="user:secret@", port=forward_proxy.port):
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://{credentials}127.0.0.1:{port}")

    return use


def test_every_prompt_has_its_own_answer(server, use_proxy):
    """25 workers: in order, each asked once."""
    use_proxy()
    with ChatPool(25, base_url=url_of(server)) as pool:
        assert pool.map(PROMPTS) == PROMPTS
    assert len(server.requests) == 500
    assert server.connections <= 25


def test_without_the_proxy_the_server_is_unknown(server):
    """So that the test before can fail."""
    with ChatPool(1, base_url=url_of(server), max_tries=1) as pool:
        assert type(pool.map(["a"]).failures[0].error) in (APIConnectionError, APITimeoutError)
    assert server.requests == []


def test_no_proxy_is_obeyed(server, use_proxy, monkeypatch):
    """What NO_PROXY names is looked for directly."""
    use_proxy()
    monkeypatch.setenv("NO_PROXY", "other.test,chat.test")
    with ChatPool(1, base_url=url_of(server), max_tries=1) as pool:
        assert type(pool.map(["a"]).failures[0].error) in (APIConnectionError, APITimeoutError)
    assert server.requests == []


def test_a_server_on_this_machine_is_reached_past_the_proxy(use_proxy):
    """Whatever the environment says: nothing listens on port 1."""
    use_proxy(port=1)
    with FakeChatServer() as server, ChatPool(5, base_url=server.url) as pool:
        assert pool.map(PROMPTS) == PROMPTS


def test_a_wrong_password_of_the_proxys_is_named_and_ends_the_map(server, use_proxy):
    """407: no prompt arrives, nothing is tried again, and most are not even sent."""
    use_proxy("user:wrong@")
    with ChatPool(25, base_url=url_of(server)) as pool:
        answers = pool.map(PROMPTS)
    assert NotSentError in {type(result.error) for result in answers.results}
    assert all("407" in str(result.error) for result in answers.results)
    assert sum(result.attempts for result in answers.results) <= 25
    assert "wrong" not in answers.summary()
    assert server.requests == []


def test_a_proxy_that_is_not_there_is_named(server, use_proxy):
    """Nothing listens on port 1."""
    use_proxy(port=1)
    with ChatPool(1, base_url=url_of(server), max_tries=2, max_wait=0.1) as pool:
        (result,) = pool.map(["a"]).results
    assert type(result.error) is APIConnectionError
    assert result.attempts == 2


def test_faults_behind_the_proxy_lose_no_call(server, use_proxy):
    """Errors, connections cut in mid-answer and limits pass through it, and are tried again."""
    use_proxy()
    faults = [Reply(status=500), Reply(fault="close"), Reply(fault="truncate"), Reply(fault="reset_midway")]
    limit = Reply(status=429, headers={"retry-after": "1"})
    for prompt, fault in zip(PROMPTS, [*faults, limit]):
        server.script(prompt, fault, Reply())
    with ChatPool(25, base_url=url_of(server), max_wait=2) as pool:
        assert pool.map(PROMPTS) == PROMPTS


def test_a_stall_behind_the_proxy_is_cut(server, use_proxy):
    """The time limit for an answer holds through it."""
    use_proxy()
    server.script("a", Reply(fault="stall_midway"), Reply())
    with ChatPool(25, base_url=url_of(server), timeout=(5, 1), max_wait=0.1) as pool:
        assert pool.map(["a", *PROMPTS]) == ["a", *PROMPTS]


def test_the_command_goes_through_it(server, use_proxy, tmp_path):
    """And a second run asks for nothing again."""
    use_proxy()
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    for _ in range(2):
        done = chatpool(
            tmp_path, "run", "prompts.txt", "-o", "answers.jsonl", "--base-url", url_of(server), **os.environ
        )
        assert done.returncode == 0, done.stderr
    assert len(server.requests) == 500
