"""The page on faults and the code say the same."""

from __future__ import annotations

from chatpool._protocol.dialects import STATUS_OF

from .fault_tables import CODES, PAGE, page


def test_the_page_shows_the_tables_that_judge_replies():
    """After a change of the tables: python -m tests.protocol.fault_tables"""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_meaning_is_explained():
    assert set(CODES) == set(STATUS_OF)
