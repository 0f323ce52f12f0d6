"""chatpool on a Dask cluster that the user already runs (extra ``dask``).

The caller keeps the prompts, the journal and the results. Batches of prompts go to the worker processes, each of which
has one pool of the given settings; what is answered comes back while the batch goes on. A batch is for one worker only:
if that is lost, Dask does not run it again elsewhere, but the caller sends out what it does not know the answer to.

Source of what Dask promises: "Task Launch", "Queue" and "Worker Failure" in the documentation of dask.distributed.
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable

from chatpool._protocol.answers import Answers
from chatpool._protocol.requests import Prompt, check_prompt, check_prompts
from chatpool._protocol.results import ChatResult
from chatpool._protocol.settings import check_deadline, check_params, check_parse
from chatpool._scheduling.job import Call, Reason, Run, unsent
from chatpool._scheduling.mapper import Mapper
from chatpool._scheduling.retry import is_fatal_for_all
from chatpool._scheduling.scheduler import not_sent
from chatpool.errors import CallError, ConfigurationError, NotSentError
from chatpool.pool import ChatPool

try:
    from distributed import Client, Future, Queue, get_client, get_worker, secede
    from distributed.protocol.pickle import dumps, loads

    from .worker import Batch, Lump, answer, share_budgets, stop
except ImportError as error:
    raise ImportError(
        f"clusters are used through Dask, which is missing; pip install 'chatpool[dask]' ({error})"
    ) from None

if TYPE_CHECKING:
    from chatpool._protocol.results import PathLike

__all__ = ["imap_unordered", "map"]

_logger = logging.getLogger("chatpool")

_POLL = 0.05  # seconds between two looks at the queue
_CHECK = 0.5  # seconds between two looks at who works
_AHEAD = 2  # prompts at each worker for each of its places, so that none is idle while a batch is on its way
_BATCHES = 4  # in which these come
_MOST_BYTES = 2**20  # of prompts in a batch; Dask warns of tasks that are much larger
_MOST_LOSSES = 3  # workers that a prompt may be lost with, like Dask's own allowed-failures


def map(
    pool: ChatPool,
    prompts: Iterable[Prompt],
    client: Client | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    parse: Callable[[str], Any] | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
    journal: PathLike | None = None,
) -> Answers:
    """Send every prompt through a cluster's workers; return the answers like ``ChatPool.map``.

    ``pool``: its settings; ``max_workers`` is for each worker process, ``requests_per_minute`` and
    ``tokens_per_minute`` are for all of them together. A key from the environment is not sent along: the workers need
    it in theirs. ``client``: a ``distributed.Client``; default: the present one. ``parse`` runs on the workers, and so
    must pickle, as must what it returns. ``on_result`` is called as ever, ``on_retry`` is not.

    A prompt that was on the way when its worker was lost is sent again by another, three times at most. It is paid for
    twice only if it was answered within the last tenth of a second, or was on the wire.
    """
    check_prompts(prompts)
    items = list(enumerate(prompts))
    for index, prompt in items:
        check_prompt(prompt, index)
    return mapper(pool, client, params, parse, deadline, progress, journal).map(items)


def imap_unordered(
    pool: ChatPool,
    prompts: Iterable[Prompt],
    client: Client | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    parse: Callable[[str], Any] | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
    journal: PathLike | None = None,
) -> Iterator[ChatResult]:
    """Yield the results as they come in, while prompts are read a little ahead of what the cluster can take.

    ``ChatResult.index`` tells whose each is. See ``map`` and ``ChatPool.imap_unordered`` for the rest.
    """
    check_prompts(prompts)
    return mapper(pool, client, params, parse, deadline, progress, journal).stream(prompts, in_order=False)


def mapper(
    pool: ChatPool,
    client: Client | None = None,
    params: Mapping[str, Any] | None = None,
    parse: Callable[[str], Any] | None = None,
    deadline: float | None = None,
    progress: bool | None = None,
    journal: PathLike | None = None,
    **how: Any,
) -> Mapper:
    """Return what sends prompts through a cluster, and otherwise does as the pool's own maps do."""
    check_parse(parse)
    cluster = _Cluster(pool, _check_client(client or get_client()), check_params(params))
    run = _ClusterRun(cluster, params=cluster.merged_params, parse=parse, deadline=check_deadline(deadline))
    shown = pool._progress if progress is None else progress
    return Mapper(cluster, run, pool._settings, progress=shown, journal=journal, hooks=pool._hooks, **how)


def _leave_task_thread() -> None:
    """Within a Dask task, let others have its thread: this worker's own batches may need it."""
    with contextlib.suppress(ValueError, AttributeError, KeyError):  # no worker; no thread of its; it has left already
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


