"""One prompt's call: where it stands, what bounds it, and the means to stop it from another thread. No HTTP."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from typing import Any, Callable, NamedTuple

from ._messages import CHAT_PATH
from ._replies import Completion
from ._turns import away
from .errors import APITimeoutError, CallError, DeadlineError
from .results import ChatResult, Usage

Parse = Callable[[str], Any]

PAST_DEADLINE = "the deadline passed before this prompt was answered"


class Try(NamedTuple):
    """One request and what came of it. Times are seconds since the call's first try began."""

    began: float
    ended: float
    error: str | None  # the name of its class


class Bell:
    """Wakes the one thread that waits for it.

    Unlike an Event it holds no lock while it is rung, so that the garbage collector may ring it, whatever the thread
    is doing into which it breaks.
    """

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()  # held by nobody in particular for as long as the bell was not rung
        self._silent.acquire()

    def ring(self) -> None:
        """Wake who waits now, or else who waits next."""
        with contextlib.suppress(RuntimeError):  # it was rung already
            self._silent.release()

    def wait(self, seconds: float) -> None:
        """Wait until it is rung, or so long; it is silent again then."""
        self._silent.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def clear(self) -> None:
        """Forget a ring."""
        self._silent.acquire(blocking=False)


class Call:
    """The state of one call. One thread runs it; others may ``stop`` it or, when its limit is over, ``expire`` it.

    All times are readings of ``time.monotonic()``.
    """

    __slots__ = (
        "_lock",
        "_socket",
        "answers_seen",
        "attempts",
        "bell",
        "completion",
        "deadline",
        "due",
        "gave_up",
        "index",
        "is_dropped",
        "is_parked",
        "last_error",
        "limit",
        "limit_name",
        "limit_seconds",
        "max_time",
        "parse",
        "path",
        "payload",
        "prompt",
        "recalled",
        "request_id",
        "sent_at",
        "severed",
        "stale",
        "started",
        "stopped",
        "timeline",
        "tokens",
        "tries",
        "usage",
        "value",
        "waits",
        "wants_fresh",
    )

    def __init__(
        self,
        index: int,
        prompt: Any,
        *,
        parse: Parse | None = None,
        max_time: float | None = None,
        deadline: float = math.inf,
    ) -> None:
        self.index, self.prompt = index, prompt
        self.payload = b""  # the request's body
        self.path = CHAT_PATH
        self.tokens = 0  # an estimate of what it will cost
        self.parse, self.max_time, self.deadline = parse, max_time, deadline
        self.attempts = 0  # HTTP requests sent
        self.tries = 0  # of them, those that count against max_tries
        self.started = self.sent_at = 0.0  # when the first and the latest try began
        self.answers_seen = 0  # answers the whole pool had had when the latest try began
        self.completion: Completion | None = None
        self.value: Any = None
        self.request_id: str | None = None
        self.timeline: list[Try] = []  # of the tries that failed, and of the one that then did not
        self.usage: Usage | None = None  # of all tries together: each was paid for
        self.last_error: CallError | None = None
        self.due = 0.0  # when the next try may be
        self.is_parked = False  # it waits for that without a thread
        self.recalled = False  # the thread that waits for that is needed
        self.gave_up = False  # it waited out an outage that did not end
        self.is_dropped = False  # nobody wants it any more: the watch shall end it
        self.waits: dict[str, float] = {}  # seconds, by cause
        self.bell = Bell()  # rung when something that this call waits for may have changed
        self.stopped: CallError | None = None  # set once: the call is given up
        # The present try. ``severed``: its socket was cut, so whatever was read from it is void.
        self.limit, self.limit_name, self.limit_seconds = math.inf, "", 0.0
        self.stale = False  # the connection was a kept one, and the server had closed it
        self.wants_fresh = False  # the last one was, so this try opens its own
        self.severed = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()  # guards stopped, severed, limit and _socket

    # Told by the thread that runs the call.

    @property
    def ends(self) -> float:
        """When the call is over, whatever it does: the map's deadline or ``max_time``."""
        if self.max_time is None or not self.started:
            return self.deadline
        return min(self.deadline, self.started + self.max_time)

    def begin_try(self, answers_seen: int) -> None:
        """Note that a request is about to be sent."""
        with self._lock:
            if self.stopped is not None:
                raise self.stopped
            self.wants_fresh, self.stale = self.stale, False
            self.severed = False
            self.sent_at = time.monotonic()
            self.started = self.started or self.sent_at
            self.attempts += 1
            self.answers_seen = answers_seen
            self.completion, self.request_id = None, None

    def set_limit(self, name: str, seconds: float) -> None:
        """Give this phase of the try (connect, read) so many seconds from now, but not beyond the call's end."""
        self.limit_name, self.limit_seconds = name, seconds
        self.limit = min(time.monotonic() + seconds, self.ends)

    def hold(self, sock: Any) -> None:
        """Name the socket that the try now uses, so that it can be cut. One cut short before this is cut now."""
        while sock is not None and not isinstance(sock, socket.socket):
            sock = getattr(sock, "socket", None)  # TLS within a proxy's TLS wraps the socket
        with self._lock:
            self._socket = sock
            if self.severed:
                self._cut()

    def end_try(self) -> CallError | None:
        """Let go of the socket. Return the error that cut the try, if anything did."""
        with self._lock:
            self._socket, self.limit = None, math.inf
            if not self.severed:
                return None
        return self.stopped or self.out_of_time(time.monotonic())

    def out_of_time(self, now: float) -> CallError:
        """Return the error for a limit that is over: the deadline's, max_time's, or the present phase's."""
        if now >= self.deadline:
            return self.past_deadline()
        if now >= self.ends:
            told = f"; the last failure: {self.last_error}" if self.last_error else ""
            return APITimeoutError(f"max_time of {self.max_time:g} s is over{told}", code="max_time")
        phase = self.limit_name
        what = "no connection" if phase == "connect" else "no whole answer"
        return APITimeoutError(
            f"{what} within the {phase} timeout of {self.limit_seconds:g} s", code=f"{phase}_timeout"
        )

    def past_deadline(self) -> DeadlineError:
        """Return the error for a call that the deadline of its map overtook."""
        error = DeadlineError(PAST_DEADLINE)
        error.__cause__ = self.last_error
        return error

    def wait(self, seconds: float, cause: str) -> None:
        """Wait until the bell rings, ``seconds`` have passed or the call is over; keep count under ``cause``.

        Whoever waits for a condition clears the bell, looks at the condition, and then waits: a ring in between
        is not lost.
        """
        began = time.monotonic()
        limit = min(seconds, self.ends - began)
        if limit > 0 and self.stopped is None:
            with away():
                self.bell.wait(limit)
            self.waits[cause] = self.waits.get(cause, 0.0) + time.monotonic() - began

    def pause(self, cause: str) -> bool:
        """Wait until the next try is due; False if the call was stopped, recalled or ended first."""
        while True:
            self.bell.clear()
            now = time.monotonic()
            if self.stopped is not None or now >= self.ends:
                return False
            if now >= self.due:
                return True
            if self.recalled:
                return False
            self.wait(self.due - now, cause)

    def result(self, error: CallError | None) -> ChatResult:
        """Close the books on this call."""
        done = self.completion
        elapsed = time.monotonic() - self.started if self.started else 0.0
        if error is None and self.timeline:
            self.timeline.append(Try(self.sent_at - self.started, elapsed, None))
        if error is not None:
            error.attempts = self.attempts
            error.request_id = error.request_id or self.request_id
            error.__traceback__ = None  # it would keep every frame of the call alive
        return ChatResult(
            index=self.index,
            prompt=self.prompt,
            text=done.text if done else None,
            value=self.value if error is None else None,
            finish_reason=done.finish_reason if done else None,
            usage=self.usage,
            response=done.response if done else None,
            request_id=self.request_id or (error.request_id if error else None),
            attempts=self.attempts,
            elapsed=elapsed,
            error=error,
        )

    # Told by any thread.

    def stop(self, error: CallError, *, cut: bool) -> None:
        """Give the call up: no further try, no further wait. With ``cut``, not the present try either."""
        with self._lock:
            self.stopped = self.stopped or error
            if cut:
                self._sever()
        self.bell.ring()

    def drop(self, error: CallError) -> None:
        """Like ``stop`` with a cut, but takes no lock, and the watch makes the cut. For the garbage collector."""
        self.stopped = self.stopped or error
        self.is_dropped = True
        self.bell.ring()

    def recall(self) -> None:
        """Ask the thread that only waits for this call to give it up for now."""
        self.recalled = True
        self.bell.ring()

    def expire(self, now: float) -> None:
        """End the present try if its limit is over. Told again and again, as a socket that connects may miss a cut."""
        with self._lock:
            if self.severed or self.is_dropped or now >= self.limit:
                self._sever()

    def _sever(self) -> None:
        self.severed = True
        self.limit = math.inf
        self._cut()
        self.bell.ring()  # it may wait for its server's name

    def _cut(self) -> None:
        """Shut the socket down: whoever reads from it or writes to it comes back at once.

        The plain socket's method, because SSLSocket's forgets the TLS state under its reader's feet.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):  # gone already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def unsent(index: int, prompt: Any, error: CallError) -> ChatResult:
    """Return the result of a prompt whose call was never begun."""
    return ChatResult(index, prompt, None, None, None, None, None, None, 0, 0.0, error)
