"""10,000 calls in flight from 20 machines, on paper: python benchmarks/cluster.py [--check]

Pools of 500 workers run in 20 processes under one scheduler, for one caller that writes one journal. What would that
need of the provider, the scheduler, the caller and the client's CPU, and where would it break first? No such cluster
was run. The rate limit is simulated, with chatpool's own ``Pace`` and ``Budget`` on simulated time; the journal and
what a result weighs are measured on this machine at each run; the rest is arithmetic on figures whose source is named.
With ``--check``, the simulation is held against a few real pools and a real server instead, in two minutes.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import pickle
import random
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from chatpool import ChatPool
from chatpool._files.batch_format import Key, line_of
from chatpool._scheduling.limits import Budget, Pace
from chatpool.journal import Journal, index
from chatpool.results import ChatResult, Usage
from chatpool.testing import FakeChatServer, RateLimit

MACHINES, PROCESSES, IN_FLIGHT = 20, 20, 10_000
LATENCIES = (0.5, 2, 10, 30)  # seconds an answer
ANSWERS = (200, 1_000)  # tokens an answer
PROMPT_TOKENS = 300  # an assumption
TOKEN_BYTES = 4  # of English text, an assumption
CALL_BYTES = 2_000  # heads and JSON around prompt and answer, both ways, an assumption
LUMP = 0.1  # seconds between two lumps of results from a process
CALL_CPU = 220e-6  # seconds of CPU a call: README, Performance
ROUNDS = 5  # of what is measured; the best counts
CUSTOM_ID_BYTES = 110  # of memory for each: README and chatpool/journal.py

# Requests and tokens a minute for gpt-4o-mini: OpenAI's page of the model, as copied into its forum, seen in November
# 2026: community.openai.com/t/don-see-any-option-to-request-increase-in-api-rate-limit-for-batch-api/1269349
TIERS = {
    "tier 1": (500, 200_000),
    "tier 2": (5_000, 2_000_000),
    "tier 3": (5_000, 4_000_000),
    "tier 4": (10_000, 10_000_000),
    "tier 5": (30_000, 150_000_000),
}
TASK_CPU = 1e-3  # seconds of Dask's scheduler for a task, at most; at least a fifth of it: its "Best Practices"
# Of the scheduler for a lump, and of scheduler and client for each of its bytes: benchmarks/cluster_dask.py.
LUMP_CPU, BYTE_CPU, CLIENT_BYTE_CPU = 220e-6, 3.3e-9, 1.5e-9


class Process:
    """One pool: its places, its own pace, its share of the budget, and the calls that were refused."""

    def __init__(self, places: int) -> None:
        self.places, self.pace = places, Pace()
        self.budget: Budget | None = None  # its share
        self.on_wire = 0
        self.again: deque[int] = deque()  # for each refused call, how often it was sent
        self.wakes_at = math.inf
        self.is_there = True

    def delay(self, now: float) -> float:
        """Return the seconds until the next call may leave."""
        wait = self.pace.delay(now)[0]
        return max(wait, self.budget.delay(now, 1)) if self.budget else wait


class Cluster:
    """A simulation, event by event: processes with prompts without end share a provider that takes so many a second.

    The provider's limit is a bucket that holds one second's requests. A refusal comes after ``round_trip`` seconds and
    names ``retry_after``; where ``counts_refused``, refused requests count, too, up to a second's debt. Answers take
    ``latency`` seconds, give or take the share ``spread``. ``budget``: the requests a second, over all processes
    together, to which the caller told them to keep.
    """

    def __init__(
        self,
        processes: int,
        places: int,
        latency: float,
        limit: float | None = None,
        *,
        budget: float | None = None,
        retry_after: float = 1.0,
        counts_refused: bool = False,
        round_trip: float = 0.05,
        spread: float = 0.5,
        seed: int = 1,
    ) -> None:
        self.now = 0.0
        self.budget, self.retry_after, self.round_trip = budget, retry_after, round_trip
        self.latency, self.spread = latency, spread
        self.counts_refused = counts_refused
        self.processes: list[Process] = []
        self.sent, self.taken = Counter[int](), Counter[int]()  # by the second
        self.most_tries = 0  # of one call
        self._limit = Budget(limit * 60) if limit else None
        self._random = random.Random(seed)
        self._number = itertools.count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.join(processes, places)

    def run(self, until: float) -> Cluster:
        """Go on to this second."""
        while self._events and self._events[0][0] < until:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        self.now = until
        return self

    def at(self, moment: float, action: Callable[..., None], *arguments: Any) -> None:
        """Plan an event."""
        heapq.heappush(self._events, (moment, next(self._number), action, arguments))

    def join(self, processes: int, places: int, *, is_empty: bool = False) -> None:
        """Let processes begin, each with an equal share of the budget by their new number."""
        new = [Process(places) for _ in range(processes)]
        self.processes += new
        self.share_out(new, is_empty=is_empty)
        for process in new:
            # Not all in the same instant: a scheduler starts them one after the other.
            self.at(self.now + self._random.uniform(0, self.round_trip), self._fill, process)

    def leave(self, processes: int) -> None:
        """Let the latest processes end, and what they had on the wire with them."""
        for process in self.processes[-processes:]:
            process.is_there = False
        del self.processes[-processes:]

    def share_out(self, whom: Sequence[Process] | None = None, *, is_empty: bool = False) -> None:
        """Give processes, or all, an equal share of the budget; ``is_empty``: without a second's worth at once."""
        for process in self.processes if whom is None else whom:
            if self.budget:
                share = self.budget / len(self.processes)
                process.budget = Budget(share * 60)
                if is_empty:
                    process.budget.take(max(1.0, share))

    def _fill(self, process: Process) -> None:
        """Send what may be sent; if something has to wait, come back then."""
        while process.is_there and process.on_wire < process.places:
            delay = process.delay(self.now)
            if delay > 0:
                moment = self.now + max(delay, 1e-6)  # or time would stand still
                if not self.now < process.wakes_at <= moment:
                    process.wakes_at = moment
                    self.at(moment, self._wake, process, moment)
                return
            self._send(process)

    def _wake(self, process: Process, moment: float) -> None:
        if moment == process.wakes_at:  # not overtaken by an earlier one
            self._fill(process)

    def _send(self, process: Process) -> None:
        tries = 1 + (process.again.popleft() if process.again else 0)
        process.on_wire += 1
        process.pace.sent(self.now)
        if process.budget:
            process.budget.take(1)
        self.sent[int(self.now)] += 1
        self.most_tries = max(self.most_tries, tries)
        if self._takes():
            self.taken[int(self.now)] += 1
            latency = self.latency * self._random.uniform(1 - self.spread, 1 + self.spread)
            self.at(self.now + latency, self._answered, process)
        else:
            self.at(self.now + self.round_trip, self._refused, process, self.now, tries)

    def _takes(self) -> bool:
        if self._limit is None:
            return True
        wait = self._limit.delay(self.now, 1)
        is_room = wait < 1e-9  # but for rounding
        if is_room or (self.counts_refused and wait < 1):
            self._limit.take(1)
        return is_room

    def _answered(self, process: Process) -> None:
        process.on_wire -= 1
        process.pace.taken()
        self._fill(process)

    def _refused(self, process: Process, sent_at: float, tries: int) -> None:
        process.on_wire -= 1
        process.again.append(tries)
        process.pace.refused(self.now, sent_at, self.retry_after, 60.0)
        self._fill(process)


