"""What a reviewer found, so that it stays found."""

from __future__ import annotations

import gc
import itertools
import pickle
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

import pytest
import requests

from chatpool import (
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ChatPool,
    ConfigurationError,
    DeadlineError,
    NotSentError,
    PermissionDeniedError,
    PoolClosedError,
)
from chatpool._scheduling.job import Job
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until

KEY = "sk-SECRETSECRETSECRETSECRET"


def test_call_stopped_between_its_place_and_its_request_is_not_sent(server, monkeypatch):
    """A stop that comes just before a try begins holds for that try."""
    import chatpool._http.cancel as module

    begin, reached, go_on = module.CancelScope.set_timeout, threading.Event(), threading.Event()

    def begin_late(call, *args):
        reached.set()
        go_on.wait(5)
        begin(call, *args)

    monkeypatch.setattr(module.CancelScope, "set_timeout", begin_late)
    pool = ChatPool(1, base_url=server.url)
    future = pool.submit("a")
    assert reached.wait(5)
    closing = threading.Thread(target=pool.close)
    closing.start()
    assert wait_until(future.done)
    go_on.set()
    closing.join(5)
    assert server.requests == []


def test_callback_that_raises_system_exit_does_not_cost_a_worker(caplog):
    go_on = threading.Event()

    def leave(future):
        raise SystemExit

    with (
        FakeChatServer(reply=lambda request: go_on.wait(5) and Reply()) as server,
        ChatPool(4, base_url=server.url) as pool,
    ):
        for _ in range(8):
            pool.submit("a").add_done_callback(leave)
        go_on.set()  # not before: a callback that comes late runs in this thread
        assert wait_until(lambda: caplog.text.count("a callback raised") == 8)
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


def test_interrupt_while_threads_start_costs_no_worker(server, monkeypatch):
    """Ctrl-C at the fifth start of 16: afterwards all 16 can be on the wire again."""
    submit, starts = ThreadPoolExecutor.submit, itertools.count(1)

    def interrupted(*args, **kwargs):
        if next(starts) == 5:
            raise KeyboardInterrupt
        return submit(*args, **kwargs)

    barrier = threading.Barrier(15)
    with ChatPool(16, base_url=server.url) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(ThreadPoolExecutor, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt) as caught:
                pool.map(["a"] * 100)
        assert len(caught.value.answers) == 100
        assert pool.map(["b"] * 15, parse=lambda text: text if barrier.wait(10) >= 0 else None) == ["b"] * 15


def test_answer_is_not_lost_between_two_lines(server, monkeypatch):
    """Wherever Ctrl-C breaks into the gathering thread, ``.answers`` has a result for every prompt."""
    inner, calls = Job.take_settled, itertools.count()

    def interrupted(self, *args):
        fresh = inner(self, *args)
        if threading.current_thread() is threading.main_thread() and self.results and next(calls) == 0:
            raise KeyboardInterrupt
        return fresh

    monkeypatch.setattr(Job, "take_settled", interrupted)
    with ChatPool(1, base_url=server.url) as pool, pytest.raises(KeyboardInterrupt) as caught:
        pool.map(["a", "b", "c"])
    assert len(caught.value.answers) == 3
    assert "a" in caught.value.answers


def test_give_up_after_an_outage_stops_no_run_that_outlived_it(server):
    """A run that was there during an outage which another run gave up goes on after a plain 400 of its own."""
    server.script("outage", Reply(status=503))
    server.script("bad", Reply(status=400))

    def prompts():
        yield "first"
        given_up = pool.map(["outage"] * 60).results[-1].error
        assert isinstance(given_up, NotSentError)
        yield "bad"
        yield from ["well"] * 100

    with ChatPool(20, base_url=server.url, max_wait=0.05, max_tries=50) as pool:
        errors = [type(result.error) for result in pool.imap(prompts())]
    assert errors == [type(None), BadRequestError] + [type(None)] * 100


def test_dropped_iterator_is_collected_by_any_thread(server):
    """An iterator in a cycle is dropped by the garbage collector, within a callback in a worker, and frees its places."""
    server.script("sick", Reply(fault="stall"))
    with ChatPool(2, base_url=server.url) as pool:
        box = {"results": pool.imap(["first", "sick", "sick", "never"] * 10)}
        box["box"] = box
        next(box["results"])
        del box
        assert pool.submit("x").done() is False
        gc.collect()
        assert pool.map(["well"] * 4, deadline=5) == ["well"] * 4
    assert server.count("never") == 0


