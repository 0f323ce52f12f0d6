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
from concurrent.futures import Future
from typing import Any, Callable

from chatpool._http.resolver import Resolver
from chatpool._http.session import Session, Transport, inherited_from_parent
from chatpool._protocol.results import ChatResult
from chatpool._protocol.settings import Settings
from chatpool.errors import ConfigurationError, NotSentError, PoolClosedError

from .job import Reason, Run
from .limits import Limits
from .retry import load
from .scheduler import Scheduler
from .sender import Client

_logger = logging.getLogger("chatpool")

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_local = threading.local()


class Core:
    """What may outlive an engine: the limits, with what they have learned, and the Session. Has no threads."""

    def __init__(self, settings: Settings, session: Session | None, user_agent: str) -> None:
        load()  # while there are file descriptors to import with
        _check_threads()
        self.pid = os.getpid()
        self.limits = Limits(
            settings.max_workers,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            longest_wait=settings.max_wait,
        )
        self.transport = Transport(settings, session, user_agent, Resolver().look_up)
        self.engine: Callable[[], Engine | None] = lambda: None  # the one that lives, if any
        self._finalizer = weakref.finalize(self, _release, self.pid, self.transport)
        self._finalizer.atexit = False


class Engine:
    """A pool's way to its scheduler. Made in each process at the first use, starts nothing itself.

    When nobody holds it any more, neither a pool nor a run, the scheduler ends.
    """

    def __init__(self, settings: Settings, core: Core) -> None:
        self.pid, self.places = core.pid, settings.max_workers
        self._core = core
        core.engine = weakref.ref(self)
        client = Client(settings, core.transport, core.limits)
        self._scheduler = Scheduler(client, core.limits, settings.max_workers)
        weakref.finalize(self, self._scheduler.stop).atexit = False
        _engines.add(self)

    def share_budgets(self, part: float) -> None:
        """Keep to this part of the budgets from now on, because other processes have the rest."""
        self._scheduler.post(self._core.limits.share_budgets, part)

    def start(self, run: Run, jobs: int) -> None:
        """Make the calls of a run that are to be begun."""
        if self._scheduler.is_over:
            raise PoolClosedError("this pool is closed; make a new one")
        self._scheduler.post(self._scheduler.add, run)

    def cancel(self, run: Run, reason: Reason) -> None:
        """Give a run up; does not wait for that."""
        try:
            self._scheduler.post(self._scheduler.cancel, run, reason)
        except PoolClosedError:
            self._scheduler.after_end(self._scheduler.cancel, run, reason)

    def settle(self) -> None:
        """Wait until all that was asked of the scheduler so far is done."""
        with contextlib.suppress(PoolClosedError):
            self._scheduler.ask(lambda: None)

    def end(self, run: Run) -> None:
        """Forget a run."""
        with contextlib.suppress(PoolClosedError):
            self._scheduler.post(self._scheduler.forget, run)
            if run.outer is not None:
                run.outer.engine.disown(run.outer, run)

    def adopt(self, outer: Run, inner: Run) -> None:
        """Have a run end with that within whose parse it was made."""
        with contextlib.suppress(PoolClosedError):
            self._scheduler.post(_adopt, outer, inner)

    def disown(self, outer: Run, inner: Run) -> None:
        """It has come to its own end."""
        with contextlib.suppress(PoolClosedError):
            self._scheduler.post(outer.inner.discard, inner)

    def call_back(self, function: Callable[[Future[ChatResult]], Any], future: Future[ChatResult]) -> None:
        """Run a Future's callback, in a thread for that."""
        try:
            self._scheduler._callbacks.submit(_call_back, function, future)
        except RuntimeError:  # the pool is closed, or the interpreter exits
            _call_back(function, future)

    def futures_of(self, tenant: object) -> list[Future[ChatResult]]:
        """Return what was submitted through one pool and is not done."""
        found: list[Future[ChatResult]] = self._scheduler.ask(lambda: self._scheduler.futures(tenant))
        return found

    def close(self) -> None:
        """Give up what is under way, end the threads, close the connections."""
        self._scheduler.close()
        self._core.transport.close()

    def give_up(self, tenant: object) -> None:
        """Cancel one pool's runs."""
        closed = lambda: NotSentError("given up: the pool was closed")  # noqa: E731
        self._scheduler.ask(lambda: self._scheduler.cancel_where(lambda run: run.tenant is tenant, closed))

    def give_up_at_exit(self) -> None:
        """Cancel the runs that nobody waits for any more, now that the main thread is through."""
        scheduler = self._scheduler
        exiting = lambda: NotSentError("given up: the interpreter is exiting")  # noqa: E731
        lost = scheduler.ask(lambda: scheduler.cancel_where(lambda run: not _is_awaited(run), exiting))
        if lost and getattr(sys, "last_value", None) is None:  # not when an exception ends the program
            told = f"{lost} submitted prompts were given up at exit; wait for their futures, or use 'with ChatPool()'"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        with contextlib.suppress(PoolClosedError):
            scheduler.ask(scheduler.leave)


def _adopt(outer: Run, inner: Run) -> None:
    outer.inner.add(inner)
    if outer.is_cut and outer.verdict is not None:
        inner.cancel(outer.verdict)


def _call_back(function: Callable[[Future[ChatResult]], Any], future: Future[ChatResult]) -> None:
    try:
        function(future)
    except BaseException:
        _logger.critical("a callback raised", exc_info=True)


def _check_threads() -> None:
    """Refuse threads that became greenlets after the import: what is kept for each thread would be all greenlets'."""
    if not isinstance(_local, threading.local):
        raise ConfigurationError(
            "gevent patched threading after chatpool was imported, so that its threads would get in each other's "
            "way, or wait for ever; call gevent.monkey.patch_all() before the import (with gunicorn --preload, at "
            "the top of gunicorn's configuration file)"
        )


def _is_awaited(run: Run) -> bool:
    owner = run.owner
    return owner is not None and owner.is_alive() and not owner.daemon and owner is not threading.main_thread()


def _release(pid: int, transport: Transport) -> None:
    """Close what a collected core held, in the process that made it."""
    if os.getpid() == pid:
        transport.close()
    else:
        inherited_from_parent.append(transport)


def _give_up_at_exit() -> None:
    for engine in _all_engines():
        if engine.pid == os.getpid():
            engine.give_up_at_exit()


def _all_engines() -> list[Engine]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread made one just now
            return list(_engines)


# Executors' threads are joined before atexit's functions run, and no public hook comes earlier. This one is run in
# reverse order of registration, so before the joining, which concurrent.futures registered when it was imported.
getattr(threading, "_register_atexit", atexit.register)(_give_up_at_exit)
