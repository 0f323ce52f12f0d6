"""Turns for the threads of a large pool, so that hundreds do not fight for the interpreter at once.

Every thread that waits for Python's global lock wakes up each 5 ms to ask for it. With two thousand that have all been
answered at the same moment, nothing else is done any more. So the threads of a large pool run by turns, a few at a
time, and the others wait for theirs where it costs nothing. A turn is never kept while its thread waits for a server.

Who waits in ``poll`` needs the interpreter as soon as its socket is ready. So threads wait for a lock instead, and one
thread, the usher, polls for all: it wakes a thread when its socket is ready and there is a turn for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

from urllib3.util.wait import wait_for_read

_LARGE = 256  # workers, from which on turns pay
_AT_ONCE = 8

_ONCE = select.EPOLLIN | select.EPOLLONESHOT if hasattr(select, "EPOLLONESHOT") else 0
_local = threading.local()


class Turns:
    """So many turns; a thread that runs holds one of them. In a small pool threads need none."""

    def __init__(self, workers: int) -> None:
        self.are_few = workers > _LARGE
        self.usher: Usher | None = None
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(_AT_ONCE):
            self.give()

    def join(self) -> Turn:
        """Let this thread run by turns."""
        turn = Turn(self if self.are_few else None)
        _local.turn = turn if self.are_few else None
        return turn

    def take(self) -> None:
        """Wait for one that is free."""
        self._free.get()

    def give(self) -> None:
        """Give one back."""
        self._free.put(None)

    def close(self) -> None:
        """Let the usher go. Takes no lock: the garbage collector may call it, in any thread."""
        if self.usher is not None:
            self.usher.close()


class Turn:
    """One thread's turn, taken and given up any number of times."""

    __slots__ = ("_turns", "bell", "is_taken")

    def __init__(self, turns: Turns | None) -> None:
        self._turns, self.is_taken = turns, False
        self.bell = threading.Lock()  # which the usher releases
        self.bell.acquire()

    def take(self) -> None:
        """Wait for it, unless it is taken."""
        if self._turns is not None and not self.is_taken:
            self._turns.take()
            self.is_taken = True

    def give(self) -> None:
        """Let another thread run, unless that was done."""
        if self._turns is not None and self.is_taken:
            self.is_taken = False
            self._turns.give()

    def wait_for_read(self, sock: Any, seconds: float | None) -> bool:
        """Let others run until the socket can be read; return whether it can, within so many seconds."""
        usher = self._turns.usher if self._turns is not None else None
        if usher is not None and usher.expect(sock.fileno(), self.bell):
            self.give()
            return usher.await_call(sock.fileno(), self, seconds)
        with away():
            return wait_for_read(sock, seconds)


class Usher:
    """Wakes each thread that waits for its socket, when the socket is ready and there is a turn for the thread.

    On Linux only, because it needs epoll: elsewhere each thread polls for itself.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._expected: dict[int, threading.Lock] = {}  # bells, by the sockets' numbers
        self._is_over = False
        self._epoll = select.epoll()
        end, self._alarm = os.pipe()
        weakref.finalize(self, _close, end, self._alarm).atexit = False  # also in a child that was forked
        self._epoll.register(end, select.EPOLLIN)

    def expect(self, number: int, bell: threading.Lock) -> bool:
        """Look out for a socket; return whether that is possible."""
        self._expected[number] = bell
        try:
            try:
                self._epoll.modify(number, _ONCE)  # most were looked out for before
            except FileNotFoundError:
                self._epoll.register(number, _ONCE)
        except (OSError, ValueError):  # the system has no room for it, or all is over
            return self._expected.pop(number, None) is None  # it is being called, though
        return True

    def await_call(self, number: int, turn: Turn, seconds: float | None) -> bool:
        """Wait for the bell, with which comes the turn; False: it did not ring within so many seconds."""
        rang = turn.bell.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX))
        if not rang and self._expected.pop(number, None) is None:
            rang = turn.bell.acquire()  # it is about to be rung
        turn.is_taken = rang
        if not rang:
            turn.take()
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(number)  # or it might be called when its number is another socket's
        return rang

    def run(self) -> None:
        """Call threads until all is over, and then those that still wait."""
        while not self._is_over:
            for number, _ in self._epoll.poll():
                self._call(number)
        self._epoll.close()  # from here on nobody is expected any more
        for number in list(self._expected):
            self._call(number)

    def close(self) -> None:
        """End ``run``."""
        if not self._is_over:
            self._is_over = True
            os.write(self._alarm, b"!")

    def _call(self, number: int) -> None:
        bell = self._expected.pop(number, None)
        if bell is not None:
            self._turns.take()  # for the thread that is called
            bell.release()


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


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
    while True:
        if not turn.wait_for_read(sock, seconds):
            raise socket.timeout("timed out")
        if not isinstance(sock, ssl.SSLSocket):
            return sock.recv(size)  # type: ignore[no-any-return]
        sock.settimeout(0.0)
        try:
            return sock.recv(size)
        except ssl.SSLWantReadError:  # only what is not for us has come
            continue
        finally:
            sock.settimeout(seconds)
