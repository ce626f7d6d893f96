"""Provenance: the circumstance of a run as its manifests keep it: versions, commit, memory. Never identity."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

from tunesmith.types import JSON

_GIT_SECONDS = 5
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def describe_process(folder: Path) -> dict[str, JSON]:
    """Return Python, platform, package versions, and the git commit of `folder`."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "packages": dict(package_versions()),
        "git": git_commit(folder),
    }


@functools.cache
def package_versions() -> tuple[tuple[str, str], ...]:
    """Return (name, version) of tunesmith and of each package that it requires, where installed."""
    names = ["tunesmith"]
    try:
        requires = importlib.metadata.requires("tunesmith") or []
    except importlib.metadata.PackageNotFoundError:
        requires = []
    names += [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in requires if "extra ==" not in line]
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(sorted(versions.items()))


@functools.cache
def git_commit(folder: Path) -> JSON:
    """Return `{"commit", "dirty"}` of the git checkout that holds `folder`, or None outside of one."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


class PeakMemory:
    """The largest resident memory of this process since it was made."""

    def __init__(self) -> None:
        self._since_start = True
        try:
            _CLEAR_REFS.write_text("5", encoding="ascii")  # resets VmHWM: proc(5)
        except OSError:
            self._since_start = False

    def figures(self) -> dict[str, JSON]:
        """Return `peak_rss_bytes` of the stage, or `process_peak_rss_bytes` where the system cannot reset its mark."""
        if self._since_start:
            found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
            if found:
                return {"peak_rss_bytes": int(found.group(1)) * 1024}
        scale = 1 if sys.platform == "darwin" else 1024
        return {"process_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
