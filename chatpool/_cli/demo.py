"""``chatpool demo``: the real client against the fake server, without a key or a network."""

from __future__ import annotations

import io
import random
import shutil
import sys
from typing import Any

from chatpool._protocol.answers import Answers
from chatpool.pool import ChatPool
from chatpool.testing import AnyReply, FakeChatServer, RateLimit, Reply, Request

_PROMPTS = 300
_SEED = 7
_TOO_LONG = "What is 2 times 2?"  # the prompt that the server rejects
_STALL = "What is 40 times 40?"  # the prompt whose first reply never comes
_SHOWN_ANSWERS = 4

_BEFORE = """A fake server on this machine answers in 0.1 to 0.4 s. It takes at most 60 requests a second,
fails one in 25 with a 500, never replies to one, and rejects one prompt.
"""
_AFTER = """
Next, with your own prompts: set OPENAI_API_KEY, or OPENAI_BASE_URL for another server, and run
    {command} run prompts.txt --text        # one prompt a line
or use chatpool in Python, as above. docs/quickstart.md goes on from here.
"""


def demo() -> int:
    """Run the demo; return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the summary is not all ASCII
    print(_BEFORE)
    limit = RateLimit(per_second=60, burst=30, retry_after=0.3)
    with FakeChatServer(rate_limit=limit, key="sk-demo", reply=_reply) as server:
        server.script(_STALL, Reply(fault="stall"), Reply("40 times 40 is 1600", delay=0.2))
        server.script(_TOO_LONG, Reply(status=400, body=_rejection()))
        print(f'with ChatPool(max_workers=20, base_url="{server.url}", api_key=…, timeout=(2, 1)) as pool:')
        print("    answers = pool.map(prompts)\n", flush=True)
        prompts = [f"What is {number} times {number}?" for number in range(_PROMPTS)]
        with ChatPool(20, base_url=server.url, api_key="sk-demo", timeout=(2, 1)) as pool:
            answers = pool.map(prompts)
    _show(answers)
    return 0 if [failure.prompt for failure in answers.failures] == [_TOO_LONG] else 1


def _reply(request: Request) -> AnyReply:
    """Answer after a delay, or fail; the same request gets the same reply, so all demos are much alike."""
    rng = random.Random(f"{_SEED} {request.id}")
    delay = rng.uniform(0.1, 0.4)
    if rng.random() < 0.04:
        return Reply(status=500, delay=delay)
    number = int(request.prompt.split()[2])
    return Reply(f"{number} times {number} is {number * number}", delay=delay)


def _rejection() -> dict[str, Any]:
    message = "this prompt is longer than the model's context (a reply of the fake server)"
    return {"error": {"message": message, "code": "context_length_exceeded"}}


def _show(answers: Answers[Any]) -> None:
    print(f">>> answers[:{_SHOWN_ANSWERS}]            # None where a call failed\n{list(answers[:_SHOWN_ANSWERS])}")
    for failure in answers.failures:
        print(f">>> answers.failures[0].error    # why\n{failure.error!r}")
    stalled = next(result for result in answers.results if result.prompt == _STALL)
    print(f">>> answers.results[{stalled.index}].attempts  # timed out after 1 s, then sent again\n{stalled.attempts}")
    print(f">>> print(answers.summary())\n{answers.summary()}")
    print(_AFTER.format(command=_command()), end="")


def _command() -> str:
    """Return the words with which this command is called: the environment's folder may not be in PATH."""
    if shutil.which("chatpool") is not None:
        return "chatpool"
    called = sys.argv[0]
    return f"{sys.executable} -m chatpool" if called.endswith(".py") else called
