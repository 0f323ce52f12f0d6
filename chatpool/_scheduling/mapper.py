"""One map or imap, in its caller's thread: prompts go into a run, results come out, by way of bar and journal."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Protocol

from chatpool._files.batch_format import digest_of
from chatpool._protocol.answers import Answers
from chatpool._protocol.requests import BatchRequest, Prompt, build_body, check_prompt, path_of
from chatpool._protocol.results import ChatResult, Retry
from chatpool._protocol.settings import Settings
from chatpool.errors import NotSentError, PoolClosedError

from .job import Indexed, Run, unsent
from .limits import PLACES
from .progress import Progress

if TYPE_CHECKING:
    from chatpool._files.journal import JournalView, PathLike

_READ_AHEAD = 4  # prompts that imap takes in ahead of its consumer, for each worker
_TICK = 0.1  # seconds between two looks at the bar
_LONG_TICK = 0.5  # seconds; on Windows an untimed wait could not be interrupted
_NOTABLE = 0.1  # share of the workers' time spent waiting, from which on a limit is named


class Hooks(NamedTuple):
    """What is to be called while a map goes on, in its caller's thread."""

    on_retry: Callable[[Retry], Any] | None = None
    on_result: Callable[[ChatResult], Any] | None = None

    def __bool__(self) -> bool:
        return any(self)


class Makes(Protocol):
    """What makes the calls of a map: this process's engine, or a cluster of them."""

    @property
    def places(self) -> int:
        """How many calls may be in flight at once."""

    def start(self, run: Any, jobs: int) -> None:
        """Begin to make so many calls of a run."""


