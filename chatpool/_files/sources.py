"""Opens files of prompts: plain or compressed, in any encoding; a pipe is copied to a temporary file first."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

from chatpool.errors import ConfigurationError

_BUFFER = 2**20  # bytes
_HEAD = 2**16  # bytes that are looked at to find out about a file
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Bytes that are not valid in the encoding become these (PEP 383), so that every bad line can be reported.
_UNDECODED = re.compile("[\udc80-\udcff]")
_REFUSED = {
    b"version https://git-lfs": "is a Git LFS pointer and not the file itself; run: git lfs pull",
    b"PK\x03\x04": "is an Excel workbook or a zip archive; save it as CSV or Parquet, or unpack it",
    b"\xd0\xcf\x11\xe0": "is an old Excel workbook; save it as CSV or Parquet",
    b"%PDF": "is a PDF; extract its text first",
    b"SQLite format 3": "is an SQLite database; export a table as CSV",
}
PARQUET_MARK = b"PAR1"
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError)


class InputError(ConfigurationError):
    """A file of prompts cannot be read or has bad lines; the message lists them."""


class Source:
    """One file, which can be read several times. ``-`` is stdin. ``name``: for messages."""

    def __init__(self, path: str, encoding: str | None = None) -> None:
        self.path, self.name = path, "stdin" if path == "-" else path
        self._file = _open(path)
        try:
            self._open_plain = _decompressor(self._first_bytes(), self.name)
            self.head = self.read_head()
            self._refuse_foreign()
            self.encoding = _find_encoding(self.head, encoding, self.name)
        except BaseException:
            self.close()
            raise

    @property
    def is_parquet(self) -> bool:
        """Whether the file is a Parquet file."""
        return self.head.startswith(PARQUET_MARK)

    @property
    def extension(self) -> str:
        """The file's extension in lower case, without that of its compression."""
        stem, ending = os.path.splitext(self.path.lower())
        return os.path.splitext(stem)[1] if ending in (".gz", ".zst", ".bz2", ".xz") else ending

    def read_head(self) -> bytes:
        """Return the first 64 kB of the content."""
        with self.binary() as file:
            return file.read(_HEAD)

    def head_text(self) -> str:
        """Return the first 64 kB, decoded."""
        with self.text(newline="\n") as text:
            return text.read(_HEAD)

    @contextmanager
    def binary(self) -> Iterator[IO[bytes]]:
        """Yield the content from its start, decompressed."""
        self._file.seek(0)
        try:
            yield self._open_plain(self._file)
        except InputError:
            raise
        except _DAMAGED as error:
            raise InputError(f"cannot read {self.name}: {getattr(error, 'strerror', None) or error}") from None

    @contextmanager
    def text(self, *, newline: str) -> Iterator[io.TextIOWrapper]:
        """Yield the content as text. ``newline``: as in ``open``. See ``is_bad`` for bytes that are not valid."""
        with self.binary() as file:
            wrapper = io.TextIOWrapper(file, self.encoding, "surrogateescape", newline)
            try:
                yield wrapper
            except UnicodeDecodeError:
                raise InputError(f"{self.name} is not valid {self.encoding}; name its encoding: --encoding") from None
            finally:
                if not file.closed:
                    wrapper.detach()  # or the wrapper would close the file

    def is_file(self, path: str) -> bool:
        """Whether this is the file at ``path``."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(path))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _first_bytes(self) -> bytes:
        first = self._file.read(64)
        self._file.seek(0)
        return first

    def _refuse_foreign(self) -> None:
        for mark, problem in _REFUSED.items():
            if self.head.startswith(mark):
                raise InputError(f"{self.name} {problem}")


def is_bad(text: str) -> bool:
    """Whether a text has bytes that are not valid in the file's encoding."""
    return not text.isascii() and _UNDECODED.search(text) is not None


def not_decoded(encoding: str) -> str:
    """Return the problem of a line with such bytes."""
    name = encoding.upper().replace("-SIG", "")
    return f"not {name}; if it has another encoding, name it, such as --encoding cp1252 for Excel on Windows"


def _open(path: str) -> BinaryIO:
    if path == "-" and sys.stdin is None:  # closed before Python started
        raise InputError("cannot read stdin: it is closed")
    try:
        file: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb", buffering=_BUFFER)  # noqa: SIM115 - closed by Source
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode) and path != "-":
            return file
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - likewise
        shutil.copyfileobj(file, spool, _BUFFER)
    except OSError as error:
        raise InputError(f"cannot read {'stdin' if path == '-' else path}: {error.strerror}") from None
    if path != "-":
        file.close()
    spool.seek(0)
    return spool


def _decompressor(first: bytes, name: str) -> Any:
    """Return the function that opens a file, by its first bytes."""
    if first.startswith(b"\x1f\x8b"):
        return lambda file: gzip.GzipFile(fileobj=file)
    if first.startswith(b"BZh"):
        return bz2.BZ2File
    if first.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile
    if first.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstandard(name)
    return lambda file: file


def _zstandard(name: str) -> Any:
    try:
        import zstandard  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(f"{name} is compressed with zstd; to read it: pip install zstandard") from None

    def open_plain(file: BinaryIO) -> IO[bytes]:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)
        return io.BufferedReader(reader)

    return open_plain


def _find_encoding(head: bytes, encoding: str | None, name: str) -> str:
    """Return the encoding: the given one, or that of the file's mark, or UTF-8."""
    marked = next((kind for mark, kind in _MARKS.items() if head.startswith(mark)), None)
    if encoding is not None:
        try:
            found = codecs.lookup(encoding).name
        except LookupError:
            raise ConfigurationError(f"--encoding: Python knows no encoding {encoding!r}") from None
        return marked if found == "utf-8" and marked == "utf-8-sig" else found
    if marked is None and b"\0" in head and not head.startswith(PARQUET_MARK):
        raise InputError(f"{name} is not text; if it is UTF-16 without a mark, pass --encoding utf-16-le")
    return marked or "utf-8"
