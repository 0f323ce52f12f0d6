"""Writes the table that comes out: the input's rows and columns, with the answers in columns of their own.

The file is written beside its name, and then takes its place in one move, so that no reader ever sees half of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Callable, NamedTuple

from chatpool._protocol.prices import cost_of
from chatpool._protocol.results import ChatResult
from chatpool._protocol.schemas import ResponseFormat
from chatpool.errors import ConfigurationError

from .answer_columns import Column, answer_columns
from .compaction import replace_file
from .inputs import Input, Item
from .rows import CsvRows, ParquetRows, Row, import_parquet, rows_of

TABLES = (".csv", ".tsv", ".parquet")
_JOURNAL_SUFFIX = ".chatpool.jsonl"
_UNSUPPORTED = (".xlsx", ".xls", ".ods", ".gz", ".zst", ".bz2", ".xz", ".zip", ".feather", ".arrow")
_CHUNK = 2**12  # rows that are converted for Parquet at a time
_TEXT_COLUMN = "prompt"  # of prompts that came without a column


class Outcome(NamedTuple):
    """A row's added cells. ``error``: the error of a failed call. ``cost``: in dollars, None if unknown."""

    answer: Any = None
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    finish_reason: str | None = None


OutcomeOf = Callable[[Item], Outcome]


def is_table(output: str | None) -> bool:
    """Whether an output is a table, by its extension. Raises ConfigurationError for one that cannot be written."""
    extension = os.path.splitext(output or "")[1].lower()
    if extension in _UNSUPPORTED:
        raise ConfigurationError(f"-o cannot write {extension} files; use .csv, .tsv, .parquet or .jsonl")
    return extension in TABLES


def journal_of(output: str | None) -> str | None:
    """Return the journal of an output: the output itself, or a file beside a table."""
    return output + _JOURNAL_SUFFIX if output is not None and is_table(output) else output


def check_table(output: str) -> None:
    """Raise ConfigurationError, before anything is sent, if the table cannot be written or is somebody else's file."""
    if os.path.splitext(output)[1].lower() == ".parquet":
        import_parquet(output)
    folder = os.path.dirname(os.path.realpath(output))
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"the table {output} cannot be written: the folder {folder} is read-only")
    is_ours = os.path.exists(output + _JOURNAL_SUFFIX)
    if os.path.exists(output) and not is_ours and os.path.getsize(output):
        raise ConfigurationError(
            f"{output} exists, and no run of chatpool wrote it; choose another file for the output, or remove it"
        )


def outcome_of(result: ChatResult) -> Outcome:
    """Return the cells of a result. An answer without a value, such as an embedding, is the reply as JSON."""
    usage = result.usage
    answer = (result.value if result.text else json.dumps(result.response)) if result.ok else None
    error = None if result.error is None else f"{type(result.error).__name__}: {result.error}"
    prompt_tokens, completion_tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
    cost = cost_of(result.response, usage, None) if result.cost is None else result.cost
    return Outcome(answer, error, prompt_tokens, completion_tokens, cost, result.finish_reason)


def write_table(
    output: str,
    prompts: Input,
    outcome_of_item: OutcomeOf,
    response_format: ResponseFormat | None = None,
    *,
    has_usage: bool = False,
) -> list[str]:
    """Write the table; return the names of the added columns if they are others than usual, because the input has such.

    ``outcome_of_item`` is called for each row, in order.
    """
    columns, answers = _columns(prompts), answer_columns(response_format)
    others = Outcome._fields[1:] if has_usage else Outcome._fields[1:2]
    wanted = [*(column.name for column in answers), *others]
    names = _free_names(wanted, set(columns.values()))
    added = _Added(answers, others, names)
    output, extension = os.path.realpath(output), os.path.splitext(output)[1].lower()
    if extension == ".parquet":
        replace_file(output, _parquet_pieces(prompts, columns, added, outcome_of_item))
    else:
        replace_file(output, _text_pieces(prompts, columns, added, outcome_of_item, extension))
    return names if names != wanted else []


class _Added(NamedTuple):
    """The added columns: those of the answer, the fields of an ``Outcome`` that follow, and the names of all."""

    answers: list[Column]
    others: Sequence[str]
    names: list[str]

    def cells(self, outcome: Outcome) -> list[Any]:
        """Return the cells of a row."""
        return [*(column.cell(outcome.answer) for column in self.answers), *outcome[1 : 1 + len(self.others)]]

    def arrow_types(self, pa: Any) -> list[Any]:
        """Return the columns' types in Parquet."""
        kinds = {"prompt_tokens": pa.int64(), "completion_tokens": pa.int64(), "cost": pa.float64()}
        answers = [column.arrow_type(pa) for column in self.answers]
        return [*answers, *(kinds.get(name, pa.string()) for name in self.others)]


def _columns(prompts: Input) -> dict[str, str]:
    """Return the names of all columns by their keys, in the order in which they first appear."""
    columns: dict[str, str] = {}
    for rows in prompts.files:
        columns.update({key: name for key, name in (rows.columns or {}).items() if key not in columns})
    if any(rows.columns is None for rows in prompts.files):
        for item in prompts.items():
            keys = item.value if isinstance(item.value, dict) else (_TEXT_COLUMN,)
            columns.update({key: key for key in keys if key not in columns})
    return columns


def _free_names(wanted: Sequence[str], taken: set[str]) -> list[str]:
    """Return a name for each wanted one: that itself, or with a number if it is taken."""
    names: list[str] = []
    for name in wanted:
        free, number = name, 2
        while free in taken or free in names:
            free, number = f"{name}_{number}", number + 1
        names.append(free)
    return names


