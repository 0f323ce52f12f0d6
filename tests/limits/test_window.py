"""The window: how many requests may be in flight."""

from __future__ import annotations

from chatpool._limits.window import ANSWERS, SOON, Window


def confirmed(limit=4):
    window = Window()
    window.suppose(limit)
    window.sent("probe", limit)
    assert window.refused("probe", limit)
    return window


def accept(window, count):
    for _ in range(count):
        window.accepted("some")


def test_without_refusals_nothing_is_held_back():
    assert not Window().is_full(10_000)


def test_supposed_window_is_tried_with_one_request_beyond_it():
    window = Window()
    window.suppose(4)
    assert not window.is_full(3)
    assert not window.is_full(4)
    window.sent("probe", 4)
    assert window.is_full(5)


def test_refusal_beyond_it_confirms_the_window():
    window = confirmed(4)
    assert (window.limit, window.is_confirmed) == (4, True)
    assert not window.is_full(3)
    assert window.is_full(4)


def test_answer_beyond_it_proves_it_wrong():
    """Then the limit is on requests a second."""
    window = Window()
    window.suppose(4)
    window.sent("probe", 4)
    window.accepted("probe")
    assert window.limit is None


def test_request_beyond_it_that_fails_proves_nothing():
    window = Window()
    window.suppose(4)
    window.sent("probe", 4)
    window.gone("probe")
    assert window.limit == 4
    assert not window.is_full(4)


def test_one_more_is_tried_after_two_answers_for_each_and_then_after_twenty():
    """The first refusal may have been chance."""
    window = confirmed(4)
    for answers in (SOON, ANSWERS, ANSWERS):
        accept(window, answers * 4 - 1)
        assert window.is_full(4)
        accept(window, 1)
        assert not window.is_full(4)
        window.sent("probe", 4)
        assert window.refused("probe", 4)
        assert (window.limit, window.is_full(4)) == (4, True)


def test_late_refusal_of_another_confirms_the_window_too():
    """The probe overtook it on its way."""
    window = Window()
    window.suppose(4)
    window.sent("probe", 4)
    assert window.refused("other", 4, is_near=True)
    assert (window.limit, window.is_confirmed) == (4, True)


def test_supposed_window_counts_only_requests_that_were_accepted():
    window = Window()
    window.suppose(7)
    for _ in range(3):
        window.suppose_less()
    assert window.limit == 4


def test_limit_that_is_gone_is_left_behind_in_a_few_steps():
    window = confirmed(4)
    accept(window, ANSWERS * 4)
    limits = []
    while window.limit is not None and len(limits) < 10:
        limits.append(window.limit)
        assert not window.is_full(window.limit)
        window.sent("probe", window.limit)
        window.accepted("probe")
    assert limits == [4, 5, 7, 11]


def test_window_explains_refusals_near_it():
    """Others use the server, too."""
    window = confirmed(10)
    assert window.refused("a", 9)
    assert not window.refused("b", 3)


def test_many_refusals_within_it_prove_it_wrong():
    window = confirmed(10)
    accept(window, 5)
    for _ in range(2):
        assert window.refused("a", 9)
    assert not window.refused("a", 9)
    assert window.limit is None


def test_smaller_limit_is_found_again():
    window = confirmed(10)
    accept(window, 5)
    for _ in range(3):
        window.refused("a", 9)
    window.suppose(2)
    assert window.limit == 2


def test_known_window_is_not_replaced_by_a_supposed_one():
    window = confirmed(4)
    window.suppose(39)
    assert window.limit == 4


def test_window_has_room_for_one_at_least():
    window = Window()
    window.suppose(0)
    assert window.limit == 1
    assert not window.is_full(0)
