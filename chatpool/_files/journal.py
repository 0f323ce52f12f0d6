"""The journal: a file with one line for every finished call, written as the call finishes, from which a run resumes.

Each line is one ``write`` at the end of the file. A process that is killed loses no line that it wrote, and leaves at
worst an incomplete one, which the next run cuts off. The file is synced to the disk within a second and at the end, so
a power failure can cost that second. A lock on the file, which ends with its process, keeps a second run out.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import stat
import threading
import time
import weakref
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from types import TracebackType
from typing import Any, BinaryIO, Callable

from chatpool._protocol.request_builder import Request
from chatpool._protocol.requests import BatchRequest
from chatpool._protocol.results import REJECTIONS, Attempt, ChatResult, Parse, PathLike
from chatpool.errors import DeadlineError, JournalError, NotSentError

from .batch_format import ID_PREFIX, LINE_START, Key, key_of, line_of, load, parse_head, parse_line, result_of
from .permissions import PRIVATE, make_private
from .runs import RunLog, ends_suffix
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
_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """The file: locked while it is open, repaired and indexed when it is opened.

    The index holds two numbers for each request, about 110 bytes, whatever the size of its answer.
    ``deadline``: the reading of ``time.monotonic()`` from which on ``close`` does not wait for the disk.
    """

    def __init__(self, path: PathLike, *, is_read_only: bool = False, deadline: float = math.inf) -> None:
        self.path = os.fspath(path)
        self._deadline = deadline
        # Reentrant: the garbage collector may close an abandoned iterator, and this journal with it, during append().
        self._writing = threading.RLock()
        self._is_closed = self._is_writing = False
        self._syncer: Syncer | None = None
        with contextlib.ExitStack() as stack:  # closes the files if a later step fails
            flags = os.O_RDONLY if is_read_only else os.O_RDWR
            self._file = stack.enter_context(open_file(self.path, flags if is_read_only else flags | _APPEND))
            _open_journals.add(self)  # from now on a forked child has something to close
            # Opened a second time, because writing moves the position at which the first one reads.
            self._reader = stack.enter_context(io.BufferedReader(open_file(self.path, flags), 2**15))
            if not is_read_only:
                lock(self._file.fileno(), self.path)
            self._index, self._end = scan(self._reader, self.path)
            if not is_read_only:
                make_private(self._file.fileno(), self.path)
                self._repair_end()
                # Not a copy of the first descriptor, because that would keep the lock until the last sync is done.
                self._syncer = Syncer(os.dup(self._reader.fileno()), self.path, self._end)
                weakref.finalize(self, self._syncer.stop)  # or a journal that nobody closes would leave its thread
            stack.pop_all()

    def find(self, key: Key) -> Mapping[str, Any] | None:
        """Return the line that counts for a request, parsed: the last good one, or else the last; None without any."""
        entry = self._index.get(_hash_of_key(key))
        if entry is None:
            return None
        self._reader.seek(entry >> 1)
        return parse_line(self._reader.readline())

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

        Raises JournalError if a sync failed. After the deadline the last sync continues in the background.
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
        unlock(self._file.fileno())
        self._file.close()
        self._reader.close()
        if self._syncer is not None:
            self._syncer.finish(max(_GRACE, deadline - time.monotonic()))

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


class JournalView:
    """One run's view of a journal: which prompts have a good answer in it, and where the new results go.

    A prompt without a custom_id gets the hash of its request for one; the second of two equal prompts gets a number
    after it. Counting them takes about 80 bytes each, unless ``repeats`` says which ones are repeated, by ``hash64``
    of their hash. ``retries_failed``: whether prompts that failed before are sent again. ``waits``: returns what held
    calls back since the run began.
    """

    def __init__(
        self,
        journal: Journal | None,
        digest_of: Callable[[Request], str],
        parse: Parse | None,
        *,
        retries_failed: bool = True,
        repeats: Container[int] | None = None,
        waits: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._run = RunLog(waits)
        self._journal, self._digest_of, self._parse = journal, digest_of, parse
        self._retries_failed, self._repeats = retries_failed, repeats
        self._keys: dict[int, Key] = {}  # of the prompts without a result, by index
        self._counts: Counter[int] = Counter()  # of the prompts without a custom_id, by hash64

    def find(self, request: Request) -> ChatResult | None:
        """Return the journal's result for the next prompt, None if it has to be sent. Call once a prompt, in order."""
        key = self._keys[request.index] = self.key(request)
        result = self.read(request, key)
        if result is None or (self._retries_failed and not result.ok):
            return None
        result = self.parsed(result)
        if result is not None:
            del self._keys[request.index]
        return result

    def read(self, request: Request, key: Key) -> ChatResult | None:
        """Return the result of a request that the journal holds, good or not; None without any."""
        for known in (key, *_other_keys(request.prompt, key)):
            document = self._journal.find(known) if self._journal else None
            if document is not None and key_of(document) == known:
                result = result_of(document, request.index, request.prompt)
                if known == key or (result is not None and result.ok):
                    return result
        return None

    def record(self, result: ChatResult, timeline: Sequence[Attempt] = (), error_body: str | None = None) -> None:
        """Write a finished call's line, see ``line_of``. A call that was cancelled is not finished."""
        key = self._keys.pop(result.index)
        if self._journal and not is_cancelled(result):
            self._journal.append(line_of(result, key, timeline, error_body, self._run.fields()))

    def note_cancelled(self, results: Iterable[ChatResult]) -> None:
        """Count what cancelled calls took, for the end of the run."""
        for result in results:
            if result.attempts and is_cancelled(result):
                self._run.add_unlisted(result)

    def end_run(self, how: str) -> None:
        """Write how the run ended; nothing if it sent nothing."""
        end = self._run.end(how)
        if self._journal and end is not None:
            self._journal.end_run(end)

    def key(self, request: Request) -> Key:
        """Return the key of the next prompt. Call once a prompt, in order."""
        digest, prompt = self._digest_of(request), request.prompt
        if isinstance(prompt, BatchRequest) and prompt.custom_id is not None:
            return Key(prompt.custom_id, digest)
        number, count = hash64(digest), 1
        if self._repeats is None or number in self._repeats:
            self._counts[number] += 1
            count = self._counts[number]
        return Key(digest if count == 1 else f"{digest}-{count}", digest)

    def parsed(self, result: ChatResult) -> ChatResult | None:
        """Return a result with the value of ``parse``; None if ``parse`` now rejects its text."""
        if self._parse is None or not result.ok:
            return result
        try:
            return replace(result, value=self._parse(result.text or ""))
        except REJECTIONS:
            return None
        except Exception as error:
            error.prompt_index = result.index  # type: ignore[attr-defined]
            raise


def is_cancelled(result: ChatResult) -> bool:
    """Whether a call was cancelled, so that it has no line: it did not fail by itself."""
    return isinstance(result.error, (NotSentError, DeadlineError))


def _other_keys(prompt: Any, key: Key) -> list[Key]:
    """Return the keys that a request had if its input was read another way: with or without a name for each row."""
    alias = getattr(prompt, "alias", None)
    if alias is None:
        return []
    return [Key(key.digest if prompt.custom_id is not None else alias, key.digest)]


def scan(reader: BinaryIO, path: str) -> tuple[dict[int, int], int]:
    """Read a journal from start to end; return its index, and the offset at which its last complete line ends.

    The index has an entry for each request: the offset of its last good line, or else of its last line, times two, plus
    one for a good line. Raises JournalError for any other kind of file, and reads only the first piece of most.
    """
    index: dict[int, int] = {}
    end = 0
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
        if is_good or not index.get(request, 0) & 1:
            index[request] = end << 1 | is_good
        end += len(line)
    return index, end


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


def hash64(name: str) -> int:
    """Return a hash of 64 bits."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


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
