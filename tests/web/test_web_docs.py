"""The snippets of docs/web.md are taken from the examples, which the other tests here run."""

from __future__ import annotations

import re

import pytest

from tests.web.programs import EXAMPLES, ROOT

PAGE = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
SOURCES = [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*/**/*.py"))]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_each_snippet_is_part_of_an_example(snippet):
    """Word for word."""
    assert any(snippet in source for source in SOURCES)


def test_there_are_five():
    """Flask, Django and Celery, and a stream in Flask and in Django."""
    assert len(SNIPPETS) == 5
