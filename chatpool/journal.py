"""The journal: a file with one line for every finished call, written as it finishes, from which a run is resumed.

A line is one ``write`` at the end of the file, so a process that is killed loses none that was written, and leaves at
worst a torn one, which the next run cuts off. The file is synced to the disk once a second and at the end: that second
is what a failure of power can cost. A lock on the file, which dies with its process, keeps a second run out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
import weakref
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Any, Callable, Union

from ._call import Parse, Try
from ._lines import BEGINNING, Key, digest_of, glance, is_json, line_of, parse_line, result_of
from ._messages import Task, path_of
from .errors import DeadlineError, JournalError, NotSentError
from .results import ChatResult

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

PathLike = Union[str, "os.PathLike[str]"]

_SYNC_EVERY = 1.0  # seconds
_open_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


class Journal:
    """The file: locked while it is open, repaired and indexed when it is opened.

    The index holds two numbers for each custom_id, whatever the size of its answer: about 110 bytes.
    """

    def __init__(self, path: PathLike, *, is_read_only: bool = False) -> None:
        self.path = os.fspath(path)
        self._fd = _open(self.path, os.O_RDONLY if is_read_only else os.O_RDWR | os.O_APPEND | os.O_CREAT)
        # Opened once more, because what is written moves the place where its own handle reads.
        self._reader = os.fdopen(_open(self.path, os.O_RDONLY), "rb", buffering=2**15)
        try:
            if not is_read_only:
                _lock(self._fd, self.path)
            self._index, self._end = index(self._reader, self.path)
            if not is_read_only and self._end != os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, self._end)  # the torn line of a run that was killed
        except BaseException:
            self._reader.close()
            os.close(self._fd)
            raise
        self._writing = threading.Lock()
        self._is_closed = False
        self._synced_at = time.monotonic()
        _open_journals.add(self)

    def find(self, custom_id: str) -> Mapping[str, Any] | None:
        """Return the last line with this name, parsed."""
        found = self._index.get(number_of(custom_id))
        if found is None:
            return None
        self._reader.seek(found >> 1)
        return parse_line(self._reader.readline())

    def documents(self) -> Iterator[tuple[Mapping[str, Any], bool]]:
        """Yield every line, parsed, and whether it is the last with its name, which is the one that counts."""
        self._reader.seek(0)
        place = 0
        while place < self._end:
            line = self._reader.readline()
            document = parse_line(line)
            if document is not None:  # only its ends were looked at before
                yield document, self._index[number_of(document["custom_id"])] >> 1 == place
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
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._end)
                raise _refuse(self.path, "written", error) from None
            self._end += len(line)
            is_due = time.monotonic() - self._synced_at >= _SYNC_EVERY
            if is_due:
                self._synced_at = time.monotonic()
        if is_due:
            self._sync()

    def close(self) -> None:
        """Sync the file and let it go. Closing again does nothing."""
        with self._writing:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            self._sync()
        finally:
            self._reader.close()
            os.close(self._fd)

    def leave_to_parent(self) -> None:
        """In a forked child: close what it inherited, or it would hold the lock when its parent is gone."""
        if not self._is_closed:
            self._is_closed = True
            os.close(self._fd)

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:  # one write, but for a disk that is nearly full
            rest = rest[os.write(self._fd, rest) :]

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _refuse(self.path, "synced to the disk", error) from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Ledger:
    """One run's view of a journal: which prompts have a good answer in it, and where the new ones go.

    A prompt without a name of its own is named after what is asked; the second of two equal ones gets a number. To
    count them takes about 80 bytes for each, unless it is known beforehand which are repeated (``repeats``, by
    ``number_of``). ``retries_failed``: whether what failed before is asked again.
    """

    def __init__(
        self,
        journal: Journal | None,
        body_of: Callable[[Any], dict[str, Any]],
        parse: Parse | None,
        *,
        retries_failed: bool = True,
        repeats: Container[int] | None = None,
    ) -> None:
        self._journal, self._body_of, self._parse = journal, body_of, parse
        self._retries_failed, self._repeats = retries_failed, repeats
        self._keys: dict[int, Key] = {}  # of the prompts that are not done
        self._seen: Counter[int] = Counter()  # unnamed ones, by digest

    def find(self, index: int, prompt: Any) -> ChatResult | None:
        """Return what the journal holds for the next prompt, None if it is to be asked. Ask for each once, in order."""
        key = self._keys[index] = self._key(prompt)
        document = self._journal.find(key.custom_id) if self._journal else None
        if document is None or (document["custom_id"], document["chatpool"].get("hash")) != (key.custom_id, key.digest):
            return None
        result = result_of(document, index, prompt)
        if result is None or not (result.ok or not self._retries_failed) or not self._parses(result):
            return None
        del self._keys[index]
        return result

    def record(self, result: ChatResult, timeline: Sequence[Try] = ()) -> None:
        """Write a finished call down. What was given up is not finished."""
        key = self._keys.pop(result.index)
        if self._journal and not isinstance(result.error, (NotSentError, DeadlineError)):
            self._journal.append(line_of(result, key, timeline))

    def _key(self, prompt: Any) -> Key:
        digest = digest_of(path_of(prompt), self._body_of(prompt))
        if isinstance(prompt, Task) and prompt.custom_id is not None:
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
        return True


def index(reader: Any, path: str) -> tuple[dict[int, int], int]:
    """Read a journal through. Return for each custom_id where its last line begins, twice that number and one more
    for a good answer, and where the last whole line ends. Raises JournalError for any other kind of file."""
    found: dict[int, int] = {}
    end = 0
    for number, line in enumerate(reader, 1):
        told = glance(line) if line.endswith(b"\n") else None
        if told is None:
            if _is_torn(line) and not reader.read(1):
                break
            raise JournalError(f"{path} is no journal: line {number} was not written by chatpool; it was left as it is")
        custom_id, is_good = told
        found[number_of(custom_id)] = end << 1 | is_good
        end += len(line)
    return found, end


def _is_torn(line: bytes) -> bool:
    """Whether a last line may be one of ours, cut off; after a failure of power it may be all zeros."""
    if not line.strip(b"\0\n"):
        return b"\0" in line
    is_ours = line.startswith(BEGINNING) or BEGINNING.startswith(line)
    return is_ours and not line.endswith(b"\n") and (parse_line(line) is not None or not is_json(line))


def number_of(name: str) -> int:
    """Return 64 bits that stand for a name."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _open(path: str, flags: int) -> int:
    try:
        fd = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
    except OSError as error:
        raise _refuse(path, "opened", error) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise JournalError(f"the journal {path} must be a regular file")
    return fd


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
