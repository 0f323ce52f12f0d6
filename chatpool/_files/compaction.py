"""Rewrites files in one move: journals without the lines that were replaced, and the tables that come out.

The new file is written beside the old one, under a name of its own, and put in its place once it is on the disk. A
crash, Ctrl-C or a full disk leave the old file as it was; the next run removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Callable

from .batch_format import Key, parse_head, parse_line
from .permissions import PRIVATE
from .runs import carried, with_ends

# Hashes of a line's group and of its request, and whether this request may replace another one of the group.
Group = tuple[int, int, bool]

_BUFFER = 2**20  # bytes
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def compact(
    reader: BinaryIO, end: int, path: str, group_of: Callable[[Key], Group], before_move: Callable[[], None]
) -> None:
    """Remove the lines of a journal that a later one replaced: one line of each group stays.

    It is the last good line of the group's latest request, or its last line; an older request's answer belongs to
    another prompt. The last line gets what the removed ones say about their runs, so that no request or token is lost
    to a report. ``reader``: the journal, of which the first ``end`` bytes count. Raises OSError, and leaves the file as
    it was.
    """
    kept, count = _counting_lines(reader, end, group_of)
    if len(kept) < count:
        removed = map(parse_line, _lines_at(reader, end, kept, others=True))
        ends = carried(document for document in removed if document is not None)
        replace_file(path, with_ends(_lines_at(reader, end, kept), ends), before_move)


def replace_file(path: str, pieces: Iterable[bytes], before_move: Callable[[], None] = lambda: None) -> None:
    """Write a file and put it in the place of another in one move. Readable by its owner only, who stays the same.

    ``before_move`` is called when all is written: Windows does not replace a file that is open. Raises OSError.
    """
    remove_remains(path)
    temporary = _temporary(path)
    fd = os.open(temporary, _NEW, PRIVATE)
    try:
        with open(fd, "wb", buffering=_BUFFER) as file:
            _keep_owner(fd, path)
            file.writelines(pieces)
            file.flush()
            os.fsync(fd)
        before_move()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    _sync_folder(path)


def remove_remains(path: str) -> None:
    """Remove the incomplete file that a killed process left. Assumption: no other process writes it now."""
    with contextlib.suppress(OSError):
        os.remove(_temporary(path))


def _temporary(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.new")


def _keep_owner(fd: int, path: str) -> None:
    """Give the new file to the owner of the old one: after a run as root it must not be lost to its user."""
    with contextlib.suppress(FileNotFoundError, AttributeError):  # nothing is there yet; Windows
        old, new = os.stat(path), os.fstat(fd)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(fd, old.st_uid, old.st_gid)


def _sync_folder(path: str) -> None:
    """Have the move on the disk. If that fails, the disk has the old file or the new one, each complete."""
    with contextlib.suppress(OSError):
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _counting_lines(reader: BinaryIO, end: int, group_of: Callable[[Key], Group]) -> tuple[array[int], int]:
    """Return the offsets of the lines to keep, in order, and the number of all lines. 110 to 220 bytes for each."""
    entries: dict[int, int] = {}  # by group: an offset, times two, plus one for a good line
    requests: dict[int, int] = {}  # by group: the request of that line, where the group has several
    count = 0
    for offset, line in _lines(reader, end):
        head = parse_head(line)
        count += 1
        if head is None:  # not of this format, though the scan took it for valid
            entries[-offset - 1] = offset << 1
            continue
        group, request, is_wanted = group_of(head[0])
        is_same = requests.get(group, request) == request
        if (head[1] or not entries.get(group, 0) & 1) if is_same else is_wanted:
            entries[group] = offset << 1 | head[1]
            if group != request:
                requests[group] = request
    return array("Q", sorted(entry >> 1 for entry in entries.values())), count


def _lines_at(reader: BinaryIO, end: int, offsets: array[int], *, others: bool = False) -> Iterator[bytes]:
    """Yield the lines at these offsets, which are in order, or all ``others``."""
    rest = iter(offsets)
    listed = next(rest, None)
    for offset, line in _lines(reader, end):
        if (offset == listed) != others:
            yield line
        if offset == listed:
            listed = next(rest, None)


def _lines(reader: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    reader.seek(0)
    offset = 0
    while offset < end:
        line = reader.readline()
        yield offset, line
        offset += len(line)
