"""The command ``chatpool``."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence

from . import ChatPool, __version__
from .results import Answers
from .testing import AnyReply, FakeChatServer, RateLimit, Reply, Request

_DEMO_PROMPTS = 300
_DEMO_SEED = 7
_DEMO_STALL = "What is 40 × 40?"  # the prompt whose first reply never comes
_SHOWN_ANSWERS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 all answered, 1 some failed, 2 bad usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output left; Python would complain once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatpool", description="Send many prompts to an OpenAI-compatible chat API from plain threads."
    )
    parser.add_argument("--version", action="version", version=f"chatpool {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="see it at work, with no key and no network",
        description="Start a fake server on this machine, with latency, a rate limit, errors and a stall, "
        "and send it a few hundred prompts through the real client.",
        epilog="example: chatpool demo",
    )
    demo.set_defaults(run=_demo)
    return parser


def _demo(args: argparse.Namespace) -> int:
    print("A fake server: answers in 0.1 to 0.4 s, at most 60 a second, one in 25 is a 500, one never comes.\n")
    limit = RateLimit(per_second=60, burst=30, retry_after=0.3)
    with FakeChatServer(rate_limit=limit, key="sk-demo", reply=_demo_reply) as server:
        server.script(_DEMO_STALL, Reply(fault="stall"), Reply("at the second try", delay=0.2))
        print(f'with ChatPool(max_workers=20, base_url="{server.url}", api_key=…, timeout=(2, 1)) as pool:')
        print("    answers = pool.map(prompts)\n", flush=True)
        prompts = [f"What is {number} × {number}?" for number in range(_DEMO_PROMPTS)]
        with ChatPool(20, base_url=server.url, api_key="sk-demo", timeout=(2, 1)) as pool:
            answers = pool.map(prompts)
    _show(answers)
    return 1 if answers.failures else 0


def _demo_reply(request: Request) -> AnyReply:
    """Answer after a while, or fail; the same for the same request, so that every demo goes much the same way."""
    chance = random.Random(f"{_DEMO_SEED} {request.id}")
    delay = chance.uniform(0.1, 0.4)
    if chance.random() < 0.04:
        return Reply(status=500, delay=delay)
    number = int(request.prompt.split()[2])
    return Reply(f"{number} × {number} = {number * number}", delay=delay)


def _show(answers: Answers) -> None:
    print(f"answers[:{_SHOWN_ANSWERS}] == {list(answers[:_SHOWN_ANSWERS])}")
    stalled = next(result for result in answers.results if result.prompt == _DEMO_STALL)
    print(f"prompt {stalled.index} took {stalled.attempts} requests and {stalled.elapsed:.1f} s: {stalled.text}")
    print("\nanswers.summary():")
    print(answers.summary())
