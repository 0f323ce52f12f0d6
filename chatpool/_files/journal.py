"""The journal: a file with one line for every finished call, written as it finishes, from which a run is resumed.

A line is one ``write`` at the end of the file, so a process that is killed loses none that was written, and leaves at
worst a torn one, which the next run cuts off. The file is synced to the disk once a second and at the end: that second
is what a failure of power can cost. A lock on the file, which dies with its process, keeps a second run out.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
import time
import weakref
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Any, Callable

from chatpool._protocol.request_builder import Request
from chatpool._protocol.requests import BatchRequest
from chatpool._protocol.results import Attempt, ChatResult, Parse, PathLike
from chatpool.errors import DeadlineError, JournalError, NotSentError

from .batch_format import BEGINNING, OUR_ID, Key, is_json, key_of, line_of, parse_head, parse_line, result_of

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_SYNC_EVERY = 1.0  # seconds
_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """The file: locked while it is open, repaired and indexed when it is opened.

    The index holds two numbers for each request, whatever the size of its answer: about 110 bytes.
    """

    def __init__(self, path: PathLike, *, is_read_only: bool = False) -> None:
        self.path = os.fspath(path)
        self._file = _open(self.path, os.O_RDONLY if is_read_only else os.O_RDWR | os.O_APPEND | os.O_CREAT)
        # Opened once more, because what is written moves the place where its own handle reads.
        self._reader = io.BufferedReader(_open(self.path, os.O_RDONLY), 2**15)
        # One that its own thread can take twice: the collector may close an iterator that was dropped in mid-append.
        self._writing = threading.RLock()
        self._is_closed = False
        self._synced_at = time.monotonic()
        try:
            if not is_read_only:
                _lock(self._file.fileno(), self.path)
            self._index, self._end = index(self._reader, self.path)
            if not is_read_only:
                self._mend_end()
        except BaseException:
            self._reader.close()
            self._file.close()
            raise
        _open_journals.add(self)

    def find(self, key: Key) -> Mapping[str, Any] | None:
        """Return the last line for this request, parsed: the last good one, if there is any."""
        found = self._index.get(_number_of_key(key))
        if found is None:
            return None
        self._reader.seek(found >> 1)
        return parse_line(self._reader.readline())

    def documents(self) -> Iterator[tuple[Mapping[str, Any], bool]]:
        """Yield every line, parsed, and whether it is the one of its request that counts."""
        self._reader.seek(0)
        place = 0
        while place < self._end:
            line = self._reader.readline()
            document = parse_line(line)
            if document is not None:  # only its ends were looked at before
                yield document, self._index[_number_of_key(key_of(document))] >> 1 == place
            place += len(line)

    def append(self, line: bytes) -> None:
        """Write a line, from any thread. Raises JournalError where it cannot be; the file then ends as it did before.

        What comes after the end of the run, which gave it up, is dropped.
        """
        with self._writing:
            if self._is_closed:
                return
            try:
                self._write(line)
            except ValueError:  # closed just now, by the collector, in this thread
                return
            is_due = time.monotonic() - self._synced_at >= _SYNC_EVERY
            if is_due:
                self._synced_at = time.monotonic()
        if is_due:
            self._sync()

    def close(self) -> None:
        """Sync the file and let it go. Closing again does nothing, and a forked child's lock may be held for ever."""
        if self._is_closed:
            return
        with self._writing:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            self._sync()
        finally:
            self._reader.close()
            self._file.close()

    def leave_to_parent(self) -> None:
        """In a forked child: close what it inherited, or it would hold the lock when its parent is gone."""
        if not self._is_closed:
            self._is_closed = True
            self._file.close()

    def _mend_end(self) -> None:
        """Cut off the torn line of a run that was killed; end the last line, if an editor left it without."""
        if self._end != os.fstat(self._file.fileno()).st_size:
            self._file.truncate(self._end)
        if self._end:
            self._reader.seek(self._end - 1)
            if self._reader.read(1) != b"\n":
                self._write(b"\n")

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:  # one write, but for a disk that is nearly full
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise _refuse(self.path, "written", error) from None
        self._end += len(line)

    def _sync(self) -> None:
        """Have the disk hold what was written. Raises JournalError also where that is no longer the file's."""
        end = self._end
        try:
            os.fsync(self._file.fileno())
            now = os.fstat(self._file.fileno())
        except ValueError:  # closed meanwhile, and synced by that
            return
        except OSError as error:
            raise _refuse(self.path, "synced to the disk", error) from None
        if not now.st_nlink or now.st_size < end:
            raise JournalError(f"the journal {self.path} was removed, replaced or cut short while it was written")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What ends a run with an error, Ctrl-C for one, is what the caller is to see.
        with contextlib.suppress(JournalError) if error is not None else contextlib.nullcontext():
            self.close()


