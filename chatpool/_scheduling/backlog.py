"""The calls that wait to be sent, in order. For the scheduler's thread alone."""

from __future__ import annotations

import heapq
import itertools
import math
import weakref
from collections import deque
from collections.abc import Iterable, Iterator

from chatpool._protocol.request_builder import Request
from chatpool.errors import NotSentError

from .call import Call
from .hopeless import HopelessRun
from .job import Job, Reason

_MANY = 256  # deadlines


class JobState:
    """A job as the scheduler sees it."""

    def __init__(self, job: Job, slots: int) -> None:
        self.job = job
        self.queues: dict[str, Queue] = {}  # what is not begun, by model
        self.calls: set[Call] = set()  # begun, and not settled
        self.parsing: set[Call] = set()  # of these, the ones whose answer is being parsed
        self.inner: set[Job] = set()  # jobs made by its parse
        self.reason: Reason | None = None  # why it was cancelled
        self.is_aborted = False  # cancelled together with what was in flight
        # Nothing succeeds: only probes are sent, until it is clear whether anything can.
        self.hopeless = HopelessRun(slots)
        self.is_held = False
        self.parked: list[Call] = []  # begun, and held
        self.is_saving = False  # its budget allows no other request until one in flight has cost less than reserved

    def add(self, requests: Iterable[Request]) -> None:
        """Queue new requests."""
        for request in requests:
            queue = self.queues.get(request.model)
            if queue is None:
                queue = self.queues[request.model] = Queue(self)
            queue.requests.append(request)

    def save(self, call: Call) -> None:
        """Hold a call, and begin no other, until a request in flight is done."""
        self.is_saving = True
        self.parked.append(call)

    def add_probes(self) -> None:
        """Choose probes among the prompts that are left, and put them first."""
        lengths = {request.index: request.size for queue in self.queues.values() for request in queue.requests}
        probes = self.hopeless.choose_probes(lengths)
        for queue in self.queues.values():
            queue.requests = deque(sorted(queue.requests, key=lambda request: request.index not in probes))

    @property
    def has_requests(self) -> bool:
        """Whether there are prompts whose calls are not begun."""
        return any(queue.requests for queue in self.queues.values())

    def take_requests(self) -> list[Request]:
        """Empty the queues; return what was in them."""
        requests: list[Request] = []
        for queue in self.queues.values():
            requests += queue.requests
            queue.requests.clear()
        return requests


class Queue:
    """The prompts of one job and one model whose calls are not begun."""

    def __init__(self, state: JobState) -> None:
        self._state = state
        self.requests: deque[Request] = deque()
        self.is_listed = False  # it takes turns in its lane

    @property
    def may_begin(self) -> bool:
        """Whether the next call may begin."""
        state = self._state
        if state.is_saving:
            return False
        return bool(self.requests) and (not state.is_held or state.hopeless.awaits(self.requests[0].index))

    def take(self) -> Call | None:
        """Begin the next call; return None if none may begin."""
        job = self._state.job
        if not self.may_begin:
            return None
        if not job.may_begin():  # its Future was cancelled
            self.requests.clear()
            return None
        call = Call(job, self.requests.popleft())
        self._state.calls.add(call)
        return call


class Lane:
    """Everything that waits for one model. Limits are per model, so a lane that waits for them holds up no other."""

    def __init__(self) -> None:
        self.head: Call | None = None  # first in line at the limits
        self.ready: deque[Call] = deque()  # their back-off is over; they go before new ones
        self._turns: deque[Queue] = deque()  # one for each job, which take turns

    def enlist(self, queue: Queue) -> None:
        """Let a queue take turns, unless nothing of it may begin or it does already."""
        if queue.may_begin and not queue.is_listed:
            queue.is_listed = True
            self._turns.append(queue)

    def next(self, *, new_first: bool = False) -> Call | None:
        """Return the call that is first in line; None if nothing waits. ``new_first``: one that was not sent yet."""
        if new_first and self.head is not None and self.head.attempts and self._turns:
            self.ready.appendleft(self.head)
            self.head = None
        if self.head is None and self.ready and not (new_first and self._turns):
            self.head = self.ready.popleft()
        while self.head is None and self._turns:
            queue = self._turns.popleft()
            self.head = queue.take()
            queue.is_listed = False
            self.enlist(queue)
        if self.head is None and self.ready:
            self.head = self.ready.popleft()
        return self.head

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self.head is None and not self.ready and not self._turns

    def waiting(self) -> list[Call]:
        """Return the calls that wait only for the limits."""
        return [*([self.head] if self.head is not None else []), *self.ready]


