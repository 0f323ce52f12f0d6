"""How long one prompt waits by itself after it was refused, beside what all prompts wait. Pure arithmetic.

Full jitter: a random share of an exponentially growing bound ("Exponential Backoff And Jitter", AWS Architecture Blog,
2015).
"""

from __future__ import annotations

from typing import Callable

Uniform = Callable[[float, float], float]  # as random.uniform

FIRST, LONGEST = 0.25, 20.0  # seconds of the bound, doubled for each further request: as for other failures
FEW = 2  # spent attempts: each further one is to come so much later that six of them last for a minute
QUICK = 0.25  # seconds of the bound where it is of no use to wait longer
PATIENT = 8  # requests that double it, as long as others are answered: then they cost nothing but requests
TURN = 1.0, 2.0  # times the pace's time for one request, at least: else it comes too early again


def wait_for_limit(tries: int, attempts: int, longest: float, uniform: Uniform) -> float:
    """Return the seconds after a refusal that means everybody."""
    if tries >= FEW:
        return min(2.0**tries, longest)
    return uniform(0.0, min(_bound(attempts), longest))


def wait_for_chance(tries: int, attempts: int, turn: float, longest: float, uniform: Uniform) -> float:
    """Return the seconds after a refusal that means this prompt alone. ``turn``: the pace's time for one request."""
    quick = QUICK if tries >= FEW else QUICK * 2 ** (attempts / PATIENT)
    wait = uniform(0.0, min(_bound(attempts), quick, longest))
    return min(max(wait, uniform(*TURN) * turn), longest)


def _bound(attempts: int) -> float:
    return min(FIRST * 2.0 ** min(attempts - 1, 10), LONGEST)
