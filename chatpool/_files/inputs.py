"""Reads prompts from files of all kinds. Validates them all before anything is sent.

A file is read twice, first to validate it and then to send it, and is never held in memory.
"""

from __future__ import annotations

import glob
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable, NamedTuple

from chatpool._protocol.requests import BatchRequest
from chatpool._protocol.summary import plural

from .batch_format import hash64
from .choosing import Choice, Chooser, Entry
from .kinds import EXTENSIONS, check_text, guess_kind, kind_of_json
from .rows import CsvRows, JsonDocuments, JsonLines, ParquetRows, Row, Rows, TextRows
from .sources import InputError as InputError
from .sources import Source
from .templates import list_names

FORMATS = ("jsonl", "csv", "text", "parquet")
_MAX_SHOWN = 20  # bad lines
_MAX_NAMED = 5  # rows without a prompt


class Item(NamedTuple):
    """A row of the input. ``file``: the number of its file. ``entry``: its request, or see ``choosing``."""

    file: int
    line: int
    value: Any
    entry: Entry


class Input:
    """The requests of one or more files; can be iterated several times. ``-`` is stdin; ``*`` and ``?`` match files.

    ``uses_ids``: whether a unique ``id`` of each row names its request.
    """

    def __init__(
        self,
        paths: Sequence[str],
        kind: str | None = None,
        *,
        choice: Choice | None = None,
        encoding: str | None = None,
        uses_ids: bool = True,
    ) -> None:
        self.files: list[Rows] = []
        self._sources: list[Source] = []
        self._choice, self._uses_ids = choice or Choice(), uses_ids
        self._chooser = Chooser(self._choice)
        try:
            for path in _expand(paths):
                self._sources.append(Source(path, encoding))
                self.files.append(self._rows(self._sources[-1], kind))
        except BaseException:
            self.close()
            raise
        self.name = self._sources[0].name if len(self.files) == 1 else plural(len(self.files), "file")
        self._count = self.rows = self.copies = 0
        self.empty = array("Q")  # the numbers of the rows without a prompt, from 0
        self._empty_places: list[str] = []

    def check(self, digest_of: Callable[[BatchRequest], str], *, is_deduped: bool = False) -> frozenset[int]:
        """Read everything; raise InputError for bad lines and for a name that is used twice.

        Returns the ``hash64`` of the digest of each request that is repeated and has no name; ``is_deduped``: also of
        those that have one. Takes 8 bytes for each row, or 16 if rows have an ``id``, and at the end, for a moment,
        about 50.
        """
        problems, names, ids, digests = _Problems(self.name), array("Q"), array("Q"), array("Q")
        for item in self.items():
            entry = item.entry
            self.rows += 1
            if isinstance(entry, str):
                problems.add(self._place(item), entry)
            elif entry is None:
                self._add_empty(item)
            else:
                self._count += 1
                if entry.custom_id is not None:
                    names.append(hash64(entry.custom_id))
                elif (name := self._chooser.auto_id(item.value)) is not None:
                    ids.append(hash64(name))
                if entry.custom_id is None or is_deduped:
                    digests.append(hash64(digest_of(entry)))
        self._chooser.names_by_id = self._uses_ids and len(ids) == self._count and not _repeated(ids)
        self._add_duplicates(_repeated(names), problems)
        problems.raise_if_any()
        if not self._count:
            raise InputError(f"{self.name} contains no prompts" + (f"; {self._empty_note()}" if self.empty else ""))
        repeats = _repeated(digests)
        self.copies = sum(digest in repeats for digest in digests) - len(repeats)
        return repeats

    def __len__(self) -> int:
        """The number of requests, after ``check``."""
        return self._count

    def __iter__(self) -> Iterator[BatchRequest]:
        """Yield the requests. Raises InputError if the file has changed since ``check``: a bad line, more or fewer."""
        count = 0
        for item in self.items():
            if isinstance(item.entry, str):
                raise InputError(f"{self.name} has changed: {self._place(item)}: {item.entry}")
            if item.entry is None:
                continue
            count += 1
            if count > self._count:
                raise InputError(f"{self.name} has changed: it had {self._count:,} prompts, now it has more")
            yield item.entry
        if count < self._count:
            raise InputError(f"{self.name} has changed: it had {self._count:,} prompts, now it has {count:,}")

    def items(self) -> Iterator[Item]:
        """Yield every row with its request, or the problem with it."""
        for number, rows in enumerate(self.files):
            yield from self.items_of(number, rows)

    def items_of(self, number: int, rows: Iterable[Row]) -> Iterator[Item]:
        """Yield these rows of a file with their requests. Iterate a file once at a time: it has one position."""
        problem = self._chooser.start(self.files[number].columns)
        if problem is not None:
            yield Item(number, 1, None, problem)
            return
        for row in rows:
            yield Item(number, row.line, row.value, row.problem or self._chooser.entry(row.value))

    def notes(self) -> list[str]:
        """Return, after ``check``, what is not sent: columns, and rows without a prompt."""
        notes = []
        if self._chooser.unsent:
            noun = "columns" if any(rows.columns for rows in self.files) else "fields"
            notes.append(f"{noun} not sent: {list_names(list(self._chooser.unsent))}")
        if self.empty:
            notes.append(self._empty_note())
        return notes

    def close(self) -> None:
        """Close the files."""
        for source in self._sources:
            source.close()

    def is_file(self, path: str) -> bool:
        """Whether the file at ``path`` is one of the input's."""
        return any(source.is_file(path) for source in self._sources)

    def _rows(self, source: Source, kind: str | None) -> Rows:
        """Return the rows of a file, by the given kind, its first bytes, its extension or its content."""
        if source.is_parquet or kind == "parquet":
            return ParquetRows(source)
        try:
            return self._text_rows(source, kind)
        except ValueError as error:
            raise InputError(str(error)) from None

    def _text_rows(self, source: Source, kind: str | None) -> Rows:
        head = source.head_text()
        found = {"jsonl": "json"}.get(kind or "", kind) or EXTENSIONS.get(source.extension)
        if found == "json":
            found = kind_of_json(head)
        elif found is None or (found == "text" and kind is None and self._choice.names_columns):
            found = guess_kind(head, source.name, is_table=self._choice.names_columns)
        elif found == "text" and kind is None:
            check_text(head, source.name)
        if found == "csv":
            return CsvRows(source, "\t" if source.extension in (".tsv", ".tab") else ",")
        return {"lines": JsonLines, "json": JsonDocuments, "text": TextRows}[found](source)

    def _place(self, item: Item) -> str:
        rows = self.files[item.file]
        place = f"{rows.noun} {item.line}"
        return place if len(self.files) == 1 else f"{rows.source.name}, {place}"

    def _add_empty(self, item: Item) -> None:
        self.empty.append(self.rows - 1)
        if len(self._empty_places) < _MAX_NAMED:
            self._empty_places.append(self._place(item))

    def _empty_note(self) -> str:
        more = ", …" if len(self.empty) > len(self._empty_places) else ""
        verb, them = ("has", "it") if len(self.empty) == 1 else ("have", "them")
        place = ", ".join(self._empty_places)
        return f"{plural(len(self.empty), 'row')} {verb} no prompt, and nothing is sent for {them}: {place}{more}"

    def _add_duplicates(self, duplicates: frozenset[int], problems: _Problems) -> None:
        first_places: dict[str, str] = {}
        for item in self.items() if duplicates else ():
            name = item.entry.custom_id if isinstance(item.entry, BatchRequest) else None
            if name is not None and hash64(name) in duplicates:
                place = self._place(item)
                first = first_places.setdefault(name, place)
                if first != place:
                    field = self._choice.id_field or "custom_id"
                    problems.add(place, f"duplicate {field} {name!r}, first used in {first}")