def _rows(prompts: Input, columns: dict[str, str], outcome_of_item: OutcomeOf) -> Iterator[tuple[list[Any], Outcome]]:
    for item in prompts.items():
        value = item.value if isinstance(item.value, dict) else {_TEXT_COLUMN: item.value}
        yield [value.get(key) for key in columns], outcome_of_item(item)


def _text_pieces(
    prompts: Input, columns: dict[str, str], added: _Added, outcome_of_item: OutcomeOf, extension: str
) -> Iterator[bytes]:
    """Yield the lines of a CSV or TSV file: with the input's separator and line ends, if it was one, in UTF-8.

    Excel takes CSV for UTF-8 only with a mark; an input with a mark gives an output with one.
    """
    first = prompts.files[0]
    like = first if isinstance(first, CsvRows) else None
    separator = "\t" if extension == ".tsv" else ","
    if like is not None and extension == ".csv" and like.separator != "\t":
        separator = like.separator
    line = _LineWriter(separator, like.line_end if like else "\n")
    if like is not None and like.source.encoding.startswith("utf-") and like.source.encoding != "utf-8":
        yield b"\xef\xbb\xbf"
    yield line.of([*columns.values(), *added.names])
    for cells, outcome in _rows(prompts, columns, outcome_of_item):
        yield line.of([*map(_cell, cells), *map(_cell, added.cells(outcome))])


class _LineWriter:
    """Writes a line of CSV, quoted as RFC 4180 has it; also around a lone carriage return, unlike old Pythons."""

    def __init__(self, separator: str, line_end: str) -> None:
        self._separator, self._line_end = separator, line_end
        self._is_special = re.compile(f'[{re.escape(separator)}"\r\n\0]|^\\s|\\s$').search

    def of(self, cells: Sequence[str]) -> bytes:
        quoted = ['"' + cell.replace('"', '""') + '"' if self._is_special(cell) else cell for cell in cells]
        return (self._separator.join(quoted) + self._line_end).encode("utf-8", "backslashreplace")


def _cell(value: Any) -> str:
    """Return a cell as text: JSON for what is neither text nor a number."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _parquet_pieces(
    prompts: Input, columns: dict[str, str], added: _Added, outcome_of_item: OutcomeOf
) -> Iterator[bytes]:
    """Yield the bytes of a Parquet file, piece by piece."""
    parquet = import_parquet("the output")
    sink = _Pieces()
    writer = None
    for batch in _batches(prompts, columns, outcome_of_item, added):
        if writer is None:
            writer = parquet.ParquetWriter(sink, batch.schema)
        writer.write_batch(batch)
        yield from sink.take()
    if writer is not None:
        writer.close()
    yield from sink.take()


def _batches(prompts: Input, columns: dict[str, str], outcome_of_item: OutcomeOf, added: _Added) -> Iterator[Any]:
    """Yield record batches: the input's own if all files are Parquet files of one schema, or else columns of text."""
    import pyarrow as pa  # noqa: PLC0415 - an extra

    files = [rows for rows in prompts.files if isinstance(rows, ParquetRows)]
    if len(files) == len(prompts.files) and all(rows.schema.equals(files[0].schema) for rows in files):
        for number, rows in enumerate(files):
            for batch in rows.batches():
                items = prompts.items_of(number, (Row(0, value) for value in rows_of(batch, list(rows.columns or ()))))
                yield _with_outcomes(pa, batch.columns, batch.schema, list(map(outcome_of_item, items)), added)
        return
    schema = pa.schema([pa.field(name, pa.string()) for name in columns.values()])
    pairs = _rows(prompts, columns, outcome_of_item)
    while chunk := list(islice(pairs, _CHUNK)):
        arrays = [
            pa.array([_utf8(_cell(value)) if value is not None else None for value in column], pa.string())
            for column in zip(*(cells for cells, _ in chunk))
        ]
        yield _with_outcomes(pa, arrays, schema, [outcome for _, outcome in chunk], added)


def _with_outcomes(pa: Any, arrays: list[Any], schema: Any, outcomes: list[Outcome], added: _Added) -> Any:
    """Return a record batch with the added columns."""
    arrays = list(arrays)
    columns = list(zip(*map(added.cells, outcomes))) or [()] * len(added.names)
    for name, kind, values in zip(added.names, added.arrow_types(pa), columns):
        arrays.append(_array(pa, kind, values))
        schema = schema.append(pa.field(name, kind))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(pa: Any, kind: Any, values: Sequence[Any]) -> Any:
    """Return an array of this type. A value that does not fit, such as a huge integer, is missing."""
    if kind == pa.string():
        values = [None if value is None else _utf8(_cell(value)) for value in values]
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, UnicodeError):
        if len(values) == 1:
            return pa.nulls(1, kind)
        return pa.concat_arrays([_array(pa, kind, [value]) for value in values])


def _utf8(text: str) -> str:
    """Return a text without lone surrogates, which UTF-8 does not have."""
    return text.encode("utf-8", "backslashreplace").decode()


class _Pieces:
    """A file for pyarrow to write to, from which the bytes are taken."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        self._size += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        """Do nothing; the bytes are taken after each batch."""

    def close(self) -> None:
        """Do nothing; pyarrow closes what it writes to."""

    def take(self) -> list[bytes]:
        """Return the bytes since the last time."""
        pieces, self._pieces = self._pieces, []
        return pieces
