"""A thread that owns state. All other threads post messages to it, and none of them ever holds a lock for that.

``SimpleQueue.put`` never blocks and is reentrant, made for destructors and weakref callbacks (python/cpython#59181). So
neither Ctrl-C, which can break only into the main thread, nor the garbage collector, which can break into any thread,
can leave anything half done.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from queue import Empty, SimpleQueue
from typing import Any, Callable


class Actor:
    """Its thread starts with the first message, and ends with ``stop``. A message is a function to call there."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inbox: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._threads: list[threading.Thread] = []  # the first to take the claim is the actor's; any other ends at once
        self._claim = threading.Lock()
        self._late = threading.RLock()  # reentrant: the collector may post while its thread does what came too late
        self.is_over = False

    # For any thread.

    def post(self, action: Callable[..., Any], *args: Any) -> None:
        """Have the actor do something. If it has ended, do it here."""
        self._inbox.put(functools.partial(action, *args))
        if self.is_over:  # it reads its last messages after it has set this, so one of the two sees the other
            self._do_late()
        elif not self._threads:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def ask(self, action: Callable[[], Any]) -> Any:
        """Have the actor do something, and return what that returns."""
        if not self._threads or self.is_over:
            return action()
        answer: SimpleQueue[Any] = SimpleQueue()
        self.post(_answer, action, answer)
        value, bug = answer.get()
        if bug is not None:
            raise bug
        return value

    def stop(self) -> None:
        """End the thread. Does not wait: the garbage collector calls this."""
        self._inbox.put(self._end)

    def join(self) -> None:
        """Wait until the thread has ended, unless this is it. To be called after ``stop``."""
        if not self._threads:
            self.is_over = True
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join()

    def _do_late(self) -> None:
        if threading.current_thread() not in self._threads:
            self.join()
            with self._late:
                self._receive(0)

    # In the actor's thread.

    def _run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return  # two threads posted the first message at once, and each started a thread
        self._threads.append(threading.current_thread())
        while not self.is_over:
            try:
                self._receive(self._timeout())
                self._step()
            except BaseException as bug:  # noqa: BLE001 - nobody may wait for ever because of it
                self._recover(bug)
        self._receive(0)  # what came too late
        self._wind_up()

    def _receive(self, timeout: float) -> None:
        """Wait for a message, ``timeout`` seconds at most; do what it and those behind it say."""
        with contextlib.suppress(Empty):
            self._inbox.get(timeout=None if timeout == math.inf else timeout)()
            while True:
                self._inbox.get_nowait()()

    def _end(self) -> None:
        self.is_over = True

    def _timeout(self) -> float:
        """Return the seconds until there is something to do without a message."""
        raise NotImplementedError

    def _step(self) -> None:
        """Do what is due."""
        raise NotImplementedError

    def _recover(self, bug: BaseException) -> None:
        """Make the state sound again after a bug."""
        raise NotImplementedError

    def _wind_up(self) -> None:
        """Release what the thread held, when it ends."""
        raise NotImplementedError


def _answer(action: Callable[[], Any], answer: SimpleQueue[Any]) -> None:
    """Run what a thread waits for; whatever comes of it, the thread goes on."""
    try:
        answer.put((action(), None))
    except BaseException as bug:
        answer.put((None, bug))
        raise
