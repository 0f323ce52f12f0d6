"""What cuts a try off from another thread: its limit in time, or that nobody wants it any more. No HTTP."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from typing import Any

from chatpool.errors import APITimeoutError, CallError


class CancelScope:
    """The one part of a call that two threads use at once: a worker attaches its socket, the scheduler cuts it.

    All times are readings of ``time.monotonic()``.
    """

    __slots__ = (
        "_lock",
        "_socket",
        "ends",
        "error",
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
        self.is_cut = False  # what was read in this try is void
        self.phase, self.seconds = "", 0.0  # connect or read, and how long it may take
        self.timeout_at = self.ends = math.inf
        self.is_stale = False  # the try used a kept connection, and the server had closed it
        self.wants_fresh = False  # the last one did, so this try opens its own

    def begin(self, ends: float) -> None:
        """Begin a try that is over at ``ends``; raise what the call was cancelled with, if it was."""
        with self._lock:
            if self.error is not None:
                raise self.error
            self.is_cut, self.ends = False, ends
            self.wants_fresh, self.is_stale = self.is_stale, False

    def set_timeout(self, phase: str, seconds: float) -> None:
        """Give a phase of the try (connect, read) so many seconds from now, but not beyond its end."""
        self.phase, self.seconds = phase, seconds
        self.timeout_at = min(time.monotonic() + seconds, self.ends)

    def timeout_error(self) -> APITimeoutError:
        """Return the error for the present phase's limit."""
        what = "no connection" if self.phase == "connect" else "no whole answer"
        told = f"{what} within the {self.phase} timeout of {self.seconds:g} s"
        return APITimeoutError(told, code=f"{self.phase}_timeout")

    def attach(self, sock: Any) -> None:
        """Name the socket that the try now uses (None: no longer). One cut before this is cut now."""
        while sock is not None and not isinstance(sock, socket.socket):
            sock = getattr(sock, "socket", None)  # TLS within a proxy's TLS wraps the socket
        with self._lock:
            self._socket = sock
            if self.is_cut:
                self._cut()

    def end(self) -> bool:
        """End the try; return whether it was cut."""
        with self._lock:
            self._socket, self.timeout_at = None, math.inf
            return self.is_cut

    def cancel(self, error: CallError) -> None:
        """Give the call up: cut the try that is under way, allow no other."""
        with self._lock:
            self.error = self.error or error
            self.is_cut = True
            self._cut()

    def check(self, now: float) -> None:
        """Cut a try whose time is over. Again and again, because a socket that connects may miss a cut."""
        with self._lock:
            if self.is_cut or now >= self.timeout_at:
                self.is_cut, self.timeout_at = True, math.inf
                self._cut()

    def _cut(self) -> None:
        """Shut the socket down, so that whoever reads from it or writes to it comes back at once.

        The plain socket's method, because SSLSocket's forgets the TLS state under its reader's feet.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):  # gone already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
