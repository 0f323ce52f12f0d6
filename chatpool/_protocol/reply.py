"""A complete HTTP reply: its JSON, its request id, its delay, and the error that it is turned into."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from chatpool.errors import CallError

from .judgement import is_refusal
from .results import Usage
from .shown import LONGEST_MESSAGE, escape_lines, is_page, page_text, show_message, show_name
from .usage import read_usage
from .waits import header_delay, hinted_delay

_REQUEST_ID_HEADERS = (
    "x-request-id", "request-id", "apim-request-id", "x-ms-request-id", "x-amzn-requestid", "x-oneapi-request-id",
    "trace-id", "cf-ray",
)  # fmt: skip
_LONGEST_INTEGER = 1000  # digits
_START = 8 * LONGEST_MESSAGE  # bytes of a body that are read for an excerpt; tags and secrets are removed from them

_LONGEST_BODY = 2**16  # bytes of a failed reply's body that go into a journal


def _unchanged(text: str) -> str:
    return text


class Reply:
    """A complete HTTP reply.

    ``headers``: with names in lower case. ``redact``: removes secrets from a text. ``base_url``: safe to show.
    """

    is_stream = False
    is_cut_off = False  # it was streamed, and the stream ended before its answer did

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        redact: Callable[[str], str] = _unchanged,
        base_url: str = "",
    ) -> None:
        self.status, self.headers, self.body = status, headers, body
        self.redact, self.base_url = redact, base_url
        self._json: tuple[Any, str | None] | None = None
        self._usage: tuple[Usage | None] | None = None

    @classmethod
    def of(cls, document: Any) -> Reply:
        """Return a reply that has this JSON, which was saved before."""
        reply = cls(200, {}, b"")
        reply._json = document, None
        reply._usage = (None,)  # a line of the journal has the usage of all attempts
        return reply

    @property
    def is_success(self) -> bool:
        """Whether the status is any 2xx."""
        return 200 <= self.status < 300

    @property
    def document(self) -> Any:
        """The body's JSON; None if it is not valid, see ``json_error``."""
        return self._parsed()[0]

    @property
    def json_error(self) -> str | None:
        """Why the body is not valid JSON, or None."""
        return self._parsed()[1]

    @property
    def usage(self) -> Usage | None:
        """The tokens that the reply reports. They are paid for even if it has no answer."""
        if self._usage is None:
            self._usage = (read_usage(self.document),)
        return self._usage[0]

    @property
    def request_id(self) -> str | None:
        """The server's id of the request, from a header or the body."""
        for name in _REQUEST_ID_HEADERS:
            if found := self.headers.get(name):
                return self._name(found)
        return self._name(self.document.get("request_id")) if isinstance(self.document, dict) else None

    @property
    def retry_after(self) -> float | None:
        """The delay in seconds that a header asks for, or None."""
        return header_delay(self.headers, time.time())

    @property
    def should_retry(self) -> bool | None:
        """Whether the server wants a retry (``x-should-retry``, as in OpenAI's SDK), or None."""
        return {"true": True, "false": False}.get(self.headers.get("x-should-retry", "").strip().lower())

    @property
    def is_page(self) -> bool:
        """Whether the body is a web page."""
        return is_page(self._start())

    def excerpt(self) -> str:
        """Return the start of the body, safe to show."""
        return escape_lines(self._start())[:LONGEST_MESSAGE]

    def error_body(self) -> str:
        """Return the body for a file: at most its first 64 kB, with the secrets removed."""
        return self.redact(self._body_text(_LONGEST_BODY))

    def text(self) -> str:
        """Return the start of the body as one line; of a web page, its text."""
        return page_text(self._start()) if self.is_page else show_message(self._start())

    def fail(self, kind: type[CallError], message: str, *, status: int | None = None, code: Any = None) -> NoReturn:
        """Raise an error of class ``kind`` with the reply's details."""
        error = kind(
            show_message(self.redact(message)),
            status_code=self.status if status is None else status,
            code=self._name(code),
            request_id=self.request_id,
            retry_after=self.retry_after,
            body=self.excerpt(),
        )
        error.should_retry = self.should_retry
        if error.retry_after is None and is_refusal(error):
            error.retry_after = hinted_delay(self.headers, self.document, message, time.time())
        raise error

    def _start(self) -> str:
        return self.redact(self._body_text(_START))

    def _body_text(self, most: int) -> str:
        return self.body[:most].decode("utf-8", "replace")

    def _name(self, value: Any) -> str | None:
        return show_name(self.redact(value) if isinstance(value, str) else value)

    def _parsed(self) -> tuple[Any, str | None]:
        # Not a cached_property: before Python 3.12 it has a lock for all instances, which a fork could copy while held.
        if self._json is None:
            self._json = _parse_body(self.body)
        return self._json


def _parse_body(body: bytes) -> tuple[Any, str | None]:
    """Return a body's JSON, or the reason why it is not valid. A byte order mark or blank lines may precede it."""
    try:
        text = body.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        return None, f"{type(error).__name__}: {error}"
    return parse_json(text)


def parse_json(text: str) -> tuple[Any, str | None]:
    """Return the JSON of a text, or the reason why it is not valid."""
    reason = ""
    for decoder in (_decoder, _lenient_decoder):
        try:
            return decoder.decode(text), None
        except (ValueError, RecursionError) as error:  # invalid JSON, a huge integer; too many levels
            reason = f"{type(error).__name__}: {error}"
    return None, reason if text.strip() else "it is empty"


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < _LONGEST_INTEGER else None


def _constant(name: str) -> None:
    """NaN and Infinity, which JSON does not have but some servers send, become null (sglang#20323)."""


# The second one, which is slower, reads integers of thousands of digits as null; Python 3.11 rejects them.
_decoder = json.JSONDecoder(parse_constant=_constant, parse_float=_finite)
_lenient_decoder = json.JSONDecoder(parse_constant=_constant, parse_float=_finite, parse_int=_integer)
