"""Prism: every request is valid according to OpenAI's types; invalid ones are rejected."""

from __future__ import annotations

import json

import pytest

from chatpool import AuthenticationError, BadRequestError, ChatPool

from .servers import chatpool, require

require("prism")

USER = {"role": "user", "content": "Name a river."}
SCHEMA = {"name": "river", "strict": True, "schema": {"type": "object", "properties": {"name": {"type": "string"}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}

VALID = {
    "str": "Name a river.",
    "str in many scripts": "café 你好 😀 \ud800",  # a lone surrogate, too
    "messages": [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "The Po."}, USER],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Name a river."}]}],
    "picture": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}
    ],
    "tool calls": [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Po"},
    ],
    "dict": {"messages": [USER]},
    "dict with other fields": {"messages": [USER], "model": "gpt-4o", "temperature": 1, "n": 1, "stop": ["."]},
    "JSON object": {"messages": [USER], "response_format": {"type": "json_object"}},
    "JSON schema": {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
}
INVALID = {
    "an invalid role": [{"role": "wizard", "content": "Name a river."}],
    "no content": [{"role": "user"}],
    "messages that are not a list": {"messages": "Name a river."},
    "an invalid number": {"messages": [USER], "temperature": "hot"},
    "an unknown field": {"messages": [USER], "temprature": 1},
    "an unknown format": {"messages": [USER], "response_format": {"type": "json"}},
}


@pytest.fixture
def pool(prism):
    with ChatPool(25, base_url=prism.url, api_key="sk-test") as pool:
        yield pool


@pytest.mark.parametrize("name", VALID)
def test_request_is_valid(pool, name):
    assert pool.map([VALID[name]]) == ["valid"]


@pytest.mark.parametrize("name", INVALID)
def test_invalid_request_is_rejected(pool, name):
    """This shows that the test above can fail. There is no retry."""
    (result,) = pool.map([INVALID[name]]).results
    assert type(result.error) is BadRequestError
    assert (result.error.status_code, result.attempts) == (422, 1)


def test_settings_are_validated_too(prism):
    """System message, model and params are in the body as OpenAI requires."""
    params = {
        "temperature": 0,
        "max_completion_tokens": 50,
        "seed": 7,
        "user": "somebody",
        "logit_bias": {"50256": -100},
    }
    settings = {"base_url": prism.url, "api_key": "sk-test", "system": "Be brief."}
    with ChatPool(2, model="gpt-4o", params=params, **settings) as pool:
        assert pool.map(list(VALID.values()), params={"top_p": 0.5}) == ["valid"] * len(VALID)
    with ChatPool(2, params={"max_completion_tokens": "many"}, **settings) as pool:
        assert pool.map(["a"]) == [None]


def test_missing_key_is_an_authentication_error(prism):
    with ChatPool(2, base_url=prism.url) as pool:
        assert {type(result.error) for result in pool.map(["a"]).results} == {AuthenticationError}


def test_25_workers_send_valid_requests(pool):
    """1,000 requests on reused connections are complete and valid, and sent once."""
    answers = pool.map([f"question {number} {'x' * number}" for number in range(1000)])
    assert answers == ["valid"] * 1000
    assert {result.attempts for result in answers.results} == {1}


def test_requests_of_the_command_are_valid(prism, tmp_path):
    """From text prompts, messages, and lines of the Batch API."""
    body = {"model": "gpt-4o", "messages": [USER], "max_tokens": 5}
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(50)]
    files = {"batch.jsonl": lines, "prompts.jsonl": ["a", "b"], "messages.jsonl": [{"messages": [USER]}]}
    for name, content in files.items():
        (tmp_path / name).write_text("\n".join(json.dumps(line) for line in content))
        options = ["--text", "--base-url", prism.url, "--system", "Be brief."]
        done = chatpool(tmp_path, "run", name, *options, OPENAI_API_KEY="sk-test")
        assert done.stdout.split() == ["valid"] * len(content), done.stderr
