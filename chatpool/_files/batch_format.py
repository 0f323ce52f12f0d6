"""A line of the journal: a result as JSON in the format of the Batch API's output, and back. Pure: no I/O.

chatpool's own fields are under the key ``chatpool``, which comes last. Tools that read Batch output read these lines
too, and ``parse_head`` finds out from a line's two ends what it holds, without parsing the answer in between.

Source of the format: "The request output object" in OpenAI's API reference for Batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatpool._protocol.replies import recall_completion
from chatpool._protocol.requests import CHAT_PATH, path_of, plain_number
from chatpool._protocol.results import Attempt, ChatResult, Usage
from chatpool.errors import CallError, class_named

from .runs import Spending, spending_of

LINE_START = b'{"id": "'
ID_PREFIX = b"chatpool-"
_HEAD = re.compile(rb'\{"id": "[^"]*", "custom_id": ("(?:[^"\\]|\\.)*"), "response": ')
_TAIL_START = b', "chatpool": {'
_TAIL = re.compile(rb', "chatpool": \{"hash": "([0-9a-f]*)", ("error": ")?')
_NO_ERROR = b', "error": null'
# Line ends to Python's splitlines and to other tools, but not to JSON.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_SUCCESS = range(200, 300)
_COPIED = ("hash", "error", "message", "code", "status_code", "started")  # our fields that a copy of a line has, too
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=plain_number)
_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Key:
    """Identifies a request in a journal: its name, and the hash of its path and body."""

    custom_id: str
    digest: str


def digest_of(path: str, body: Mapping[str, Any]) -> str:
    """Return a request's hash, 32 hex digits; the order of the body's fields does not matter."""
    try:
        canonical = _canonical.encode(body)
    except TypeError:  # keys that cannot be sorted, such as 1 and "b"; JSON turns all of them into strings
        canonical = _canonical.encode(json.loads(json.dumps(body, default=plain_number)))
    return hashlib.sha256(f"{path}\n{canonical}".encode("ascii")).hexdigest()[:32]


def hash64(name: str) -> int:
    """Return a hash of 64 bits."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def line_of(
    result: ChatResult,
    key: Key,
    timeline: Sequence[Attempt] = (),
    error_body: str | None = None,
    run: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the line for a result, with its newline.

    ``timeline``: the call's attempts, if any of them failed. ``error_body``: of the reply that ended it, if it failed.
    ``run``: further fields, about the run.
    As the Batch API has it, an error status is a ``response``, and ``error`` is for a call without a reply, or with a
    reply that is not an answer.
    """
    error, response = result.error, _response_of(result, error_body)
    is_shown = error is not None and (response is None or response["status_code"] in _SUCCESS)
    document = {
        "id": _new_id(),
        "custom_id": key.custom_id,
        "response": response,
        "error": {"code": error.code or type(error).__name__, "message": str(error)} if error and is_shown else None,
        "chatpool": {**_own_fields(result, key, timeline), **(run or {})},
    }
    return _encode(document)


def copy_of(document: Mapping[str, Any], key: Key) -> bytes:
    """Return the line for an equal request that was not sent: the same reply or error, at no cost and in no time."""
    own = {name: value for name, value in document["chatpool"].items() if name in _COPIED}
    own.update(attempts=0, elapsed=0.0, copy=True)
    return _encode({**document, "id": _new_id(), "custom_id": key.custom_id, "chatpool": own})


def _new_id() -> str:
    return f"{ID_PREFIX.decode()}{os.urandom(8).hex()}"


def _encode(document: Mapping[str, Any]) -> bytes:
    text = _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", _to_json(document))
    # backslashreplace turns a lone surrogate into \udc80, which is also its escape in JSON.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _response_of(result: ChatResult, error_body: str | None) -> dict[str, Any] | None:
    """Return the server's reply as the Batch API shows it; None if there was none."""
    error, body = result.error, result.response
    status = error.status_code if error else 200
    if body is None and error is not None:
        body = _error_document(error, error_body)
    if body is None:
        return None
    request_id = result.request_id or (error.request_id if error else None) or ""
    return {"status_code": status or 200, "request_id": request_id, "body": body}


