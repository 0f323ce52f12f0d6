"""Plain English: documentation and code keep to the standard terms of the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.snippets import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "setup.cfg", ".ci/run")),
    *(
        path
        for path in sorted((ROOT / "docs").rglob("*.*"))
        if path.suffix in {".md", ".py"} and "_build" not in path.parts
    ),
    *(path for path in sorted((ROOT / "examples").rglob("*.*")) if path.suffix in {".py", ".ipynb", ".html"}),
]
SOURCES = [
    path
    for folder in ("chatpool", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ".servers" not in path.parts and path != Path(__file__)  # which has the words themselves
]

# A pattern, and the words to use in its place.
WORDS = {
    r"tells?(?!\()|told|telling": "say, show, report, return",  # except the method of files
    r"mends?|mended": "fix",
    r"anew": "again",
    r"in vain": "(leave it out)",
    r"blot(s|ted|ting)?": "redact",
    r"no JSON": "is not valid JSON",
    r"stands? (in|for)": "is in; replaces; represents",
    r"(give|gives|gave|given|giving) up": "cancel",
    r"places": "slots",
    r"(?<![.\"*(])(?<!= )tries(?![\"=:,)\[]| [>=<*+-]| or \[)|(a|each|next|last) try": 'attempt (but max_tries, and the field "tries" of a journal)',
    r"twins?": "duplicate",
    r"bells?": "event",
    r"ushers?": "poller",
    r"tenants?": "owner",
    r"governors?": "rate limiter",
    r"crew": "workers",
    r"lumps?": "chunk",
    r"naps?": "sleep",
    r"rubbish": "malformed responses",
    r"whoever": "(name the subject)",
    r"sick": "failing",
}
PATTERN = re.compile("|".join(rf"\b(?:{words})\b" for words in WORDS), re.IGNORECASE)


def prose(text: str) -> str:
    """Return a text without names in backticks."""
    return re.sub(r"`[^`\n]*`", "", text)


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_words_are_those_of_the_field(path):
    """Each word found is shown with its line; ``WORDS`` has the term to use in its place."""
    lines = prose(path.read_text(encoding="utf-8")).splitlines()
    found = [f"{number}: {word[0]}" for number, line in enumerate(lines, 1) for word in PATTERN.finditer(line)]
    assert not found
