"""Runs in which no prompt can succeed end after few requests, and others do not."""

from __future__ import annotations

import pytest

from chatpool import (
    AuthenticationError,
    BadRequestError,
    ChatPool,
    InvalidResponseError,
    NotFoundError,
    NotSentError,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
)
from chatpool.testing import FakeChatServer, Reply

LOGIN = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in to continue</body></html>"
HOPELESS = {
    "a wrong key, as 400": (
        Reply(
            status=400,
            body={
                "error": {"message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}
            },
        ),
        "not valid",
    ),
    "a model that does not exist": (
        Reply(status=404, body={"error": {"message": "The model `gpt-9` does not exist", "code": "model_not_found"}}),
        "model=",
    ),
    "a parameter that does not exist": (
        Reply(status=400, body={"error": {"message": "Unknown parameter: 'temprature'.", "code": "unknown_parameter"}}),
        "params=",
    ),
    "an empty account, as 403": (
        Reply(status=403, body={"error": {"message": "Your account balance is too low"}}),
        "balance",
    ),
    "a login page, as 200": (Reply(body=LOGIN, headers={"Content-Type": "text/html"}), "Sign in"),
    "a wrong path": (Reply(status=404, body="<html><h1>404 Not Found</h1></html>"), "base_url"),
    "a body that another API expects": (
        Reply(status=422, body={"detail": [{"loc": ["body", "inputs"], "msg": "field required"}]}),
        "field required",
    ),
    "every answer used up by reasoning": (
        Reply(body={"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}),
        "max_tokens",
    ),
}


@pytest.mark.parametrize("kind", HOPELESS)
def test_a_hopeless_run_wastes_few_requests(server, make_pool, kind):
    """At most 4 × max_workers requests, however many prompts there are; the error says what to look at."""
    reply, advice = HOPELESS[kind]
    server._reply = lambda request: reply
    answers = make_pool(10).map([f"prompt {number}" for number in range(500)])
    assert answers == [None] * 500
    assert len(server.requests) <= 4 * 10
    stopped = [result.error for result in answers.results if isinstance(result.error, NotSentError)]
    assert len(stopped) >= 500 - 40
    assert advice in str(stopped[0])
    assert stopped[0].__cause__ is not None


@pytest.mark.parametrize("kind", HOPELESS)
def test_a_hopeless_imap_ends_too(server, make_pool, kind):
    reply, _ = HOPELESS[kind]
    server._reply = lambda request: reply
    results = list(make_pool(10).imap_unordered(f"prompt {number}" for number in range(300)))
    assert len(results) == 300
    assert len(server.requests) <= 4 * 10


def test_probes_are_not_retried_while_one_of_them_is_without_a_reply(server, make_pool):
    """The last prompt is a probe, and its reply is slow; retries of the others would come every 10 ms."""
    reply = HOPELESS["a login page, as 200"][0]
    slow = Reply(body=LOGIN, headers={"Content-Type": "text/html"}, delay=0.5)
    server._reply = lambda request: slow if request.prompt == "prompt 499" else reply
    answers = make_pool(10).map([f"prompt {number}" for number in range(500)])
    assert answers == [None] * 500
    assert server.count("prompt 499") == 1
    assert len(server.requests) <= 4 * 10


@pytest.mark.parametrize("prompts", [19, 20, 21, 25, 33, 41])
def test_a_short_hopeless_run_ends_with_its_attempts(server, make_pool, prompts):
    """Where no prompt is left to probe with, the retries go on, and each prompt gets its own error."""
    server._reply = lambda request: HOPELESS["a login page, as 200"][0]
    answers = make_pool(20).map([f"prompt {number}" for number in range(prompts)], deadline=20)
    assert answers == [None] * prompts
    assert {type(result.error) for result in answers.failures} <= {InvalidResponseError, NotSentError}


def test_prompts_that_are_too_long_at_the_head_stop_nothing(server, make_pool):
    too_long = {"error": {"message": "maximum context length is 8192 tokens", "code": "context_length_exceeded"}}
    server._reply = lambda request: Reply(status=400, body=too_long) if len(request.prompt) > 100 else Reply()
    answers = make_pool(10).map(["long " * 50] * 60 + ["short"] * 240)
    assert answers == [None] * 60 + ["short"] * 240
    assert {type(result.error) for result in answers.failures} == {BadRequestError}


def test_failures_of_one_kind_after_an_answer_stop_nothing(server, make_pool):
    server._reply = lambda request: Reply() if request.prompt == "good" else Reply(status=400, code="bad")
    answers = make_pool(4).map(["good"] + ["bad"] * 200)
    assert {type(result.error) for result in answers.failures} == {BadRequestError}
    assert len(server.requests) == 201


def test_failures_of_many_kinds_stop_nothing(server, make_pool):
    """Until one of them is the same for all."""
    server._reply = lambda request: Reply(status=400, code=f"code_{request.prompt[-1]}")
    make_pool(4).map([f"prompt {number}" for number in range(200)])
    assert len(server.requests) == 200


def test_refused_content_is_contact_with_the_model(server, make_pool):
    refusal = {"choices": [{"message": {"content": None, "refusal": "I can't help"}, "finish_reason": "stop"}]}
    server._reply = lambda request: Reply(body=refusal)
    make_pool(4).map(["a"] * 200)
    assert len(server.requests) == 200


def test_a_probe_that_succeeds_releases_everything(server, make_pool):
    """The first hundred prompts name a model that does not exist; retries that were held are made."""
    server._reply = lambda request: (
        Reply(status=404, code="model_not_found") if request.body["model"] == "wrong" else Reply()
    )
    wrong = {"model": "wrong", "messages": [{"role": "user", "content": "a"}]}
    answers = make_pool(10).map([wrong] * 100 + ["b"] * 100)
    assert answers == [None] * 100 + ["b"] * 100
    assert {type(result.error) for result in answers.failures} == {NotFoundError}


def test_a_stray_401_is_asked_once_more(server, make_pool):
    """After answers with the same key, a gateway's mistake ends nothing."""
    server.script("stray", Reply(status=401, code="invalid_api_key"), Reply("well"))
    pool = make_pool(2)
    assert pool.map(["a"] * 20 + ["stray"] + ["b"] * 20)[20] == "well"


def test_a_revoked_key_ends_the_map(server, make_pool):
    """Its second 401 after answers does."""
    server._reply = lambda request: Reply() if len(server.requests) < 30 else Reply(status=401)
    answers = make_pool(4, max_wait=60).map(["a"] * 500)
    assert len(server.requests) <= 30 + 4 * 4
    assert {type(result.error) for result in answers.failures} == {AuthenticationError, NotSentError}


def test_a_wrong_key_ends_the_map_at_once():
    with FakeChatServer(key="right") as server, ChatPool(4, base_url=server.url, api_key="wrong") as pool:
        pool.map(["a"] * 100)
        assert len(server.requests) <= 4


def test_two_waits_beyond_max_wait_end_what_is_unsent(server, make_pool):
    """The server asks for 578 s: one such call fails, the second one ends the map."""
    server._reply = lambda request: Reply(status=429, headers={"retry-after": "578"})
    answers = make_pool(4, max_wait=60).map(["a"] * 500)
    assert len(server.requests) <= 8
    first = next(result.error for result in answers.results if isinstance(result.error, RateLimitError))
    assert first.retry_after == 578
    assert isinstance(answers.results[-1].error, NotSentError)


def test_one_long_wait_among_answers_ends_one_call(server, make_pool):
    server._reply = lambda request: (
        Reply(status=429, headers={"retry-after": "578"}) if request.prompt == "slow" else Reply()
    )
    prompts = ["a"] * 30 + ["slow"] + ["b"] * 30 + ["slow"] + ["c"] * 30
    answers = make_pool(1, max_wait=60).map(prompts)
    assert [result.index for result in answers.failures] == [30, 61]


def test_a_spent_account_ends_the_map_at_once(server, make_pool):
    server._reply = lambda request: Reply(
        status=429, body={"error": {"type": "exceeded_current_quota_error", "message": "x"}}
    )
    answers = make_pool(4).map(["a"] * 100)
    assert len(server.requests) <= 4
    assert isinstance(answers.results[0].error, QuotaExceededError)


def test_a_key_without_permission_ends_the_map_at_once(server, make_pool):
    server._reply = lambda request: Reply(status=403, body={"error": {"message": "This key may not use this project"}})
    answers = make_pool(4).map(["a"] * 100)
    assert len(server.requests) <= 4
    assert isinstance(answers.results[0].error, PermissionDeniedError)


def test_tool_calls_are_an_answer_that_parse_does_not_get(server, make_pool):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = {"choices": [{"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    server._reply = lambda request: Reply(body=body)
    (result,) = make_pool(1).map(["a"], parse=int).results
    assert result.ok
    assert result.value is None
    assert len(server.requests) == 1


def test_a_model_that_failed_is_asked_again(server, make_pool):
    failed = {"error": {"message": "Failed to generate JSON", "code": "json_validate_failed"}}
    server.script("a", Reply(status=400, body=failed), Reply("well"))
    assert make_pool(1).map(["a"]) == ["well"]


def test_usage_of_a_bad_answer_counts_against_the_budget(server, make_pool):
    body = {"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 0, "total_tokens": 1000}}
    server._reply = lambda request: Reply(body=body)
    pool = make_pool(1)
    pool.map(["a"] * 19, token_budget=5000)
    assert len(server.requests) <= 6


def test_one_prompt_too_large_for_the_rate_limit_pauses_nobody(server, make_pool):
    message = "Request too large for model on tokens per min (TPM): Limit 30000, Requested 45120."
    large = Reply(status=429, body={"error": {"message": message, "type": "tokens", "code": "rate_limit_exceeded"}})
    server._reply = lambda request: large if request.prompt == "large" else Reply()
    pool = make_pool(4, max_wait=60)
    answers = pool.map((["a"] * 24 + ["large"]) * 4, deadline=20)
    assert len(answers.failures) == 4
    assert server.count("large") == 4
    assert answers.wall < 5


def test_broken_off_text_is_no_answer(server, make_pool):
    half = {"choices": [{"message": {"content": "half a"}, "finish_reason": "insufficient_system_resource"}]}
    server.script("a", Reply(body=half), Reply("whole"))
    assert make_pool(1).map(["a"]) == ["whole"]


def test_a_blank_answer_is_not_hopeless_at_once(server, make_pool):
    """Blank answers may be chance: they are retried, and end their own prompts."""
    server._reply = lambda request: Reply(" ") if request.prompt == "blank" else Reply()
    answers = make_pool(4).map(["blank", "a"] * 20)
    assert answers[1::2] == ["a"] * 20
    assert {type(result.error) for result in answers.failures} == {InvalidResponseError}
