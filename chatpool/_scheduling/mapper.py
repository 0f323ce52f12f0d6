"""One map or imap, in its caller's thread: prompts go into a job, results come out, past the bar and the journal."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from chatpool._protocol.answers import Answers
from chatpool._protocol.prices import cost_of
from chatpool._protocol.request_builder import Request
from chatpool._protocol.results import ChatResult, PathLike, Retry
from chatpool._protocol.summary import plural
from chatpool.errors import ConfigurationError, PoolClosedError, add_note

from .bottleneck import name_bottleneck
from .call import unsent
from .job import Job
from .preload import forks_wait
from .progress import Progress
from .reasons import interrupted, nobody_waits, pool_closed

if TYPE_CHECKING:
    from chatpool._files.journal_view import JournalView

_READ_AHEAD = 4  # prompts that imap reads ahead of its consumer, for each slot
_TICK = 0.1  # seconds between two looks at the bar
_LONG_TICK = 0.5  # seconds; on Windows an untimed wait could not be interrupted


class Callbacks(NamedTuple):
    """The user's functions that a map calls, in its caller's thread."""

    on_retry: Callable[[Retry], Any] | None = None
    on_result: Callable[[ChatResult], Any] | None = None

    def __bool__(self) -> bool:
        return any(self)


class JournalUse(NamedTuple):
    """How a run uses its journal.

    ``retries_failed`` and ``repeats``: see ``JournalView``. ``by_name``: see ``Journal``.
    """

    retries_failed: bool = True
    repeats: frozenset[int] | None = None
    by_name: bool = False


class Mapper:
    """Sends the prompts of one map, all at once or bit by bit, and returns their results."""

    def __init__(
        self,
        job: Job,
        *,
        progress: bool | None,
        journal: PathLike | None = None,
        journal_use: JournalUse | None = None,
        callbacks: Callbacks | None = None,
        dedupe: bool = False,
    ) -> None:
        self._job, self._builder = job, job.builder
        self._progress, self._journal = progress, journal
        self._journal_use = journal_use or JournalUse()
        self._callbacks, self._dedupe = callbacks or Callbacks(), dedupe
        self._retries: deque[Retry] = deque()  # to be reported to on_retry
        if self._callbacks.on_retry is not None:
            job.on_retry = self._retries.append
        self._duplicates: dict[int, list[Request]] = {}  # prompts that are not sent, by the index of their equal
        self.resumed: set[int] = set()  # indexes of the results that came from the journal

    def map(self, prompts: Iterable[tuple[int, Any]], cached: Mapping[int, ChatResult] | None = None) -> Answers[Any]:
        """Return the answers to these prompts, each with its index; those with a ``cached`` result are not sent."""
        job = self._job
        requests = [self._request(index, prompt) for index, prompt in prompts]
        job.results.update(cached or {})
        bar = Progress(len(requests), self._progress)
        try:
            with self._open_journal() as journal_view:
                todo = self._not_done(requests, journal_view)
                bar.update(list(job.results.values()), are_resumed=True)
                job.backend.start(job, todo)
                missing, tick = len(todo), _TICK if bar.is_shown or self._callbacks else _LONG_TICK
                while missing:
                    fresh = self._gather(missing, tick, journal_view)
                    missing -= len(fresh)
                    bar.update([*fresh, *self._copy_to_duplicates(fresh)])
                    self._call_back(fresh)
            return self._answers(requests)
        except BaseException as error:
            job.stop(interrupted)
            answers = self._answers(requests)
            self._describe_end(error, answers, len(answers) - len(answers.failures), len(requests))
            raise error
        finally:
            job.end()
            bar.close()

    def stream(self, prompts: Iterable[Any], *, in_order: bool) -> Iterator[ChatResult]:
        """Yield the results as they come, or in the order of the prompts; read these a little ahead."""
        job, source = self._job, _Reader(prompts, self._request)
        ready = job.results
        given = 0
        bar = Progress(source.total, self._progress)
        try:
            with self._open_journal() as journal_view:
                while given < source.taken or not source.is_over:
                    window = _READ_AHEAD * job.backend.slots
                    if not source.is_over and source.taken - given < window:
                        bar.update(self._feed(source, journal_view), are_resumed=True)
                    must_wait = source.is_over or source.taken - given >= window
                    outstanding = source.taken - given - len(ready)
                    job.waiter = threading.current_thread()
                    tick = _TICK if self._callbacks else _LONG_TICK
                    fresh = self._gather(1 if must_wait and outstanding else 0, tick, journal_view)
                    bar.update(fresh)
                    self._call_back(fresh)
                    while ready and (not in_order or given in ready):
                        index = given if in_order else next(iter(ready))
                        yield ready[index]
                        del ready[index]  # only now: an answer that Ctrl-C kept from the caller stays here
                        self.resumed.discard(index)
                        given += 1
            source.raise_error()
        except GeneratorExit:
            job.cancel(nobody_waits)
            raise
        except BaseException as error:
            job.stop(interrupted)
            answers = self._answers(())
            self._describe_end(error, answers, given + len(answers), source.total)
            raise error
        finally:
            job.end()
            if not job.is_inherited:
                bar.close()

    @property
    def limited_by(self) -> str:
        """The bottleneck: what held calls back for the longest time, with its figure if that is known."""
        cause = name_bottleneck(self.waits, self._job.backend.slots, self.wall)
        return self._job.limit_figures().get(cause, cause)

    @property
    def wall(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._job.began

    @property
    def waits(self) -> dict[str, float]:
        """Seconds in which calls were held back, by cause."""
        return self._job.waits

    @contextmanager
    def _open_journal(self) -> Iterator[JournalView | None]:
        """Have finished calls written to the journal, if there is one."""
        if self._journal is None:
            yield None
            return
        with forks_wait():
            from chatpool._files.journal import Journal  # noqa: PLC0415 - few maps have one
            from chatpool._files.journal_view import JournalView  # noqa: PLC0415 - likewise

        job, use = self._job, self._journal_use
        with Journal(self._journal, deadline=job.deadline, by_body=self._dedupe, by_name=use.by_name) as journal:
            view = JournalView(
                journal, self._digest, job.parse, retries_failed=use.retries_failed, repeats=use.repeats,
                waits=lambda: job.waits,
            )  # fmt: skip
            job.record = view.record
            how = "finished"
            try:
                yield view
            except BaseException as error:
                how = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
                if not isinstance(error, GeneratorExit):  # which the garbage collector may raise: it must not wait
                    job.stop(interrupted)
                raise
            finally:
                view.note_cancelled(job.take_settled())
                view.end_run(how)

    def _gather(self, wanted: float, timeout: float, journal_view: JournalView | None) -> list[ChatResult]:
        """Wait for results; have the journal count those that get no line."""
        fresh = self._job.gather(wanted, timeout)
        if journal_view is not None:
            journal_view.note_cancelled(fresh)
        return fresh

    def _digest(self, request: Request) -> str:
        if request.digest is None:
            with forks_wait():
                from chatpool._files.batch_format import digest_of  # noqa: PLC0415 - not needed by a plain map

            request.digest = digest_of(request.path, self._builder.body(request.prompt))
        return request.digest

    def _not_done(self, requests: list[Request], journal_view: JournalView | None) -> list[Request]:
        """Put what the journal holds into the results; return what is to be sent."""
        results, todo = self._job.results, []
        for request in self._without_duplicates(requests) if self._dedupe else requests:
            # Also for cached results, because the journal counts equal prompts.
            recorded = self._find(request, journal_view)
            if request.index not in results and recorded is not None:
                results[request.index] = recorded
                self.resumed.add(request.index)
            elif request.index not in results:
                todo.append(request)
        copies = self._copy_to_duplicates([results[index] for index in sorted(self.resumed)])
        self.resumed.update(copy.index for copy in copies)
        return todo

    def _find(self, request: Request, journal_view: JournalView | None) -> ChatResult | None:
        """Return the journal's result for a request, with its cost."""
        result = journal_view.find(request) if journal_view else None
        if result is None:
            return None
        if result.cost is not None:
            return result
        return replace(result, cost=cost_of(result.response, result.usage, self._builder.price(request)))

    def _request(self, index: int, prompt: Any) -> Request:
        """Check a prompt, and its model's price if the run has a cost_budget. Raises ConfigurationError without one."""
        request, budget = self._builder.request(index, prompt), self._job.budget
        if budget is not None and budget.cost_budget is not None and self._builder.price(request) is None:
            raise ConfigurationError(
                f"prompt {request.index}: cost_budget needs a price for the model {request.model!r}; "
                f"pass prices={{{request.model!r}: (dollars a million tokens in, out)}} to the pool"
            )
        return request

    def _without_duplicates(self, requests: list[Request]) -> list[Request]:
        """Keep the first of equal prompts, and remember the others."""
        firsts: dict[str, int] = {}
        kept = []
        for request in requests:
            is_cached = request.index in self._job.results
            first = request.index if is_cached else firsts.setdefault(self._digest(request), request.index)
            if first == request.index:
                kept.append(request)
            else:
                self._duplicates.setdefault(first, []).append(request)
        return kept

    def _copy_to_duplicates(self, results: Iterable[ChatResult]) -> list[ChatResult]:
        """Give prompts that were not sent the results of their equals; return those that are new."""
        made = [
            result.for_duplicate(request.index, request.prompt)
            for result in results
            for request in self._duplicates.get(result.index, ())
            if request.index not in self._job.results
        ]
        self._job.results.update((result.index, result) for result in made)
        return made

    def _call_back(self, fresh: list[ChatResult]) -> None:
        """Call the user's functions, in this thread."""
        on_retry, on_result = self._callbacks
        while self._retries and on_retry is not None:
            on_retry(self._retries.popleft())
        if on_result is not None:
            for result in fresh:
                on_result(result)

    def _feed(self, source: _Reader, journal_view: JournalView | None) -> list[ChatResult]:
        """Take one prompt in; return its result if the journal holds it.

        If the pool was closed meanwhile, the results of what is under way come first, and then the error.
        """
        job, request = self._job, source.take()
        recorded = None if request is None else self._find(request, journal_view)
        if recorded is not None:
            job.results[recorded.index] = recorded
            self.resumed.add(recorded.index)
            return [recorded]
        if request is None:
            return []
        try:
            job.backend.start(job, [request])
        except PoolClosedError as error:
            job.stop(interrupted)
            job.results[request.index] = unsent(request, pool_closed())
            source.end(error)
        return []

    def _answers(self, requests: Iterable[Request]) -> Answers[Any]:
        """Put the results together; those of ``requests`` that are missing were cancelled."""
        job = self._job
        job.take_settled()
        results = job.results
        self._copy_to_duplicates(list(results.values()))
        for request in requests:
            if request.index not in results:
                results[request.index] = unsent(request, interrupted())
        return Answers(
            (results[index] for index in sorted(results)),
            wall=self.wall,
            limited_by=self.limited_by,
            waits=job.waits,
            params=self._builder.params,
            parse=job.parse,
            journal=self._journal,
            resumed=self.resumed,
            dedupe=self._dedupe,
            reask=job.reask,
        )

    def _describe_end(self, error: BaseException, answers: Answers[Any], done: int, total: int | None) -> None:
        """Put the results so far on an exception that ends the run, and a sentence about them.

        Ctrl-C's has no message of its own, so that is its message. The place where it came is of no use.
        """
        error.answers = answers  # type: ignore[attr-defined]
        prompts = plural(done, "prompt") if total is None else f"{done:,} of {plural(total, 'prompt')}"
        resume = "journal=FILE lets a run resume"
        if self._journal is not None:
            resume = f"run again with journal={self._journal!r} to resume"
        sentence = f"{prompts} done, with results in .answers; {resume}"
        if isinstance(error, KeyboardInterrupt):
            error.args = error.args or (sentence,)
            error.__traceback__ = None
        elif done:
            add_note(error, f"chatpool: {sentence}")


class _Reader:
    """Reads the prompts of an imap one by one, and keeps an error of theirs until all before it is answered."""

    def __init__(self, prompts: Iterable[Any], make_request: Callable[[int, Any], Request]) -> None:
        self.total = len(prompts) if isinstance(prompts, Sized) else None
        self.taken = 0
        self.is_over = False
        self._prompts, self._make_request = iter(prompts), make_request
        self._error: Exception | None = None

    def take(self) -> Request | None:
        """Return the next prompt's request; None if there is none."""
        try:
            request = self._make_request(self.taken, next(self._prompts))
        except StopIteration:
            self.is_over = True
            return None
        except Exception as error:  # noqa: BLE001 - the caller's iterable may raise anything; it gets it back
            self.end(error)
            return None
        self.taken += 1
        return request

    def end(self, error: Exception) -> None:
        """Read no more; ``raise_error`` will raise this."""
        self.is_over, self._error = True, error

    def raise_error(self) -> None:
        """Raise what ended the input, if that was an error."""
        if self._error is not None:
            raise self._error
