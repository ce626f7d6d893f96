"""Disk: locks that die with their process, writes that are whole, and the system's refusals in words.

with lock(path, on_wait=say), writing(store.root):
    write_atomically(path, text)      # StoreError for a full or read-only disk
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tunesmith.errors import StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def lock(path: Path, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system releases it when the process ends, however it ends.

    `on_wait` is called with what the holder wrote (its process id) before waiting.
    """
    while True:
        with writing(path.parent):
            handle = path.open("a+", encoding="utf-8")
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                on_wait(handle.read().strip() or "unknown")
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _same_file(handle, path):
                break
        except BaseException:
            handle.close()
            raise
        handle.close()
    try:
        with writing(path.parent):
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        handle.close()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock at `path`."""
    try:
        with path.open("r", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
    except FileNotFoundError:
        return False


def _same_file(handle: IO[str], path: Path) -> bool:
    """Whether the locked file is still the one at `path`: the last holder unlinks it."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(handle.fileno())
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn the system's refusals to write the store at `place` into `StoreError`."""
    try:
        yield
    except (StoreError, FileNotFoundError):
        raise
    except OSError as error:
        raise (disk_error(error, place) or _cannot_write(error, place)) from error


def disk_error(error: BaseException, place: Path) -> StoreError | None:
    """Return the `StoreError` for an error that means a full disk, or a `place` that cannot be written, else None.

    Libraries wrap the system's error in their own, so causes and texts are looked at too.
    """
    at: BaseException | None = error
    while at is not None:
        number = at.errno if isinstance(at, OSError) else None
        text = str(at).lower()
        if number in _FULL or "no space left on device" in text or "disk is full" in text:
            free = _free_bytes(place)
            return StoreError(
                "the disk is full",
                where=str(place),
                found=f"{free / 1e6:,.0f} MB free" if free is not None else None,
                hint="free some space (`tunesmith gc` lists what no run needs) and run again: finished stages are kept",
            )
        named = Path(os.fsdecode(at.filename)) if isinstance(at, OSError) and isinstance(at.filename, str) else None
        if isinstance(at, OSError) and number in _READ_ONLY and named is not None and named.is_relative_to(place):
            return _cannot_write(at, place)
        at = at.__cause__ or at.__context__
    return None


def _cannot_write(error: OSError, place: Path) -> StoreError:
    return StoreError(
        "the store cannot be written",
        where=str(error.filename or place),
        found=error.strerror or str(error),
        hint="choose another with --store DIR or TUNESMITH_STORE, or change its permissions",
    )


def _free_bytes(place: Path) -> int | None:
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Bring a folder's list of names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
