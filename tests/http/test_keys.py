"""``api_key=callable``: asked when there is no key or a 401 says so, once for all threads."""

from __future__ import annotations

import pickle
import threading
import time
from contextlib import suppress

import pytest
import requests

from chatpool import AuthenticationError, CallError, ChatPool, ConfigurationError, DeadlineError, NotSentError
from chatpool._http import keys
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until


class Keys:
    """Returns keys one after another, the last again and again, and counts how often it is asked."""

    def __init__(self, *names, seconds=0.0):
        self.names, self.seconds, self.asked = names, seconds, 0

    def __call__(self):
        self.asked += 1
        time.sleep(self.seconds)
        return self.names[min(self.asked, len(self.names)) - 1]


@pytest.fixture
def server():
    """A server that accepts the keys in its ``valid``."""
    valid = {"key-number-1"}

    def reply(request):
        key = request.headers.get("authorization", "").replace("Bearer ", "")
        return Reply() if key in valid else Reply(status=401, code="invalid_api_key")

    with FakeChatServer(reply=reply, latency=0.02) as server:
        server.valid = valid
        yield server


def make_pool(server, key, max_workers=20, **settings):
    return ChatPool(max_workers, base_url=server.url, api_key=key, **settings)


def test_many_threads_ask_once(server):
    """The first twenty calls wait for one answer of the callable; the constructor does not ask."""
    key = Keys("key-number-1", seconds=0.1)
    with make_pool(server, key) as pool:
        assert key.asked == 0
        assert pool.map(["a"] * 100) == ["a"] * 100
        assert pool.ask("b") == "b"
    assert key.asked == 1


def test_an_expired_key_is_asked_for_again_once_and_costs_no_try(server):
    """In the middle of a run with 20 requests in flight, and with max_tries=1."""
    key = Keys("key-number-1", "key-number-2", seconds=0.05)
    prompts = [str(number) for number in range(200)]

    def expire():
        assert wait_until(lambda: len(server.requests) > 50)
        server.valid.clear()
        server.valid.add("key-number-2")

    with make_pool(server, key, max_tries=1) as pool:
        thread = threading.Thread(target=expire)
        thread.start()
        answers = pool.map(prompts)
        thread.join()
    assert answers == prompts
    assert key.asked == 2


def test_a_key_that_expires_again_is_renewed_again(server):
    key = Keys(*[f"key-number-{number}" for number in range(1, 6)])
    with make_pool(server, key, 4) as pool:
        for number in range(1, 6):
            server.valid.clear()
            server.valid.add(f"key-number-{number}")
            assert pool.map(["a"] * 8) == ["a"] * 8
    assert key.asked == 5


def test_first_key_may_have_expired(server):
    """A callable that returned a cached token is asked once more."""
    key = Keys("an-expired-key", "key-number-1")
    with make_pool(server, key) as pool:
        assert pool.map(["a"] * 30, deadline=20) == ["a"] * 30
    assert key.asked == 2


@pytest.mark.parametrize("names", [["wrong-key-1"], ["wrong-key-1", "wrong-key-2", "wrong-key-3", "wrong-key-4"]])
def test_a_fresh_keys_401_ends_the_map(server, names):
    """Whether the callable returns the same key again or another one, it is asked twice, and few requests are sent."""
    key = Keys(*names)
    with make_pool(server, key, 4) as pool:
        answers = pool.map([str(number) for number in range(500)])
    assert {type(failure.error) for failure in answers.failures} <= {AuthenticationError, NotSentError}
    assert len(answers.failures) == 500
    assert key.asked == 2
    assert len(server.requests) <= 4 * 3
    assert "wrong-key" not in f"{answers.summary()} {[failure.error.__dict__ for failure in answers.failures]}"


def test_pool_recovers_after_a_fresh_key_was_rejected(server, monkeypatch):
    """Its next run asks again."""
    monkeypatch.setattr(keys, "_PAUSE", 0.0)
    key = Keys("wrong-key-1", "wrong-key-2", "key-number-1")
    with make_pool(server, key, 1) as pool:
        assert pool.map(["a", "b"]) == [None, None]
        assert pool.map(["a", "b"]) == ["a", "b"]


def test_callable_that_raises_is_named(server):
    """With its exception as the cause; the map ends."""

    def get_token():
        raise OSError("the vault is sealed")

    with make_pool(server, get_token, 4) as pool:
        answers = pool.map(["a"] * 50)
        with pytest.raises(AuthenticationError, match="get_token raised OSError: the vault is sealed"):
            answers.raise_for_failures()
        first = next(r.error for r in answers.failures if type(r.error) is AuthenticationError)
    assert isinstance(first.__cause__, OSError)
    assert first.code == "api_key_failed"
    assert server.requests == []