class _ClusterRun(Run):
    """A run whose calls are made elsewhere. Everything happens in the thread that gathers."""

    def __init__(self, cluster: _Cluster, **settings: Any) -> None:
        super().__init__(cluster, **settings)  # type: ignore[arg-type]  # no call is made in this process
        self._cluster = cluster

    def gather(self, wanted: float, timeout: float) -> list[ChatResult]:
        """Send out what may go, take in what came; wait for that at most so long."""
        if self.is_inherited:
            return super().gather(wanted, timeout)
        ends = min(time.monotonic() + timeout, self.deadline)
        try:
            while True:
                self._cluster.tend(self, must_send=wanted > 0)
                fresh = super().gather(0, 0)
                if fresh or not wanted or time.monotonic() >= ends:
                    return fresh
                self._cluster.nap()
        except KeyboardInterrupt:
            self._cluster.take_in(self)
            raise

    def stop(self, reason: Reason, *, cut: bool) -> None:
        """Send nothing more; with ``cut``, have the workers give up what they are at."""
        super().stop(reason, cut=cut)
        if cut:
            self._cluster.cancel()

    def drop(self) -> None:
        """Give everything up, because nobody wants the results."""
        super().drop()
        self._cluster.cancel()


@dataclass
class _Sent:
    """A batch that is out: its worker, and its calls that were not heard of."""

    worker: str
    future: Future
    calls: dict[int, Call]
    is_over: bool = False  # Dask has been seen to be through with it


