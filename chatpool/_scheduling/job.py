"""A run, which is the calls of one map, imap, submit or ask as the one thread sees it that waits for them; and a call.

A call belongs to one thread at a time, the scheduler's or that of the worker which makes a try; what another thread may
do to it meanwhile goes through its ``scope``.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, Callable, Protocol

from chatpool._http.cancel import CancelScope
from chatpool._protocol.replies import Completion
from chatpool._protocol.requests import CHAT_PATH
from chatpool._protocol.results import Attempt, ChatResult, Parse, Retry, Usage
from chatpool.errors import APITimeoutError, CallError, DeadlineError, NotSentError

from .budgets import Allowance

PAST_DEADLINE = "the deadline passed before this prompt was answered"


class Call:
    """The state of one call. All times are readings of ``time.monotonic()``."""

    __slots__ = (
        "answers_seen", "attempts", "completion", "due", "feedback", "index", "last_error", "path", "payload", "prompt",
        "request_id", "run", "scope", "sent_at", "started", "timeline", "tokens", "tries", "usage", "value",
    )  # fmt: skip

    def __init__(self, run: Run, index: int, prompt: Any) -> None:
        self.run, self.index, self.prompt = run, index, prompt
        self.payload, self.path, self.tokens = (
            b"",
            CHAT_PATH,
            0,
        )  # the request's body; where to; an estimate of its cost
        self.attempts = self.tries = 0  # requests sent; of them, those that count against max_tries
        self.started = self.sent_at = 0.0  # when the first and the latest try began
        self.due = 0.0  # when the next try may begin
        self.answers_seen = 0  # answers the whole pool had had when the latest try began
        self.completion: Completion | None = None
        self.value: Any = None
        self.request_id: str | None = None
        self.usage: Usage | None = None  # of all tries together: each was paid for
        self.last_error: CallError | None = None
        self.timeline: list[Attempt] = []  # of the tries that failed, and of the one that then did not
        self.feedback: tuple[Any, ...] = ()  # what the latest try tells the limits
        self.scope = CancelScope()

    @property
    def ends(self) -> float:
        """When the call is over, whatever it does: the map's deadline or ``max_time``."""
        if self.run.max_time is None or not self.started:
            return self.run.deadline
        return min(self.run.deadline, self.started + self.run.max_time)

    def begin_try(self, answers_seen: int) -> None:
        """Note that a request is about to be sent."""
        self.sent_at = time.monotonic()
        self.started = self.started or self.sent_at
        self.scope.begin(self.ends)
        self.attempts += 1
        self.answers_seen = answers_seen
        self.completion, self.request_id, self.feedback = None, None, ()

    def out_of_time(self, now: float) -> CallError | None:
        """Return the error for a limit of the whole call that is over."""
        if now >= self.run.deadline:
            return self.past_deadline()
        if now < self.ends:
            return None
        told = f"; the last failure: {self.last_error}" if self.last_error else ""
        return APITimeoutError(f"max_time of {self.run.max_time:g} s is over{told}", code="max_time")

    def past_deadline(self) -> DeadlineError:
        """Return the error for a call that the deadline of its map overtook."""
        error = DeadlineError(PAST_DEADLINE)
        error.__cause__ = self.last_error
        return error

    def result(self, error: CallError | None) -> ChatResult:
        """Return the outcome."""
        done = self.completion
        elapsed = time.monotonic() - self.started if self.started else 0.0
        if error is None and self.timeline:
            self.timeline.append(Attempt(self.sent_at - self.started, elapsed, None))
        if error is not None:
            error.attempts = self.attempts
            error.request_id = error.request_id or self.request_id
            error.__traceback__ = None  # it would keep every frame of the call alive
        return ChatResult(
            index=self.index,
            prompt=self.prompt,
            text=done.text if done else None,
            value=self.value if error is None else None,
            reasoning=done.reasoning if done else None,
            finish_reason=done.finish_reason if done else None,
            usage=self.usage,
            response=done.response if done else None,
            request_id=self.request_id or (error.request_id if error else None),
            attempts=self.attempts,
            elapsed=elapsed,
            error=error,
        )


def unsent(index: int, prompt: Any, error: CallError) -> ChatResult:
    """Return the result of a prompt whose call was never begun."""
    return ChatResult(index, prompt, None, None, None, None, None, None, None, 0, 0.0, error)


Indexed = tuple[int, Any]  # a prompt's index and the prompt
Reason = Callable[[], CallError]  # makes the error of each call that is given up
Record = Callable[[ChatResult, list[Attempt]], None]