class Mapper:
    """Sends the prompts of one map, all at once or bit by bit, and brings back what comes of them.

    ``repeats``: for the journal, see ``JournalView``. ``retries_failed``: whether what failed in the journal is asked anew.
    """

    def __init__(
        self,
        engine: Makes,
        run: Run,
        settings: Settings,
        *,
        progress: bool | None,
        journal: PathLike | None = None,
        retries_failed: bool = True,
        repeats: frozenset[int] | None = None,
        hooks: Hooks | None = None,
        dedupe: bool = False,
    ) -> None:
        self._engine, self._run, self._settings = engine, run, settings
        self._progress, self._journal = progress, journal
        self._retries_failed, self._repeats = retries_failed, repeats
        self._hooks, self._dedupe = hooks or Hooks(), dedupe
        self._retries: deque[Retry] = deque()  # not told of yet
        if self._hooks.on_retry is not None:
            run.notice = self._retries.append
        self._duplicates: dict[int, list[Indexed]] = {}  # prompts that are not asked, by the index of their equal
        self.resumed: set[int] = set()  # indexes of the results that came from the journal

    def map(self, items: list[Indexed], known: dict[int, ChatResult] | None = None) -> Answers:
        """Return the answers to all of these prompts; ``known`` ones are not asked."""
        run = self._run
        run.results.update(known or {})
        bar = Progress(len(items), self._progress)
        try:
            with self._open_journal() as journal_view:
                todo = self._not_done(items, journal_view)
                bar.update(list(run.results.values()))
                self._engine.start(run, run.add(todo))
                missing, tick = len(todo), _TICK if bar.is_shown or self._hooks else _LONG_TICK
                while missing:
                    fresh = run.gather(missing, tick)
                    missing -= len(fresh)
                    bar.update([*fresh, *self._copy_to_duplicates(fresh)])
                    self._tell(fresh)
            return self._answers(items)
        except BaseException as error:
            run.stop(_interrupted, cut=True)
            error.answers = self._answers(items)  # type: ignore[attr-defined]
            raise
        finally:
            run.end()
            bar.close()

    def stream(self, prompts: Iterable[Prompt | BatchRequest], *, in_order: bool) -> Iterator[ChatResult]:
        """Yield the results as they come, or in the order of the prompts; read these a little ahead."""
        run, source = self._run, _Reader(prompts)
        ready = run.results
        given = 0
        bar = Progress(source.total, self._progress)
        try:
            with self._open_journal() as journal_view:
                while given < source.taken or not source.is_over:
                    window = _READ_AHEAD * self._engine.places
                    if not source.is_over and source.taken - given < window:
                        bar.update(self._feed(source, journal_view))
                    must_wait = source.is_over or source.taken - given >= window
                    outstanding = source.taken - given - len(ready)
                    run.owner = threading.current_thread()
                    fresh = run.gather(1 if must_wait and outstanding else 0, _TICK if self._hooks else _LONG_TICK)
                    bar.update(fresh)
                    self._tell(fresh)
                    while ready and (not in_order or given in ready):
                        index = given if in_order else next(iter(ready))
                        yield ready[index]
                        del ready[index]  # only now: an answer that Ctrl-C kept from the caller stays here
                        self.resumed.discard(index)
                        given += 1
            source.raise_error()
        except GeneratorExit:
            run.drop()
            raise
        except BaseException as error:
            run.stop(_interrupted, cut=True)
            error.answers = self._answers(())  # type: ignore[attr-defined]
            raise
        finally:
            run.end()
            if not run.is_inherited:
                bar.close()

    def limited_by(self, calls: int) -> str:
        """Name what held the run back: its longest wait, or the number of workers if they were busy all the time."""
        workers, waits = self._engine.places, self._run.waits
        waited, wall = sum(waits.values()), self.wall
        if calls > workers and waited < _NOTABLE * workers * wall:
            return f"{PLACES}={workers}"
        if waited > _NOTABLE * min(calls, workers) * wall:
            return max(waits, key=lambda cause: waits[cause])
        return "nothing"

    def _body_of(self, prompt: Prompt | BatchRequest) -> dict[str, Any]:
        """Return what is sent for a prompt."""
        settings = self._settings
        return build_body(prompt, model=settings.model, system=settings.system, params=self._run.params)

    @property
    def wall(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._run.began

    @property
    def waits(self) -> dict[str, float]:
        """Seconds that calls waited, by cause."""
        return dict(self._run.waits)

    @contextmanager
    def _open_journal(self) -> Iterator[JournalView | None]:
        """Have the run's finished calls written to its journal, if it has one."""
        if self._journal is None:
            yield None
            return
        from chatpool._files.journal import Journal, JournalView  # noqa: PLC0415 - few runs keep one

        run = self._run
        with Journal(self._journal, deadline=run.deadline) as journal:
            journal_view = JournalView(
                journal, self._body_of, run.parse, retries_failed=self._retries_failed, repeats=self._repeats
            )
            run.record = journal_view.record
            yield journal_view

    def _not_done(self, items: list[Indexed], journal_view: JournalView | None) -> list[Indexed]:
        """Put what the journal holds into the results; return what is to be asked."""
        results, todo = self._run.results, []
        for index, prompt in self._without_duplicates(items) if self._dedupe else items:
            found = (
                journal_view.find(index, prompt) if journal_view else None
            )  # also for what is known: equal prompts are counted
            if index not in results and found is not None:
                results[index] = found
                self.resumed.add(index)
            elif index not in results:
                todo.append((index, prompt))
        copies = self._copy_to_duplicates([results[index] for index in sorted(self.resumed)])
        self.resumed.update(copy.index for copy in copies)
        return todo

    def _without_duplicates(self, items: list[Indexed]) -> list[Indexed]:
        """Keep the first of equal prompts, and remember the others."""
        firsts: dict[str, int] = {}
        unknown = [item for item in items if item[0] not in self._run.results]
        for index, prompt in unknown:
            first = firsts.setdefault(digest_of(path_of(prompt), self._body_of(prompt)), index)
            if first != index:
                self._duplicates.setdefault(first, []).append((index, prompt))
        duplicates = {index for others in self._duplicates.values() for index, _ in others}
        return [item for item in items if item[0] not in duplicates]

    def _copy_to_duplicates(self, results: Iterable[ChatResult]) -> list[ChatResult]:
        """Give prompts that were not asked the results of their equals; return those that are new."""
        made = [
            result.for_duplicate(index, prompt)
            for result in results
            for index, prompt in self._duplicates.get(result.index, ())
            if index not in self._run.results
        ]
        self._run.results.update((result.index, result) for result in made)
        return made

    def _tell(self, fresh: list[ChatResult]) -> None:
        """Call the hooks, in this thread."""
        on_retry, on_result = self._hooks
        while self._retries and on_retry is not None:
            on_retry(self._retries.popleft())
        if on_result is not None:
            for result in fresh:
                on_result(result)

    def _feed(self, source: _Reader, journal_view: JournalView | None) -> list[ChatResult]:
        """Take one prompt in; return its result if the journal holds it.

        If the pool was closed meanwhile, what is under way comes first, and then the error.
        """
        run, items = self._run, source.take()
        found = [result for item in items if journal_view and (result := journal_view.find(*item)) is not None]
        for result in found:
            run.results[result.index] = result
            self.resumed.add(result.index)
        try:
            self._engine.start(run, run.add([] if found else items))
        except PoolClosedError as error:
            run.stop(_interrupted, cut=True)
            source.end(error)
        return found

    def _answers(self, items: Iterable[Indexed]) -> Answers:
        """Put together what the run has brought; of ``items``, what is missing was given up."""
        run = self._run
        run.take_done()
        results = run.results
        self._copy_to_duplicates(list(results.values()))
        for index, prompt in items:
            if index not in results:
                results[index] = unsent(index, prompt, _interrupted())
        return Answers(
            (results[index] for index in sorted(results)),
            wall=self.wall,
            limited_by=self.limited_by(sum(result.attempts > 0 for result in results.values())),
            waits=run.waits,
            params=run.params,
            parse=run.parse,
            journal=self._journal,
            resumed=self.resumed,
            dedupe=self._dedupe,
        )


class _Reader:
    """Reads the prompts of an imap one by one, and keeps an error of theirs until all before it is answered."""

    def __init__(self, prompts: Iterable[Prompt | BatchRequest]) -> None:
        self.total = len(prompts) if isinstance(prompts, Sized) else None
        self.taken = 0
        self.is_over = False
        self._prompts = iter(prompts)
        self._error: Exception | None = None

    def take(self) -> list[Indexed]:
        """Return the next prompt with its index; nothing if there is none."""
        try:
            prompt = next(self._prompts)
            check_prompt(prompt, self.taken)
        except StopIteration:
            self.is_over = True
            return []
        except Exception as error:  # noqa: BLE001 - the caller's iterable may raise anything; it gets it back
            self.is_over, self._error = True, error
            return []
        self.taken += 1
        return [(self.taken - 1, prompt)]

    def end(self, error: Exception) -> None:
        """Read no more; ``raise_error`` will raise this."""
        self.is_over, self._error = True, error

    def raise_error(self) -> None:
        """Raise what ended the input, if that was an error."""
        if self._error is not None:
            raise self._error


def _interrupted() -> NotSentError:
    return NotSentError("given up: the run was interrupted")
