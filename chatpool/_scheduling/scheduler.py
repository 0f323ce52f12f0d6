"""Decides which call is sent next, and when. One thread does; all others post messages to it.

That thread alone touches what is scheduled, so there is no lock, and neither Ctrl-C, which can break only into the main
thread, nor the garbage collector, which can break into any, ever finds or leaves anything half done: what they do is
one ``SimpleQueue.put``.

A call is in one place at a time: a prompt in ``run.todo``; ``run.ready``; ``_delayed``, where a back-off costs no
thread; ``_head``, first in line at the limits; ``_in_flight``, with a worker of its own; with ``parse``; or settled.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
import math
import threading
import time
import weakref
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, Callable

from chatpool._protocol.results import ChatResult
from chatpool.errors import CallError, NotSentError, PoolClosedError, SpendLimitError

from .job import Call, FutureRun, Reason, Run, deadline_passed, enter_callback_thread, outer_gone, unsent
from .limits import BACK_OFF, PLACES, Limits
from .retry import Postponed, is_fatal_for_all
from .sender import Client, Foreign

_TICK = 0.05  # seconds between two looks at the calls in flight, and so how late a cut may be

_logger = logging.getLogger("chatpool")


class Scheduler:
    """Its thread starts with the first message and ends with ``close`` or ``stop``."""

    def __init__(self, client: Client, limits: Limits, workers: int) -> None:
        self._client, self._limits, self._size = client, limits, workers
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._jobs: SimpleQueue[Call | None] = SimpleQueue()
        self._executor = ThreadPoolExecutor(workers, "chatpool-worker")
        self._callbacks = ThreadPoolExecutor(max(1, workers - 1), "chatpool-callback", enter_callback_thread)
        self._thread: threading.Thread | None = None
        self._claim = threading.Lock()  # whoever holds it is the scheduler
        self.is_over = False
        # From here on: the scheduler's thread only.
        self._all: set[Run] = set()
        self._turn: deque[Run] = deque()  # runs with something to send, in turn
        self._deadlines: list[tuple[float, int, weakref.ref[Run]]] = []
        self._delayed: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()
        self._head: Call | None = None
        self._in_flight: set[Call] = set()
        self._workers = 0
        self._is_leaving = False  # the interpreter exits: what is left is awaited by other threads
        self._opens, self._blocked_by = math.inf, PLACES
        self._looked_at = self._counted_at = time.monotonic()
        self.waits: Counter[str] = Counter()  # seconds that places were idle though there were calls, by cause

    # For any thread.

    def post(self, act: Callable[..., None], *args: Any) -> None:
        """Have the scheduler do something."""
        self._inbox.put(functools.partial(act, *args))
        if self.is_over:
            raise PoolClosedError("this pool is closed; make a new one")
        if self._thread is None:
            thread = threading.Thread(target=self._loop, name="chatpool-scheduler", daemon=True)
            thread.start()
            self._thread = thread

    def ask(self, act: Callable[[], Any]) -> Any:
        """Have the scheduler tell something, and wait for it."""
        if self._thread is None or self.is_over:
            return act()
        answer: SimpleQueue[Any] = SimpleQueue()
        self.post(lambda: answer.put(act()))
        return answer.get()

    def after_end(self, act: Callable[..., None], *args: Any) -> None:
        """Do what came too late for the scheduler."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        act(*args)

    def stop(self) -> None:
        """Give everything up. All that the garbage collector may do."""
        self._inbox.put(self._end)

    def close(self) -> None:
        """Give everything up, and wait for the threads to end, unless this is one of them."""
        self._inbox.put(self._end)
        mine = self._thread, threading.current_thread()
        if mine[0] is None:
            self.is_over = True
            return
        is_ours = threading.current_thread().name.startswith(("chatpool-worker", "chatpool-callback"))
        if mine[0] is not mine[1]:
            mine[0].join()
        self._executor.shutdown(wait=not is_ours)
        self._callbacks.shutdown(wait=not is_ours)

    # Messages: the rest runs in the scheduler's thread.

    def add(self, run: Run) -> None:
        """Take a run's new prompts up."""
        if run not in self._all:
            self._all.add(run)
            run.scheduled(self.waits)
            if run.deadline < math.inf:
                heapq.heappush(self._deadlines, (run.deadline, next(self._numbers), weakref.ref(run)))
        if run.verdict is not None or self.is_over:
            self.cancel(run, run.verdict or _closed, run.is_cut)
        elif run.is_waiting and run not in self._turn:
            self._turn.append(run)

    def forget(self, run: Run) -> None:
        """Nobody waits for this run any more."""
        self._all.discard(run)
        if run.calls:
            self.cancel(run, outer_gone)

    def cancel(self, run: Run, reason: Reason, cut: bool = True) -> None:
        """Send nothing more of a run. With ``cut``, give up what is in flight or being parsed, too."""
        run.verdict, run.is_cut = run.verdict or reason, run.is_cut or cut
        todo = list(run.todo)
        run.todo.clear()
        if todo:
            error = reason()  # one for all: there may be a million
            self._settle(run, *(unsent(index, prompt, error) for index, prompt in todo))
        for call in list(run.calls):
            if cut or (call not in self._in_flight and call not in run.parsing):
                error = reason()
                error.__cause__ = error.__cause__ or call.last_error
                call.scope.cancel(error)
                self._finish(call, call.result(error))
        for inner in list(run.inner) if cut else ():
            inner.cancel(reason)

    def cancel_where(self, wanted: Callable[[Run], bool], reason: Reason) -> int:
        """Cancel some runs; return how many of them were submitted."""
        runs = [run for run in self._all if wanted(run)]
        for run in runs:
            self.cancel(run, reason)
        return sum(isinstance(run, FutureRun) for run in runs)

    def leave(self) -> None:
        """The interpreter exits: end the workers as soon as nothing is left for them."""
        self._is_leaving = True

    def futures(self, tenant: object) -> list[Future[ChatResult]]:
        """Return what was submitted and is not done."""
        return [run.future for run in self._all if isinstance(run, FutureRun) and run.tenant is tenant]

    def _end(self) -> None:
        self.is_over = True
        self.cancel_where(lambda run: True, _closed)

    # The loop.

    def _loop(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        while not self.is_over:
            try:
                self._step()
            except BaseException as bug:  # noqa: BLE001 - nobody shall wait for ever
                for run in list(self._all):
                    self._abandon(run, bug)
        self._receive(0)  # what came too late
        self._let_workers_go()
        self._executor.shutdown(wait=False)
        self._callbacks.shutdown(wait=False)

    def _step(self) -> None:
        self._receive(self._timeout())
        now = time.monotonic()
        self._count_idle(now)
        while self._delayed and self._delayed[0][0] <= now:
            call = heapq.heappop(self._delayed)[2]
            call.run.ready.append(call)
            self.add(call.run)
        while self._deadlines and self._deadlines[0][0] <= now:
            run = heapq.heappop(self._deadlines)[2]()
            if run is not None and run in self._all:
                self.cancel(run, deadline_passed)
        if now - self._looked_at >= _TICK:
            self._look(now)
        self._dispatch()
        if self._is_leaving and all(run.is_cut for run in self._all):
            self._let_workers_go()

    def _receive(self, timeout: float) -> None:
        try:
            self._inbox.get(timeout=None if timeout == math.inf else timeout)()
            while True:
                self._inbox.get_nowait()()
        except Empty:
            pass

    def _timeout(self) -> float:
        times = [self._opens, self._delayed[0][0] if self._delayed else math.inf]
        times.append(self._deadlines[0][0] if self._deadlines else math.inf)
        if self._in_flight or self._head is not None:
            times.append(self._looked_at + _TICK)
        return (
            max(0.0, min(min(times) - time.monotonic(), threading.TIMEOUT_MAX)) if min(times) < math.inf else math.inf
        )

    def _look(self, now: float) -> None:
        """Cut the tries whose time is over; give up those that waited in vain."""
        self._looked_at = now
        for call in self._in_flight:
            if now >= call.scope.timeout_at or call.scope.is_cut:
                call.scope.check(now)
        if self._head is not None and self._limits.outage_left(now) <= 0:
            self._give_up_outage()
        waiting = [self._head] if self._head is not None else []
        for call in [*waiting, *(call for run in self._turn for call in run.ready)]:
            if now >= call.ends and call in call.run.calls:
                self._finish(call, call.result(call.last_error if now < call.run.deadline else call.past_deadline()))

    def _count_idle(self, now: float) -> None:
        seconds, self._counted_at = now - self._counted_at, now
        free = self._size - len(self._in_flight)
        if free and self._head is not None:
            self.waits[self._blocked_by] += free * seconds
        elif free and self._delayed:
            self.waits[BACK_OFF] += min(free, len(self._delayed)) * seconds

    # Sending.

    def _dispatch(self) -> None:
        self._opens = math.inf
        while len(self._in_flight) < self._size:
            call = self._head = self._head or self._next()
            if call is None:
                return
            if call not in call.run.calls:  # it was settled meanwhile
                self._head = None
                continue
            now = time.monotonic()
            delay, self._blocked_by = self._limits.delay(now, call)
            if delay > 0:
                self._opens = now + delay
                return
            self._head = None
            self._send(call, now)

    def _next(self) -> Call | None:
        """Take one call of the next run in turn."""
        while self._turn:
            run = self._turn.popleft()
            call = self._take(run)
            if run.is_waiting:
                self._turn.append(run)
            if call is not None:
                return call
        return None

    def _take(self, run: Run) -> Call | None:
        if run.ready:
            return run.ready.popleft()
        if not run.todo or not run.may_begin():
            return None
        call = Call(run, *run.todo.popleft())
        run.calls.add(call)
        self._client.prepare(call)
        error = self._limits.refusal(call)
        if error is None:
            return call
        self._finish(call, call.result(error))
        return None

    def _send(self, call: Call, now: float) -> None:
        try:
            if call.run.allowance is not None:
                call.run.allowance.claim(call.last_error)
        except SpendLimitError as error:
            self._finish(call, call.result(error))
            self.cancel(call.run, functools.partial(SpendLimitError, str(error), code=error.code), cut=False)
            return
        call.begin_try(self._limits.answers)
        self._limits.sent(now, call)
        self._in_flight.add(call)
        self._jobs.put(call)
        if len(self._in_flight) > self._workers:
            self._hire()

    def _hire(self) -> None:
        try:
            self._executor.submit(self._work)
            self._workers += 1
        except RuntimeError:  # no more threads to be had: the others go on, or this one does it itself
            if not self._workers:
                self._make(self._jobs.get(), self._client.send)

    def _let_workers_go(self) -> None:
        self._jobs.put(None)

    # In the workers' threads.

    def _work(self) -> None:
        while (call := self._jobs.get()) is not None:
            self._make(call, self._client.send)
            del call  # or it would live on, with its prompt and its answer, until the next one comes
        self._jobs.put(None)  # for the next worker

    def _make(self, call: Call, step: Callable[[Call], ChatResult | None]) -> None:
        """Make a step of a call within its caller's context, and report."""
        result, delay, bug = None, math.nan, None
        try:
            result = call.run.context.copy().run(step, call)
        except Postponed as later:
            delay = later.delay
        except Foreign as raised:
            bug = raised.error
        except BaseException as raised:  # noqa: BLE001 - whoever waits for the run raises it
            bug = raised
        self._inbox.put(functools.partial(self._report, call, result, delay, bug))

    # Reports.

    def _report(self, call: Call, result: ChatResult | None, delay: float, bug: BaseException | None) -> None:
        run = call.run
        if call in self._in_flight:
            self._in_flight.remove(call)
            self._limits.left_wire(call)
            if call.feedback:
                getattr(self._limits, call.feedback[0])(call, call.feedback[1])
        run.parsing.discard(call)
        if bug is not None:
            bug.__dict__.setdefault("prompt_index", call.index)
            self._abandon(run, bug)
        elif call not in run.calls:
            return  # it was given up meanwhile
        elif delay == delay:
            self._delay(call, delay)
        elif result is None:
            run.parsing.add(call)
            run.hand_out(functools.partial(self._parse, call), self._callbacks)
        else:
            self._close(call, result)

    def _parse(self, call: Call) -> None:
        with call.run.present():
            self._make(call, self._client.parse)

    def _delay(self, call: Call, delay: float) -> None:
        if call.run.verdict is not None:
            self._finish(call, call.result(call.last_error))
            return
        call.due = time.monotonic() + delay
        heapq.heappush(self._delayed, (call.due, next(self._numbers), call))

    def _close(self, call: Call, result: ChatResult) -> None:
        self._finish(call, result)
        if result.error is None:
            self._limits.answers += 1
        elif is_fatal_for_all(result.error):
            self.cancel(call.run, functools.partial(not_sent, result.error), cut=False)

    def _give_up_outage(self) -> None:
        cause = self._limits.outage_cause
        self._limits.outage_over()
        waiting = set(self._turn) | ({self._head.run} if self._head is not None else set())
        for run in waiting:
            for call in list(run.calls - self._in_flight - run.parsing):
                self._finish(call, call.result(call.last_error or _outage(cause)))
            self.cancel(run, functools.partial(not_sent, _outage(cause)), cut=False)

    def _abandon(self, run: Run, bug: BaseException) -> None:
        run.bug = run.bug or bug
        self.cancel(run, lambda: NotSentError("given up because of an exception in another call"))
        run.ring()

    def _finish(self, call: Call, result: ChatResult) -> None:
        if call in call.run.calls:
            call.run.calls.remove(call)
            call.run.retries += max(0, call.attempts - 1)
            self._settle(call.run, result)

    def _settle(self, run: Run, *results: ChatResult) -> None:
        run.settle(results)
        if isinstance(run, FutureRun):
            self.forget(run)


def not_sent(cause: CallError) -> NotSentError:
    """Return the error of a call that was not made, because another one showed that none can succeed."""
    if isinstance(cause, NotSentError) and isinstance(cause.__cause__, CallError):
        cause = cause.__cause__
    error = NotSentError(f"not sent, because no call can succeed: {cause}", code=cause.code)
    error.__cause__ = cause
    return error


def _outage(cause: CallError | None) -> NotSentError:
    error = NotSentError(f"not sent, because the server was out for too long: {cause}", code="outage")
    error.__cause__ = cause
    return error


def _closed() -> NotSentError:
    return NotSentError("given up: the pool was closed")
