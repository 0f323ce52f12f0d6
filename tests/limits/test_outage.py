"""Outages: nothing but connection failures and server errors comes back."""

from __future__ import annotations

import math

import pytest

from chatpool._limits.outage import FEWEST, NOBODY_LISTENS, Outage
from chatpool.errors import APIConnectionError, InternalServerError

from .calls import FakeCall

REFUSED = APIConnectionError("refused", code="connection_refused")
RESET = APIConnectionError("reset", code="connection_reset")


def fail(outage, count, now=1.0, cause=RESET, attempts=1):
    for _ in range(count):
        outage.failed(now, FakeCall(attempts=attempts, sent_at=now), cause)


def test_few_failures_are_no_outage():
    outage = Outage(4, 60.0)
    fail(outage, FEWEST - 1)
    assert not outage.is_on
    assert outage.delay(1.0) == 0


def test_first_requests_of_more_prompts_than_slots_are():
    outage = Outage(40, 60.0)
    fail(outage, 49)
    assert not outage.is_on
    fail(outage, 1)
    assert outage.is_on


def test_so_are_twice_as_many_failures():
    outage = Outage(40, 60.0)
    fail(outage, 40)
    fail(outage, 39, attempts=2)
    assert not outage.is_on
    fail(outage, 1, attempts=3)
    assert outage.is_on


def test_one_prompt_that_fails_again_and_again_is_none():
    outage = Outage(4, 60.0)
    for attempts in range(1, 1000):
        fail(outage, 1, attempts=attempts)
    assert not outage.is_on


def test_reply_ends_it():
    outage = Outage(4, 60.0)
    fail(outage, 25)
    outage.replied(FakeCall(sent_at=2.0))
    assert not outage.is_on
    assert outage.left(2.0, 300.0) == math.inf


def test_late_reply_to_a_request_from_before_does_not():
    outage = Outage(4, 60.0)
    fail(outage, 25, now=1.0)
    outage.replied(FakeCall(sent_at=0.5))
    assert outage.is_on


def test_one_request_at_a_time_probes():
    outage = Outage(4, 60.0)
    fail(outage, 25, now=1.0)
    assert outage.delay(1.0) == pytest.approx(0.25)
    probe = FakeCall()
    outage.sent(probe)
    assert outage.delay(2.0) == math.inf
    outage.left_wire(probe)
    assert outage.delay(2.0) == 0


def test_its_end_is_noticed_within_five_seconds():
    outage = Outage(4, 60.0)
    fail(outage, 25, now=0.0)
    now = 0.0
    for _ in range(40):
        wait = outage.delay(now)
        assert wait <= 5.0
        now += wait
        fail(outage, 1, now=now)
    assert now > 100


def test_server_that_says_when_it_is_back_is_asked_then():
    outage = Outage(4, 60.0)
    fail(outage, 25, now=0.0, cause=InternalServerError("loading", status_code=500, retry_after=3.0))
    assert outage.delay(0.0) == 3.0


def test_it_is_waited_out_for_as_long_as_given():
    outage = Outage(4, 60.0)
    fail(outage, 25, now=1.0)
    assert outage.left(1.0, 300.0) == 300.0
    assert outage.left(101.0, 300.0) == 200.0


def test_server_to_which_nobody_ever_listened_is_not_waited_for_long():
    """A wrong port or a host that does not exist: that does not change in five minutes."""
    outage = Outage(4, 60.0)
    fail(outage, 25, now=1.0, cause=REFUSED)
    assert outage.left(1.0, 300.0) == NOBODY_LISTENS
    assert outage.left(1.0, 2.0) == 2.0


@pytest.mark.parametrize("sign", ["replied", "failed"])
def test_server_that_listened_once_is(sign):
    """It is restarting. A connection that broke, or a reply of any kind, shows that there was one."""
    outage = Outage(4, 60.0)
    if sign == "replied":
        outage.replied(FakeCall())
    else:
        fail(outage, 1, cause=RESET)
    fail(outage, 25, now=1.0, cause=REFUSED)
    assert outage.left(1.0, 300.0) == 300.0
