"""A good neighbour: rate limits, outages, budgets and failing prompts, against real sockets and by the server's count.

What is compared with an ideal here lasts for seconds of waiting, not of work, so that a slow machine changes little.
"""

from __future__ import annotations

import random
import re
import time

import pytest

from chatpool import (
    BadRequestError,
    ChatPool,
    InternalServerError,
    NotSentError,
    RateLimitError,
)
from chatpool.testing import FakeChatServer, InFlight, RateLimit, Reply


def seconds(work):
    began = time.monotonic()
    result = work()
    return time.monotonic() - began, result


def test_rate_limit_is_found_and_kept():
    """20 a second, bursts of 10, answers in 0.2 s, refusals of 300 ms: 40 workers, 300 prompts, and the limit is not announced.

    All are answered in at most 1.5 times the ideal time (1.05 on a quiet machine) with at most 0.25 refusals a prompt.
    """
    limit = RateLimit(per_second=20, burst=10, retry_after=0.3)
    with FakeChatServer(latency=0.2, rate_limit=limit) as server, ChatPool(40, base_url=server.url) as pool:
        took, answers = seconds(lambda: pool.map(["a"] * 300))
        assert answers == ["a"] * 300
        assert took < 1.5 * (290 / 20 + 0.2)
        assert server.refusals <= 0.25 * 300
        assert re.search(r"bottleneck: rate limit of [\d.]+ requests a second", answers.summary())


@pytest.mark.parametrize("status", [429, 503, 529])
def test_overload_costs_no_try_while_the_pool_gets_on(status):
    """At most four attempts count, and a server that takes 4 at once of 20: none is lost, in whichever status it says so."""
    limit = InFlight(4, status=status)
    with FakeChatServer(latency=0.1, rate_limit=limit) as server:
        with ChatPool(20, base_url=server.url, max_tries=4, max_wait=5) as pool:
            answers = pool.map(["a"] * 60)
        assert answers.failures == []
        assert server.refusals > 0


def test_one_refusal_does_not_slow_the_rest_for_long():
    """A single 429 costs its pause of a second, and little more."""
    with FakeChatServer(latency=0.05) as server, ChatPool(20, base_url=server.url) as pool:
        server.script("x", Reply(status=429, headers={"retry-after": "1"}), Reply("x"))
        took, answers = seconds(lambda: pool.map(["a"] * 100 + ["x"] + ["a"] * 300))
    assert answers.failures == []
    assert took < 1 + 10


def test_no_request_leaves_during_the_pause():
    """The whole pool waits as long as one reply asked for."""
    with FakeChatServer() as server, ChatPool(4, base_url=server.url) as pool:
        server.script("x", Reply(status=429, headers={"retry-after-ms": "400"}), Reply("x"))
        pool.map(["x"] + ["a"] * 20)
        times = sorted(request.time for request in server.requests)
        gaps = [after - before for before, after in zip(times, times[1:])]
    assert max(gaps) > 0.35


def test_outage_is_sat_out():
    """503 from everything for 5 s: 800 prompts, four attempts each: none lost, at most 80 useless requests."""
    began = time.monotonic()
    useless = []

    def reply(request):
        if 1 < time.monotonic() - began < 6:
            useless.append(request)
            return Reply(status=503)
        return Reply(delay=0.1)

    with FakeChatServer(reply=reply) as server, ChatPool(20, base_url=server.url, max_tries=4, max_wait=2) as pool:
        answers = pool.map(["a"] * 800)
    assert answers.failures == []
    assert len(useless) <= 80


def test_endless_outage_ends_the_map_in_the_stated_time():
    """Five times max_wait, then everything left is cancelled for that reason, with few requests sent."""
    with FakeChatServer(reply=lambda request: Reply(status=503)) as server:
        with ChatPool(20, base_url=server.url, max_tries=9, max_wait=0.3) as pool:
            took, answers = seconds(lambda: pool.map(["a"] * 800))
        assert len(server.requests) < 120
    assert 5 * 0.3 <= took < 5 * 0.3 + 10
    assert {type(result.error) for result in answers.results} == {InternalServerError, NotSentError}
    assert isinstance(answers.results[-1].error.__cause__, InternalServerError)


def test_an_address_where_nobody_listens_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr("chatpool._limits.outage.NOBODY_LISTENS", 0.5)
    with FakeChatServer() as server:
        url = server.url
    with ChatPool(20, base_url=url) as pool:
        took, answers = seconds(lambda: pool.map(["a"] * 200))
    assert took < 20
    assert len(answers.failures) == 200


def test_a_server_that_still_loads_its_model_is_waited_for(monkeypatch):
    """It accepts connections and answers 503: that is an outage as any, although nothing was answered yet."""
    monkeypatch.setattr("chatpool._limits.outage.NOBODY_LISTENS", 0.2)
    began = time.monotonic()

    def reply(request):
        return Reply() if time.monotonic() - began > 1.5 else Reply(status=503, code="loading")

    with FakeChatServer(reply=reply) as server, ChatPool(20, base_url=server.url, max_wait=5) as pool:
        assert pool.map(["a"] * 100) == ["a"] * 100


def test_refusals_alone_end_the_map(make_pool, server):
    """After five times max_wait with no answer to anybody, whatever a server says."""
    server._reply = lambda request: Reply(status=429)
    took, answers = seconds(lambda: make_pool(4, max_wait=0.2).map(["a"] * 100))
    assert took < 5 * 0.2 + 10
    assert answers == [None] * 100


