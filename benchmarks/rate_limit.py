"""Every shape of rate limit: the time over the ideal, the prompts lost, the refusals.

python benchmarks/rate_limit.py [NAME …]             simulated, in seconds of CPU, with chatpool's own ``Limits``
python benchmarks/rate_limit.py --real [NAME …]      with ChatPool and FakeChatServer, in real time
python benchmarks/rate_limit.py --openai [NAME …]    likewise, and the OpenAI SDK in threads beside it

With --rounds 3, shapes that take less than 20 s are played three times, by turns with each client; medians are shown.
With --jitter 0.2, the times of the simulation vary by about a fifth. NAME: a part of a shape's name.

The limits are not announced: 40 workers send all prompts as fast as they may.
"""

from __future__ import annotations

import argparse
import copy
import heapq
import itertools
import math
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatpool._limits.limits import Limits
from chatpool._protocol.announced_limits import announced_limits
from chatpool.errors import InternalServerError, RateLimitError
from chatpool.testing import (
    Announcing,
    FixedWindow,
    InFlight,
    Limit,
    PerModel,
    RandomRefusals,
    RateLimit,
    RefusedPrompts,
    Reply,
    Request,
    Shared,
    SlidingWindow,
)

WORKERS, MOST_TRIES, MOST_SENDS, MAX_WAIT = 40, 6, 30, 60.0  # the pool's defaults, but for the workers
SEND = 0.0003  # seconds that it takes to send a request
SHORT = 20  # seconds: such shapes are played in several rounds
REFUSE = 0.002  # seconds until a refusal is back
TRAVEL = 0.0005  # seconds that a request is on its way, on average, where times vary


# The shapes.


class Prompt:
    """A prompt, and the call that sends it."""

    def __init__(self, index: int, text: str = "a", model: str = "m") -> None:
        self.index, self.text, self.model = index, text, model
        self.tokens = 1 + len(text) // 4
        self.attempts = self.tries = 0
        self.sent_at = 0.0
        self.answers_before = self.answers_at_start = 0
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        self.request = Request(f"req_{index}", "/v1/chat/completions", {}, body, 0, 0.0)


def plain(count: int) -> list[Prompt]:
    return [Prompt(index) for index in range(count)]


def with_oversized(count: int, oversized: int, text: str = "oversized") -> list[Prompt]:
    texts = [text] * oversized + ["a"] * (count - oversized)
    random.Random(3).shuffle(texts)
    return [Prompt(index, text) for index, text in enumerate(texts)]


def of_two_models(count: int) -> list[Prompt]:
    return [Prompt(index, model="slow" if index % 2 else "fast") for index in range(count)]


def of_sizes(count: int) -> list[Prompt]:
    """Every tenth has 4,000 tokens, the others 50."""
    return [Prompt(index, "x" * 4 * (50 if index % 10 else 4000)) for index in range(count)]


def is_oversized(request: Request) -> bool:
    return request.prompt.startswith("oversized")


@dataclass(frozen=True)
class Shape:
    """A limit, what is sent to it, and what is to be reached: ``seconds`` and ``refusals`` at most."""

    limit: Limit
    prompts: Callable[[], list[Prompt]]
    latency: float
    ideal: float  # seconds
    seconds: float
    refusals: float = math.inf
    lost: int = 0
    model: str | None = None  # only the prompts of this model count


