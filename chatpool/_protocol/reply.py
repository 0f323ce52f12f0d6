"""A whole HTTP reply: its JSON, its ids and waits, and how it becomes an error. Judges nothing."""

from __future__ import annotations

import codecs
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from chatpool.errors import CallError

from .judgement import is_refusal
from .results import Usage
from .shown import LONGEST_MESSAGE, escape_lines, is_page, page_text, show_message, show_name
from .usage import read_usage
from .waits import header_delay, hinted_delay

codecs.lookup("utf-8-sig")  # loads it now: at the first reply there may be no file descriptor left to open it with

_REQUEST_ID_HEADERS = (
    "x-request-id", "request-id", "apim-request-id", "x-ms-request-id", "x-amzn-requestid", "x-oneapi-request-id",
    "trace-id", "cf-ray",
)  # fmt: skip
_LONGEST_INTEGER = 1000  # digits
_START = 8 * LONGEST_MESSAGE  # bytes of a body that may be shown; more than that, as escapes and tags take room


def _unchanged(text: str) -> str:
    return text


@dataclass(frozen=True)
class Reply:
    """A whole HTTP reply. ``headers`` look-ups ignore case; ``redact`` removes the secrets from a text."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    redact: Callable[[str], str] = field(default=_unchanged, repr=False)
    base_url: str = ""  # fit to be shown

    @property
    def is_success(self) -> bool:
        """Whether the status is any 2xx."""
        return 200 <= self.status < 300

    @property
    def document(self) -> Any:
        """The body's JSON; None where it is not JSON, for which ``json_error`` gives the reason."""
        return self._parsed()[0]

    @property
    def json_error(self) -> str | None:
        """Why the body is not valid JSON, or None."""
        return self._parsed()[1]

    @property
    def usage(self) -> Usage | None:
        """The tokens that the reply reports. They are paid for, whether or not it holds an answer."""
        return read_usage(self.document)

    @property
    def request_id(self) -> str | None:
        """The server's id of the request, from whichever header or field holds it."""
        found = next((value for name in _REQUEST_ID_HEADERS if (value := self.headers.get(name))), None)
        if found is None and isinstance(self.document, dict):
            found = self.document.get("request_id")
        return self._name(found)

    @property
    def retry_after(self) -> float | None:
        """Seconds that a header asks to wait, or None."""
        return header_delay(self.headers, time.time())

    @property
    def should_retry(self) -> bool | None:
        """The server's word on whether another try is of use (``x-should-retry``, as OpenAI's SDK reads it)."""
        return {"true": True, "false": False}.get(self.headers.get("x-should-retry", "").strip().lower())

    @property
    def is_page(self) -> bool:
        """Whether the body is a web page."""
        return is_page(self._start())

    def excerpt(self) -> str:
        """Return the start of the body, fit for an error."""
        return escape_lines(self._start())[:LONGEST_MESSAGE]

    def text(self) -> str:
        """Return the start of the body as a person would read it: of a web page, its text."""
        return page_text(self._start()) if self.is_page else show_message(self._start())

    def fail(self, kind: type[CallError], message: str, *, status: int | None = None, code: Any = None) -> NoReturn:
        """Raise ``kind`` with everything that the reply says."""
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
        return self.redact(self.body[:_START].decode("utf-8", "replace"))

    def _name(self, value: Any) -> str | None:
        return show_name(self.redact(value) if isinstance(value, str) else value)

    def _parsed(self) -> tuple[Any, str | None]:
        # Not a cached_property: until Python 3.12 those share a lock, which a forked child could inherit locked.
        parsed: tuple[Any, str | None] | None = self.__dict__.get("_json")
        if parsed is None:
            parsed = self.__dict__["_json"] = _parse_json(self.body)
        return parsed


def _parse_json(body: bytes) -> tuple[Any, str | None]:
    """Return the JSON in a body, or the reason why it is none. A byte order mark or blank lines may precede it."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return None, f"{type(error).__name__}: {error}"
    reason = "it is empty"
    for decoder in (_decoder, _lenient_decoder) if text.strip() else ():
        try:
            return decoder.decode(text), None
        except (ValueError, RecursionError) as error:  # bad JSON, a huge integer; nested too deep
            reason = f"{type(error).__name__}: {error}"
    return None, reason


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _integer(digits: str) -> int | None:
    return int(digits) if len(digits) < _LONGEST_INTEGER else None


def _constant(name: str) -> None:
    """NaN and Infinity, which JSON does not have but some servers send, become null (sglang#20323)."""


# The second reads integers of thousands of digits, which newer Pythons refuse, as null. It is slower.
_decoder = json.JSONDecoder(parse_constant=_constant, parse_float=_finite)
_lenient_decoder = json.JSONDecoder(parse_constant=_constant, parse_float=_finite, parse_int=_integer)
