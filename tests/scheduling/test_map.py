"""map: every prompt has its outcome, in its place."""

from __future__ import annotations

import contextvars
import json
import random
import sys
import threading

import pytest

from chatpool import (
    Answers,
    BadRequestError,
    ChatPool,
    DeadlineError,
    InternalServerError,
    NotSentError,
    ParseError,
    PoolClosedError,
    RateLimitError,
)
from chatpool.testing import FakeChatServer, RateLimit, Reply
from tests.conftest import chatpool_threads


def test_answers_stand_in_the_order_of_the_prompts(server, pool):
    """Replies come back in another order; the answers do not."""
    server._latency = lambda: random.uniform(0, 0.02)
    prompts = [f"prompt {number}" for number in range(60)]
    answers = pool.map(prompts)
    assert answers == prompts
    assert isinstance(answers, Answers)
    assert isinstance(answers, list)
    assert [result.index for result in answers.results] == list(range(60))
    assert server.most_in_flight <= 4


def test_one_liner_needs_no_with_and_no_close(server):
    """ChatPool(...).map(prompts) leaves no thread behind."""
    assert ChatPool(max_workers=20, base_url=server.url).map(["ping", "pong"] * 50) == ["ping", "pong"] * 50


def test_no_prompts(pool):
    answers = pool.map([])
    assert answers == []
    assert "0 prompts" in answers.summary()


def test_prompts_may_be_a_generator(pool):
    assert pool.map(f"{number}" for number in range(3)) == ["0", "1", "2"]


def test_prompts_as_messages_and_body_fields(server, pool):
    """A list of messages, and a dict whose fields override map's params, which override the pool's."""
    answers = pool.map(
        [[{"role": "user", "content": "a"}], {"messages": [{"role": "user", "content": "b"}], "temperature": 1}],
        params={"temperature": 0, "seed": 5},
    )
    assert answers == ["a", "b"]
    bodies = {request.prompt: request.body for request in server.requests}
    assert (bodies["a"]["temperature"], bodies["b"]["temperature"], bodies["b"]["seed"]) == (0, 1, 5)


def test_a_prompt_of_a_wrong_type_is_refused_before_anything_is_sent(server, pool):
    """The message holds the index."""
    with pytest.raises(TypeError, match="prompt 2"):
        pool.map(["a", "b", None, "c"])
    with pytest.raises(TypeError, match="not a series of prompts"):
        pool.map("a lone prompt")
    assert server.requests == []


def test_connections_are_reused(server, pool):
    """A hundred calls of four workers need four connections."""
    pool.map(["a"] * 100)
    assert server.connections <= 4


def test_failed_calls_are_none_with_their_cause(server, pool):
    """None where a call failed; the others are answered."""
    server.script("bad", Reply(status=400, code="context_length_exceeded"))
    answers = pool.map(["a", "bad", "b"])
    assert answers == ["a", None, "b"]
    (failure,) = answers.failures
    assert (failure.index, failure.prompt, failure.ok, failure.attempts) == (1, "bad", False, 1)
    error = failure.error
    assert type(error) is BadRequestError
    assert (error.status_code, error.code, error.attempts) == (400, "context_length_exceeded", 1)
    assert error.request_id == failure.request_id == next(r.id for r in server.requests if r.prompt == "bad")
    assert "context_length_exceeded" in error.body


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=500),
        Reply(body="<html>"),
        Reply(body=""),
        Reply("  "),
        Reply(body={"error": {"code": 503, "message": "overloaded"}}),
        Reply(fault="truncate"),
        Reply(fault="reset"),
        Reply(fault="close"),
    ],
    ids=str,
)
def test_passing_faults_are_tried_again(server, pool, fault):
    """Three requests: two that fail, one that is answered."""
    server.script("a", fault, fault, Reply("at last"))
    answers = pool.map(["a"])
    assert answers == ["at last"]
    assert answers.results[0].attempts == server.count("a") == 3


