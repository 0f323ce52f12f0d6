"""Files → requests: the Batch API's JSONL, JSONL of prompts, CSV, plain text. Checked whole before anything is sent.

A file is read twice, once to check it and once to send it, and never held in memory; what can be read only once, a
pipe, is put into a temporary file first.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from array import array
from collections.abc import Iterator
from typing import BinaryIO, Callable, Union

from chatpool._protocol.requests import CHAT_PATH, BatchRequest, check_prompt
from chatpool.errors import ConfigurationError

from .journal import number_of

KINDS = ("jsonl", "csv", "text")
_PATHS = ("/v1/", "/chat/completions", "/completions", "/embeddings", "/responses")  # Azure leaves /v1 out
_KIND_OF = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".txt": "text", ".text": "text"}
_BUFFER = 2**20  # bytes
_MOST_SHOWN = 20  # bad lines
_BOM = b"\xef\xbb\xbf"
# Of OpenAI's API reference for chat completions, but for those that a data set may mean otherwise: "user", "metadata".
_BODY_FIELDS = {
    "model", "temperature", "top_p", "n", "stop", "seed", "max_tokens", "max_completion_tokens", "presence_penalty",
    "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
    "parallel_tool_calls", "reasoning_effort", "service_tier", "stream", "stream_options",
}  # fmt: skip

Found = tuple[int, Union[BatchRequest, str]]  # a line's number from 1, and its request or what is wrong with it


class InputError(ConfigurationError):
    """A file of requests that cannot be read or has bad lines; the message tells which."""


class Input:
    """The requests of one file, any number of times over. ``-`` is stdin."""

    def __init__(self, path: str, kind: str | None = None) -> None:
        self.name = "stdin" if path == "-" else path
        self._file = _open(path)
        try:
            self._read = {"jsonl": _read_jsonl, "csv": _read_csv, "text": _read_text}[kind or self._guess_kind(path)]
        except InputError:
            self.close()
            raise
        self._count = 0

    def check(self, digest_of: Callable[[BatchRequest], str]) -> frozenset[int]:
        """Read it all and raise InputError if there are bad lines, or two with one custom_id.

        Returns which requests without a custom_id are repeated, as numbers of their digests. Takes 8 bytes a line, and
        at its end, for a moment, some 50.
        """
        problems, names, digests = _Problems(self.name), array("Q"), array("Q")
        for line, found in self._found():
            if isinstance(found, str):
                problems.add(line, found)
                continue
            self._count += 1
            if found.custom_id is not None:
                names.append(number_of(found.custom_id))
            else:
                digests.append(number_of(digest_of(found)))
        self._report_duplicates(_repeated(names), problems)
        problems.raise_if_any()
        if not self._count:
            raise InputError(f"{self.name} holds no prompts")
        return _repeated(digests)

    def __len__(self) -> int:
        """How many requests ``check`` found."""
        return self._count

    def __iter__(self) -> Iterator[BatchRequest]:
        """Yield the requests. Raises InputError if they are not so many as ``check`` found, or there is a bad line."""
        count = 0
        for line, found in self._found():
            if isinstance(found, str):
                raise InputError(f"{self.name} has changed: line {line}: {found}")
            count += 1
            if count > self._count:
                raise InputError(f"{self.name} has changed: it held {self._count:,} prompts, and now there are more")
            yield found
        if count < self._count:
            raise InputError(f"{self.name} has changed: it held {self._count:,} prompts, and now {count:,}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def is_file(self, path: str) -> bool:
        """Whether this is what is read."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(path))
        except OSError:
            return False

    def _found(self) -> Iterator[Found]:
        self._file.seek(0)
        return self._read(self._file)

    def _guess_kind(self, path: str) -> str:
        """By the name's ending; else by the first line: JSON or text. A table must be called one."""
        kind = _KIND_OF.get(os.path.splitext(path)[1].lower())
        if kind is not None:
            return kind
        first = next((line for line in self._file if line.strip()), b"").lstrip(_BOM).strip()
        self._file.seek(0)
        try:
            return "jsonl" if isinstance(json.loads(first), (dict, str, list)) else "text"
        except (ValueError, RecursionError):
            self._refuse_table(first)
            return "text"

    def _refuse_table(self, first: bytes) -> None:
        """Raise InputError for a table's first line: as text, its head and all its columns would be sent."""
        if b"prompt" in (cell.strip(b' "') for cell in re.split(b"[,;\t]", first)):
            raise InputError(
                f"{self.name} looks like a table; say --input-format csv, where commas part its columns, or "
                "--input-format text to send each line as a prompt"
            )

    def _report_duplicates(self, duplicates: frozenset[int], problems: _Problems) -> None:
        seen: dict[str, int] = {}
        for line, found in self._found() if duplicates else ():
            if (
                isinstance(found, BatchRequest)
                and found.custom_id is not None
                and number_of(found.custom_id) in duplicates
            ):
                first = seen.setdefault(found.custom_id, line)
                if first != line:
                    problems.add(line, f"the custom_id {found.custom_id!r} is that of line {first}, too")


