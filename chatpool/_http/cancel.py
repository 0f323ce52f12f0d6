"""Aborts an attempt from another thread: at its time limit, or when its call is cancelled. Knows no HTTP."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from typing import Any, Callable

from chatpool.errors import APITimeoutError, CallError

# What this thread does now: the attempt's scope, the settings, the resolver, and the checksum of what is asked.
# Connections are made and used far below Session.send, but in the same thread.
current = threading.local()


class CancelScope:
    """The one part of a call that two threads use at once: a worker attaches its socket, the scheduler shuts it down.

    All times are readings of ``time.monotonic()``.
    """

    __slots__ = (
        "_is_idle",
        "_lock",
        "_phase_ends",
        "_socket",
        "ends",
        "error",
        "idle_timeout",
        "is_cut",
        "is_stale",
        "phase",
        "seconds",
        "timeout_at",
        "wants_fresh",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.error: CallError | None = None  # set once, when the call is cancelled
        self.is_cut = False  # the attempt was aborted, and whatever it read is void
        self.phase, self.seconds = "", 0.0  # connect or read, and how long it may take
        self.timeout_at = self.ends = math.inf
        self.idle_timeout = math.inf  # seconds without a byte of the reply, after which the attempt is aborted
        self._phase_ends = math.inf
        self._is_idle = False  # that is why the attempt was aborted
        self.is_stale = False  # the attempt used a kept connection, and that was no longer good
        self.wants_fresh = False  # an earlier attempt did, so this one opens its own

    def begin(self, ends: float) -> None:
        """Begin an attempt that is over at ``ends``; raise the call's error if it was cancelled."""
        with self._lock:
            if self.error is not None:
                raise self.error
            self.is_cut, self._is_idle, self.ends = False, False, ends
            self.wants_fresh, self.is_stale = self.wants_fresh or self.is_stale, False

    def set_timeout(self, phase: str, seconds: float) -> None:
        """Give a phase of the attempt (connect, read) so many seconds from now, but not beyond its end."""
        self.phase, self.seconds = phase, seconds
        now = time.monotonic()
        self._phase_ends = min(now + seconds, self.ends)
        self.timeout_at = min(self._phase_ends, now + self.idle_timeout) if phase == "read" else self._phase_ends

    def set_idle_timeout(self, seconds: float) -> None:
        """Abort the attempt if no byte arrives for so long, from now on."""
        self.idle_timeout = seconds
        if self.phase == "read":  # else the connection is of another kind, which reports no bytes
            self.note_bytes()

    def note_bytes(self) -> None:
        """Note that bytes of the reply have arrived."""
        if self.idle_timeout < math.inf:
            self.timeout_at = min(self._phase_ends, time.monotonic() + self.idle_timeout)

    def watched(self, recv: Callable[[int], bytes]) -> Callable[[int], bytes]:
        """Return a socket's ``recv`` that notes what arrives, if somebody wants to know."""
        if self.idle_timeout == math.inf:
            return recv

        def receive(size: int) -> bytes:
            data = recv(size)
            self.note_bytes()
            return data

        return receive

    def timeout_error(self) -> APITimeoutError:
        """Return the error for the current phase's limit."""
        if self._is_idle:
            message = f"no byte of the answer within the idle timeout of {self.idle_timeout:g} s"
            return APITimeoutError(message, code="idle_timeout")
        what = "no connection" if self.phase == "connect" else "no whole answer"
        message = f"{what} within the {self.phase} timeout of {self.seconds:g} s"
        return APITimeoutError(message, code=f"{self.phase}_timeout")

    def attach(self, sock: Any) -> None:
        """Name the socket that the attempt now uses (None: no longer). One that was aborted before is aborted now."""
        while sock is not None and not isinstance(sock, socket.socket):
            sock = getattr(sock, "socket", None)  # TLS within a proxy's TLS wraps the socket
        with self._lock:
            self._socket = sock
            if self.is_cut:
                self._shut_down()

    def end(self) -> bool:
        """End the attempt; return whether it was aborted."""
        with self._lock:
            self._socket, self.timeout_at = None, math.inf
            return self.is_cut

    def cancel(self, error: CallError) -> None:
        """Cancel the call: abort the attempt that is under way, allow no other."""
        with self._lock:
            self.error = self.error or error
            self.is_cut = True
            self._shut_down()

    def check(self, now: float) -> None:
        """Abort an attempt whose time is over. Called on every tick: a socket that connects may miss a shutdown."""
        with self._lock:
            if not self.is_cut and now >= self.timeout_at:
                self._is_idle = self.timeout_at < self._phase_ends
            if self.is_cut or now >= self.timeout_at:
                self.is_cut, self.timeout_at = True, math.inf
                self._shut_down()

    def _shut_down(self) -> None:
        """Shut the socket down, so that a thread that reads from it or writes to it comes back at once.

        The plain socket's method, because SSLSocket's drops the TLS state while its reader still uses it.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
