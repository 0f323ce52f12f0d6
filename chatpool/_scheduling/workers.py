"""The threads that send requests: a plain ThreadPoolExecutor. They never run the user's code, so they always return."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Callable

from .call import Call

_PAUSE = 1.0  # seconds between two attempts to start a worker, if there are no more threads


class Workers:
    """Used by the scheduler's thread; a worker starts when there are more calls in flight than workers."""

    def __init__(self, size: int, perform: Callable[[Call], None]) -> None:
        self._perform = perform
        self._executor = ThreadPoolExecutor(size, "chatpool-worker")
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._count = 0
        self._next_start = 0.0  # when a worker may be started again

    def send(self, call: Call, in_flight: int) -> bool:
        """Have a worker perform a call; ``in_flight``: how many calls there are with this one. Return False if there is
        no worker, and none can be started."""
        if in_flight > self._count and time.monotonic() >= self._next_start:
            self._start_worker()
        if not self._count:
            return False
        self._calls.put(call)
        return True

    def dismiss(self) -> None:
        """End the workers once they have performed what they have. Calls that come later get new ones."""
        self._calls.put(None)
        self._calls, self._count = SimpleQueue(), 0

    def close(self, *, wait: bool) -> None:
        """End the workers, and start no more."""
        self.dismiss()
        self._executor.shutdown(wait=wait)

    def _start_worker(self) -> None:
        try:
            self._executor.submit(self._work, self._calls)
        except RuntimeError:  # the interpreter exits, or there are no more threads to be had
            work = threading.Thread(target=self._work, args=[self._calls], name="chatpool-worker", daemon=True)
            try:
                work.start()
            except RuntimeError:  # the workers that exist go on; each failed start leaves a task in the queue
                self._next_start = time.monotonic() + _PAUSE
                return
        self._count += 1

    def _work(self, calls: SimpleQueue[Call | None]) -> None:
        while (call := calls.get()) is not None:
            self._perform(call)
            del call  # or it would live on, with its prompt and its answer, until the next one comes
        calls.put(None)  # for the next worker