def test_stopping_a_map_stops_the_maps_within_its_parse(server):
    """A deadline of the outer map holds for what parse has asked for."""
    server.script("slow", Reply(delay=0.05))
    with ChatPool(4, base_url=server.url) as pool:
        answers = pool.map(["a", "b"], parse=lambda text: pool.map(["slow"] * 1000), deadline=0.3)
        assert {type(result.error) for result in answers.results} == {DeadlineError}
        assert wait_until(lambda: not pool._engine()._scheduler._in_flight)
        sent = len(server.requests)
        assert pool.map(["well"], deadline=5) == ["well"]
        assert len(server.requests) == sent + 1


def test_map_handed_by_parse_to_a_thread_of_its_own(pool):
    """All workers wait within parse for maps that need workers: those who wait for these maps make the calls."""

    def parse(text):
        with ThreadPoolExecutor(1) as helper:
            return helper.submit(pool.map, [text + "1", text + "2"]).result()

    assert pool.map(["a"] * 8, parse=parse) == [["a1", "a2"]] * 8


def test_secret_in_the_query_is_blotted_out(server):
    """Where the server's error echoes the path, encoded or not."""
    server.script("a", Reply(status=404, body={"error": {"message": f"no route /x?sig={KEY}%2F1 or {KEY}/1"}}))
    with ChatPool(1, base_url=f"{server.url}?api-version=2024-02-01&sig={KEY}%2F1") as pool:
        (failure,) = pool.map(["a"]).failures
    assert KEY not in f"{failure.error} {failure.error.body}"
    assert "no route" in str(failure.error)


def test_interrupted_retry_carries_all_answers(server, monkeypatch):
    server.script("bad", Reply(status=400))
    with ChatPool(1, base_url=server.url) as pool:
        answers = pool.map(["a", "bad", "c"])
        monkeypatch.setattr(Job, "gather", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt) as caught:
            pool.retry(answers)
    assert caught.value.answers == ["a", None, "c"]


@pytest.mark.parametrize("first_to_close", [0, 1])
def test_two_pools_on_one_session_leave_no_connection(server, first_to_close):
    """The later pool's adapter serves both; whichever closes last closes it."""
    with requests.Session() as session:
        pools = [ChatPool(2, base_url=server.url, session=session) for _ in range(2)]
        for pool in pools:
            assert pool.map(["a"] * 4) == ["a"] * 4
        pools.pop(first_to_close).close()
        assert pools[0].map(["b"] * 4) == ["b"] * 4
        pools[0].close()
        assert wait_until(lambda: server.open_connections == 0)


def test_answers_with_a_lambda_pickle_without_it(server, pool):
    """What was answered travels; retry tells what is missing."""
    server.script("bad", Reply(status=400), Reply())
    answers = pickle.loads(pickle.dumps(pool.map(["a", "bad"], parse=lambda text: text.upper())))
    assert answers == ["A", None]
    with pytest.raises(ConfigurationError, match=r"set answers\.parse"):
        pool.retry(answers)
    answers.parse = str.upper
    assert pool.retry(answers) == ["A", "BAD"]


def test_cut_after_the_last_byte_leaves_the_connection_alone(server, monkeypatch):
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


def test_watch_keeps_no_finished_call_alive(server):
    """A call that the watch has looked at goes when it is done, and its pool with it."""
    pool = ChatPool(1, base_url=server.url)
    server.script("a", Reply(delay=0.2))
    pool.ask("a")
    gone = weakref.ref(pool._engine())
    del pool
    assert wait_until(lambda: gone() is None)


WAYS_TO_WAIT = {
    "future": lambda pool, text: pool.submit(text).result().value,
    "future, in time": lambda pool, text: pool.submit(text).result(20).value,
    "as_completed": lambda pool, text: next(as_completed([pool.submit(text)])).result().value,
    "wait": lambda pool, text: wait([pool.submit(text)]).done.pop().result().value,
    "map in a thread": lambda pool, text: in_thread(lambda: pool.map([text])[0]),
    "submit in a thread": lambda pool, text: in_thread(lambda: pool.submit(text).result().value),
}


def in_thread(work):
    with ThreadPoolExecutor(1) as helper:
        return helper.submit(work).result()


