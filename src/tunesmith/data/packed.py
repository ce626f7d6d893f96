"""Packed files: gzip, bzip2, xz, zstd and zip, and text that is not ASCII-compatible, opened as one stream of bytes.

What lives here: how a file is packed, and its bytes without that. What does not: formats (`data.files`).

The first bytes of a file say how it is packed, not its name: a gzip file that lost its `.gz` is read, and so is a plain
one that has it.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from tunesmith.data.records import unreadable
from tunesmith.errors import DataError

ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings that a packed file's name has after that of its format."""

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
)
"""First bytes of a packed file -> how it is packed (RFC 1952, RFC 8878, the formats' own specifications)."""


def packing_of(path: Path) -> str | None:
    """Return how a file is packed, or `None` where it is plain. Raises `DataError` where it cannot be read."""
    try:
        with path.open("rb") as handle:
            first = handle.read(8)
    except OSError as error:
        raise unreadable(path, error) from error
    return next((name for magic, name in _MAGIC if first.startswith(magic)), None)


def plain_name(path: Path) -> str:
    """Return a file's name without its packing; that of `rows.zip` is the name of the file inside."""
    name = path.name
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    if "." not in name and path.suffix.lower() == ".zip" and packing_of(path) == "zip":
        with unpacking_errors(path), zipfile.ZipFile(path) as archive:
            name = PurePosixPath(_member(archive, path).filename).name
    return name


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file as the bytes that were packed. Raises `DataError` where it is cut off, broken or locked."""
    packing = packing_of(path)
    with unpacking_errors(path):
        if packing == "zip":
            with zipfile.ZipFile(path) as archive, _open_member(archive, path) as member:
                yield member
        else:
            with _opened(path, packing) as handle:
                yield handle


def _opened(path: Path, packing: str | None) -> BinaryIO:
    if packing == "gzip":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if packing == "bzip2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if packing == "xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if packing == "zstd":
        import pyarrow as pa

        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")))
    return path.open("rb")


@contextmanager
def unpacking_errors(path: Path) -> Iterator[None]:
    """Turn what the unpackers raise into `DataError`."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise _not_whole(path, str(error)) from error
    except OSError as error:
        if error.strerror:
            raise unreadable(path, error) from error
        raise _not_whole(path, str(error)) from error


def _not_whole(path: Path, found: str) -> DataError:
    return DataError(
        f"{path.name} is not whole",
        where=str(path),
        expected=f"a whole file, packed by {packing_of(path)}",
        found=found,
        hint="fetch or write it again, or unpack it yourself",
    )


def _member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    """The one file of an archive; the folders and notes that macOS adds are none."""
    files = [
        entry
        for entry in archive.infolist()
        if not entry.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in entry.filename.split("/"))
    ]
    if len(files) == 1:
        return files[0]
    names = ", ".join(entry.filename for entry in files[:5])
    raise DataError(
        f"{path.name} holds {len(files)} files",
        where=str(path),
        expected="a zip file with one file in it",
        found=names or "an empty archive",
        hint="unpack it and name the folder",
    )


def _open_member(archive: zipfile.ZipFile, path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, archive.open(_member(archive, path)))
    except (RuntimeError, NotImplementedError) as error:  # a password, or a method that Python does not have
        raise _not_whole(path, str(error)) from error


def with_ascii_lines(handle: BinaryIO, path: Path, encoding: str) -> tuple[BinaryIO, str]:
    """Return bytes in which a line ends with the byte 10, and their encoding: UTF-16 and UTF-32 become UTF-8.

    Raises `DataError` for an encoding that does not exist.
    """
    try:
        is_ascii = b"\n{".decode(encoding, "replace") == "\n{"
        decoder = codecs.getincrementaldecoder(encoding)()
    except LookupError as error:
        raise unknown_encoding(path, encoding) from error
    if is_ascii:
        return handle, encoding
    return cast(BinaryIO, io.BufferedReader(_AsUtf8(handle, decoder, path, encoding))), "utf-8"


def unknown_encoding(path: Path, encoding: str) -> DataError:
    """Return the error of an encoding that Python does not know."""
    return DataError(
        f"{encoding!r} is not an encoding", where=str(path), expected="for example utf-8, utf-16 or latin-1"
    )


class _AsUtf8(io.RawIOBase):
    """The text of another encoding, as UTF-8 bytes, read as needed."""

    def __init__(self, handle: BinaryIO, decoder: codecs.IncrementalDecoder, path: Path, encoding: str) -> None:
        self._handle = handle
        self._decoder = decoder
        self._path = path
        self._encoding = encoding
        self._num_read = 0
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            data = self._handle.read(1 << 16)
            try:
                self._ready = self._decoder.decode(data, final=not data).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self._path.name} is not {self._encoding}",
                    where=f"{self._path}, near byte {self._num_read + error.start}",
                    expected=f"text in {self._encoding}",
                    found=f"{error.reason}: {error.object[error.start : error.start + 4]!r}",
                    hint="the file may be cut off, or of another encoding",
                ) from error
            self._num_read += len(data)
            if not data:
                break
        count = min(len(view), len(self._ready))
        view[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
