"""A job: the calls of one map, imap, submit or ask, as the thread sees it that waits for their results."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, _base
from queue import Empty, SimpleQueue
from typing import Any, Callable, Optional, Protocol

from chatpool._protocol.request_builder import Request, RequestBuilder
from chatpool._protocol.results import Attempt, ChatResult, Parse, Retry
from chatpool.errors import CallError

from .budgets import RunBudget

Reason = Callable[[], CallError]  # makes the error of a call that is cancelled
Record = Callable[[ChatResult, Sequence[Attempt], Optional[str]], None]  # the last: the body of a failed reply

# .job: the job whose parse this thread runs; .sends_for: see ``send_for``. Each is set by a function and not by a
# context manager, whose ``__enter__`` and ``__exit__`` Ctrl-C can interrupt.
_thread_state = threading.local()


def send_for(backend: object, send: Callable[[], None]) -> None:
    """Run what makes a request for a backend, with this thread marked as one that does."""
    before = getattr(_thread_state, "sends_for", None)
    _thread_state.sends_for = backend
    try:
        send()
    finally:
        _thread_state.sends_for = before


def is_sending(backend: object) -> bool:
    """Whether this thread makes a request for a backend, so that it cannot wait for another one of it."""
    return getattr(_thread_state, "sends_for", None) is backend


class Backend(Protocol):
    """Makes the calls of a job: this process's engine, or a cluster."""

    @property
    def slots(self) -> int:
        """How many calls may be in flight at once."""

    def start(self, job: Any, requests: Sequence[Request]) -> None:
        """Make these calls of a job. Raises PoolClosedError."""

    def cancel(self, job: Any, reason: Reason) -> None:
        """Cancel a job. Does not wait, and takes no lock: the garbage collector may call it."""

    def wait_until_settled(self) -> None:
        """Return once everything asked so far has been done."""

    def forget(self, job: Any) -> None:
        """Drop a job that nobody waits for; cancel what is left of it."""

    def adopt(self, outer: Any, inner: Any) -> None:
        """Have a job end with the one whose parse made it."""

    def disown(self, outer: Any, inner: Any) -> None:
        """Note that an inner job has ended."""

    def call_back(self, function: Callable[[Any], Any], future: Any, began: float) -> None:
        """Run a Future's callback, in a thread for that."""