@pytest.mark.parametrize("max_tries", [1, 2, 5])
def test_max_tries_is_exact(server, make_pool, max_tries):
    """There is one retry layer: so many requests, and no more."""
    server.script("a", Reply(status=500))
    answers = make_pool(max_tries=max_tries).map(["a", "b"])
    assert answers == [None, "b"]
    assert server.count("a") == answers.results[0].attempts == max_tries
    assert type(answers.results[0].error) is InternalServerError


def test_refusal_for_rate_costs_a_try_only_if_nothing_else_was_answered(server, make_pool):
    """A lone prompt that is always refused gets max_tries requests."""
    server.script("a", Reply(status=429, headers={"retry-after-ms": "1"}))
    answers = make_pool(max_tries=3).map(["a"])
    assert answers == [None]
    assert type(answers.results[0].error) is RateLimitError
    assert server.count("a") == 3


def test_refusals_cost_no_try_while_others_are_answered(make_pool):
    """Far more prompts than the server takes at once, few attempts each: none is lost."""
    limit = RateLimit(per_second=200, burst=5, retry_after=0.01)
    with FakeChatServer(rate_limit=limit) as server:
        answers = make_pool(20, base_url=server.url, max_tries=3).map(["a"] * 100)
        assert answers == ["a"] * 100
        assert server.refusals > 0


def test_wait_longer_than_max_wait_fails_at_once(server, make_pool):
    """A server that asks for ten hours is not waited for; what it asked stands on the error."""
    server.script("a", Reply(status=429, headers={"retry-after": "36000"}))
    answers = make_pool(max_wait=60).map(["a"])
    assert answers.failures[0].error.retry_after == 36000
    assert server.count("a") == 1


def test_wrong_key_stops_the_map(make_pool):
    """After a 401 nobody else is sent; the rest is NotSentError caused by it, and the pool stays usable."""
    with FakeChatServer(key="right", latency=0.01) as server:
        pool = make_pool(4, base_url=server.url, api_key="wrong")
        answers = pool.map(["a"] * 1000)
        assert answers == [None] * 1000
        assert len(server.requests) <= 8
        not_sent = answers.results[-1].error
        assert type(not_sent) is NotSentError
        assert type(not_sent.__cause__).__name__ == "AuthenticationError"
        assert answers.results[-1].attempts == 0
        server._key = "wrong"
        assert pool.map(["a"]) == ["a"]


def test_sick_prompts_do_not_starve_the_well(server, make_pool):
    """A call that waits out its back-off holds no place: with one worker, the other prompts pass it by."""
    release = threading.Event()
    server.script("failing", Reply(status=500), Reply("well again"))
    pool = make_pool(1, max_wait=60)
    seen = []

    def parse(text):
        seen.append(text)
        if len(seen) == 5:
            release.set()
        return text

    def wait_for_the_others(error, attempts, max_wait):
        return 0.5 if not release.is_set() else 0.0

    import chatpool._scheduling.sender as engine

    original = engine.delay_before_retry
    engine.delay_before_retry = wait_for_the_others
    try:
        assert pool.map(["failing", *"12345"], parse=parse) == ["well again", *"12345"]
    finally:
        engine.delay_before_retry = original
    assert seen[-1] == "well again"
    assert server.most_in_flight == 1


def test_threads_are_at_most_twice_max_workers(server, make_pool):
    """Also when every prompt fails and waits, and others run while they wait."""
    most = 0

    def reply(request):
        nonlocal most
        most = max(most, len(chatpool_threads()))
        return Reply(status=500)

    server._reply = reply
    make_pool(5, max_tries=4, max_wait=0.05).map(["a"] * 60)
    assert 5 < most <= 10


def test_parse_takes_the_texts_place(server, pool):
    """value is what parse returns, text stays the text."""
    answers = pool.map(['{"a": 1}', '{"a": 2}'], parse=json.loads)
    assert answers == [{"a": 1}, {"a": 2}]
    assert answers.results[0].text == '{"a": 1}'


def test_parse_may_return_none(pool):
    """None can be a value; ``ok`` is False only for a failure."""
    answers = pool.map(["a"], parse=lambda text: None)
    assert answers == [None]
    assert answers.results[0].ok
    assert answers.failures == []


