"""`run_stage`: run one registered stage into a store of the test's own, through the kernel that users run.

    def test_curate_keeps_the_reason(run_stage, tmp_path):
        rows = run_stage("ingest", {}, {"sources": ["a.jsonl"]}, tmp_path)        # Artifact
        kept = run_stage("curate", {"rows": rows}, {}, tmp_path)

Relative content paths count from `tmp_path`. Running the same stage twice with the same inputs and settings returns the
stored artifact, as for a user; give another `tmp_path` to run it again. `engine` says where its parts run.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tunesmith.core.artifact import Artifact
from tunesmith.core.events import Silent
from tunesmith.core.run import Job, Machine, make
from tunesmith.core.stage import registered
from tunesmith.core.store import Store, fingerprint_of
from tunesmith.stages import load_stages
from tunesmith.types import JSON, LOCAL_ENGINE, EngineChoice

RunStage = Callable[..., Artifact]


@pytest.fixture(scope="session")
def run_stage() -> RunStage:
    return _run_stage


def _run_stage(
    name: str,
    inputs: Mapping[str, Artifact | None],
    spec_dict: Mapping[str, JSON],
    tmp_path: Path,
    *,
    engine: EngineChoice = LOCAL_ENGINE,
) -> Artifact:
    if importlib.util.find_spec(f"tunesmith.stages.{name}"):
        importlib.import_module(f"tunesmith.stages.{name}")
    stage = registered().get(name) or load_stages()[name]
    unknown = set(inputs) - set(stage.roles)
    assert not unknown, f"{name} has no role {unknown}; it has {sorted(stage.roles)}"
    for role, declared in stage.roles.items():
        given = inputs.get(role)
        assert given is not None or declared["optional"], f"{name} needs {role}"
        assert given is None or given.kind == declared["kind"], f"{name}.{role} takes {declared['kind']}"
    spec = stage.spec_type.model_validate(dict(spec_dict))
    spec = spec.with_paths(lambda loc, path: str((tmp_path / path).resolve()))
    store = Store(tmp_path / ".tunesmith")
    fed = {role: inputs.get(role) for role in stage.roles}
    job = Job(
        table=name,
        stage=stage,
        spec=spec,
        settings=spec.settings(lambda path: Path(path).name),
        fingerprint=fingerprint_of(
            stage,
            spec.identity(store.hashes.sha256_of),
            inputs={role: artifact.fingerprint if artifact else None for role, artifact in fed.items()},
        ),
        inputs=fed,
        folder=tmp_path,
    )
    artifact, _ = make(job, store, listener=Silent(), machine=Machine(device="cpu", workers=2, engine=engine))
    return artifact
