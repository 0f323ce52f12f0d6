"""Reads prompts from files: the Batch API's JSONL, JSONL of prompts, CSV, plain text. Validates a file before sending.

A file is read twice, first to validate it and then to send it, and is never held in memory. A pipe can be read only
once, and is copied to a temporary file.
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

from .journal import hash64

_PATHS = ("/v1/", "/chat/completions", "/completions", "/embeddings", "/responses")  # Azure leaves /v1 out
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".txt": "text", ".text": "text"}
_BUFFER = 2**20  # bytes
_MAX_SHOWN = 20  # bad lines
_BOM = b"\xef\xbb\xbf"
# From OpenAI's API reference for chat completions, without "user" and "metadata", which mean other things in data sets.
_BODY_FIELDS = {
    "model", "temperature", "top_p", "n", "stop", "seed", "max_tokens", "max_completion_tokens", "presence_penalty",
    "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice",
    "parallel_tool_calls", "reasoning_effort", "service_tier", "stream", "stream_options",
}  # fmt: skip

Entry = tuple[int, Union[BatchRequest, str]]  # a line's number from 1, and its request or the problem with it


class InputError(ConfigurationError):
    """A file of prompts cannot be read or has bad lines; the message lists them."""


class Input:
    """The requests of one file; can be iterated several times. ``-`` is stdin."""

    def __init__(self, path: str, kind: str | None = None) -> None:
        self.name = "stdin" if path == "-" else path
        self._file = _open(path)
        try:
            self._read = {"jsonl": _read_jsonl, "csv": _read_csv, "text": _read_text}[kind or self._guess_format(path)]
        except InputError:
            self.close()
            raise
        self._count = 0

    def check(self, digest_of: Callable[[BatchRequest], str]) -> frozenset[int]:
        """Read the whole file; raise InputError for bad lines and for a custom_id that is used twice.

        Returns the ``hash64`` of the digest of each request that is repeated and has no custom_id. Takes 8 bytes for
        each line, and at the end, for a moment, about 50.
        """
        problems, names, digests = _Problems(self.name), array("Q"), array("Q")
        for line, entry in self._entries():
            if isinstance(entry, str):
                problems.add(line, entry)
                continue
            self._count += 1
            if entry.custom_id is not None:
                names.append(hash64(entry.custom_id))
            else:
                digests.append(hash64(digest_of(entry)))
        self._add_duplicates(_repeated(names), problems)
        problems.raise_if_any()
        if not self._count:
            raise InputError(f"{self.name} contains no prompts")
        return _repeated(digests)

    def __len__(self) -> int:
        """The number of requests, after ``check``."""
        return self._count

    def __iter__(self) -> Iterator[BatchRequest]:
        """Yield the requests. Raises InputError if the file has changed since ``check``: a bad line, more or fewer."""
        count = 0
        for line, entry in self._entries():
            if isinstance(entry, str):
                raise InputError(f"{self.name} has changed: line {line}: {entry}")
            count += 1
            if count > self._count:
                raise InputError(f"{self.name} has changed: it had {self._count:,} prompts, now it has more")
            yield entry
        if count < self._count:
            raise InputError(f"{self.name} has changed: it had {self._count:,} prompts, now it has {count:,}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def is_file(self, path: str) -> bool:
        """Whether this input is the file at ``path``."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(path))
        except OSError:
            return False

    def _entries(self) -> Iterator[Entry]:
        self._file.seek(0)
        return self._read(self._file)

    def _guess_format(self, path: str) -> str:
        """Return the format that the file's extension names, else JSONL or text by the first line. Never CSV."""
        known = _FORMATS.get(os.path.splitext(path)[1].lower())
        if known is not None:
            return known
        first = next((line for line in self._file if line.strip()), b"").lstrip(_BOM).strip()
        self._file.seek(0)
        try:
            return "jsonl" if isinstance(json.loads(first), (dict, str, list)) else "text"
        except (ValueError, RecursionError):
            self._refuse_table(first)
            return "text"

    def _refuse_table(self, first: bytes) -> None:
        """Raise InputError for a table's first line: read as text, the header and all columns would be sent."""
        if b"prompt" in (cell.strip(b' "') for cell in re.split(b"[,;\t]", first)):
            raise InputError(
                f"{self.name} looks like a table; pass --input-format csv if commas separate its columns, or "
                "--input-format text to send each line as a prompt"
            )

    def _add_duplicates(self, duplicates: frozenset[int], problems: _Problems) -> None:
        first_lines: dict[str, int] = {}
        for line, entry in self._entries() if duplicates else ():
            name = entry.custom_id if isinstance(entry, BatchRequest) else None
            if name is not None and hash64(name) in duplicates:
                first = first_lines.setdefault(name, line)
                if first != line:
                    problems.add(line, f"duplicate custom_id {name!r}, first used in line {first}")