RESET = {"x-ratelimit-limit-requests": "100", "x-ratelimit-reset-requests": "30s"}
SHAPES = {
    "20 a second": Shape(RateLimit(20, 10, 0.3), lambda: plain(300), 0.2, 14.7, 15.4, refusals=15),
    "20 a second, no delay named": Shape(RateLimit(20, 10), lambda: plain(300), 0.2, 14.7, 16.2),
    "20 a second, long answers": Shape(RateLimit(20, 10, 1), lambda: plain(300), 1.0, 15.5, 18),
    "1 in 10 refused at random": Shape(RandomRefusals(0.1), lambda: plain(300), 0.2, 1.8, 5.6),
    "1 in 10 refused at random, with a delay": Shape(RandomRefusals(0.1, 1), lambda: plain(300), 0.2, 1.8, 20),
    "3 in 10 refused at random": Shape(RandomRefusals(0.3), lambda: plain(300), 0.2, 2.2, 8.6),
    "4 at once, else 503": Shape(InFlight(4, 503), lambda: plain(200), 1.0, 50, 65),
    "10 at once, else 529": Shape(InFlight(10, 529), lambda: plain(200), 1.0, 20, 26),
    "4 at once, else 429": Shape(InFlight(4), lambda: plain(200), 1.0, 50, 65),
    "4 at once, else 429 and 60 s": Shape(InFlight(4, 429, 60), lambda: plain(60), 1.0, 15, 141),
    "30 of 300 always refused": Shape(
        RefusedPrompts(is_oversized), lambda: with_oversized(300, 30), 0.2, 2.2, 4.4, lost=30
    ),
    "30 of 300 too long": Shape(
        RefusedPrompts(is_oversized), lambda: with_oversized(300, 30, "oversized" * 2000), 0.2, 2.2, 4.4, lost=30
    ),
    "3 of 300 always refused": Shape(RefusedPrompts(is_oversized), lambda: with_oversized(300, 3), 0.2, 1.6, 4, lost=3),
    "refused for ever": Shape(RandomRefusals(1), lambda: plain(5), 0.2, 0, 5 * MAX_WAIT, lost=5),
    "windows of 60 s": Shape(FixedWindow(100, 60, 1), lambda: plain(250), 0.2, 120, 132, refusals=100),
    "windows of 60 s, from the middle": Shape(
        FixedWindow(100, 60, passed=30), lambda: plain(250), 0.2, 90, 100, refusals=100
    ),
    "windows of 60 s, announced": Shape(
        FixedWindow(100, 60, passed=30, announced=True), lambda: plain(250), 0.2, 90, 94.5, refusals=5
    ),
    "seven windows of 60 s": Shape(FixedWindow(100, 60), lambda: plain(650), 0.2, 360, 370, refusals=130),
    "a bucket, announced": Shape(RateLimit(20, 60, announced=True), lambda: plain(300), 0.2, 12, 13, refusals=20),
    "0 left, which is not so": Shape(
        Announcing({**RESET, "x-ratelimit-remaining-requests": "0"}), lambda: plain(2000), 0.2, 10, 10.5
    ),
    "-1 left": Shape(Announcing({**RESET, "x-ratelimit-remaining-requests": "-1"}), lambda: plain(2000), 0.2, 10, 10.5),
    "20 a second, of which another client takes 10": Shape(
        Shared(RateLimit(20, 20, 1), 10), lambda: plain(300), 0.2, 28, 30
    ),
    "10 in windows of 1 s": Shape(FixedWindow(10, 1), lambda: plain(300), 0.2, 29, 34.8),
    "10 in windows of 1 s, with a delay": Shape(FixedWindow(10, 1, 1), lambda: plain(300), 0.2, 29, 34.8),
    "one of two models limited": Shape(
        PerModel({"slow": RateLimit(2)}), lambda: of_two_models(200), 0.2, 0.5, 1.5, model="fast"
    ),
    "tokens": Shape(RateLimit(1500, 5000, unit="tokens"), lambda: of_sizes(300), 0.2, 86, 94.6),
    "tokens, exact delays": Shape(RateLimit(1500, 5000, "exact", unit="tokens"), lambda: of_sizes(300), 0.2, 86, 94.6),
    "sliding window, refusals count": Shape(
        SlidingWindow(60, 10, refusals_count=True), lambda: plain(300), 0.2, 40, 60
    ),
}


# The simulation.


@dataclass
class Outcome:
    seconds: float = 0.0
    lost: int = 0
    refusals: int = 0
    figures: dict[str, str] = field(default_factory=dict)  # as the summary shows them
    ended: dict[int, float] = field(default_factory=dict)  # when each prompt was, by its index


