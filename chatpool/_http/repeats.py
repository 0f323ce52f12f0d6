"""Finds a reply that a server sent twice. HTTP/1.1 numbers nothing: the second copy would pass for the answer to the
connection's next request, the answer for that of the one after it, and so on."""

from __future__ import annotations

import re
from http.client import HTTPException
from typing import Any, NamedTuple

# A text, compiled when it is first used: most programs that import this package never do.
_IDS = rb"(?im)^(?:x-request-id|request-id|apim-request-id|x-ms-request-id|cf-ray):[ \t]*([^\r\n]+)"
_MOST = 1000  # replies that are remembered


class RepeatedReply(HTTPException):
    """The connection's last reply again, though something else was asked."""


class Seen(NamedTuple):
    """A reply, and what it replied to."""

    asked: int  # checksum of the request's body
    status: int
    checksum: int  # of the reply's body
    has_id: bool  # the body holds an id
    head: bytes

    def mark(self) -> Any:
        """Return what distinguishes this reply from others; None if it holds no id."""
        ids = tuple(re.findall(_IDS, self.head))
        return (self.status, self.checksum, ids) if ids or self.has_id else None


class Repeats:
    """What the replies of one server look like.

    Some servers, such as mocks, always use the same id. They show that by replies that are alike and the first ones of
    their connections, where nothing can be left over from an earlier request.
    """

    def __init__(self) -> None:
        self._firsts: set[Any] = set()
        self._usual: set[Any] = set()

    def are_found(self, last: Seen | None, seen: Seen) -> bool:
        """Return whether a reply may be the last one of its connection again. Then that must be closed."""
        if last is None:
            self._learn(seen.mark())
            return False
        if (last.status, last.checksum) != (seen.status, seen.checksum):
            return False
        mark = seen.mark()
        return mark is not None and mark not in self._usual and mark == last.mark()

    def _learn(self, mark: Any) -> None:
        if len(self._firsts) + len(self._usual) >= _MOST:
            self._firsts.clear()
            self._usual.clear()
        (self._usual if mark in self._firsts else self._firsts).add(mark)


def is_harmful(last: Seen | None, seen: Seen) -> bool:
    """Whether a repeated reply must not be taken for an answer: not if the same was asked, or it says to ask again."""
    asks_again = seen.status == 429 or seen.status >= 500
    return last is None or (last.asked != seen.asked and not asks_again)
