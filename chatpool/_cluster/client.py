"""chatpool on a Dask cluster that the user already runs (extra ``dask``).

The caller keeps the prompts, the journal and the results. Batches of prompts go to the worker processes, each of which
has one pool of the given settings; results come back while the batch goes on. A batch is pinned to one worker: if that
is lost, Dask does not run the batch elsewhere, but the caller sends the prompts again that have no result yet.

Source of Dask's guarantees: "Task Launch", "Queue" and "Worker Failure" in the documentation of dask.distributed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Callable

from chatpool._protocol.answers import Answers
from chatpool._protocol.judgement import is_fatal_for_all
from chatpool._protocol.request_builder import Request, RequestBuilder
from chatpool._protocol.requests import Prompt, check_prompts
from chatpool._protocol.results import Attempt, ChatResult, PathLike
from chatpool._protocol.schemas import response_format_of
from chatpool._protocol.settings import check_deadline, check_params, check_parse
from chatpool._scheduling.call import unsent
from chatpool._scheduling.job import Job, Reason
from chatpool._scheduling.mapper import Mapper
from chatpool._scheduling.reasons import deadline_passed, no_call_can_succeed
from chatpool.errors import CallError, ConfigurationError, NotSentError
from chatpool.pool import ChatPool

try:
    from distributed import Client, Future, Queue, get_client, get_worker, secede
    from distributed.protocol.pickle import dumps, loads

    from .worker import Batch, Chunk, answer, share_budgets, stop
except ImportError as error:
    raise ImportError(f"chatpool.distributed needs Dask; pip install distributed ({error})") from None

__all__ = ["imap_unordered", "map"]

_logger = logging.getLogger("chatpool")

_POLL = 0.05  # seconds between two looks at the queue
_CHECK = 0.5  # seconds between two looks at the list of workers
_AHEAD = 2  # prompts at each worker for each of its slots, so that none is empty while a batch is on its way
_BATCHES = 4  # in which these come
_MOST_BYTES = 2**20  # of prompts in a batch; Dask warns of tasks that are much larger
_MOST_LOSSES = 3  # workers that a prompt may be lost with, like Dask's own allowed-failures


def map(
    pool: ChatPool,
    prompts: Iterable[Prompt],
    client: Client | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    response_format: Any = None,
    parse: Callable[[str], Any] | None = None,
    reask: bool = True,
    deadline: float | None = None,
    progress: bool | None = None,
    journal: PathLike | None = None,
) -> Answers[Any]:
    """Send every prompt through a cluster's workers; return the answers like ``ChatPool.map``.

    ``pool``: its settings; ``max_workers`` is for each worker process, ``requests_per_minute`` and
    ``tokens_per_minute`` are for all of them together. A key from the environment is not sent along: the workers need
    it in theirs. ``client``: a ``distributed.Client``; default: the present one. ``response_format`` and ``parse`` are
    applied on the workers, and so must pickle, as must the values that they return.
    ``on_result`` is called as in ``ChatPool.map``, ``on_retry`` is not.

    A prompt whose worker was lost is sent to another, until three were lost with it. It is paid for twice only if
    it was in flight, or was answered within the last tenth of a second.
    """
    check_prompts(prompts)
    how = {"response_format": response_format, "reask": reask}
    return mapper(pool, client, params, parse, deadline, progress, journal, **how).map(enumerate(prompts))


def imap_unordered(
    pool: ChatPool,
    prompts: Iterable[Prompt],
    client: Client | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    response_format: Any = None,
    parse: Callable[[str], Any] | None = None,
    reask: bool = True,
    deadline: float | None = None,
    progress: bool | None = None,
    journal: PathLike | None = None,
) -> Iterator[ChatResult]:
    """Yield the results as they come in, while prompts are read a little ahead of what the cluster can take.

    ``ChatResult.index`` is the prompt's. See ``map`` and ``ChatPool.imap_unordered`` for the rest.
    """
    check_prompts(prompts)
    how = {"response_format": response_format, "reask": reask}
    return mapper(pool, client, params, parse, deadline, progress, journal, **how).stream(prompts, in_order=False)


def mapper(
    pool: ChatPool,
    client: Client | None = None,
    params: Mapping[str, Any] | None = None,
    parse: Callable[[str], Any] | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
    journal: PathLike | None = None,
    *,
    response_format: Any = None,
    reask: bool = True,
    **how: Any,
) -> Mapper:
    """Return the mapper of a job whose calls are made by a cluster."""
    fields, parse_format = response_format_of(response_format)
    check_parse(parse, has_type=parse_format is not None)
    params, parse = {**check_params(params), **fields}, parse or parse_format
    cluster = Cluster(pool, _check_client(client or get_client()), params)
    builder = RequestBuilder(pool._settings, params)
    job = _ClusterJob(cluster, builder, parse=parse, deadline=check_deadline(deadline))
    job.reask = reask
    shown = pool._progress if progress is None else progress
    return Mapper(job, progress=shown, journal=journal, callbacks=pool._callbacks, **how)


def _leave_task_thread() -> None:
    """Within a Dask task, let others have its thread: this worker's own batches may need it."""
    with contextlib.suppress(
        ValueError, AttributeError, KeyError
    ):  # no Dask worker, or its thread has been left already
        get_worker()
        secede()