def rate_of(in_flight: float, latency: float) -> float:
    """Return the calls a second that so many in flight make: Little's law."""
    return in_flight / latency


def allowed(tier: str, answer: int) -> float:
    """Return the calls a second that a tier allows, with answers of so many tokens."""
    requests, tokens = TIERS[tier]
    return min(requests, tokens / (PROMPT_TOKENS + answer)) / 60


def bytes_of(answer: int) -> int:
    """Return a call's bytes on the wire, both ways."""
    return CALL_BYTES + TOKEN_BYTES * (PROMPT_TOKENS + answer)


def share_of(cluster: Cluster, ideal: float, began: int, ended: int) -> tuple[float, float]:
    """Return what was taken between two seconds as a share of the ideal rate, and the share of requests refused."""
    taken, sent = (sum(count[second] for second in range(began, ended)) for count in (cluster.taken, cluster.sent))
    return taken / (ideal * (ended - began)), 1 - taken / max(sent, 1)


def churn(delay: float, *, is_empty: bool, limit: float = 500, latency: float = 10) -> Cluster:
    """Half of 20 processes leave after 60 seconds and come back after 120; all learn of it ``delay`` seconds later.

    Those that come know the new number at once: the worst case. ``is_empty``: nobody's new share begins with a
    second's worth that may leave at once.
    """
    cluster = Cluster(PROCESSES, IN_FLIGHT // PROCESSES, latency, limit, budget=limit)
    half = PROCESSES // 2
    cluster.run(60).leave(half)
    cluster.run(60 + delay).share_out(is_empty=is_empty)
    cluster.run(120).join(half, IN_FLIGHT // PROCESSES, is_empty=is_empty)
    old = cluster.processes[:half]
    cluster.run(120 + delay).share_out(old, is_empty=is_empty)
    return cluster.run(180)


@dataclass(frozen=True)
class Measured:
    """What a result of so many tokens costs the caller on this machine: seconds and bytes for each."""

    unpickle: float
    line: float
    append: float
    resume: float
    pickled: float
    lines: float

    @property
    def caller(self) -> float:
        """Seconds for what the caller must do to a result; what it counts and draws comes on top."""
        return self.unpickle + self.line + self.append + self.pickled * CLIENT_BYTE_CPU


def measure(answer: int, results: int = 5_000) -> Measured:
    """Write a journal of such answers with chatpool's own code, and read it as a resumed run does."""
    told = [_result(number, answer) for number in range(results)]
    keys = [Key(f"{number:032x}", f"{number:032x}") for number in range(results)]
    lumps = [pickle.dumps(told[first : first + 50]) for first in range(0, results, 50)]
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "journal.jsonl")
        unpickle = _clock(lambda: [pickle.loads(lump) for lump in lumps])  # noqa: S301 - our own
        line = _clock(lambda: [line_of(result, key) for result, key in zip(told, keys)])
        lines = [line_of(result, key) for result, key in zip(told, keys)]
        with Journal(path) as journal:
            append = _clock(lambda: [journal.append(line) for line in lines])
        with open(path, "rb", buffering=2**15) as reader:
            resume = _clock(lambda: index(reader, path), rounds=1) / ROUNDS  # each round of append wrote all
    seconds = (took / results for took in (unpickle, line, append, resume))
    return Measured(*seconds, sum(map(len, lumps)) / results, sum(map(len, lines)) / results)


def _clock(action: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Return the seconds of the best of some rounds: the others were disturbed."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return min(took)


def _result(number: int, answer: int) -> ChatResult:
    text = "".join(random.choices("abcdefghij klmnop", k=TOKEN_BYTES * answer))
    message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": answer, "total_tokens": PROMPT_TOKENS + answer}
    response = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini"}
    response["choices"] = [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    response["usage"] = usage
    return ChatResult(number, None, text, text, None, "stop", Usage(**usage), response, f"req_{number}", 1, 2.0, None)


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def print_demand() -> None:
    heads = ["seconds an answer", "tokens an answer", "requests/s", "requests a minute", "tokens a minute", "Mbit/s"]
    table(
        f"1a. What {IN_FLIGHT:,} calls in flight ask of the provider",
        [*heads, "times tier 5"],
        (
            [
                latency,
                f"{answer:,}",
                f"{(rate := rate_of(IN_FLIGHT, latency)):,.0f}",
                f"{rate * 60:,.0f}",
                f"{rate * 60 * (PROMPT_TOKENS + answer) / 1e6:,.0f} M",
                f"{rate * bytes_of(answer) * 8 / 1e6:,.0f}",
                f"{rate / allowed('tier 5', answer):.2f}",
            ]
            for latency in LATENCIES
            for answer in ANSWERS
        ),
    )
    table(
        "1b. How many workers a limit can feed: calls a second allowed × seconds an answer (200 / 1,000 tokens)",
        ["gpt-4o-mini", "calls/s", *(f"{latency} s" for latency in LATENCIES)],
        (
            [
                tier,
                " / ".join(f"{allowed(tier, answer):,.1f}" for answer in ANSWERS),
                *(" / ".join(f"{allowed(tier, answer) * latency:,.0f}" for answer in ANSWERS) for latency in LATENCIES),
            ]
            for tier in TIERS
        ),
    )


def print_governors(limit: float = 500) -> None:
    """Each cell: the share of the ideal at first and later, the requests refused later, and the most tries."""
    no_budget, counted = "no budget", "no budget, refused requests count"
    cases: list[tuple[str, int, dict[str, Any]]] = [
        (no_budget, 2, {}),
        (no_budget, 10, {}),
        (counted, 2, {"counts_refused": True}),
        (counted, 10, {"counts_refused": True}),
        ("budget = limit", 10, {"budget": limit}),
        ("budget = 0.95 of the limit, refused count", 10, {"budget": 0.95 * limit, "counts_refused": True}),
    ]
    sizes = (1, 5, 20, 100)
    rows = []
    for name, latency, options in cases:
        row = [name, str(latency)]
        for processes in sizes:
            cluster = Cluster(processes, IN_FLIGHT // processes, latency, limit, **options).run(120)
            first, later = share_of(cluster, limit, 0, 60), share_of(cluster, limit, 60, 120)
            row.append(f"{first[0]:.2f}, {later[0]:.2f}; {later[1]:.0%}; {cluster.most_tries}")
        rows.append(row)
    table(
        f"2a. {limit:.0f} calls/s shared by governors that do not know of each other: share of the ideal in the first "
        "minute, and in the second; share of requests refused in the second; most tries of a prompt",
        ["", "seconds an answer", *(f"{processes} × {IN_FLIGHT // processes:,}" for processes in sizes)],
        rows,
    )


def print_churn(limit: float = 500) -> None:
    rows = []
    for is_empty in (False, True):
        for delay in (0, 1, 10):
            cluster = churn(delay, is_empty=is_empty, limit=limit)
            peak = max(cluster.sent[second] for second in range(120, 150)) / limit
            refused = sum(cluster.sent[second] - cluster.taken[second] for second in range(120, 150))
            left, came = share_of(cluster, limit, 60, 90)[0], share_of(cluster, limit, 120, 150)[0]
            rows.append(
                ["empty" if is_empty else "full", delay, f"{left:.2f}", f"{peak:.2f}", f"{refused:,}", f"{came:.2f}"]
            )
    heads = ["a new share begins", "delay, s", "share of the ideal, 30 s from leaving", "worst second after coming"]
    table(
        f"2b. 10 of 20 processes leave, and come back a minute later; budget = limit = {limit:.0f} calls/s, 10 s each",
        [*heads, "refused", "share of the ideal, 30 s from coming"],
        rows,
    )


def print_scheduler(measured: dict[int, Measured]) -> None:
    lumps = PROCESSES / LUMP
    rows = []
    for latency in LATENCIES:
        rate = rate_of(IN_FLIGHT, latency)
        for answer, cost in measured.items():
            size = rate * cost.pickled
            rows.append(
                [
                    latency,
                    f"{answer:,}",
                    f"{rate * TASK_CPU / 5:.0%} to {rate * TASK_CPU:.0%}",
                    f"{rate * (LUMP_CPU + cost.pickled * BYTE_CPU):.0%}",
                    f"{lumps:.0f} × {size / lumps / 1e3:,.1f} kB",
                    f"{lumps * LUMP_CPU + size * BYTE_CPU:.1%}",
                    math.ceil(rate * TASK_CPU / 0.1),
                    f"{rate * cost.caller:.0%}",
                ]
            )
    heads = [
        "seconds an answer",
        "tokens",
        "a task a prompt",
        "a lump a result",
        "lumps a second",
        "lumps",
    ]
    table(
        "3. The scheduler and the caller, in shares of one core (over 100 %: cannot)",
        [*heads, "prompts a batch, for a tenth of a core", "the caller, with journal"],
        rows,
    )


def print_journal(measured: dict[int, Measured]) -> None:
    heads = ["tokens an answer", "bytes a line", "line_of, µs", "append, µs", "unpickling, µs", "lines/s", "MB/s"]
    table(
        "4a. The journal, measured now: what one caller can write (the best of 5 rounds, fsync not among them)",
        heads,
        (
            [
                f"{answer:,}",
                f"{cost.lines:,.0f}",
                *(f"{seconds * 1e6:.1f}" for seconds in (cost.line, cost.append, cost.unpickle)),
                f"{1 / cost.caller:,.0f}",
                f"{cost.lines / cost.caller / 1e6:,.0f}",
            ]
            for answer, cost in measured.items()
        ),
    )
    table(
        "4b. A journal of 10 million lines",
        ["tokens an answer", "GB on disk", "seconds to resume", "GB of memory for the names", "hours of tier 5"],
        (
            [
                f"{answer:,}",
                f"{cost.lines / 100:,.0f}",
                f"{cost.resume * 1e7:,.0f}",
                f"{CUSTOM_ID_BYTES / 100:.1f}",
                f"{1e7 / allowed('tier 5', answer) / 3600:.1f}",
            ]
            for answer, cost in measured.items()
        ),
    )


def print_cpu() -> None:
    table(
        f"5. The client's CPU, {CALL_CPU * 1e6:.0f} µs a call",
        ["seconds an answer", "cores in all", "cores a machine", "processes a machine, each half of a core at most"],
        (
            [
                latency,
                f"{(cores := rate_of(IN_FLIGHT, latency) * CALL_CPU):.2f}",
                f"{cores / MACHINES:.3f}",
                math.ceil(cores / MACHINES / 0.5),
            ]
            for latency in LATENCIES
        ),
    )


def breaks(measured: dict[int, Measured], answer: int) -> list[tuple[str, float]]:
    """Return what can break, with the calls a second at which it does, the first one first."""
    cost = measured[answer]
    # A lump costs the same whatever is in it: what is left of a core takes bytes.
    lumps = (1 - PROCESSES / LUMP * LUMP_CPU) / (cost.pickled * BYTE_CPU)
    found = [(f"provider, {tier}", allowed(tier, answer)) for tier in TIERS]
    found += [
        ("scheduler, a task a prompt, at 1 ms", 1 / TASK_CPU),
        ("scheduler, a task a prompt, at 0.2 ms", 5 / TASK_CPU),
        ("scheduler, results in lumps", lumps),
        ("the caller, with journal", 1 / cost.caller),
        ("client's CPU, one process a machine", MACHINES / CALL_CPU),
        ("network of the caller, 1 Gbit/s", 125e6 / cost.pickled),
    ]
    return sorted(found, key=lambda one: one[1])


def print_breaks(measured: dict[int, Measured]) -> None:
    for answer in ANSWERS:
        table(
            f"6. Where it breaks, the first one first, with answers of {answer:,} tokens",
            [
                "what",
                "calls/s",
                *(f"workers fed at {latency} s" for latency in LATENCIES),
                f"{IN_FLIGHT:,} are fed from",
            ],
            (
                [
                    what,
                    f"{rate:,.0f}",
                    *(f"{rate * latency:,.0f}" for latency in LATENCIES),
                    f"{IN_FLIGHT / rate:,.2g} s" if IN_FLIGHT / rate < 10 else f"{IN_FLIGHT / rate:,.0f} s",
                ]
                for what, rate in breaks(measured, answer)
            ),
        )


def check(limit: float = 50, latency: float = 1.0, seconds: int = 40) -> None:
    """Hold the simulation against real pools and a real server."""
    rows = []
    for pools, places in ((1, 200), (5, 40), (20, 10)):
        simulated = Cluster(pools, places, latency, limit, spread=0, round_trip=0.005).run(seconds)
        shares = [_really(pools, places, latency, limit, seconds), share_of(simulated, limit, 0, seconds)]
        rows.append([f"{pools} × {places}", *(f"{taken:.2f}; {refused:.0%}" for taken, refused in shares)])
    table(
        f"{limit} calls/s, {latency} s an answer, the first {seconds} s: share of the ideal; share refused",
        ["pools", "real", "simulated"],
        rows,
    )


def _really(pools: int, places: int, latency: float, limit: float, seconds: int) -> tuple[float, float]:
    with FakeChatServer(latency=latency, rate_limit=RateLimit(limit, limit, 1.0)) as server:
        # Models of their own, or equal pools might share what they know.
        made = [ChatPool(places, base_url=server.url, model=f"m{number}", max_tries=100) for number in range(pools)]
        with ThreadPoolExecutor(pools) as threads:
            prompts = ["a"] * int(2 * limit * seconds)
            for run in [threads.submit(pool.map, prompts, deadline=seconds, progress=False) for pool in made]:
                run.result()
        for pool in made:
            pool.close()
        sent = len(server.requests)
    return (sent - server.refusals) / limit / seconds, server.refusals / sent


def main() -> None:
    if "--check" in sys.argv:
        check()
        return
    random.seed(1)
    measured = {answer: measure(answer) for answer in ANSWERS}
    print_demand()
    print_governors()
    print_churn()
    print_scheduler(measured)
    print_journal(measured)
    print_cpu()
    print_breaks(measured)


if __name__ == "__main__":
    main()
