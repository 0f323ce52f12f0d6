"""Finds out how a file is written: JSON lines, JSON in another layout, a table, or text. Pure: no I/O.

Looks at the first 64 kB, not only at the first line. In doubt the answer is a problem that names the option to pass.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence

from .templates import find_column, list_names

SEPARATORS = ",;\t|"
EXTENSIONS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".tab": "csv",
    ".txt": "text", ".text": "text", ".md": "text",
}  # fmt: skip
_SEPARATOR_LINE = re.compile(r'\ufeff?"?sep=(.)"?\r?\n', re.IGNORECASE)  # written for Excel
_NAME = re.compile(r"\w+(?:[ ._-]\w+){0,2}")
_MAX_ROWS = 50  # that are compared
_decoder = json.JSONDecoder()


def kind_of_json(head: str) -> str:
    """Return ``lines`` for JSON lines, ``json`` for an array or values in any other layout."""
    lines = _full_lines(head)
    first = lines[0].lstrip("\ufeff \t") if lines else ""
    if first.startswith("["):
        return "lines" if len(lines) > 1 and isinstance(_load(first), list) else "json"
    if not first.startswith("{") or _load(first) is not None:
        return "lines"
    return _kind_of_objects(first, lines)


def guess_kind(head: str, name: str, *, is_table: bool) -> str:
    """Return the kind of a file without a known extension: lines, json, csv or text.

    Raises ValueError in doubt. ``is_table``: whether columns were named on the command line.
    """
    lines = _full_lines(head)
    first = lines[0].lstrip("\ufeff \t") if lines else ""
    if first[:1] in ("{", "[") and not (first.startswith("[") and _is_text_in_brackets(head)):
        return kind_of_json(head)
    columns = columns_of(head)
    if separator_line(head) or (columns and find_column("prompt", columns) is not None):
        return "csv"
    if isinstance(_load(first), str):
        return "lines"
    if is_table:
        return "csv"
    refuse_table(columns, name)
    refuse_json(lines, name)
    return "text"


def check_text(head: str, name: str) -> None:
    """Raise ValueError for a text file that looks like JSON or like a table."""
    refuse_table(columns_of(head), name)
    refuse_json(_full_lines(head), name)


def refuse_json(lines: Sequence[str], name: str) -> None:
    """Raise ValueError if a line of a text is JSON."""
    for number, line in enumerate(lines, 1):
        if line[:1] in ("{", "[", '"') and isinstance(_load(line.rstrip().rstrip(",")), (dict, list, str)):
            raise ValueError(
                f"{name} looks like JSON (its line {number}); pass --input-format jsonl to read it as JSON, "
                "or --input-format text to send each line as a prompt"
            )
    if lines and lines[0].strip() in ("{", "["):
        raise ValueError(f"{name} looks like JSON; pass --input-format jsonl, or --input-format text")


def refuse_table(columns: Sequence[str], name: str) -> None:
    """Raise ValueError if a text looks like a table."""
    if columns:
        choice = columns[0] if find_first(columns) is None else find_first(columns)
        raise ValueError(
            f"{name} looks like a table with the columns {list_names(columns)}; pass --prompt-field {choice} to send "
            "that column, --input-format csv if one is named 'prompt', or --input-format text to send each line"
        )


def find_first(columns: Sequence[str]) -> str | None:
    """Return the column that most likely holds the prompts, for an example in a message."""
    usual = ("prompt", "question", "text", "instruction", "content", "input", "query")
    folded = {column.strip().casefold(): column for column in columns}
    return next((folded[name] for name in usual if name in folded), None)


def columns_of(head: str) -> list[str]:
    """Return the columns' names of a text that looks like a table; empty for any other.

    All of its first rows have as many cells as its first, two or more, and the cells of that look like names. A single
    column is a table if its name is "prompt".
    """
    first = head.partition("\n")[0].strip().strip('"')
    if first.casefold() == "prompt":
        return [first]
    if separator_line(head):
        return next(csv.reader(_full_lines(head)[1:2], delimiter=separator_line(head) or ","), [])
    for separator in SEPARATORS:
        rows = _cells(head, separator)
        if len(rows) < 2 or len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
            continue
        is_spaced = any(cell.startswith(" ") for cell in rows[0])
        if all(_NAME.fullmatch(cell.strip()) for cell in rows[0]) and (not is_spaced or _has_prompt(rows[0])):
            return rows[0]
    return []


def separator_line(head: str) -> str | None:
    """Return the separator that a first line ``sep=;`` names; None without such a line."""
    found = _SEPARATOR_LINE.match(head)
    return found[1] if found else None


def find_separator(head: str, default: str) -> str:
    """Return a table's separator: the one that divides its header, if possible into as many cells as its rows have."""

    def fit(separator: str) -> tuple[bool, int, bool]:
        rows = _cells(head, separator)
        count = len(rows[0]) if rows else 0
        return count > 1 and all(len(row) == count for row in rows), count, separator == default

    return max(SEPARATORS, key=fit)


def _has_prompt(cells: Sequence[str]) -> bool:
    return any(cell.strip().casefold() == "prompt" for cell in cells)


def _cells(head: str, separator: str) -> list[list[str]]:
    """Return the first rows; not the last of them, which may be incomplete."""
    is_cut = not head.endswith("\n") and len(head) >= 2**15
    lines = list(io.StringIO(head, newline=""))  # as the csv module wants them, with all kinds of line ends
    rows = []
    for row in csv.reader(lines[:-1] if is_cut else lines, delimiter=separator):
        if row:
            rows.append(row)
        if len(rows) > _MAX_ROWS:
            return rows[:-1]
    return rows


def _full_lines(head: str) -> list[str]:
    """Return the lines that are not blank. The last one may be incomplete."""
    return [line for line in head.split("\n") if line.strip()]


def _load(line: str) -> object:
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value


def _kind_of_objects(first: str, lines: Sequence[str]) -> str:
    """Distinguish a damaged first JSON line from JSON in another layout."""
    count, rest = 0, first
    try:
        while rest:
            _, end = _decoder.raw_decode(rest)
            count, rest = count + 1, rest[end:].lstrip()
    except (ValueError, RecursionError):
        if count:  # an object, and then something else, such as a comma
            return "json" if rest.startswith("{") else "lines"
        return "lines" if any(_load(line) for line in lines[1:] if line.startswith("{")) else "json"
    return "json"


def _is_text_in_brackets(head: str) -> bool:
    """Whether a text begins with a word in brackets, such as ``[INST] Name a river``."""
    return re.match(r"\ufeff?\s*\[[A-Za-z][^\"\[\]{}]*\]", head) is not None