def test_failing_prompts_at_the_end_are_no_outage(server):
    """When only prompts that fail again and again are left, they have their attempts and no more."""
    server.script("failing", Reply(status=500))
    with ChatPool(4, base_url=server.url, max_tries=3, max_wait=0.05) as pool:
        took, answers = seconds(lambda: pool.map(["well"] * 20 + ["failing", "well"] * 15))
    assert {result.attempts for result in answers.failures} == {3}
    assert len(answers.failures) == 15
    assert took < 10


def test_every_fifth_prompt_failing_twice_does_not_slow_the_others():
    """400 calls of 0.1 s with 20 workers, waits of up to 4 s: far less than the 16 s that waits in slots would take."""
    failures = {}

    def reply(request):
        count = failures[request.prompt] = failures.get(request.prompt, 0) + 1
        fails = int(request.prompt) % 5 == 0 and count <= 2
        return Reply(status=500, delay=0.1) if fails else Reply(delay=0.1)

    with FakeChatServer(reply=reply) as server, ChatPool(20, base_url=server.url, max_wait=4) as pool:
        prompts = [str(number) for number in range(400)]
        took, answers = seconds(lambda: pool.map(prompts))
        assert answers == prompts
        assert len(server.requests) == 400 + 160
        assert server.most_in_flight <= 20
    assert took < 10


def test_more_failing_prompts_than_threads_do_not_starve_the_others(server):
    """100 that fail and wait for seconds among 200 that do not: the well ones are through long before."""
    server.script("failing", Reply(status=500, headers={"retry-after": "4"}))
    prompts = ["failing"] * 100 + ["well"] * 200
    random.Random(1).shuffle(prompts)
    with ChatPool(5, base_url=server.url, max_tries=2) as pool:
        began = time.monotonic()
        answers = pool.map(prompts)
        last = max(request.time for request in server.requests if request.prompt == "well")
        assert len(answers.failures) == 100
        assert server.count("failing") == 200
    assert last - began < 4


def test_new_map_is_not_kept_waiting_by_one_in_back_off(server):
    """Threads that only wait are called back when there is work."""
    server.script("failing", Reply(status=500, headers={"retry-after": "5"}))
    with ChatPool(3, base_url=server.url) as pool:
        futures = [pool.submit("failing") for _ in range(10)]
        while server.count("failing") < 10:
            time.sleep(0.005)
        took, answers = seconds(lambda: pool.map(["well"] * 10))
        pool.close()
    assert answers == ["well"] * 10
    assert took < 5
    assert all(future.done() for future in futures)


@pytest.mark.parametrize("share", [600, 120])
def test_requests_per_minute(server, share):
    """No window of 3 seconds holds more than its share and the stated burst of one second's share."""
    with ChatPool(20, base_url=server.url, requests_per_minute=share) as pool:
        answers = pool.map(["a"] * int(share / 60 * 5), deadline=20)
    assert answers.failures == []
    times = sorted(request.time for request in server.requests)
    most = max(sum(start <= t < start + 3 for t in times) for start in times)
    assert most <= share / 60 * (3 + 1) + 1
    assert times[-1] - times[0] > 3.5
    assert answers.limited_by == "requests_per_minute"


def test_tokens_per_minute_is_corrected_by_real_usage():
    """The estimate says 25 or so, the server says 100 a call: at 6,000 a minute, one call a second in the long run."""
    usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
    server = FakeChatServer(reply=lambda request: Reply("a", usage=usage))
    with server, ChatPool(1, base_url=server.url, tokens_per_minute=6000) as pool:
        took, answers = seconds(lambda: pool.map(["a"] * 5))
    assert answers.usage.total_tokens == 500
    assert took > 2


def test_prompt_larger_than_the_budget_fails_with_a_clear_error(pool, make_pool):
    answers = make_pool(tokens_per_minute=100).map(["short", "x" * 4000])
    assert answers[0] == "short"
    assert "more than tokens_per_minute=100 allows" in str(answers.failures[0].error)


def test_picture_waits_for_a_full_budget_of_tokens(make_pool):
    """What a picture costs is a guess, so it is no reason to refuse the prompt. Neither is a long answer."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    prompt = [{"role": "user", "content": [picture, {"type": "text", "text": "What is this?"}]}]
    pool = make_pool(tokens_per_minute=100)
    assert pool.map([prompt], deadline=20).failures == []
    assert make_pool(tokens_per_minute=100).map(["a"], params={"max_tokens": 5000}, deadline=20).failures == []


def test_quota_stops_what_is_left_of_the_map():
    """At most 2 × max_workers requests, and the pool stays usable."""
    spent = [True]
    quota = Reply(status=429, code="insufficient_quota", delay=0.01)
    server = FakeChatServer(reply=lambda request: quota if spent[0] else Reply())
    with server, ChatPool(10, base_url=server.url) as pool:
        answers = pool.map(["a"] * 10_000)
        assert len(server.requests) <= 20
        assert len(answers.failures) == 10_000
        spent[0] = False
        assert pool.map(["a"] * 20) == ["a"] * 20


def test_refusals_are_bounded_however_the_pool_gets_on(server):
    """A prompt that is refused for ever is sent 5 × max_tries times at most, though others are answered all the time."""
    server.script("unlucky", Reply(status=429, headers={"retry-after-ms": "1"}))
    server._latency = 0.002
    with ChatPool(4, base_url=server.url, max_tries=2, max_wait=0.01) as pool:
        answers = pool.map(["unlucky"] + ["a"] * 400)
    assert isinstance(answers.failures[0].error, RateLimitError)
    assert 2 <= server.count("unlucky") <= 10


def test_the_end_of_an_outage_cancels_no_map_that_outlived_it(server):
    """A run that was there during an outage which ended another run goes on after a plain 400 of its own."""
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
