"""What refusals are evidence of: refusals by chance, and prompts that are too large."""

from __future__ import annotations

import pytest

from chatpool._limits.evidence import CROWD, PROOF, Comparison, Row
from chatpool._limits.meter import Meter
from chatpool._limits.sizes import Sizes

from .calls import FakeCall


def below(comparison, requests, refused):
    """Send requests below the known pace; so many of them are refused, each in a row of its own."""
    for _ in range(requests):
        comparison.sent(is_free=False, is_below=True)
    for _ in range(refused):
        comparison.refused_below(is_first=True)


def test_refusals_below_the_known_pace_come_by_chance():
    comparison = Comparison()
    below(comparison, 100, 31)
    assert comparison.chance == pytest.approx(0.3)


def test_a_few_rows_of_them_are_needed():
    comparison = Comparison()
    below(comparison, 100, PROOF - 1)
    assert comparison.chance == 0


def test_limit_that_is_met_for_certain_disproves_them():
    comparison = Comparison()
    below(comparison, 100, 31)
    comparison.certain(1.0, is_free=False)
    assert comparison.chance == 0


def test_each_refusal_is_too_many_while_none_come_by_chance():
    comparison = Comparison()
    comparison.refused()
    assert comparison.is_excess


def test_as_many_as_by_chance_are_not():
    comparison = Comparison()
    below(comparison, 100, 31)
    for number in range(60):
        comparison.sent(is_free=False, is_below=False)
        if number % 3 == 0:
            comparison.refused()
            assert not comparison.is_excess


def test_many_more_than_that_are():
    comparison = Comparison()
    below(comparison, 100, 31)
    for _ in range(30):
        comparison.sent(is_free=False, is_below=False)
        comparison.refused()
    assert comparison.is_excess
    comparison.restart()
    assert not comparison.is_excess


def test_a_small_share_may_come_of_other_clients():
    """If this one did not slow down for it, they would get less."""
    comparison = Comparison()
    below(comparison, 100, int(100 * CROWD) - 1)
    comparison.refused()
    assert comparison.is_excess


def test_prompts_are_counted_once_in_a_row():
    row = Row(0.0, 1)
    call = FakeCall(attempts=1)
    for number in range(1, 7):
        row.add(call, number)
    assert not row.is_certain()
    for number in range(7, 14):
        row.add(FakeCall(attempts=1), number)
    assert row.is_certain()


def test_prompts_that_are_far_larger_than_all_others_are_futile_once_two_were_refused():
    """They may have been refused before anything was accepted."""
    sizes = Sizes(Meter())
    large = [FakeCall(tokens=4000) for _ in range(3)]
    sizes.refused(large[0])
    sizes.refused(large[0])
    sizes.accepted(FakeCall(tokens=50))
    assert not sizes.is_futile(large[2])
    sizes.refused(large[1])
    assert sizes.is_futile(large[2])
    assert not sizes.is_futile(FakeCall(tokens=50))


def test_they_are_not_once_one_was_accepted_or_a_small_one_refused():
    for event in ("accepted", "refused"):
        sizes = Sizes(Meter())
        for call in (FakeCall(tokens=4000), FakeCall(tokens=4000)):
            sizes.refused(call)
        sizes.accepted(FakeCall(tokens=50))
        getattr(sizes, event)(FakeCall(tokens=4000 if event == "accepted" else 50))
        assert not sizes.is_futile(FakeCall(tokens=4000))
