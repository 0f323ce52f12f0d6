"""The limits of a pool as a whole, on times that are given to them. Their parts have tests of their own."""

from __future__ import annotations

import math

import pytest

from chatpool._limits.limits import COOL_DOWN, OUTAGE, REQUESTS, TOKENS, Limits
from chatpool._limits.token_bucket import Budget
from chatpool.errors import APIConnectionError

from .calls import FakeCall, rejection, send


def refuse_in_a_row(limits, now, count=10, **fields):
    for call in [send(limits, now, **fields) for _ in range(count)]:
        limits.refused(now, call, rejection())
        limits.left_wire(now, call)


# Models.


def test_each_model_has_its_own_limit():
    limits = Limits(4)
    refuse_in_a_row(limits, 0.0, model="slow")
    assert limits.delay(0.0, FakeCall(model="slow"))[1] == COOL_DOWN
    assert limits.delay(0.0, FakeCall(model="fast"))[0] == 0
    assert limits.prefers_new("slow")
    assert not limits.prefers_new("fast")
    assert not limits.prefers_new("another")


def test_answers_are_counted_per_model():
    limits = Limits(4)
    limits.answered(FakeCall(model="a"))
    limits.answered(FakeCall(model="a"))
    limits.answered(FakeCall(model="b"))
    assert (limits.answers, limits.answers_of("a"), limits.answers_of("b"), limits.answers_of("c")) == (3, 2, 1, 0)


def test_figures_name_the_limits_that_are_known():
    limits = Limits(4)
    assert limits.figures() == {}
    first, *_ = [send(limits, 0.0) for _ in range(4)]
    refuse_in_a_row(limits, 0.0)
    limits.accepted(1.0, first, None)
    limits.accepted(2.0, send(limits, 2.0), None)  # the probe of the pause
    assert limits.figures() == {}
    send(limits, 2.0)
    limits.refused(2.002, send(limits, 2.0), rejection())  # the fifth at once
    assert limits.figures()["the server's limit on calls at once"] == "the server takes 4 at once"


# How long is waited.


@pytest.mark.parametrize("was_ready", [False, True])
def test_server_that_was_not_ready_is_not_paced(was_ready):
    """Such as one that loads its model: refusals before the first answer say nothing of a rate."""
    limits = Limits(40)
    if was_ready:
        limits.accepted(0.0, send(limits, 0.0), None)
    refuse_in_a_row(limits, 0.1)
    limits.refused(1.1, send(limits, 1.1), rejection())
    limits.accepted(3.2, send(limits, 3.2), None)
    for now in (3.2, 3.3):  # the second is one more at once than before
        send(limits, now)
    for _ in range(9):
        assert (limits.delay(3.4, FakeCall())[0] > 0) == was_ready
        send(limits, 3.4)


def test_nothing_but_refusals_is_waited_out_for_five_times_max_wait():
    limits = Limits(4, longest_wait=10.0)
    assert limits.outage_left(0.0) == math.inf
    refuse_in_a_row(limits, 1.0)
    assert limits.outage_left(1.0) == pytest.approx(50)
    assert limits.outage_left(41.0) == pytest.approx(10)
    assert limits.outage_cause.code is None
    assert str(limits.outage_cause) == "slow down"


def test_answers_of_another_model_lengthen_that_wait():
    """The server is there: only one of its models refuses."""
    limits = Limits(4, longest_wait=10.0)
    refuse_in_a_row(limits, 0.0, model="slow")
    limits.accepted(30.0, send(limits, 30.0, model="fast"), None)
    assert limits.outage_left(30.0) == pytest.approx(50)


def test_after_that_time_requests_are_sent_again():
    limits = Limits(4, longest_wait=10.0)
    refuse_in_a_row(limits, 0.0)
    limits.outage_over()
    assert limits.outage_left(100.0) == math.inf
    assert limits.delay(100.0, FakeCall())[0] == 0


def test_the_longest_of_all_waits_counts():
    limits = Limits(4, requests_per_minute=60)
    limits.delay(0.0, FakeCall())
    send(limits, 0.0)
    assert limits.delay(0.0, FakeCall()) == (pytest.approx(1.0), REQUESTS)
    for _ in range(30):
        limits.failed(0.0, send(limits, 0.0), APIConnectionError("gone", code="connection_reset"))
    assert limits.delay(0.0, FakeCall()) == (pytest.approx(31.0), REQUESTS)


def test_connection_failures_are_no_refusals():
    limits = Limits(4)
    for _ in range(30):
        limits.failed(0.0, send(limits, 0.0), APIConnectionError("gone", code="connection_reset"))
    assert limits.delay(0.0, FakeCall())[1] == OUTAGE
    assert str(limits.outage_cause) == "gone"


# The user's budgets.


def test_tokens_are_corrected_by_what_was_used():
    limits = Limits(4, tokens_per_minute=600)
    assert limits.delay(0.0, FakeCall(tokens=10))[0] == 0
    call = send(limits, 0.0, tokens=10)
    assert limits.delay(0.0, FakeCall(tokens=10)) == (pytest.approx(1.0), TOKENS)
    limits.accepted(0.0, call, 4)
    assert limits.delay(0.0, FakeCall(tokens=10))[0] == pytest.approx(0.4)


def test_refused_request_gives_its_tokens_back():
    limits = Limits(4, tokens_per_minute=600)
    limits.delay(0.0, FakeCall(tokens=10))
    limits.refused(0.0, send(limits, 0.0, tokens=10), rejection())
    assert limits.delay(10.0, FakeCall(tokens=10))[0] == 0


def test_budget_spreads_evenly_with_a_second_at_once():
    """At 600 a minute, 10 are sent at once, then one every 0.1 s."""
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


def test_small_budget_sends_one_at_once():
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
    error = Limits(4, tokens_per_minute=1000).refusal(1001)
    assert "needs about 1,001 tokens, more than tokens_per_minute=1,000" in str(error)
    assert error.code == "over_budget"
    assert Limits(4, tokens_per_minute=1000).refusal(1000) is None
    assert Limits(4).refusal(10**9) is None


def test_new_share_of_a_budget_begins_empty():
    """Other processes had it until just now. The same share once more changes nothing."""
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
