"""Workers on a ThreadPoolExecutor, a watch over the calls in flight, and look-ups of names. The only place that
starts threads."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any, Callable, Protocol

from ._call import Bell, Call
from ._turns import Turns, Usher, away
from .errors import ConfigurationError

Job = Callable[[], None]

_TICK = 0.05  # seconds between two looks of the watch, and so how late a cut may be
_LINGER = 20  # idle looks before the watch goes to sleep

_logger = logging.getLogger("chatpool")
_role = threading.local()


class Source(Protocol):
    """Where workers get their jobs."""

    def next_job(self, *, may_wait: bool) -> Job | None:
        """Return the next job, or None if there is none now; with ``may_wait``, also one that begins with a wait."""

    def has_ready_job(self) -> bool:
        """Whether there is a job that can begin at once."""

    def is_empty(self) -> bool:
        """Whether there is no job at all, until the source is offered again."""

    @property
    def next_due(self) -> float:
        """When the first of its calls that wait without a thread is due."""

    @property
    def parse(self) -> Callable[[str], Any] | None:
        """What its jobs give their answers to, if anything."""


def in_worker() -> bool:
    """Whether this thread is a worker of any pool. One that waits for other workers might wait for ever."""
    return getattr(_role, "crew", None) is not None


class Workers:
    """Threads that take jobs from several sources in turn, so that a small map is not stuck behind a large one.

    At most ``size`` are at work. Those that only wait for their call's next try are stood in for by others, up to
    twice the size; from there on a call that waits must give its thread up, and is taken up again later.

    While all are within ``parse`` or callbacks, each may wait for a call that it handed to some thread or future. Then
    one spare worker takes the jobs that have no ``parse``, and so cannot come to wait themselves.
    """

    def __init__(self, size: int) -> None:
        _check_threads()
        self._size = size
        # With the spare one and the watch: twice the size. In a small pool, too, one must be able to wait.
        self._most = max(size + 1, 2 * size - 2)
        self._lock = threading.Lock()
        self._sources: OrderedDict[Source, None] = OrderedDict()  # in the order of their turns
        self._crew: set[_Ticket] = set()  # one for each worker, also for those about to be
        self._away = 0  # of them, those that wait
        self._elsewhere = 0  # and those within parse or a callback
        self._spare: _Ticket | None = None
        self._waiting: dict[Call, None] = {}  # calls whose workers wait, the longest first
        self._executor = ThreadPoolExecutor(self._most + 1, thread_name_prefix="chatpool-worker")
        self.turns = Turns(size)
        self._usher: threading.Thread | None = None

    def offer(self, source: Source, jobs: int, *, due: float = math.inf) -> None:
        """Say that a source has so many jobs. Starts workers for them, as far as there may be more.

        ``due``: when a call of its that waits without a thread is to be taken up. If no thread is free then, one that
        waits for a later call must be.
        """
        tickets: list[_Ticket] = []
        try:
            with self._lock:
                self._begin_turns()
                self._sources.setdefault(source)
                wanted = max(0, min(jobs, self._size - self._active))
                while len(tickets) < wanted and self._may_grow():
                    self._reserve(tickets)
                # Where no more threads may be, those that only wait have to give theirs up.
                recalled = list(self._waiting)[: wanted - len(tickets)]
                if due < math.inf and len(self._crew) >= self._most and self._waiting:
                    last = max(self._waiting, key=lambda call: call.due)
                    recalled += [last] if last.due > due and last not in recalled else []
                for call in recalled:
                    del self._waiting[call]  # or the next job would count on the same thread
                self._reserve_spare(tickets)
            for call in recalled:
                call.recall()
            for ticket in tickets:
                self._start(ticket)
        except BaseException:  # Ctrl-C: who was not started yet is not counted on
            for ticket in tickets:
                self._withdraw(ticket)
            raise

    @property
    def alive(self) -> bool:
        """Whether any worker is at work or about to be."""
        return bool(self._crew)

    @property
    def _active(self) -> int:
        """Workers at work or about to be, but for the spare one."""
        return len(self._crew) - self._away - (self._spare is not None)

    @contextlib.contextmanager
    def busy_elsewhere(self) -> Iterator[None]:
        """Count this thread as one that is within ``parse`` or a callback, if it is a worker."""
        if getattr(_role, "crew", None) is not self._crew:
            yield
            return
        tickets: list[_Ticket] = []
        is_outermost = not _role.is_elsewhere
        _role.is_elsewhere = True
        with self._lock:
            self._elsewhere += is_outermost
            self._reserve_spare(tickets)
        try:
            for ticket in tickets:
                self._start(ticket)
            yield
        finally:
            _role.is_elsewhere = not is_outermost
            with self._lock:
                self._elsewhere -= is_outermost

    def wait(self, call: Call, cause: str, *, must_stay: bool) -> bool:
        """Wait in this thread until the call is due; meanwhile another worker may work. False: it is not to go on.

        Then it was stopped, or, unless it ``must_stay``, it is to be parked, because its thread is needed.
        """
        if getattr(_role, "crew", None) is not self._crew:
            return call.pause(cause)
        stand_in: list[_Ticket] = []
        with self._lock:
            wanted = any(source.has_ready_job() for source in self._sources)
            if not must_stay and (
                (wanted and len(self._crew) >= self._most)
                # Among calls that wait, those that are due first have the threads.
                or any(source.next_due < call.due for source in self._sources)
            ):
                return False
            self._away += 1
            self._elsewhere -= _role.is_elsewhere
            if wanted and self._may_grow():
                self._reserve(stand_in)
            self._reserve_spare(stand_in)
            call.recalled = False
            if not must_stay:
                self._waiting[call] = None
        try:
            for ticket in stand_in:
                self._start(ticket)
            return call.pause(cause)
        finally:
            with self._lock:
                self._away -= 1
                self._elsewhere += _role.is_elsewhere
                self._waiting.pop(call, None)

    def close(self) -> None:
        """End the threads. Waits for them, unless it is called by one of them."""
        self._executor.shutdown(wait=not in_worker())
        self.turns.close()
        if self._usher is not None and not in_worker():
            self._usher.join()

    def let_go(self) -> None:
        """End the threads that have nothing to do, also one that Ctrl-C cut off from the executor as it started."""
        self._executor.shutdown(wait=False)

    def _begin_turns(self) -> None:
        """Under the lock: start the thread that calls the others to their turns, where they take turns."""
        if self._usher is not None or not self.turns.are_few or not hasattr(select, "epoll"):
            return
        usher = None
        try:
            usher = Usher(self.turns)
            thread = threading.Thread(target=usher.run, name="chatpool-usher", daemon=True)
            thread.start()
            self._usher, self.turns.usher = thread, usher
        except (RuntimeError, OSError):  # no thread or no descriptor to be had: each thread polls for itself
            pass
        finally:
            if usher is not None and self._usher is None:  # Ctrl-C: it may have begun
                usher.close()

    def _reserve_spare(self, tickets: list[_Ticket]) -> None:
        """Under the lock: count a spare worker in, if all others are busy elsewhere and there is a job for it."""
        if self._spare is not None or self._active > self._elsewhere or (not self._active and self._may_grow()):
            return
        if any(source.parse is None and source.has_ready_job() for source in self._sources):
            self._reserve(tickets)
            self._spare = tickets[-1]

    def _may_grow(self) -> bool:
        """Under the lock: whether there may be one worker more."""
        return self._active < self._size and len(self._crew) < self._most

    def _reserve(self, tickets: list[_Ticket]) -> None:
        """Under the lock: count one more worker in. First on the caller's list, who withdraws it if interrupted."""
        ticket = _Ticket()
        tickets.append(ticket)
        self._crew.add(ticket)

    def _start(self, ticket: _Ticket) -> None:
        """Start a worker that is counted in already."""
        try:
            self._executor.submit(self._work, ticket)
        except RuntimeError:  # no more threads to be had, or the interpreter is going down: the others go on
            self._withdraw(ticket)
        ticket.is_started = True

    def _withdraw(self, ticket: _Ticket) -> None:
        """Count a worker out again, unless it was started. The executor may have queued it, and yet have failed."""
        if not ticket.is_started and ticket.punch():
            self._leave(ticket)

    def _leave(self, ticket: _Ticket) -> None:
        self._crew.discard(ticket)
        if self._spare is ticket:
            self._spare = None

    def _work(self, ticket: _Ticket) -> None:
        if not ticket.punch():
            return
        _role.is_elsewhere = False
        _role.crew = self._crew  # not self: this thread is to go when that is collected
        turn = self.turns.join()
        try:
            turn.take()
            while (job := self._take(ticket)) is not None:
                try:
                    job()
                except BaseException:
                    _logger.critical("a callback raised", exc_info=True)
                del job  # or it would live on, with its prompt and its answer, until the next one comes
                turn.take()  # it may have been given up for good
        finally:
            turn.give()
            self._leave(ticket)

    def _take(self, ticket: _Ticket) -> Job | None:
        """Return the next job: one that can begin at once, else one that waits; None ends this worker."""
        with self._lock:
            is_spare = ticket is self._spare
            if is_spare or self._active <= self._size:
                for may_wait in (False, True):
                    for _ in range(len(self._sources)):
                        source = next(iter(self._sources))
                        is_for_me = not is_spare or (source.parse is None and self._elsewhere >= self._active)
                        job = source.next_job(may_wait=may_wait) if is_for_me else None
                        if source.is_empty():
                            del self._sources[source]
                        else:
                            self._sources.move_to_end(source)
                        if job is not None:
                            return job
            self._leave(ticket)
        return None


