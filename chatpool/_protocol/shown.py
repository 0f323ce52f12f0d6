"""Makes text from a server safe to show: escapes control characters and limits the length."""

from __future__ import annotations

import re
from typing import Any

# C0, DEL and C1 move the cursor and run commands of the terminal, U+2028 and U+2029 are line ends to some, and the
# characters with the property Bidi_Control (UAX #9) reorder what is around them.
_CONTROLS = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
LONGEST_NAME = 100  # characters of a code or a request id
LONGEST_MESSAGE = 500  # characters of an error's message, and of the excerpt of a reply's body

_PAGE_START = 4096  # characters; on hostile input, the patterns below take quadratic time
_INVISIBLE = r"(?is)<!--.*?-->|<(script|style|svg|head|title)\b.*?</\1\s*>"  # compiled when a page comes
_TITLE = r"(?is)<title[^>]*>(.*?)</title"
_TAG = r"<[^<>]*>?"
# html.unescape is avoided: importing its table of 2,231 names takes longer than importing this package.
_ENTITIES = {"&nbsp;": " ", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&amp;": "&"}


def escape(text: str) -> str:
    """Escape control characters and lone surrogates, which could forge lines of a log or control a terminal."""
    if text.isascii() and text.isprintable():  # as most names of servers are
        return text
    text = re.sub(_CONTROLS, lambda found: found[0].encode("unicode_escape").decode(), text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def escape_lines(text: str) -> str:
    """Escape each line of a text."""
    return "\n".join(escape(line) for line in text.split("\n"))


def shorten(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """Return a text of at most ``longest`` characters, with an ellipsis if it was cut."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def show_name(value: Any) -> str | None:
    """Return a code or an id as one short line; None if it is empty, or neither a string nor a number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    text = value if isinstance(value, str) else repr(value)
    return shorten(escape(text.strip()), LONGEST_NAME) or None


def show_message(text: str) -> str:
    """Return a message as one line."""
    return shorten(escape(" ".join(text.split())))


def is_page(text: str) -> bool:
    """Whether a text is a web page rather than data."""
    start = text.lstrip("\ufeff \t\r\n")[:200].lower()
    return start.startswith(("<!doctype html", "<html", "<head", "<body", "<!--", "<?xml", "<center", "<h1", "<title"))


def page_text(page: str, longest: int = 120) -> str:
    """Return the title and the start of the text of a web page."""
    page = page[:_PAGE_START]
    title = re.search(_TITLE, page)
    text = re.sub(_TAG, " ", (title[1] + " " if title else "") + re.sub(_INVISIBLE, " ", page))
    for name, character in _ENTITIES.items():
        text = text.replace(name, character)
    return shorten(escape(" ".join(text.split())), longest)
