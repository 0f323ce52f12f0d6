"""What one process needs to make calls: Session, limits, scheduler."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Callable

from chatpool._http.resolver import Resolver
from chatpool._http.session import Session, Transport, inherited_from_parent
from chatpool._limits.limits import Limits
from chatpool._protocol.request_builder import Request
from chatpool._protocol.results import ChatResult
from chatpool._protocol.settings import Settings
from chatpool.errors import ConfigurationError, PoolClosedError

from .job import Job, Reason, is_sending
from .preload import preload
from .reasons import exiting, pool_closed
from .scheduler import Scheduler
from .sender import Sender

_logger = logging.getLogger("chatpool")

_Callback = Callable[[Future[ChatResult]], Any]

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_thread_local = threading.local()


class Core:
    """The part that may outlive an engine: the limits, with what they have learned, and the Session. Has no threads."""

    def __init__(self, settings: Settings, session: Session | None, user_agent: str) -> None:
        preload()
        _check_threads()
        self.pid = os.getpid()
        self.limits = Limits(
            settings.max_workers,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            longest_wait=settings.max_wait,
        )
        self.transport = Transport(settings, session, user_agent, Resolver())
        self.engine: Callable[[], Engine | None] = lambda: None  # the one that lives, if any
        weakref.finalize(self, _release, self.pid, self.transport).atexit = False


class Engine:
    """A pool's way to its scheduler. Made in each process at the first use; starts nothing itself.

    When nobody holds it any more, neither a pool nor a job, the scheduler ends.
    """

    def __init__(self, settings: Settings, core: Core) -> None:
        self.pid, self.slots = core.pid, settings.max_workers
        self._core = core
        core.engine = weakref.ref(self)
        sender = Sender(settings, core.transport, core.limits)
        self._scheduler = Scheduler(sender, core.limits, settings.max_workers)
        weakref.finalize(self, self._scheduler.stop).atexit = False
        self._is_leaving = False  # the interpreter exits
        _engines.add(self)

    # The backend of a job.

    def start(self, job: Job, requests: Sequence[Request]) -> None:
        """Make these calls of a job. Raises PoolClosedError."""
        if self._scheduler.is_over:
            raise PoolClosedError("this pool is closed; make a new one")
        if is_sending(self._scheduler) or is_sending(self):
            raise RuntimeError(
                "a Session hook or signal handler used the pool in the middle of a request of the same pool, and would "
                "wait for the slot of that request; use another pool there"
            )
        self._scheduler.post(self._add, job, requests, threading.current_thread().daemon)

    def cancel(self, job: Job, reason: Reason) -> None:
        """Cancel a job. Does not wait."""
        self._scheduler.post(self._scheduler.cancel, job, reason)

    def wait_until_settled(self) -> None:
        """Return once everything asked so far has been done."""
        self._scheduler.ask(lambda: None)

    def forget(self, job: Job) -> None:
        """Drop a job that nobody waits for; cancel what is left of it."""
        self._scheduler.post(self._scheduler.forget, job)

    def adopt(self, outer: Job, inner: Job) -> None:
        """Have a job end with the one whose parse made it."""
        self._scheduler.post(self._scheduler.adopt, outer, inner)

    def disown(self, outer: Job, inner: Job) -> None:
        """Note that an inner job has ended."""
        self._scheduler.post(self._scheduler.disown, outer, inner)

    def call_back(self, function: _Callback, future: Future[ChatResult], began: float) -> None:
        """Run a Future's callback, in a thread for that. ``began``: when its job did."""
        self._scheduler.post(self._scheduler.call_back, lambda: _call_back(function, future), began)

    # For the pool.

    def share_budgets(self, part: float) -> None:
        """Keep to this part of the budgets from now on, because other processes have the rest."""
        self._scheduler.post(self._core.limits.share_budgets, part)

    def futures_of(self, pool_id: object) -> list[Future[ChatResult]]:
        """Return the Futures of one pool that are not done."""
        futures: list[Future[ChatResult]] = self._scheduler.ask(lambda: self._scheduler.futures(pool_id))
        return futures

    def close(self) -> None:
        """Cancel everything, end the threads, close the connections."""
        self._scheduler.close()
        self._core.transport.close()

    def cancel_pool(self, pool_id: object) -> None:
        """Cancel the jobs of one pool."""
        self._scheduler.ask(lambda: self._scheduler.cancel_where(lambda job: job.pool_id is pool_id, pool_closed))

    def cancel_at_exit(self) -> int:
        """Cancel the jobs that no other thread waits for, now that the main thread has ended, and those that daemon
        threads begin from now on: the exit waits for none of them. Return how many of the jobs were submitted."""
        self._is_leaving = True
        scheduler = self._scheduler
        lost: int = scheduler.ask(lambda: scheduler.cancel_where(lambda job: not _is_awaited(job), exiting))
        scheduler.ask(scheduler.leave)
        return lost

    def _add(self, job: Job, requests: list[Request], is_daemons: bool) -> None:
        """Add a job's prompts, in the scheduler's thread. Sends none that a daemon thread brings during the exit."""
        if self._is_leaving and is_daemons:
            self._scheduler.add(job, [])
            self._scheduler.cancel(job, exiting)
        self._scheduler.add(job, requests)


def _call_back(function: _Callback, future: Future[ChatResult]) -> None:
    try:
        function(future)
    except BaseException:
        _logger.critical("a callback raised", exc_info=True)


def _check_threads() -> None:
    """Refuse threads that cannot do: greenlets whose thread-local data are shared, and interpreters without daemons."""
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        raise ConfigurationError("eventlet's patched threads are not supported: a socket that is shut down wakes none")
    if not getattr(threading, "_daemon_threads_allowed", lambda: True)():
        raise ConfigurationError(
            "chatpool needs daemon threads, which this subinterpreter does not allow; use it in the main interpreter"
        )
    if not isinstance(_thread_local, threading.local):
        raise ConfigurationError(
            "gevent patched threading after chatpool was imported, so that its threads would block each other; call "
            "gevent.monkey.patch_all() before the import (with gunicorn --preload, at the top of gunicorn's "
            "configuration file)"
        )


def _is_awaited(job: Job) -> bool:
    waiter = job.waiter
    return waiter is not None and waiter.is_alive() and not waiter.daemon and waiter is not threading.main_thread()


def _release(pid: int, transport: Transport) -> None:
    """Close what a collected core held, in the process that made it."""
    if os.getpid() == pid:
        transport.close()
    else:
        inherited_from_parent.append(transport)


def _cancel_all_at_exit() -> None:
    lost = sum(engine.cancel_at_exit() for engine in _all_engines() if engine.pid == os.getpid())
    if lost and getattr(sys, "last_value", None) is None:  # not when an exception ends the program
        atexit.register(_warn_of_lost, lost)  # where warnings are errors, one raised here would end the threads' exit


def _warn_of_lost(lost: int) -> None:
    prompts = "1 submitted prompt was" if lost == 1 else f"{lost} submitted prompts were"
    message = f"{prompts} cancelled at exit; wait for the futures, or use 'with ChatPool()'"
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _all_engines() -> list[Engine]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread made one just now
            return list(_engines)


# Executors' threads are joined before atexit's functions run, and no public hook comes earlier. This one is run in
# reverse order of registration, so before the joining, which concurrent.futures registered when it was imported.
getattr(threading, "_register_atexit", atexit.register)(_cancel_all_at_exit)