@pytest.mark.parametrize("way", WAYS_TO_WAIT)
@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "beside others"])
def test_parse_may_wait_for_the_pool_in_any_way(server, way, is_busy):
    """All workers are within parse and wait for calls that need workers: a spare one makes them."""
    stop = threading.Event()
    with ChatPool(2, base_url=server.url) as pool:

        def keep_asking():
            while not stop.is_set():
                pool.ask("other")

        thread = threading.Thread(target=keep_asking)
        if is_busy:
            thread.start()
        try:
            answers = pool.map(["a"] * 6, parse=lambda text: WAYS_TO_WAIT[way](pool, text + "1"), deadline=20)
        finally:
            stop.set()
        if is_busy:
            thread.join()
        assert answers == ["a1"] * 6


def test_parse_runs_in_workers_only_and_a_deadline_holds_while_it_is_slow(pool):
    """Whoever waits for a map makes none of its calls."""
    threads, began = set(), time.monotonic()

    def parse(text):
        threads.add(threading.current_thread().name)
        time.sleep(1.2)
        return text

    answers = pool.map(["a"] * 20, parse=parse, deadline=0.8)
    assert time.monotonic() - began < 1.1
    assert answers == [None] * 20
    assert all(name.startswith("chatpool-callback") for name in threads)


def test_call_that_comes_due_takes_the_thread_of_one_that_waits_longer(server):
    """Two workers, at most three threads: a retry that is due in half a second is not kept waiting for twenty."""
    late = Reply(status=503, headers={"retry-after": "20"})
    for prompt in ("a", "b", "e"):
        server.script(prompt, late, Reply(prompt))
    server.script("c", Reply(status=503, headers={"retry-after": "0.5"}, delay=0.2), Reply("c"))
    server.script("d", Reply("d", delay=5))
    with ChatPool(2, base_url=server.url) as pool:
        began = time.monotonic()
        for result in pool.imap_unordered(["a", "b", "c", "d", "e"]):
            assert result.value == "c"
            break
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("target", ["chatpool-scheduler"])
def test_interrupt_as_a_helping_thread_starts(server, monkeypatch, target):
    """Ctrl-C in ask, just there: limits hold in the next call, and names are looked up."""
    start = threading.Thread.start

    def interrupted(self):
        if self.name == target:
            raise KeyboardInterrupt
        start(self)

    server.script("sick", Reply(fault="stall"))
    with ChatPool(1, base_url=f"http://localhost:{server.port}/v1", timeout=(2, 0.3), max_tries=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.ask("a")
        with pytest.raises(APITimeoutError, match="read timeout"):
            pool.ask("sick")
        assert pool.ask("b") == "b"


def test_giving_up_a_million_prompts_is_quick(server):
    """A deadline holds with 300,000 prompts waiting: what was not sent is settled in bulk."""
    server.script("p", Reply(fault="stall"))
    with ChatPool(2, base_url=server.url) as pool:
        job = pool._make_job(Job, None, None, None)
        settled = []
        settle, job.settle = job.settle, lambda results: settled.append(len(results)) or settle(results)
        job.backend.start(job, [job.builder.request(index, "p") for index in range(300_000)])
        job.stop(lambda: DeadlineError("over"))
        assert sum(settled) == 300_000
        assert len(settled) <= 3  # two may have been in flight
        assert len({id(result.error) for result in job.take_settled()}) <= 3
        job.end()


def test_two_pools_with_two_addresses_on_one_session_close_their_own(server):
    with FakeChatServer() as other, requests.Session() as session:
        pools = [ChatPool(2, base_url=url, session=session) for url in (server.url, other.url)]
        for pool in pools:
            pool.map(["a"] * 4)
        for pool in pools:
            pool.close()
        assert wait_until(lambda: server.open_connections == 0 and other.open_connections == 0)


def test_futures_and_close_settle_once(server, caplog):
    """Whether a worker or close() is first, a Future is set running and finished once."""
    for _ in range(60):
        pool = ChatPool(2, base_url=server.url)
        futures = [pool.submit("a") for _ in range(8)]
        pool.close()
        assert all(future.done() for future in futures)
    assert "unexpected state" not in caplog.text


def test_workers_that_wait_within_parse_hold_up_nobody_else(server):
    """All threads wait out a back-off within parse; a map beside them is made by the spare worker."""
    server.script("late", Reply(status=503, headers={"retry-after": "20"}))
    pool = ChatPool(2, base_url=server.url)
    futures = [pool.submit("a", parse=lambda text: pool.ask("late")) for _ in range(6)]
    assert wait_until(lambda: server.count("late") >= 1)
    assert pool.map(["quick"] * 10, deadline=5) == ["quick"] * 10
    assert not any(future.done() for future in futures)
    pool.close()