def _check_threads() -> None:
    """Refuse threads that became greenlets after the import: what is kept for each thread would be all greenlets'."""
    if not isinstance(_role, threading.local):
        raise ConfigurationError(
            "gevent patched threading after chatpool was imported, so that its threads would get in each other's "
            "way, or wait for ever; call gevent.monkey.patch_all() before the import (with gunicorn --preload, at "
            "the top of gunicorn's configuration file)"
        )


class _Ticket:
    """Stands for a worker. Good for one: whoever punches it first."""

    def __init__(self) -> None:
        self.is_started = False
        self._lock = threading.Lock()

    def punch(self) -> bool:
        return self._lock.acquire(blocking=False)


class Watch:
    """Looks at the calls in flight, from a thread of its own, and ends the tries whose time is over.

    A socket's own timeout starts anew with each byte, so a server that drips would never meet it. The thread
    starts with the first call and sleeps while there is none; it is a daemon, and holds nothing but the calls.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        self._thread: threading.Thread | None = None
        self._asleep = True
        self._bell = Bell()
        self._closed = False

    def add(self, call: Call) -> None:
        """Begin to watch a call."""
        with self._lock:
            self._calls.add(call)
            if not self._asleep:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="chatpool-watch", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread to be had: the next call tries again, sockets keep their own limits
                    return
                self._thread = thread
            self._asleep = False
        self._bell.ring()

    def discard(self, call: Call) -> None:
        """Watch a call no longer."""
        with self._lock:
            self._calls.discard(call)

    def close(self) -> None:
        """End the thread; does not wait for it. Takes no lock: the garbage collector may call it, in any thread."""
        self._closed = True
        self._bell.ring()

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        idle = 0
        while not self._closed:
            self._bell.wait(math.inf if self._asleep else _TICK)
            idle = 0 if self._look() else idle + 1
            with self._lock:
                self._asleep = idle > _LINGER and not self._calls  # a call that is added from here on rings

    def _look(self) -> int:
        """End the tries whose time is over; return how many calls there are. Keeps none of them alive."""
        with self._lock:
            calls = list(self._calls)
        now = time.monotonic()
        for call in calls:
            if now >= call.limit or call.severed or call.is_dropped:
                call.expire(now)
        return len(calls)


class Resolver:
    """Looks names up, each in a thread of its own, because nothing can cut a look-up that hangs: who waits for it can
    go, and the thread is a daemon. One look-up serves all who ask for the same name meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[Any, ...], _LookUp] = {}

    def look_up(self, call: Call, host: str, *details: Any) -> list[Any]:
        """Return what ``socket.getaddrinfo`` returns; raise what it raises, or TimeoutError if the call is cut."""
        if _is_address(host):
            return socket.getaddrinfo(host, *details)
        asked = (host, *details)
        with self._lock:
            look_up = self._under_way.get(asked) or _LookUp()
            look_up.waiting.append(call)
            if asked not in self._under_way:
                try:
                    self._under_way[asked] = look_up
                    self._start(asked, look_up)
                except BaseException:  # Ctrl-C: nobody shall join a look-up that may not have begun
                    self._under_way.pop(asked, None)
                    raise
        while not look_up.is_over and not call.severed:
            with away():
                call.bell.wait(math.inf)
        if look_up.failure is not None:
            raise copy.copy(look_up.failure)
        if not look_up.is_over:
            raise TimeoutError("the look-up of the name was cut")
        return look_up.found

    def _start(self, asked: tuple[Any, ...], look_up: _LookUp) -> None:
        try:
            threading.Thread(target=self._run, args=(asked, look_up), name="chatpool-lookup", daemon=True).start()
        except RuntimeError as failure:  # no thread to be had
            look_up.failure, look_up.is_over = OSError(f"the name cannot be looked up: {failure}"), True
            del self._under_way[asked]

    def _run(self, asked: tuple[Any, ...], look_up: _LookUp) -> None:
        try:
            look_up.found = socket.getaddrinfo(*asked)
        except Exception as failure:  # noqa: BLE001 - raised again where the name was asked for
            look_up.failure = failure
        with self._lock:
            look_up.is_over = True
            if self._under_way.get(asked) is look_up:
                del self._under_way[asked]
        for call in look_up.waiting:
            call.bell.ring()


class _LookUp:
    """What is asked, and what was found."""

    def __init__(self) -> None:
        self.waiting: list[Call] = []
        self.found: list[Any] = []
        self.failure: Exception | None = None
        self.is_over = False


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
