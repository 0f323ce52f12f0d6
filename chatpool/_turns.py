"""Turns for the threads of a large pool, so that hundreds do not fight for the interpreter at once.

Every thread that waits for Python's global lock wakes up each 5 ms to ask for it. With two thousand that have all been
answered at the same moment, nothing else is done any more. So the threads of a large pool run by turns, a few at a
time, and the others wait for theirs where it costs nothing. A turn is never kept while its thread waits for a server.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from urllib3.util.wait import wait_for_read

_LARGE = 256  # workers, from which on turns pay
_AT_ONCE = 8


_local = threading.local()


class Turns:
    """A few locks; a thread that runs holds one of them."""

    def __init__(self, workers: int) -> None:
        self._locks = [threading.Lock() for _ in range(_AT_ONCE)] if workers > _LARGE else []
        self._given = itertools.count()

    def join(self) -> Turn:
        """Let this thread run by turns; in a small pool its turn is always."""
        lock = self._locks[next(self._given) % _AT_ONCE] if self._locks else None
        _local.turn = Turn(lock) if lock is not None else None
        return _local.turn or Turn(None)


class Turn:
    """One thread's turn, taken and given up any number of times."""

    __slots__ = ("_lock", "is_taken")

    def __init__(self, lock: threading.Lock | None) -> None:
        self._lock, self.is_taken = lock, False

    def take(self) -> None:
        """Wait for it, unless it is taken."""
        if self._lock is not None and not self.is_taken:
            self._lock.acquire()
            self.is_taken = True

    def give(self) -> None:
        """Let another thread run, unless that was done."""
        if self._lock is not None and self.is_taken:
            self.is_taken = False
            self._lock.release()


def give() -> None:
    """Give this thread's turn up until its next job, because others' code is going to wait."""
    turn: Turn | None = getattr(_local, "turn", None)
    if turn is not None:
        turn.give()


@contextlib.contextmanager
def away() -> Iterator[None]:
    """Let other threads run while this one waits, or runs what is not ours."""
    turn: Turn | None = getattr(_local, "turn", None)
    if turn is None or not turn.is_taken:
        yield
        return
    turn.give()
    try:
        yield
    finally:
        turn.take()


def recv(sock: Any, size: int) -> bytes:
    """Receive, as the socket would within its timeout; the turn is given up until there is something."""
    turn: Turn | None = getattr(_local, "turn", None)
    if turn is None or not turn.is_taken:
        return sock.recv(size)  # type: ignore[no-any-return]
    seconds = sock.gettimeout()
    sock.settimeout(0.0)
    try:
        while True:
            with away():
                if not wait_for_read(sock, seconds):
                    raise socket.timeout("timed out")
            try:
                return sock.recv(size)  # type: ignore[no-any-return]
            except (BlockingIOError, ssl.SSLWantReadError):  # of TLS, only what is not for us has come
                continue
    finally:
        sock.settimeout(seconds)
