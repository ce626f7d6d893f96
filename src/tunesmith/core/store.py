"""Store: where artifacts live, and how one comes to be there whole or not at all.

    .tunesmith/store/<kind>/<fingerprint>/{manifest.json, events.jsonl, data/}
    .tunesmith/store/.partial/<fingerprint>/{events.jsonl, data/}     in progress, under <fingerprint>.lock
    .tunesmith/store/.partial/<fingerprint>.work/                     what a rerun resumes from

An attempt holds a file lock that the system drops when the process dies, writes aside, and is renamed into place with
the manifest written last: a directory that exists is complete. `data/` starts empty at each try, `.work` survives a
crash and goes after the rename. What does not live here: locks and safe writes (`disk`), runs (`run`), names for
artifacts (`refs`), deleting (`gc`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.artifact import Artifact, Manifest, OutputFile
from tunesmith.core.disk import lock, sync_folder, write_atomically, writing
from tunesmith.core.hashes import HashCache
from tunesmith.core.spec import file_sha256
from tunesmith.core.stage import Stage
from tunesmith.errors import StoreError
from tunesmith.types import JSON, canonical_json, sha256_hex

_MANIFEST = "manifest.json"


def fingerprint_of(stage: Stage, identity: Mapping[str, JSON], *, inputs: Mapping[str, str | None]) -> str:
    """Return the identity of the artifact that `stage` makes: 64 hex digits, known before it runs.

    `identity` is `Spec.identity()`, `inputs` role -> fingerprint. A role that nothing feeds is left out, so that a new
    optional role leaves old fingerprints alone.
    """
    fed = {role: fingerprint for role, fingerprint in inputs.items() if fingerprint is not None}
    return sha256_hex(canonical_json({"stage": stage.name, "version": stage.version, "spec": identity, "inputs": fed}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The directories of an artifact in the making. Its lock is held while the attempt lives."""

    root: Path

    @property
    def data(self) -> Path:
        """Becomes the artifact's `data/`; empty at the start."""
        return self.root / "data"

    @property
    def work(self) -> Path:
        """Survives a crash of the same fingerprint."""
        return self.root.with_name(f"{self.root.name}.work")

    @property
    def events(self) -> Path:
        """The event file."""
        return self.root / "events.jsonl"


