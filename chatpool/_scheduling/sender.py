"""The steps of one call: send a request and judge the reply; parse the answer; decide about the next attempt."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

from chatpool._http.session import Transport
from chatpool._limits.limits import Limits
from chatpool._protocol.announced_limits import announced_limits
from chatpool._protocol.judgement import is_outage_sign, is_refusal, is_transient
from chatpool._protocol.prices import cost_of
from chatpool._protocol.replies import Reply, check_answer, read_completion, read_document
from chatpool._protocol.requests import BYTES_A_TOKEN, CHAT_PATH, encode, estimate
from chatpool._protocol.results import REJECTIONS, ChatResult, Retry, Usage
from chatpool._protocol.schemas import (
    JSON_SCHEMA,
    NOTHING,
    ResponseFormat,
    ask_again,
    downgrade,
    is_unknown_format,
)
from chatpool._protocol.settings import Settings
from chatpool._protocol.shown import LONGEST_MESSAGE, shorten, show_message
from chatpool.errors import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    CallError,
    ParseError,
    add_note,
)

from .call import Call
from .reasons import deadline_passed
from .retry import back_off, delay_before_retry
from .streaming import Streams

_logger = logging.getLogger("chatpool")

_LONGEST_START = 80  # characters of an answer that a note shows
_MOST_READ_TIMEOUTS = 2  # attempts of one prompt that end at the read limit: the server may charge for each
_MOST_SENDS = 5  # times max_tries: how often one prompt is sent at most, rate limits included


class Sender:
    """Knows requests, replies and retries; nothing of threads, queues and other calls."""

    def __init__(self, settings: Settings, transport: Transport, limits: Limits) -> None:
        self._settings, self._transport, self._limits = settings, transport, limits
        self.max_wait = settings.max_wait
        self._format_levels: dict[str, int] = {}  # by model: how a server wants to be asked for a response_format
        self._streams = Streams(settings.idle_timeout)

    def prepare(self, call: Call) -> CallError | None:
        """Estimate the tokens of a call; return an error if its text needs more than the whole budget of them."""
        if call.tokens:
            return None
        if not self._settings.tokens_per_minute:
            call.tokens = rough_tokens(call.request.prompt)
            return None
        builder = call.job.builder
        needed = estimate(builder.payload(call.request), builder.body(call.request.prompt))
        call.tokens = needed.total
        return self._limits.refusal(needed.text)

    def must_save(self, call: Call) -> bool:
        """Whether the run's cost_budget allows a request only once others in flight are done."""
        budget = call.job.budget
        if budget is None or budget.cost_budget is None:
            return False
        if call.most_cost is None:
            call.most_cost = call.job.builder.most_cost(call.request, self._payload(call))
        return budget.must_wait(call.most_cost)

    def send(self, call: Call) -> ChatResult | None:
        """Make one attempt; return the call's result, or None if its answer is still to be parsed. Raises Postponed."""
        failure: CallError | None = None
        try:
            self._exchange(call)
        except CallError as error:
            failure = error
        if failure is None and call.job.parse is not None:
            assert call.completion is not None
            if call.completion.text.strip():
                return None
            call.value = None  # tool calls or images: there is nothing to parse
        return self._conclude(call, failure)

    def parse(self, call: Call) -> ChatResult:
        """Parse the answer; return the call's result. Raises Postponed, and what ``parse`` raises by mistake."""
        assert call.completion is not None
        assert call.job.parse is not None
        failure: CallError | None = None
        try:
            call.value = call.job.parse(call.completion.text)
        except REJECTIONS as error:
            name, reason = type(error).__name__, self._transport.redact(str(error))
            label = getattr(call.job.parse, "label", "parse")
            failure = ParseError(f"{label} rejected the answer: {name}: {reason}", code=name)
            call.rejected = call.completion.text, f"{name}: {reason}"
            call.most_cost = None  # the next request is longer
        except Exception as bug:
            self._explain(bug, call)
            raise
        return self._conclude(call, failure)

    def _explain(self, bug: Exception, call: Call) -> None:
        """Note which answer made ``parse`` raise an exception that is not about the answer."""
        assert call.completion is not None
        start = shorten(show_message(self._transport.redact(call.completion.text[:LONGEST_MESSAGE])), _LONGEST_START)
        add_note(bug, f"chatpool: parse raised this for prompt {call.index}; its answer begins with {start!r}")

    def _conclude(self, call: Call, failure: CallError | None) -> ChatResult:
        """Return the result of a call that needs no other attempt; raise Postponed for one that does."""
        if failure is not None:
            failure = self._final_error(call, failure)
            _logger.warning("prompt %d failed: %s", call.index, _describe(failure))
        result = call.result(failure)
        if call.job.record is not None:
            call.job.record(result, call.timeline, call.error_body)
        call.request.payload = None  # a map keeps its requests until it ends
        return result

    def _exchange(self, call: Call) -> None:
        """Send the request and take the answer out of the reply; note what the limits are to learn from it."""
        if call.scope.error is not None:
            raise call.scope.error
        payload, answer = self._streams.prepare(call, self._payload(call))
        try:
            reply = self._transport.send(call.request.path, payload, call.scope, answer)
        except APITimeoutError as failure:
            call.note_unanswered()
            # A model that thinks without a word for longer than the idle timeout does so in each attempt.
            is_silent = failure.code == "idle_timeout" and call.first_token is None
            call.read_timeouts += failure.code == "read_timeout" or is_silent
            late = call.timeout_error(time.monotonic())
            if late is not None:
                raise late from None
            call.signal = functools.partial(Limits.failed, error=failure)
            raise
        except APIConnectionError as failure:
            if call.scope.phase != "read":
                call.attempt_cost = 0.0  # it was not sent
            if is_transient(failure) and failure.code != "stale_connection":
                call.signal = functools.partial(Limits.failed, error=failure)
            raise
        self._judge(call, reply, len(payload))
        assert call.completion is not None
        call.value = call.completion.text

    def _payload(self, call: Call) -> bytes:
        """Return the body of a call's next request: its first one, unless the server or the model needs another."""
        builder, request, parse = call.job.builder, call.request, call.job.parse
        level = self._format_levels.get(call.model, JSON_SCHEMA) if isinstance(parse, ResponseFormat) else JSON_SCHEMA
        call.format_level = level
        rejected = call.rejected if call.job.reask else None
        if request.path != CHAT_PATH or (level == JSON_SCHEMA and rejected is None):
            return builder.payload(request)
        body = builder.body(request.prompt)
        if level != JSON_SCHEMA:
            assert isinstance(parse, ResponseFormat)
            body = downgrade(body, parse, level)
        if rejected is not None:
            body = ask_again(body, *rejected)
        return encode(body, f"prompt {call.index}")

    def _has_other_body(self, call: Call, error: CallError) -> bool:
        return self._has_other_format(call, error) or self._streams.has_other_way(call, error)

    def _has_other_format(self, call: Call, error: CallError) -> bool:
        """Whether the server did not know how its answer was asked for, and there is another way; remember it."""
        level = call.format_level
        if level == NOTHING or not isinstance(call.job.parse, ResponseFormat) or not is_unknown_format(error):
            return False
        self._format_levels[call.model] = max(level + 1, self._format_levels.get(call.model, 0))
        call.most_cost = None
        return True

    def _judge(self, call: Call, reply: Reply, request_bytes: int) -> None:
        call.request_id = reply.request_id
        usage = reply.usage
        if usage is not None:  # whether or not it is an answer: it is paid for
            call.usage = usage if call.usage is None else call.usage + usage
            if call.job.budget is not None:
                call.job.budget.charge(usage.total_tokens)
        self._add_cost(call, reply, usage)
        announced = announced_limits(reply.headers, time.time())
        read = read_completion if call.request.path == CHAT_PATH else read_document
        try:
            call.completion = completion = read(reply)
        except CallError as error:
            if call.job.record is not None:
                call.error_body = reply.error_body()
            if not is_refusal(error):
                failed = functools.partial(Limits.failed, error=error)
                accepted = functools.partial(Limits.accepted, tokens=None, announced=announced)
                call.signal = failed if is_outage_sign(error) else accepted
            elif is_transient(error) and (error.retry_after or 0) <= self._settings.max_wait:
                call.signal = functools.partial(Limits.refused, error=error, announced=announced)
            raise
        self._streams.learn(call, reply)
        tokens = usage.total_tokens if usage else None
        call.signal = functools.partial(Limits.accepted, tokens=tokens, announced=announced)
        if call.job.budget is not None and usage is None:
            call.job.budget.charge((request_bytes + len(completion.text)) // BYTES_A_TOKEN)
        check_answer(reply, completion)

    def _add_cost(self, call: Call, reply: Reply, usage: Usage | None) -> None:
        """Note the dollars for a reply, if they are known. An error that reports no usage is free."""
        cost = cost_of(reply.document, usage, call.job.builder.price(call.request))
        if cost is not None:
            call.cost = cost + (call.cost or 0.0)
        call.attempt_cost = 0.0 if cost is None and not reply.is_success else cost

    def _final_error(self, call: Call, error: CallError) -> CallError:
        """Return the error that ends the call. Raises Postponed if there is to be another attempt."""
        settings, now = self._settings, time.monotonic()
        call.note_failure(error, now)
        try:
            is_first = self._is_first_401(call, error)
            has_new_key = _is_401(error) and self._transport.renew_key(call.scope, is_first=is_first)
        except AuthenticationError as no_key:
            return no_key
        rejected = is_refusal(error)
        # A refusal costs no try if others were answered since the attempt before: it shows only that there are many.
        # A kept connection that the server closed costs none either: its later attempts open their own.
        has_other_way = has_new_key or error.code == "stale_connection" or self._has_other_body(call, error)
        is_free = has_other_way or (rejected and self._limits.answers_of(call.model) > call.answers_before)
        call.tries += not is_free
        # A stray 401 at once, before other prompts meet a key that may have been revoked.
        at_once = has_other_way or self._is_stray(call, error)
        if not (is_transient(error) or at_once) or self._is_last(call):
            return error
        wait = 0.0 if at_once else delay_before_retry(error, call.tries, settings.max_wait)
        if wait > settings.max_wait:
            return error
        delay = 0.0 if rejected else wait  # the limits hold all calls back for that long
        if now + delay >= call.ends:
            return deadline_passed(error) if call.ends == call.job.deadline else error
        _logger.info(
            "prompt %d: attempt %d failed (%s), next in %.2f s", call.index, call.attempts, _describe(error), delay
        )
        if call.job.on_retry is not None:
            call.job.on_retry(Retry(call.index, call.request.prompt, call.attempts, error, wait))
        return back_off(delay)

    def _is_last(self, call: Call) -> bool:
        """Whether a call may make no other attempt, whatever its error."""
        most = self._settings.max_tries
        is_spent = call.tries >= most or call.attempts >= _MOST_SENDS * most
        is_over = call.job.is_cancelled or call.job.has_delivered
        return is_spent or call.read_timeouts >= _MOST_READ_TIMEOUTS or is_over

    def _is_stray(self, call: Call, error: CallError) -> bool:
        """Whether a 401 may be a gateway's mistake: the key was accepted before, and this call had no other 401."""
        return self._limits.answers > 0 and self._is_first_401(call, error)

    @staticmethod
    def _is_first_401(call: Call, error: CallError) -> bool:
        name = type(error).__name__
        return isinstance(error, AuthenticationError) and sum(attempt.error == name for attempt in call.timeline) == 1


def _is_401(error: CallError) -> bool:
    return isinstance(error, AuthenticationError) and error.status_code == 401


def rough_tokens(prompt: Any) -> int:
    """Guess a prompt's tokens from its text alone: so much does no harm if a server's limit counts requests."""
    if isinstance(prompt, str):
        return 1 + len(prompt) // BYTES_A_TOKEN
    messages = prompt.get("messages") if isinstance(prompt, dict) else prompt
    if not isinstance(messages, list):
        return 1
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    return 1 + sum(len(content) for content in contents if isinstance(content, str)) // BYTES_A_TOKEN


def _describe(error: CallError) -> str:
    """Return the parts of an error that may be logged: not its message, which can quote the prompt."""
    words = (type(error).__name__, error.status_code, error.code, error.request_id)
    return " ".join(str(word) for word in words if word is not None)
