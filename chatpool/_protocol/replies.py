"""Server's reply → answer, or the error that says why it is none. Pure: no I/O, and the clock only for HTTP dates."""

from __future__ import annotations

import codecs
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

from chatpool.errors import APIStatusError, CallError, InvalidResponseError, QuotaExceededError, status_error

from .results import Usage

codecs.lookup("utf-8-sig")  # loads it now: at the first reply there may be no file descriptor left to open it with

_EXCERPT = 500  # characters of a reply's body kept on an error
_LONGEST_DELAY = 366 * 86400.0  # seconds; a server that asks for more than a year is not serious

# 429s that no waiting cures. Names: OpenAI's error codes (platform.openai.com/docs/guides/error-codes).
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    }
)
# What an error object inside a 200 may carry in place of a numeric status.
_STATUS_OF_CODE = {
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "invalid_api_key": 401,
    "context_length_exceeded": 400,
    "server_error": 500,
    "server_is_overloaded": 503,
    "timeout": 504,
}
_REQUEST_ID_HEADERS = ("x-request-id", "request-id", "apim-request-id", "x-ms-request-id", "cf-ray")


def _unchanged(text: str) -> str:
    return text


@dataclass(frozen=True)
class Reply:
    """A whole HTTP reply. ``headers`` look-ups ignore case; ``redact`` blots the secrets out of a text."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    redact: Callable[[str], str] = field(default=_unchanged, repr=False)
    base_url: str = ""  # fit to be shown

    @property
    def request_id(self) -> str | None:
        """The server's id of the request, under whichever name it goes."""
        found = next((self.headers[name] for name in _REQUEST_ID_HEADERS if self.headers.get(name)), None)
        return None if found is None else self.redact(found.strip())

    @property
    def retry_after(self) -> float | None:
        """Seconds the server asks to wait, or None."""
        return retry_after(self.headers, time.time())

    @property
    def should_retry(self) -> bool | None:
        """The server's word on whether another try is of use (``x-should-retry``, as OpenAI's SDK reads it)."""
        return {"true": True, "false": False}.get(self.headers.get("x-should-retry", "").strip().lower())

    def excerpt(self) -> str:
        """Return the start of the body, fit for an error."""
        return self.redact(self.body[: 4 * _EXCERPT].decode("utf-8", "replace"))[:_EXCERPT]

    def fail(self, kind: type[CallError], message: str, *, status: int | None = None, code: Any = None) -> NoReturn:
        """Raise ``kind`` with everything the reply tells."""
        error = kind(
            _shorten(self.redact(message)),
            status_code=self.status if status is None else status,
            code=None if code is None else self.redact(str(code)),
            request_id=self.request_id,
            retry_after=self.retry_after,
            body=self.excerpt(),
        )
        error.should_retry = self.should_retry
        raise error


@dataclass(frozen=True)
class Completion:
    """A reply that is a chat completion, whether or not its content is an answer."""

    response: dict[str, Any]
    text: str
    finish_reason: str | None
    refusal: str | None
    has_content: bool
    usage: Usage | None


def read_completion(reply: Reply) -> Completion:
    """Take a completion out of a reply; raise APIStatusError or InvalidResponseError if there is none."""
    if reply.status != 200:
        _fail_status(reply)
    return _completion_in(reply, _parse_json(reply))


def read_document(reply: Reply) -> Completion:
    """Take any JSON object for an answer, as other endpoints than chat give it, unless it tells of an error."""
    if reply.status != 200:
        _fail_status(reply)
    return _document_in(reply, _parse_json(reply))


def recall_completion(document: Any, *, is_chat: bool) -> Completion | None:
    """Return the completion in a document that was read before; None if there is none."""
    reply = Reply(200, {}, b"")
    try:
        return _completion_in(reply, document) if is_chat else _document_in(reply, document)
    except CallError:
        return None


def _completion_in(reply: Reply, document: Any) -> Completion:
    _check_object(reply, document)
    choice = _first_choice(document)
    error = document.get("error") or choice.get("error")
    if error or choice.get("finish_reason") == "error":
        _fail_embedded(reply, error)
    message = choice.get("message")
    if not isinstance(message, dict) or not message:
        reply.fail(InvalidResponseError, "the reply has no choices[0].message", code="no_choices")
    return _completion(reply, document, choice, message)


def _document_in(reply: Reply, document: Any) -> Completion:
    _check_object(reply, document)
    if document.get("error"):
        _fail_embedded(reply, document["error"])
    return Completion(
        response=document,
        text=_text_in(document),
        finish_reason=None,
        refusal=None,
        has_content=True,
        usage=_usage(document.get("usage")),
    )


def _check_object(reply: Reply, document: Any) -> None:
    if not isinstance(document, dict):
        kind = type(document).__name__
        reply.fail(InvalidResponseError, f"the reply is a JSON {kind}, not an object", code="no_object")


