"""Asks for streams, as far as the server knows how to stream."""

from __future__ import annotations

import math

from chatpool._protocol.reply import Reply
from chatpool._protocol.requests import CHAT_PATH, WITH_USAGE, streamed
from chatpool._protocol.streams import StreamedAnswer, level_below
from chatpool.errors import CallError

from .call import Call


class Streams:
    """What one pool knows of its server, by model. Workers share it: each change is a single step."""

    def __init__(self, idle_timeout: float | None) -> None:
        self._idle_timeout = idle_timeout
        self._levels: dict[str, int] = {}  # how the server wants to be asked for a stream
        self._ignoring: set[str] = set()  # models whose answers come whole although a stream was asked for

    def prepare(self, call: Call, payload: bytes) -> tuple[bytes, StreamedAnswer | None]:
        """Return the body for a call's next request, and what takes in the stream if it asks for one."""
        call.stream_level, call.scope.idle_timeout = None, math.inf
        if (self._idle_timeout is None and not call.job.takes_pieces) or call.request.path != CHAT_PATH:
            return payload, None
        level = self._levels.get(call.model, WITH_USAGE)
        body = streamed(payload, level)
        if body is None:
            return payload, None
        call.stream_level = level
        if self._idle_timeout is not None and call.model not in self._ignoring:
            call.scope.idle_timeout = self._idle_timeout  # else from the head of a stream on
        return body, StreamedAnswer(call.note_first_token, call.job.deliver if call.job.takes_pieces else None)

    def learn(self, call: Call, reply: Reply) -> None:
        """Learn from a reply whether the server ignores ``stream``: it is silent then until its answer is whole."""
        if call.stream_level is None or not reply.is_success:
            return
        if reply.is_stream:
            self._ignoring.discard(call.model)
        else:
            self._ignoring.add(call.model)

    def has_other_way(self, call: Call, error: CallError) -> bool:
        """Whether the server rejected a call because of how it asked for a stream; remember it."""
        level = None if call.stream_level is None else level_below(call.stream_level, error)
        if level is None:
            return False
        self._levels[call.model] = max(level, self._levels.get(call.model, WITH_USAGE))
        return True