def _check_client(client: Client) -> Client:
    if not isinstance(client, Client):
        raise ConfigurationError(f"client must be a distributed.Client, not {type(client).__name__}")
    if client.asynchronous:
        raise ConfigurationError(
            "client must be a synchronous distributed.Client, and not be used in its own event loop"
        )
    return client


class _ClusterJob(Job):
    """A job whose calls are made elsewhere. Everything happens in the thread that waits for them."""

    def __init__(self, cluster: Cluster, builder: RequestBuilder, **settings: Any) -> None:
        super().__init__(cluster, builder, **settings)
        self._cluster = cluster
        self.scheduled(cluster.waits)

    def gather(self, wanted: float, timeout: float) -> list[ChatResult]:
        """Send what may be sent and take in what came, for at most ``timeout`` seconds."""
        if self.is_inherited:
            return super().gather(wanted, timeout)
        ends = min(time.monotonic() + timeout, self.deadline)
        try:
            while True:
                self._cluster.poll(self, must_send=wanted > 0)
                fresh = super().gather(0, 0)
                if fresh or not wanted or time.monotonic() >= ends:
                    return fresh
                time.sleep(_POLL)
        except KeyboardInterrupt:
            self._cluster.take_in(self)
            raise


@dataclass
class _SentBatch:
    """A batch that is out: its worker, and its requests that have no result yet."""

    worker: str
    future: Future
    requests: dict[int, Request]
    is_over: bool = False  # Dask reported its end once


