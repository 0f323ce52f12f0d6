"""llama.cpp's Python server: real inference, and connections that are closed after 5 idle seconds."""

from __future__ import annotations

import contextlib
import http.client
import time

import pytest

from chatpool import (
    AuthenticationError,
    BadRequestError,
    ChatPool,
    DeadlineError,
    InternalServerError,
    NotSentError,
)

from .servers import chatpool, require

require("llama_cpp")

PROMPTS = [" the" * length for length in range(25)]  # all of different lengths, in tokens


@pytest.fixture
def make_pool(llama_cpp):
    def make(max_workers=25, key="sk-test", **settings):
        params = {"temperature": 0, "max_tokens": 8}
        return ChatPool(
            max_workers, **{"base_url": llama_cpp.api, "api_key": key, "model": "tiny", "params": params, **settings}
        )

    return make


def lengths(answers):
    """Return the length of each prompt as counted by the server, which identifies the answer."""
    return [result.usage.prompt_tokens for result in answers.results]


def test_every_prompt_has_its_own_answer(make_pool):
    """25 workers get the same answers as one worker."""
    with make_pool(1) as pool:
        expected = lengths(pool.map(PROMPTS))
    assert len(set(expected)) == len(PROMPTS)
    with make_pool() as pool:
        answers = pool.map(PROMPTS * 20)
    assert answers.failures == []
    assert lengths(answers) == expected * 20
    assert {result.finish_reason for result in answers.results} == {"length"}
    assert "truncated answers: 500" in answers.summary()


def test_wrong_key_ends_the_map(make_pool):
    """The 401 has no error object, only a "detail"."""
    with make_pool(key="sk-wrong") as pool:
        answers = pool.map(PROMPTS * 4)
    assert {type(result.error) for result in answers.results} == {AuthenticationError, NotSentError}
    assert "Invalid API key" in answers.summary()
    assert sum(result.attempts for result in answers.results) <= 25


@pytest.mark.parametrize(
    ("failing", "kind", "attempts"),
    [
        ({"messages": "not a list"}, InternalServerError, 3),  # the server replies with a 500 in place of a 400
        ([{"role": "wizard", "content": "a"}], InternalServerError, 3),
        ("the " * 4000, BadRequestError, 1),  # longer than the model's context
    ],
)
def test_failing_prompt_has_an_error_and_the_others_are_answered(make_pool, failing, kind, attempts):
    with make_pool(max_tries=3, max_wait=0.1) as pool:
        answers = pool.map([failing, *PROMPTS])
    assert [result.index for result in answers.failures] == [0]
    error = answers.results[0].error
    assert (type(error), error.attempts) == (kind, attempts)


def test_connections_closed_while_idle_are_replaced(make_pool, llama_cpp):
    """After 5 seconds. Once a plain connection that was used last is closed, all prompts are sent, once each."""
    with make_pool() as pool, contextlib.closing(http.client.HTTPConnection("127.0.0.1", llama_cpp.port)) as plain:
        pool.map(PROMPTS * 4)
        plain.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-test"})
        plain.getresponse().read()
        plain.sock.settimeout(60)
        assert plain.sock.recv(1) == b""  # it is closed
        answers = pool.map(PROMPTS * 4)
    assert answers.failures == []
    assert {result.attempts for result in answers.results} == {1}


def test_response_format_falls_back_to_json_object(make_pool):
    """The server does not know json_schema. Its grammar makes this model's nonsense an object, which has no end."""
    with make_pool(params={"temperature": 0, "max_tokens": 100}, max_tries=1) as pool:
        answers = pool.map(["a", "b"], response_format={"type": "object", "properties": {"name": {"type": "string"}}})
    assert {result.text.lstrip()[:1] for result in answers.results} == {"{"}, answers.summary()


def test_deadline_cancels_real_inference(make_pool):
    """A thousand tokens take more than a second: the map returns in time, and the server works afterwards."""
    with make_pool(params={"max_tokens": 1000}) as pool:
        began = time.monotonic()
        answers = pool.map(PROMPTS, deadline=1)
        assert time.monotonic() - began < 3
        assert DeadlineError in {type(result.error) for result in answers.failures}
        assert pool.map(PROMPTS, params={"max_tokens": 1}).failures == []


def test_command_gets_answers(llama_cpp, tmp_path):
    """A second run sends nothing."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {number}" for number in range(100)))
    keys = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": llama_cpp.api}
    for line in ("100 answered, 0 failed in", "requests: 0"):
        done = chatpool(tmp_path, "run", "prompts.txt", "-o", "answers.jsonl", "--param", "max_tokens=4", **keys)
        assert done.returncode == 0, done.stderr
        assert line in done.stderr
