"""The journal: a file with one line for every finished call, written as the call finishes, from which a run resumes.

Each line is one ``write`` at the end of the file. A process that is killed loses no line that it wrote, and leaves at
worst an incomplete one, which the next run cuts off. The file is synced to the disk within a second and at the end, so
a power failure can cost that second. A lock on the file, which ends with its process, keeps a second run out. At the
end of a run, lines that later ones replaced are removed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import math
import os
import stat
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO

from chatpool._protocol.results import PathLike
from chatpool.errors import JournalError

from .batch_format import ID_PREFIX, LINE_START, Key, hash64, key_of, load, parse_head, parse_line
from .compaction import Group, compact, remove_remains
from .permissions import PRIVATE, make_private
from .runs import ends_suffix
from .sync import Syncer

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_FIRST_PIECE = 2**16  # bytes, read to see whether a file is a journal
_MAX_LINE = 2**28  # bytes; four times the largest answer that is accepted
_LAST_PIECE = 2**20  # bytes at the end of the file, in which our key of the last line begins
_APPEND = os.O_APPEND | os.O_CREAT
_GRACE = 0.1  # seconds that close() waits for the disk after the deadline or an exception
_COMPACTION_RATE = 2e7  # bytes a second, at least, unless the machine is very busy
_logger = logging.getLogger("chatpool")
_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """The file: locked while it is open, repaired and indexed when it is opened.

    The index holds two numbers for each request, about 110 bytes, whatever the size of its answer.
    ``deadline``: the reading of ``time.monotonic()`` from which on ``close`` does not wait for the disk.
    ``by_body``: whether requests are also found by their bodies alone, see ``find_body``; doubles the index.
    ``by_name``: whether a line replaces all others of its custom_id, and not only those of the same request.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        is_read_only: bool = False,
        deadline: float = math.inf,
        by_body: bool = False,
        by_name: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        self._target = os.path.realpath(self.path)  # of a symbolic link; the process may change its directory
        self._deadline, self._by_body, self._by_name = deadline, by_body, by_name
        # Reentrant: the garbage collector may close an abandoned iterator, and this journal with it, during append().
        self._writing = threading.RLock()
        self._is_closed = self._is_writing = False
        self._wanted: set[int] = set()  # the input's requests, by hash
        self._syncer: Syncer | None = None
        with contextlib.ExitStack() as stack:  # closes the files if a later step fails
            flags = os.O_RDONLY if is_read_only else os.O_RDWR
            self._file = stack.enter_context(open_file(self.path, flags if is_read_only else flags | _APPEND))
            _open_journals.add(self)  # from now on a forked child has something to close
            # Opened a second time, because writing moves the position at which the first one reads.
            self._reader = stack.enter_context(io.BufferedReader(open_file(self.path, flags), 2**15))
            if not is_read_only:
                lock(self._file.fileno(), self.path)
                remove_remains(self._target)
            self._index, self._end, self._has_replaced = scan(self._reader, self.path, by_body=by_body, by_name=by_name)
            self._had_lines, self._had_replaced = self._end > 0, self._has_replaced
            if not is_read_only:
                make_private(self._file.fileno(), self.path)
                self._repair_end()
                # Not a copy of the first descriptor, because that would keep the lock until the last sync is done.
                self._syncer = Syncer(os.dup(self._reader.fileno()), self.path, self._end)
                weakref.finalize(self, self._syncer.stop)  # or a journal that nobody closes would leave its thread
            stack.pop_all()

    def find(self, key: Key) -> Mapping[str, Any] | None:
        """Return the line that counts for a request, parsed: the last good one, or else the last; None without any."""
        return self._line_at(self._index.get(_hash_of_key(key)))

    def find_body(self, digest: str) -> Mapping[str, Any] | None:
        """Return the line that counts for a request's body, whatever its custom_id; None without any."""
        return self._line_at(self._index.get(_hash_of_body(digest))) if self._by_body else None

    def note_request(self, key: Key) -> None:
        """Note a request of this run: of several requests of one name, it is the one that counts."""
        if self._by_name and self._had_replaced:  # or each name has one request, and a new one is its latest
            self._wanted.add(_hash_of_key(key))

    def note_line(self, key: Key) -> None:
        """Note that a line is about to be written for a request: it may replace another one."""
        if (self._by_name and self._had_lines and _is_name(key)) or _hash_of_key(key) in self._index:
            self._has_replaced = True

    def documents(self) -> Iterator[tuple[Mapping[str, Any], bool]]:
        """Yield every line, parsed, and whether it is the one that counts for its request."""
        self._reader.seek(0)
        offset = 0
        while offset < self._end:
            line = self._reader.readline()
            document = parse_line(line)
            if document is not None:  # the scan looked only at the ends of the line
                yield document, self._index[_hash_of_key(key_of(document))] >> 1 == offset
            offset += len(line)

    def append(self, line: bytes) -> None:
        """Write a line; thread-safe. Drops it after ``close``: its call was cancelled.

        Raises JournalError if it cannot be written, and leaves the file as it was before; also if a sync has failed.
        """
        with self._writing:
            if self._is_closed or self._syncer is None:
                return
            self._syncer.check()
            self._is_writing = True
            try:
                self._write(line)
            except ValueError:  # the garbage collector has just closed the file, in this thread
                return
            finally:
                self._is_writing = False
            self._syncer.request(self._end)

    def end_run(self, end: Mapping[str, Any]) -> None:
        """Add the end of a run to the last line. A run that cannot write it looks like one that was killed."""
        if self._is_closed:  # as in ``_close``
            return
        with self._writing:
            if self._is_closed or self._syncer is None or self._is_writing:  # the last: see ``_writing``
                return
            with contextlib.suppress(OSError, ValueError, JournalError):  # as in ``append``
                self._rewrite_last_line(end)
                self._syncer.request(self._end)

    def close(self) -> None:
        """Release the lock, and wait until every line is synced to the disk, or for the deadline. Idempotent.

        If later lines replaced others, first removes those, and logs a warning if that fails. Raises JournalError if a
        sync failed. After the deadline the last sync continues in the background.
        """
        self._close(self._deadline)

    def leave_to_parent(self) -> None:
        """Close a forked child's copies, which would hold the lock after the parent's end."""
        self._file.close()
        if not self._is_closed and self._syncer is not None:
            self._syncer.leave_to_parent()
        self._is_closed = True

    def _close(self, deadline: float) -> None:
        if self._is_closed:  # checked without the lock first: a forked child may have inherited it locked
            return
        with self._writing:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            if not self._may_compact(deadline):
                self._release()  # now, as a sync may take long
            if self._syncer is not None:
                self._syncer.finish(max(_GRACE, deadline - time.monotonic()))
            if self._may_compact(deadline):
                self._compact()
        finally:
            self._release()
            self._index = {}  # a job may keep this object for longer

    def _may_compact(self, deadline: float) -> bool:
        """Whether there is something to remove, and time for it."""
        is_open = self._syncer is not None and not self._file.closed
        return is_open and self._has_replaced and self._end / _COMPACTION_RATE < deadline - time.monotonic()

    def _compact(self) -> None:
        """Remove the lines that later ones replaced, while the file is still locked. Without a lock it is closed first.

        A run that opened the old file cannot lock it after this, see ``lock``.
        """
        self._index.clear()  # its memory is needed
        try:
            if not _is_at(self._file.fileno(), self._target):
                raise OSError("it was moved")
            before_move = self._release if fcntl is None else lambda: None
            compact(self._reader, self._end, self._target, self._group_of, before_move)
        except OSError as error:
            _logger.warning("%s was not compacted: %s", self.path, error)

    def _group_of(self, key: Key) -> Group:
        """Return the lines among which one is kept; of a name, the input's request if it is known, or the latest."""
        request = _hash_of_key(key)
        is_wanted = request in self._wanted or not self._wanted
        return (hash64(key.custom_id), request, is_wanted) if self._by_name else (request, request, is_wanted)

    def _release(self) -> None:
        if not self._file.closed:
            unlock(self._file.fileno())
        self._file.close()
        self._reader.close()

    def _line_at(self, entry: int | None) -> Mapping[str, Any] | None:
        if entry is None:
            return None
        self._reader.seek(entry >> 1)
        return parse_line(self._reader.readline())

    def _repair_end(self) -> None:
        """Cut off the incomplete last line of a killed run, or add the newline that an editor left out."""
        if self._end != os.fstat(self._file.fileno()).st_size:
            self._file.truncate(self._end)
        if self._end:
            self._reader.seek(self._end - 1)
            if self._reader.read(1) != b"\n":
                self._write(b"\n")

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:  # one write, unless the disk is nearly full
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise _failure(self.path, "written", error) from None
        self._end += len(line)

    def _rewrite_last_line(self, end: Mapping[str, Any]) -> None:
        """Add an end: one write over the last few bytes, so that a killed process leaves a whole line."""
        start = max(0, self._end - _LAST_PIECE)
        self._reader.seek(start)
        piece = self._reader.read(self._end - start)
        cut, suffix = ends_suffix(piece[piece.rfind(b"\n", 0, -1) + 1 :], [end])
        if not suffix:
            return
        with open_file(self.path, os.O_RDWR) as file:  # without O_APPEND, which would write at the end of the file
            status, ours = os.fstat(file.fileno()), os.fstat(self._file.fileno())
            if os.path.samestat(status, ours) and status.st_size == self._end:
                file.seek(self._end - cut)
                file.write(suffix)
                self._end += len(suffix) - cut

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(JournalError):  # the caller needs to see the exception that ended the run, at once
            self._close(-math.inf)


