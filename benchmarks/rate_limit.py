"""Control laws for a server's rate limit, measured side by side: python benchmarks/rate_limit.py [ROUNDS]

The server allows 20 calls a second with bursts of 10, answers in 0.2 s and refuses with a delay of 300 ms; 40 workers
send 300 prompts and know nothing of the limit. Printed for each law, in interleaved rounds: the time over the ideal,
the refusals a prompt, and the prompts lost.
"""

from __future__ import annotations

import statistics
import sys
import time

from chatpool import ChatPool, _limits
from chatpool.testing import FakeChatServer, RateLimit

PROMPTS, WORKERS, LATENCY = 300, 40, 0.2
LIMIT = RateLimit(per_second=20, burst=10, retry_after=0.3)
IDEAL = (PROMPTS - LIMIT.burst) / LIMIT.per_second + LATENCY


class PauseOnly(_limits.Pace):
    """The whole pool waits out each refusal's delay, then leaves all at once."""

    def _cut(self, now: float) -> None:
        self._cut_due = False


class Linear(_limits.Pace):
    """The pause, and a pace that only ever grows by a twentieth of its first rate a second."""

    def _grow(self, now: float) -> None:
        self.rate = self._base * (1 + 0.05 * (now - self.not_before))


LAWS = {"pause only": PauseOnly, "pause, linear pace": Linear, "pause, cubic pace (taken)": _limits.Pace}


def measure(law: type[_limits.Pace]) -> tuple[float, float, int]:
    """Return the time over the ideal, the refusals a prompt and the prompts lost."""
    chosen, _limits.Pace = _limits.Pace, law  # type: ignore[misc]  # one law takes another's place
    try:
        with (
            FakeChatServer(latency=LATENCY, rate_limit=LIMIT) as server,
            ChatPool(WORKERS, base_url=server.url) as pool,
        ):
            began = time.monotonic()
            answers = pool.map(["a"] * PROMPTS)
            took = time.monotonic() - began
    finally:
        _limits.Pace = chosen  # type: ignore[misc]
    return took / IDEAL, server.refusals / PROMPTS, len(answers.failures)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    figures: dict[str, list[tuple[float, float, int]]] = {name: [] for name in LAWS}
    for _ in range(rounds):
        for name, law in LAWS.items():
            figures[name].append(measure(law))
    print(f"{'law':28} time/ideal (min–max)   refusals a prompt   lost")
    for name, rows in figures.items():
        times, refusals, lost = zip(*rows)
        spread = f"{statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f})"
        print(f"{name:28} {spread:22} {statistics.median(refusals):17.2f} {max(lost):6}")


if __name__ == "__main__":
    main()
