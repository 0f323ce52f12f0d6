"""Calls as the rate limiter sees them, and a short way to play requests against it."""

from __future__ import annotations

from dataclasses import dataclass

from chatpool.errors import RateLimitError


@dataclass(eq=False)
class FakeCall:
    tokens: int = 1
    attempts: int = 0
    tries: int = 0
    sent_at: float = 0.0
    model: str = "m"


def send(limiter, now, call=None, **fields):
    """Send a call, a new one if none is given, and return it."""
    call = call or FakeCall(**fields)
    call.attempts += 1
    call.sent_at = now
    limiter.sent(now, call)
    return call


def rejection(retry_after=None, status=429):
    return RateLimitError("slow down", status_code=status, retry_after=retry_after)
