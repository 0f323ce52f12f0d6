"""The governor's arithmetic, on times that are given to it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from chatpool._scheduling.limits import COOL_DOWN, PACE, Budget, Limits, Pace


def test_pace_costs_nothing_before_the_first_refusal():
    pace = Pace()
    for _ in range(1000):
        assert pace.delay(1.0)[0] == 0
        pace.sent(1.0)


def test_refusal_pauses_for_the_servers_delay():
    pace = Pace()
    pace.sent(0.0)
    pace.refused(1.0, 0.0, 5.0, math.inf)
    assert pace.delay(1.0) == (5.0, COOL_DOWN)
    pace.refused(2.0, 0.5, 1.0, math.inf)
    assert pace.delay(2.0) == (4.0, COOL_DOWN)  # a shorter delay does not shorten the pause


def test_pool_comes_back_at_085_of_the_rate_that_the_server_took():
    """100 taken in 10 seconds and one refused: it comes back at 8.5 a second."""
    pace = Pace()
    for number in range(101):
        pace.sent(number / 10)
    pace.refused(10.0, 9.9, 2.0, math.inf)
    assert pace.delay(12.0)[0] == 0
    assert pace.rate == pytest.approx(8.5)
    pace.sent(12.0)
    delay, cause = pace.delay(12.0)
    assert (round(delay, 4), cause) == (round(1 / 8.5, 4), PACE)


def test_burst_is_not_taken_for_what_the_server_can_sustain():
    """10 taken at once, 30 refused, a pause of 2 seconds: that is 5 a second, not 100."""
    pace = Pace()
    for _ in range(40):
        pace.sent(0.0)
    for _ in range(30):
        pace.refused(0.1, 0.0, 1.9, math.inf)
    pace.delay(2.0)
    assert pace.rate == pytest.approx(0.85 * 5)


def test_rate_is_cut_once_an_episode():
    """Refusals of requests that were on the wire already say nothing new."""
    pace = Pace()
    for _ in range(40):
        pace.sent(0.0)
    for _ in range(30):
        pace.refused(1.0, 0.0, 1.0, math.inf)
    pace.delay(2.0)
    assert pace.rate == pytest.approx(0.85 * 10 / 2)
    pace.refused(2.1, 0.9, 1.0, math.inf)  # sent before the pause
    pace.delay(4.0)
    assert pace.rate == pytest.approx(0.85 * 10 / 2, rel=0.2)  # only grown


def test_what_is_not_answered_yet_was_taken():
    """Answers may take long, refusals do not; what failed otherwise was not taken. Of 40 sent, 10 were taken."""
    pace = Pace()
    for _ in range(40):
        pace.sent(0.0)
    for _ in range(20):
        pace.not_taken(0.0)
    for _ in range(10):
        pace.refused(0.1, 0.0, 1.9, math.inf)
    pace.not_taken(-1.0)  # it was sent before what is measured
    pace.delay(2.0)
    assert pace.rate == pytest.approx(0.85 * 5)


def test_single_refusal_says_nothing_of_the_pause():
    """One of five, in a second: four a second were taken, whatever the pause is that the server asks for."""
    pace = Pace()
    for number in range(5):
        pace.sent(number / 4)
    pace.refused(1.0, 1.0, 20.0, math.inf)
    pace.delay(21.0)
    assert pace.rate == pytest.approx(0.85 * 4)


def test_rate_grows_slowly_then_fast_and_is_forgotten_at_sixteen_times():
    """A twentieth more after a second, four times after 12, and so on from there; forgotten after 24 seconds."""
    pace = Pace()
    for _ in range(101):
        pace.sent(0.0)
    pace.refused(0.0, 0.0, 10.0, math.inf)
    pace.delay(10.0)
    base = pace.rate
    pace.delay(11.0)
    assert pace.rate == pytest.approx(1.05 * base, rel=0.01)
    pace.delay(21.0)
    assert 3 * base < pace.rate < 4 * base
    pace.delay(22.5)
    assert pace.rate == pytest.approx(4 * base, rel=0.1)
    pace.delay(23.5)
    assert pace.rate == pytest.approx(1.05 * 4 * base, rel=0.1)
    pace.delay(35.0)
    assert pace.rate is None


def test_refusals_without_a_delay_double_the_pause():
    pace = Pace()
    now = 0.0
    for pause in (1, 2, 4, 8, 10, 10):
        pace.sent(now)
        pace.refused(now, now, None, 10.0)
        assert pace.delay(now) == (pytest.approx(pause), COOL_DOWN)
        now += pause
        pace.delay(now)
        now += 0.001
    pace.taken()
    pace.refused(now, now, None, 10.0)
    assert pace.delay(now)[0] == pytest.approx(1)


def test_budget_spreads_evenly_with_a_second_at_once():
    """At 600 a minute, 10 leave at once, then one every 0.1 s."""
    budget = Budget(600)
    now, left = 0.0, []
    for _ in range(40):
        now += budget.delay(now, 1)
        budget.delay(now, 1)
        budget.take(1)
        left.append(now)
    assert left[9] == 0
    assert left[10] == pytest.approx(0.1)
    assert left[39] == pytest.approx(3.0)


def test_small_budget_lets_one_leave_at_once():
    budget = Budget(6)
    assert budget.delay(0.0, 1) == 0
    budget.take(1)
    assert budget.delay(0.0, 1) == pytest.approx(10)


def test_large_need_waits_for_a_full_bucket_and_leaves_a_debt():
    """A need of 5 seconds' share goes out when the bucket is full, and is paid off before the next."""
    budget = Budget(600)
    assert budget.delay(0.0, 50) == 0
    budget.take(50)
    assert budget.delay(0.0, 10) == pytest.approx(5.0)


def test_budget_takes_back_what_was_not_used():
    budget = Budget(600)
    budget.delay(0.0, 10)
    budget.take(10)
    budget.take(-5)
    assert budget.delay(0.0, 5) == 0


def test_call_larger_than_the_whole_budget_fails_with_a_clear_error():
    error = Limits(1, tokens_per_minute=1000).refusal(SimpleNamespace(tokens=1001))
    assert "needs about 1,001 tokens, more than tokens_per_minute=1,000" in str(error)
    assert error.code == "over_budget"


def test_new_share_of_a_budget_begins_empty():
    """Other processes had it until just now. The same share told again changes nothing."""
    budget = Budget(600)
    assert budget.delay(0.0, 1) == 0
    budget.share(0.5)
    assert budget.delay(0.0, 1) == pytest.approx(0.2)
    assert budget.delay(0.3, 1) == 0
    budget.take(1)
    budget.share(0.5)
    assert budget.delay(0.4, 1) == 0
    budget.share(1.0)
    assert budget.delay(0.4, 1) == pytest.approx(0.1)
