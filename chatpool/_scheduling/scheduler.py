"""Decides which call is sent next, and when. Its thread owns the schedule; all others post messages to it.

A call is in exactly one place: not begun (``JobState.queues``), ready or first in line (``Lane``), delayed
(``Backlog``), in flight with a worker, being parsed, or settled. Every report is handled before the next call is sent,
so the limits know of a refusal before anything else leaves.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import threading
import time
from concurrent.futures import Future
from typing import Any, Callable, NamedTuple

from chatpool._limits.limits import Limits
from chatpool._protocol.judgement import is_fatal_for_all, is_refusal
from chatpool._protocol.results import ChatResult
from chatpool.errors import CallError, NotSentError, SpendLimitError

from .actor import Actor
from .backlog import Backlog, Deadlines, JobState, Lane
from .bottleneck import Bottleneck
from .call import Call, unsent
from .callback_threads import CallbackThreads, Task
from .job import FutureJob, Job, Reason, send_for
from .reasons import (
    deadline_passed,
    exception_elsewhere,
    no_call_can_succeed,
    nobody_waits,
    outage,
    pool_closed,
)
from .retry import Postponed
from .sender import Sender
from .workers import Workers

_TICK = 0.05  # seconds between two looks at the calls in flight, and so how late a timeout may be

_logger = logging.getLogger("chatpool")

Step = Callable[[Call], "ChatResult | None"]


class Report(NamedTuple):
    """How a step of a call ended, by the thread that made it. Without any of these, the answer is to be parsed."""

    result: ChatResult | None = None
    delay: float | None = None  # seconds until the next attempt
    bug: BaseException | None = None


class Scheduler(Actor):
    """Owns the state of all jobs and calls of an engine, its workers and its callback threads."""

    def __init__(self, sender: Sender, limits: Limits, size: int) -> None:
        super().__init__("chatpool-scheduler")
        self._sender, self._limits, self._size = sender, limits, size
        self._workers = Workers(size, self._send_here)
        self._callback_threads = CallbackThreads(max(1, size - 1), self._callback_done)
        self._jobs: dict[Job, JobState] = {}
        self._deadlines = Deadlines()
        self._backlog = Backlog()
        self._in_flight: set[Call] = set()
        self._answers_at_long_wait = -1  # how many there were when a call was last rejected for longer than max_wait
        self._is_leaving = False  # the interpreter exits: only jobs that other threads wait for go on
        self._opens = math.inf  # when the limits let the next call pass
        self._blocked_by: str | None = None  # the limit that it waits for
        self._dismissed: list[threading.Thread] = []
        self._has_ended = False
        self._looked_at = time.monotonic()
        self._bottleneck = Bottleneck(size)

    def close(self) -> None:
        """Cancel everything, end the threads and wait for them, unless this is one of them."""
        self.stop()
        self.join()
        own = ("chatpool-scheduler", "chatpool-worker", "chatpool-callback")
        wait = not threading.current_thread().name.startswith(own)
        self._workers.close(wait=wait)
        for thread in self._dismissed if wait else ():
            thread.join()

    # Messages. All that follows runs in the scheduler's thread, but for the steps of calls.

    def add(self, job: Job, requests: list[Any]) -> None:
        """Take in a job's new prompts."""
        state = self._jobs.get(job) or self._add_job(job)
        state.add(requests)
        if state.reason is not None or self.is_over:
            self.cancel(job, state.reason or pool_closed, abort=state.is_aborted)
        else:
            self._review(state)
            self._backlog.enlist(state)

    def forget(self, job: Job) -> None:
        """Drop a job that nobody waits for. Cancels what is left of it."""
        state = self._jobs.get(job)
        if state is None:
            return
        if job.is_inline:  # its thread has left, perhaps in the middle of a request
            for call in self._in_flight & state.calls:
                self._leave_wire(call)
        for call in job.take_handed_over() & self._in_flight:
            self._leave_wire(call)
        self.cancel(job, nobody_waits)
        if self._jobs.pop(job, None) is not None:
            state.queues.clear()  # a queue knows its state, and this circle would keep the pool alive
        if job.outer is not None:
            job.outer.backend.disown(job.outer, job)

    def cancel(self, job: Job, reason: Reason, abort: bool = True) -> None:
        """Send nothing more of a job. With ``abort``, end what is in flight or being parsed, too."""
        state = self._jobs.get(job)
        if state is None:
            return
        state.reason, state.is_aborted = state.reason or reason, state.is_aborted or abort
        job.is_cancelled = True
        requests = state.take_requests()
        if requests:
            error = reason()  # one for all: there may be a million
            self._settle(job, [unsent(request, error) for request in requests])
        for call in list(state.calls):
            if abort or (call not in self._in_flight and call not in state.parsing):
                error = reason()
                error.__cause__ = error.__cause__ or call.last_error
                if call in self._in_flight:
                    call.note_unanswered()
                call.scope.cancel(error)
                self._finish(state, call, call.result(error))
        for inner in list(state.inner) if abort else ():
            inner.cancel(reason)

    def cancel_where(self, applies: Callable[[Job], bool], reason: Reason) -> int:
        """Cancel some jobs; return how many of them were submitted."""
        jobs = [job for job in self._jobs if applies(job)]
        for job in jobs:
            self.cancel(job, reason)
        return sum(isinstance(job, FutureJob) for job in jobs)

    def adopt(self, outer: Job, inner: Job) -> None:
        """Have a job end with the one whose parse made it."""
        state = self._jobs.get(outer)
        if state is None:
            return
        state.inner.add(inner)
        if state.is_aborted and state.reason is not None:
            inner.cancel(state.reason)

    def disown(self, outer: Job, inner: Job) -> None:
        """Note that an inner job has ended."""
        if outer in self._jobs:
            self._jobs[outer].inner.discard(inner)

    def leave(self) -> None:
        """The interpreter exits: end the threads as soon as nothing is left for them."""
        self._is_leaving = True

    def futures(self, pool_id: object) -> list[Future[ChatResult]]:
        """Return the Futures of one pool that are not done."""
        return [job.future for job in self._jobs if isinstance(job, FutureJob) and job.pool_id is pool_id]

    def call_back(self, run: Callable[[], None], job_began: float) -> None:
        """Run a Future's callback."""
        if self._has_ended or not self._callback_threads.run(run, job_began):
            run()  # better here than never

    def _end(self) -> None:
        self.is_over = True
        self.cancel_where(lambda job: True, pool_closed)

    def _add_job(self, job: Job) -> JobState:
        state = self._jobs[job] = JobState(job, self._size)
        job.scheduled(self._bottleneck.waits, self._limits.figures)
        self._deadlines.add(job)
        if job.outer is not None:
            job.outer.backend.adopt(job.outer, job)
        return state

    # The loop.

    def _step(self) -> None:
        now = time.monotonic()
        self._bottleneck.count(now)
        self._backlog.wake(now)
        if now - self._looked_at >= _TICK:
            self._look(now)
        self._cancel_late_jobs(now)
        self._dispatch()
        self._bottleneck.note(len(self._in_flight), self._blocked_by, self._backlog)
        if self._is_leaving and all(state.is_aborted for state in self._jobs.values()):
            self._dismiss()

    def _timeout(self) -> float:
        """Return the seconds until there is something to do."""
        wake_up = min(self._opens, self._backlog.next_due, self._deadlines.next)
        if self._in_flight or self._blocked_by is not None or self._callback_threads.are_short_of_threads:
            wake_up = min(wake_up, self._looked_at + _TICK)
        return wake_up if wake_up == math.inf else max(0.0, min(wake_up - time.monotonic(), threading.TIMEOUT_MAX))

    def _look(self, now: float) -> None:
        """Time calls out: in flight, and in line at the limits. Start a thread for user code that is stuck without."""
        self._looked_at = now
        for call in self._in_flight:
            if now >= call.scope.timeout_at or call.scope.is_cut:
                call.scope.check(now)
        self._callback_threads.grow()
        waiting = [call for _, lane in self._backlog.lanes() for call in lane.waiting()]
        if waiting and self._limits.outage_left(now) <= 0:
            self._end_outage(waiting)
        for call in waiting:
            if now >= call.ends and (state := self._state_of(call)) is not None:
                self._finish(state, call, call.result(call.last_error or call.timeout_error(now)))

    def _cancel_late_jobs(self, now: float) -> None:
        while self._deadlines.next <= now:
            job = self._deadlines.pop()
            if job is not None:
                self.cancel(job, deadline_passed)

    def _recover(self, bug: BaseException) -> None:
        """A bug of ours, or a MemoryError: start with a clean slate, and have every waiting thread raise it."""
        _logger.critical("the scheduler failed; every call is cancelled", exc_info=bug)
        jobs, self._jobs, self._backlog = self._jobs, {}, Backlog()
        self._opens, self._blocked_by = math.inf, None
        self._deadlines = Deadlines()
        for job, state in jobs.items():
            job.is_cancelled = True
            job.fail(bug)
            for call in state.calls:
                call.scope.cancel(NotSentError(f"cancelled: the scheduler failed: {bug!r}"))

    def _wind_up(self) -> None:
        self._has_ended = True
        self._dismiss()
        self._workers.close(wait=False)

    def _dismiss(self) -> None:
        self._workers.dismiss()
        self._dismissed = self._callback_threads.dismiss()

    # Sending.

    def _dispatch(self) -> None:
        """Send as much as slots and limits allow: one call of each lane in turn."""
        self._opens, self._blocked_by = math.inf, None
        open_lanes = dict(self._backlog.lanes())
        while open_lanes and len(self._in_flight) < self._size:
            for model, lane in list(open_lanes.items()):
                if len(self._in_flight) >= self._size:
                    return
                if not self._send_next(model, lane):
                    del open_lanes[model]
                if not self._inbox.empty():
                    self._opens = 0.0  # a refusal, perhaps: the limits are to know of it before the next call is sent
                    return

    def _send_next(self, model: str, lane: Lane) -> bool:
        """Send the call that is first in line; return False if the lane is empty or its limits do not let it pass."""
        call = lane.next(new_first=self._limits.prefers_new(model))
        if call is None:
            self._backlog.drop(model)
            return False
        state = self._state_of(call)
        if state is None:  # it was settled meanwhile
            lane.head = None
            return True
        if state.is_held and not state.hopeless.awaits(call.index):
            lane.head = None
            state.parked.append(call)
            return True
        if call.job.is_away:
            lane.head = None
            self._backlog.delay(call, time.monotonic() + _TICK)
            return True
        if self._sender.must_save(call):
            lane.head = None
            state.save(call)
            return True
        if not call.attempts and (error := self._sender.prepare(call)) is not None:
            lane.head = None
            self._finish(state, call, call.result(error))
            return True
        now = time.monotonic()
        delay, cause = self._limits.delay(now, call)
        if delay > 0:
            if self._blocked_by is None or now + delay < self._opens:
                self._opens, self._blocked_by = now + delay, cause
            return False
        lane.head = None
        self._send(state, call, now)
        return True

    def _send(self, state: JobState, call: Call, now: float) -> None:
        job = call.job
        try:
            if job.budget is not None:
                job.budget.reserve(call.last_error, call.most_cost or 0.0)
        except SpendLimitError as error:
            self._finish(state, call, call.result(error))
            self.cancel(job, functools.partial(SpendLimitError, str(error), code=error.code), abort=False)
            return
        call.begin_attempt(now, self._limits.answers_of(call.model))
        self._limits.sent(now, call)
        self._in_flight.add(call)
        if job.is_inline or not self._workers.send(call, len(self._in_flight)):
            job.hand_over(functools.partial(self._send_here, call))

    # In the threads of workers and callbacks.

    def _send_here(self, call: Call) -> None:
        send_for(self, functools.partial(self._perform, call, self._sender.send))

    def _parse_here(self, call: Call) -> None:
        if call.scope.error is None:  # else it was cancelled meanwhile
            call.job.enter(functools.partial(self._perform, call, self._sender.parse))

    def _perform(self, call: Call, step: Step) -> None:
        """Make a step of a call within its caller's context, and report how it ended."""
        try:
            report = Report(call.job.context.copy().run(step, call))
        except Postponed as later:
            report = Report(delay=later.delay)
        except BaseException as bug:  # noqa: BLE001 - the thread that waits for the job raises it
            report = Report(bug=bug)
        self._inbox.put(functools.partial(self._handle, call, report))
        if report.bug is not None and call.job.is_inline:
            raise report.bug  # this is the thread that waits

    def _callback_done(self, task: Task) -> None:
        self._inbox.put(functools.partial(self._callback_threads.forget, task))

    # Reports.

    def _handle(self, call: Call, report: Report) -> None:
        own_wait = self._conclude(call) if call in self._in_flight else 0.0
        state = self._state_of(call)
        if state is None:
            return  # it was cancelled meanwhile
        state.parsing.discard(call)
        if report.bug is not None:
            self._fail(state, call, report.bug)
            return
        error = report.result.error if report.result is not None else None
        if report.delay is not None:
            error = call.last_error
            self._delay(state, call, max(report.delay, own_wait))
        elif report.result is not None:
            self._complete(state, call, report.result)
        else:
            self._parse(state, call)
        state.hopeless.observe(call.index, error, is_final=report.delay is None)
        self._review(state)

    def _review(self, state: JobState) -> None:
        """End a job in which nothing succeeds."""
        error = self._backlog.review(state)
        if error is not None and state.reason is None:
            self.cancel(state.job, functools.partial(copy.copy, error), abort=False)

    def _parse(self, state: JobState, call: Call) -> None:
        state.parsing.add(call)
        parse = functools.partial(self._parse_here, call)
        if call.job.parses_itself or not self._callback_threads.run(parse, call.job.began):
            call.job.hand_over(parse)

    def _delay(self, state: JobState, call: Call, delay: float) -> None:
        if state.reason is None:
            self._backlog.delay(call, time.monotonic() + delay)
        else:
            self._finish(state, call, call.result(call.last_error))

    def _complete(self, state: JobState, call: Call, result: ChatResult) -> None:
        self._finish(state, call, result)
        if result.error is None:
            self._limits.answered(call)
        elif is_fatal_for_all(result.error) or self._is_second_long_wait(result.error):
            self.cancel(call.job, functools.partial(no_call_can_succeed, result.error), abort=False)

    def _is_second_long_wait(self, error: CallError) -> bool:
        """Whether two calls were rejected for longer than ``max_wait``, with no answer between them."""
        if not is_refusal(error) or (error.retry_after or 0) <= self._sender.max_wait:
            return False
        before, self._answers_at_long_wait = self._answers_at_long_wait, self._limits.answers
        return before == self._limits.answers

    def _end_outage(self, waiting: list[Call]) -> None:
        """The server was out for too long: cancel the jobs that have something to send to it."""
        cause = self._limits.outage_cause
        self._limits.outage_over()
        jobs = {call.job for call in waiting} | {job for job, state in self._jobs.items() if state.has_requests}
        for job in jobs & self._jobs.keys():
            state = self._jobs[job]
            for call in state.calls - self._in_flight - state.parsing:
                self._finish(state, call, call.result(call.last_error or outage(cause)))
            self.cancel(job, functools.partial(no_call_can_succeed, outage(cause)), abort=False)

    def _fail(self, state: JobState, call: Call, bug: BaseException) -> None:
        """Have the waiting thread raise what the user's code raised."""
        bug.__dict__.setdefault("prompt_index", call.index)
        call.job.fail(bug)
        self.cancel(call.job, exception_elsewhere)

    def _conclude(self, call: Call) -> float:
        """Have the limits learn from an attempt; return the seconds that the call itself has to wait."""
        own_wait = call.signal(self._limits, time.monotonic(), call) if call.signal is not None else None
        self._leave_wire(call)
        return own_wait or 0.0

    def _leave_wire(self, call: Call) -> None:
        self._in_flight.remove(call)
        self._limits.left_wire(time.monotonic(), call)
        if call.job.budget is not None and call.most_cost is not None:
            call.job.budget.settle(call.most_cost, call.attempt_cost)
            if call.job in self._jobs:
                self._backlog.spend(self._jobs[call.job])

    def _state_of(self, call: Call) -> JobState | None:
        """Return the state of a call's job; None if the call is settled."""
        state = self._jobs.get(call.job)
        return state if state is not None and call in state.calls else None

    def _finish(self, state: JobState, call: Call, result: ChatResult) -> None:
        if call in state.calls:
            state.calls.remove(call)
            self._limits.ended(call)
            self._settle(call.job, [result])

    def _settle(self, job: Job, results: list[ChatResult]) -> None:
        job.settle(results)
        if isinstance(job, FutureJob):
            self.forget(job)