class _Problems:
    """Bad lines: all are counted, the first of them shown."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0
        self._shown: list[tuple[int, str]] = []

    def add(self, line: int, told: str) -> None:
        self._count += 1
        self._shown = sorted([*self._shown, (line, told)])[:_MOST_SHOWN]

    def raise_if_any(self) -> None:
        if not self._count:
            return
        lines = "".join(f"\n  line {line}: {told}" for line, told in self._shown)
        more = f"\n  and {self._count - len(self._shown):,} more" if self._count > len(self._shown) else ""
        noun = "one bad line" if self._count == 1 else f"{self._count:,} bad lines"
        raise InputError(f"{self._name} has {noun}; nothing was sent:{lines}{more}")


def _open(path: str) -> BinaryIO:
    if path == "-" and sys.stdin is None:  # Python's word for: closed before we began
        raise InputError("cannot read stdin: it is closed")
    try:
        file: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb", buffering=_BUFFER)  # noqa: SIM115 - closed by Input
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and path != "-":
            return file
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - likewise
        shutil.copyfileobj(file, spool, _BUFFER)
    except OSError as error:
        raise InputError(f"cannot read {'stdin' if path == '-' else path}: {error.strerror}") from None
    if path != "-":
        file.close()
    spool.seek(0)
    return spool


def _repeated(numbers: array[int]) -> frozenset[int]:
    ordered = sorted(numbers)
    return frozenset(number for number, after in zip(ordered, ordered[1:]) if number == after)


def _decoded(file: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """Yield the lines that are not blank, with their numbers; None for one that is not UTF-8."""
    for number, raw in enumerate(file, 1):
        line = (raw[len(_BOM) :] if number == 1 and raw.startswith(_BOM) else raw).rstrip(b"\r\n")
        if not line.strip():
            continue
        try:
            yield number, line.decode()
        except UnicodeDecodeError:
            yield number, None


def _read_text(file: BinaryIO) -> Iterator[Found]:
    for number, line in _decoded(file):
        yield number, "not UTF-8" if line is None else BatchRequest(line)


def _read_jsonl(file: BinaryIO) -> Iterator[Found]:
    for number, line in _decoded(file):
        try:
            yield number, "not UTF-8" if line is None else _task(json.loads(line))
        except json.JSONDecodeError as error:
            yield number, f"not JSON: {error.msg} at column {error.colno}"
        except RecursionError:
            yield number, "not JSON: nested too deep"
        except (ValueError, TypeError) as error:
            yield number, str(error).replace("prompt -1: ", "").replace("prompt -1 ", "it ")


def _read_csv(file: BinaryIO) -> Iterator[Found]:
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        rows = csv.DictReader(text, strict=True)
        if list(rows.fieldnames or ()).count("prompt") != 1:
            yield 1, "the first line must name the columns, with commas between, and one of them must be 'prompt'"
            return
        for row in rows:
            yield rows.line_num, _row_request(row)
    except csv.Error as error:
        yield rows.line_num, f"not CSV: {error}"
    except UnicodeDecodeError:
        yield rows.line_num + 1, "not UTF-8, here or soon after"
    finally:
        if not file.closed:
            text.detach()  # or the file would be closed with it


def _row_request(row: dict[str | None, str | None]) -> BatchRequest | str:
    """Return the request of a table's row, or what is wrong with it."""
    if None in row:
        return "more cells than columns; a prompt with commas must stand in double quotes"
    prompt, name = row["prompt"], row.get("custom_id")
    return BatchRequest(prompt, name or None) if prompt and prompt.strip() else "no prompt in this row"


def _task(document: object) -> BatchRequest:
    """Return the request that a line of JSON tells of; raise ValueError or TypeError with what is wrong."""
    if isinstance(document, dict) and "body" in document:
        return _batch_request(document)
    name = _custom_id(document) if isinstance(document, dict) else None
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if key != "custom_id"}
        if "prompt" in document and "messages" not in document:
            _refuse_lost_fields(document)
            document = document["prompt"]
            if not isinstance(document, (str, list)):
                raise TypeError("'prompt' must be a string or a list of messages")
        elif "messages" not in document:
            raise TypeError("an object needs 'body', 'messages' or 'prompt'")
    if not isinstance(document, (str, list, dict)):
        raise TypeError(f"a prompt is a string, a list of messages or an object, not {json.dumps(document)[:40]}")
    check_prompt(document, -1)
    if isinstance(document, dict):
        _refuse_streams(document)
    return BatchRequest(document, name)


def _batch_request(document: dict[str, object]) -> BatchRequest:
    """Read a line of the Batch API's input ("The request input object" in OpenAI's API reference)."""
    body, path = document["body"], document.get("url", CHAT_PATH)
    if not isinstance(body, dict):
        raise TypeError("'body' must be an object")
    if document.get("method", "POST") != "POST":
        raise ValueError("'method' must be POST")
    if not isinstance(path, str) or not path.startswith(_PATHS):
        raise ValueError(f"'url' must be a path such as {CHAT_PATH}")
    task = BatchRequest(body, _custom_id(document), path)
    check_prompt(task, -1)
    _refuse_streams(body)
    return task


def _custom_id(document: dict[str, object]) -> str | None:
    name = document.get("custom_id")
    if name is not None and (not isinstance(name, str) or not name):
        raise TypeError("'custom_id' must be a string, and not empty")
    return name


def _refuse_lost_fields(document: dict[str, object]) -> None:
    """Beside "prompt" there may be anything that a data set has, but nothing that was meant to be sent."""
    lost = sorted(_BODY_FIELDS & document.keys())
    if lost:
        raise ValueError(
            f"{lost[0]!r} would not be sent; with 'messages' in place of 'prompt' it would, or use --param"
        )


def _refuse_streams(body: dict[str, object]) -> None:
    if body.get("stream"):
        raise ValueError("'stream' cannot be used: an answer is read as a whole")
