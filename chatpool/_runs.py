"""A run: the calls of one map, imap, submit or ask, from the first that is handed out to the last that is done."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import heapq
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Callable, Protocol

from ._allowance import Allowance
from ._call import PAST_DEADLINE, Bell, Call, Parse, Try, unsent
from ._threads import Job, in_worker
from ._turns import away
from .errors import CallError, DeadlineError, NotSentError
from .results import ChatResult, Retry

Indexed = tuple[int, Any]  # a prompt's index and the prompt
Reason = Callable[[], CallError]  # makes the error of each call that is given up
Record = Callable[[ChatResult, list[Try]], None]


_present = threading.local()


class Completes(Protocol):
    """What makes the calls of a run."""

    def complete(self, run: Run, call: Call) -> ChatResult | None:
        """Carry a call through to its outcome; None: it is to be taken up again when it is due."""

    def offer(self, run: Run) -> None:
        """Remember that a run has calls to take up again."""

    def end(self, run: Run) -> None:
        """Forget a run."""

    def busy_elsewhere(self) -> AbstractContextManager[None]:
        """Count this thread, while it runs what is not ours, as one that may wait for others."""


class Run:
    """Hands out its prompts as jobs, one thread each, and gathers the results for the one thread that wants them.

    It belongs to the process that made it: a forked child has none of its threads, so there is nothing to wait for,
    and the sockets are the parent's, so nothing may be cut.
    """

    _ends_with_outer = True  # made within parse, it is given up together with the run whose answer is parsed

    def __init__(
        self,
        engine: Completes,
        *,
        params: Mapping[str, Any],
        max_time: float | None = None,
        parse: Parse | None = None,
        deadline: float | None = None,
    ) -> None:
        self._engine = engine
        self.params, self.parse, self._max_time = params, parse, max_time
        self.began = time.monotonic()
        self.deadline = math.inf if deadline is None else self.began + deadline
        # Who waits for this run. One made by a worker, within parse, belongs to whoever waits for that call.
        outer: Run | None = getattr(_present, "run", None)
        self.owner: threading.Thread | None = outer.owner if outer else threading.current_thread()
        self._pid = os.getpid()
        self.is_inline = False  # its calls are made by the thread that asked for them
        self.waits: Counter[str] = Counter()  # seconds that calls waited, by cause
        self.retries = 0
        self._context = contextvars.copy_context()
        self.tenant: object = None  # the pool that it was asked of, where several share an engine
        self.allowance: Allowance | None = None
        self.notice: Callable[[Retry], None] | None = None  # is told of each try that will be made again
        self.record: Record | None = None  # is told of each call that came to its own end, and of its tries
        self.results: dict[int, ChatResult] = {}  # gathered, by index, in the order they came
        self._is_cut = self._is_dropped = False
        self._inner: set[Run] = set()
        # Bare ones rather than a Condition: Ctrl-C can break into Condition's own methods and leave its lock held.
        self._bell = Bell()  # rung when there may be what the gathering thread waits for
        self._changed = threading.RLock()  # guards all that follows
        self._todo: deque[Indexed] = deque()
        self._parked: list[tuple[float, int, Call]] = []  # a heap: calls that wait without a thread
        self._under_way: set[Call] = set()
        self._done: deque[ChatResult] = deque()
        self._wanted = math.inf  # done results that the gathering thread waits for
        self._verdict: Reason | None = None  # why nothing more is sent
        self._bug: BaseException | None = None
        self._outer = outer if self._ends_with_outer else None
        if self._outer is not None:
            self._outer._inner.add(self)
            if self._outer._is_cut:  # looked at after it is on the list: stop() looks the other way round
                self._verdict = _outer_gone

    @property
    def is_inherited(self) -> bool:
        """Whether this is a parent process's run, seen from a forked child."""
        return os.getpid() != self._pid

    def add(self, prompts: Iterable[Indexed]) -> int:
        """Take prompts in; return how many wait to be handed out."""
        with self._changed:
            self._todo.extend(prompts)
            waiting = len(self._todo)
            verdict = self._verdict
        if verdict is not None:
            self.stop(verdict, cut=False)
        return waiting

    def next_job(self, *, may_wait: bool) -> Job | None:
        """Return the next call as a job; None if there is none."""
        call = self.next_call(may_wait=may_wait)
        # A copy each: a context can be entered by one thread only.
        return None if call is None else functools.partial(self._context.copy().run, self._make, call)

    def next_call(self, *, may_wait: bool) -> Call | None:
        """Return the next call: a parked one that is due, a new one, or with ``may_wait`` any parked one."""
        with self._changed:
            if self._is_dropped:
                return None
            if self._parked and (self._parked[0][0] <= time.monotonic() or (may_wait and not self._todo)):
                _, _, call = heapq.heappop(self._parked)
            elif self._todo:
                index, prompt = self._todo.popleft()
                call = Call(index, prompt, parse=self.parse, max_time=self._max_time, deadline=self.deadline)
                self._under_way.add(call)
                if self._is_dropped:  # just now, without the lock
                    call.drop(_outer_gone())
            else:
                return None
        return call

    @property
    def waiting(self) -> int:
        """How many prompts were not handed out yet."""
        return len(self._todo)

    def has_ready_job(self) -> bool:
        """Whether a call can be handed out that need not wait."""
        with self._changed:
            if self._is_dropped:
                return False
            return bool(self._todo) or (bool(self._parked) and self._parked[0][0] <= time.monotonic())

    @property
    def next_due(self) -> float:
        """When the first of the calls that wait without a thread is due."""
        with self._changed:
            return self._parked[0][0] if self._parked else math.inf

    def is_empty(self) -> bool:
        """Whether nothing waits to be handed out."""
        with self._changed:
            return self._is_dropped or (not self._todo and not self._parked)

    def gather(self, wanted: float, timeout: float) -> list[ChatResult]:
        """Wait until so many results are there or the time is over; return the new ones. Raises a bug found.

        Gives up what is left when the deadline has passed. What it returns stays in ``results``, so that nothing is
        lost if Ctrl-C comes before the caller has put it away.
        """
        if self.is_inherited:
            raise RuntimeError("these calls belong to the parent process; map them anew in this one")
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.stop(_deadline_passed, cut=True)
        elif self._is_dropped:
            self.stop(_outer_gone, cut=True)
        self._bell.clear()
        with self._changed:
            self._wanted = wanted
            must_wait = self._bug is None and len(self._done) < wanted
        if must_wait:
            self._bell.wait(max(0.0, min(timeout, left)))
        self._wanted = math.inf
        if self._bug is not None:
            raise self._bug
        return self.take_done()

    def take_done(self) -> list[ChatResult]:
        """Return the results that nobody gathered yet, and put them into ``results``."""
        fresh: list[ChatResult] = []
        if self.is_inherited:
            return fresh
        with self._changed:
            while self._done:
                fresh.append(self._done[0])
                self.results[self._done[0].index] = self._done[0]
                self._done.popleft()  # last: interrupted before this, it is merely taken again
        return fresh

    def stop(self, reason: Reason, *, cut: bool) -> None:
        """Send nothing more: what was not sent is given up.

        With ``cut``, what is under way is given up too, at once: its socket is cut, its result is settled here,
        and what its thread may still bring is dropped. Without, what is on the wire may finish.
        """
        if self.is_inherited:
            return
        self._is_cut = self._is_cut or cut
        with self._changed:
            self._verdict = self._verdict or reason
            todo, under_way = list(self._todo), list(self._under_way)
            parked = {call for _, _, call in self._parked}
            self._todo.clear()
            self._parked.clear()
        if todo:
            error = reason()  # one for all: there may be a million
            self._settle(*(unsent(index, prompt, error) for index, prompt in todo))
        for call in under_way:
            error = reason()
            error.__cause__ = error.__cause__ or call.last_error
            call.stop(error, cut=cut)
            if cut or call in parked:
                self._finish(call, call.result(call.stopped))
        for inner in list(self._inner) if cut else ():
            inner.stop(reason, cut=True)

    def drop(self) -> None:
        """Give everything up, because nobody wants the results.

        Takes no lock, because the garbage collector may have broken into a thread that holds it: workers see the
        flag when they ask for the next job, and the watch cuts what is on the wire.
        """
        if self.is_inherited:
            return
        self._is_dropped = self._is_cut = True
        for call in list(self._under_way):
            call.drop(_outer_gone())
        for inner in list(self._inner):
            inner.drop()

    def end(self) -> None:
        """Be forgotten by whoever knew of this run."""
        self._engine.end(self)
        if self._outer is not None:
            self._outer._inner.discard(self)

    def abandon(self, bug: BaseException) -> None:
        """Give everything up because of an error that is no call's own; ``gather`` raises it."""
        with self._changed:
            self._bug = self._bug or bug
        self.stop(lambda: NotSentError("given up because of an exception in another call"), cut=True)
        self._bell.ring()

    def _make(self, call: Call) -> None:
        outer = getattr(_present, "run", None)
        _present.run = self
        try:
            result = self._engine.complete(self, call)
        except BaseException as bug:  # noqa: BLE001
            with contextlib.suppress(AttributeError, TypeError):
                bug.prompt_index = call.index  # type: ignore[attr-defined]
            self.abandon(bug)
        else:
            if result is None:
                self._park(call)
            else:
                self.close(call, result)
        finally:
            _present.run = outer

    def close(self, call: Call, result: ChatResult) -> None:
        """Record a result, and hand it out in any case: it was paid for."""
        try:
            self._write_down(call, result)
        except Exception as error:  # noqa: BLE001 - gather raises it
            self._finish(call, result)
            self.abandon(error)
        else:
            self._finish(call, result)

    def _park(self, call: Call) -> None:
        with self._changed:
            if call in self._under_way:
                heapq.heappush(self._parked, (call.due, call.index, call))
        self._engine.offer(self)

    def _finish(self, call: Call, result: ChatResult) -> None:
        with self._changed:
            if call not in self._under_way:
                return  # given up in the meantime
            self._under_way.remove(call)
            self.waits.update(call.waits)
            self.retries += max(0, call.attempts - 1)
        self._settle(result)

    def _write_down(self, call: Call, result: ChatResult) -> None:
        """Have a result recorded before anybody is told of it, unless the call was given up in the meantime."""
        with self._changed:
            if self.record is None or call not in self._under_way:
                return
        with away():
            self.record(result, call.timeline)

    def _settle(self, *results: ChatResult) -> None:
        with self._changed:
            self._done.extend(results)
            is_enough = len(self._done) >= self._wanted
        if is_enough:
            self._bell.ring()


