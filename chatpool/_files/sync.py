"""Syncs a journal to the disk, in the background."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from queue import Empty, SimpleQueue

from chatpool.errors import JournalError

_SYNC_EVERY = 1.0  # seconds

_logger = logging.getLogger("chatpool")


class Syncer:
    """Syncs a file within a second of each write, and at the end.

    Purpose: an fsync can take many seconds on a busy disk, and neither a call nor a deadline should wait for it.
    Guarantee: one fsync runs at a time, and each write is followed by one that begins after it. The first failure is
    logged, and raised by ``check`` and ``finish``. Assumption: the descriptor belongs to the thread, which closes it;
    a forked child has no such thread, and calls only ``leave_to_parent``.

    Other threads send messages and take no lock: the garbage collector may close a journal in any thread, even in
    the middle of ``request``, and ``SimpleQueue.put`` is reentrant.
    """

    def __init__(self, fd: int, path: str, end: int) -> None:
        self._fd, self._path, self._end = fd, path, end
        self._problem: str | None = None
        self._is_requested = False
        self._messages: SimpleQueue[bool] = SimpleQueue()  # True: sync once more, and end
        self._finished: SimpleQueue[None] = SimpleQueue()
        self._has_thread = True
        try:
            threading.Thread(target=self._run, name="chatpool-journal", daemon=True).start()
        except RuntimeError:  # no thread is available: finish() does all the work
            self._has_thread = False

    def request(self, end: int) -> None:
        """Have the file's first ``end`` bytes synced within a second."""
        self._end = end
        if not self._is_requested:
            self._is_requested = True
            self._messages.put(False)

    def check(self) -> None:
        """Raise JournalError if a sync has failed."""
        if self._problem is not None:
            raise JournalError(self._problem)

    def finish(self, timeout: float) -> None:
        """Sync once more, and wait for it at most ``timeout`` seconds; it continues after that. Raises like check."""
        self.stop()
        if not self._has_thread:
            self._run()
        with contextlib.suppress(Empty):
            self._finished.get(timeout=min(timeout, threading.TIMEOUT_MAX))
        self.check()

    def stop(self) -> None:
        """End the thread after one more sync. Does not wait for it."""
        self._messages.put(True)

    def leave_to_parent(self) -> None:
        """Close the descriptor that a forked child inherited."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _run(self) -> None:
        try:
            is_last = False
            while not is_last:
                is_last = self._wait_for_request()
                self._is_requested = False  # before the sync: a write from now on needs the next one
                self._sync()
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)
            self._finished.put(None)

    def _wait_for_request(self) -> bool:
        """Wait for a write, and then a second for more of them; return whether the journal is being closed."""
        is_last = self._messages.get()
        if not is_last:
            with contextlib.suppress(Empty):
                is_last = self._messages.get(timeout=_SYNC_EVERY)
        return is_last

    def _sync(self) -> None:
        end = self._end
        try:
            os.fsync(self._fd)
            status = os.fstat(self._fd)
        except OSError as error:
            self._fail(f"the journal {self._path} cannot be synced to the disk: {error.strerror}")
            return
        if not status.st_nlink or status.st_size < end:
            self._fail(f"the journal {self._path} was removed, replaced or cut short while it was written")

    def _fail(self, problem: str) -> None:
        if self._problem is None:
            self._problem = problem
            _logger.warning("%s", problem)  # close() may have stopped waiting
