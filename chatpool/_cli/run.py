"""``chatpool run``: sends the prompts of a file, and writes a journal or plain text, in flat memory."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Callable, TextIO

from chatpool._files.batch_format import Key, digest_of
from chatpool._files.choosing import Choice
from chatpool._files.compaction import compact
from chatpool._files.inputs import Input, InputError, Item
from chatpool._files.journal import Journal, JournalView, hash64
from chatpool._files.tables import Outcome, check_table, is_table, journal_of, outcome_of, write_table
from chatpool._protocol.request_builder import Request, RequestBuilder
from chatpool._protocol.requests import BatchRequest, estimate_tokens, path_of
from chatpool._protocol.results import ChatResult
from chatpool._protocol.summary import Summary, plural
from chatpool._protocol.terminal import escape_controls
from chatpool._scheduling.mapper import Mapper
from chatpool.errors import ConfigurationError, DeadlineError, JournalError, NotSentError
from chatpool.pool import ChatPool

_CONNECT_TIMEOUT = 10  # seconds, to a Dask scheduler


class RunAborted(Exception):
    """The run ended early; the message says how to continue."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class RunOptions:
    """The pool of a run, and the command's arguments by their names."""

    pool: ChatPool
    input: list[str]
    output: str | None
    text: bool
    input_format: str | None
    encoding: str | None
    deadline: float | None
    request_budget: int | None
    token_budget: int | None
    retry_failed: bool
    limit: int | None
    dedupe: bool
    usage: bool
    dask: str | None
    choice: Choice

    def open_input(self) -> Input:
        """Open the input; raise ConfigurationError if the output would overwrite it."""
        outputs = [path for path in (self.output, self.journal) if path is not None]
        prompts = Input(
            self.input,
            self.input_format,
            choice=self.choice,
            encoding=self.encoding,
            uses_ids=not (self.is_table or self.dedupe),  # there, the answers are matched by the prompts alone
        )
        for path in outputs:
            if prompts.is_file(path):
                prompts.close()
                raise ConfigurationError(f"{path} is the input; choose another file for the output")
        return prompts

    @property
    def is_table(self) -> bool:
        """Whether the output is a table, with the journal beside it."""
        return is_table(self.output)

    @property
    def journal(self) -> str | None:
        """The file of the journal."""
        return journal_of(self.output)

    @cached_property
    def builder(self) -> RequestBuilder:
        """Makes requests of prompts."""
        return RequestBuilder(self.pool._settings, {})

    def digest(self, prompt: BatchRequest) -> str:
        """Return the hash by which the journal identifies a prompt's request."""
        return digest_of(path_of(prompt), self.builder.body(prompt))


class Selection:
    """The prompts of an input that are sent: the first ``--limit``, and with ``--dedupe`` each once."""

    def __init__(self, options: RunOptions, prompts: Input, repeats: frozenset[int]) -> None:
        self._options, self._prompts, self._repeats = options, prompts, repeats

    def __len__(self) -> int:
        return min(len(self._prompts) - (self._prompts.copies if self._options.dedupe else 0), self._limit)

    def __iter__(self) -> Iterator[BatchRequest]:
        return islice(self._distinct(), None if self._options.limit is None else self._limit)

    @property
    def _limit(self) -> int:
        return sys.maxsize if self._options.limit is None else self._options.limit

    def _distinct(self) -> Iterator[BatchRequest]:
        seen: set[int] = set()
        for prompt in self._prompts:
            if self._options.dedupe and self._repeats:
                digest = hash64(self._options.digest(prompt))
                if digest in seen:
                    continue
                if digest in self._repeats:
                    seen.add(digest)
            yield prompt