def _deadline_passed() -> DeadlineError:
    return DeadlineError(PAST_DEADLINE)


def _outer_gone() -> NotSentError:
    return NotSentError("given up: nobody waits for this answer any more")


class _HelpedFuture(Future[ChatResult]):
    """A Future that can be waited for within a worker: if its call is not begun, the one who waits makes it."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run: Run | None = run
        self.add_done_callback(_forget_run)

    def result(self, timeout: float | None = None) -> ChatResult:
        self._help(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._help(timeout)
        return super().exception(timeout)

    def _help(self, timeout: float | None) -> None:
        run = self._run
        if run is None:
            return
        if run.is_inherited:
            raise RuntimeError("this call belongs to the parent process; submit it anew in this one")
        if in_worker() and timeout is None:
            run.is_inline = True
            while (job := run.next_job(may_wait=True)) is not None:
                job()


def _forget_run(future: Future[ChatResult]) -> None:
    """Or run and future would keep each other alive."""
    assert isinstance(future, _HelpedFuture)
    future._run = None


class FutureRun(Run):
    """The run of one submit: its outcome goes into a Future, whose callbacks run outside our locks."""

    _ends_with_outer = False

    def __init__(self, engine: Completes, **settings: Any) -> None:
        super().__init__(engine, **settings)
        self.future: Future[ChatResult] = _HelpedFuture(self)
        self.owner = None

    def next_job(self, *, may_wait: bool) -> Job | None:
        """Return the call as a job, unless it is out already or its Future was cancelled."""
        job = super().next_job(may_wait=may_wait)
        if job is None or self._may_run():
            return job
        self._engine.end(self)
        return None

    def _may_run(self) -> bool:
        """Let the Future run, unless it was cancelled or is settled."""
        with self._changed:
            future = self.future
            return not future.done() and (future.running() or future.set_running_or_notify_cancel())

    def _settle(self, *results: ChatResult) -> None:
        self._engine.end(self)
        (result,) = results
        if not self._may_run():
            return
        with self._engine.busy_elsewhere(), away():  # while callbacks run
            if self._bug is not None:
                self.future.set_exception(self._bug)
            else:
                self.future.set_result(result)