class Job:
    """Belongs to the process that made it: a forked child has no thread that would make its calls.

    The waiting thread, the scheduler and the workers share it. What the scheduler knows of it beyond this is in
    ``backlog.JobState``. All times are readings of ``time.monotonic()``.
    """

    is_inline = False  # whether the waiting thread makes the calls itself
    takes_pieces = False  # of the answer, as they arrive
    has_delivered = False  # pieces are with the user, so that no other attempt can be made

    def __init__(
        self,
        backend: Backend,
        builder: RequestBuilder,
        *,
        max_time: float | None = None,
        parse: Parse | None = None,
        deadline: float | None = None,
    ) -> None:
        self.backend, self.builder = backend, builder
        self.parse, self.max_time = parse, max_time
        self.began = time.monotonic()
        self.deadline = math.inf if deadline is None else self.began + deadline
        self.outer: Job | None = getattr(_thread_state, "job", None)  # this one was made by its parse
        self.waiter: threading.Thread | None = self.outer.waiter if self.outer else threading.current_thread()
        self.context = contextvars.copy_context()
        self.pool_id: object = None  # the pool that it was asked of, where several share an engine
        self.reask = True  # a rejected answer is shown to the model, with the reason
        self.budget: RunBudget | None = None
        self.on_retry: Callable[[Retry], None] | None = None
        self.record: Record | None = None  # writes a finished call to the journal
        self.is_cancelled = False  # no further attempt is made; set by the scheduler
        self.bug: BaseException | None = None  # an exception that is nobody's answer, for the waiting thread to raise
        self.results: dict[int, ChatResult] = {}  # gathered, by index, in the order in which they came
        self._pid = os.getpid()
        # In a thread that runs parse nobody else may be free to parse, so the one that waits there parses.
        self._parses_itself = self.is_inline or self.outer is not None
        self._waits_before: Counter[str] = Counter()
        self._pool_waits: Mapping[str, float] = {}
        self.limit_figures: Callable[[], dict[str, str]] = dict  # the server's limits in words, by what waits for them
        # Filled by the scheduler, emptied by the waiting thread.
        self._settled: deque[ChatResult] = deque()
        self._tasks: SimpleQueue[functools.partial[None]] = SimpleQueue()
        self._event: SimpleQueue[None] = SimpleQueue()
        self._wanted = math.inf

    # For the thread that waits.

    @property
    def is_inherited(self) -> bool:
        """Whether this is a parent process's job, seen from a forked child."""
        return os.getpid() != self._pid

    @property
    def is_away(self) -> bool:
        """Whether the waiting thread cannot send just now, though it is the one that sends."""
        return False

    @property
    def waits(self) -> dict[str, float]:
        """Seconds in which the pool's calls were held back since this job began, by cause."""
        return dict(Counter(self._pool_waits) - self._waits_before)

    def check_process(self) -> None:
        """Raise RuntimeError in a forked child."""
        if self.is_inherited:
            raise RuntimeError("these calls belong to the parent process; map the prompts again in this one")

    def gather(self, wanted: float, timeout: float) -> list[ChatResult]:
        """Wait until so many results are there or the time is over; return the new ones. Raises ``bug``.

        They stay in ``results``, so that none is lost if Ctrl-C comes before the caller has put them away.
        """
        self.check_process()
        # Set before the look at what is there: the scheduler adds first and looks at ``_wanted`` then, so that one of
        # the two sees the other. An event too many only ends a wait early.
        self._wanted = wanted
        if self.bug is None and len(self._settled) < wanted:
            self._wait(min(timeout, threading.TIMEOUT_MAX))
        self._wanted = math.inf
        while not self._tasks.empty():
            self._tasks.get()()
        if self.bug is not None:
            raise self.bug
        return self.take_settled()

    def _wait(self, timeout: float) -> None:
        with contextlib.suppress(Empty):
            self._event.get(timeout=timeout)

    def take_settled(self) -> list[ChatResult]:
        """Return the results that nobody gathered yet, and put them into ``results``."""
        fresh: list[ChatResult] = []
        while not self.is_inherited and self._settled:
            result = self._settled[0]
            fresh.append(result)
            self.results[result.index] = result
            self._settled.popleft()  # last: interrupted before this, it is merely taken again
        return fresh

    def cancel(self, reason: Reason) -> None:
        """Cancel everything; does not wait. Takes no lock: the garbage collector may call it."""
        if not self.is_inherited:
            self.backend.cancel(self, reason)

    def stop(self, reason: Reason) -> None:
        """Cancel everything, and wait until it is settled."""
        if not self.is_inherited:
            self.backend.cancel(self, reason)
            self.backend.wait_until_settled()

    def end(self) -> None:
        """Be forgotten by the backend."""
        if not self.is_inherited:
            self.backend.forget(self)

    # For the scheduler.

    def scheduled(self, waits: Counter[str], limit_figures: Callable[[], dict[str, str]] = dict) -> None:
        """Note that the scheduler knows this job; ``waits``: its account of what held calls back."""
        self._pool_waits, self._waits_before = waits, Counter(waits)
        self.limit_figures = limit_figures

    def may_begin(self) -> bool:
        """Return whether its next call may begin."""
        return True

    def settle(self, results: Iterable[ChatResult]) -> None:
        """Hand results to the waiting thread."""
        self._settled.extend(results)
        if len(self._settled) >= self._wanted:
            self.wake()

    def fail(self, bug: BaseException) -> None:
        """Have the waiting thread raise an exception."""
        self.bug = self.bug or bug
        self.wake()

    def deliver(self, piece: str) -> None:
        """Hand a piece of the answer to the waiting thread."""
        raise NotImplementedError

    def wake(self) -> None:
        """Wake the waiting thread."""
        self._event.put(None)

    def hand_over(self, task: functools.partial[None]) -> None:
        """Have the waiting thread run a task; its argument is the call."""
        self._tasks.put(task)
        self.wake()

    def take_handed_over(self) -> set[Any]:
        """Return the calls of the tasks that the waiting thread left behind."""
        calls: set[Any] = set()
        with contextlib.suppress(Empty):
            while True:
                calls.update(self._tasks.get_nowait().args)
        return calls

    @property
    def parses_itself(self) -> bool:
        """Whether the waiting thread runs ``parse``."""
        return self._parses_itself

    def enter(self, run_parse: Callable[[], None]) -> None:
        """Run the job's ``parse``, with this thread marked: jobs made by it are this one's inner jobs."""
        before = getattr(_thread_state, "job", None)
        _thread_state.job = self
        try:
            run_parse()
        finally:
            _thread_state.job = before


