"""What runs in a Dask worker process: batches of prompts go through that process's pool, results go back in lumps.

The lumps go through a queue on the scheduler, so what was answered is known even if the worker is lost a moment later.
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
from chatpool._scheduling.job import Indexed, Run
from chatpool.errors import ConfigurationError, NotSentError
from chatpool.pool import ChatPool

_LUMP = 0.1  # seconds between two lumps of a batch

_lock = threading.Lock()
_runs: dict[str, set[Run]] = {}  # those under way, by job
_stopped: deque[str] = deque(maxlen=1000)  # jobs whose batches, should any still come, are not to be begun


# Neither has a repr that shows what is in it: Dask logs that of what cannot be pickled, and there may be a key in it.


@dataclass(frozen=True, repr=False)
class Batch:
    """Prompts for one worker. ``pool``: pickled, the same bytes for the whole job. ``part``: of the budgets."""

    job: str
    number: int
    pool: bytes
    part: float
    params: Mapping[str, Any]
    parse: Parse | None
    deadline: float | None
    prompts: Sequence[Indexed]


@dataclass(frozen=True, repr=False)
class Lump:
    """Some results of a batch, without their prompts. ``waits``: with the last of them, seconds by cause."""

    batch: int
    results: Sequence[tuple[ChatResult, Sequence[Attempt]]]
    waits: Mapping[str, float] | None


def answer(pickled: bytes) -> None:
    """Answer a batch. Leaves the worker's task thread to others meanwhile: what bounds the calls is the pool."""
    secede()
    batch: Batch = loads(pickled)
    with closing(Queue(batch.job, client=get_client())) as queue:
        for lump in _lumps(batch):
            queue.put(_dumps(lump))


def share_budgets(pool: bytes, part: float) -> None:
    """Keep to this part of the budgets from now on."""
    loads(pool)._engine().share_budgets(part)


def stop(job: str) -> None:
    """Give up what is under way of a job, and begin no more of it."""
    with _lock:
        _stopped.append(job)
        runs = list(_runs.get(job, ()))
    for run in runs:
        run.stop(_given_up, cut=True)


def _lumps(batch: Batch) -> Iterator[Lump]:
    pool = _pool_of(batch)
    engine, run = pool._make_run(Run, batch.params, batch.parse, batch.deadline)
    engine.share_budgets(batch.part)
    timelines: dict[int, Sequence[Attempt]] = {}
    run.record = lambda result, timeline: timelines.__setitem__(result.index, timeline)
    left = len(batch.prompts)
    with _listed(batch.job, run):
        engine.start(run, run.add(batch.prompts))
        while left:
            fresh = run.gather(left, _LUMP)
            left -= len(fresh)
            results = [(replace(result, prompt=None), timelines.pop(result.index, ())) for result in fresh]
            if results:
                yield Lump(batch.number, results, None if left else dict(run.waits))


def _pool_of(batch: Batch) -> ChatPool:
    try:
        pool: ChatPool = loads(batch.pool)
    except ConfigurationError as error:
        raise ConfigurationError(f"on the Dask worker {get_worker().address}: {error}") from None
    return pool


def _dumps(lump: Lump) -> bytes:
    try:
        pickled: bytes = dumps(lump)
    except Exception as error:  # noqa: BLE001 - what pickling raises depends on the object
        raise TypeError(f"what parse returned cannot be sent back from the Dask worker: {error}") from None
    return pickled


@contextmanager
def _listed(job: str, run: Run) -> Iterator[None]:
    """Let ``stop`` find a run for as long as it lasts."""
    with _lock:
        _runs.setdefault(job, set()).add(run)
        is_stopped = job in _stopped
    try:
        if is_stopped:
            run.stop(_given_up, cut=True)
        yield
    except BaseException:
        run.stop(_given_up, cut=True)
        raise
    finally:
        run.end()
        with _lock:
            _runs[job].discard(run)
            if not _runs[job]:
                del _runs[job]


def _given_up() -> NotSentError:
    return NotSentError("given up: the run was stopped")
