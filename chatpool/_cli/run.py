"""``chatpool run``: a file of prompts in, a journal or plain text out, in flat memory."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any, TextIO

from chatpool._files.batch_format import digest_of
from chatpool._files.inputs import Input, InputError
from chatpool._files.journal import Journal, JournalView
from chatpool._protocol.request_builder import RequestBuilder
from chatpool._protocol.requests import BatchRequest, estimate_tokens, path_of
from chatpool._protocol.results import ChatResult
from chatpool._protocol.summary import Summary
from chatpool._scheduling.mapper import Mapper
from chatpool.errors import ConfigurationError, JournalError
from chatpool.pool import ChatPool

_CONNECT_TIMEOUT = 10  # seconds, to a Dask scheduler


class Stopped(Exception):
    """The run ended before it was through; the message says how to go on."""

    def __init__(self, told: str, exit_code: int) -> None:
        super().__init__(told)
        self.exit_code = exit_code


class Job:
    """What is to be run, from where to where."""

    def __init__(
        self,
        pool: ChatPool,
        source: str,
        output: str | None,
        *,
        kind: str | None = None,
        as_text: bool = False,
        deadline: float | None = None,
        retries_failed: bool = True,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        dask: str | None = None,
    ) -> None:
        self.pool, self.source, self.output, self.kind = pool, source, output, kind
        self.as_text, self.deadline, self.retries_failed = as_text, deadline, retries_failed
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.dask = dask
        self.builder = RequestBuilder(pool._settings, {})

    def open(self) -> Input:
        """Open the input, which is not to be written over."""
        prompts = Input(self.source, self.kind)
        if self.output is not None and prompts.is_file(self.output):
            prompts.close()
            raise ConfigurationError(f"{self.output} is the input; take another file for the answers")
        return prompts

    def digest(self, task: BatchRequest) -> str:
        """Return what the journal knows a request by."""
        return digest_of(path_of(task), self.builder.body(task))


def run(job: Job) -> int:
    """Send everything and tell what came of it on stderr; return the exit code."""
    summary = Summary()
    _prepare_stdout(job)
    with closing(job.open()) as prompts, _mapper(job, prompts.check(job.digest)) as mapper:
        try:
            for result in mapper.stream(prompts, in_order=job.as_text):
                summary.add(result, is_resumed=result.index in mapper.resumed)
                if job.as_text:
                    with _stdout(job) as stdout:
                        print(_one_line(result), file=stdout, flush=stdout.isatty())
            if job.as_text:
                with _stdout(job) as stdout:
                    stdout.flush()
        except KeyboardInterrupt as error:
            answers = getattr(error, "answers", None)
            for result in answers.results if answers else ():  # what had come, and was not told of yet
                summary.add(result)
            raise Stopped(_interrupted(job, summary, len(prompts)), 130) from None
        except (JournalError, InputError) as error:
            if not summary.prompts and not getattr(error, "answers", ()):
                raise
            raise Stopped(f"chatpool: {error}; {_how_to_go_on(job)}", 1) from None
    for line in summary.format(mapper.wall, mapper.limited_by(summary.prompts - summary.resumed), mapper.waits):
        print(line, file=sys.stderr)
    return 1 if summary.failed else 0


def leave_stdout() -> None:
    """Write no more to stdout: Python itself would complain once more when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _prepare_stdout(job: Job) -> None:
    """What its encoding has not is escaped. A stdout that was closed before we began is None."""
    if job.as_text and sys.stdout is None:
        raise ConfigurationError("stdout is closed, and --text writes to it")
    if job.as_text and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _stdout(job: Job) -> Iterator[TextIO]:
    """What is written within raises Stopped where that cannot be done, BrokenPipeError if its reader has left."""
    try:
        yield sys.stdout
    except BrokenPipeError:
        raise
    except OSError as error:
        leave_stdout()
        raise Stopped(f"chatpool: stdout cannot be written: {error.strerror}; {_how_to_go_on(job)}", 1) from None


@contextmanager
def _mapper(job: Job, repeats: frozenset[int]) -> Iterator[Mapper]:
    """Make what does the work, in this process or on a cluster."""
    how: dict[str, Any] = {"deadline": job.deadline, "journal": job.output}
    how.update(retries_failed=job.retries_failed, repeats=repeats)
    if job.dask is None:
        yield job.pool._mapper(max_requests=job.max_requests, max_tokens=job.max_tokens, **how)
        return
    if job.max_requests is not None or job.max_tokens is not None:
        raise ConfigurationError("--max-requests and --max-tokens cannot be kept to on a cluster; leave out --dask")
    with _connect(job.dask) as client:
        from chatpool._cluster.client import mapper  # noqa: PLC0415 - it is not needed for anything else

        yield mapper(job.pool, client, **how)


def _connect(scheduler: str) -> Any:
    """Connect to a Dask scheduler: by its address, or by the file that it wrote."""
    try:
        from distributed import Client  # noqa: PLC0415 - it is not needed for anything else
    except ImportError:
        raise ConfigurationError("--dask needs Dask; pip install 'chatpool[dask]'") from None
    named = {"scheduler_file": scheduler} if os.path.isfile(scheduler) else {"address": scheduler}
    try:
        return Client(**named, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"no Dask scheduler at {scheduler}: {error}") from None


def dry_run(job: Job) -> int:
    """Tell on stdout what a run would take; sends nothing, writes nothing."""
    calls = tokens = done = 0
    with closing(job.open()) as prompts:
        repeats = prompts.check(job.digest)
        with _read_journal(job) as journal:
            digest = lambda request: job.digest(request.prompt)  # noqa: E731 - shorter than a function
            journal_view = JournalView(journal, digest, None, retries_failed=job.retries_failed, repeats=repeats)
            for index, task in enumerate(prompts):
                request = job.builder.request(index, task)
                if journal_view.find(request) is not None:
                    done += 1
                    continue
                calls += 1
                tokens += estimate_tokens(job.builder.payload(request), job.builder.body(task))
    print(f"{calls + done:,} prompts: {done:,} are done already, {calls:,} calls are to be made")
    print(f"about {tokens:,} tokens, with the longest answers that the requests allow")
    return 0


def _read_journal(job: Job) -> Journal | nullcontext[None]:
    if job.output is None or not os.path.exists(job.output):
        return nullcontext()
    return Journal(job.output, is_read_only=True)


def _one_line(result: ChatResult) -> str:
    """Return an answer as one line: line ends and backslashes escaped. An embedding is its JSON; a failure is blank."""
    if not result.ok:
        return ""
    text = result.text or json.dumps(result.response)
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def _interrupted(job: Job, summary: Summary, total: int) -> str:
    return f"interrupted: {summary.answered:,} of {total:,} prompts are answered; {_how_to_go_on(job)}"


def _how_to_go_on(job: Job) -> str:
    if job.output is None:
        return "with -o OUTPUT, the next run would go on from there"
    return "the same command again goes on from there"