class World:
    """Events in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def at(self, moment: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), action, arguments))

    def run(self) -> None:
        while self._events:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)


class Server:
    """Takes ``latency`` seconds for an answer, and ``refuse`` seconds for a refusal.

    ``jitter``: all times vary by about this share, and requests overtake one another on their way.
    """

    def __init__(
        self, limit: Limit, latency: float, refuse: float = REFUSE, *, jitter: float = 0.0, seed: int = 0
    ) -> None:
        self.limit, self.latency, self.refuse = copy.deepcopy(limit), latency, refuse
        self.in_flight = 0
        self._jitter, self._random = jitter, random.Random(seed)

    def receive(self, world: World, prompt: Prompt, reply: Callable[[Prompt, Reply], None]) -> None:
        if self._jitter:
            world.at(world.now + self._random.expovariate(1 / TRAVEL), self._check, world, prompt, reply)
        else:
            self._check(world, prompt, reply)

    def _check(self, world: World, prompt: Prompt, reply: Callable[[Prompt, Reply], None]) -> None:
        refusal = self.limit.check(prompt.request, world.now, self.in_flight)
        if refusal is not None:
            world.at(world.now + self._vary(self.refuse), reply, prompt, refusal)
            return
        self.in_flight += 1
        answer = Reply(headers=self.limit.headers(world.now))
        world.at(world.now + self._vary(self.latency), self._answer, prompt, answer, reply)

    def _vary(self, seconds: float) -> float:
        return seconds * self._random.lognormvariate(-(self._jitter**2) / 2, self._jitter)  # its mean is 1

    def _answer(self, prompt: Prompt, answer: Reply, reply: Callable[[Prompt, Reply], None]) -> None:
        self.in_flight -= 1
        reply(prompt, answer)


class Pool:
    """Does with ``Limits`` what chatpool's scheduler does."""

    def __init__(
        self, world: World, server: Server, prompts: Iterable[Prompt], *, workers: int = WORKERS, seed: int = 0
    ) -> None:
        self.world, self.server, self.workers = world, server, workers
        self.limits = Limits(workers, longest_wait=MAX_WAIT, uniform=random.Random(seed).uniform)
        self.outcome = Outcome()
        self._new: dict[str, deque[Prompt]] = {}
        for prompt in prompts:
            self._new.setdefault(prompt.model, deque()).append(prompt)
        self._ready: dict[str, deque[Prompt]] = {model: deque() for model in self._new}
        self._heads: dict[str, Prompt] = {}
        self._left = sum(map(len, self._new.values()))
        self._in_flight = 0
        self._busy_until, self._wakes_at = -math.inf, math.inf
        world.at(world.now, self._dispatch)

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def _dispatch(self) -> None:
        now = self.world.now
        if self._left == 0:
            return
        left = self.limits.outage_left(now)
        if left <= 0:
            self._cancel()
            return
        wake_at = now + left
        for model in list(self._new):
            if self._in_flight >= self.workers:
                return
            if now < self._busy_until:
                wake_at = min(wake_at, self._busy_until)
                break
            prompt = self._next(model)
            if prompt is None:
                continue
            delay, _ = self.limits.delay(now, prompt)
            if delay > 0:
                self._heads[model] = prompt
                wake_at = min(wake_at, now + max(delay, 1e-6))
            else:
                self._send(prompt)
                self._new[model] = self._new.pop(model)  # the next turn is another model's
                wake_at = self._busy_until = now + SEND
        if wake_at < math.inf:
            self._wake(wake_at)

    def _wake(self, moment: float) -> None:
        if not self.world.now < self._wakes_at <= moment:
            self._wakes_at = moment
            self.world.at(moment, self._woken, moment)

    def _woken(self, moment: float) -> None:
        if moment == self._wakes_at:
            self._wakes_at = math.inf
            self._dispatch()

    def _next(self, model: str) -> Prompt | None:
        lines = [self._ready[model], self._new[model]]
        if self.limits.prefers_new(model):
            lines.reverse()
        head = self._heads.pop(model, None)
        if head is not None and not (self.limits.prefers_new(model) and head.attempts and self._new[model]):
            return head
        if head is not None:
            self._ready[model].appendleft(head)
        return next((line.popleft() for line in lines if line), None)

    def _send(self, prompt: Prompt) -> None:
        answers = self.limits.answers_of(prompt.model)
        prompt.answers_before = prompt.answers_at_start if prompt.attempts else answers
        prompt.answers_at_start = answers
        prompt.sent_at = self.world.now
        prompt.attempts += 1
        self._in_flight += 1
        self.limits.sent(self.world.now, prompt)
        self.server.receive(self.world, prompt, self._handle)

    def _handle(self, prompt: Prompt, reply: Reply) -> None:
        now = self.world.now
        self._in_flight -= 1
        announced = announced_limits(reply.headers, 0.0)
        if reply.status == 200:
            self.limits.accepted(now, prompt, None, announced)
            self.limits.left_wire(now, prompt)
            self.limits.answered(prompt)
            self._end(prompt)
        else:
            self._refused(now, prompt, reply, announced)
        self._dispatch()

    def _refused(self, now: float, prompt: Prompt, reply: Reply, announced: Any) -> None:
        self.outcome.refusals += 1
        milliseconds = reply.headers.get("retry-after-ms")
        asked = None if milliseconds is None else float(milliseconds) / 1000
        kind = RateLimitError if reply.status == 429 else InternalServerError
        prompt.tries += self.limits.answers_of(prompt.model) <= prompt.answers_before
        wait = self.limits.refused(now, prompt, kind("", retry_after=asked), announced)
        self.limits.left_wire(now, prompt)
        if prompt.tries >= MOST_TRIES or prompt.attempts >= MOST_SENDS:
            self.outcome.lost += 1
            self._end(prompt)
        else:
            self.world.at(now + wait, self._retry, prompt)

    def _retry(self, prompt: Prompt) -> None:
        self._ready[prompt.model].append(prompt)
        self._dispatch()

    def _end(self, prompt: Prompt) -> None:
        self.limits.ended(prompt)
        self.outcome.ended[prompt.index] = self.outcome.seconds = self.world.now
        self._left -= 1

    def _cancel(self) -> None:
        self.outcome.lost += self._left
        self.outcome.seconds = self.world.now
        self._left = 0