def scan(
    reader: BinaryIO, path: str, *, by_body: bool = False, by_name: bool = False
) -> tuple[dict[int, int], int, bool]:
    """Read a journal from start to end.

    Returns its index, the offset at which its last complete line ends, and whether a line replaced another one. The
    index has an entry for each request: the offset of its last good line, or else of its last line, times two, plus one
    for a good line. ``by_body``: and such an entry for each body. Raises JournalError for any other kind of file, and
    reads only the first piece of most.
    """
    index: dict[int, int] = {}
    names: set[int] = set()
    end, has_replaced = 0, False
    _check_first_piece(reader, path)
    for number, line in enumerate(iter(lambda: reader.readline(_MAX_LINE), b""), 1):
        if len(line) == _MAX_LINE:
            raise _not_a_journal(path, number)
        is_complete = line.endswith(b"\n") or parse_line(line) is not None
        head = parse_head(line) if is_complete else None
        if head is None:
            # Without a newline it was the last line when it was read, even if a run has written more since.
            if _is_torn(line, is_first=number == 1) and (not line.endswith(b"\n") or not reader.read(1)):
                break
            raise _not_a_journal(path, number)
        key, is_good = head
        request = _hash_of_key(key)
        has_replaced = has_replaced or request in index
        if by_name and not has_replaced and _is_name(key):
            name = hash64(key.custom_id)
            has_replaced = name in names
            names.add(name)
        for entry in (request, _hash_of_body(key.digest)) if by_body else (request,):
            if is_good or not index.get(entry, 0) & 1:
                index[entry] = end << 1 | is_good
        end += len(line)
    return index, end, has_replaced


