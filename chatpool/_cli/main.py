"""The command ``chatpool``: its arguments, and the functions that they call."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import random
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from chatpool import DEFAULT_MODEL, ChatPool, __version__
from chatpool._files.choosing import EMBEDDINGS_PATH, Choice
from chatpool._files.inputs import FORMATS
from chatpool._files.permissions import logger as _file_logger
from chatpool._files.templates import Template
from chatpool._protocol.requests import CHAT_PATH
from chatpool._protocol.schemas import ResponseFormat, response_format_of
from chatpool._protocol.settings import DEFAULT_TIMEOUT
from chatpool.errors import ChatPoolError, ConfigurationError

from .dry_run import dry_run
from .run import RunAborted, RunOptions, mute_stdout, run
from .words import in_command_words

_EXAMPLES = """examples:
  chatpool run prompts.txt -o answers.jsonl                one prompt a line
  chatpool run prompts.txt --text > answers.txt            plain answers, one a line
  chatpool run batch.jsonl -o output.jsonl --workers 50    an input file of OpenAI's Batch API
  chatpool run table.csv -o answers.csv --template 'Translate into {lang}: {text}'
  chatpool run table.csv -o answers.csv --limit 3          try the first three prompts
  chatpool run table.csv -o answers.csv --dry-run          estimate calls, tokens and costs; sends nothing
  chatpool run table.csv -o answers.csv --price MODEL=0.10,0.50 --param max_tokens=200 --cost-budget 5
  chatpool run prompts.txt -o answers.jsonl --base-url http://localhost:8000/v1 --model llama3.2
  chatpool run prompts.txt -o answers.jsonl --dask tcp://scheduler:8786    through the workers of a cluster
  cat prompts.txt | chatpool run - -o answers.jsonl --param temperature=0 --param max_tokens=200

To continue after Ctrl-C, a crash or an edit of the input, run the same command again: it sends only the prompts
that have no good answer in OUTPUT. The API key is read from OPENAI_API_KEY. Exit codes: 0 all answered, 1 some
failed, 2 bad usage or configuration, 130 interrupted."""

_INPUT = """files of prompts: an input file of the Batch API, JSON or JSONL of strings or of objects with "prompt",
"messages" or "input", CSV, TSV or Parquet with a column "prompt", or text with one prompt a line; may be compressed,
or a pattern such as 'data/*.csv'; - is stdin"""


_YesOrNo = argparse.BooleanOptionalAction
_POOL_OPTIONS = [
    "base_url", "timeout", "idle_timeout", "max_tries", "max_wait", "requests_per_minute", "tokens_per_minute",
    "progress",
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 all answered, 1 some failed, 2 bad usage, 130 interrupted."""
    args = _parse(argv)
    try:
        with _file_messages_on_stderr():
            return int(args.run(args))
    except KeyboardInterrupt:
        return _report_to_user("interrupted", 130)
    except RunAborted as aborted:
        return _report_to_user(str(aborted), aborted.exit_code)
    except (ChatPoolError, argparse.ArgumentTypeError) as error:
        return _report_to_user(f"chatpool: {in_command_words(str(error))}", 2)
    except BrokenPipeError:  # the program that read our output is gone
        mute_stdout()
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; an unknown one is reported with the usage of its command, such as ``chatpool run``."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown:
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _report_to_user(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr)
    return exit_code


