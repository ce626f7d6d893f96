"""HashCache: the content sha256 of files, remembered by path, size, times and inode.

A 500 MB base model is read once, not at every plan. Small files are read every time: that costs nothing and cannot be
fooled. A file that changed within the last two seconds is not remembered, for its next change may carry the same time.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tunesmith.core.spec import content_sha256, file_sha256

_SMALL_BYTES = 1 << 20
_SETTLED_NS = 2_000_000_000


class HashCache:
    """Content hashes that survive the process. One per store; losing it costs time, never correctness."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[int | str]] | None = None
        self._changed = False

    def sha256_of(self, path: Path) -> str:
        """Return the sha256 of a file or folder, as `spec.content_sha256` defines it. Raises `RecipeError`."""
        return content_sha256(path, self._file_sha256)

    def _file_sha256(self, path: Path) -> str:
        stat = path.stat()
        if stat.st_size < _SMALL_BYTES:
            return file_sha256(path)
        key = str(path.resolve())
        seal: list[int | str] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._load()
        entry = known.get(key)
        if entry is not None and entry[:4] == seal:
            return str(entry[4])
        sha256 = file_sha256(path)
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED_NS:
            known[key] = [*seal, sha256]
            self._changed = True
        return sha256

    def _load(self) -> dict[str, list[int | str]]:
        if self._known is None:
            try:
                self._known = json.loads(self._path.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # a lost or damaged cache is an empty one
                self._known = {}
        return self._known

    def save(self) -> None:
        """Keep what was learned. A store that cannot be written keeps nothing, which costs only time."""
        if not self._changed or self._known is None:
            return
        aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(self._known), encoding="utf-8")
            os.replace(aside, self._path)
        except OSError:
            return
        self._changed = False
