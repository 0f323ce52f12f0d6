"""The LiteLLM proxy: keys, rate limits, limits on parallel calls, and an unreachable server behind it."""

from __future__ import annotations

from enum import Enum

import pytest

from chatpool import AuthenticationError, BadRequestError, ChatPool, InternalServerError, NotSentError
from chatpool.testing import Reply

from .servers import require

require("litellm")

PROMPTS = [f"question {number}" for number in range(300)]


@pytest.fixture
def make_pool(litellm):
    """Make pools for a model and a key."""

    def make(model="echo", key="sk-test", **settings):
        return ChatPool(25, base_url=litellm.api, api_key=key, model=model, **settings)

    return make


def kinds(answers):
    return {type(result.error) for result in answers.results}


def test_every_prompt_has_its_own_answer(make_pool):
    """Through two servers, in order, one request each."""
    with make_pool() as pool:
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


def test_answers_are_values_of_a_type(make_pool, behind):
    """The gateway passes the schema on, and a bad answer that is shown to the model with the error."""
    behind.script("How?", Reply("so so"), Reply('{"value": "good"}'))
    with make_pool() as pool:
        assert pool.map(["How?"], response_format=Mood) == [Mood.GOOD]
    first, second = [request for request in behind.requests if request.prompt == "How?"]
    assert first.body["response_format"]["json_schema"]["schema"]["properties"]["value"]["enum"] == ["good", "bad"]
    assert "so so" in str(second.body["messages"])


def test_a_server_behind_it_that_knows_only_json_object(make_pool, behind):
    """Its 400 reaches us with the gateway's words around it."""
    unknown = Reply(status=400, body={"error": {"message": "'json_schema' is not supported, use 'json_object'"}})
    behind.script("How is it?", unknown, Reply('{"value": "bad"}'))
    with make_pool() as pool:
        assert pool.map(["How is it?"], response_format=Mood) == [Mood.BAD]
    _, second = [request for request in behind.requests if request.prompt == "How is it?"]
    assert second.body["response_format"] == {"type": "json_object"}
    assert "JSON schema" in second.body["messages"][0]["content"]


def test_wrong_key_ends_the_map(make_pool):
    """The 401 has its code as a string."""
    with make_pool(key="sk-wrong") as pool:
        answers = pool.map(PROMPTS)
    assert kinds(answers) == {AuthenticationError, NotSentError}
    assert "Incorrect API key" in answers.summary()
    assert sum(result.attempts for result in answers.results) <= 25


def test_rate_limit_of_a_key_loses_no_call(make_pool):
    """Ten requests in each window of two seconds; the others get a 429 with Retry-After."""
    delays = []
    with make_pool(key="sk-ten-a-minute", on_retry=lambda retry: delays.append(retry.error.retry_after)) as pool:
        assert pool.map(PROMPTS[:40]) == PROMPTS[:40]
    assert delays
    assert all(delays)


def test_limit_on_parallel_calls_loses_no_call(make_pool):
    """Two at once; the other workers get a 429 with Retry-After."""
    retries = []
    with make_pool(key="sk-two-at-once", on_retry=retries.append) as pool:
        assert pool.map(PROMPTS[:30]) == PROMPTS[:30]
    assert {retry.error.status_code for retry in retries} == {429}


def test_rate_limit_of_a_model_loses_no_call(make_pool):
    """Ten requests in each calendar minute, and no Retry-After, so the pool finds the delay: up to a minute."""
    delays = []
    settings = {"max_tries": 100, "max_wait": 2, "on_retry": lambda retry: delays.append(retry.error.retry_after)}
    with make_pool(model="ten-a-minute", **settings) as pool:
        assert pool.map(PROMPTS[:15]) == PROMPTS[:15]
    assert set(delays) <= {None}


@pytest.mark.parametrize(
    ("model", "kind", "message", "attempts"),
    [
        ("too-long", BadRequestError, "ContextWindowExceeded", 1),
        ("unknown", BadRequestError, "Invalid model name", 1),
        ("nobody-there", InternalServerError, "Connection error", 3),
    ],
)
def test_failing_prompt_has_an_error_and_the_others_are_answered(make_pool, model, kind, message, attempts):
    """The gateway passes on the error of the server behind it."""
    failing = {"model": model, "messages": [{"role": "user", "content": "a"}]}
    with make_pool(max_tries=3, max_wait=0.1) as pool:
        answers = pool.map([failing, *PROMPTS[:50]])
    error = answers.results[0].error
    assert answers[1:] == PROMPTS[:50]
    assert type(error) is kind
    assert message in str(error)
    assert error.attempts == attempts