class JournalView:
    """One run's view of a journal: which prompts have a good answer in it, and where the new ones go.

    A prompt without a name of its own is named after what is asked; the second of two equal ones gets a number. To
    count them takes about 80 bytes for each, unless it is known beforehand which are repeated (``repeats``, by
    ``number_of``). ``retries_failed``: whether what failed before is asked again.
    """

    def __init__(
        self,
        journal: Journal | None,
        digest_of: Callable[[Request], str],
        parse: Parse | None,
        *,
        retries_failed: bool = True,
        repeats: Container[int] | None = None,
    ) -> None:
        self._journal, self._digest_of, self._parse = journal, digest_of, parse
        self._retries_failed, self._repeats = retries_failed, repeats
        self._keys: dict[int, Key] = {}  # of the prompts that are not done
        self._seen: Counter[int] = Counter()  # unnamed ones, by digest

    def find(self, request: Request) -> ChatResult | None:
        """Return what the journal holds for the next prompt, None if it is to be asked. Ask for each once, in order."""
        index = request.index
        key = self._keys[index] = self._key(request)
        document = self._journal.find(key) if self._journal else None
        if document is None or key_of(document) != key:
            return None
        result = result_of(document, index, request.prompt)
        if result is None or not (result.ok or not self._retries_failed) or not self._parses(result):
            return None
        del self._keys[index]
        return result

    def record(self, result: ChatResult, timeline: Sequence[Attempt] = ()) -> None:
        """Write a finished call down. What was given up is not finished."""
        key = self._keys.pop(result.index)
        if self._journal and not isinstance(result.error, (NotSentError, DeadlineError)):
            self._journal.append(line_of(result, key, timeline))

    def _key(self, request: Request) -> Key:
        digest, prompt = self._digest_of(request), request.prompt
        if isinstance(prompt, BatchRequest) and prompt.custom_id is not None:
            return Key(prompt.custom_id, digest)
        number, count = number_of(digest), 1
        if self._repeats is None or number in self._repeats:
            self._seen[number] += 1
            count = self._seen[number]
        return Key(digest if count == 1 else f"{digest}-{count}", digest)

    def _parses(self, result: ChatResult) -> bool:
        """Put ``parse``'s value into a result from the journal; False if it refuses the text now."""
        if self._parse is None or not result.ok:
            return True
        try:
            object.__setattr__(result, "value", self._parse(result.text or ""))
        except ValueError:
            return False
        except Exception as error:
            error.prompt_index = result.index  # type: ignore[attr-defined]
            raise
        return True


def index(reader: Any, path: str) -> tuple[dict[int, int], int]:
    """Read a journal through. Return for each request where the line that counts begins, its last good one or else
    its last, twice that number and one more for a good answer; and where the last whole line ends.

    Raises JournalError for any other kind of file.
    """
    found: dict[int, int] = {}
    end = 0
    for number, line in enumerate(reader, 1):
        is_whole = line.endswith(b"\n") or parse_line(line) is not None  # an editor may have left the last without
        told = parse_head(line) if is_whole else None
        if told is None:
            # A journal that is being written may have grown since.
            if _is_torn(line, is_first=number == 1) and (not line.endswith(b"\n") or not reader.read(1)):
                break
            raise JournalError(f"{path} is no journal: line {number} was not written by chatpool; it was left as it is")
        key, is_good = told
        request = _number_of_key(key)
        if is_good or not found.get(request, 0) & 1:
            found[request] = end << 1 | is_good
        end += len(line)
    return found, end


def _is_torn(line: bytes, *, is_first: bool) -> bool:
    """Whether a last line may be one of ours, cut off; after a failure of power it may be all zeros.

    Of a file with no other line, it must be seen to be ours.
    """
    if not line.strip(b"\0\n"):
        return b"\0" in line and not is_first
    is_ours = line.startswith(BEGINNING + OUR_ID * is_first) or (BEGINNING.startswith(line) and not is_first)
    return is_ours and not line.endswith(b"\n") and not is_json(line)


def number_of(name: str) -> int:
    """Return 64 bits that stand for a name."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _number_of_key(key: Key) -> int:
    return number_of(f"{key.custom_id} {key.digest}")


def _open(path: str, flags: int) -> io.FileIO:
    try:
        # Without O_NONBLOCK, a pipe that nobody writes to would hold us up before it can be refused.
        fd = os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0), 0o600)
    except OSError as error:
        raise _refuse(path, "opened", error) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise JournalError(f"the journal {path} must be a regular file")
    return io.FileIO(fd, "r" if flags == os.O_RDONLY else "r+")


def _lock(fd: int, path: str) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise _refuse(path, "locked", error) from None
        raise JournalError(f"the journal {path} is in use by another run; wait for it, or take another file") from None


def _refuse(path: str, what: str, error: OSError) -> JournalError:
    return JournalError(f"the journal {path} cannot be {what}: {error.strerror}")


def _leave_all_to_parent() -> None:
    for journal in list(_open_journals):
        journal.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all_to_parent)
