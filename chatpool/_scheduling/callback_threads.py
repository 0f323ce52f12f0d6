"""Threads for the user's code: ``parse``, and the callbacks of Futures. The scheduler owns them.

There are fewer of them than slots, unless all of them wait for the pool. Whether they do cannot be seen: a ``parse``
may wait in a thread of its own for a map of the same pool. But most jobs that they wait for began after they did. So if
every task that runs began before some job whose answer has no thread, one more thread starts. An answer may wait for
its turn, but never for ever, at any depth; and slow tasks of one job, or of jobs that began before, start no threads.

A task may also wait for the Future of a job that began before it. So if no task ends for a second, one more thread
starts; the next one after two seconds, and so on.
"""

from __future__ import annotations

import math
import os
import threading
import time
from queue import SimpleQueue
from typing import Callable

_PATIENCE = 1.0  # seconds without the end of any task, for each thread beyond the usual number


class Task:
    """A piece of user code to run for a job that began at ``job_began``."""

    __slots__ = ("job_began", "run", "started")

    def __init__(self, run: Callable[[], None], job_began: float) -> None:
        self.run, self.job_began = run, job_began
        self.started = math.inf  # set by the thread that runs it


class CallbackThreads:
    """The scheduler's thread adds tasks and reports them as done; the threads here only run them."""

    def __init__(self, size: int, done: Callable[[Task], None]) -> None:
        self._size, self._done = size, done
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._tasks: set[Task] = set()  # that run or wait
        self._threads: list[threading.Thread] = []
        self._moved_at = 0.0  # when a task ended, a thread started, or the first task began to wait for a thread

    @property
    def are_short_of_threads(self) -> bool:
        """Whether a task waits for a thread."""
        return len(self._tasks) > len(self._threads)

    def run(self, run: Callable[[], None], job_began: float) -> bool:
        """Have a thread run something. Return False if there is no thread, and none can be started."""
        if len(self._tasks) >= len(self._threads) < self._size:
            self._start_thread()
        if not self._threads:
            return False
        if not self.are_short_of_threads:
            self._moved_at = time.monotonic()
        task = Task(run, job_began)
        self._tasks.add(task)
        self._queue.put(task)
        return True

    def forget(self, task: Task) -> None:
        """Note that a task is done."""
        self._tasks.discard(task)
        self._moved_at = time.monotonic()

    def grow(self) -> None:
        """Start a thread if all of them may be waiting for a task that has none. To be called now and then."""
        if not self.are_short_of_threads:
            return
        latest_start = max((task.started for task in self._tasks if task.started < math.inf), default=math.inf)
        patience = _PATIENCE * max(1, len(self._threads) - self._size + 1)
        is_stuck = time.monotonic() - self._moved_at > patience
        if is_stuck or any(task.started == math.inf and task.job_began > latest_start for task in self._tasks):
            self._moved_at = time.monotonic()
            self._start_thread()

    def dismiss(self) -> list[threading.Thread]:
        """End the threads once they have run what they have; return them. Tasks that come later get new ones."""
        self._queue.put(None)
        threads, self._threads = self._threads, []
        self._queue = SimpleQueue()
        return threads

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, args=(self._queue,), name="chatpool-callback")
        try:
            thread.start()
        except RuntimeError:  # no more threads to be had, or the interpreter exits
            return
        self._threads.append(thread)

    def _work(self, queue: SimpleQueue[Task | None]) -> None:
        process = os.getpid()
        while (task := queue.get()) is not None:
            task.started = time.monotonic()
            try:
                task.run()
            finally:
                self._done(task)
            if os.getpid() != process:  # the task forked, and the child has ended its part: nobody sends it another
                return
            del task  # or it would live on, with its call, until the next one comes
        queue.put(None)  # for the next thread
