"""``chatpool run``: sends the prompts of a file, and writes a journal or plain text, in flat memory."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable, TextIO

from chatpool._files.batch_format import digest_of
from chatpool._files.choosing import Choice
from chatpool._files.inputs import Input, InputError
from chatpool._files.journal import Journal
from chatpool._files.journal_view import JournalView
from chatpool._files.tables import check_table, is_table, journal_of, write_table
from chatpool._protocol.request_builder import Request, RequestBuilder
from chatpool._protocol.requests import BatchRequest, path_of
from chatpool._protocol.results import ChatResult
from chatpool._protocol.schemas import ResponseFormat
from chatpool._protocol.shown import escape
from chatpool._protocol.summary import Summary, plural
from chatpool._scheduling.mapper import JournalUse, Mapper
from chatpool.errors import ConfigurationError, JournalError
from chatpool.pool import ChatPool

from .selection import EmptyLines, Outcomes, Selection
from .words import in_command_words

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
    cost_budget: float | None
    retry_failed: bool
    limit: int | None
    dedupe: bool
    usage: bool
    dask: str | None
    choice: Choice
    schema: ResponseFormat | None = None

    def open_input(self) -> Input:
        """Open the input; raise ConfigurationError if the output would overwrite it."""
        outputs = [path for path in (self.output, self.journal) if path is not None]
        prompts = Input(
            self.input,
            self.input_format,
            choice=self.choice,
            encoding=self.encoding,
            uses_ids=not self.is_table,  # there, the answers are matched by the prompts alone
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
        return RequestBuilder(self.pool._settings, self.params)

    @property
    def params(self) -> dict[str, Any]:
        """The fields of every body that the schema adds."""
        return {} if self.schema is None else {"response_format": self.schema.field}

    def digest(self, prompt: BatchRequest) -> str:
        """Return the hash by which the journal identifies a prompt's request."""
        return digest_of(path_of(prompt), self.builder.body(prompt))


def run(options: RunOptions) -> int:
    """Send every prompt and print a summary to stderr; return the exit code."""
    _prepare_stdout(options)
    with closing(options.open_input()) as prompts:
        _check_output(options)
        repeats = prompts.check(options.digest, is_deduped=options.dedupe)
        print_notes(options, prompts)
        selection = Selection(prompts, repeats, options.digest, limit=options.limit, is_deduped=options.dedupe)
        summary = Summary(first=1, failures=options.journal or "the file of -o OUTPUT")
        with _open_mapper(options, repeats) as mapper:
            try:
                _send(options, mapper, selection, summary)
            except KeyboardInterrupt as error:
                for result in _unread_results(error):
                    summary.add(result)
                _finish_output(options, selection)
                done = f"{summary.answered:,} of {plural(len(selection), 'prompt')} answered"
                raise RunAborted(f"interrupted: {done}; {_how_to_continue(options)}", 130) from None
            except (JournalError, InputError) as error:
                if not summary.prompts and not _unread_results(error):  # nothing was sent
                    raise
                raise RunAborted(f"chatpool: {error}; {_how_to_continue(options)}", 1) from None
        _finish_output(options, selection)
    for line in summary.format(mapper.wall, mapper.limited_by):
        print(in_command_words(line), file=sys.stderr)
    return 1 if summary.failed else 0


def digest_function(options: RunOptions) -> Callable[[Request], str]:
    """Return a function from a request to its hash."""
    return lambda request: options.digest(request.prompt)


def _finish_output(options: RunOptions, selection: Selection) -> None:
    """Write what depends on all answers: the table, or the lines of prompts that were not sent, as an equal one was."""
    if options.journal is None or not (options.is_table or options.dedupe):
        return
    # Opened again, to read what was just written. The lock keeps another run from writing the same table.
    with Journal(options.journal, by_body=options.dedupe, by_name=not options.is_table) as journal:
        view = JournalView(journal, digest_function(options), options.schema, repeats=selection.repeats)
        if options.is_table:
            _write_table(options, selection, view)
        else:
            selection.copy_equals(view)


