"""The pace: a rate that grows along a cubic curve, and a bucket that holds one request."""

from __future__ import annotations

import pytest

from chatpool._limits.pacing import CUT, FORGET, Pace


def paced(rate=10.0, **fields):
    pace = Pace()
    pace.set(0.0, rate, fields.pop("size", 1.0), is_known=fields.pop("is_known", True))
    return pace


def test_without_a_refusal_nothing_is_delayed():
    pace = Pace()
    for _ in range(1000):
        assert pace.delay(1.0, 1.0) == 0
        pace.sent(1.0, 1.0)


def test_requests_are_sent_one_by_one_at_085_of_the_rate_that_the_server_accepts():
    pace = paced(10.0)
    assert pace.delay(0.0, 1.0) == pytest.approx(1 / 8.5)
    assert pace.delay(0.2, 1.0) == 0
    pace.sent(0.2, 1.0)
    assert pace.delay(0.2, 1.0) == pytest.approx(1 / 8.5, rel=0.15)


def test_at_most_one_request_is_saved_up():
    pace = paced(10.0)
    assert pace.delay(3.0, 1.0) == 0
    pace.sent(3.0, 1.0)
    assert pace.delay(3.0, 1.0) > 0


def test_rate_approaches_what_the_server_accepts_lingers_there_and_then_grows_faster():
    pace = paced(10.0)
    rates = []
    for now in (1.0, 4.0, 5.0, 6.0, 10.0, 15.0):
        pace.delay(now, 1.0)
        rates.append(pace.rate)
    assert rates == pytest.approx([9.23, 9.99, 10.0, 10.01, 11.5, 22.0], rel=0.01)


def test_pace_is_forgotten_at_sixteen_times_the_rate():
    """The limit is gone, or another one: after 28 seconds where the rate was known."""
    pace = paced(10.0)
    pace.delay(28.0, 1.0)
    assert FORGET / 2 < pace.rate / 10.0 < FORGET
    assert pace.delay(29.0, 1.0) == 0
    assert (pace.rate, pace.known) == (None, None)


def test_guess_is_corrected_within_seconds():
    """A guess may be far too low: it doubles in three seconds, where a known rate takes ten."""
    pace = Pace()
    pace.guess(0.0, 10.0, 1.0)
    pace.delay(3.0, 1.0)
    assert pace.rate == pytest.approx(22.0, rel=0.01)
    assert pace.known is None


def test_slow_rate_grows_slowly():
    """At one request in 20 seconds the rate stays below what the server accepts for five requests."""
    pace = paced(0.05)
    pace.delay(99.0, 1.0)
    assert 0.0499 < pace.rate <= 0.05


def test_what_is_sent_below_the_known_rate_is_known():
    pace = paced(10.0)
    pace.delay(1.0, 1.0)
    assert pace.is_below
    pace.delay(6.0, 1.0)
    assert not pace.is_below
    assert not paced(10.0, is_known=False).is_below


def test_refusal_shows_that_the_server_had_half_a_request_left_at_most():
    pace = paced(10.0)
    pace.delay(1.0, 1.0)
    pace.sent(1.0, 1.0)
    pace.refused(1.0, 1.0)
    assert pace.delay(1.0, 1.0) == pytest.approx(0.5 / 9.23, rel=0.01)


def test_large_request_waits_until_the_pace_has_room_for_it():
    """Also if it is larger than all before it."""
    pace = paced(100.0, size=10.0)
    pace.delay(10.0, 10.0)
    pace.sent(10.0, 10.0)
    wait = pace.delay(10.0, 400.0)
    assert wait == pytest.approx(400 / 115, rel=0.01)
    assert pace.delay(10.0 + wait, 400.0) == 0


def test_suspended_pace_comes_back():
    pace = paced(10.0)
    pace.suspend()
    assert pace.delay(0.0, 1.0) == 0
    pace.resume(50.0)
    assert pace.rate == pytest.approx((1 - CUT) * 10)


def test_pace_that_was_never_set_has_nothing_to_come_back_to():
    pace = Pace()
    pace.resume(0.0)
    assert pace.delay(0.0, 1.0) == 0


def test_conversion_keeps_the_pace():
    """10 requests a second, 50 tokens each on average, are 500 tokens a second."""
    pace = paced(10.0)
    pace.convert(50.0, 200.0)
    assert pace.rate == pytest.approx(0.85 * 500)
    pace.convert(1 / 50.0, 1.0)
    assert pace.rate == pytest.approx(8.5)


def test_more_may_be_sent_than_is_accepted_where_some_are_refused_by_chance():
    """At first as many as without: how many are refused then shows whether that is so."""
    pace = Pace()
    pace.set(0.0, 10.0, 1.0, is_known=True, chance=0.2)
    assert pace.rate == pytest.approx(8.5)
    pace.delay(5.0, 1.0)
    assert pace.rate == pytest.approx(12.5)
    assert pace.known == 10.0
