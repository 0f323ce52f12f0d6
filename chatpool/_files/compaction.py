"""Leaves one line for each custom_id in a journal: many tools that read Batch output expect that."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from chatpool.errors import JournalError

from .batch_format import parse_head, parse_line
from .journal import hash64, lock, open_file, scan, unlock
from .runs import carried, with_ends

_logger = logging.getLogger("chatpool")


def compact(path: str) -> int:
    """Remove lines that a later one replaced; return how many. Keeps the last good line of a custom_id, or its last.

    The last line gets what the removed ones say about their runs, so that no request or token is lost to a report.

    Guarantee: the file is replaced in one move, by a copy that is on the disk; until then it stays as it is, and it is
    locked. If that fails, for example on a full disk, nothing changes, and a warning is logged.
    """
    path = os.path.realpath(path)
    try:
        with contextlib.closing(open_file(path, os.O_RDWR)) as file:
            lock(file.fileno(), path)
            try:
                return _compact(path, file)
            finally:
                unlock(file.fileno())
    except (JournalError, OSError) as error:
        _logger.warning("%s was not compacted: %s", path, error)
        return 0


def _compact(path: str, file: io.FileIO) -> int:
    reader = io.BufferedReader(io.FileIO(os.dup(file.fileno())), 2**20)
    with reader:
        _, end = scan(reader, path)
        kept, count = _counting_lines(reader, end)
        dropped = count - len(kept)
        if dropped:
            documents = map(parse_line, (line for offset, line in _lines(reader, end) if offset not in kept))
            ends = carried(document for document in documents if document is not None)
            replace_file(path, with_ends((line for offset, line in _lines(reader, end) if offset in kept), ends))
    return dropped


def _counting_lines(reader: BinaryIO, end: int) -> tuple[set[int], int]:
    """Return the offsets of the lines to keep, and the number of all lines."""
    counting: dict[int, tuple[int, bool]] = {}
    count = 0
    for offset, line in _lines(reader, end):
        head = parse_head(line)
        if head is None:  # the scan found every line to be valid
            continue
        count += 1
        name, is_good = hash64(head[0].custom_id), head[1]
        if is_good or not counting.get(name, (0, False))[1]:
            counting[name] = offset, is_good
    return {offset for offset, _ in counting.values()}, count


def _lines(reader: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    reader.seek(0)
    offset = 0
    while offset < end:
        line = reader.readline()
        yield offset, line
        offset += len(line)


def replace_file(path: str, pieces: Iterator[bytes]) -> None:
    """Write a file and put it in the place of another in one move. Readable by its owner only."""
    folder, name = os.path.split(path)
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder or ".")
    try:
        with open(fd, "wb", buffering=2**20) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