def _check_first_piece(reader: BinaryIO, path: str) -> None:
    """Refuse a file with a huge first line that shows no sign of a journal, before the rest of it is read."""
    piece = reader.readline(_FIRST_PIECE)
    is_journal = piece.lstrip().startswith(b"{") and (b'"chatpool' in piece or b'"custom_id"' in piece)
    if len(piece) == _FIRST_PIECE and not is_journal:
        raise _not_a_journal(path, 1)
    reader.seek(0)


def _is_torn(line: bytes, *, is_first: bool) -> bool:
    """Whether a last line may be the incomplete line of a killed run, or the zeros that a power failure leaves.

    A file's only line has to show that chatpool wrote it.
    """
    if not line.strip(b"\0\n"):
        return b"\0" in line and not is_first
    is_start = line.startswith(LINE_START + ID_PREFIX * is_first) or (LINE_START.startswith(line) and not is_first)
    return is_start and not line.endswith(b"\n") and load(line) is None


def _is_name(key: Key) -> bool:
    """Whether the user named a request. Any other is named by the hash of its body, perhaps with a number."""
    return not key.custom_id.startswith(key.digest)


def _hash_of_body(digest: str) -> int:
    return _hash_of_key(Key("", digest))  # no request is named by an empty text


def _hash_of_key(key: Key) -> int:
    return hash64(f"{key.custom_id} {key.digest}")


def open_file(path: str, flags: int) -> io.FileIO:
    """Open a journal's file, which must be a regular one."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end before the pipe can be refused.
        fd = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0), PRIVATE)
    except OSError as error:
        raise _failure(path, "opened", error) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise JournalError(f"the journal {path} must be a regular file")
    return io.FileIO(fd, "r" if flags == os.O_RDONLY else "r+")


def lock(fd: int, path: str) -> None:
    """Lock a journal; raise JournalError if another run has it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise _failure(path, "locked", error) from None
        raise _in_use(path) from None
    if not _is_at(fd, path):  # another run has just compacted it, into a new file
        raise _in_use(path)


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def unlock(fd: int) -> None:
    """Release the lock at once. Closing does not, while a child forked a moment ago has its copy of the file open."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


def _in_use(path: str) -> JournalError:
    return JournalError(f"the journal {path} is in use by another run; wait until it ends, or use another file")


def _failure(path: str, action: str, error: OSError) -> JournalError:
    return JournalError(f"the journal {path} cannot be {action}: {error.strerror}")


def _not_a_journal(path: str, number: int) -> JournalError:
    return JournalError(
        f"{path} is not a chatpool journal: line {number} was not written by chatpool; "
        "it was left as it is; use another file"
    )


def _leave_all_to_parent() -> None:
    for journal in list(_open_journals):
        journal.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)
