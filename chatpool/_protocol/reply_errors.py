"""Failed reply → error: its class, status, code and message."""

from __future__ import annotations

import re
from typing import NoReturn
from urllib.parse import urlsplit

from chatpool.errors import (
    APIStatusError,
    AuthenticationError,
    CallError,
    InternalServerError,
    InvalidResponseError,
    QuotaExceededError,
    RateLimitError,
    status_error,
)

from .dialects import (
    BAD_KEY,
    BAD_REQUEST,
    FILTERED,
    IN_FLIGHT,
    OVERLOADED,
    PATH_WORDS,
    RATE,
    SERVER,
    SPENT,
    STATUS_OF,
    TOO_LARGE,
    code_meaning,
    names_spent_limit,
    word,
    words_meaning,
)
from .error_body import BASE_RESP, ErrorBody, read_error
from .judgement import REQUEST_TOO_LARGE
from .reply import Reply
from .shown import shorten

# "Limit 30000", "limit: 30,000", "limit of 30000"; but not "Rate limit reached for gpt-4".
_LIMIT, _REQUESTED = (rf"\b{name}(?: of| is| tokens)?\s*[:=]?\s*(\d[\d,]*)(?!\w)" for name in ("limit", "requested"))
_TOO_LARGE_WORDS = r"\brequest too large\b"


def fail_status(reply: Reply) -> NoReturn:
    """Raise the error of a status that is not 2xx."""
    if 300 <= reply.status < 400:
        target = reply.headers.get("location") or reply.headers.get("x-chatpool-location") or "nowhere"
        origin = re.sub(r"^(\w+://[^/?#]*).*", r"\1", target, flags=re.DOTALL)
        reply.fail(APIStatusError, f"{reply.status}: redirects to {origin[:200]} are not followed; check base_url")
    _fail_as(reply, reply.status, read_error(reply.document))


def fail_embedded(reply: Reply, error: ErrorBody) -> NoReturn:
    """Raise the error in a 2xx: its status follows from its code, else its type, else its words."""
    found = code_meaning(error.names, _host(reply))
    meaning = found[0] if found else words_meaning(error.message)
    status = error.status or (STATUS_OF[meaning] if meaning else None)
    message = error.message or "no reason given"
    if meaning == FILTERED:
        reply.fail(InvalidResponseError, f"blocked by the content filter: {message}", code="content_filter")
    if status is None:
        code = _shown(error.names[0]) if error.names else "error_in_200"
        reply.fail(InvalidResponseError, f"an error inside a {reply.status}: {message}", code=code)
    _fail_as(reply, status, error, meaning)


def fail_without_json(reply: Reply) -> NoReturn:
    """Raise the error of a 2xx whose body is not JSON."""
    kind = reply.headers.get("content-type", "no content type")
    message = f"the reply ({kind}) is not valid JSON: {reply.json_error}"
    if reply.is_page:
        message = f"a web page, not a chat API, at base_url {reply.base_url}: {reply.text()}"
    reply.fail(InvalidResponseError, message, code="no_json")


def _fail_as(reply: Reply, status: int, error: ErrorBody, meaning: str | None = None) -> NoReturn:
    message = error.message or reply.text() or "the reply is empty"
    found = code_meaning(error.names, _host(reply))
    code = next((name for name in error.names if name != str(status)), None)
    if found and found[0] not in (BAD_REQUEST, SERVER):  # a general type says less than the server's own code
        code = found[1]
    meaning = found[0] if found else meaning
    if status in (404, 405) and code is None:
        message = _wrong_path(reply, error, message)
    kind = _class_of(reply, status, meaning, message)
    if kind is RateLimitError and (meaning == TOO_LARGE or _exceeds_limit(message)):
        code = REQUEST_TOO_LARGE
    reply.fail(kind, f"{status}: {message}", status=status, code=code and _shown(code))


def _class_of(reply: Reply, status: int, meaning: str | None, message: str) -> type[CallError]:
    """Return the class for the status, unless a code is more exact: an empty account or a wrong key may be a 400."""
    passes = reply.retry_after is not None or meaning in (IN_FLIGHT, TOO_LARGE)
    if meaning == SPENT or (status == 402 and not passes) or (status == 429 and names_spent_limit(message)):
        return QuotaExceededError
    if status == 402 or (status in (400, 403) and meaning == RATE):
        return RateLimitError
    if status == 400 and meaning == BAD_KEY:
        return AuthenticationError
    if status in (400, 403) and meaning == OVERLOADED:
        return InternalServerError
    return status_error(status)


def _wrong_path(reply: Reply, error: ErrorBody, message: str) -> str:
    """Return the message of a 404 or 405 without a code, probably of a web server without such a path."""
    message = shorten(" ".join(message.split()), 120)
    if isinstance(error.document, dict) and word(error.message) not in PATH_WORDS:
        return f"{message} (base_url {reply.base_url})"
    return f"no chat API at base_url {reply.base_url}: {message}"


def _exceeds_limit(message: str) -> bool:
    """Whether a rate limit's message says that this request alone exceeds the whole limit."""
    if re.search(_TOO_LARGE_WORDS, message, re.IGNORECASE):
        return True
    limit, requested = (re.search(name, message, re.IGNORECASE) for name in (_LIMIT, _REQUESTED))
    if limit is None or requested is None:
        return False
    return int(requested[1].replace(",", "")) > int(limit[1].replace(",", ""))


def _shown(code: str) -> str:
    return code.replace(BASE_RESP, "", 1)


def _host(reply: Reply) -> str:
    return urlsplit(reply.base_url).hostname or ""
