"""What one run may spend: requests and tokens."""

from __future__ import annotations

import threading

from chatpool.errors import CallError, ConfigurationError, SpendLimitError


class RunBudget:
    """Counts what a run spends, and refuses what goes beyond it.

    Requests are counted before they are sent, so there is never one too many. Tokens are known afterwards: what is in
    flight when the limit is met still comes in.
    """

    def __init__(self, request_budget: int | None = None, token_budget: int | None = None) -> None:
        self._request_budget = _check("request_budget", request_budget)
        self._token_budget = _check("token_budget", token_budget)
        self._requests = self._tokens = 0
        self._lock = threading.Lock()

    def reserve(self, last_error: CallError | None) -> None:
        """Count a request that is about to be sent; raise SpendLimitError, because of what failed before, if it may
        not be."""
        with self._lock:
            limit = self._spent()
            if limit is None:
                self._requests += 1
                return
        raise SpendLimitError(f"not sent: {limit} of this run is spent", code=limit.split("=")[0]) from last_error

    def charge(self, tokens: int) -> None:
        """Count tokens that were paid for."""
        with self._lock:
            self._tokens += tokens

    def _spent(self) -> str | None:
        if self._request_budget is not None and self._requests >= self._request_budget:
            return f"request_budget={self._request_budget}"
        if self._token_budget is not None and self._tokens >= self._token_budget:
            return f"token_budget={self._token_budget}"
        return None


def _check(name: str, limit: int | None) -> int | None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ConfigurationError(f"{name} must be a whole number from 1 on, or None for no limit, not {limit!r}")
    return limit
