"""The bottleneck of a run: the limit that held calls back for the longest time."""

from __future__ import annotations

import random

import pytest

from chatpool import ChatPool
from chatpool._scheduling.bottleneck import name_bottleneck
from chatpool.testing import FakeChatServer, Reply


@pytest.mark.parametrize(
    ("waits", "named"),
    [
        ({}, "nothing"),
        ({"max_workers": 5.0, "back-off after failures": 4.9}, "max_workers=10"),
        ({"max_workers": 3.0, "back-off after failures": 4.9}, "back-off after failures"),
        ({"back-off after failures": 0.9}, "nothing"),
    ],
)
def test_the_bottleneck_is_what_calls_waited_for_longest(waits, named):
    """If it is a tenth of the time at least."""
    assert name_bottleneck(waits, slots=10, seconds=10.0) == named


def test_slots_that_are_all_in_use_are_the_bottleneck_even_if_some_calls_fail():
    """One in twenty is a 500, as in a run whose summary once named a rate limit that the server does not have."""
    rng = random.Random(3)
    reply = lambda request: Reply(status=500) if rng.random() < 0.05 else Reply("a", delay=0.05)  # noqa: E731 - short
    with FakeChatServer(reply=reply) as server, ChatPool(10, base_url=server.url) as pool:
        answers = pool.map(["a"] * 600)
    assert answers.failures == []
    assert answers.limited_by == "max_workers=10"
    assert answers.waits.keys() <= {"max_workers", "back-off after failures"}


def test_few_calls_that_wait_to_retry_are_held_back_by_that(server, make_pool):
    server.script("a", Reply(status=503, headers={"retry-after": "0.5"}), Reply("a"))
    assert make_pool(max_wait=1).map(["a"]).limited_by == "back-off after failures"


def test_nothing_holds_back_as_many_calls_as_there_are_slots():
    with FakeChatServer(latency=0.2) as server, ChatPool(20, base_url=server.url) as pool:
        assert pool.map(["a"] * 20).limited_by == "nothing"


def test_a_run_whose_answers_are_all_in_the_journal_has_no_bottleneck(tmp_path):
    with FakeChatServer() as server, ChatPool(2, base_url=server.url) as pool:
        prompts = [f"p{number}" for number in range(100)]
        pool.map(prompts, journal=tmp_path / "j.jsonl")
        assert pool.map(prompts, journal=tmp_path / "j.jsonl").limited_by == "nothing"