class Deadlines:
    """The deadlines of jobs, the earliest first. Holds no job alive, and few entries of jobs that have ended."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, weakref.ref[Job]]] = []
        self._numbers = itertools.count()
        self._most = _MANY  # entries, from which on those of ended jobs are dropped

    def add(self, job: Job) -> None:
        """Note a job's deadline, if it has one."""
        if job.deadline == math.inf:
            return
        if len(self._heap) >= self._most:
            self._heap = [entry for entry in self._heap if entry[2]() is not None]
            heapq.heapify(self._heap)
            self._most = max(_MANY, 2 * len(self._heap))
        heapq.heappush(self._heap, (job.deadline, next(self._numbers), weakref.ref(job)))

    @property
    def next(self) -> float:
        """The earliest deadline."""
        return self._heap[0][0] if self._heap else math.inf

    def pop(self) -> Job | None:
        """Take the earliest; return its job, or None if that has ended."""
        return heapq.heappop(self._heap)[2]()


class Backlog:
    """All lanes that are not empty, and the calls that wait out a back-off, which costs no thread."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._delayed: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()  # calls that are due at the same time keep their order

    def lanes(self) -> Iterator[tuple[str, Lane]]:
        """Yield every lane with its model; meanwhile lanes may be dropped."""
        return iter(list(self._lanes.items()))

    def drop(self, model: str) -> None:
        """Forget a lane that is empty."""
        del self._lanes[model]

    @property
    def is_waiting(self) -> bool:
        """Whether a call could be sent if there were a slot, as far as the limits let it."""
        return any(not lane.is_empty for lane in self._lanes.values())

    @property
    def next_due(self) -> float:
        """When the next delayed call is due."""
        return self._delayed[0][0] if self._delayed else math.inf

    @property
    def delayed(self) -> int:
        """How many calls wait out a back-off."""
        return len(self._delayed)

    def enlist(self, state: JobState) -> None:
        """Let a job's queues take turns."""
        for model, queue in state.queues.items():
            self._lane(model).enlist(queue)

    def review(self, state: JobState) -> NotSentError | None:
        """Hold a job in which nothing succeeds, and let probes through; return an error if it is hopeless."""
        run = state.hopeless
        if run.needs_probes:
            state.add_probes()
        if run.should_hold() and not run.needs_probes:  # without prompts to probe with, the retries decide
            state.is_held = True
            self.enlist(state)
            return run.verdict()
        if state.is_held:
            state.is_held = False
            self._release(state)
        return None

    def spend(self, state: JobState) -> None:
        """Let a job go on whose budget may allow a request again."""
        if state.is_saving:
            state.is_saving = False
            self._release(state)

    def _release(self, state: JobState) -> None:
        for call in state.parked:
            self.make_ready(call)
        state.parked.clear()
        self.enlist(state)

    def make_ready(self, call: Call) -> None:
        """Have a call that was begun wait only for the limits."""
        self._lane(call.model).ready.append(call)

    def delay(self, call: Call, due: float) -> None:
        """Keep a call until ``due``."""
        heapq.heappush(self._delayed, (due, next(self._numbers), call))

    def wake(self, now: float) -> None:
        """Make the calls ready whose back-off is over."""
        while self._delayed and self._delayed[0][0] <= now:
            self.make_ready(heapq.heappop(self._delayed)[2])

    def _lane(self, model: str) -> Lane:
        lane = self._lanes.get(model)
        if lane is None:
            lane = self._lanes[model] = Lane()
        return lane
