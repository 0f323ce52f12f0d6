"""Limits on what one run may spend: requests, tokens and dollars."""

from __future__ import annotations

import threading

from chatpool._protocol.settings import check_amount, check_count
from chatpool.errors import CallError, SpendLimitError

_ROUNDING = 1e-9  # of a sum of many amounts, as a share


class RunBudget:
    """Counts what a run spends, and rejects what goes beyond it.

    Requests are counted before they are sent, so there is never one too many. Tokens are known afterwards: what is in
    flight when the limit is met still comes in. Of dollars, the most that a request may cost is reserved when it is
    sent, and replaced by its cost when that is known.
    """

    def __init__(
        self, request_budget: int | None = None, token_budget: int | None = None, cost_budget: float | None = None
    ) -> None:
        self._request_budget = None if request_budget is None else check_count("request_budget", request_budget)
        self._token_budget = None if token_budget is None else check_count("token_budget", token_budget)
        self.cost_budget = None if cost_budget is None else check_amount("cost_budget", cost_budget)
        self._requests = self._tokens = 0
        self._cost = self._reserved = 0.0  # dollars
        self._lock = threading.Lock()

    def must_wait(self, most_cost: float) -> bool:
        """Whether a request fits only if those in flight cost less than was reserved for them."""
        with self._lock:
            return self._reserved > 0 and not self._fits(self._cost + self._reserved + most_cost)

    def reserve(self, last_error: CallError | None, most_cost: float = 0.0) -> None:
        """Count a request that is about to be sent; raise SpendLimitError, because of what failed before, if it may
        not be."""
        with self._lock:
            limit = self._spent(most_cost)
            if limit is None:
                self._requests += 1
                self._reserved += most_cost
                return
        raise SpendLimitError(f"not sent: {limit} of this run is spent", code=limit.split("=")[0]) from last_error

    def charge(self, tokens: int) -> None:
        """Count tokens that were paid for."""
        with self._lock:
            self._tokens += tokens

    def settle(self, most_cost: float, cost: float | None) -> None:
        """Replace what was reserved for a request by its cost. None: it may have cost all of that."""
        with self._lock:
            self._reserved = max(0.0, self._reserved - most_cost)
            if self._reserved < _ROUNDING * most_cost:
                self._reserved = 0.0
            self._cost += most_cost if cost is None else cost

    def _fits(self, cost: float) -> bool:
        return self.cost_budget is None or cost <= self.cost_budget * (1 + _ROUNDING)

    def _spent(self, most_cost: float) -> str | None:
        if self._request_budget is not None and self._requests >= self._request_budget:
            return f"request_budget={self._request_budget}"
        if self._token_budget is not None and self._tokens >= self._token_budget:
            return f"token_budget={self._token_budget}"
        if not self._fits(self._cost + self._reserved + most_cost):
            return f"cost_budget={self.cost_budget:g}"
        return None
