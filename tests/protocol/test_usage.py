"""Usage: every count that makes sense is read, and nothing else."""

from __future__ import annotations

import json

import pytest

from chatpool import Usage
from chatpool._protocol.usage import read_usage

from .made import completion, reply

SAYS = {
    "OpenAI": ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, (1, 2, 3, 0, 0)),
    "no total": ({"prompt_tokens": 1, "completion_tokens": 2}, (1, 2, 3, 0, 0)),
    "the Responses API": ({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}, (1, 2, 3, 0, 0)),
    "embeddings": ({"prompt_tokens": 5, "total_tokens": 5}, (5, 0, 5, 0, 0)),
    "a total alone": ({"total_tokens": 7}, (0, 0, 7, 0, 0)),
    "Gemini: the total has the thoughts, too": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}, (10, 5, 40, 0, 0)),
    "a total smaller than its parts": (
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 0}, (10, 5, 15, 0, 0)),
    "whole floats": ({"prompt_tokens": 1.0, "completion_tokens": 2.0, "total_tokens": 3.0}, (1, 2, 3, 0, 0)),
    "digits": ({"prompt_tokens": "1", "completion_tokens": "2", "total_tokens": "3"}, (1, 2, 3, 0, 0)),
    "nulls beside a count": ({"prompt_tokens": None, "completion_tokens": 2, "total_tokens": None}, (0, 2, 2, 0, 0)),
    "absurd beside a count": ({"prompt_tokens": 4, "completion_tokens": 10**12, "total_tokens": -1}, (4, 0, 4, 0, 0)),
    "OpenAI's details": (
        {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17, "prompt_tokens_details": {"cached_tokens": 5},
         "completion_tokens_details": {"reasoning_tokens": 6}}, (9, 8, 17, 5, 6)),
    "the Responses API's details": (
        {"input_tokens": 9, "output_tokens": 8, "input_tokens_details": {"cached_tokens": 5},
         "output_tokens_details": {"reasoning_tokens": 6}}, (9, 8, 17, 5, 6)),
    "DeepSeek's cache": (
        {"prompt_tokens": 9, "completion_tokens": 8, "prompt_cache_hit_tokens": 5, "prompt_cache_miss_tokens": 4},
        (9, 8, 17, 5, 0)),
    "Moonshot's cache": ({"prompt_tokens": 9, "completion_tokens": 8, "cached_tokens": 5}, (9, 8, 17, 5, 0)),
    "more in the cache than in the prompt": (
        {"prompt_tokens": 9, "completion_tokens": 8, "cached_tokens": 50}, (9, 8, 17, 9, 0)),
    "details that are none": (
        {"prompt_tokens": 9, "completion_tokens": 8, "prompt_tokens_details": None, "completion_tokens_details": 3},
        (9, 8, 17, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAYS)
def test_counts(name):
    """What a server reports, under whichever names."""
    usage, counts = SAYS[name]
    assert read_usage({"usage": usage}) == Usage(*counts)


SAYS_NOTHING = [
    None, {}, [], "many", 3, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, {"total_tokens": -1},
    {"total_tokens": 10**12}, {"total_tokens": 10**400}, {"total_tokens": "1e3"}, {"total_tokens": "9" * 40},
    {"total_tokens": 2.5}, {"total_tokens": float("nan")}, {"total_tokens": float("inf")}, {"total_tokens": [3]},
    {"total_tokens": {"sum": 3}}, {"total_tokens": True},
]  # fmt: skip


@pytest.mark.parametrize("usage", SAYS_NOTHING, ids=lambda usage: str(usage)[:50])
def test_usage_that_says_nothing_is_unknown(usage):
    """The estimate stands then: a zero would switch every budget off, and 10^12 would have everybody wait for ever."""
    assert read_usage({"usage": usage}) is None


@pytest.mark.parametrize("document", [None, [], "text", 3, {}])
def test_a_reply_without_usage(document):
    assert read_usage(document) is None


def test_usage_of_a_reply_that_is_no_answer_is_there():
    """It is paid for: ``choices: []`` with 1,000 tokens, a blank answer, an error."""
    for body, status in (({"choices": []}, 200), (completion(""), 200), ({"error": {"message": "x"}}, 500)):
        got = reply({**body, "usage": {"total_tokens": 1000}}, status)
        assert got.usage == Usage(0, 0, 1000)


def test_no_number_of_a_body_breaks_reading():
    """JSON as some servers write it: NaN, Infinity, 1e999 and integers of any length."""
    text = json.dumps(completion("hi"))[:-1] + ', "usage": {"total_tokens": %s}}'
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 6000):
        assert reply((text % number).encode()).usage is None


def test_sums_keep_every_count():
    assert Usage(1, 2, 3, 4, 5) + Usage(1, 1, 1, 1, 1) == Usage(2, 3, 4, 5, 6)