def _write_table(options: RunOptions, selection: Selection, view: JournalView) -> None:
    assert options.output is not None
    outcomes = Outcomes(selection, view)
    try:
        names = write_table(options.output, selection.prompts, outcomes.of, options.schema, has_usage=options.usage)
    except OSError as error:
        message = f"chatpool: cannot write {options.output}: {error.strerror}; the answers are in {options.journal}"
        raise RunAborted(f"{message}; {_how_to_continue(options)}", 1) from None
    if names:
        _note(f"the input has such columns already; the new ones of {options.output} are {', '.join(names)}")


def _check_output(options: RunOptions) -> None:
    if options.usage and not options.is_table:
        raise ConfigurationError("--usage adds columns to a table; pass -o with a .csv, .tsv or .parquet file")
    if options.text and options.dedupe:
        raise ConfigurationError("--text prints a line for each prompt, --dedupe sends equal ones once; leave one out")
    if options.limit is not None and options.limit < 1:
        raise ConfigurationError(f"--limit must be 1 or more, not {options.limit}")
    if options.output is None:
        return
    folder = os.path.dirname(options.output) or "."
    if not os.path.isdir(folder):
        raise ConfigurationError(f"the folder {folder} of the output does not exist; create it first")
    if options.is_table:
        check_table(options.output)


def print_notes(options: RunOptions, prompts: Input) -> None:
    """Print to stderr what a user should know about the input and the output."""
    for note in prompts.notes():
        _note(note)
    if options.is_table:
        _note(f"the journal of {options.output} is {options.journal}")


def _note(text: str) -> None:
    print(f"chatpool: {escape(text)}", file=sys.stderr)


def mute_stdout() -> None:
    """Discard what is still written to stdout, or Python would report the same error again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _send(options: RunOptions, mapper: Mapper, selection: Selection, summary: Summary) -> None:
    empty_lines = EmptyLines(selection.prompts)
    for result in mapper.stream(selection, in_order=options.text):
        summary.add(result, is_resumed=result.index in mapper.resumed)
        selection.note(result)
        if options.text:
            with _stdout(options) as stdout:
                print(end="\n" * empty_lines.before_next(), file=stdout)
                print(_one_line(result, is_terminal=stdout.isatty()), file=stdout, flush=stdout.isatty())
    if options.text:
        with _stdout(options) as stdout:
            if options.limit is None:
                print(end="\n" * empty_lines.rest(), file=stdout)
            stdout.flush()


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
    common.update(params=options.params, parse=options.schema)
    # With dedupe, the lines of equal prompts are needed until all have theirs.
    by_name = not (options.is_table or options.dedupe)
    common.update(journal_use=JournalUse(options.retry_failed, repeats, by_name), dedupe=options.dedupe)
    budgets = {name: getattr(options, name) for name in ("request_budget", "token_budget", "cost_budget")}
    if options.dask is None:
        yield options.pool._mapper(**budgets, **common)
        return
    given = [f"--{name.replace('_', '-')}" for name, value in budgets.items() if value is not None]
    if given:
        raise ConfigurationError(f"{given[0]} does not work with --dask; leave one of them out")
    with _connect(options.dask) as client:
        from chatpool._cluster.client import mapper  # noqa: PLC0415 - only --dask needs it

        yield mapper(options.pool, client, **common)


def _connect(scheduler: str) -> Any:
    """Connect to a Dask scheduler, given its address or the scheduler file that it wrote."""
    try:
        from distributed import Client  # noqa: PLC0415 - only --dask needs it
    except ImportError:
        raise ConfigurationError("--dask needs Dask; pip install distributed") from None
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
    value = result.value if result.text else result.response
    text = (value if isinstance(value, str) else json.dumps(value)).replace("\\", "\\\\")
    return escape(text) if is_terminal else text.replace("\r", "\\r").replace("\n", "\\n")


def _how_to_continue(options: RunOptions) -> str:
    if options.output is None:
        return "with -o OUTPUT, a run can be continued"
    return "run the same command again to continue"