class Store:
    """The artifacts under one folder (`.tunesmith`), shared safely by several processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hashes = HashCache(root / "store" / "content.json")

    @property
    def artifacts(self) -> Path:
        """Folder of the kinds."""
        return self.root / "store"

    @property
    def partials(self) -> Path:
        """Folder of the attempts."""
        return self.root / "store" / ".partial"

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.root / "runs"

    @property
    def refs(self) -> Path:
        """Folder of the refs."""
        return self.root / "refs"

    def place(self, kind: str, fingerprint: str) -> Path:
        """Return where an artifact stands or would stand."""
        return self.artifacts / kind / fingerprint

    def find(self, kind: str, fingerprint: str) -> Artifact | None:
        """Return a finished artifact, or None.

        Raises `StoreError` where its files are not those that its manifest names. Sizes are compared always, contents
        where a file is younger than the manifest.
        """
        root = self.place(kind, fingerprint)
        manifest = read_manifest(root)
        if manifest is None:
            return None
        artifact = Artifact(root=root, manifest=manifest)
        _check_unchanged(artifact)
        return artifact

    def all(self, kind: str | None = None) -> Iterator[Artifact]:
        """Yield the finished artifacts of a kind, or of all kinds, unchecked."""
        if not self.artifacts.is_dir():
            return
        kinds = sorted(self.artifacts.iterdir()) if kind is None else [self.artifacts / kind]
        for folder in kinds:
            if not folder.is_dir() or folder.name.startswith("."):
                continue
            for root in sorted(folder.iterdir()):
                manifest = read_manifest(root)
                if manifest is not None:
                    yield Artifact(root=root, manifest=manifest)

    @contextlib.contextmanager
    def attempt(self, kind: str, fingerprint: str, *, on_wait: Callable[[str], None]) -> Iterator[Attempt | Artifact]:
        """Hold the artifact's lock and yield an attempt, or the artifact where another process finished it meanwhile.

        `on_wait` is called with the holder's process id where the lock is taken. When the block fails, `data/` is
        emptied and `work/` kept. Raises `StoreError` for a full disk or a store that cannot be written.
        """
        root = self.partials / fingerprint
        with contextlib.ExitStack() as stack:
            with writing(self.root):
                self.partials.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(self.partials / f"{fingerprint}.lock", on_wait=on_wait))
            finished = self.find(kind, fingerprint)
            if finished is not None:
                yield finished
                return
            attempt = Attempt(root=root)
            with writing(self.root):
                _empty(attempt.data)
                (root / _MANIFEST).unlink(missing_ok=True)
                attempt.work.mkdir(parents=True, exist_ok=True)
            try:
                yield attempt
            except BaseException:
                shutil.rmtree(attempt.data, ignore_errors=True)
                raise

    def finish(self, attempt: Attempt, manifest: Manifest) -> Artifact:
        """Complete an attempt: outputs to disk and into the manifest, manifest last, then one rename.

        `manifest.outputs` and `manifest.digest` are filled in here. Raises `StoreError`.
        """
        with writing(self.root):
            outputs = tuple(_outputs(attempt.data))
            digest = sha256_hex("".join(f"{file.path}\0{file.sha256}\n" for file in outputs))
            manifest = dataclasses.replace(manifest, outputs=outputs, digest=digest)
            final = self.place(manifest.kind, manifest.fingerprint)
            final.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(attempt.root / _MANIFEST, json.dumps(_to_json(manifest), indent=1, ensure_ascii=False))
            sync_folder(attempt.root)
            os.rename(attempt.root, final)
            sync_folder(final.parent)
        shutil.rmtree(attempt.work, ignore_errors=True)
        return Artifact(root=final, manifest=manifest)


# ------------------------------------------------------------------------------------------------------ manifests


def read_manifest(root: Path) -> Manifest | None:
    """Return the manifest of a complete artifact directory, or None where there is none. Raises `StoreError`."""
    path = root / _MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError("cannot read an artifact", where=str(path), found=error.strerror or str(error)) from error
    try:
        value = json.loads(text)
        outputs = tuple(
            OutputFile(path=file["path"], num_bytes=file["bytes"], sha256=file["sha256"]) for file in value["outputs"]
        )
        return Manifest(**{**value, "outputs": outputs})
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            "an artifact's manifest is damaged",
            where=str(path),
            found=str(error),
            hint=f"remove the folder {root} and run again",
        ) from error


def _to_json(manifest: Manifest) -> dict[str, JSON]:
    value = {field.name: getattr(manifest, field.name) for field in dataclasses.fields(manifest)}
    value["outputs"] = [
        {"path": file.path, "bytes": file.num_bytes, "sha256": file.sha256} for file in manifest.outputs
    ]
    return value


def _outputs(data: Path) -> Iterator[OutputFile]:
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data).as_posix()
        assert not path.is_symlink(), f"an artifact holds files, not links: {name}"
        if path.is_dir():
            sync_folder(path)
            continue
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        yield OutputFile(path=name, num_bytes=path.stat().st_size, sha256=sha256)
    sync_folder(data)


def _check_unchanged(artifact: Artifact) -> None:
    sealed_ns = (artifact.root / _MANIFEST).stat().st_mtime_ns
    for file in artifact.manifest.outputs:
        path = artifact.path / file.path
        try:
            stat = path.stat()
            changed = stat.st_size != file.num_bytes or (
                stat.st_mtime_ns > sealed_ns and file_sha256(path) != file.sha256
            )
        except FileNotFoundError:
            changed = True
        if changed:
            raise StoreError(
                f"a file of the artifact {artifact.kind} {artifact.fingerprint[:12]} was changed after it was made",
                where=str(path),
                expected=f"{file.num_bytes} bytes with sha256 {file.sha256[:12]}",
                found=f"{path.stat().st_size} bytes" if path.exists() else "no file",
                hint=f"remove the folder {artifact.root} and run again to make it anew",
            )


def verify(artifact: Artifact) -> None:
    """Read every output of an artifact again. Raises `StoreError` naming the first file that differs."""
    for file in artifact.manifest.outputs:
        path = artifact.path / file.path
        found = file_sha256(path) if path.exists() else "no file"
        if found != file.sha256:
            raise StoreError(
                f"a file of the artifact {artifact.kind} {artifact.fingerprint[:12]} is damaged",
                where=str(path),
                expected=f"sha256 {file.sha256}",
                found=found,
                hint=f"remove the folder {artifact.root} and run again to make it anew",
            )


def _empty(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
