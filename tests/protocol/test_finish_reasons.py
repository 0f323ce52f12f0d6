"""Why a model stopped: every server's word for it, by one table."""

from __future__ import annotations

import pytest

from chatpool._protocol.dialects import BROKEN_OFF, FILTER, FINISH_REASONS, LENGTH, STOP, finish_meaning
from chatpool._protocol.judgement import is_transient

from .made import completion, judge, reply

WORDS = [(meaning, word) for meaning, words, _ in FINISH_REASONS for word in words.split()]
SPELLINGS = [str.lower, str.upper, str.title, lambda word: word.replace("_", "-"), lambda word: f"FinishReason.{word}"]


@pytest.mark.parametrize(("meaning", "word"), WORDS)
def test_a_word_of_the_table_in_any_spelling(meaning, word):
    """Case, hyphens and the name of an enumeration make no difference."""
    assert {finish_meaning(spell(word)) for spell in SPELLINGS} == {meaning}


@pytest.mark.parametrize("word", ["MAX_TOKENS", "max_tokens", "model_length", "maxTokens", "FINISH_REASON_MAX_TOKENS"])
def test_cut_at_the_token_limit_is_length(word):
    """Text that was cut is an answer, and counted as truncated; no text is the error ``length``, not tried again."""
    answer = judge(reply(completion("half a text", word)))
    assert (answer.text, answer.finish_reason) == ("half a text", "length")
    error = judge(reply(completion("", word)))
    assert (error.code, is_transient(error)) == ("length", False)


@pytest.mark.parametrize("word", ["RECITATION", "SAFETY", "content_filter: hate", "sensitive", "refusal"])
@pytest.mark.parametrize("text", ["", "half a text"])
def test_a_filtered_answer_is_final(word, text):
    error = judge(reply(completion(text, word)))
    assert (error.code, is_transient(error)) == ("content_filter", False)


@pytest.mark.parametrize("word", ["insufficient_system_resource", "abort", "error", "network_error", "cancelled"])
@pytest.mark.parametrize("text", ["", "half a text"])
def test_an_answer_that_broke_off_is_tried_again(word, text):
    """Half a text is no answer, and the message says which word the server used."""
    error = judge(reply(completion(text, word)))
    assert (error.code, is_transient(error)) == ("broken_off", True)
    assert word in str(error)


def test_a_gateway_that_calls_a_broken_answer_stopped():
    """LiteLLM translates DeepSeek's word into ``stop``, and keeps it beside."""
    body = completion("half a text", "stop")
    body["choices"][0]["provider_specific_fields"] = {"native_finish_reason": "insufficient_system_resource"}
    assert judge(reply(body)).code == "broken_off"


@pytest.mark.parametrize("word", ["stop", "STOP", "eos_token", "end_turn", "COMPLETE"])
def test_the_words_for_an_end_are_stop(word):
    assert judge(reply(completion("hi", word))).finish_reason == "stop"


@pytest.mark.parametrize("word", ["tool_calls", "function_call", "pause_turn", "banana", "", None, 3, ["stop"]])
def test_an_unknown_word_with_text_is_an_answer(word):
    answer = judge(reply(completion("hi", word)))
    assert answer.text == "hi"
    assert answer.finish_reason == (word if isinstance(word, str) and word else "3" if word == 3 else None)


def test_an_unknown_word_without_text_is_blank():
    assert judge(reply(completion("", "banana"))).code == "blank"


def test_an_object_in_place_of_a_word():
    """SGLang's own replies have one."""
    assert judge(reply(completion("hi", {"type": "length", "length": 5}))).finish_reason == "length"
    assert judge(reply(completion("hi", {"type": "abort", "message": "x"}))).code == "broken_off"


def test_the_table_has_each_word_once():
    words = [word for _, word in WORDS]
    assert sorted(set(words)) == sorted(words)
    assert {meaning for meaning, _ in WORDS} == {STOP, LENGTH, FILTER, BROKEN_OFF}
