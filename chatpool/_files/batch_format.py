"""A line of the journal: result ↔ JSON in the format of the Batch API's output. Pure: no I/O.

What is ours stands last, under the one key ``chatpool``, so that tools which read Batch output read these lines, too,
and a line can be told at a parse_head from its two ends, without parsing the answer in between.

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

from chatpool._protocol.replies import Completion, recall_completion
from chatpool._protocol.requests import CHAT_PATH, path_of
from chatpool._protocol.results import Attempt, ChatResult
from chatpool.errors import CallError, class_named

BEGINNING = b'{"id": "'
OUR_ID = b"chatpool-"
_HEAD = re.compile(rb'\{"id": "[^"]*", "custom_id": ("(?:[^"\\]|\\.)*"), "response": ')
_OURS_BEGINS = b', "chatpool": {'
_OURS = re.compile(rb', "chatpool": \{"hash": "([0-9a-f]*)", ')
_NO_ERROR = b', "error": null'
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class Key:
    """What an answer is found again by: the request's name, and a hash of what was asked."""

    custom_id: str
    digest: str


def digest_of(path: str, body: Mapping[str, Any]) -> str:
    """Return 32 hex digits for a request: the same for the same path and body, in whatever order its fields stand."""
    try:
        canonical = _canonical.encode(body)
    except TypeError:  # names that cannot be sorted, 1 and "1" for instance, all of which JSON makes strings
        canonical = _canonical.encode(json.loads(json.dumps(body)))
    return hashlib.sha256(f"{path}\n{canonical}".encode("ascii")).hexdigest()[:32]


def line_of(result: ChatResult, key: Key, timeline: Sequence[Attempt] = ()) -> bytes:
    """Return the line for a finished call, with its newline; ``timeline``: its tries, if any failed."""
    error, response = result.error, None
    if result.response is not None:
        status = (error.status_code if error else None) or 200
        response = {"status_code": status, "request_id": result.request_id or "", "body": result.response}
    document = {
        "id": f"{OUR_ID.decode()}{os.urandom(8).hex()}",
        "custom_id": key.custom_id,
        "response": response,
        "error": None if error is None else {"code": error.code or type(error).__name__, "message": str(error)},
        "chatpool": {
            "hash": key.digest,
            "index": result.index,
            "attempts": result.attempts,
            "started": round(time.time() - result.elapsed, 3),
            "elapsed": round(result.elapsed, 6),
            **(
                {"tries": [[round(began, 3), round(ended, 3), name] for began, ended, name in timeline]}
                if timeline
                else {}
            ),
            **({} if error is None else {"error": type(error).__name__, "status_code": error.status_code}),
        },
    }
    # In JSON a lone surrogate's \udc80 is just the escape that it needs.
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def parse_head(line: bytes) -> tuple[Key, bool] | None:
    """Return what a line answers and whether it holds a good answer; None if it is no line of a journal.

    Parses no more than it must: a line that this module wrote shows both at its ends.
    """
    head = _HEAD.match(line)
    ours = _OURS.match(line, line.rfind(_OURS_BEGINS)) if head else None
    if head is not None and ours is not None and line.endswith((b"}}\n", b"}}\r\n", b"}}")):
        name = head[1].decode("utf-8", "replace")
        key = Key(json.loads(name) if "\\" in name else name[1:-1], ours[1].decode())
        return key, line.endswith(_NO_ERROR, 0, ours.start())
    document = parse_line(line)  # other tools have their own way with spaces and order
    return None if document is None else (key_of(document), document["error"] is None)


def key_of(document: Mapping[str, Any]) -> Key:
    """Return what a line answers."""
    return Key(document["custom_id"], str(document["chatpool"].get("hash")))


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object; None if it is no line of a journal."""
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("chatpool"), dict):
        return None
    whole = isinstance(document.get("custom_id"), str) and {"response", "error"} <= document.keys()
    return document if whole else None


def is_json(line: bytes) -> bool:
    """Whether a line is whole, whatever it says."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def result_of(document: Mapping[str, Any], index: int, prompt: Any) -> ChatResult | None:
    """Return the result that a line tells of; None if it cannot be one."""
    ours, told = document["chatpool"], document["error"]
    body = (document["response"] or {}).get("body")
    completion = recall_completion(body, is_chat=path_of(prompt) == CHAT_PATH)
    if told is None and completion is None:
        return None
    return _result(document, ours, completion, index, prompt, None if told is None else _error(told, ours))


def _result(
    document: Mapping[str, Any],
    ours: Mapping[str, Any],
    completion: Completion | None,
    index: int,
    prompt: Any,
    error: CallError | None,
) -> ChatResult:
    return ChatResult(
        index=index,
        prompt=prompt,
        text=completion.text if completion else None,
        value=completion.text if completion and error is None else None,
        reasoning=completion.reasoning if completion else None,
        finish_reason=completion.finish_reason if completion else None,
        usage=completion.usage if completion else None,
        response=completion.response if completion else None,
        request_id=(document["response"] or {}).get("request_id") or None,
        attempts=int(ours.get("attempts", 1)),
        elapsed=float(ours.get("elapsed", 0.0)),
        error=error,
    )


def _error(told: Mapping[str, Any], ours: Mapping[str, Any]) -> CallError:
    kind = class_named(str(ours.get("error")))
    message, code = str(told.get("message")), told.get("code")
    return kind(message, code=code, status_code=ours.get("status_code"), attempts=int(ours.get("attempts", 1)))
