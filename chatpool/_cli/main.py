"""The command ``chatpool``: its words, and what they do."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import threading
from collections.abc import Sequence
from typing import Any

from chatpool import DEFAULT_MODEL, ChatPool, __version__
from chatpool.errors import ChatPoolError, ConfigurationError

from .run import Job, Stopped, dry_run, leave_stdout, run

_EXAMPLES = """examples:
  chatpool run prompts.txt -o answers.jsonl                one prompt a line
  chatpool run prompts.txt --text > answers.txt            plain answers, one a line
  chatpool run batch.jsonl -o output.jsonl --workers 50    a file for OpenAI's Batch API, as it is
  chatpool run table.csv -o answers.jsonl --dry-run        what it would take; sends nothing
  chatpool run prompts.txt -o answers.jsonl --base-url http://localhost:8000/v1 --model llama3.2
  chatpool run prompts.txt -o answers.jsonl --dask tcp://scheduler:8786    through a cluster's workers
  cat prompts.txt | chatpool run - -o answers.jsonl --param temperature=0 --param max_tokens=200

The same command again sends only what has no good answer in the output file: after Ctrl-C, a crash, or an
edit of the input. The key is read from OPENAI_API_KEY. Exit codes: 0 all answered, 1 some failed, 2 bad usage
or configuration, 130 interrupted."""

_INPUT = """the prompts: the Batch API's JSONL, JSONL of strings or of objects with "prompt" or "messages", CSV with a
column "prompt", or text with one prompt a line; - is stdin"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 all answered, 1 some failed, 2 bad usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except Stopped as stopped:
        return _say(str(stopped), stopped.exit_code)
    except (ChatPoolError, argparse.ArgumentTypeError) as error:
        return _say(f"chatpool: {error}", 2)
    except BrokenPipeError:  # whoever read our output left
        leave_stdout()
        return 1


def _say(told: str, exit_code: int) -> int:
    print(told, file=sys.stderr)
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatpool",
        description="Send many prompts to an OpenAI-compatible chat API from plain threads.",
        epilog="chatpool COMMAND --help tells more, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"chatpool {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_report(commands)
    _add_demo(commands)
    _add_fake_server(commands)
    return parser


def _add_run(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="answer the prompts of a file; resumes where it was stopped",
        description="Send every prompt of a file, and write each answer as it comes to a file in the format of the "
        "Batch API's output.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    add = parser.add_argument
    add("input", metavar="INPUT", help=_INPUT)
    add("-o", "--output", metavar="OUTPUT", help="the answers; also what the next run resumes from")
    add("--text", action="store_true", help="write plain answers to stdout, one a line, in order; a newline is \\n")
    add("--dry-run", action="store_true", help="only tell the calls, the tokens, and what is done already")
    add("--input-format", choices=("jsonl", "csv", "text"), help="default: by the file's name or its first line")
    add("--model", default=DEFAULT_MODEL, help="for chat prompts that name none (default: %(default)s)")
    add("--base-url", metavar="URL", help="default: OPENAI_BASE_URL, else OpenAI's")
    add("--system", metavar="TEXT", help="a system message before every plain prompt")
    add("--param", metavar="KEY=VALUE", action="append", default=[], type=_param, help="a field of every body; repeat")
    add("--workers", metavar="N", type=int, default=20, help="calls in flight at most (default: %(default)s)")
    add("--rpm", metavar="N", type=float, help="requests a minute at most")
    add("--tpm", metavar="N", type=float, help="tokens a minute at most")
    add("--timeout", metavar="SECONDS", type=_timeout, default=(5.0, 120.0), help="CONNECT,READ (default: 5,120)")
    add("--max-tries", metavar="N", type=int, default=6, help="tries for one prompt (default: %(default)s)")
    add("--max-wait", metavar="SECONDS", type=float, default=60.0, help="between two tries (default: %(default)g)")
    add("--deadline", metavar="SECONDS", type=float, help="for the whole run; what is not done by then fails")
    add("--max-requests", metavar="N", type=int, help="stop sending after so many")
    add("--max-tokens", metavar="N", type=int, help="stop sending once the answers have cost so many, as they report")
    add(
        "--retry-failed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask again what failed in an earlier run (default: yes)",
    )
    add("--dask", metavar="SCHEDULER", help="send through a Dask cluster's workers: an address, or a scheduler file")
    add("--progress", action=argparse.BooleanOptionalAction, default=None, help="default: on a terminal")


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="draw what a journal tells, as one page of HTML",
        description="Read the answers that 'chatpool run' or a journal= wrote, and draw latencies, calls in flight, "
        "refusals, tokens and failures as one page of HTML that needs nothing else. Also while the run goes on.",
        epilog="example: chatpool report answers.jsonl -o report.html",
    )
    parser.set_defaults(run=_report)
    parser.add_argument("journal", metavar="JOURNAL", help="the answers")
    parser.add_argument("-o", "--output", metavar="HTML", help="default: the journal's name with .html")


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="see it at work, with no key and no network",
        description="Start a fake server on this machine, with latency, a rate limit, errors and a stall, "
        "and send it a few hundred prompts through the real client.",
        epilog="example: chatpool demo",
    )
    parser.set_defaults(run=_demo)