class Cluster:
    """The worker processes, as one job sees them. Used by one thread at a time."""

    def __init__(self, pool: ChatPool, client: Client, params: Mapping[str, Any]) -> None:
        settings = pool._settings
        self._params, self._client, self._pool = params, client, dumps(pool)
        self._slots = settings.max_workers
        self._has_budget = settings.requests_per_minute is not None or settings.tokens_per_minute is not None
        self._job_id = f"chatpool-{uuid.uuid4().hex}"
        self._queue: Queue | None = None
        self._inbox: deque[bytes] = deque()
        self._pid = os.getpid()
        self._is_over = False
        self._reason: Reason | None = None  # why nothing more is sent
        self._workers: dict[str, int] = {}  # how many prompts are out at each
        self._todo: deque[Request] = deque()
        self._sent: dict[int, _SentBatch] = {}
        self._losses: Counter[int] = Counter()  # workers lost, by prompt
        self.waits: Counter[str] = Counter()  # seconds in which calls were held back, over all workers, by cause
        self._numbers = 0
        self._looked_at = self._counted_at = self._sent_at = -math.inf

    # The backend of a job.

    @property
    def slots(self) -> int:
        """How many calls may be in flight at once, in all processes."""
        return self._slots * max(1, len(self._workers))

    def start(self, job: Job, requests: Sequence[Request]) -> None:
        """Take requests in; they are sent while their results are waited for."""
        if self._queue is None:
            _leave_task_thread()
            self._queue = Queue(self._job_id, client=self._client)
        self._todo.extend(requests)
        if self._reason is not None:
            self._settle_unsent(job)

    def cancel(self, job: Job, reason: Reason) -> None:
        """Send nothing more, and have the workers cancel what they have."""
        if os.getpid() != self._pid:
            return
        self._stop_sending(job, reason)
        for sent in self._sent.values():
            job.settle(unsent(request, reason()) for request in sent.requests.values())
        self._abort()

    def wait_until_settled(self) -> None:
        """Everything is settled at once."""

    def forget(self, job: Job) -> None:
        """Leave nothing of a job on the scheduler."""
        self._abort()
        queue, self._queue = self._queue, None
        if queue is not None and os.getpid() == self._pid:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                queue.close()

    def adopt(self, outer: Job, inner: Job) -> None:
        """No job is made by the parse of a cluster's job in this process."""

    def disown(self, outer: Job, inner: Job) -> None:
        """As in ``adopt``."""

    def call_back(self, function: Callable[[Any], Any], future: Any, began: float) -> None:
        """No Future is made for a cluster."""

    # What a job asks of its cluster.

    def poll(self, job: Job, *, must_send: bool) -> None:
        """Do what is due: take results in, look which workers there are, send batches."""
        now = time.monotonic()
        if now >= job.deadline and self._reason is None:
            self.take_in(job)
            self.cancel(job, deadline_passed)
        if now - self._looked_at >= _POLL and self._sent:
            self.take_in(job)
            self._check_batches(job)
        if now - self._counted_at >= _CHECK:
            self._count_workers(job)
        if must_send or now - self._sent_at >= _POLL:
            self._send(job)

    def take_in(self, job: Job) -> None:
        """Settle the results that have come, each once."""
        self._client.sync(self._fetch)
        self._looked_at = time.monotonic()
        while self._inbox:
            chunk: Chunk = loads(self._inbox[0])
            self._take_in_chunk(job, chunk)
            self._inbox.popleft()  # last: interrupted before this, it is merely looked at again

    async def _fetch(self) -> None:
        # On Dask's thread, so that the results it takes from the queue are kept even if Ctrl-C comes in between.
        if self._queue is not None:
            self._inbox.extend(await self._queue.get(batch=True, asynchronous=True))

    def _take_in_chunk(self, job: Job, chunk: Chunk) -> None:
        sent = self._sent.get(chunk.batch)
        for bare, timeline, error_body in chunk.results:
            request = sent.requests.pop(bare.index, None) if sent is not None else None
            if sent is None or request is None:
                continue  # its worker was taken for lost, and it is out again
            self._workers[sent.worker] = self._workers.get(sent.worker, 0) - 1
            self._settle(job, replace(bare, prompt=request.prompt), timeline, error_body)
        if chunk.waits is not None and self._sent.pop(chunk.batch, None) is not None:
            self.waits.update(chunk.waits)

    def _settle(self, job: Job, result: ChatResult, timeline: Sequence[Attempt], error_body: str | None = None) -> None:
        if job.record is not None:
            job.record(result, timeline, error_body)
        job.settle([result])
        if result.error is not None and _is_hopeless(result.error):
            self._stop_sending(job, functools.partial(no_call_can_succeed, result.error))

    def _stop_sending(self, job: Job, reason: Reason) -> None:
        self._reason = self._reason or reason
        self._settle_unsent(job)

    def _settle_unsent(self, job: Job) -> None:
        assert self._reason is not None
        error = self._reason()  # one for all: there may be a million
        todo, self._todo = self._todo, deque()
        job.settle(unsent(request, error) for request in todo)

    def _abort(self) -> None:
        """Have the workers cancel what they have."""
        if self._is_over or os.getpid() != self._pid:
            return
        self._is_over = True
        if self._sent:
            self._run_on_workers(stop, self._job_id)
        for sent in self._sent.values():
            sent.future.release()  # an exception raised from it would keep it, and its task on the scheduler, alive
        self._sent.clear()

    def _check_batches(self, job: Job) -> None:
        """Raise an exception of a batch as a whole; send again what ended without its results."""
        for number, sent in list(self._sent.items()):
            status = sent.future.status
            if status == "error":
                self._count_workers(job)
                if number in self._sent:  # else it was lost with its worker
                    raise sent.future.exception()
            elif sent.is_over:
                self._requeue(job, number)
            sent.is_over = status != "pending"  # its last results may still be on the queue: one more look

    def _count_workers(self, job: Job) -> None:
        """Look which workers there are; share the budgets among them again if they have changed."""
        self._counted_at = time.monotonic()
        present = set(self._client.nthreads())
        gone = self._workers.keys() - present
        if gone:
            self.take_in(job)  # what they answered in their last moments
        for number, sent in list(self._sent.items()):
            if sent.worker in gone:
                self._requeue(job, number)
        if present == self._workers.keys():
            return
        _logger.info("%d Dask workers: %d new, %d gone", len(present), len(present - self._workers.keys()), len(gone))
        self._workers = {worker: self._workers.get(worker, 0) for worker in present}
        if self._has_budget and present:
            self._run_on_workers(share_budgets, self._pool, 1 / len(present))

    def _requeue(self, job: Job, number: int) -> None:
        """Take a batch's requests back, to be sent to another worker."""
        sent = self._sent.pop(number)
        sent.future.release()
        if sent.worker in self._workers:
            self._workers[sent.worker] -= len(sent.requests)
        for request in sent.requests.values():
            self._losses[request.index] += 1
            if self._losses[request.index] < _MOST_LOSSES:
                self._todo.appendleft(request)
            else:
                message = f"cancelled: {_MOST_LOSSES} workers were lost while they had this prompt"
                job.settle([unsent(request, NotSentError(message, code="workers_lost"))])
        if self._reason is not None:
            self._settle_unsent(job)

    def _send(self, job: Job) -> None:
        """Send batches to whichever worker has the fewest prompts, until all have enough or nothing is left."""
        self._sent_at = time.monotonic()
        most = _AHEAD * self._slots
        size = max(1, most // _BATCHES)
        while self._workers and self._todo:
            worker = min(self._workers, key=self._workers.__getitem__)
            share = math.ceil(len(self._todo) / len(self._workers))
            requests = self._next_requests(min(size, share, most - self._workers[worker]))
            if not requests:
                return
            self._submit(job, worker, requests)

    def _next_requests(self, most: int) -> list[Request]:
        requests: list[Request] = []
        left = _MOST_BYTES
        while self._todo and len(requests) < most and left > 0:
            requests.append(self._todo.popleft())
            left -= len(dumps(requests[-1].prompt))
        return requests

    def _submit(self, job: Job, worker: str, requests: list[Request]) -> None:
        self._numbers += 1
        batch = Batch(
            self._job_id,
            self._numbers,
            self._pool,
            1 / len(self._workers),
            self._params,
            job.parse,
            job.reask,
            None if job.deadline == math.inf else max(0.0, job.deadline - time.monotonic()),
            [(request.index, request.prompt) for request in requests],
        )
        future = self._client.submit(
            answer,
            dumps(batch),
            key=f"{self._job_id}-{self._numbers}",
            workers=[worker],
            allow_other_workers=False,
        )
        self._sent[self._numbers] = _SentBatch(worker, future, {request.index: request for request in requests})
        self._workers[worker] += len(requests)

    def _run_on_workers(self, function: Callable[..., None], *args: Any) -> None:
        """Run a function on every worker at once, bypassing its queue; ignore workers that are gone."""
        if self._client.asynchronous:  # the garbage collector runs this on Dask's own thread, which must not wait
            return
        with contextlib.suppress(Exception):
            self._client.run(function, *args, workers=list(self._workers), on_error="ignore")


def _is_hopeless(error: CallError) -> bool:
    """Return whether an error shows that no other prompt can be answered either."""
    if isinstance(error, NotSentError):
        return error.code not in ("over_budget", "workers_lost")
    return is_fatal_for_all(error)
