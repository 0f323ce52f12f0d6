"""No server can hold a call beyond its limits; an aborted call gives everything back."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import threading
import time
import weakref

import pytest
import requests
import trustme

from chatpool import (
    APITimeoutError,
    ChatPool,
    DeadlineError,
    NotSentError,
)
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import chatpool_threads, wait_until
from tests.http.conftest import black_hole

SILENT = ["stall", "stall_midway", "drip", "drip_headers"]
LIMIT = 0.4  # seconds that an answer may take; it would take 50 and more
GRACE = 5.0  # seconds: how late a busy machine may be; an idle one takes less than 0.05


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_server(authority, tmp_path, monkeypatch):
    """The server over TLS; the environment names its authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with FakeChatServer(tls=context) as server:
        yield server


@pytest.mark.parametrize("fault", SILENT)
@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_read_limit_bounds_the_whole_answer(request, kind, fault):
    """Silence and drips, in headers and body, plain and over TLS: aborted at the limit."""
    server = request.getfixturevalue("server" if kind == "plain" else "tls_server")
    server.script("failing", Reply("x" * 500, fault=fault))
    with ChatPool(2, base_url=server.url, timeout=(2, LIMIT), max_tries=1) as pool:
        assert pool.ask("well") == "well"
        error = pool.submit("failing").result(10).error
        assert type(error) is APITimeoutError
        assert "read timeout of 0.4 s" in str(error)
        elapsed = pool.map(["failing"]).results[0].elapsed
        assert LIMIT - 0.05 < elapsed < LIMIT + GRACE
        assert pool.ask("well") == "well"


@pytest.mark.parametrize("own_adapter", [False, True])
def test_read_limit_holds_in_a_session_of_the_users(server, own_adapter):
    """Also where the adapter is the user's: its connections are made abortable."""

    class Adapter(requests.adapters.HTTPAdapter):
        pass

    server.script("failing", Reply("x" * 500, fault="drip_headers"))
    with requests.Session() as session:
        if own_adapter:
            session.mount("http://", Adapter())
        with ChatPool(2, base_url=server.url, session=session, timeout=(2, LIMIT), max_tries=1) as pool:
            result = pool.map(["failing"]).results[0]
    assert type(result.error) is APITimeoutError
    assert result.elapsed < LIMIT + GRACE


def test_tls_handshake_that_never_ends_is_bounded_by_the_connect_timeout():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        with ChatPool(1, base_url=url, timeout=(LIMIT, 30), max_tries=1) as pool:
            result = pool.submit("a").result(10)
    assert (type(result.error), result.error.code) == (APITimeoutError, "connect_timeout")
    assert result.elapsed < LIMIT + GRACE


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_deadline_cuts_connecting_too(scheme):
    """A black hole, or a handshake that never ends: the deadline holds, and the pool can be closed at once."""
    with contextlib.ExitStack() as opened:
        if scheme == "http":
            port = opened.enter_context(black_hole())
        else:
            port = opened.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        began = time.monotonic()
        with ChatPool(4, base_url=f"{scheme}://127.0.0.1:{port}/v1", timeout=(30, 30)) as pool:
            answers = pool.map(["a"] * 4, deadline=LIMIT)
        assert time.monotonic() - began < LIMIT + 2 * GRACE
    assert {type(result.error) for result in answers.results} == {DeadlineError}


@pytest.mark.parametrize("fault", SILENT)
def test_deadline_holds_with_every_worker_hanging(server, fault):
    """To 0.2 s; and at once the pool is fit for the next map, on all of its slots."""
    server.script("failing", Reply("x" * 500, fault=fault))
    with ChatPool(5, base_url=server.url) as pool:
        began = time.monotonic()
        answers = pool.map(["failing"] * 50, deadline=LIMIT)
        assert LIMIT <= time.monotonic() - began < LIMIT + GRACE
        assert {type(result.error) for result in answers.results} == {DeadlineError}
        assert pool.map(["well"] * 50, deadline=5) == ["well"] * 50
        assert pool._engine()._scheduler._in_flight == set()
        assert wait_until(lambda: server.open_connections <= 5)