class _Problems:
    """Counts the bad lines, and keeps the first of them."""

    def __init__(self, name: str) -> None:
        self._name, self._count = name, 0
        self._shown: list[str] = []

    def add(self, place: str, problem: str) -> None:
        self._count += 1
        if len(self._shown) < _MAX_SHOWN:
            self._shown.append(f"\n  {place}: {problem}")

    def raise_if_any(self) -> None:
        if not self._count:
            return
        more = f"\n  and {self._count - len(self._shown):,} more" if self._count > len(self._shown) else ""
        verb = "has" if not self._name.endswith(" files") else "have"
        noun = "one bad line" if self._count == 1 else f"{self._count:,} bad lines"
        raise InputError(f"{self._name} {verb} {noun}; nothing was sent:{''.join(self._shown)}{more}")


def _expand(paths: Sequence[str]) -> list[str]:
    """Return the paths with patterns replaced by the files that match them, in order of their names."""
    found: list[str] = []
    for path in paths:
        is_pattern = glob.has_magic(path) and not os.path.exists(path)
        matching = sorted(glob.glob(path, recursive=True)) if is_pattern else [path]
        if not matching:
            raise InputError(f"no file matches {path}")
        found.extend(matching)
    repeated = [path for path, count in Counter(map(os.path.realpath, found)).items() if count > 1]
    if repeated:
        raise InputError(f"{repeated[0]} is given twice")
    return found


def _repeated(numbers: array[int]) -> frozenset[int]:
    ordered = sorted(numbers)
    return frozenset(number for number, after in zip(ordered, ordered[1:]) if number == after)
