"""What a run costs: estimated beforehand, bounded on the way, and not spent twice on equal prompts."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading

import pytest

from chatpool import ConfigurationError, InternalServerError, NotSentError, SpendLimitError
from chatpool.testing import Reply

# The guard.


def test_no_request_is_sent_beyond_request_budget(server, make_pool):
    answers = make_pool().map(["a"] * 50, request_budget=20)
    assert len(server.requests) == 20
    assert len(answers.failures) == 30
    assert {type(result.error) for result in answers.failures} == {SpendLimitError}
    assert {result.attempts for result in answers.failures} == {0}


def test_retries_are_requests_too(server, make_pool):
    server.script("a", *[Reply(status=500)] * 9)
    answers = make_pool(1).map(["a", "b"], request_budget=3)
    assert len(server.requests) == 3
    errors = [result.error for result in answers.results if not result.ok]
    assert all(isinstance(error, SpendLimitError) for error in errors)


def test_who_may_not_retry_is_told_of_its_failure(server, make_pool):
    server.script("a", *[Reply(status=500)] * 9)
    (failure,) = make_pool(1).map(["a"], request_budget=2).failures
    assert isinstance(failure.error, SpendLimitError)
    assert isinstance(failure.error.__cause__, InternalServerError)
    assert failure.error.code == "request_budget"
    assert "request_budget=2 of this run is spent" in str(failure.error)
    assert failure.attempts == 2


def test_nothing_is_sent_once_the_tokens_are_spent(server, make_pool):
    """Each answer costs 10; what is in flight when 100 are spent still comes in."""
    usage = {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
    server.script("a", *[Reply("x", usage=usage)] * 60)
    answers = make_pool(4).map(["a"] * 50, token_budget=100)
    assert 10 <= len(server.requests) <= 10 + 3
    assert answers.usage.total_tokens == 10 * len(server.requests)
    assert {failure.error.code for failure in answers.failures} == {"token_budget"}


def test_tokens_of_bad_answers_count(server, make_pool):
    usage = {"prompt_tokens": 50, "completion_tokens": 50, "total_tokens": 100}
    server.script("a", *[Reply("malformed", usage=usage)] * 9)
    answers = make_pool(1).map(["a"], parse=json.loads, token_budget=300)
    assert len(server.requests) == 3
    assert answers == [None]


def test_tokens_are_guessed_where_the_server_counts_none(server, make_pool):
    body = {"choices": [{"message": {"content": "x" * 400}}]}
    server.script("a", *[Reply(body=body)] * 20)
    answers = make_pool(1).map(["a"] * 20, token_budget=450)
    assert len(server.requests) == 4  # 100 for the answer, and 23 for the prompt
    assert len(answers.failures) == 16


@pytest.mark.parametrize("way", ["imap", "imap_unordered"])
def test_iterators_are_bounded_too(way, server, make_pool):
    results = list(getattr(make_pool(), way)((str(number) for number in range(100)), request_budget=30))
    assert len(server.requests) == 30
    assert len(results) == 100
    assert sum(isinstance(result.error, SpendLimitError) for result in results) == 70


def test_limit_is_one_runs(server, make_pool):
    pool = make_pool()
    pool.map(["a"] * 5, request_budget=2)
    assert pool.map(["a"] * 5) == ["a"] * 5
    assert pool.map(["a"] * 5, request_budget=5) == ["a"] * 5


def test_many_threads_claim_no_more_than_there_is(server, make_pool):
    answers = make_pool(50).map(["a"] * 500, request_budget=123)
    assert len(server.requests) == 123
    assert sum(answer is None for answer in answers) == 500 - 123


def test_what_was_not_sent_is_sent_next_time(server, make_pool, tmp_path):
    pool, prompts = make_pool(), [str(number) for number in range(20)]
    pool.map(prompts, journal=tmp_path / "j.jsonl", request_budget=8)
    assert pool.map(prompts, journal=tmp_path / "j.jsonl") == prompts
    assert len(server.requests) == 20


def test_summary_names_the_limit(make_pool):
    answers = make_pool().map(["a"] * 5, request_budget=2)
    assert "3 × SpendLimitError request_budget" in answers.summary()
    with pytest.raises(NotSentError, match="request_budget=2"):
        answers.raise_for_failures()


@pytest.mark.parametrize("limit", ["request_budget", "token_budget"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "10"])
def test_limit_is_a_whole_number(limit, value, make_pool, server):
    with pytest.raises(ConfigurationError, match=f"{limit} must be a whole number"):
        make_pool().map(["a"], **{limit: value})
    assert server.requests == []


@pytest.mark.parametrize("option", [["--request-budget", "3"], ["--token-budget", "1"]])
def test_command_has_the_guard(option, server, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\n" * 10)
    command = [
        sys.executable,
        "-m",
        "chatpool",
        "run",
        "prompts.txt",
        "-o",
        "out.jsonl",
        "--base-url",
        server.url,
        "--workers",
        "2",
    ]
    done = subprocess.run([*command, *option], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "SpendLimitError" in done.stderr
    assert len(server.requests) <= 3
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert len(server.requests) == 10


# The estimate.


def test_estimate_counts_calls_and_tokens(server, make_pool):
    estimate = make_pool(params={"max_tokens": 50}).estimate(["x" * 400] * 10)
    assert estimate.calls == 10
    assert 1000 <= estimate.prompt_tokens <= 1300
    assert estimate.most_completion_tokens == 500
    assert server.requests == []


def test_estimate_without_a_limit_on_answers(make_pool):
    assert make_pool().estimate(["a"]).most_completion_tokens is None
    assert make_pool().estimate([]).most_completion_tokens == 0


def test_estimate_knows_params_and_prompts_own_fields(make_pool):
    prompts = ["a", {"messages": [{"role": "user", "content": "b"}], "max_completion_tokens": 7, "n": 2}]
    assert make_pool().estimate(prompts, params={"max_tokens": 10}).most_completion_tokens == 10 + 14


def test_estimate_takes_any_iterable_and_refuses_what_map_refuses(make_pool):
    assert make_pool().estimate(str(number) for number in range(7)).calls == 7
    with pytest.raises(TypeError, match="prompt 1"):
        make_pool().estimate(["a", None])
    with pytest.raises(TypeError, match="one str"):
        make_pool().estimate("a")


# Equal prompts.


def test_equal_prompts_are_asked_once(server, make_pool):
    answers = make_pool().map(["a", "b", "a", "a", "b"], dedupe=True)
    assert answers == ["a", "b", "a", "a", "b"]
    assert sorted(request.prompt for request in server.requests) == ["a", "b"]
    assert [result.index for result in answers.results] == [0, 1, 2, 3, 4]
    assert [result.attempts for result in answers.results] == [1, 1, 0, 0, 0]


def test_by_default_each_is_asked(server, make_pool):
    make_pool().map(["a", "a"])
    assert len(server.requests) == 2


def test_equal_means_the_same_request(server, make_pool):
    """However it is written; a field that differs makes another request."""
    message = [{"role": "user", "content": "a"}]
    same = ["a", message, {"messages": message}, {"messages": [{"content": "a", "role": "user"}]}]
    make_pool().map([*same, {"messages": message, "temperature": 1}], dedupe=True)
    assert len(server.requests) == 2


def test_tokens_are_counted_once(make_pool):
    one = make_pool().map(["a b c"]).usage
    assert make_pool().map(["a b c"] * 4, dedupe=True).usage == one


def test_copies_of_a_failure_fail(server, make_pool):
    server.script("a", *[Reply(status=400)] * 9)
    answers = make_pool().map(["a", "b", "a"], dedupe=True)
    assert answers == [None, "b", None]
    assert [type(failure.error).__name__ for failure in answers.failures] == ["BadRequestError"] * 2
    assert len(server.requests) == 2


def test_retry_asks_copies_once_too(server, make_pool):
    server.script("a", Reply(status=400), Reply("better"))
    pool = make_pool()
    assert pool.retry(pickle.loads(pickle.dumps(pool.map(["a", "a"], dedupe=True)))) == ["better", "better"]
    assert len(server.requests) == 2


def test_copies_and_journal(server, make_pool, tmp_path):
    """Without and with the other, in either order, nothing is asked that an equal prompt has the answer of."""
    pool, journal = make_pool(), tmp_path / "j.jsonl"
    assert pool.map(["a", "b", "a"], dedupe=True, journal=journal) == ["a", "b", "a"]
    again = pool.map(["a", "b", "a"], dedupe=True, journal=journal)
    assert again == ["a", "b", "a"]
    assert again.resumed == {0, 1, 2}
    assert len(server.requests) == 2


def test_copies_show_on_the_bar_and_at_an_interrupt(server, make_pool):
    pool = make_pool(2)
    server.script("slow", Reply("slow", delay=30))
    found = []

    def run():
        with pytest.raises(ZeroDivisionError) as caught:
            pool.map(["a", "slow", "a"], dedupe=True, parse=fail_at_slow)
        found.append(caught.value.answers)

    def fail_at_slow(text):
        if text == "a":
            return "A"
        raise ZeroDivisionError

    thread = threading.Thread(target=run)
    server.script("slow", Reply("slow"))
    thread.start()
    thread.join(10)
    assert found[0][0] == found[0][2]