def test_look_up_that_hangs_holds_nothing_up(server, monkeypatch):
    """A name whose look-up hangs holds up no map, slot or worker; one look-up serves all calls that wait for it."""
    real, go_on, asked = socket.getaddrinfo, threading.Event(), []

    def look_up(host, *details, **more):
        if host != "slow.test":
            return real(host, *details, **more)
        asked.append(host)
        go_on.wait(10)
        return real("127.0.0.1", *details, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with ChatPool(5, base_url=f"http://slow.test:{server.port}/v1", timeout=(0.3, 5), max_tries=1) as pool:
        began = time.monotonic()
        cut = pool.map(["a"] * 50, deadline=0.2)
        assert time.monotonic() - began < 0.2 + GRACE
        assert wait_until(lambda: not pool._engine()._scheduler._in_flight)
        assert [error.code for error in {result.error for result in pool.map(["b"]).results}] == ["connect_timeout"]
        go_on.set()
        assert wait_until(lambda: not any("lookup" in name for name in chatpool_threads()))
        assert pool.map(["c"] * 50) == ["c"] * 50
    assert {type(result.error) for result in cut.results} == {DeadlineError}
    assert asked[:2] in (["slow.test"], ["slow.test"] * 2)
    assert len(asked) <= 6


def test_max_time_holds_with_every_worker_hanging(server):
    server.script("failing", Reply(fault="stall"))
    with ChatPool(5, base_url=server.url, max_time=LIMIT) as pool:
        answers = pool.map(["failing"] * 5)
    assert {result.error.code for result in answers.results} == {"max_time"}
    assert max(result.elapsed for result in answers.results) < LIMIT + GRACE


def test_an_abort_is_a_timeout_whatever_was_read(server):
    """Of headers that were cut short http.client makes an empty 200; it must not pass for a reply."""
    server.script("failing", Reply("x" * 50, fault="drip_headers"))
    with ChatPool(8, base_url=server.url, timeout=(2, LIMIT), max_tries=1) as pool:
        answers = pool.map(["failing"] * 8)
    assert {(type(result.error), result.error.code) for result in answers.results} == {
        (APITimeoutError, "read_timeout")
    }


def test_a_collected_pool_ends_its_threads_and_connections(server):
    """Without close() nothing leaks: the pool goes when nothing refers to it."""
    pool = ChatPool(5, base_url=server.url)
    pool.map(["a"] * 20)
    assert chatpool_threads()
    gone = weakref.ref(pool)
    gc.disable()
    try:
        del pool
        assert gone() is None  # no reference cycle keeps it
        assert wait_until(lambda: not chatpool_threads())
        assert wait_until(lambda: server.open_connections == 0)
    finally:
        gc.enable()


def test_a_bug_of_the_package_surfaces(pool, monkeypatch):
    """It never becomes a lost prompt or a hang, wherever a prompt was."""
    monkeypatch.setattr("chatpool._scheduling.sender.read_completion", lambda reply: reply.nonsense)
    for use in (lambda: pool.map(["a"] * 20), lambda: list(pool.imap(["a"])), lambda: pool.ask("a")):
        with pytest.raises(AttributeError, match="nonsense"):
            use()
    with pytest.raises(AttributeError, match="nonsense"):
        pool.submit("a").result(5)
    monkeypatch.undo()
    assert pool.map(["a"] * 20) == ["a"] * 20


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_base_exceptions_of_parse_do_not_kill_a_worker_silently(pool, kind):
    def parse(text):
        raise kind

    with pytest.raises(kind):
        pool.map(["a"] * 20, parse=parse)
    assert pool.map(["a"] * 20) == ["a"] * 20


def test_threads_that_cannot_be_started(server, monkeypatch):
    """If no thread can be started, the caller does the work; if a few can, they do."""
    start = threading.Thread.start
    left = [0]

    def refuse(thread):
        if "worker" in thread.name and left[0] <= 0:
            raise RuntimeError("can't start new thread")
        left[0] -= "worker" in thread.name
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for left[0] in (0, 2):
        with ChatPool(8, base_url=server.url) as pool:
            assert pool.map([str(n) for n in range(30)]) == [str(n) for n in range(30)]


def test_caller_that_sends_and_leaves_its_map_leaves_every_slot_free(server, monkeypatch):
    """As no worker can be started, calls in flight wait for the thread that a hook's exception takes out of its map."""
    start = threading.Thread.start

    def refuse(thread):
        if "worker" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    def fail(retry):
        assert wait_until(lambda: any(call.attempts == 2 for call in list(pool._engine()._scheduler._in_flight)))
        raise LookupError

    server.script("a", Reply(status=500), Reply("well"))
    with ChatPool(4, base_url=server.url, on_retry=fail) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(LookupError):
                pool.map(["a"])
        assert wait_until(lambda: not pool._engine()._scheduler._in_flight)


def test_calls_leave_nothing_behind_where_threads_are_few(server, monkeypatch):
    """Not every call starts one more, which would leave a task in the executor's queue."""
    start, left = threading.Thread.start, [2]

    def refuse(thread):
        if "worker" in thread.name:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with ChatPool(8, base_url=server.url) as pool:
        pool.map(["a"] * 400)
        assert pool._engine()._scheduler._workers._executor._work_queue.qsize() < 20


@pytest.mark.parametrize("name", ["worker", "callback"])
def test_without_threads_nothing_waits_for_ever(server, monkeypatch, name):
    """The caller sends, within the time limits; what a Future waits for is done by the scheduler."""
    start = threading.Thread.start

    def refuse(thread):
        if name in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    server.script("hangs", Reply(fault="stall"))
    with ChatPool(4, base_url=server.url, timeout=LIMIT, max_tries=1) as pool:
        assert [result.error.code for result in pool.map(["hangs"] * 2).failures] == ["read_timeout"] * 2
        assert pool.map(["a"] * 4, parse=str.upper) == ["A"] * 4
        assert pool.submit("a", parse=str.upper).result(5).value == "A"


def test_close_ends_calls_that_wait_for_anything(server):
    """On the wire, in back-off, and in the queue for a slot."""
    server.script("hangs", Reply(fault="stall"))
    server.script("fails", Reply(status=500, headers={"retry-after": "50"}))
    with ChatPool(2, base_url=server.url) as pool:
        futures = [pool.submit(prompt) for prompt in ["fails", "fails", "hangs", "hangs", "hangs", "fails"]]
        assert wait_until(lambda: server.count("hangs") == 2)
        began = time.monotonic()
        pool.close()
        assert time.monotonic() - began < 10
    assert {type(future.result(0).error) for future in futures} == {NotSentError}


def test_custom_ca_bundle_through_a_session(authority, tmp_path, monkeypatch):
    """The Session's own bundle counts, also against one that the environment names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
    with FakeChatServer(tls=context) as server, requests.Session() as session:
        session.verify = str(tmp_path / "ca.pem")
        with ChatPool(2, base_url=server.url, session=session) as pool:
            assert pool.map(["a"]) == ["a"]


def test_abort_after_the_last_byte_leaves_the_connection_alone(server, monkeypatch):
    """Once a connection is back in its pool, it belongs to the next call, and a late cut must not hit it."""
    import chatpool._http.pools as module

    seen = []
    put = module._HTTPPool._put_conn

    def check(self, connection):
        put(self, connection)
        seen.append(module.current.scope._socket)

    monkeypatch.setattr(module._HTTPPool, "_put_conn", check)
    with ChatPool(1, base_url=server.url) as pool:
        assert pool.map(["a", "b"]) == ["a", "b"]
    assert seen == [None, None]


def test_finished_call_keeps_no_pool_alive(server):
    """A call that the watch has looked at goes when it is done, and its pool with it."""
    pool = ChatPool(1, base_url=server.url)
    server.script("a", Reply(delay=0.2))
    pool.ask("a")
    gone = weakref.ref(pool._engine())
    del pool
    assert wait_until(lambda: gone() is None)


# Requests that chatpool stopped waiting for.


@pytest.mark.parametrize("fault", SILENT)
def test_at_most_two_attempts_of_a_prompt_end_at_the_read_limit(server, fault):
    """Each may be charged for; both are counted."""
    server.script("failing", Reply("x" * 500, fault=fault))
    with ChatPool(2, base_url=server.url, timeout=(2, 0.2), max_wait=0.01) as pool:
        answers = pool.map(["failing", "well"])
    (failure,) = answers.failures
    assert type(failure.error) is APITimeoutError
    assert (failure.attempts, failure.unanswered) == (2, 2)
    assert server.count("failing") == 2
    assert "stopped waiting for 2, which may be charged" in answers.summary()


def test_other_failures_may_follow_one_read_timeout(server):
    server.script("failing", Reply(fault="stall"), Reply(status=500), Reply(status=500), Reply("well"))
    with ChatPool(2, base_url=server.url, timeout=(2, 0.2), max_wait=0.01) as pool:
        (result,) = pool.map(["failing"]).results
    assert (result.value, result.attempts, result.unanswered) == ("well", 4, 1)


def test_request_in_flight_at_the_deadline_is_unanswered(server):
    """One that was never sent is not, nor one that was answered with an error."""
    server.script("stalls", Reply(fault="stall"))
    server.script("fails", Reply(status=400))
    with ChatPool(1, base_url=server.url) as pool:
        results = pool.map(["fails", "stalls", "never sent"], deadline=0.5).results
    assert [result.unanswered for result in results] == [0, 1, 0]


def test_connection_that_is_refused_is_not_unanswered():
    with ChatPool(1, base_url="http://127.0.0.1:9/v1", max_tries=2, max_wait=0.01) as pool:
        assert pool.map(["a"]).results[0].unanswered == 0