class Outcomes:
    """The outcome of each row of the input, from the journal, for the table that comes out."""

    def __init__(self, options: RunOptions, prompts: Input, repeats: frozenset[int]) -> None:
        self._options, self._prompts, self._repeats = options, prompts, repeats
        self._firsts: dict[int, Key] = {}  # of prompts that are repeated, with --dedupe
        self._sent = 0  # prompts that were reached, but for those that --dedupe leaves out
        self.unsent = "not sent; run the same command again"

    def note(self, result: ChatResult) -> None:
        """Remember why prompts are not sent."""
        if isinstance(result.error, (NotSentError, DeadlineError)):
            self.unsent = f"{type(result.error).__name__}: {result.error}"

    def write(self) -> None:
        """Write the table."""
        options = self._options
        assert options.output is not None
        assert options.journal is not None
        with Journal(options.journal, is_read_only=True) as journal:
            view = JournalView(journal, _digest_of(options), None, repeats=self._repeats)
            self._firsts.clear()
            self._sent = 0
            added = write_table(
                options.output, self._prompts, lambda item: self._of(item, view), has_usage=options.usage
            )
        if added[:2] != ["answer", "error"]:
            _note(f"the input has such columns already; the new ones of {options.output} are {', '.join(added)}")

    def _of(self, item: Item, view: JournalView) -> Outcome:
        """Return the outcome of the next row."""
        if item.entry is None:
            return Outcome(error="no prompt in this row")
        if isinstance(item.entry, str):
            raise InputError(f"{self._prompts.name} has changed: line {item.line}: {item.entry}")
        limit = self._options.limit
        request = self._options.builder.request(self._sent, item.entry)
        key, is_first = self._key(view, request)
        is_over = is_first and limit is not None and self._sent >= limit
        self._sent += is_first
        result = view.read(request, key)
        if result is not None:
            return outcome_of(result)
        return Outcome(error=f"not sent: beyond --limit {limit}" if is_over else self.unsent)

    def _key(self, view: JournalView, request: Request) -> tuple[Key, bool]:
        """Return a request's key in the journal, and whether it is the first of its equals."""
        if not (self._options.dedupe and self._repeats):
            return view.key(request), True
        number = hash64(self._options.digest(request.prompt))
        if number in self._firsts:
            return self._firsts[number], False
        key = view.key(request)
        if number in self._repeats:
            self._firsts[number] = key
        return key, True


def run(options: RunOptions) -> int:
    """Send every prompt and print a summary to stderr; return the exit code."""
    summary = Summary()
    _prepare_stdout(options)
    with closing(options.open_input()) as prompts:
        _check_output(options)
        repeats = prompts.check(options.digest, is_deduped=options.dedupe)
        _print_notes(options, prompts)
        outcomes = Outcomes(options, prompts, repeats)
        selection = Selection(options, prompts, repeats)
        with _open_mapper(options, repeats) as mapper:
            try:
                _send(options, mapper, prompts, selection, summary, outcomes)
            except KeyboardInterrupt as error:
                for result in _unread_results(error):
                    summary.add(result)
                if options.is_table:
                    outcomes.write()
                done = f"{summary.answered:,} of {plural(len(selection), 'prompt')} answered"
                raise RunAborted(f"interrupted: {done}; {_how_to_continue(options)}", 130) from None
            except (JournalError, InputError) as error:
                if not summary.prompts and not _unread_results(error):  # nothing was sent
                    raise
                raise RunAborted(f"chatpool: {error}; {_how_to_continue(options)}", 1) from None
        if options.is_table:
            outcomes.write()
        elif options.output is not None and summary.resumed < summary.prompts and summary.resumed:
            compact(options.output)
    for line in summary.format(mapper.wall, mapper.limited_by(summary.prompts - summary.resumed)):
        print(line, file=sys.stderr)
    return 1 if summary.failed else 0


def dry_run(options: RunOptions) -> int:
    """Print to stdout how many calls and tokens a run would take; sends and writes nothing."""
    calls = tokens = done = 0
    with closing(options.open_input()) as prompts:
        repeats = prompts.check(options.digest, is_deduped=options.dedupe)
        _print_notes(options, prompts)
        path = options.journal
        with Journal(path, is_read_only=True) if path and os.path.exists(path) else nullcontext() as journal:
            view = JournalView(journal, _digest_of(options), None, retries_failed=options.retry_failed, repeats=repeats)
            for index, prompt in enumerate(Selection(options, prompts, repeats)):
                request = options.builder.request(index, prompt)
                if view.find(request) is not None:
                    done += 1
                    continue
                calls += 1
                tokens += estimate_tokens(options.builder.payload(request), options.builder.body(prompt))
    print(f"{plural(calls + done, 'prompt')}: {done:,} already done, {calls:,} to send")
    print(f"about {tokens:,} tokens, if every answer is as long as its request allows")
    return 0


def _digest_of(options: RunOptions) -> Callable[[Request], str]:
    return lambda request: options.digest(request.prompt)


def _check_output(options: RunOptions) -> None:
    if options.usage and not options.is_table:
        raise ConfigurationError("--usage adds columns to a table; pass -o with a .csv, .tsv or .parquet file")
    if options.text and options.dedupe:
        raise ConfigurationError("--text prints a line for each prompt, --dedupe sends equal ones once; leave one out")
    if options.limit is not None and options.limit < 1:
        raise ConfigurationError(f"--limit must be 1 or more, not {options.limit}")
    if options.output is not None and options.is_table:
        check_table(options.output)


