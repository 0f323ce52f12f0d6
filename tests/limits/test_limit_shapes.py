"""Every shape of limit, simulated: within its goal, with no clock and no sleep.

The shapes, their goals and the simulation are those of ``benchmarks/rate_limit.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from chatpool._limits.limits import ANNOUNCED, COOL_DOWN, PACE, WINDOW
from chatpool._testing.limits import refusal
from chatpool.testing import Announcing, FixedWindow, RandomRefusals, RateLimit, Together

from .simulation import rate_limit

SHAPES = rate_limit.SHAPES


@pytest.mark.parametrize("name", SHAPES)
def test_a_limit_is_met_within_its_goal(name):
    """In time, with no prompt lost that could be answered, and with few refusals."""
    shape = SHAPES[name]
    outcome = rate_limit.simulate(shape)
    assert outcome.lost == shape.lost
    assert outcome.seconds <= shape.seconds
    assert outcome.refusals <= shape.refusals


# Where times vary: goals that allow for the slowest of the last answers, and for a seed in which more is refused.
WITH_JITTER = {
    "20 a second, long answers": 1.05,
    "tokens": 1.06,
    "tokens, exact delays": 1.06,
    "seven windows of 60 s": 1.14,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_limit_is_met_though_times_vary(name):
    """Answers vary by a fifth, and requests overtake one another."""
    shape = SHAPES[name]
    for seed in range(3):
        outcome = rate_limit.simulate(shape, seed=seed, refuse=0.004, jitter=0.2)
        assert outcome.lost == shape.lost
        assert outcome.seconds <= shape.seconds * WITH_JITTER.get(name, 1.02)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["30 of 300 always refused", "30 of 300 too long", "3 of 300 always refused"])
def test_prompts_that_are_always_refused_hold_nobody_up(name, seed):
    shape = SHAPES[name]
    outcome = rate_limit.simulate(shape, seed=seed, refuse=0.004, jitter=0.2)
    assert outcome.lost == shape.lost
    assert outcome.seconds <= shape.seconds


@pytest.mark.parametrize("name", ["1 in 10 refused at random", "3 in 10 refused at random"])
@pytest.mark.parametrize("seed", range(20))
def test_random_refusals_pause_nobody(name, seed):
    """A stray refusal costs its own call a back-off: the share does not fall with a slower pace."""
    shape = SHAPES[name]
    outcome = rate_limit.simulate(shape, seed=seed, refuse=(0.002, 0.01, 0.04)[seed % 3])
    assert outcome.lost == 0
    assert outcome.seconds <= shape.seconds


@pytest.mark.parametrize("refuse", [0.002, 0.01, 0.04])
def test_prompts_of_a_tight_limit_are_not_lost_at_its_end(refuse):
    """Twenty a minute, and ten prompts are left: their refusals do not come at random, and they save their attempts."""
    for limit in (FixedWindow(20, 60, 1), FixedWindow(20, 60), FixedWindow(20, 60, passed=30)):
        shape = rate_limit.Shape(limit, lambda: rate_limit.plain(70), 0.2, 180, 220)
        outcome = rate_limit.simulate(shape, refuse=refuse)
        assert outcome.lost == 0
        assert outcome.seconds <= shape.seconds


@pytest.mark.parametrize(
    ("name", "cause", "figure"),
    [
        ("20 a second", PACE, "rate limit of 20 requests a second"),
        ("tokens", PACE, "rate limit of 1,400 tokens a second"),
        ("4 at once, else 503", WINDOW, "the server takes 4 at once"),
        ("10 at once, else 529", WINDOW, "the server takes 10 at once"),
        ("windows of 60 s", COOL_DOWN, "rate limit of 100 requests in 59 s"),
        ("sliding window, refusals count", COOL_DOWN, "rate limit of 60 requests in 10 s"),
        ("windows of 60 s, announced", ANNOUNCED, "rate limit of 100 requests (announced)"),
    ],
)
def test_the_limit_that_held_is_named_with_its_figure(name, cause, figure):
    assert rate_limit.simulate(SHAPES[name]).figures[cause] == figure


def test_no_limit_is_named_where_there_is_none():
    assert rate_limit.simulate(SHAPES["3 of 300 always refused"]).figures == {}
    assert rate_limit.simulate(SHAPES["0 left, which is not so"]).figures == {}


@dataclass
class Closed:
    """Refuses everything from one moment to another, in seconds after the first request."""

    begin: float
    end: float
    first: float | None = None

    def check(self, request, now, in_flight):
        self.first = now if self.first is None else self.first
        return refusal(429, None, 0.0) if self.begin <= now - self.first < self.end else None

    def headers(self, now):
        return {}


@dataclass
class Changing:
    """Refuses nothing, and announces something else with each reply."""

    fields: list[dict[str, str]]
    replies: int = 0

    def check(self, request, now, in_flight):
        return None

    def headers(self, now):
        self.replies += 1
        return self.fields[self.replies % len(self.fields)]


def fields(remaining, reset="30s", limit="100"):
    names = {"remaining": remaining, "reset": reset, "limit": limit}
    return {f"x-ratelimit-{name}-requests": value for name, value in names.items() if value is not None}


LIES = {
    "nothing is left, for ever": fields("0"),
    "the reset is a day away": fields("0", "86400s"),
    "the reset is long over": fields("0", "-5"),
    "a time of long ago": fields("0", "1000000000"),
    "a negative rest": fields("-1"),
    "garbage": fields("lots", "soon", "none"),
    "not a number": fields("nan", "nan", "inf"),
    "more is left than the limit": fields("500", "30s", "100"),
    "no limit, and no reset": fields("0", None, None),
    "no tokens": {f"x-ratelimit-{name}-tokens": value for name, value in [("remaining", "0"), ("reset", "60s")]},
    "the draft's field": {"ratelimit": '"default";r=0;t=60'},
    "Anthropic's": {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2999-01-01T00:00:00Z",
    },
}
ALTERNATING = {
    "nothing and all": [fields("0"), fields("100")],
    "nothing, garbage and less than nothing": [fields("0", "60s"), fields("x"), fields("-1")],
    "a reset that moves": [fields("0", f"{seconds}s") for seconds in range(1, 60)],
}
LIMITS_THAT_LIE = {name: Announcing(lie) for name, lie in LIES.items()}
LIMITS_THAT_LIE.update({name: Changing(lies) for name, lies in ALTERNATING.items()})


@pytest.mark.parametrize("name", LIMITS_THAT_LIE)
def test_headers_that_lie_cost_at_most_a_twentieth_of_the_time(name):
    def simulate(limit):
        return rate_limit.simulate(rate_limit.Shape(limit, lambda: rate_limit.plain(1000), 0.2, 5, 5.5))

    outcome, plain = simulate(LIMITS_THAT_LIE[name]), simulate(Announcing({}))
    assert (outcome.lost, outcome.refusals) == (0, 0)
    assert outcome.seconds <= 1.05 * plain.seconds


@pytest.mark.parametrize("name", LIMITS_THAT_LIE)
def test_headers_that_lie_about_a_limit_do_not_hide_the_limit(name):
    """20 a second, and something else is announced: a fifth more time at most."""
    limit = Together([LIMITS_THAT_LIE[name], RateLimit(20, 10, 0.3)])
    shape = SHAPES["20 a second"]
    outcome = rate_limit.simulate(rate_limit.Shape(limit, shape.prompts, shape.latency, shape.ideal, shape.seconds))
    assert outcome.lost == 0
    assert outcome.seconds <= 1.2 * shape.ideal


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_refusals_at_random_slow_a_limit_down_a_few_times_at_most(share):
    """They look like refusals of the limit: the pace is not cut for more and more of them without end."""
    limit = Together([RandomRefusals(share), RateLimit(20, 10)])
    for seed in range(3):
        outcome = rate_limit.simulate(rate_limit.Shape(limit, lambda: rate_limit.plain(600), 0.2, 30, 0), seed=seed)
        assert outcome.lost == 0
        assert outcome.seconds <= 4 * 30


@pytest.mark.parametrize("end", [4.0, 15.0, 80.0])
def test_server_that_refuses_everything_for_a_while_is_used_at_full_speed_again(end):
    shape = rate_limit.Shape(Closed(1.0, end), lambda: rate_limit.plain(2000), 0.2, end + 9, 0)
    outcome = rate_limit.simulate(shape, jitter=0.2)
    assert outcome.lost == 0
    assert outcome.seconds <= 1.2 * shape.ideal
    assert outcome.refusals <= 100


def test_pools_that_share_a_limit_get_fair_parts():
    *rates, refused = rate_limit.share(20, 50, 120)
    assert sum(rates) >= 0.95 * 50
    assert min(rates) >= 0.5 * 50 / 20
    assert refused <= 0.25
