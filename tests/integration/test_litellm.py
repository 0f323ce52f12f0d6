"""The LiteLLM proxy: keys, limits for each minute and for calls at once, and a server behind that is not there."""

from __future__ import annotations

import pytest

from chatpool import AuthenticationError, BadRequestError, ChatPool, InternalServerError, NotSentError

from .servers import require

require("litellm")

PROMPTS = [f"question {number}" for number in range(300)]


@pytest.fixture
def make_pool(litellm):
    """Pools for its models and keys."""

    def make(model="echo", key="sk-test", **settings):
        return ChatPool(25, base_url=litellm.api, api_key=key, model=model, **settings)

    return make


def kinds(answers):
    return {type(result.error) for result in answers.results}


def test_every_prompt_has_its_own_answer(make_pool):
    """Through two servers, in order, each sent once."""
    with make_pool() as pool:
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}


def test_a_wrong_key_is_named_and_ends_the_map(make_pool):
    """Its 401 comes with the code as a string."""
    with make_pool(key="sk-wrong") as pool:
        answers = pool.map(PROMPTS)
    assert kinds(answers) == {AuthenticationError, NotSentError}
    assert "Incorrect API key" in answers.summary()
    assert sum(result.attempts for result in answers.results) <= 25


def test_a_keys_requests_a_minute_lose_no_call(make_pool):
    """Ten in each window of two seconds; what is more is refused with a Retry-After."""
    delays = []
    with make_pool(key="sk-ten-a-minute", on_retry=lambda retry: delays.append(retry.error.retry_after)) as pool:
        assert pool.map(PROMPTS[:40]) == PROMPTS[:40]
    assert delays
    assert all(delays)


def test_a_keys_calls_at_once_lose_no_call(make_pool):
    """Two at once; of 25 workers the others are refused with a Retry-After."""
    refused = []
    with make_pool(key="sk-two-at-once", on_retry=refused.append) as pool:
        assert pool.map(PROMPTS[:30]) == PROMPTS[:30]
    assert {retry.error.status_code for retry in refused} == {429}


def test_a_models_requests_a_minute_lose_no_call(make_pool):
    """Ten in each minute of the clock, and the refusal names no delay, so the pool finds it: up to a minute."""
    delays = []
    settings = {"max_tries": 100, "max_wait": 2, "on_retry": lambda retry: delays.append(retry.error.retry_after)}
    with make_pool(model="ten-a-minute", **settings) as pool:
        assert pool.map(PROMPTS[:15]) == PROMPTS[:15]
    assert set(delays) <= {None}


@pytest.mark.parametrize(
    ("model", "kind", "told", "tries"),
    [
        ("too-long", BadRequestError, "ContextWindowExceeded", 1),
        ("unknown", BadRequestError, "Invalid model name", 1),
        ("nobody-there", InternalServerError, "Connection error", 3),
    ],
)
def test_what_never_works_is_named_and_the_rest_is_answered(make_pool, model, kind, told, tries):
    """What stands behind the gateway is told through it."""
    sick = {"model": model, "messages": [{"role": "user", "content": "a"}]}
    with make_pool(max_tries=3, max_wait=0.1) as pool:
        answers = pool.map([sick, *PROMPTS[:50]])
    error = answers.results[0].error
    assert answers[1:] == PROMPTS[:50]
    assert type(error) is kind
    assert told in str(error)
    assert error.attempts == tries