@contextmanager
def _file_messages_on_stderr() -> Iterator[None]:
    """Print the log messages about the permissions of files."""
    handler, level = logging.StreamHandler(), _file_logger.level
    handler.setFormatter(logging.Formatter("chatpool: %(message)s"))
    _file_logger.addHandler(handler)
    _file_logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        _file_logger.removeHandler(handler)
        _file_logger.setLevel(level)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatpool",
        description="Send many prompts to an OpenAI-compatible chat API from plain threads.",
        epilog="See chatpool COMMAND --help for the options of a command, and examples.",
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
        help="send the prompts of a file; can be interrupted and continued",
        description="Send every prompt of a file. Each answer is written as it arrives, in the format of the Batch "
        "API's output.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run, parser=parser)
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="+", help=_INPUT)
    add(
        "-o",
        "--output",
        metavar="OUTPUT",
        help="file for the answers, from which the next run continues; .csv, .tsv and .parquet are the input's table "
        "with the columns answer (or answer.FIELD for the fields of --schema) and error, and continue from "
        "OUTPUT.chatpool.jsonl",
    )
    add("--text", action="store_true", help="write plain answers to stdout in order, one a line; line ends become \\n")
    add("--dry-run", action="store_true", help="count calls, tokens, costs and prompts already done; send nothing")
    _add_reading_options(add)
    add("--usage", action="store_true", help="add columns for tokens, cost and finish reason to a table")
    add("--model", help=f"model for prompts that name none (default: OPENAI_MODEL, or {DEFAULT_MODEL})")
    add("--base-url", metavar="URL", help="base URL of the API (default: OPENAI_BASE_URL, or OpenAI's)")
    add("--header", metavar="'NAME: VALUE'", action="append", default=[], type=_header, help="HTTP header; repeat")
    add("--system", metavar="TEXT", help="system message before every prompt that is plain text; may have {COLUMN}s")
    add("--param", metavar="KEY=VALUE", action="append", default=[], type=_param, help="field of every body; repeat")
    add("--workers", metavar="N", type=int, default=20, help="at most N calls in flight (default: %(default)s)")
    add("--rpm", dest="requests_per_minute", metavar="N", type=float, help="at most N requests a minute")
    add("--tpm", dest="tokens_per_minute", metavar="N", type=float, help="at most N tokens a minute")
    add("--timeout", metavar="SECONDS", type=_timeout, default=DEFAULT_TIMEOUT, help="CONNECT,READ (default: 5,600)")
    add("--idle-timeout", metavar="SECONDS", type=float, help="stream, and retry an answer that is silent for so long")
    add("--max-tries", metavar="N", type=int, default=6, help="at most N attempts for a prompt (default: %(default)s)")
    add(
        "--max-wait",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="longest wait for a retry (default: %(default)g)",
    )
    add("--deadline", metavar="SECONDS", type=float, help="time limit of the whole run; prompts not done by then fail")
    add("--request-budget", metavar="N", type=int, help="stop sending after N requests")
    add("--token-budget", metavar="N", type=int, help="stop sending once N tokens have been used")
    add("--cost-budget", metavar="DOLLARS", type=float, help="stop before the run costs more, by the prices")
    add(
        "--price",
        metavar="MODEL=IN,OUT",
        action="append",
        default=[],
        type=_price,
        help="dollars for a million tokens of prompt and of answer, and perhaps of cached prompt; repeat",
    )
    add(
        "--retry-failed", action=_YesOrNo, default=True, help="send the prompts again that failed before (default: yes)"
    )
    add("--dask", metavar="SCHEDULER", help="send through the workers of a Dask cluster: address, or scheduler file")
    add("--progress", action=_YesOrNo, help="show a bar (default: on a terminal)")


def _add_reading_options(add: Any) -> None:
    add("--input-format", choices=FORMATS, help="default: by the file's extension, or its first lines")
    add("--encoding", help="encoding of text, such as cp1252 (default: UTF-8, or UTF-16 by its mark)")
    add("--prompt-field", metavar="COLUMN", help="column or field with the prompts (default: prompt)")
    add(
        "--template",
        metavar="TEXT",
        type=_template,
        help="make prompts of columns: 'Translate into {lang}: {text}'; @FILE reads it",
    )
    add("--schema", metavar="FILE", type=_schema, help="JSON schema of every answer; see -o for its fields")
    add("--id-field", metavar="COLUMN", help="column or field with a unique name for each row, the custom_id")
    add("--endpoint", metavar="PATH", help=f"for prompts that name none, such as {EMBEDDINGS_PATH} (default: chat)")
    add("--limit", metavar="N", type=int, help="send only the first N prompts, to try")
    add("--dedupe", action="store_true", help="send equal prompts once")


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="show a journal as one HTML page",
        description="Read a journal of 'chatpool run' or of journal=, and write one self-contained HTML page with "
        "latencies, requests in flight, rate limits, tokens and failures. Works while the run goes on, too.",
        epilog="example: chatpool report answers.jsonl -o report.html",
    )
    parser.set_defaults(run=_report, parser=parser)
    parser.add_argument("journal", metavar="JOURNAL", help="the file of answers")
    parser.add_argument("-o", "--output", metavar="HTML", help="default: the journal's name with .html")


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="try it without an API key or a network",
        description="Start a fake server on this machine, with latency, a rate limit, errors and a stall, and send it "
        "a few hundred prompts through the real client.",
        epilog="example: chatpool demo",
    )
    parser.set_defaults(run=_demo, parser=parser)


