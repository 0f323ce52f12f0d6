"""Each kind of limit with few workers and many, short answers and long ones, and times that vary.

Nothing is lost, and the time stays within a factor of the ideal, which is known for these kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from chatpool.testing import FixedWindow, InFlight, RandomRefusals, RateLimit, SlidingWindow, Together

from .simulation import rate_limit


@dataclass(frozen=True)
class Kind:
    limit: Any
    count: int
    seconds: float  # that the limit takes for so many, without the last answer
    factor: float  # of the ideal
    latencies: tuple[float, ...] = (0.05, 0.5, 2.0)


# A limit on requests at once takes as long as its answers do, so it has one latency.
KINDS = {
    "20 a second": Kind(RateLimit(20, 10, 0.3), 300, 14.5, 1.25),
    "20 a second, no delay named": Kind(RateLimit(20, 10), 300, 14.5, 1.4),
    "5 a second, and a large burst": Kind(RateLimit(5, 60, 1), 300, 48, 1.2),
    "10 in windows of 1 s": Kind(FixedWindow(10, 1), 200, 19, 1.4),
    "60 in windows of 10 s": Kind(FixedWindow(60, 10), 300, 40, 1.3),
    "20 in windows of a minute": Kind(FixedWindow(20, 60, 1), 70, 180, 1.1),
    "60 in any 10 s": Kind(SlidingWindow(60, 10), 300, 40, 1.5),
    "60 in any 10 s, refusals count": Kind(SlidingWindow(60, 10, refusals_count=True), 300, 40, 1.6),
    "60 in any 10 s, refusals count, with a delay": Kind(SlidingWindow(60, 10, 1, True), 300, 40, 1.6),
    "30 in any 5 s, refusals count": Kind(SlidingWindow(30, 5, refusals_count=True), 150, 20, 1.75),
    "100 in any 20 s, refusals count": Kind(SlidingWindow(100, 20, refusals_count=True), 500, 80, 1.6),
    "4 at once": Kind(InFlight(4, 503), 100, 25, 1.3, (1.0,)),
    "8 at once, with a delay": Kind(InFlight(8, 429, 1), 200, 25, 1.3, (1.0,)),
    "1 in 10 refused at random": Kind(RandomRefusals(0.1), 300, 0, 5),
    "1 in 10 refused at random, 20 a second": Kind(Together([RandomRefusals(0.1), RateLimit(20, 10)]), 300, 14.5, 5),
}


@pytest.mark.parametrize("workers", [5, 20, 40, 100])
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_limit_is_held_whatever_the_workers_and_the_latency(name, workers):
    kind = KINDS[name]
    for seed, latency in enumerate(kind.latencies):
        shape = rate_limit.Shape(kind.limit, lambda: rate_limit.plain(kind.count), latency, 0, 0)
        outcome = rate_limit.simulate(shape, seed=seed, refuse=0.004, workers=workers, jitter=0.2)
        ideal = max(kind.seconds, kind.count * latency / workers) + latency
        assert outcome.lost == 0
        assert outcome.seconds <= kind.factor * ideal, (latency, outcome.seconds / ideal)
