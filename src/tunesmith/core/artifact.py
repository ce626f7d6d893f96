"""Artifact: a complete directory of one kind, and the manifest that says what made it.

An artifact that exists is complete: its directory was written aside and renamed with the manifest last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFile:
    """One file of an artifact."""

    path: str
    """Relative to the artifact's data folder, POSIX style."""
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made an artifact: `manifest.json`."""

    stage: str
    version: int
    kind: str
    fingerprint: str
    """sha256 of {stage, version, non-default settings, input fingerprints}: known before the stage runs."""
    digest: str
    """sha256 over the sorted (path, sha256) pairs of the outputs: known after."""
    spec: Mapping[str, JSON]
    """All settings, defaults included."""
    inputs: Mapping[str, JSON]
    """Role -> fingerprint, or list of fingerprints."""
    outputs: tuple[OutputFile, ...]
    summary: Mapping[str, JSON]
    provenance: Mapping[str, JSON] = field(default_factory=dict)
    """Package versions, git commit, argv, device, seconds: circumstance, never identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A complete artifact in the store."""

    root: Path
    """Directory that holds `manifest.json`, `events.jsonl` and `data/`."""
    manifest: Manifest

    @property
    def path(self) -> Path:
        """Directory of the outputs."""
        return self.root / "data"

    @property
    def kind(self) -> str:
        """Kind of the artifact, as its stage declared it."""
        return self.manifest.kind

    @property
    def fingerprint(self) -> str:
        """Identity of the artifact."""
        return self.manifest.fingerprint

    @property
    def summary(self) -> Mapping[str, JSON]:
        """The figures that the stage returned."""
        return self.manifest.summary