class _Problems:
    """Counts the bad lines, and keeps the first of them."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0
        self._shown: list[tuple[int, str]] = []

    def add(self, line: int, problem: str) -> None:
        self._count += 1
        self._shown = sorted([*self._shown, (line, problem)])[:_MAX_SHOWN]

    def raise_if_any(self) -> None:
        if not self._count:
            return
        lines = "".join(f"\n  line {line}: {problem}" for line, problem in self._shown)
        more = f"\n  and {self._count - len(self._shown):,} more" if self._count > len(self._shown) else ""
        noun = "one bad line" if self._count == 1 else f"{self._count:,} bad lines"
        raise InputError(f"{self._name} has {noun}; nothing was sent:{lines}{more}")


def _open(path: str) -> BinaryIO:
    if path == "-" and sys.stdin is None:  # closed before Python started
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
    """Yield the lines that are not blank, with their numbers; None for a line that is not UTF-8."""
    for number, raw in enumerate(file, 1):
        line = (raw[len(_BOM) :] if number == 1 and raw.startswith(_BOM) else raw).rstrip(b"\r\n")
        if not line.strip():
            continue
        try:
            yield number, line.decode()
        except UnicodeDecodeError:
            yield number, None


def _read_text(file: BinaryIO) -> Iterator[Entry]:
    for number, line in _decoded(file):
        yield number, "not UTF-8" if line is None else BatchRequest(line)


def _read_jsonl(file: BinaryIO) -> Iterator[Entry]:
    for number, line in _decoded(file):
        try:
            yield number, "not UTF-8" if line is None else _request(json.loads(line))
        except json.JSONDecodeError as error:
            yield number, f"not valid JSON: {error.msg} at column {error.colno}"
        except RecursionError:
            yield number, "not valid JSON: nested too deep"
        except (ValueError, TypeError) as error:
            # check_prompt names a prompt by its index; here the line's number does that.
            yield number, str(error).replace("prompt -1: ", "").replace("prompt -1 ", "it ")


def _read_csv(file: BinaryIO) -> Iterator[Entry]:
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        rows = csv.DictReader(text, strict=True)
        if list(rows.fieldnames or ()).count("prompt") != 1:
            yield 1, "the first line must name the columns, separated by commas, and exactly one of them 'prompt'"
            return
        for row in rows:
            yield rows.line_num, _row_request(row)
    except csv.Error as error:
        yield rows.line_num, f"not valid CSV: {error}"
    except UnicodeDecodeError:
        yield rows.line_num + 1, "not UTF-8, in this line or soon after it"
    finally:
        if not file.closed:
            text.detach()  # or the wrapper would close the file


def _row_request(row: dict[str | None, str | None]) -> BatchRequest | str:
    """Return the request of a table's row, or the problem with it."""
    if None in row:
        return "more cells than columns; put double quotes around a prompt that contains commas"
    prompt, name = row["prompt"], row.get("custom_id")
    return BatchRequest(prompt, name or None) if prompt and prompt.strip() else "no prompt in this row"


def _request(document: object) -> BatchRequest:
    """Return the request of a JSON line; raise ValueError or TypeError if it has none."""
    if not isinstance(document, dict):
        return _prompt_request(document, None)
    if "body" in document:
        return _batch_request(document)
    name = _custom_id(document)
    if "messages" in document:
        return _prompt_request({key: value for key, value in document.items() if key != "custom_id"}, name)
    if "prompt" not in document:
        raise TypeError("an object needs 'body', 'messages' or 'prompt'")
    _refuse_body_fields(document)
    if not isinstance(document["prompt"], (str, list)):
        raise TypeError("'prompt' must be a string or a list of messages")
    return _prompt_request(document["prompt"], name)


def _prompt_request(prompt: object, name: str | None) -> BatchRequest:
    if not isinstance(prompt, (str, list, dict)):
        raise TypeError(f"a prompt is a string, a list of messages or an object, not {json.dumps(prompt)[:40]}")
    check_prompt(prompt, -1)
    if isinstance(prompt, dict):
        _refuse_streaming(prompt)
    return BatchRequest(prompt, name)


def _batch_request(document: dict[str, object]) -> BatchRequest:
    """Read a line of the Batch API's input ("The request input object" in OpenAI's API reference)."""
    body, path = document["body"], document.get("url", CHAT_PATH)
    if not isinstance(body, dict):
        raise TypeError("'body' must be an object")
    if document.get("method", "POST") != "POST":
        raise ValueError("'method' must be POST")
    if not isinstance(path, str) or not path.startswith(_PATHS):
        raise ValueError(f"'url' must be a path such as {CHAT_PATH}")
    request = BatchRequest(body, _custom_id(document), path)
    check_prompt(request, -1)
    _refuse_streaming(body)
    return request


def _custom_id(document: dict[str, object]) -> str | None:
    name = document.get("custom_id")
    if name is not None and (not isinstance(name, str) or not name):
        raise TypeError("'custom_id' must be a non-empty string")
    return name


def _refuse_body_fields(document: dict[str, object]) -> None:
    """Beside "prompt", ignore other columns of a data set, but no field that was meant to be sent."""
    ignored = sorted(_BODY_FIELDS & document.keys())
    if ignored:
        raise ValueError(
            f"{ignored[0]!r} would not be sent; use 'messages' in place of 'prompt', or pass --param {ignored[0]}=…"
        )


def _refuse_streaming(body: dict[str, object]) -> None:
    if body.get("stream"):
        raise ValueError("'stream' is not supported; answers are read whole")
