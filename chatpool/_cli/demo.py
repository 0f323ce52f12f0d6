"""``chatpool demo``: the real client against the fake server, without a key or a network."""

from __future__ import annotations

import random
from typing import Any

from chatpool._protocol.answers import Answers
from chatpool.pool import ChatPool
from chatpool.testing import AnyReply, FakeChatServer, RateLimit, Reply, Request

_PROMPTS = 300
_SEED = 7
_STALL = "What is 40 × 40?"  # the prompt whose first reply never comes
_SHOWN_ANSWERS = 3


def demo() -> int:
    """Run the demo; return the exit code."""
    print("A fake server: answers in 0.1 to 0.4 s, at most 60 a second, one in 25 is a 500, one never comes.\n")
    limit = RateLimit(per_second=60, burst=30, retry_after=0.3)
    with FakeChatServer(rate_limit=limit, key="sk-demo", reply=_reply) as server:
        server.script(_STALL, Reply(fault="stall"), Reply("at the second attempt", delay=0.2))
        print(f'with ChatPool(max_workers=20, base_url="{server.url}", api_key=…, timeout=(2, 1)) as pool:')
        print("    answers = pool.map(prompts)\n", flush=True)
        prompts = [f"What is {number} × {number}?" for number in range(_PROMPTS)]
        with ChatPool(20, base_url=server.url, api_key="sk-demo", timeout=(2, 1)) as pool:
            answers = pool.map(prompts)
    _show(answers)
    return 1 if answers.failures else 0


def _reply(request: Request) -> AnyReply:
    """Answer after a delay, or fail; the same request gets the same reply, so all demos are much alike."""
    rng = random.Random(f"{_SEED} {request.id}")
    delay = rng.uniform(0.1, 0.4)
    if rng.random() < 0.04:
        return Reply(status=500, delay=delay)
    number = int(request.prompt.split()[2])
    return Reply(f"{number} × {number} = {number * number}", delay=delay)


def _show(answers: Answers[Any]) -> None:
    print(f"answers[:{_SHOWN_ANSWERS}] == {list(answers[:_SHOWN_ANSWERS])}")
    stalled = next(result for result in answers.results if result.prompt == _STALL)
    print(f"prompt {stalled.index} took {stalled.attempts} requests and {stalled.elapsed:.1f} s: {stalled.text}")
    print("\nanswers.summary():")
    print(answers.summary())
