"""The keys of the LiteLLM proxy, and their limits. It has no database to keep them in."""

from __future__ import annotations

from fastapi import Request
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

_LIMITS = {
    "sk-test": {},
    "sk-ten-a-minute": {"rpm_limit": 10},
    "sk-two-at-once": {"max_parallel_requests": 2},
}


async def check(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Return the key's permissions; raise an exception for which LiteLLM sends a 401."""
    if api_key not in _LIMITS:
        raise ProxyException("Incorrect API key provided", type="invalid_request_error", param=None, code=401)
    return UserAPIKeyAuth(api_key=api_key, **_LIMITS[api_key])