def _print_notes(options: RunOptions, prompts: Input) -> None:
    for note in prompts.notes():
        _note(note)
    if options.is_table:
        _note(f"the journal of {options.output} is {options.journal}")


def _note(text: str) -> None:
    print(f"chatpool: {escape_controls(text)}", file=sys.stderr)


def mute_stdout() -> None:
    """Discard what is still written to stdout, or Python would report the same error again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _send(
    options: RunOptions, mapper: Mapper, prompts: Input, selection: Selection, summary: Summary, outcomes: Outcomes
) -> None:
    empty_lines = _EmptyLines(prompts)
    for result in mapper.stream(selection, in_order=options.text):
        summary.add(result, is_resumed=result.index in mapper.resumed)
        outcomes.note(result)
        if options.text:
            with _stdout(options) as stdout:
                print(end="\n" * empty_lines.before_next(), file=stdout)
                print(_one_line(result, is_terminal=stdout.isatty()), file=stdout, flush=stdout.isatty())
    if options.text:
        with _stdout(options) as stdout:
            if options.limit is None:
                print(end="\n" * empty_lines.rest(), file=stdout)
            stdout.flush()


class _EmptyLines:
    """Counts the rows without a prompt, so that each row has its line in the output of ``--text``."""

    def __init__(self, prompts: Input) -> None:
        self._empty, self._row, self._passed = prompts.empty, 0, 0

    def before_next(self) -> int:
        """Return the number of rows without a prompt before the next prompt."""
        first = self._passed
        while self._passed < len(self._empty) and self._empty[self._passed] == self._row:
            self._passed += 1
            self._row += 1
        self._row += 1
        return self._passed - first

    def rest(self) -> int:
        """Return the number of those after the last prompt."""
        return len(self._empty) - self._passed


def _unread_results(error: BaseException) -> list[ChatResult]:
    """Return the results that had arrived when the run ended, and that it had not yielded yet."""
    answers = getattr(error, "answers", None)
    return answers.results if answers else []


def _prepare_stdout(options: RunOptions) -> None:
    """Have characters escaped that stdout's encoding lacks. ``sys.stdout`` is None if it was closed at start-up."""
    if options.text and sys.stdout is None:
        raise ConfigurationError("stdout is closed, and --text writes to it")
    if options.text and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _stdout(options: RunOptions) -> Iterator[TextIO]:
    """Yield stdout. If writing to it fails, raise BrokenPipeError if its reader is gone, else RunAborted."""
    try:
        yield sys.stdout
    except BrokenPipeError:
        raise
    except OSError as error:
        mute_stdout()
        message = f"chatpool: cannot write to stdout: {error.strerror}; {_how_to_continue(options)}"
        raise RunAborted(message, 1) from None


@contextmanager
def _open_mapper(options: RunOptions, repeats: frozenset[int]) -> Iterator[Mapper]:
    """Yield the mapper that sends the prompts, from this process or through a cluster."""
    common: dict[str, Any] = {"deadline": options.deadline, "journal": options.journal}
    common.update(retries_failed=options.retry_failed, repeats=repeats)
    if options.dask is None:
        yield options.pool._mapper(request_budget=options.request_budget, token_budget=options.token_budget, **common)
        return
    if options.request_budget is not None or options.token_budget is not None:
        raise ConfigurationError("--request-budget and --token-budget do not work with --dask; leave one of them out")
    with _connect(options.dask) as client:
        from chatpool._cluster.client import mapper  # noqa: PLC0415 - only --dask needs it

        yield mapper(options.pool, client, **common)


def _connect(scheduler: str) -> Any:
    """Connect to a Dask scheduler, given its address or the scheduler file that it wrote."""
    try:
        from distributed import Client  # noqa: PLC0415 - only --dask needs it
    except ImportError:
        raise ConfigurationError("--dask needs Dask; pip install 'chatpool[dask]'") from None
    target = {"scheduler_file": scheduler} if os.path.isfile(scheduler) else {"address": scheduler}
    try:
        return Client(**target, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot connect to a Dask scheduler at {scheduler}: {error}") from None


def _one_line(result: ChatResult, *, is_terminal: bool) -> str:
    """Return an answer as one line, with line ends and backslashes escaped; on a terminal every control character.

    An embedding is printed as JSON, and a failed call as an empty line.
    """
    if not result.ok:
        return ""
    text = (result.text or json.dumps(result.response)).replace("\\", "\\\\")
    return escape_controls(text) if is_terminal else text.replace("\r", "\\r").replace("\n", "\\n")


def _how_to_continue(options: RunOptions) -> str:
    if options.output is None:
        return "with -o OUTPUT, a run can be continued"
    return "run the same command again to continue"
