"""A call: one prompt from its first attempt to its result."""

from __future__ import annotations

import time
from typing import Any, Callable

from chatpool._http.cancel import CancelScope
from chatpool._protocol.replies import Completion
from chatpool._protocol.request_builder import Request
from chatpool._protocol.results import Attempt, ChatResult, Usage
from chatpool._protocol.schemas import JSON_SCHEMA
from chatpool.errors import APITimeoutError, CallError

from .job import Job
from .reasons import deadline_passed


class Call:
    """The state of one call. All times are readings of ``time.monotonic()``.

    It belongs to one thread at a time: the scheduler's, until a worker or a callback thread gets it for one step, and
    again when that thread has reported. Meanwhile others may touch nothing but its ``scope``.
    """

    __slots__ = (
        "answers_at_start", "answers_before", "attempt_cost", "attempts", "completion", "cost", "error_body",
        "first_token", "format_level", "index", "job", "last_error", "model", "most_cost", "read_timeouts", "rejected",
        "request", "request_id", "scope", "sent_at", "signal", "started", "stream_level", "timeline", "tokens", "tries",
        "unanswered", "usage", "value",
    )  # fmt: skip

    def __init__(self, job: Job, request: Request) -> None:
        self.job, self.request, self.index, self.model = job, request, request.index, request.model
        self.tokens = 0  # an estimate of what it costs, where there is a budget of tokens
        self.attempts = self.tries = 0  # requests sent; of them, those that count against max_tries
        self.read_timeouts = 0  # attempts that ended at the read limit
        self.unanswered = 0  # attempts that we stopped waiting for after their request was sent
        self.started = self.sent_at = 0.0  # when the first and the latest attempt began
        # Answers to calls of this model, when the latest attempt began, and when the one before it did.
        self.answers_at_start = self.answers_before = 0
        self.completion: Completion | None = None
        self.value: Any = None
        self.request_id: str | None = None
        self.usage: Usage | None = None  # of all attempts: each was paid for
        self.cost: float | None = None  # of all attempts, in dollars, as far as it is known
        self.attempt_cost: float | None = None  # of the latest attempt; None: unknown
        self.rejected: tuple[str, str] | None = None  # the latest answer that was rejected, and why
        self.format_level = JSON_SCHEMA  # how the latest attempt asked for its response_format
        self.stream_level: int | None = None  # how the latest attempt asked for a stream; None: it did not
        self.first_token: float | None = None  # seconds from the latest attempt's start to its answer's first piece
        self.most_cost: float | None = None  # of one attempt, where there is a budget for it
        self.last_error: CallError | None = None
        self.error_body: str | None = None  # of the latest attempt's reply if it failed, where there is a journal
        self.timeline: list[Attempt] = []  # the attempts that failed, and after them the one that succeeded
        self.signal: Callable[..., float | None] | None = None  # how the limits are to learn of the latest attempt
        self.scope = CancelScope()

    @property
    def ends(self) -> float:
        """When the call is over, whatever its state: the deadline or ``max_time``."""
        if self.job.max_time is None or not self.started:
            return self.job.deadline
        return min(self.job.deadline, self.started + self.job.max_time)

    def begin_attempt(self, now: float, answers: int) -> None:
        """Note that a request is about to be sent."""
        self.sent_at = now
        self.started = self.started or now
        self.scope.begin(self.ends)
        self.answers_before = self.answers_at_start if self.attempts else answers
        self.answers_at_start = answers
        self.attempts += 1
        self.completion, self.request_id, self.signal, self.attempt_cost = None, None, None, None
        self.error_body = self.first_token = None

    def note_first_token(self) -> None:
        """Note that the first piece of the answer has arrived."""
        self.first_token = time.monotonic() - self.sent_at

    def note_unanswered(self) -> None:
        """Note that the attempt under way is aborted. The server has its request if the connection stood."""
        self.unanswered += self.scope.phase == "read"

    def note_failure(self, error: CallError, now: float) -> None:
        """Note that the latest attempt failed."""
        error.__traceback__ = None  # it would keep every frame of the attempt alive
        self.last_error = error
        self.timeline.append(Attempt(self.sent_at - self.started, now - self.started, type(error).__name__))

    def timeout_error(self, now: float) -> CallError | None:
        """Return the error if the deadline or ``max_time`` has passed, else None."""
        if now >= self.job.deadline:
            return deadline_passed(self.last_error)
        if now < self.ends:
            return None
        last = f"; the last failure: {self.last_error}" if self.last_error else ""
        return APITimeoutError(f"max_time of {self.job.max_time:g} s has passed{last}", code="max_time")

    def result(self, error: CallError | None) -> ChatResult:
        """Return the outcome."""
        done = self.completion
        elapsed = time.monotonic() - self.started if self.started else 0.0
        if error is None and self.timeline:
            self.timeline.append(Attempt(self.sent_at - self.started, elapsed, None))
        if error is not None:
            error.attempts = self.attempts
            error.request_id = error.request_id or self.request_id
            error.__traceback__ = None  # as in note_failure
        return ChatResult(
            index=self.index,
            prompt=self.request.prompt,
            text=done.text if done else None,
            value=self.value if error is None else None,
            reasoning=done.reasoning if done else None,
            finish_reason=done.finish_reason if done else None,
            usage=self.usage,
            response=done.response if done else None,
            request_id=self.request_id or (error.request_id if error else None),
            attempts=self.attempts,
            elapsed=elapsed,
            error=error,
            cost=self.cost,
            unanswered=self.unanswered,
            first_token=self.first_token,
        )


def unsent(request: Request, error: CallError) -> ChatResult:
    """Return the result of a prompt whose call was never begun."""
    return ChatResult(request.index, request.prompt, None, None, None, None, None, None, None, 0, 0.0, error)
