"""The protocol, tested with `responses`: every call passes HTTPAdapter.send, so mocks and tracers see it."""

from __future__ import annotations

import json
import logging

import pytest
import requests
import responses

from chatpool import ChatPool, ConfigurationError, Usage
from chatpool._version import __version__

URL = "https://api.example.com/v1"
CHAT = f"{URL}/chat/completions"
KEY = "sk-secret-1234567890"


def completion(text="hi", **fields):
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage, **fields}


@pytest.fixture
def pool():
    with ChatPool(2, base_url=URL, api_key=KEY, model="m", max_wait=0.01, system="be brief") as pool:
        yield pool


@responses.activate
def test_request_follows_the_protocol(pool):
    responses.post(CHAT, json=completion())
    assert pool.map(["a"], params={"temperature": 0}) == ["hi"]
    request = responses.calls[0].request
    assert json.loads(request.body) == {
        "model": "m",
        "temperature": 0,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a"}],
    }
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["User-Agent"] == f"chatpool/{__version__}"
    assert request.headers["Content-Length"] == str(len(request.body))


@responses.activate
def test_result_has_the_fields_of_the_reply(pool):
    responses.post(CHAT, json=completion("hi", id="c1"), headers={"x-request-id": "req_9"})
    answers = pool.map(["a"])
    result = answers.results[0]
    assert (result.text, result.value, result.finish_reason, result.request_id) == ("hi", "hi", "stop", "req_9")
    assert result.usage == answers.usage == Usage(2, 3, 5)
    assert result.response["id"] == "c1"
    assert (result.attempts, result.error, result.ok, result.prompt) == (1, None, True, "a")
    assert result.elapsed > 0


@responses.activate
def test_rate_limit_and_overload_are_retried(pool):
    """A 429, a 503, then the answer: three requests."""
    responses.post(CHAT, status=429, headers={"retry-after-ms": "5"}, json={"error": {"code": "rate_limit_exceeded"}})
    responses.post(CHAT, status=503, body="busy")
    responses.post(CHAT, json=completion())
    answers = pool.map(["a"])
    assert answers == ["hi"]
    assert answers.results[0].attempts == len(responses.calls) == 3


@responses.activate
def test_connection_errors_are_retried(pool):
    responses.post(CHAT, body=requests.ConnectionError("reset"))
    responses.post(CHAT, json=completion())
    assert pool.map(["a"]) == ["hi"]


@responses.activate
def test_user_agent_of_the_users_session_is_kept():
    responses.post(CHAT, json=completion())
    session = requests.Session()
    session.headers["User-Agent"] = "mine"
    session.headers["X-Team"] = "blue"
    ChatPool(base_url=URL, api_key=KEY, session=session).map(["a"])
    assert responses.calls[0].request.headers["User-Agent"] == "mine"
    assert responses.calls[0].request.headers["X-Team"] == "blue"
    session.close()


@responses.activate
def test_cookies_are_not_kept(pool):
    """A growing cookie jar slows every call, and no chat API needs one."""
    responses.post(CHAT, json=completion(), headers={"Set-Cookie": "a=b"})
    pool.map(["a", "b"])
    pool.map(["c"])
    assert "Cookie" not in responses.calls[2].request.headers


@responses.activate
def test_log_has_retries_and_failures_and_no_secret(pool, caplog):
    """INFO for a retry, WARNING for a failure; neither prompt nor key, even if the server echoes them."""
    caplog.set_level(logging.DEBUG)
    echo = {"error": {"message": f"bad prompt: private, key {KEY}", "code": "bad"}}
    responses.post(CHAT, status=500, json=echo)
    responses.post(CHAT, status=400, json=echo)
    answers = pool.map(["private"])
    ours = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "chatpool"]
    assert [level for level, _ in ours] == ["INFO", "WARNING"]
    assert "InternalServerError 500 bad" in ours[0][1]
    assert "BadRequestError 400 bad" in ours[1][1]
    assert "private" not in str(ours)
    assert KEY not in caplog.text
    error = answers.failures[0].error
    assert KEY not in f"{error} {error!r} {error.body} {error.__dict__}"


def test_base_url_that_requests_rejects_is_a_configuration_error():
    with pytest.raises(ConfigurationError, match="base_url or headers cannot be used"):
        ChatPool(base_url="http://.example.com/v1").map(["a"])


def test_missing_ca_bundle_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(ConfigurationError, match="REQUESTS_CA_BUNDLE"):
        ChatPool(base_url=URL, api_key=KEY).map(["a"])