class _Cluster:
    """The worker processes, seen by one run: what is out at each of them. Used by one thread at a time."""

    def __init__(self, pool: ChatPool, client: Client, params: Mapping[str, Any]) -> None:
        settings = pool._settings
        self.merged_params = {**settings.params, **params}
        self._params, self._client, self._pool = params, client, dumps(pool)
        self._places = settings.max_workers
        self._has_budget = settings.requests_per_minute is not None or settings.tokens_per_minute is not None
        self._job = f"chatpool-{uuid.uuid4().hex}"
        self._queue: Queue | None = None
        self._inbox: deque[bytes] = deque()
        self._pid = os.getpid()
        self._is_over = False
        self._workers: dict[str, int] = {}  # how many prompts are out at each
        self._sent: dict[int, _Sent] = {}
        self._again: deque[Call] = deque()  # their worker was lost
        self._losses: Counter[int] = Counter()
        self._numbers = 0
        self._looked_at = self._counted_at = self._sent_at = -math.inf

    # What a Mapper and a Run ask of an engine.

    @property
    def places(self) -> int:
        """How many calls may be in flight at once, in all processes."""
        return self._places * max(1, len(self._workers))

    def start(self, run: Run, jobs: int) -> None:
        """Make ready; calls go out when their results are waited for."""
        if self._queue is None:
            _leave_task_thread()
            self._queue = Queue(self._job, client=self._client)

    def end(self, run: Run) -> None:
        """Forget a run: leave nothing of it on the scheduler."""
        self.cancel()
        queue, self._queue = self._queue, None
        if queue is not None and os.getpid() == self._pid:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                queue.close()

    # What a run asks of its cluster.

    def tend(self, run: Run, *, must_send: bool) -> None:
        """Do what is due: take results in, look who works, send batches out."""
        now = time.monotonic()
        if now - self._looked_at >= _POLL and self._sent:
            self.take_in(run)
            self._look_after(run)
        if now - self._counted_at >= _CHECK:
            self._count_workers(run)
        if must_send or now - self._sent_at >= _POLL:
            self._send(run)

    def nap(self) -> None:
        """Wait until it is time to look again."""
        time.sleep(_POLL)

    def take_in(self, run: Run) -> None:
        """Settle the results that have come, each once."""
        self._client.sync(self._fetch)
        self._looked_at = time.monotonic()
        while self._inbox:
            lump: Lump = loads(self._inbox[0])
            self._take_in_lump(run, lump)
            self._inbox.popleft()  # last: interrupted before this, it is merely looked at again

    def cancel(self) -> None:
        """Have the workers give up what they are at."""
        if self._is_over or os.getpid() != self._pid:
            return
        self._is_over = True
        if self._sent:
            self._tell(stop, self._job)
        for sent in self._sent.values():
            sent.future.release()  # an exception raised from it would keep it, and its task on the scheduler, alive
        self._sent.clear()

    async def _fetch(self) -> None:
        # On Dask's thread, so that what it has taken from the queue is here even if Ctrl-C comes in between.
        if self._queue is not None:
            self._inbox.extend(await self._queue.get(batch=True, asynchronous=True))

    def _take_in_lump(self, run: Run, lump: Lump) -> None:
        sent = self._sent.get(lump.batch)
        for bare, timeline in lump.results:
            call = sent.calls.pop(bare.index, None) if sent is not None else None
            if sent is None or call is None:
                continue  # it was taken for lost, and is out again
            self._workers[sent.worker] = self._workers.get(sent.worker, 0) - 1
            result = replace(bare, prompt=call.prompt)
            call.attempts, call.timeline = result.attempts, list(timeline)
            run.close(call, result)
            if result.error is not None and _is_hopeless(result.error):
                run.stop(functools.partial(not_sent, result.error), cut=False)
        if lump.waits is not None and self._sent.pop(lump.batch, None) is not None:
            run.waits.update(lump.waits)

    def _look_after(self, run: Run) -> None:
        """Raise what went wrong with a batch as a whole; send again what ended without its results."""
        for number, sent in list(self._sent.items()):
            status = sent.future.status
            if status == "error":
                self._count_workers(run)
                if number in self._sent:  # else it went down with its worker
                    raise sent.future.exception()
            elif sent.is_over:
                self._give_back(run, number)
            sent.is_over = status != "pending"  # its last results may still be on the queue: once more around

    def _count_workers(self, run: Run) -> None:
        """Look which workers there are; share the budgets out anew if they are others than before."""
        self._counted_at = time.monotonic()
        present = set(self._client.nthreads())
        gone = self._workers.keys() - present
        if gone:
            self.take_in(run)  # what they answered in their last moments
        for number, sent in list(self._sent.items()):
            if sent.worker in gone:
                self._give_back(run, number)
        if present == self._workers.keys():
            return
        _logger.info(
            "%d Dask workers, %d are new, %d are gone", len(present), len(present - self._workers.keys()), len(gone)
        )
        self._workers = {worker: self._workers.get(worker, 0) for worker in present}
        if self._has_budget and present:
            self._tell(share_budgets, self._pool, 1 / len(present))

    def _give_back(self, run: Run, number: int) -> None:
        """Take a batch's calls back, to be sent to another worker."""
        sent = self._sent.pop(number)
        sent.future.release()
        if sent.worker in self._workers:
            self._workers[sent.worker] -= len(sent.calls)
        for call in sent.calls.values():
            self._losses[call.index] += 1
            if self._losses[call.index] < _MOST_LOSSES:
                self._again.append(call)
            else:
                told = f"given up: {_MOST_LOSSES} workers were lost while they had this prompt"
                run.close(call, unsent(call.index, call.prompt, NotSentError(told, code="workers_lost")))

    def _send(self, run: Run) -> None:
        """Send batches to whoever has the fewest prompts, until all have enough or nothing is left."""
        self._sent_at = time.monotonic()
        most = _AHEAD * self._places
        size = max(1, most // _BATCHES)
        waiting = run.waiting + len(self._again)
        while self._workers and waiting:
            worker = min(self._workers, key=self._workers.__getitem__)
            share = math.ceil(waiting / len(self._workers))
            calls = self._next_calls(run, min(size, share, most - self._workers[worker]))
            if not calls:
                return
            self._submit(run, worker, calls)
            waiting = run.waiting + len(self._again)

    def _next_calls(self, run: Run, most: int) -> list[Call]:
        calls: list[Call] = []
        left = _MOST_BYTES
        while len(calls) < most and left > 0:
            call = self._again.popleft() if self._again else run.next_call(may_wait=False)
            if call is None:
                break
            if call.stopped is not None:
                run.close(call, call.result(call.stopped))
                continue
            calls.append(call)
            left -= len(dumps(call.prompt))
        return calls

    def _submit(self, run: Run, worker: str, calls: list[Call]) -> None:
        self._numbers += 1
        batch = Batch(
            self._job,
            self._numbers,
            self._pool,
            1 / len(self._workers),
            self._params,
            run.parse,
            None if run.deadline == math.inf else max(0.0, run.deadline - time.monotonic()),
            [(call.index, call.prompt) for call in calls],
        )
        future = self._client.submit(
            answer,
            dumps(batch),
            key=f"{self._job}-{self._numbers}",
            workers=[worker],
            allow_other_workers=False,
        )
        self._sent[self._numbers] = _Sent(worker, future, {call.index: call for call in calls})
        self._workers[worker] += len(calls)

    def _tell(self, what: Callable[..., None], *args: Any) -> None:
        """Have a function run on the workers, past what they are at; one that is gone does not matter."""
        if self._client.asynchronous:  # the garbage collector runs this on Dask's own thread, which must not wait
            return
        with contextlib.suppress(Exception):
            self._client.run(what, *args, workers=list(self._workers), on_error="ignore")


def _is_hopeless(error: CallError) -> bool:
    """Whether an error shows that no other prompt can be answered either."""
    if isinstance(error, NotSentError):
        return error.code not in ("over_budget", "workers_lost")
    return is_fatal_for_all(error)
