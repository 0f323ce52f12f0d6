"""Prompt → request body."""

from __future__ import annotations

import json

import pytest

from chatpool import ChatPool
from chatpool._protocol.request_builder import RequestBuilder
from chatpool._protocol.requests import (
    BatchRequest,
    build_body,
    check_prompt,
    check_prompts,
    encode,
    estimate,
    path_of,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def body(prompt, **settings):
    return build_body(prompt, **{"model": "m", "system": None, "params": {}, **settings})


def test_str_becomes_a_user_message():
    assert body("hi") == {"model": "m", "messages": MESSAGES}


def test_system_goes_before_a_str_only():
    """A list or a dict has its own system message."""
    assert body("hi", system="be brief")["messages"][0] == {"role": "system", "content": "be brief"}
    assert body(MESSAGES, system="be brief")["messages"] == MESSAGES
    assert body({"messages": MESSAGES}, system="be brief")["messages"] == MESSAGES


def test_prompt_overrides_params_override_the_model():
    """In this order."""
    params = {"temperature": 0, "model": "p", "n": 1}
    assert body({"messages": MESSAGES, "temperature": 1}, params=params) == {
        "model": "p", "temperature": 1, "n": 1, "messages": MESSAGES,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            None,
            "prompt 7: a prompt is a str, a list of message dicts or a dict of body fields, not NoneType; drop missing values first",
        ),
        (3, "not int"),
        (b"hi", "not bytes"),
        (float("nan"), "not float"),
        ([], "non-empty list of message dicts"),
        (["hi"], "non-empty list of message dicts"),
        ({"role": "user", "content": "hi"}, "a single message goes in a list"),
        ({"temperature": 1}, "needs 'messages'"),
        ([{"role": "user", "content": {1, 2}}], "prompt 7 cannot be sent as JSON"),
    ],
)
def test_invalid_prompt_is_a_type_error_with_its_index(prompt, message):
    with pytest.raises(TypeError, match="prompt 7") as caught:
        check_prompt(prompt, 7)
    assert message in str(caught.value)


def test_nan_in_a_prompt_is_a_value_error():
    """NaN is not valid JSON, and servers reject it with obscure messages."""
    with pytest.raises(ValueError, match="prompt 7 cannot be sent as JSON"):
        check_prompt({"messages": MESSAGES, "temperature": float("nan")}, 7)


@pytest.mark.parametrize("prompts", ["one prompt", b"bytes", {"messages": MESSAGES}, MESSAGES[0]])
def test_single_prompt_is_not_a_series(prompts):
    """Iterating over a str would send its letters."""
    with pytest.raises(TypeError, match="not a series of prompts"):
        check_prompts(prompts)


def test_dict_of_prompts_is_not_a_series():
    """Iterating over it would send its keys."""
    with pytest.raises(
        TypeError, match=r"prompts is a dict; pass a series of prompts, such as list\(prompts.values\(\)\)"
    ):
        check_prompts({"Peru": "Name a river.", "Chad": "Name a river."})


def test_data_frame_is_not_a_series():
    """Iterating over it would send the names of its columns."""

    class DataFrame:
        columns = ("prompt",)

        def __iter__(self):
            return iter(self.columns)

    with pytest.raises(
        TypeError, match=r'prompts is a whole DataFrame; pass one of its columns, such as frame\["prompt"\]'
    ):
        check_prompts(DataFrame())


def test_every_character_can_be_sent():
    """Lone surrogates and other scripts are escaped."""
    text = "naïve 日本 \ud800 😀"
    assert json.loads(encode(text, "x")) == text


@pytest.mark.parametrize("settings", [{}, {"system": 'be "brief" é', "params": {"temperature": 0, "stop": ['"}]}']}}])
@pytest.mark.parametrize(
    "text", ["", "ping", '"}]}', "naïve 日本 \ud800 😀", '\\ " \n \x00 \x7f \u2028', "x" * 100_000]
)
def test_body_of_a_str_is_the_same_whether_encoded_at_once_or_in_parts(text, settings):
    """All but the text is encoded once for a whole map."""
    pool = ChatPool(base_url="http://server/v1", api_key="sk-test", **settings)
    builder = RequestBuilder(pool._settings, {})
    for _ in range(2):
        assert builder.payload(builder.request(0, text)) == encode(builder.body(text), "x")


def test_estimate_counts_prompt_and_longest_answer():
    payload = b"x" * 400
    assert estimate(payload, {}).total == 100
    assert estimate(payload, {"max_tokens": 50}).total == 150
    assert estimate(payload, {"max_completion_tokens": 50, "n": 2}).total == 200


BASE64 = "iVBORw0KGgo" * 10_000
DATA_URL = f"data:image/png;base64,{BASE64}"
MEDIA = {
    "a picture": {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},
    "a picture of the Responses API": {"type": "input_image", "image_url": DATA_URL},
    "a picture as Anthropic has it": {"type": "image", "source": {"type": "base64", "data": BASE64}},
    "audio": {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
    "a file": {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{BASE64}"}},
    "a picture elsewhere": {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
}


@pytest.mark.parametrize("name", MEDIA)
def test_pictures_audio_and_files_are_a_flat_guess(name):
    """A picture of 110 kB does not count as 28,000 tokens, which a budget of 30,000 a minute would hold back for long."""
    text = {"type": "text", "text": "x" * 4000}
    body = {"messages": [{"role": "user", "content": [text, MEDIA[name], MEDIA[name]]}], "max_tokens": 7}
    tokens = estimate(encode(body, "x"), body)
    assert 1000 <= tokens.text < 1120
    assert tokens.media == 2000
    assert tokens.answer == 7
    assert tokens.total == tokens.text + 2007


def test_base64_in_a_text_is_text():
    """What looks like base64 may be a gene; only in a part of its own is it a picture."""
    body = {"messages": [{"role": "user", "content": "ACGT" * 1000}]}
    assert estimate(encode(body, "x"), body).media == 0
    assert estimate(encode(body, "x"), body).text >= 1000


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/embeddings", "/v1/embeddings"),
        ("/v1/responses", "/v1/responses"),
    ],
)
def test_paths_of_azures_batch_files_are_the_same_as_openais(url, path):
    """Azure documents ``/chat/completions``: it is chat, judged and built as such."""
    assert path_of(BatchRequest({}, "a", url)) == path
    built = build_body(BatchRequest({"messages": MESSAGES}, "a", url), model="m", system=None, params={})
    assert ("model" in built) is ("chat" in path)
