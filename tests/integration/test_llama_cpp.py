"""llama.cpp's Python server: real inference, and a server that closes what is idle for 5 seconds."""

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

PROMPTS = [" the" * length for length in range(25)]  # each of another length, which the server counts


@pytest.fixture
def make_pool(llama_cpp):
    def make(max_workers=25, key="sk-test", **settings):
        params = {"temperature": 0, "max_tokens": 8}
        return ChatPool(
            max_workers, **{"base_url": llama_cpp.api, "api_key": key, "model": "tiny", "params": params, **settings}
        )

    return make


def lengths(answers):
    """How long each prompt was by the server's count, which tells whose answer it is."""
    return [result.usage.prompt_tokens for result in answers.results]


def test_every_prompt_has_its_own_answer(make_pool):
    """25 workers at once get for each prompt what one alone gets."""
    with make_pool(1) as pool:
        known = lengths(pool.map(PROMPTS))
    assert len(set(known)) == len(PROMPTS)
    with make_pool() as pool:
        answers = pool.map(PROMPTS * 20)
    assert answers.failures == []
    assert lengths(answers) == known * 20
    assert {result.finish_reason for result in answers.results} == {"length"}
    assert "truncated answers: 500" in answers.summary()


def test_a_wrong_key_is_named_and_ends_the_map(make_pool):
    """Its 401 holds no error object, only a "detail"."""
    with make_pool(key="sk-wrong") as pool:
        answers = pool.map(PROMPTS * 4)
    assert {type(result.error) for result in answers.results} == {AuthenticationError, NotSentError}
    assert "Invalid API key" in answers.summary()
    assert sum(result.attempts for result in answers.results) <= 25


@pytest.mark.parametrize(
    ("sick", "kind", "tries"),
    [
        ({"messages": "no list"}, InternalServerError, 3),  # the server calls its own refusal an error of its own
        ([{"role": "wizard", "content": "a"}], InternalServerError, 3),
        ("the " * 4000, BadRequestError, 1),  # longer than the model's context
    ],
)
def test_what_never_works_is_named_and_the_rest_is_answered(make_pool, sick, kind, tries):
    with make_pool(max_tries=3, max_wait=0.1) as pool:
        answers = pool.map([sick, *PROMPTS])
    assert [result.index for result in answers.failures] == [0]
    error = answers.results[0].error
    assert (type(error), error.attempts) == (kind, tries)


def test_connections_that_died_of_idleness_are_replaced(make_pool, llama_cpp):
    """The server closes them after 5 seconds. A plain one, used last, tells when; then all is asked once, and answered."""
    with make_pool() as pool, contextlib.closing(http.client.HTTPConnection("127.0.0.1", llama_cpp.port)) as plain:
        pool.map(PROMPTS * 4)
        plain.request("GET", "/v1/models", headers={"Authorization": "Bearer sk-test"})
        plain.getresponse().read()
        plain.sock.settimeout(60)
        assert plain.sock.recv(1) == b""  # it is closed
        answers = pool.map(PROMPTS * 4)
    assert answers.failures == []
    assert {result.attempts for result in answers.results} == {1}


def test_a_deadline_holds_against_real_inference(make_pool):
    """A thousand tokens each do not fit into a second: the map is back in time, the server in use again after it."""
    with make_pool(params={"max_tokens": 1000}) as pool:
        began = time.monotonic()
        answers = pool.map(PROMPTS, deadline=1)
        assert time.monotonic() - began < 3
        assert DeadlineError in {type(result.error) for result in answers.failures}
        assert pool.map(PROMPTS, params={"max_tokens": 1}).failures == []


def test_the_command_is_answered(llama_cpp, tmp_path):
    """And a second run asks for nothing again."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {number}" for number in range(100)))
    keys = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": llama_cpp.api}
    for told in ("100 answered, 0 failed", "requests: 0"):
        done = chatpool(tmp_path, "run", "prompts.txt", "-o", "answers.jsonl", "--param", "max_tokens=4", **keys)
        assert done.returncode == 0, done.stderr
        assert told in done.stderr
