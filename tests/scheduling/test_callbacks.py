"""Hooks: a callback is called for each retry and each result, in the thread that waits for them."""

from __future__ import annotations

import pickle
import threading
import time

import pytest

from chatpool import APIStatusError, ConfigurationError, InternalServerError, RateLimitError
from chatpool.testing import Reply

WAYS = {
    "map": lambda pool, prompts: list(pool.map(prompts)),
    "imap": lambda pool, prompts: [result.value for result in pool.imap(prompts)],
    "imap_unordered": lambda pool, prompts: [
        r.value for r in sorted(pool.imap_unordered(prompts), key=lambda r: r.index)
    ],
    "ask": lambda pool, prompts: [pool.ask(prompt) for prompt in prompts],
}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def test_each_result_is_told_once(way, make_pool):
    reported = []
    assert way(make_pool(on_result=reported.append), ["a", "b", "c"]) == ["a", "b", "c"]
    assert sorted((result.index, result.value) for result in reported if result.ok)[-1][1] == "c"
    assert len(reported) == 3


def test_each_retry_is_told_with_its_cause(way, server, make_pool):
    server.script("a", Reply(status=500), Reply(status=503), Reply("well"))
    reported = []
    assert way(make_pool(on_retry=reported.append), ["a"]) == ["well"]
    assert [(retry.index, retry.prompt, retry.attempt) for retry in reported] == [(0, "a", 1), (0, "a", 2)]
    assert [retry.error.status_code for retry in reported] == [500, 503]
    assert all(isinstance(retry.error, InternalServerError) and 0 <= retry.wait <= 0.01 for retry in reported)


def test_a_refusal_is_told_with_the_wait_that_was_asked_for(server, make_pool):
    server.script("a", Reply(status=429, headers={"retry-after-ms": "5"}), Reply("well"))
    reported = []
    make_pool(on_retry=reported.append).map(["a"])
    assert [(type(retry.error), retry.wait) for retry in reported] == [(RateLimitError, 0.005)]


def test_the_last_try_is_a_result_and_no_retry(server, make_pool):
    server.script("a", *[Reply(status=500)] * 3)
    retries, results = [], []
    make_pool(max_tries=3, on_retry=retries.append, on_result=results.append).map(["a", "b"])
    assert len(retries) == 2
    assert {result.index: result.ok for result in results} == {0: False, 1: True}


def test_hooks_are_called_in_the_callers_thread(way, server, make_pool):
    server.script("a", Reply(status=500), Reply("well"))
    threads = set()
    pool = make_pool(
        on_retry=lambda _: threads.add(threading.current_thread()),
        on_result=lambda _: threads.add(threading.current_thread()),
    )
    caller = threading.Thread(target=way, args=(pool, ["a", "b"]))
    caller.start()
    caller.join()
    assert threads == {caller}


def test_hooks_are_called_while_the_map_goes_on(server, make_pool):
    """Not at its end: the slow prompt is answered only after the fast one was reported."""
    reported = threading.Event()
    server.script("slow", Reply("slow", delay=30))
    pool = make_pool(on_result=lambda result: reported.set())
    thread = threading.Thread(target=lambda: pool.map(["fast", "slow"]))
    thread.start()
    assert reported.wait(10)
    pool.close()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("hook", ["on_retry", "on_result"])
@pytest.mark.parametrize("name", ["map", "imap", "imap_unordered", "ask"])
def test_what_a_hook_raises_ends_the_run(hook, name, server, make_pool):
    def fail(_):
        raise LookupError("of the hook")

    server.script("a", Reply(status=500), Reply("well"))
    with pytest.raises(LookupError, match="of the hook"):
        WAYS[name](make_pool(**{hook: fail}), ["a"])
    assert make_pool().ask("b") == "b"


def test_what_was_answered_is_on_the_hooks_exception(make_pool):
    def fail(result):
        raise LookupError

    with pytest.raises(LookupError) as caught:
        make_pool(1, on_result=fail).map(["a", "b"])
    assert caught.value.answers[0] == "a"


def test_journal_is_not_told_of_again(make_pool, tmp_path):
    reported = []
    pool = make_pool(on_result=reported.append)
    for prompts in (["a", "b"], ["a", "b", "c"]):
        pool.map(prompts, journal=tmp_path / "j.jsonl")
    assert sorted(result.prompt for result in reported) == ["a", "b", "c"]


def test_submit_tells_its_future_only(make_pool):
    reported = []
    assert make_pool(on_result=reported.append).submit("a").result().value == "a"
    assert reported == []


def test_hooks_stay_behind_when_a_pool_is_pickled(make_pool):
    pool = make_pool(on_retry=lambda _: None, on_result=lambda _: None)
    with pickle.loads(pickle.dumps(pool)) as copy:
        assert copy.map(["a"]) == ["a"]


@pytest.mark.parametrize("hook", ["on_retry", "on_result"])
def test_hook_must_be_a_function(hook, make_pool):
    with pytest.raises(ConfigurationError, match=f"{hook} must be a function, not str"):
        make_pool(**{hook: "print"})


def test_retry_carries_the_reply(server, make_pool):
    server.script("a", Reply(status=502, body="<html>bad gateway</html>"), Reply("well"))
    reported = []
    make_pool(on_retry=reported.append).map(["a"])
    assert isinstance(reported[0].error, APIStatusError)
    assert "bad gateway" in str(reported[0].error.body)


@pytest.mark.parametrize("name", WAYS)
def test_hooks_may_use_the_pool_that_calls_them(name, server, make_pool):
    """Though it has one slot, and the call that is to be repeated is due long before the hook returns."""
    server.script("a", Reply(status=500), Reply("well"))
    answers = []

    def hook(event):
        if not answers:
            answers.append("")
            time.sleep(0.2)
            answers.extend([pool.ask("b", deadline=5), *pool.map(["c"], deadline=5)])

    for kind in ("on_retry", "on_result"):
        answers.clear()
        pool = make_pool(1, **{kind: hook})
        assert WAYS[name](pool, ["a"]) == ["well"]
        assert answers == ["", "b", "c"]
