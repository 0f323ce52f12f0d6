"""The threads that send requests: a plain ThreadPoolExecutor. They never run the user's code, so they always return."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Callable

from .call import Call


class Workers:
    """Used by the scheduler's thread; a worker starts when there are more calls in flight than workers."""

    def __init__(self, size: int, perform: Callable[[Call], None]) -> None:
        self._perform = perform
        self._executor = ThreadPoolExecutor(size, "chatpool-worker")
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._count = 0

    def send(self, call: Call, in_flight: int) -> None:
        """Have a worker perform a call; ``in_flight``: how many calls there are with this one."""
        self._calls.put(call)
        if in_flight <= self._count:
            return
        try:
            self._executor.submit(self._work, self._calls)
            self._count += 1
        except RuntimeError:  # no more threads to be had, or the interpreter exits: the workers that exist go on
            if not self._count:
                self._perform(self._calls.get())  # type: ignore[arg-type]  # None comes last, from dismiss

    def dismiss(self) -> None:
        """End the workers once they have performed what they have. Calls that come later get new ones."""
        self._calls.put(None)
        self._calls, self._count = SimpleQueue(), 0

    def close(self, *, wait: bool) -> None:
        """End the workers, and start no more."""
        self.dismiss()
        self._executor.shutdown(wait=wait)

    def _work(self, calls: SimpleQueue[Call | None]) -> None:
        while (call := calls.get()) is not None:
            self._perform(call)
            del call  # or it would live on, with its prompt and its answer, until the next one comes
        calls.put(None)  # for the next worker
