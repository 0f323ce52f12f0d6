"""What a reviewer found, so that it stays found."""

from __future__ import annotations

import threading
import time

import pytest
import requests

from chatpool import AuthenticationError, ChatPool, PermissionDeniedError, PoolClosedError
from chatpool._threads import Watch
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until

KEY = "sk-SECRETSECRETSECRETSECRET"


def test_watch_closed_as_it_falls_asleep_still_ends(monkeypatch):
    """The thread clears its bell before it sleeps; a ring of close() at that moment must not be lost."""
    monkeypatch.setattr("chatpool._threads._TICK", 1e-4)
    monkeypatch.setattr("chatpool._threads._LINGER", 1)
    for _ in range(200):
        watch = Watch()
        call = type("Call", (), {"limit": float("inf")})()
        watch.add(call)
        watch.discard(call)
        time.sleep(2e-4)
        watch.close()
        watch._thread.join(5)
        assert not watch._thread.is_alive()


def test_call_stopped_between_its_place_and_its_request_is_not_sent(server, monkeypatch):
    """A stop that comes just before a try begins holds for that try."""
    import chatpool._call as module

    begin, reached, go_on = module.Call.begin_try, threading.Event(), threading.Event()

    def begin_late(call, answers_seen):
        reached.set()
        go_on.wait(5)
        begin(call, answers_seen)

    monkeypatch.setattr(module.Call, "begin_try", begin_late)
    pool = ChatPool(1, base_url=server.url)
    future = pool.submit("a")
    assert reached.wait(5)
    closing = threading.Thread(target=pool.close)
    closing.start()
    assert wait_until(future.done)
    go_on.set()
    closing.join(5)
    assert server.requests == []


def test_callback_that_raises_system_exit_does_not_cost_a_worker(pool, caplog):
    def leave(future):
        raise SystemExit

    for _ in range(8):
        pool.submit("a").add_done_callback(leave)
    assert wait_until(lambda: "a callback raised" in caplog.text)
    assert pool.map(["a"] * 8, deadline=5) == ["a"] * 8


def test_chain_of_submits_in_callbacks_does_not_nest(server, pool):
    """Each submit within a callback comes back at once; 500 in a chain do not overflow the stack."""
    done, over = [], threading.Event()

    def step(future):
        done.append(future.result().value)
        if len(done) == 500:
            over.set()
        else:
            pool.submit(str(len(done))).add_done_callback(step)

    pool.submit("0").add_done_callback(step)
    assert over.wait(20)
    assert done == [str(number) for number in range(500)]


def test_future_waited_for_within_parse(pool):
    """Workers that wait for what they submitted make it themselves."""
    assert pool.map(["a"] * 20, parse=lambda text: pool.submit(text + "1").result().value) == ["a1"] * 20


def test_errors_of_other_calls_within_parse_are_the_callers(server, pool):
    """An AuthenticationError out of parse is no failure of this call, and stops nothing by itself."""
    with FakeChatServer(key="right") as other, ChatPool(1, base_url=other.url, api_key="wrong") as wrong:
        with pytest.raises(AuthenticationError):
            pool.map(["a"], parse=wrong.ask)
        assert other.count("a") == 1
    assert server.count("a") == 1


def test_403_about_a_keyword_stops_nothing(server, pool):
    """'keyword' and 'monkey' are no key."""
    server.script("p3", Reply(status=403, body={"error": {"message": "flagged for the keyword 'monkey'"}}))
    answers = pool.map([f"p{number}" for number in range(50)])
    assert [type(result.error) for result in answers.failures] == [PermissionDeniedError]


class Auth(requests.auth.AuthBase):
    def __call__(self, request):
        request.headers["Authorization"] = f"Bearer {KEY}"
        return request


@pytest.mark.parametrize("way", ["header", "other header", "session header", "session auth"])
def test_credentials_of_every_kind_are_blotted_out(server, way):
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
        told = " ".join(f"{result.error} {result.error.body}" for result in pool.map(["a", "b"]).failures)
    session.close()
    assert KEY[:8] not in told


def test_close_during_imap_loses_no_outcome(server):
    """What was taken in is yielded with its outcome, and then the error is raised."""
    server.script("0", Reply(fault="stall"))
    pool = ChatPool(2, base_url=server.url)
    results = []
    threading.Timer(0.2, pool.close).start()
    with pytest.raises(PoolClosedError):
        results.extend(iter_all(pool.imap(str(number) for number in range(1000)), results))
    assert [result.index for result in results] == list(range(len(results)))
    assert len(results) >= 8


def iter_all(iterator, results):
    for result in iterator:
        results.append(result)
    return []


def test_session_of_the_users_is_closed_for_our_address(server):
    """Twenty threads at first use make one set of connections, and close() closes all of them."""
    for _ in range(5):
        with requests.Session() as session:
            pool = ChatPool(4, base_url=server.url, session=session)
            barrier = threading.Barrier(20)

            def use(pool=pool, barrier=barrier):
                barrier.wait()
                pool.ask("x")

            threads = [threading.Thread(target=use) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            pool.close()
            assert wait_until(lambda: server.open_connections == 0)
