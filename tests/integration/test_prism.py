"""Prism: whatever the client can send is valid by OpenAI's own types, and what is not is seen to be refused."""

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
    "dict with fields of its own": {"messages": [USER], "model": "gpt-4o", "temperature": 1, "n": 1, "stop": ["."]},
    "JSON object": {"messages": [USER], "response_format": {"type": "json_object"}},
    "JSON schema": {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
}
INVALID = {
    "a role that is none": [{"role": "wizard", "content": "Name a river."}],
    "no content": [{"role": "user"}],
    "messages that are no list": {"messages": "Name a river."},
    "a number that is none": {"messages": [USER], "temperature": "hot"},
    "a field that is none": {"messages": [USER], "temprature": 1},
    "a format that is none": {"messages": [USER], "response_format": {"type": "json"}},
}


@pytest.fixture
def pool(prism):
    with ChatPool(25, base_url=prism.url, api_key="sk-test") as pool:
        yield pool


@pytest.mark.parametrize("name", VALID)
def test_what_the_client_makes_of_a_prompt_is_valid(pool, name):
    assert pool.map([VALID[name]]) == ["valid"]


@pytest.mark.parametrize("name", INVALID)
def test_what_is_invalid_is_refused(pool, name):
    """So that the test before can fail; and it is refused once, not tried again."""
    (result,) = pool.map([INVALID[name]]).results
    assert type(result.error) is BadRequestError
    assert (result.error.status_code, result.attempts) == (422, 1)


def test_settings_are_valid_and_refused_likewise(prism):
    """System message, model and params reach the body as OpenAI wants them."""
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


def test_a_key_is_wanted(prism):
    """Without one, the failure says so."""
    with ChatPool(2, base_url=prism.url) as pool:
        assert {type(result.error) for result in pool.map(["a"]).results} == {AuthenticationError}


def test_25_workers_send_nothing_garbled(pool):
    """Each of 1,000 requests on kept connections is whole and valid, and sent once."""
    answers = pool.map([f"question {number} {'x' * number}" for number in range(1000)])
    assert answers == ["valid"] * 1000
    assert {result.attempts for result in answers.results} == {1}


def test_what_the_command_sends_is_valid(prism, tmp_path):
    """Of prompts as text, as messages, and as lines of the Batch API."""
    body = {"model": "gpt-4o", "messages": [USER], "max_tokens": 5}
    lines = [{"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(50)]
    files = {"batch.jsonl": lines, "prompts.jsonl": ["a", "b"], "messages.jsonl": [{"messages": [USER]}]}
    for name, content in files.items():
        (tmp_path / name).write_text("\n".join(json.dumps(line) for line in content))
        options = ["--text", "--base-url", prism.url, "--system", "Be brief."]
        done = chatpool(tmp_path, "run", name, *options, OPENAI_API_KEY="sk-test")
        assert done.stdout.split() == ["valid"] * len(content), done.stderr