@pytest.mark.parametrize(("value", "message"), [(None, "must be a str"), ("", "empty"), ("a b", "white space")])
def test_callable_that_returns_no_key_is_named(server, value, message):
    def get_token():
        return value

    with make_pool(server, get_token, 1) as pool, pytest.raises(AuthenticationError, match=f"get_token .*{message}"):
        pool.ask("a")


def test_callable_that_hangs_is_bounded_and_named(server, monkeypatch):
    monkeypatch.setattr(keys, "_LONGEST", 0.2)
    release = threading.Event()

    def get_token():
        release.wait(20)
        return "key-number-1"

    with make_pool(server, get_token, 4) as pool:
        answers = pool.map(["a"] * 20, deadline=10)
        first = next(r.error for r in answers.failures if type(r.error) is AuthenticationError)
        assert "get_token did not return within 0.2 s" in str(first)
        release.set()
        assert wait_until(lambda: "chatpool-key" not in {thread.name for thread in threading.enumerate()})
        assert pool.ask("a") == "a"


def test_deadline_holds_while_the_callable_hangs(server):
    release = threading.Event()
    with make_pool(server, lambda: release.wait(20) and "key-number-1") as pool:
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            pool.ask("a", deadline=0.2)
        assert time.monotonic() - began < 2
        release.set()


def test_a_renewed_key_is_redacted(server):
    """The server's error quotes it."""
    server.valid.clear()
    server._reply = lambda request: Reply(status=400, body={"error": {"message": request.headers["authorization"]}})
    with make_pool(server, Keys("key-number-1")) as pool:
        (failure,) = pool.map(["a"]).failures
    assert "key-number-1" not in f"{failure.error} {failure.error.body}"


def get_key():
    return "key-number-1"


def test_pool_with_a_callable_pickles(server):
    """As the function's name; the other process asks for a key of its own."""
    with pickle.loads(pickle.dumps(make_pool(server, get_key))) as pool:
        assert pool.map(["a"]) == ["a"]


def test_a_callable_counts_as_a_key_for_openai():
    assert "api.openai.com" in repr(ChatPool(api_key=get_key))
    with pytest.raises(ConfigurationError, match="api_key must be a str or a function that returns one"):
        ChatPool(api_key=5)


@pytest.mark.parametrize("renews", [True, False])
def test_a_sessions_auth_that_renews_its_token_costs_no_try(server, renews):
    """It is asked for every request. A token that does not change is not sent again."""
    names = ["key-number-1", "key-number-2" if renews else "key-number-1"]
    expired = threading.Event()

    def auth(request):
        request.headers["Authorization"] = f"Bearer {names[expired.is_set()]}"
        return request

    with requests.Session() as session:
        session.auth = auth
        pool = ChatPool(1, base_url=server.url, session=session, max_tries=1)
        assert pool.ask("a") == "a"
        real = server._reply

        def expire(request):
            if not expired.is_set():
                expired.set()
                server.valid.symmetric_difference_update({"key-number-1", "key-number-2"})
            return real(request)

        server._reply = expire
        assert pool.map(["b"]) == (["b"] if renews else [None])
        assert server.count("b") == (2 if renews else 1)
        pool.close()


@pytest.mark.parametrize("name", ["chatpool-key", "chatpool-lookup"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_helper_thread_that_was_not_started_is_started_next_time(server, monkeypatch, name, error):
    """For the callable, or to look a name up. Ctrl-C came just before, or there was no thread to be had."""
    start, refusals = threading.Thread.start, [error]

    def refuse(thread):
        if name in thread.name and refusals:
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    url = f"http://localhost:{server.port}/v1"
    with ChatPool(2, base_url=url, api_key=lambda: "key-number-1", max_tries=1) as pool:
        with suppress(error, CallError):
            pool.ask("a")
        assert refusals == []
        assert pool.ask("b", deadline=5) == "b"


def test_threads_that_meet_a_401_at_once_ask_once(monkeypatch):
    """Also if the answer comes, the same key again, while one of them is about to ask."""
    key = Keys("same-key-again")
    source, scope = keys.KeySource(key), keys.CancelScope()
    source.key(scope)
    renewed = source._renewed

    def renew_first(*args):
        monkeypatch.setattr(source, "_renewed", renewed)
        assert not source.renew(scope)  # as another thread would
        return renewed(*args)

    monkeypatch.setattr(source, "_renewed", renew_first)
    assert not source.renew(scope)
    assert key.asked == 2