def simulate(
    shape: Shape, *, seed: int = 0, refuse: float = REFUSE, workers: int = WORKERS, jitter: float = 0.0
) -> Outcome:
    """Play a shape; ``refuse``: seconds until a refusal is back; ``jitter``: as ``Server`` has it."""
    limit = shape.limit
    if isinstance(limit, RandomRefusals):
        limit = RandomRefusals(limit.share, limit.retry_after, limit.status, seed)
    world, prompts = World(), shape.prompts()
    server = Server(limit, shape.latency, refuse, jitter=jitter, seed=seed)
    pool = Pool(world, server, prompts, workers=workers, seed=seed)
    world.run()
    outcome = pool.outcome
    assert pool.is_done, "nothing is sent any more"
    outcome.figures = pool.limits.figures()
    if shape.model is not None:
        outcome.seconds = max(outcome.ended[prompt.index] for prompt in prompts if prompt.model == shape.model)
    return outcome


def share(pools: int, per_second: float, seconds: float, *, workers: int = 10, latency: float = 1.0) -> list[float]:
    """Let many pools share a limit; return the requests a second that each gets, and the share of refusals."""
    world = World()
    server = Server(RateLimit(per_second, per_second, 1), latency, 0.05)
    made = []
    for number in range(pools):
        prompts = plain(int(2 * per_second * seconds))
        made.append(Pool(world, server, prompts, workers=workers, seed=number))
    world.at(seconds, world._events.clear)
    world.run()
    answered = [len(pool.outcome.ended) / seconds for pool in made]
    refusals = sum(pool.outcome.refusals for pool in made)
    return [*answered, refusals / (refusals + sum(answered) * seconds)]


