"""The steps of one call, each made in a worker's thread: send a request and judge its reply; parse the answer."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

from chatpool._http.session import Transport
from chatpool._protocol.judgement import is_outage_sign, is_refusal
from chatpool._protocol.replies import Reply, check_answer, read_completion, read_document
from chatpool._protocol.requests import BYTES_A_TOKEN, CHAT_PATH, build_body, encode, estimate_tokens, path_of
from chatpool._protocol.results import Attempt, ChatResult, Retry
from chatpool._protocol.settings import Settings
from chatpool.errors import (
    APIConnectionError,
    APITimeoutError,
    CallError,
    ParseError,
    RateLimitError,
)

from .job import Call
from .limits import Limits
from .retry import Postponed, TryAgain, attempt, delay_before_retry, is_transient

_logger = logging.getLogger("chatpool")

_MOST_SENDS = 5  # times max_tries: so often a prompt is sent at most, refusals for rate included


class Client:
    """Knows requests, replies and retries; nothing of threads, queues and other calls."""

    def __init__(self, settings: Settings, transport: Transport, limits: Limits) -> None:
        self._settings, self._transport, self._limits = settings, transport, limits

    def prepare(self, call: Call) -> None:
        """Set the request's body."""
        settings = self._settings
        call.path = path_of(call.prompt)
        body = build_body(call.prompt, model=settings.model, system=settings.system, params=call.run.params)
        call.payload = encode(body, f"prompt {call.index}")
        if settings.tokens_per_minute:
            call.tokens = estimate_tokens(call.payload, body)

    def send(self, call: Call) -> ChatResult | None:
        """Make one try; return the call's result, or None if its answer is to be parsed yet. May raise Postponed."""
        return self._conclude(call, self._exchange)

    def parse(self, call: Call) -> ChatResult | None:
        """Parse the answer, and return the call's result. May raise Postponed."""
        return self._conclude(call, self._parse)

    def _conclude(self, call: Call, step: Any) -> ChatResult | None:
        error: CallError | None = None
        try:
            is_done = attempt(functools.partial(self._judge_step, call, step))
        except CallError as final:
            error = final
        if error is None and not is_done:
            return None
        if error is not None:
            _logger.warning("prompt %d failed: %s", call.index, _name(error))
        result = call.result(error)
        if call.run.record is not None:
            call.run.record(result, call.timeline)
        return result

    def _judge_step(self, call: Call, step: Any) -> bool:
        error: CallError | None = None
        try:
            is_done: bool = step(call)
        except CallError as failure:
            error = failure
        if error is not None:  # outside the except block, so that nothing hangs on the error as its context
            raise self._verdict(call, error)
        return is_done

    def _exchange(self, call: Call) -> bool:
        try:
            if call.scope.error is not None:
                raise call.scope.error
            reply = self._transport.send(call.path, call.payload, call.scope)
        except APIConnectionError as failure:
            late = call.out_of_time(time.monotonic()) if isinstance(failure, APITimeoutError) else None
            if late is not None:
                raise late from None
            if is_transient(failure) and failure.code != "stale_connection":
                call.feedback = ("failed", failure)
            raise
        self._judge(call, reply)
        if call.run.parse is None:
            call.value = call.completion.text if call.completion else None
        return call.run.parse is None

    def _judge(self, call: Call, reply: Reply) -> None:
        """Take the answer out of a reply, and note what the reply says of the limits."""
        call.request_id = reply.request_id
        usage = reply.usage
        if usage is not None:  # whether or not it is an answer: it is paid for
            call.usage = usage if call.usage is None else call.usage + usage
            if call.run.allowance is not None:
                call.run.allowance.use(usage.total_tokens)
        read = read_completion if call.path == CHAT_PATH else read_document
        try:
            call.completion = completion = read(reply)
        except RateLimitError as refusal:
            if is_transient(refusal) and (refusal.retry_after or 0) <= self._settings.max_wait:
                call.feedback = ("refused", refusal.retry_after)
            raise
        except CallError as failure:
            is_trouble = is_outage_sign(failure) or is_refusal(failure)  # overload counts as an outage, too
            call.feedback = ("failed", failure) if is_trouble else ("taken", None)
            raise
        call.feedback = ("taken", usage.total_tokens if usage else None)
        if call.run.allowance is not None and usage is None:
            call.run.allowance.use((len(call.payload) + len(completion.text)) // BYTES_A_TOKEN)
        check_answer(reply, completion)

    def _parse(self, call: Call) -> bool:
        assert call.completion is not None
        assert call.run.parse is not None
        try:
            call.value = call.run.parse(call.completion.text)
        except ValueError as refusal:
            name = type(refusal).__name__
            told = f"parse refused the answer: {name}: {self._transport.redact(str(refusal))}"
        except (
            CallError,
            TryAgain,
            Postponed,
        ) as foreign:  # of another call, made within parse: not this one's failure
            raise Foreign(foreign) from None
        else:
            return True
        raise ParseError(told, code=name)

    def _verdict(self, call: Call, error: CallError) -> Exception:
        """Return TryAgain with the wait for it if another try is due, else the error that ends the call."""
        settings = self._settings
        call.last_error, error.__traceback__ = error, None
        refused = isinstance(error, RateLimitError)
        name, now = type(error).__name__, time.monotonic()
        call.timeline.append(Attempt(call.sent_at - call.started, now - call.started, name))
        # A refusal for rate costs nothing as long as the pool gets on; it shows only that we are many.
        call.tries += not (refused and self._limits.answers > call.answers_seen)
        if call.run.verdict is not None or not is_transient(error):
            return error
        if call.tries >= settings.max_tries or call.attempts >= _MOST_SENDS * settings.max_tries:
            return error
        wait = delay_before_retry(error, call.tries, settings.max_wait)
        if wait > settings.max_wait:
            return error
        delay = 0.0 if refused else wait  # the limits hold the whole pool back for that long
        if now + delay >= call.ends:
            return call.past_deadline() if call.ends == call.run.deadline else error
        _logger.info("prompt %d: try %d failed (%s), next in %.2f s", call.index, call.attempts, _name(error), delay)
        if call.run.notice is not None:
            call.run.notice(Retry(call.index, call.prompt, call.attempts, error, wait))
        return TryAgain(error, delay)


class Foreign(Exception):
    """Carries an exception of the caller's past the handlers of our own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _name(error: CallError) -> str:
    """What may be logged of an error: not its message, which can quote the prompt."""
    words = (type(error).__name__, error.status_code, error.code, error.request_id)
    return " ".join(str(word) for word in words if word is not None)
