"""Answers: a list with results, and a summary."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from chatpool import (
    Answers,
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    ChatResult,
    ConfigurationError,
    InternalServerError,
    NotSentError,
    RateLimitError,
    Usage,
)
from chatpool.testing import Reply


def good(index, text="t", elapsed=1.0, attempts=1, reason="stop"):
    return ChatResult(index, "p", text, text, None, reason, Usage(1, 2, 3), {}, f"req_{index}", attempts, elapsed, None)


def bad(index, error, attempts=2):
    return ChatResult(index, "p", None, None, None, None, None, None, None, attempts, 1.0, error)


def outage(request_id="r"):
    return InternalServerError("503: busy", status_code=503, code="busy", request_id=request_id, attempts=6)


ANSWERS = Answers(
    [good(0, elapsed=0.1), bad(1, outage()), good(2, attempts=3, reason="length"), bad(3, outage("s"))],
    wall=2.0,
    limited_by="max_workers=2",
    waits={"back-off after failures": 1.5, "max_workers": 0.01},
)


def test_answers_is_a_list():
    assert ANSWERS == ["t", None, "t", None]
    assert json.dumps(ANSWERS) == '["t", null, "t", null]'
    assert ANSWERS[1:] == [None, "t", None]


def test_failures_and_usage():
    assert [result.index for result in ANSWERS.failures] == [1, 3]
    assert ANSWERS.usage == Usage(2, 4, 6)
    assert Usage(1, 2, 3) + Usage(1, 1, 2) == Usage(2, 3, 5)


def test_summary():
    assert ANSWERS.summary().splitlines() == [
        "4 prompts: 2 answered, 2 failed in 2.0 s (60 a minute)",
        "requests: 8, 4 retries; tokens: 2 in, 4 out, 6 total; truncated answers: 1",
        "median 1.00 s, p95 1.00 s; bottleneck: max_workers=2",
        "  2 × InternalServerError 503 busy, e.g. prompt 1 (r): 503: busy",
    ]


def test_summary_uses_the_singular_for_one():
    summary = Answers([good(0, attempts=2)], resumed=[]).summary()
    assert "1 prompt: 1 answered, 0 failed" in summary
    assert "requests: 2, 1 retry;" in summary


def test_summary_counts_resumed_answers_apart():
    """Their requests and tokens were paid for by an earlier run, and their times are its own."""
    summary = Answers([good(0, elapsed=99, attempts=9), good(1, elapsed=0.5)], wall=60.0, resumed=[0]).summary()
    assert summary.splitlines()[:3] == [
        "2 prompts: 2 answered (1 resumed), 0 failed in 60.0 s (1 a minute)",
        "requests: 1, 0 retries; tokens: 1 in, 2 out, 3 total; resumed: 3 tokens",
        "median 0.50 s, p95 0.50 s; bottleneck: nothing",
    ]


def test_summary_counts_requests_that_may_be_charged_without_an_answer():
    late = replace(bad(0, outage()), unanswered=2)
    assert "requests: 4, 2 retries; stopped waiting for 3, which may be charged" in " ".join(
        Answers([late, replace(late, index=1, attempts=2, unanswered=1)]).summary().split()
    )


def test_summary_says_for_how_many_prompts_the_cost_is_unknown():
    """Their model has no price."""
    summary = Answers([replace(good(0), cost=0.5), good(1), good(2)]).summary()
    assert "cost: $0.5000, unknown for 2 prompts" in summary
    assert "unknown" not in Answers([replace(good(0), cost=0.5)]).summary()


def test_summary_of_nothing():
    assert "0 prompts: 0 answered, 0 failed" in Answers([]).summary()
    assert "no new answer" in Answers([]).summary()


KINDS = [RateLimitError, InternalServerError, NotSentError, AuthenticationError, APITimeoutError]


@pytest.mark.parametrize("kinds", range(6))
@pytest.mark.parametrize("resumed", [0, 5])
def test_summary_fits_five_lines_of_80_columns(kinds, resumed):
    """With millions of tokens, and however many kinds of failures there are; each of the first is shown."""
    usage = Usage(123_456_789, 98_765_432, 222_222_221)
    answers = [replace(good(index, reason="length"), usage=usage, unanswered=1000) for index in range(100)]
    failures = [
        bad(100 + index, KINDS[index](f"{'a long message ' * 40}\nsecond line", status_code=500 + index))
        for index in range(kinds)
    ]
    cause = "the server's rate limit (cool-down)"
    summary = Answers([*answers, *failures], wall=98765.4, limited_by=cause, resumed=range(resumed)).summary()
    lines = summary.splitlines()
    assert len(lines) <= 5
    assert max(map(len, lines)) <= 80
    assert cause in summary
    assert (KINDS[0].__name__ in summary) == (kinds > 0)


def test_summary_counts_the_failures_that_it_does_not_show():
    failures = [bad(index, kind("message", status_code=index)) for index, kind in enumerate(KINDS)]
    lines = Answers(failures).summary().splitlines()
    assert lines[-1] == "  2 × other errors, see answers.failures"
    assert "(1 not sent)" in lines[0]  # because of one of the others


def test_summary_shows_the_message_that_stopped_a_run():
    """Prompts that were not sent because of it are a number in the first line."""
    wrong = bad(
        0, AuthenticationError("401: Incorrect API key provided", status_code=401, code="invalid_request_error")
    )
    summary = Answers([wrong, *(bad(index, NotSentError("not sent")) for index in range(1, 9))]).summary()
    assert "9 failed (8 not sent)" in summary
    assert "Incorrect API key" in " ".join(summary.split())


def test_summary_shows_the_address_of_a_server_that_does_not_listen():
    """It is at the end of a long message; lines that say nothing make room."""
    message = "nothing listens at that address: ConnectionRefusedError: [Errno 111] Connection refused (http://127.0.0.1:9/v1)"
    assert (
        "http://127.0.0.1:9/v1" in Answers([bad(0, APIConnectionError(message, code="connection_refused"))]).summary()
    )


def test_summary_of_a_retry_counts_the_requests_of_both_maps(server, make_pool):
    """Attempts, tokens and retries; prompts are counted once."""
    usage = {"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5}
    server.script("a", *[Reply("bad", usage=usage)] * 3, Reply("good", usage=usage))
    pool = make_pool(max_tries=3)

    def check(text):
        if text == "bad":
            raise ValueError(text)

    first = pool.map(["a", "b"], parse=check)
    again = pool.retry(first)
    assert len(server.requests) == 5
    assert "2 prompts: 2 answered, 0 failed" in again.summary()
    assert "requests: 5, 3 retries; tokens: 17 in, 5 out, 22 total" in again.summary()
    assert [result.attempts for result in again.replaced] == [3]
    assert again.results[0].attempts == 1


def test_retry_keeps_what_was_resumed_apart(server, pool, tmp_path):
    server.script("b", Reply(status=400), Reply("good"))
    pool.map(["a"], journal=tmp_path / "j.jsonl")
    again = pool.retry(pool.map(["a", "b"], journal=tmp_path / "j.jsonl"))
    assert again.resumed == {0}
    assert "2 answered (1 resumed)" in again.summary()


def test_summary_escapes_control_characters():
    """It is printed to terminals, and a server or a journal chose the message."""
    error = InternalServerError("\x1b[2Jbad \u202e", code="\x9b", request_id="\x07")
    assert r"InternalServerError \x9b, e.g. prompt 0 (\x07): \x1b[2Jbad \u202e" in Answers([bad(0, error)]).summary()


def test_raise_for_failures_raises_the_first_with_its_fields():
    """The class and fields of the first failure, the count in the message, the original as its cause."""
    with pytest.raises(InternalServerError, match="2 of 4 calls failed; prompt 1: 503: busy") as caught:
        ANSWERS.raise_for_failures()
    assert (caught.value.status_code, caught.value.request_id, caught.value.attempts) == (503, "r", 6)
    assert caught.value.__cause__ is ANSWERS.results[1].error
    assert str(ANSWERS.results[1].error) == "503: busy"


def test_raise_for_failures_prefers_the_cause_of_a_not_sent_error():
    """It raises the failure that stopped the other calls."""
    answers = Answers([bad(0, NotSentError("not sent")), bad(1, AuthenticationError("401"))])
    with pytest.raises(AuthenticationError):
        answers.raise_for_failures()
    with pytest.raises(NotSentError):
        Answers([bad(0, NotSentError("not sent"))]).raise_for_failures()


def test_raise_for_failures_without_failures():
    Answers([good(0)]).raise_for_failures()


def test_answers_pickle():
    copy = pickle.loads(pickle.dumps(ANSWERS))
    assert copy == ANSWERS
    assert copy.summary() == ANSWERS.summary()


def test_results_of_a_large_map_are_small(server):
    """Under 3 kB a result besides its text, with everything that a map leaves in memory."""
    code = (
        "import gc, sys, tracemalloc; from chatpool import ChatPool; pool = ChatPool(8, base_url=sys.argv[1])\n"
        "pool.map(['warm'] * 50); tracemalloc.start(); prompts = [f'p{n}' for n in range(3000)]\n"
        "gc.collect(); before = tracemalloc.get_traced_memory()[0]; answers = pool.map(prompts)\n"
        "gc.collect(); print((tracemalloc.get_traced_memory()[0] - before) / 3000)"
    )
    done = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3000


def test_answers_with_a_lambda_pickle_without_it(server, pool):
    """Answers are pickled; ``retry`` says what is missing."""
    server.script("bad", Reply(status=400), Reply())
    answers = pickle.loads(pickle.dumps(pool.map(["a", "bad"], parse=lambda text: text.upper())))
    assert answers == ["A", None]
    with pytest.raises(ConfigurationError, match=r"set answers\.parse"):
        pool.retry(answers)
    answers.parse = str.upper
    assert pool.retry(answers) == ["A", "BAD"]
