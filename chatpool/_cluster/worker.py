"""What runs in a Dask worker process: batches of prompts go through that process's pool, results go back in chunks.

The chunks go through a queue on Dask's scheduler, so that no answer is lost with its worker a moment later.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from distributed import Queue, get_client, get_worker, secede
from distributed.protocol.pickle import dumps, loads

from chatpool._protocol.results import Attempt, ChatResult, Parse
from chatpool._scheduling.job import Job
from chatpool.errors import ConfigurationError, NotSentError
from chatpool.pool import ChatPool

_CHUNK_EVERY = 0.1  # seconds between two chunks of a batch

_lock = threading.Lock()
_jobs: dict[str, set[Job]] = {}  # those in progress here, by the caller's job
_stopped: deque[str] = deque(maxlen=1000)  # the callers' jobs of which no batch is begun any more


# Neither shows its contents in a repr: Dask logs the repr of an object that does not pickle, and it may hold a key.


@dataclass(frozen=True, repr=False)
class Batch:
    """Prompts for one worker. ``pool``: pickled, the same bytes for the whole job. ``part``: of the budgets."""

    job: str
    number: int
    pool: bytes
    part: float
    params: Mapping[str, Any]
    parse: Parse | None
    reask: bool
    deadline: float | None
    prompts: Sequence[tuple[int, Any]]


@dataclass(frozen=True, repr=False)
class Chunk:
    """Some results of a batch, without prompts, each with its attempts and the body of a failed reply.

    ``waits``: with the last of them, seconds by cause.
    """

    batch: int
    results: Sequence[tuple[ChatResult, Sequence[Attempt], str | None]]
    waits: Mapping[str, float] | None


def answer(pickled: bytes) -> None:
    """Answer a batch. Leaves the worker's task thread to others meanwhile: what bounds the calls is the pool."""
    secede()
    batch: Batch = loads(pickled)
    with closing(Queue(batch.job, client=get_client())) as queue:
        for chunk in _chunks(batch):
            queue.put(_dumps(chunk))


def share_budgets(pool: bytes, part: float) -> None:
    """Keep to this part of the budgets from now on."""
    loads(pool)._engine().share_budgets(part)


def stop(job_id: str) -> None:
    """Cancel the batches of a caller's job, and begin no more of them."""
    with _lock:
        _stopped.append(job_id)
        jobs = list(_jobs.get(job_id, ()))
    for job in jobs:
        job.stop(_stopped_by_caller)


def _chunks(batch: Batch) -> Iterator[Chunk]:
    pool = _pool_of(batch)
    job = pool._make_job(Job, batch.params, batch.parse, batch.deadline)
    job.reask = batch.reask
    pool._engine().share_budgets(batch.part)
    attempts: dict[int, tuple[Sequence[Attempt], str | None]] = {}
    job.record = lambda result, timeline, error_body: attempts.__setitem__(result.index, (timeline, error_body))
    left = len(batch.prompts)
    with _listed(batch.job, job):
        job.backend.start(job, [job.builder.request(index, prompt) for index, prompt in batch.prompts])
        while left:
            fresh = job.gather(left, _CHUNK_EVERY)
            left -= len(fresh)
            results = [(replace(result, prompt=None), *attempts.pop(result.index, ((), None))) for result in fresh]
            if results:
                yield Chunk(batch.number, results, None if left else job.waits)


def _pool_of(batch: Batch) -> ChatPool:
    try:
        pool: ChatPool = loads(batch.pool)
    except ConfigurationError as error:
        raise ConfigurationError(f"on the Dask worker {get_worker().address}: {error}") from None
    return pool


def _dumps(chunk: Chunk) -> bytes:
    try:
        pickled: bytes = dumps(chunk)
    except Exception as error:  # noqa: BLE001 - what pickling raises depends on the object
        raise TypeError(f"what parse returned cannot be sent back from the Dask worker: {error}") from None
    return pickled


@contextmanager
def _listed(job_id: str, job: Job) -> Iterator[None]:
    """Let ``stop`` find a job for as long as it lasts."""
    with _lock:
        _jobs.setdefault(job_id, set()).add(job)
        is_stopped = job_id in _stopped
    try:
        if is_stopped:
            job.stop(_stopped_by_caller)
        yield
    except BaseException:
        job.stop(_stopped_by_caller)
        raise
    finally:
        job.end()
        with _lock:
            _jobs[job_id].discard(job)
            if not _jobs[job_id]:
                del _jobs[job_id]


def _stopped_by_caller() -> NotSentError:
    return NotSentError("cancelled: the run was stopped")