def _text_in(document: dict[str, Any]) -> str:
    """Return the text of a reply of /v1/completions or /v1/responses; nothing for one that has none."""
    first = _first_choice(document).get("text")
    if isinstance(first, str):
        return first
    items = document.get("output")
    parts = [item.get("content") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return "".join(_text(part) or "" for part in parts if isinstance(part, list))


def check_answer(reply: Reply, completion: Completion) -> None:
    """Raise InvalidResponseError if a completion holds no answer: a refusal, filtered, or blank."""
    if completion.refusal:
        reply.fail(InvalidResponseError, f"the model refused: {completion.refusal}", code="refusal")
    if completion.finish_reason == "content_filter":
        reply.fail(InvalidResponseError, "the answer was withheld by the content filter", code="content_filter")
    if completion.has_content:
        return
    if completion.finish_reason == "length":
        reply.fail(
            InvalidResponseError,
            "the token limit was used up before any text came (a reasoning model may need a larger one)",
            code="length",
        )
    reply.fail(InvalidResponseError, "the answer is blank", code="blank")


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds a server asks to wait: ``retry-after-ms``, else ``retry-after`` as seconds or as a date.

    None where it says nothing, or nothing sensible: zero, negative, NaN, infinite, in the past, over a year ahead.
    RFC 9110, section 10.2.3; the order and ``-ms`` follow OpenAI's SDK.
    """
    for read in (_milliseconds, _seconds, _date):
        seconds = read(headers, now)
        if seconds is not None and 0 < seconds <= _LONGEST_DELAY:  # NaN compares false
            return seconds
    return None


def _milliseconds(headers: Mapping[str, str], now: float) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    return None if milliseconds is None else milliseconds / 1000


def _seconds(headers: Mapping[str, str], now: float) -> float | None:
    return _number(headers.get("retry-after"))


def _date(headers: Mapping[str, str], now: float) -> float | None:
    try:
        return parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - now
    except (TypeError, ValueError, IndexError, OverflowError, OSError):
        return None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _parse_json(reply: Reply) -> Any:  # noqa: RET503 - fail() does not return
    try:
        return json.loads(reply.body.decode("utf-8-sig"))  # -sig: some gateways send a byte order mark
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, a huge integer; nested too deep
        told = f"{type(error).__name__}: {error}" if reply.body.strip() else "it is empty"
    # Outside the except block, so that the error does not drag the other along.
    kind = reply.headers.get("content-type", "no content type")
    reply.fail(InvalidResponseError, f"the reply ({kind}) is no JSON: {told}", code="no_json")


def _first_choice(document: dict[str, Any]) -> dict[str, Any]:
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def _completion(reply: Reply, document: dict[str, Any], choice: dict[str, Any], message: dict[str, Any]) -> Completion:
    content, refusal = message.get("content"), message.get("refusal")
    text = _text(content)
    if text is None:
        reply.fail(InvalidResponseError, f"the message's content is a {type(content).__name__}", code="no_text")
    other = any(message.get(name) for name in ("tool_calls", "function_call", "audio"))
    reason = choice.get("finish_reason")
    return Completion(
        response=document,
        text=text,
        finish_reason=reason if isinstance(reason, str) else None,
        refusal=reply.redact(refusal) if isinstance(refusal, str) else None,
        has_content=other or bool(text.strip()),
        usage=_usage(document.get("usage")),
    )


def _text(content: Any) -> str | None:
    """Return the content's text; some servers send it in parts. None if it is neither text nor absent."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return None


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    other = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}  # as /v1/responses calls them
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    counts = [usage.get(name, usage.get(other.get(name))) for name in names]
    prompt, completion, total = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return Usage(prompt, completion, total or prompt + completion)


def _fail_status(reply: Reply) -> NoReturn:
    try:
        document = json.loads(reply.body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        document = None
    error = document.get("error", document) if isinstance(document, dict) else None
    if 300 <= reply.status < 400:
        target = reply.headers.get("location") or reply.headers.get("x-chatpool-location") or "nowhere"
        origin = re.sub(r"^(\w+://[^/?#]*).*", r"\1", target, flags=re.DOTALL)
        reply.fail(APIStatusError, f"{reply.status}: redirects to {origin[:200]} are not followed; mend base_url")
    _fail_as(reply, reply.status, error, fallback=reply.excerpt().strip())


def _fail_embedded(reply: Reply, error: Any) -> NoReturn:
    """An error object inside a 200 (OpenRouter and other gateways): its code counts as the status."""
    code = error.get("code") if isinstance(error, dict) else None
    number = _number(str(code)) if code is not None else None
    status = int(number) if number is not None and math.isfinite(number) else _STATUS_OF_CODE.get(str(code))
    if status is None or not 400 <= status <= 599:
        told = _message(error) or "no reason given"
        reply.fail(InvalidResponseError, f"an error inside a 200: {told}", code=code or "error_in_200")
    _fail_as(reply, status, error, fallback="an error inside a 200")


def _fail_as(reply: Reply, status: int, error: Any, *, fallback: str) -> NoReturn:
    message = _message(error) or fallback or "the reply is empty"
    fields = error if isinstance(error, dict) else {}
    code, kind = fields.get("code"), fields.get("type")
    if status in (404, 405) and not fields:  # no API speaks here
        message = f"no chat API at base_url {reply.base_url}: {' '.join(message.split())[:80]}"
    known = next((str(name) for name in (code, kind) if str(name) in _QUOTA_CODES), None)
    if status == 402 or (status == 429 and known):
        reply.fail(QuotaExceededError, f"{status}: {message}", status=status, code=known or code or kind)
    named = code if code is not None and str(code) != str(status) else kind
    reply.fail(status_error(status), f"{status}: {message}", status=status, code=named or None)


def _message(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return error if isinstance(error, str) else json.dumps(error) if error else ""


def _shorten(text: str) -> str:
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
