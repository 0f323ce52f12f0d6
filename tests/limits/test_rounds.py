"""So many requests in so many seconds: how the figures are found, and kept."""

from __future__ import annotations

import math

import pytest

from chatpool._limits.rounds import MARGIN, PROBES, SHORT, WRONG, Rounds


def send(rounds, count, now, is_paused=False):
    for number in range(count):
        rounds.sent(now + number / 1000, f"at {now}, {number}", is_paused=is_paused)


def found(size=10, period=10.0):
    """So many were accepted at 0, and then none until a period was over."""
    rounds = Rounds()
    send(rounds, size, 0.0)
    rounds.closed(0.1, 7)
    send(rounds, 1, period, is_paused=True)
    assert rounds.opened(period, 0.1, period - 1.0, PROBES)
    return rounds


def test_nothing_is_held_back_before_a_limit_is_found():
    rounds = Rounds()
    send(rounds, 1000, 0.0)
    assert rounds.delay(1.0) == 0
    assert rounds.figure is None


def test_limit_is_as_many_as_were_accepted_until_requests_are_accepted_again():
    rounds = found(10, 10.0)
    assert (rounds.size, rounds.is_sure) == (10, True)


@pytest.mark.parametrize(
    ("seconds", "probes", "is_one"), [(SHORT, PROBES, True), (SHORT, 1, False), (2.0, PROBES, False), (15.0, 0, True)]
)
def test_pause_has_to_be_long_or_shown_by_probes(seconds, probes, is_one):
    """A server that asks for a long delay may accept requests earlier than that."""
    rounds = Rounds()
    send(rounds, 10, 0.0)
    assert rounds.opened(0.1 + seconds, 0.1, 0.1, probes) == is_one


def test_request_may_be_sent_when_the_one_as_many_before_is_a_period_old():
    rounds = found(10, 10.0)
    send(rounds, 9, 10.1)
    rounds.probe_refused(10.2, None)  # the eleventh in this round
    rounds._low = rounds._high = 10.0
    assert rounds.delay(10.2) == pytest.approx(10.0 + MARGIN * 10.0 - 10.2)
    assert rounds.delay(10.0 + MARGIN * 10.0) == 0


def test_one_more_is_tried_at_the_end_of_a_round_and_then_two():
    rounds = found(10, 10.0)
    send(rounds, 9, 10.1)
    for size in (11, 13, 17):
        assert rounds.delay(10.2) == 0
        rounds.sent(10.2, "more", is_paused=False)
        assert rounds.probe == "more"
        assert rounds.delay(10.2) > 0
        rounds.probe_accepted()
        assert rounds.size == size
        send(rounds, size - len(rounds._all) + 10, 10.2)
    assert rounds.size == 17


def test_refusal_of_that_one_ends_the_round():
    rounds = found(10, 10.0)
    send(rounds, 9, 10.1)
    rounds.sent(10.2, "more", is_paused=False)
    rounds.refused(10.2)
    rounds.probe_refused(10.2, None)
    assert rounds.size == 10
    assert rounds.delay(10.2) > 9
    assert rounds.figure == "10 requests in 10 s"


def test_period_is_searched_between_one_too_short_and_one_that_was_not():
    """Halfway, with one request at a time."""
    rounds = found(10, 10.0)  # between 9 and 10 seconds
    send(rounds, 9, 10.1)
    rounds.sent(10.2, "more", is_paused=False)
    rounds.refused(10.2)
    rounds.probe_refused(10.2, None)
    assert rounds.delay(10.2) == pytest.approx(10.0 + 9.5 - 10.2)
    rounds.sent(19.5, "earlier", is_paused=False)
    rounds.probe_accepted()
    assert rounds._high == pytest.approx(9.5)


def test_server_that_asked_for_a_delay_is_not_asked_for_more_until_then():
    rounds = found(10, 10.0)
    send(rounds, 9, 10.1)
    rounds.sent(10.2, "more", is_paused=False)
    rounds.refused(10.2)
    rounds.probe_refused(10.2, 9.7)
    assert rounds.delay(10.2) == pytest.approx(9.7)


def test_refused_requests_are_counted_once_they_turn_out_to_take_room():
    """There should have been room, but for the requests that were refused before."""
    rounds = found(10, 10.0)
    for moment in (10.01, 10.02, 10.03):
        rounds.sent(moment, "refused", is_paused=True)
        rounds.refused(moment)
    send(rounds, 6, 10.1)
    assert rounds.probe is None
    rounds.closed(10.2, 0)
    rounds.sent(10.3, "the eleventh, counted with the refused ones", is_paused=False)
    assert rounds.probe is not None


def test_period_is_longer_if_requests_are_refused_though_it_is_over():
    """As where the first window was over in part when the first request came."""
    rounds = found(10, 5.0)
    send(rounds, 9, 5.1)
    rounds.sent(10.2, "refused", is_paused=False)
    rounds.refused(10.2)
    assert rounds.closed(10.2, 1) == pytest.approx(10.2)
    assert rounds._high == math.inf
    assert rounds.delay(10.2) > 0
    rounds.sent(15.0, "probe", is_paused=True)
    rounds.opened(15.0, 10.2, 14.0, 1)
    assert rounds._high == pytest.approx(10.0, abs=0.2)


def test_round_begins_with_one_request():
    """If it is refused, it is too early for all of them."""
    rounds = found(10, 10.0)
    send(rounds, 9, 10.1)
    rounds.probe = None
    assert rounds.delay(25.0) == 0
    rounds.sent(25.0, "first", is_paused=False)
    assert rounds.delay(25.0) == math.inf
    rounds.probe_accepted()
    assert rounds.delay(25.0) == 0
    send(rounds, 9, 25.1)
    rounds.probe = None
    rounds.sent(50.0, "first", is_paused=False)
    assert rounds.probe_refused(50.0, None)


def test_too_many_surprises_prove_it_wrong():
    rounds = found(10, 10.0)
    send(rounds, 10, 10.1)
    for surprise in range(WRONG + 1):
        rounds.closed(10.2 + surprise, 1)
    assert rounds.size is None
    assert not rounds.opened(100.0, 20.0, 90.0, 10)