class InlineJob(Job):
    """The job of one ask: the waiting thread sends its request, retries included, and parses the answer."""

    is_inline = True

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._retries: deque[Retry] = deque()  # that on_retry has not returned from

    @property
    def is_away(self) -> bool:
        """Whether on_retry is being called, which may wait for the slot that the next attempt would occupy."""
        return bool(self._retries)

    def _wait(self, timeout: float) -> None:
        # A signal handler that comes now must not wait for the slot that this thread is about to get.
        send_for(self.backend, functools.partial(super()._wait, timeout))

    def run(self, prompt: Any, on_retry: Callable[[Retry], Any] | None) -> ChatResult:
        """Wait for the only result; ``on_retry`` is called in this thread."""
        self.on_retry = self._retries.append if on_retry is not None else None
        self.backend.start(self, [self.builder.request(0, prompt)])
        fresh: list[ChatResult] = []
        while not fresh:
            fresh = self.gather(1, math.inf)
            while self._retries and on_retry is not None:
                on_retry(self._retries[0])
                self._retries.popleft()
        return fresh[0]


class FutureJob(Job):
    """The job of one submit: its result goes into a Future."""

    def __init__(self, backend: Backend, builder: RequestBuilder, **settings: Any) -> None:
        super().__init__(backend, builder, **settings)
        self.future: Future[ChatResult] = _Future(self)
        self.waiter = self.outer = None
        self._parses_itself = False

    def may_begin(self) -> bool:
        if self.future.set_running_or_notify_cancel():
            return True
        self._release()
        self.backend.forget(self)
        return False

    def settle(self, results: Iterable[ChatResult]) -> None:
        (result,) = results
        self._finish(lambda: self.future.set_result(result))

    def fail(self, bug: BaseException) -> None:
        self._finish(lambda: self.future.set_exception(bug))

    def hand_over(self, task: functools.partial[None]) -> None:
        task()  # no thread is to be had, and who waits for a Future runs nothing: better here than never

    def _finish(self, set_outcome: Callable[[], None]) -> None:
        future = self.future
        if future._job is None:  # type: ignore[attr-defined]
            return
        if future.running() or future.set_running_or_notify_cancel():  # which wakes those that wait for a cancelled one
            set_outcome()
        self._release()

    def _release(self) -> None:
        """Part from the Future, which has its outcome: job and Future would keep each other alive."""
        self.future._job = None  # type: ignore[attr-defined]


class _Condition(threading.Condition):
    """Its ``with`` calls the lock's own methods, which are written in C, so that no signal handler runs within them.

    Condition's are written in Python. Ctrl-C in the middle of ``future.result()`` could leave the lock taken, and the
    scheduler would wait for it for ever.
    """

    __enter__ = property(lambda self: self._lock.__enter__)
    __exit__ = property(lambda self: self._lock.__exit__)


class _Future(Future[ChatResult]):
    """Settled by the scheduler, whose thread must not run callbacks itself."""

    def __init__(self, job: FutureJob) -> None:
        super().__init__()
        self._condition = _Condition()
        self._job: FutureJob | None = job

    # Future's own methods take the lock for these, and Ctrl-C in a thread that polls could leave it taken: in Python
    # 3.14 it may come between taking a lock and the ``with`` block that releases it (python/cpython#148874).

    def done(self) -> bool:
        return self._state in (_base.CANCELLED, _base.CANCELLED_AND_NOTIFIED, _base.FINISHED)

    def running(self) -> bool:
        return self._state == _base.RUNNING

    def cancelled(self) -> bool:
        return self._state in (_base.CANCELLED, _base.CANCELLED_AND_NOTIFIED)

    def add_done_callback(self, fn: Callable[[Future[ChatResult]], Any]) -> None:
        job = self._job
        if job is None:
            super().add_done_callback(fn)
        else:
            backend, began = job.backend, job.began  # not the job, which would keep its Future alive
            super().add_done_callback(lambda future: backend.call_back(fn, future, began))

    def result(self, timeout: float | None = None) -> ChatResult:
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check_process()
        return super().exception(timeout)

    def _check_process(self) -> None:
        if self._job is not None and self._job.is_inherited:
            raise RuntimeError("this call belongs to the parent process; submit the prompt again in this one")
