"""Streams of real servers: put together, they are the answers that come without streaming."""

from __future__ import annotations

import pytest

from chatpool import APIConnectionError, ChatPool
from chatpool.testing import Reply

from .set_up import is_installed


def needs(name):
    return pytest.mark.skipif(not is_installed(name), reason=f"{name} is not installed: run set_up.py {name}")


def without_times(response):
    """Return a response without what differs from request to request."""
    return {name: value for name, value in response.items() if name not in ("id", "created", "usage", "timings")}


@needs("llama_cpp")
def test_llama_cpp_gives_the_same_answers(llama_cpp):
    """200 prompts at temperature 0."""
    prompts = [" the" * (1 + number % 40) + f" {number}" for number in range(200)]
    params = {"temperature": 0, "max_tokens": 8}
    settings = {"base_url": llama_cpp.api, "api_key": "sk-test", "model": "tiny", "params": params}
    with ChatPool(8, **settings) as pool, ChatPool(8, **settings, idle_timeout=30) as streaming:
        plain, streamed = pool.map(prompts), streaming.map(prompts)
        pieces = ["".join(pool.stream(prompt)) for prompt in prompts[:20]]
    assert plain.failures == streamed.failures == []
    assert streamed == plain
    assert pieces == plain[:20]
    for one, other in zip(streamed.results, plain.results):
        assert without_times(one.response) == without_times(other.response)
    assert all(0 < result.first_token <= result.elapsed for result in streamed.results)


@needs("litellm")
def test_litellm_passes_streams_on(litellm, behind):
    """Text, usage and an error in the middle."""
    prompts = [f"several words of prompt {number}" for number in range(100)]
    settings = {"base_url": litellm.api, "api_key": "sk-test", "model": "echo", "max_wait": 0.1}
    with ChatPool(8, **settings) as pool, ChatPool(8, **settings, idle_timeout=30) as streaming:
        plain, streamed = pool.map(prompts), streaming.map(prompts)
        assert list(streamed) == list(plain) == prompts
        assert streamed.usage == plain.usage
        behind.script("fails", Reply(status=503), Reply("well"))
        assert "".join(streaming.stream("fails")) == "well"


@needs("aimock")
def test_broken_streams_of_aimock_are_tried_again(aimock):
    """It truncates a stream once, and disconnects another each time; on a kept connection, that costs no try."""
    settings = {"base_url": aimock.api, "api_key": "sk-test", "max_wait": 0.1, "idle_timeout": 10}
    with ChatPool(1, **settings, max_tries=3) as pool:
        truncated, disconnected = pool.map(["truncated stream", "disconnected stream"]).results
    assert (truncated.value, truncated.attempts) == ("whole", 2)
    assert type(disconnected.error) is APIConnectionError
    assert disconnected.attempts in (3, 4)


@needs("aimock")
def test_aimock_streams(aimock):
    """500 answers, each its own, by both ways."""
    questions = [f"question {number:03}" for number in range(500)]
    with ChatPool(20, base_url=aimock.api, api_key="sk-test", idle_timeout=10) as pool:
        answers = pool.map(questions)
        assert answers == [f"answer {number:03}" for number in range(500)]
        assert "".join(pool.stream("question 007")) == "answer 007"
    assert {result.attempts for result in answers.results} == {1}
