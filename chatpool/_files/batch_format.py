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
from chatpool._protocol.requests import CHAT_PATH, path_of
from chatpool._protocol.results import Attempt, ChatResult
from chatpool.errors import CallError, class_named

LINE_START = b'{"id": "'
ID_PREFIX = b"chatpool-"
_HEAD = re.compile(rb'\{"id": "[^"]*", "custom_id": ("(?:[^"\\]|\\.)*"), "response": ')
_TAIL_START = b', "chatpool": {'
_TAIL = re.compile(rb', "chatpool": \{"hash": "([0-9a-f]*)", ')
_NO_ERROR = b', "error": null'
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
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
        canonical = _canonical.encode(json.loads(json.dumps(body)))
    return hashlib.sha256(f"{path}\n{canonical}".encode("ascii")).hexdigest()[:32]


def line_of(result: ChatResult, key: Key, timeline: Sequence[Attempt] = ()) -> bytes:
    """Return the line for a result, with its newline. ``timeline``: the call's attempts, if any of them failed."""
    error, response = result.error, None
    if result.response is not None:
        status = (error.status_code if error else None) or 200
        response = {"status_code": status, "request_id": result.request_id or "", "body": result.response}
    document = {
        "id": f"{ID_PREFIX.decode()}{os.urandom(8).hex()}",
        "custom_id": key.custom_id,
        "response": response,
        "error": None if error is None else {"code": error.code or type(error).__name__, "message": str(error)},
        "chatpool": _own_fields(result, key, timeline),
    }
    # backslashreplace turns a lone surrogate into \udc80, which is also its escape in JSON.
    return _to_json(document).encode("utf-8", "backslashreplace") + b"\n"


def _own_fields(result: ChatResult, key: Key, timeline: Sequence[Attempt]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "hash": key.digest,
        "index": result.index,
        "attempts": result.attempts,
        "started": round(time.time() - result.elapsed, 3),
        "elapsed": round(result.elapsed, 6),
    }
    if timeline:
        fields["tries"] = [[round(began, 3), round(ended, 3), error] for began, ended, error in timeline]
    if result.error is not None:
        fields.update(error=type(result.error).__name__, status_code=result.error.status_code)
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
        return key, line.endswith(_NO_ERROR, 0, tail.start())
    document = parse_line(line)  # another tool may have rewritten it, with other spaces and another order
    return None if document is None else (key_of(document), document["error"] is None)


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


def load(line: bytes) -> Any:
    """Return the value of a JSON line; None if it is not valid JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def result_of(document: Mapping[str, Any], index: int, prompt: Any) -> ChatResult | None:
    """Return the result that a parsed line holds; None if it holds neither an answer nor an error."""
    own, response = document["chatpool"], document["response"] or {}
    completion = recall_completion(response.get("body"), is_chat=path_of(prompt) == CHAT_PATH)
    error = None if document["error"] is None else _error_of(document["error"], own)
    if error is None and completion is None:
        return None
    return ChatResult(
        index=index,
        prompt=prompt,
        text=completion.text if completion else None,
        value=completion.text if completion and error is None else None,
        reasoning=completion.reasoning if completion else None,
        finish_reason=completion.finish_reason if completion else None,
        usage=completion.usage if completion else None,
        response=completion.response if completion else None,
        request_id=response.get("request_id") or None,
        attempts=int(own.get("attempts", 1)),
        elapsed=float(own.get("elapsed", 0.0)),
        error=error,
    )


def _error_of(error: Mapping[str, Any], own: Mapping[str, Any]) -> CallError:
    return class_named(str(own.get("error")))(
        str(error.get("message")),
        code=error.get("code"),
        status_code=own.get("status_code"),
        attempts=int(own.get("attempts", 1)),
    )