def test_value_error_of_parse_is_tried_again(server, pool):
    """An answer that does not parse is asked for again."""
    server.script("a", Reply("not json"), Reply("[1]"))
    answers = pool.map(["a"], parse=json.loads)
    assert answers == [[1]]
    assert answers.results[0].attempts == 2


def test_answer_that_never_parses(server, make_pool):
    """ParseError after max_tries, and the last text to look at."""
    server.script("a", Reply("not json"))
    answers = make_pool(max_tries=2).map(["a"], parse=json.loads)
    assert answers == [None]
    assert type(answers.failures[0].error) is ParseError
    assert answers.failures[0].error.code == "JSONDecodeError"
    assert answers.failures[0].text == "not json"
    assert answers.failures[0].response["choices"]
    assert server.count("a") == 2


def test_other_errors_of_parse_are_the_callers_and_are_raised(server, pool):
    """A bug is no failed call."""
    server.script("c", Reply("c", delay=0.2))
    with pytest.raises(ZeroDivisionError) as caught:
        pool.map(["a", "b", "c"], parse=lambda text: {"a": 1, "b": 2}[text] if text != "c" else 1 / 0)
    assert caught.value.prompt_index == 2
    assert caught.value.answers == [1, 2, None]
    with pytest.raises(TypeError, match="retry takes what map returned"):
        pool.retry(["a"])
    assert pool.map(["a"]) == ["a"]