_here = threading.local()


class Engine(Protocol):
    """What makes the calls of a run."""

    def start(self, run: Run, jobs: int) -> None:
        """Make the calls of a run that are to be begun."""

    def cancel(self, run: Run, reason: Reason) -> None:
        """Give a run up; does not wait for that."""

    def settle(self) -> None:
        """Wait until all that was asked so far is done."""

    def end(self, run: Run) -> None:
        """Forget a run."""

    def adopt(self, outer: Run, inner: Run) -> None:
        """Have a run end with that within whose parse it was made."""

    def disown(self, outer: Run, inner: Run) -> None:
        """It has come to its own end."""

    def call_back(self, function: Callable[[Future[ChatResult]], Any], future: Future[ChatResult]) -> None:
        """Run a Future's callback, in a thread for that."""


class Run:
    """Belongs to the process that made it: a forked child has no thread that would make its calls."""

    def __init__(
        self,
        engine: Engine,
        *,
        params: Mapping[str, Any],
        max_time: float | None = None,
        parse: Parse | None = None,
        deadline: float | None = None,
    ) -> None:
        self.engine = engine
        self.params, self.parse, self.max_time = params, parse, max_time
        self.began = time.monotonic()
        self.deadline = math.inf if deadline is None else self.began + deadline
        self.outer: Run | None = getattr(_here, "run", None)  # within whose parse this one was made
        self.owner: threading.Thread | None = self.outer.owner if self.outer else threading.current_thread()
        self._pid = os.getpid()
        self.context = contextvars.copy_context()
        self.tenant: object = None  # the pool that it was asked of, where several share an engine
        self.allowance: Allowance | None = None
        self.notice: Callable[[Retry], None] | None = None  # is told of each try that will be made again
        self.record: Record | None = None  # is told of each call that came to its own end, and of its tries
        # Filled by whoever adds prompts, emptied by the scheduler.
        self.todo: deque[Indexed] = deque()
        # The scheduler's alone.
        self.ready: deque[Call] = deque()  # their back-off is over
        self.calls: set[Call] = set()  # begun, and not settled
        self.parsing: set[Call] = set()
        self.inner: set[Run] = set()  # made within this one's parse
        self.verdict: Reason | None = None  # why nothing more is sent
        self.is_cut = False
        self.retries = 0
        self._waits_before: Counter[str] = Counter()
        self._pool_waits: Mapping[str, float] = {}
        # Filled by the scheduler, emptied by the thread that gathers.
        self._settled: deque[ChatResult] = deque()
        self.bug: BaseException | None = None
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._wanted = math.inf
        # In a callback's thread nobody else may be free to parse: who waits there parses.
        self._parses_itself = in_callback_thread()
        self._chores: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.results: dict[int, ChatResult] = {}  # gathered, by index, in the order they came

    # For the thread that asked.

    @property
    def is_inherited(self) -> bool:
        """Whether this is a parent process's run, seen from a forked child."""
        return os.getpid() != self._pid

    @property
    def waits(self) -> dict[str, float]:
        """Seconds that places were idle since this run began, by cause."""
        return dict(Counter(self._pool_waits) - self._waits_before)

    def add(self, prompts: Iterable[Indexed]) -> int:
        """Take prompts in; return how many there are now to be begun."""
        self.todo.extend(prompts)
        return len(self.todo)

    def gather(self, wanted: float, timeout: float) -> list[ChatResult]:
        """Wait until so many results are there or the time is over; return the new ones. Raises a bug found.

        What it returns stays in ``results``, so that nothing is lost if Ctrl-C comes before the caller has put it away.
        """
        if self.is_inherited:
            raise RuntimeError("these calls belong to the parent process; map them anew in this one")
        self._wanted = wanted
        if self.bug is None and len(self._settled) < wanted:
            with contextlib.suppress(Empty):
                self._bell.get(timeout=min(timeout, threading.TIMEOUT_MAX))
        self._wanted = math.inf
        self._do_chores()
        if self.bug is not None:
            raise self.bug
        return self.take_done()

    def gather_one(self, tell: Callable[[Retry], Any] | None) -> ChatResult:
        """Wait for the only result; ``tell`` is called in this thread."""
        notices: deque[Retry] = deque()
        self.notice = notices.append if tell is not None else None
        self.engine.start(self, 1)
        fresh: list[ChatResult] = []
        while not fresh:
            fresh = self.gather(1, threading.TIMEOUT_MAX if tell is None else 0.1)
            while notices and tell is not None:
                tell(notices.popleft())
        return fresh[0]

    def take_done(self) -> list[ChatResult]:
        """Return the results that nobody gathered yet, and put them into ``results``."""
        fresh: list[ChatResult] = []
        while not self.is_inherited and self._settled:
            fresh.append(self._settled[0])
            self.results[self._settled[0].index] = self._settled[0]
            self._settled.popleft()  # last: interrupted before this, it is merely taken again
        return fresh

    def cancel(self, reason: Reason) -> None:
        """Give everything up; does not wait for that. Takes no lock: the garbage collector may call it."""
        if not self.is_inherited:
            self.engine.cancel(self, reason)

    def stop(self, reason: Reason, *, cut: bool) -> None:
        """Give everything up, and wait until it is settled."""
        if not self.is_inherited:
            self.engine.cancel(self, reason)
            self.engine.settle()

    def drop(self) -> None:
        """Give everything up, because nobody wants the results."""
        self.cancel(outer_gone)

    def end(self) -> None:
        """Be forgotten by whoever knew of this run."""
        if not self.is_inherited:
            self.engine.end(self)

    def _do_chores(self) -> None:
        while not self._chores.empty():
            self._chores.get()()

    # For the scheduler.

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to send."""
        return bool(self.todo or self.ready)

    def scheduled(self, waits: Counter[str]) -> None:
        """Note that the scheduler knows this run."""
        self._pool_waits, self._waits_before = waits, Counter(waits)
        if self.outer is not None:
            self.outer.engine.adopt(self.outer, self)

    def may_begin(self) -> bool:
        """Whether the next prompt may be taken up."""
        return True

    def settle(self, results: Iterable[ChatResult]) -> None:
        """Hand results out."""
        self._settled.extend(results)
        if len(self._settled) >= self._wanted:
            self.ring()

    def ring(self) -> None:
        """Wake the thread that gathers."""
        self._bell.put(None)

    def hand_out(self, chore: Callable[[], None], executor: Executor) -> None:
        """Have an answer parsed: by a callback's thread, or by the one that waits."""
        if not self._parses_itself:
            with contextlib.suppress(RuntimeError):  # no thread to be had, or the interpreter exits
                executor.submit(chore)
                return
        self._chores.put(chore)
        self.ring()

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """Let runs that are made within be inner ones of this."""
        before = getattr(_here, "run", None)
        _here.run = self
        try:
            yield
        finally:
            _here.run = before


