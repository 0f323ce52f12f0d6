"""One answer as it is written. A worker reads it, at the pace of the server; the caller's thread takes its pieces.

So the slot is free as soon as the server is done, however slow the reader of the pieces is.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from chatpool._protocol.request_builder import Request
from chatpool._protocol.results import ChatResult, Retry

from .job import Job
from .mapper import Callbacks


class StreamJob(Job):
    """The job of one stream."""

    takes_pieces = True

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.pieces: deque[str] = deque()  # filled by a worker, emptied by the waiting thread

    def deliver(self, piece: str) -> None:
        self.has_delivered = True
        self.pieces.append(piece)
        self.wake()


class AnswerStream(Iterator[str]):
    """Yields the pieces of an answer's text as they arrive, and raises the call's error if it fails.

    An error after the first piece is not retried; what came before is the error's ``text``. Nothing is sent before the
    first piece is asked for. Dropping or closing the iterator cancels the call. ``result``: the ChatResult, once the
    last piece was yielded or an error raised; None before.
    """

    def __init__(self, job: StreamJob, request: Request, callbacks: Callbacks) -> None:
        self.result: ChatResult | None = None
        self._job, self._request, self._callbacks = job, request, callbacks
        self._yielded: list[str] = []
        self._retries: deque[Retry] = deque()
        if callbacks.on_retry is not None:
            job.on_retry = self._retries.append
        self._has_begun = self._is_over = False
        self._reading = threading.Lock()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._yielded)

    def __next__(self) -> str:
        if not self._reading.acquire(blocking=False):
            raise RuntimeError("another thread is reading this stream; a stream is for one thread at a time")
        try:
            piece = self._next()
        except BaseException:  # StopIteration, the call's error, a hook's, Ctrl-C
            self.close()
            raise
        finally:
            self._reading.release()
        self._yielded.append(piece)
        return piece

    def close(self) -> None:
        """Cancel the call if it is not done. Closing again does nothing."""
        self._is_over = True
        if self._has_begun:
            self._has_begun = False
            self._job.end()

    def __del__(self) -> None:
        self.close()

    def _next(self) -> str:
        if self._is_over or self.result is not None:
            raise StopIteration
        job = self._job
        self._begin()
        while not job.pieces:
            # All pieces come before the result, so that there are none left if it was there before this look at them.
            result = job.results.get(self._request.index)
            if result is not None:
                return self._conclude(result)
            job.gather(1, math.inf)
            while self._retries and self._callbacks.on_retry is not None:
                self._callbacks.on_retry(self._retries.popleft())
        return job.pieces.popleft()

    def _begin(self) -> None:
        """Send the request with the first look for pieces."""
        self._job.check_process()
        self._job.waiter = threading.current_thread()
        if not self._has_begun:
            self._has_begun = True
            self._job.backend.start(self._job, [self._request])

    def _conclude(self, result: ChatResult) -> str:
        """Raise the error of a call that failed, or StopIteration. An answer that came whole is one piece."""
        self.result = result
        if self._callbacks.on_result is not None:
            self._callbacks.on_result(result)
        if result.error is not None:
            result.error.text = self.text
            raise result.error
        if self._yielded or not result.text:
            raise StopIteration
        return result.text