def _add_fake_server(commands: Any) -> None:
    parser = commands.add_parser(
        "fake-server",
        help="serve a chat API on this machine that echoes every prompt",
        description="Serve a fake chat API on 127.0.0.1 until Ctrl-C, to test programs in any language. It echoes "
        "every prompt, or replies with a random value of the JSON schema that a request asks for.",
        epilog="examples:\n  chatpool fake-server --port 8080\n"
        "  chatpool fake-server --port 8080 --latency 0.3 --error-rate 0.05 --rpm 600 --key sk-test\n"
        "  chatpool run prompts.txt --text --base-url http://127.0.0.1:8080/v1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_fake_server, parser=parser)
    add = parser.add_argument
    add("--port", type=int, default=0, help="default: a free one")
    add("--latency", metavar="SECONDS", type=float, default=0.0, help="mean delay before each answer")
    add("--tokens-per-second", metavar="N", type=float, help="pace of streamed answers (default: at once)")
    add("--error-rate", metavar="SHARE", type=float, default=0.0, help="share of requests that fail with 500, 0 to 1")
    add("--rpm", metavar="N", type=float, help="rate limit in requests a minute; the others get a 429")
    add("--key", help="API key; requests with any other key get a 401")
    add("--seed", type=int, default=0, help="seed of the random errors (default: %(default)s)")


def _run(args: argparse.Namespace) -> int:
    if args.output is None and not (args.text or args.dry_run):
        raise ConfigurationError("no output: pass -o OUTPUT, or --text to write plain text to stdout")
    if args.output == "-":
        raise ConfigurationError("-o needs a file, from which the next run can continue; --text writes to stdout")
    system = Template(args.system, is_lenient=True) if args.system is not None else None
    choice = Choice(
        args.prompt_field,
        args.template,
        system if system and system.fields else None,
        args.id_field,
        _endpoint(args.endpoint),
        args.model,
        args.schema is not None,
    )
    if choice.has_schema and "response_format" in dict(args.param):
        raise ConfigurationError("--schema sets response_format; leave --param response_format out")
    if choice.has_schema and choice.path != CHAT_PATH:
        raise ConfigurationError("--schema is for chat completions; leave it or --endpoint out")
    more: dict[str, Any] = {
        "system": args.system if choice.system is None else None,
        "model": args.model,
        "prices": dict(args.price),
    }
    if args.header:
        more["headers"] = dict(args.header)
    with ChatPool(args.workers, params=dict(args.param), **more, **_select(args, _POOL_OPTIONS)) as pool:
        names = [field.name for field in fields(RunOptions) if field.name not in ("pool", "choice")]
        options = RunOptions(pool, **_select(args, names), choice=choice)
        return dry_run(options) if args.dry_run else run(options)


def _endpoint(path: str | None) -> str | None:
    """Return an endpoint's path as the Batch API writes it."""
    if path is None:
        return None
    path = "/" + path.strip("/")
    return path if path.startswith("/v1/") else "/v1" + path


def _select(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names}


def _report(args: argparse.Namespace) -> int:
    from .report import write_report  # noqa: PLC0415 - only this command needs it

    output = args.output or os.path.splitext(args.journal)[0] + ".html"
    write_report(args.journal, output)
    return _report_to_user(f"the report is in {output}", 0)


def _demo(args: argparse.Namespace) -> int:
    from .demo import demo  # noqa: PLC0415 - only this command needs the fake server

    return demo()


def _fake_server(args: argparse.Namespace) -> int:
    from chatpool.testing import FakeChatServer, RateLimit, Stream, chaos  # noqa: PLC0415 - likewise

    _check_fake_server(args)
    limit = None
    if args.rpm is not None:
        limit = RateLimit(args.rpm / 60, max(1.0, args.rpm / 60), retry_after=60 / args.rpm)
    rng = random.Random(args.seed)
    try:
        server = FakeChatServer(
            port=args.port,
            latency=(lambda: rng.uniform(0.5, 1.5) * args.latency) if args.latency else 0.0,
            rate_limit=limit,
            key=args.key,
            reply=_reply_of_fake_server(chaos(args.error_rate, seed=args.seed)),
            most_recorded=1,
            stream=Stream(tokens_per_second=args.tokens_per_second),
        )
    except OSError as error:
        raise ConfigurationError(f"cannot serve on port {args.port}: {error.strerror}") from None
    with server:
        print(f"serving on {server.url}, until Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 130


def _reply_of_fake_server(faults: Any) -> Any:
    """Return a function that replies with an answer of the type that is asked for, or with a fault of ``faults``.

    A wrong base URL is an error, as other servers would reject it, too.
    """
    from chatpool._testing.samples import answer_of_its_type  # noqa: PLC0415 - only this command needs it
    from chatpool.testing import Reply  # noqa: PLC0415 - likewise

    def reply(request: Any) -> Any:
        if not request.path.startswith(("/v1/", "/openai/")) or request.path.startswith("/v1/v1/"):
            url = f"http://{request.headers.get('host', '127.0.0.1')}/v1"
            message = f"no such path; the base URL of this server is {url}"
            return Reply(status=404, body={"error": {"message": message, "code": "unknown_path"}})
        fault = faults(request)
        return answer_of_its_type(request) if fault.status == 200 else fault

    return reply


def _check_fake_server(args: argparse.Namespace) -> None:
    if not 0 <= args.error_rate <= 1:
        raise ConfigurationError(f"--error-rate must be from 0 to 1, not {args.error_rate:g}")
    if not 0 <= args.latency < threading.TIMEOUT_MAX / 2:
        raise ConfigurationError(f"--latency must be a number of seconds, 0 or more, not {args.latency:g}")
    if args.rpm is not None and not 0 < args.rpm < math.inf:
        raise ConfigurationError(f"--rpm must be more than 0, not {args.rpm:g}")
    if args.tokens_per_second is not None and not 0 < args.tokens_per_second < math.inf:
        raise ConfigurationError(f"--tokens-per-second must be more than 0, not {args.tokens_per_second:g}")
    if not 0 <= args.port < 2**16:
        raise ConfigurationError(f"--port must be from 0 to {2**16 - 1}, not {args.port}")


def _price(text: str) -> tuple[str, tuple[float, ...]]:
    """Parse MODEL=IN,OUT or MODEL=IN,OUT,CACHED. A model's name may contain = itself."""
    model, _, prices = text.rpartition("=")
    try:
        numbers = tuple(float(part) for part in prices.split(","))
    except ValueError:
        numbers = ()
    if not model or not 2 <= len(numbers) <= 3 or not all(0 <= number < math.inf for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=IN,OUT, in dollars for a million tokens")
    return model, numbers


def _param(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE; the value is JSON, or else a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _template(text: str) -> Template:
    """Parse a template; ``@FILE`` reads it from a file."""
    try:
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8-sig") as file:
                text = file.read().removesuffix("\n")
        return Template(text)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text[1:]}: {error.strerror}") from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _schema(path: str) -> ResponseFormat:
    """Read a JSON schema; also from the ``response_format`` of a request, which has it inside."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            document = json.load(file)
        for name in ("json_schema", "schema"):
            if isinstance(document, dict) and isinstance(document.get(name), dict):
                document = document[name]
        response_format = response_format_of(document)[1]
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error.strerror}") from None
    except ConfigurationError as error:
        problem = str(error).partition("JSON schema: ")[2] or str(error)
        raise argparse.ArgumentTypeError(f"{path} is not a JSON schema: {problem}") from None
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{path} is not valid JSON: {error}") from None
    if response_format is None:
        raise argparse.ArgumentTypeError(f"{path} is not a JSON schema: it names neither a type nor properties")
    return response_format


def _header(text: str) -> tuple[str, str]:
    """Parse NAME: VALUE."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME: VALUE")
    return name.strip(), value.strip()


def _timeout(text: str) -> float | tuple[float, float]:
    """Parse SECONDS, or CONNECT,READ."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither SECONDS nor CONNECT,READ")
    return numbers[0], numbers[1]