def in_callback_thread() -> bool:
    """Whether this thread runs parse or callbacks."""
    return getattr(_here, "is_callback", False)


def enter_callback_thread() -> None:
    """Mark this thread as one that runs parse and callbacks."""
    _here.is_callback = True


def deadline_passed() -> DeadlineError:
    """Return the error of what the deadline overtook."""
    return DeadlineError(PAST_DEADLINE)


def outer_gone() -> NotSentError:
    """Return the error of what nobody waits for."""
    return NotSentError("given up: nobody waits for this answer any more")


class _Future(Future[ChatResult]):
    """Settled by the scheduler, whose thread must not run callbacks itself."""

    def __init__(self, run: FutureRun) -> None:
        super().__init__()
        self._run: FutureRun | None = run

    def add_done_callback(self, fn: Callable[[Future[ChatResult]], Any]) -> None:
        engine = self._run.engine if self._run is not None else None
        if engine is None:
            super().add_done_callback(fn)
        else:
            super().add_done_callback(lambda future: engine.call_back(fn, future))

    def result(self, timeout: float | None = None) -> ChatResult:
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check_process()
        return super().exception(timeout)

    def _check_process(self) -> None:
        if self._run is not None and self._run.is_inherited:
            raise RuntimeError("this call belongs to the parent process; submit it anew in this one")


class FutureRun(Run):
    """The run of one submit: its outcome goes into a Future."""

    def __init__(self, engine: Engine, **settings: Any) -> None:
        super().__init__(engine, **settings)
        self.future: Future[ChatResult] = _Future(self)
        self.owner = self.outer = None

    def may_begin(self) -> bool:
        if self.future.set_running_or_notify_cancel():
            return True
        self.todo.clear()
        self.engine.end(self)
        return False

    def settle(self, results: Iterable[ChatResult]) -> None:
        (result,) = results
        future = self.future
        if future.done() or not (future.running() or future.set_running_or_notify_cancel()):
            return
        if self.bug is not None:
            future.set_exception(self.bug)
        else:
            future.set_result(result)
        future._run = None  # type: ignore[attr-defined]  # or run and future would keep each other alive
