"""The rows of a file: lines of text, JSON in any layout, tables. Each with its line's number, from 1."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from .json_documents import read_documents
from .kinds import find_separator, separator_line
from .sources import InputError, Source, is_bad, not_decoded

_END = "\ufdd0end of file\ufdd0"  # U+FDD0 is in no text; old versions of the csv module refuse NUL
_MAX_CELL = 2**28  # characters
_BATCH = 2**12  # rows of a Parquet file that are read at a time


class Row(NamedTuple):
    """A row: a JSON value, a line of text, or the cells of a table by their keys. ``problem``: why it is not valid."""

    line: int
    value: Any
    problem: str | None = None


class Rows:
    """The rows of one file; can be iterated several times. ``kind``: lines, json, csv, text or parquet.

    ``columns``: of a table, the name of each column by its key; two columns of one name have different keys.
    """

    columns: dict[str, str] | None = None
    noun = "line"

    def __init__(self, source: Source) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Row]:
        raise NotImplementedError

    def _text_lines(self) -> Iterator[Row]:
        problem = not_decoded(self.source.encoding)
        head = self.source.head_text()
        newline = "\r" if "\r" in head and "\n" not in head else "\n"  # as old Macs wrote it, and some exports do
        with self.source.text(newline=newline) as lines:
            for number, line in enumerate(lines, 1):
                yield Row(number, line.rstrip("\r\n"), problem if is_bad(line) else None)


class TextRows(Rows):
    """One prompt a line."""

    def __iter__(self) -> Iterator[Row]:
        return self._text_lines()


class JsonLines(Rows):
    """One JSON value a line; blank lines are skipped."""

    def __iter__(self) -> Iterator[Row]:
        for row in self._text_lines():
            if row.problem is None and not row.value.strip():
                continue
            yield row if row.problem else _parse(row)


class JsonDocuments(Rows):
    """A JSON array, or JSON values one after the other, in any layout."""

    def __iter__(self) -> Iterator[Row]:
        with self.source.text(newline="\n") as text:
            for line, value, problem in read_documents(text):
                yield Row(line, value, problem)


class CsvRows(Rows):
    """A table as text, read as pandas reads it: a quote in the middle of a cell is a character."""

    def __init__(self, source: Source, default: str) -> None:
        super().__init__(source)
        csv.field_size_limit(_MAX_CELL)
        head = source.head_text()
        self._skip = 1 if separator_line(head) else 0
        self.separator = separator_line(head) or find_separator(head, default)
        self.line_end = "\r\n" if "\r\n" in head else "\n"
        self.columns = keys_of(next(self._records(), (1, []))[1])

    def __iter__(self) -> Iterator[Row]:
        keys = list(self.columns or ())
        problem = not_decoded(self.source.encoding)
        records = self._records()
        next(records, None)
        for line, cells in records:
            if cells is None:
                yield Row(line, None, "the quote that begins in this row is never closed")
            elif len(cells) > len(keys) and any(cells[len(keys) :]):
                yield Row(line, None, _more_cells(len(cells), len(keys)))
            else:
                row = dict(zip(keys, chain(cells, [""] * (len(keys) - len(cells)))))
                yield Row(line, row, problem if any(map(is_bad, cells)) else None)

    def _records(self) -> Iterator[tuple[int, Any]]:
        """Yield each record that is not blank, with the number of its first line; None for one that never ends."""
        with self.source.text(newline="") as text:
            for _ in range(self._skip):
                next(text, None)
            reader = csv.reader(chain(text, [_END]), delimiter=self.separator)
            begin = 1
            try:
                for cells in reader:
                    if cells == [_END]:
                        return
                    if cells:
                        is_open = cells[-1].endswith(_END)
                        yield begin + self._skip, None if is_open else cells
                    begin = reader.line_num + 1
            except csv.Error as error:
                raise InputError(f"{self.source.name}, line {begin + self._skip}: not valid CSV: {error}") from None


class ParquetRows(Rows):
    """The rows of a Parquet file; needs pyarrow."""

    noun = "row"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._parquet = import_parquet(source.name)
        with source.binary() as file:
            try:
                self.schema = self._parquet.ParquetFile(file).schema_arrow
            except Exception as error:  # noqa: BLE001 - pyarrow's classes are not imported here
                raise InputError(f"{source.name} is not a valid Parquet file: {error}") from None
        self.columns = keys_of(self.schema.names)

    def __iter__(self) -> Iterator[Row]:
        number = 0
        for batch in self.batches():
            for value in rows_of(batch, list(self.columns or ())):
                number += 1
                yield Row(number, value)

    def batches(self) -> Iterator[Any]:
        """Yield pyarrow's record batches."""
        with self.source.binary() as file:
            yield from self._parquet.ParquetFile(file).iter_batches(_BATCH)


def rows_of(batch: Any, keys: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a record batch as dicts."""
    names = list(keys)
    for cells in zip(*(column.to_pylist() for column in batch.columns)):
        yield dict(zip(names, cells))


def import_parquet(name: str) -> Any:
    """Return pyarrow's module for Parquet; raise InputError if it is not installed."""
    try:
        import pyarrow.parquet  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(f"{name} is a Parquet file, which needs pyarrow; pip install pyarrow") from None
    return pyarrow.parquet


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """Return the columns' names by their keys: the names, numbered where they repeat."""
    keys: dict[str, str] = {}
    for name in names:
        key, count = name, 1
        while key in keys:
            key, count = f"{name}.{count}", count + 1
        keys[key] = name
    return keys


def _parse(row: Row) -> Row:
    try:
        return Row(row.line, json.loads(row.value))
    except json.JSONDecodeError as error:
        return Row(row.line, None, f"not valid JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError):  # ValueError: a number of more digits than Python converts
        return Row(row.line, None, "not valid JSON: nested too deep, or with too long a number")


def _more_cells(cells: int, columns: int) -> str:
    return f"more cells than columns ({cells} and {columns}); put double quotes around a cell that contains separators"
