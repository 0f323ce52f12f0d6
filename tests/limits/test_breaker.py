"""The circuit breaker: one request at a time probes, at growing intervals."""

from __future__ import annotations

import math

import pytest

from chatpool._limits.breaker import Breaker


def opened(now=0.0, asked=None, first=1.0, longest=60.0, **when):
    breaker = Breaker(first, longest)
    breaker.open(now, now, asked, **when)
    return breaker


def probe_times(breaker, until, asked=None, takes=0.0):
    """Play probes that all fail."""
    now, times = 0.0, []
    while now < until:
        now += breaker.delay(now)
        times.append(now)
        breaker.probe = "probe"
        now += takes
        breaker.failed(now, asked)
    return times


def test_it_is_closed_at_first():
    assert not Breaker(1.0, 60.0).is_open


def test_first_probe_comes_when_the_server_says():
    assert opened(asked=7.0).delay(0.0) == 7.0
    assert opened(asked=None).delay(0.0) == 1.0
    assert opened(asked=600.0).delay(0.0) == 60.0


def test_one_request_probes_at_a_time():
    breaker = opened()
    breaker.probe = "probe"
    assert breaker.delay(5.0) == math.inf
    breaker.failed(5.0, None)
    assert breaker.delay(5.0) == 1.0


def test_intervals_grow_with_the_time_that_it_takes():
    """So the end is noticed at most a sixth of that time late, and a minute takes some 20 probes."""
    times = probe_times(opened(), 60.0)
    assert len(times) < 25
    gaps = [after - before for before, after in zip(times, times[1:])]
    assert gaps == sorted(gaps)
    assert all(gap <= max(1.0, after / 6) for gap, after in zip(gaps, times[1:]))


def test_probe_waits_for_what_the_server_asks():
    breaker = opened(asked=2.0)
    assert probe_times(breaker, 20.0, asked=5.0)[:4] == [2.0, 7.0, 12.0, 17.0]


def test_longest_interval():
    breaker = opened(longest=5.0)
    times = probe_times(breaker, 200.0)
    assert max(after - before for before, after in zip(times, times[1:])) == pytest.approx(5.0)


def test_no_probe_comes_before_the_time_that_is_known():
    breaker = opened(not_before=58.0)
    assert breaker.delay(0.0) == 58.0
    assert probe_times(breaker, 60.0)[0] == 58.0


def test_answer_hurries_the_first_probe_where_nobody_asked_for_a_delay():
    """It may have made room."""
    breaker = opened()
    breaker.hurry(0.3)
    assert breaker.delay(0.3) == 0
    breaker.probe = "probe"
    breaker.failed(0.4, None)
    breaker.hurry(0.5)
    assert breaker.delay(0.5) == pytest.approx(0.9)
    asked = opened(asked=5.0)
    asked.hurry(0.3)
    assert asked.delay(0.3) == pytest.approx(4.7)


def test_longer_delay_counts_if_two_are_asked_for():
    breaker = opened(asked=2.0)
    breaker.ask(0.5, 4.0)
    breaker.ask(0.6, 1.0)
    assert breaker.delay(0.6) == pytest.approx(3.9)