# In real time.


def measure(shape: Shape, client: Callable[[str, list[Prompt], str | None], tuple[float, int]]) -> Outcome:
    from chatpool.testing import FakeChatServer

    with FakeChatServer(latency=shape.latency, rate_limit=shape.limit) as server:
        seconds, lost = client(server.url, shape.prompts(), shape.model)
        return Outcome(seconds, lost, server.refusals)


def with_chatpool(url: str, prompts: list[Prompt], model: str | None) -> tuple[float, int]:
    from chatpool import ChatPool

    requests = [{"model": prompt.model, "messages": prompt.request.body["messages"]} for prompt in prompts]
    last = 0.0
    with ChatPool(WORKERS, base_url=url, api_key="sk-bench", progress=False) as pool:
        began = time.monotonic()
        results = []
        for result in pool.imap_unordered(requests):
            results.append(result)
            if model in (None, prompts[result.index].model):
                last = time.monotonic() - began
    return last, sum(not result.ok for result in results)


def with_openai(url: str, prompts: list[Prompt], model: str | None) -> tuple[float, int]:
    from concurrent.futures import ThreadPoolExecutor

    from openai import OpenAI, OpenAIError

    client = OpenAI(base_url=url, api_key="sk-bench", max_retries=MOST_TRIES)
    began = time.monotonic()

    def ask(prompt: Prompt) -> tuple[Prompt, float, bool]:
        try:
            client.chat.completions.create(model=prompt.model, messages=prompt.request.body["messages"])
        except OpenAIError:
            return prompt, time.monotonic() - began, False
        return prompt, time.monotonic() - began, True

    with ThreadPoolExecutor(WORKERS) as threads:
        done = list(threads.map(ask, prompts))
    seconds = max(second for prompt, second, _ in done if model in (None, prompt.model))
    return seconds, sum(not is_ok for _, _, is_ok in done)


# The table.


def median(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the median of each figure."""
    middle = {
        name: sorted(getattr(outcome, name) for outcome in outcomes)[len(outcomes) // 2]
        for name in ("seconds", "lost", "refusals")
    }
    return Outcome(**middle)


def row(name: str, shape: Shape, outcomes: Sequence[Outcome]) -> str:
    cells = [name, f"{shape.ideal:g}", f"{shape.seconds:g}"]
    for outcome in outcomes:
        over = f"{outcome.seconds / shape.ideal:.2f}" if shape.ideal else "–"
        cells += [f"{outcome.seconds:.1f}", over, str(outcome.lost), str(outcome.refusals)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--openai", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--jitter", type=float, default=0.0)
    args = parser.parse_args()
    clients = {"chatpool": with_chatpool} if args.real or args.openai else {}
    if args.openai:
        clients["OpenAI SDK"] = with_openai
    heads = ["s", "× ideal", "lost", "refusals"]
    columns = [f"{name}: {head}" for name in clients or ["simulated"] for head in heads]
    print(f"| limit | ideal s | goal s | {' | '.join(columns)} |\n|---{'|---' * (2 + len(columns))}|")
    for name, shape in SHAPES.items():
        if not args.names or any(part in name for part in args.names):
            outcomes = [simulate(shape, jitter=args.jitter)]
            if clients:
                rounds = args.rounds if shape.ideal < SHORT else 1
                played = [[measure(shape, client) for client in clients.values()] for _ in range(rounds)]
                outcomes = [median(each) for each in zip(*played)]
            print(row(name, shape, outcomes))
            sys.stdout.flush()
    if not args.names and not clients:
        *shares, refused = share(20, 50, 120)
        spread = f"{min(shares):.2f} to {max(shares):.2f} a second"
        print(f"\n20 pools of 10 workers share 50 a second: {sum(shares):.1f} in all, {spread}, {refused:.0%} refused")


if __name__ == "__main__":
    main()