BAD_ANSWERS = {
    "a field that is missing": ('{"lable": "red"}', lambda text: json.loads(text)["label"], "KeyError"),
    "an item that is missing": ("[]", lambda text: json.loads(text)[0], "IndexError"),
    "a number for an object": ("7", lambda text: json.loads(text)["label"], "TypeError"),
    "a list for an object": ("[]", lambda text: json.loads(text).get("label"), "AttributeError"),
    "a value that is refused": ("x", int, "ValueError"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_an_answer_of_another_shape_is_a_bad_answer(case, server, make_pool):
    """It is asked for again; the other prompts are answered."""
    bad, parse, name = BAD_ANSWERS[case]
    good = {"int": "1"}.get(getattr(parse, "__name__", ""), '{"label": "red"}' if "item" not in case else "[1]")
    server.script("bad at first", Reply(bad), Reply(good))
    server.script("bad", Reply(bad))
    answers = make_pool(max_tries=2).map(["bad at first", "bad"], parse=parse)
    assert answers[0] == parse(good)
    (failure,) = answers.failures
    assert type(failure.error) is ParseError
    assert failure.error.code == name
    assert failure.attempts == 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_bug_in_parse_shows_prompt_answer_and_results_in_its_notes(server, make_pool):
    server.script("b", Reply("the answer is\n" + "x" * 500, delay=0.2))
    with pytest.raises(ZeroDivisionError) as caught:
        make_pool().map(["a", "b"], parse=lambda text: text if text == "a" else 1 / 0)
    about_prompt, about_answers = caught.value.__notes__
    assert "for prompt 1; its answer begins with 'the answer is xxx" in about_prompt
    assert len(about_prompt) < 200
    assert about_answers == "chatpool: 1 of 2 prompts done, with results in .answers; journal=FILE lets a run resume"


def test_parse_sees_the_callers_context_variables(pool):
    """Trace ids, customers and the like reach the workers."""
    customer = contextvars.ContextVar("customer")
    customer.set("acme")
    assert pool.map(["a"] * 8, parse=lambda text: customer.get()) == ["acme"] * 8


def test_map_within_parse_works(pool):
    """A worker that maps does the work itself, so that it waits for nobody."""
    assert pool.map(["a", "b"] * 10, parse=lambda text: pool.map([text + "1"] * 3)) == [["a1"] * 3, ["b1"] * 3] * 10


def test_deadline_keeps_what_is_done(server, pool):
    """What is not done by then is None, with DeadlineError; the rest stays."""
    server.script("slow", Reply(fault="stall"))
    answers = pool.map(["a", "slow", "b"], deadline=0.3)
    assert answers == ["a", None, "b"]
    assert type(answers.failures[0].error) is DeadlineError
    assert answers.failures[0].attempts == 1
    assert pool.map(["a"] * 8) == ["a"] * 8


def test_deadline_of_zero_sends_nothing(server, pool):
    answers = pool.map(["a"] * 20, deadline=0)
    assert answers == [None] * 20
    assert {type(result.error) for result in answers.results} == {DeadlineError}
    assert server.requests == []


def test_max_time_bounds_a_prompts_tries_and_waits(server, make_pool):
    """No try begins that could not end in time; the last failure is the outcome."""
    server.script("a", Reply(status=500, delay=0.05))
    answers = make_pool(max_tries=1000, max_time=0.3).map(["a"])
    assert answers.failures[0].elapsed < 5
    assert 1 < server.count("a") < 10


def test_retry_sends_only_the_failed_ones(server, make_pool):
    """The answers that stand are not paid for again, and params and parse are as before."""
    pool = make_pool(max_tries=1)
    server.script("b", Reply(status=500), Reply("7"))
    first = pool.map(["1", "b", "3"], parse=int, params={"seed": 1})
    assert first == [1, None, 3]
    again = pool.retry(first)
    assert again == [1, 7, 3]
    assert [request.prompt for request in server.requests[3:]] == ["b"]
    assert server.requests[3].body["seed"] == 1
    assert again.failures == []
    assert [result.index for result in again.results] == [0, 1, 2]
    assert pool.retry(again) == again


def test_closed_pool_says_so(pool):
    pool.map(["a"])
    pool.close()
    pool.close()
    for use in (pool.map, pool.imap, pool.submit, pool.ask):
        with pytest.raises(PoolClosedError, match="closed"):
            use(["a"]) if use in (pool.map, pool.imap) else use("a")


def test_close_from_another_thread_ends_a_map(server, pool):
    """Calls in flight are cancelled, with the cause; the map returns."""
    server.script("slow", Reply(fault="stall"))
    server.script("fast", Reply("fast"))
    threading.Timer(0.2, pool.close).start()
    answers = pool.map(["fast", "slow"])
    assert answers == ["fast", None]
    assert type(answers.failures[0].error) is NotSentError
    assert "closed" in str(answers.failures[0].error)


def test_many_threads_share_a_pool(server, make_pool):
    """Thirty maps at once, first use and all: each gets its own answers, and the wire is never too full."""
    pool = make_pool(5)
    barrier, wrong = threading.Barrier(30), []

    def use(number):
        barrier.wait()
        prompts = [f"{number}-{index}" for index in range(10)]
        if pool.map(prompts) != prompts:
            wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(server.requests) == 300
    assert server.most_in_flight <= 5


def test_small_map_is_not_stuck_behind_a_large_one(server, make_pool):
    """Runs take turns: five prompts beside five hundred come back long before them."""
    server._latency = 0.005
    pool = make_pool(2)
    large = threading.Thread(target=pool.map, args=(["large"] * 500,))
    large.start()
    assert pool.map(["small"] * 5) == ["small"] * 5
    assert server.count("large") < 100
    pool.close()
    large.join()


def test_stale_connection_is_followed_by_a_fresh_one(server, make_pool):
    """A server that closes kept connections just as they are reused costs one more request, and no wait."""
    pool = make_pool(3, max_wait=60)
    pool.map(["warm up"] * 30)
    server.script("a", Reply(fault="close"), Reply("fresh"))
    answers = pool.map(["a"])
    assert answers == ["fresh"]
    assert answers.results[0].attempts == server.count("a") == 2
    assert answers.results[0].elapsed < 10
    server.script("b", Reply(fault="close"))
    (failure,) = make_pool(1, max_tries=3).map(["warm", "b"]).failures
    assert (failure.error.code, failure.attempts) == ("connection_failed", 1 + 3)  # it costs no try, once


def test_truncated_body_is_a_connection_cut_short(server, make_pool):
    server.script("a", Reply(fault="truncate"))
    assert make_pool(max_tries=1).map(["a"]).failures[0].error.code == "incomplete_read"
