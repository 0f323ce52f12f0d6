"""Text from a server, made safe to show."""

from __future__ import annotations

import time

import pytest

from chatpool._protocol.shown import escape, is_page, page_text, show_message, show_name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb", "a\\nb"),
        ("a\x85\x9b\x7fb", "a\\x85\\x9b\\x7fb"),
        ("a\u2028\u2029\u202e\u2066b", "a\\u2028\\u2029\\u202e\\u2066b"),
        ("a\ud800b", "a\\ud800b"),
        ("naïve 日本 😀 👩‍🚀", "naïve 日本 😀 👩‍🚀"),
    ],
)
def test_control_characters_are_escaped_and_scripts_kept(text, shown):
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a", "a"),
        (" a ", "a"),
        (429, "429"),
        (4.5, "4.5"),
        ("", None),
        (None, None),
        (True, None),
        ({}, None),
        ([1], None),
    ],
)
def test_names_are_texts_and_numbers(value, shown):
    assert show_name(value) == shown


def test_messages_are_one_line():
    assert show_message(" a\n\tb\r\n c ") == "a b c"


@pytest.mark.parametrize("start", ["<!DOCTYPE html>", "<html>", "\n <HTML>", "<head>", "<?xml version='1.0'?>"])
def test_pages(start):
    assert is_page(f"{start}<body>hi</body>")


@pytest.mark.parametrize("text", ["", "{}", "hi", "< 3", "<think>hm</think>"])
def test_no_pages(text):
    assert not is_page(text)


def test_the_text_of_a_page():
    page = "<html><head><title>A</title><style>b</style></head><!-- c --><body onload='d'><p>E &amp; F</p><script>g</script>"
    assert page_text(page) == "A E & F"
    assert page_text("<html><title>A</title><body>B</body></html>") == "A B"


@pytest.mark.parametrize("piece", ["<script", "<!--", "<title>", "<", "<a"])
def test_a_hostile_page_costs_no_time(piece):
    began = time.thread_time()
    page_text(piece * 1_000_000)
    assert time.thread_time() - began < 1