def _add_fake_server(commands: Any) -> None:
    parser = commands.add_parser(
        "fake-server",
        help="a chat API on this machine that answers every prompt with itself",
        description="Serve a fake chat API on 127.0.0.1 until Ctrl-C: for tests of programs in any language.",
        epilog="examples:\n  chatpool fake-server --port 8080\n"
        "  chatpool fake-server --port 8080 --latency 0.3 --error-rate 0.05 --rpm 600 --key sk-test\n"
        "  chatpool run prompts.txt --text --base-url http://127.0.0.1:8080/v1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_fake_server)
    add = parser.add_argument
    add("--port", type=int, default=0, help="default: a free one")
    add("--latency", metavar="SECONDS", type=float, default=0.0, help="before each answer")
    add("--error-rate", metavar="SHARE", type=float, default=0.0, help="of the requests that fail with 500: 0 to 1")
    add("--rpm", metavar="N", type=float, help="requests a minute; what comes faster is refused with 429")
    add("--key", help="refuse every other key with 401")
    add("--seed", type=int, default=0, help="of the errors' randomness (default: %(default)s)")


def _run(args: argparse.Namespace) -> int:
    if args.output is None and not (args.text or args.dry_run):
        raise ConfigurationError("say where the answers go: -o OUTPUT, or --text for plain text on stdout")
    if args.output == "-":
        raise ConfigurationError("-o needs a file, from which the next run resumes; --text writes to stdout")
    pool = ChatPool(
        args.workers,
        model=args.model,
        base_url=args.base_url,
        system=args.system,
        params=dict(args.param),
        timeout=args.timeout,
        max_tries=args.max_tries,
        max_wait=args.max_wait,
        requests_per_minute=args.rpm,
        tokens_per_minute=args.tpm,
        progress=args.progress,
    )
    with pool:
        job = Job(
            pool,
            args.input,
            args.output,
            kind=args.input_format,
            as_text=args.text,
            deadline=args.deadline,
            retries_failed=args.retry_failed,
            max_requests=args.max_requests,
            max_tokens=args.max_tokens,
            dask=args.dask,
        )
        return dry_run(job) if args.dry_run else run(job)


def _report(args: argparse.Namespace) -> int:
    from .report import write_report  # noqa: PLC0415 - it is not needed for anything else

    output = args.output or os.path.splitext(args.journal)[0] + ".html"
    write_report(args.journal, output)
    return _say(f"the report is in {output}", 0)


def _demo(args: argparse.Namespace) -> int:
    from .demo import demo  # noqa: PLC0415 - the fake server is not needed for anything else

    return demo()


def _fake_server(args: argparse.Namespace) -> int:
    from chatpool.testing import FakeChatServer, RateLimit, chaos  # noqa: PLC0415 - likewise

    _check_fake_server(args)
    limit = None
    if args.rpm is not None:
        limit = RateLimit(args.rpm / 60, max(1.0, args.rpm / 60), retry_after=60 / args.rpm)
    chance = random.Random(args.seed)
    try:
        server = FakeChatServer(
            port=args.port,
            latency=(lambda: chance.uniform(0.5, 1.5) * args.latency) if args.latency else 0.0,
            rate_limit=limit,
            key=args.key,
            reply=chaos(args.error_rate, seed=args.seed) if args.error_rate else None,
        )
    except OSError as error:
        raise ConfigurationError(f"cannot serve on port {args.port}: {error.strerror}") from None
    with server:
        print(f"serving on {server.url}, until Ctrl-C", flush=True)
        threading.Event().wait()
    return 0


def _check_fake_server(args: argparse.Namespace) -> None:
    if not 0 <= args.error_rate <= 1:
        raise ConfigurationError(f"--error-rate is a share, from 0 to 1, not {args.error_rate:g}")
    if not 0 <= args.latency < threading.TIMEOUT_MAX / 2:
        raise ConfigurationError(f"--latency must be in seconds, from 0 on, not {args.latency:g}")
    if args.rpm is not None and not 0 < args.rpm < math.inf:
        raise ConfigurationError(f"--rpm must be more than 0, not {args.rpm:g}")
    if not 0 <= args.port < 2**16:
        raise ConfigurationError(f"--port must be from 0 to {2**16 - 1}, not {args.port}")


def _param(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; the value is JSON, or else a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _timeout(text: str) -> float | tuple[float, float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither SECONDS nor CONNECT,READ")
    return numbers[0], numbers[1]