def _error_document(error: CallError, body: str | None) -> dict[str, Any] | None:
    """Return the body of a failed reply as an object: its JSON, or else its text in OpenAI's format for errors.

    None for a call that failed without a reply.
    """
    if body is None and error.status_code is None:
        return None
    document = load(body or "")
    if isinstance(document, list) and len(document) == 1:  # Gemini
        document = document[0]
    if isinstance(document, dict):
        return document
    return {"error": {"message": body or str(error), "type": type(error).__name__, "param": None, "code": error.code}}


def _own_fields(result: ChatResult, key: Key, timeline: Sequence[Attempt]) -> dict[str, Any]:
    error = result.error
    fields: dict[str, Any] = {"hash": key.digest}
    if error is not None:  # right after the hash, where parse_head looks for it
        fields.update(error=type(error).__name__, message=str(error), code=error.code, status_code=error.status_code)
    fields.update(started=round(time.time() - result.elapsed, 3), elapsed=round(result.elapsed, 6))
    if result.first_token is not None:
        fields["first_token"] = round(result.first_token, 6)
    fields.update(Spending.of(result).fields())
    if timeline:
        fields["tries"] = [
            {"began": round(began, 3), "ended": round(ended, 3), "error": name} for began, ended, name in timeline
        ]
    return fields


def _to_json(document: Mapping[str, Any]) -> str:
    """Return strict JSON. NaN and Infinity, which some servers send for a ``logprob``, become null."""
    try:
        return _encoder.encode(document)
    except ValueError:
        return _encoder.encode(json.loads(json.dumps(document), parse_constant=lambda name: None))


def parse_head(line: bytes) -> tuple[Key, bool] | None:
    """Return a line's key and whether it holds a good answer; None if it is not a line of a journal.

    Reads only the two ends of a line that this module wrote.
    """
    head = _HEAD.match(line)
    tail = _TAIL.match(line, line.rfind(_TAIL_START)) if head else None
    if head is not None and tail is not None and line.endswith((b"}}\n", b"}}\r\n", b"}}")):
        name = head[1].decode("utf-8", "replace")
        key = Key(json.loads(name) if "\\" in name else name[1:-1], tail[1].decode())
        return key, tail[2] is None and line.endswith(_NO_ERROR, 0, tail.start())
    document = parse_line(line)  # another tool may have rewritten it, with other spaces and another order
    return None if document is None else (key_of(document), is_answer(document))


def is_answer(document: Mapping[str, Any]) -> bool:
    """Whether a parsed line holds a good answer."""
    return document["error"] is None and document["chatpool"].get("error") is None


def key_of(document: Mapping[str, Any]) -> Key:
    """Return a parsed line's key."""
    return Key(document["custom_id"], str(document["chatpool"].get("hash")))


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object; None if it is not a line of a journal."""
    document = load(line)
    if not isinstance(document, dict) or not isinstance(document.get("chatpool"), dict):
        return None
    is_complete = isinstance(document.get("custom_id"), str) and {"response", "error"} <= document.keys()
    return document if is_complete else None


def load(line: bytes | str) -> Any:
    """Return the value of a JSON line; None if it is not valid JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def result_of(document: Mapping[str, Any], index: int, prompt: Any) -> ChatResult | None:
    """Return the result that a parsed line holds; None if it holds neither an answer nor an error."""
    own, response = document["chatpool"], document["response"] or {}
    completion = recall_completion(response.get("body"), is_chat=path_of(prompt) == CHAT_PATH)
    error = None if is_answer(document) else _error_of(document, request_id=response.get("request_id") or None)
    spent = spending_of(document)
    if error is None and completion is None:
        return None
    return ChatResult(
        index=index,
        prompt=prompt,
        text=completion.text if completion else None,
        value=completion.text if completion and error is None else None,
        reasoning=completion.reasoning if completion else None,
        finish_reason=completion.finish_reason if completion else None,
        usage=spent.usage if spent.usage != Usage() else None,
        response=completion.response if completion else None,
        request_id=response.get("request_id") or None,
        attempts=spent.attempts,
        elapsed=float(own.get("elapsed", 0.0)),
        error=error,
        cost=spent.cost,
        unanswered=spent.unanswered,
        first_token=_seconds(own.get("first_token")),
    )


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _error_of(document: Mapping[str, Any], *, request_id: str | None) -> CallError:
    own, error = document["chatpool"], document["error"] or {}
    return class_named(str(own.get("error")))(
        str(own.get("message", error.get("message"))),
        code=own.get("code", error.get("code")),
        status_code=own.get("status_code"),
        request_id=request_id,
        attempts=spending_of(document).attempts,
    )
