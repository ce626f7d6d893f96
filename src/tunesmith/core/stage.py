"""Stage: a function with a name, a version, typed inputs and settings.

    class TrainInputs(Inputs):
        examples: Artifact = role("examples", table="encode")
        base: Artifact = role("base", table="fetch")

    @stage(name="train", version=1, produces="adapter")
    def train(inputs: TrainInputs, spec: TrainSpec, ctx: Context) -> Summary: ...

`Inputs` names roles, `Spec` is identity, `Context` is circumstance and never enters identity.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.types import JSON, LOCAL_ENGINE, EngineChoice, Log

Summary = Mapping[str, JSON]
"""The figures of a finished stage, shown by `tunesmith show --json`."""


def role(kind: str, *, table: str, optional: bool = False) -> Any:
    """Declare an input: the artifact kind it takes and the recipe table that feeds it unless the recipe wires another.

    An optional role is `None` where the recipe has no such table. Annotate it `Artifact`, or `Artifact | None`.
    """
    extra: dict[str, Any] = {"kind": kind, "table": table, "optional": optional}
    return Field(default=None, json_schema_extra=extra) if optional else Field(json_schema_extra=extra)


class Inputs(BaseModel):
    """Roles of a stage. A stage without inputs declares an empty subclass."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Progress(Protocol):
    """Show how far a stage is: `ctx.progress(done, total, "1,204 rows", loss=1.2)`."""

    def __call__(self, done: float, total: float | None, note: str = "", **fields: JSON) -> None:
        """Say that `done` of `total` is reached; `total` is None where it is not known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Circumstance of one execution. Nothing here changes what a stage computes."""

    out: Path
    """Empty directory; what is written here becomes the artifact's `data/`."""
    work: Path
    """Survives a crash of the same fingerprint (checkpoints live here); removed when the stage completes."""
    log: Log
    """Writes one JSON line to `events.jsonl`."""
    progress: Progress
    workers: int
    device: str
    """`cpu` or `cuda`; `auto` was resolved before."""
    engine: EngineChoice = LOCAL_ENGINE
    """Where parts of the work run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a stage will need, and what that figure rests on."""

    seconds: float | None
    memory_bytes: int | None
    basis: str
    """For example `probe: 3 steps of the longest batch`, or `unknown until encode has run`."""
    notes: tuple[str, ...] = ()
    """What else a plan should say of it, a line each."""


StageFunction = Callable[[Any, Any, Context], Summary]
Check = Callable[[Any, Mapping[str, Artifact | None]], list[str]]
"""(spec, inputs) -> warnings; raises PlanError for what is known to fail.

An input that is not made yet is `None`; a role that no table feeds is absent.
"""
Estimator = Callable[[Any, Mapping[str, Artifact | None], str], Estimate]
"""(spec, inputs, device of the run) -> what it will take; inputs as for a check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A registered stage."""

    name: str
    version: int
    produces: str
    function: StageFunction
    spec_type: type[Spec]
    inputs_type: type[Inputs]
    check: Check | None
    estimate: Estimator | None

    @property
    def roles(self) -> dict[str, dict[str, Any]]:
        """Role name -> {kind, table, optional}."""
        out = {}
        for name, field in self.inputs_type.model_fields.items():
            extra = field.json_schema_extra
            assert isinstance(extra, dict), f"{self.name}.{name} is not declared with role()"
            out[name] = dict(extra)
        return out


_REGISTRY: dict[str, Stage] = {}


def stage(
    *,
    name: str,
    version: int,
    produces: str,
    check: Check | None = None,
    estimate: Estimator | None = None,
) -> Callable[[StageFunction], StageFunction]:
    """Register a function as a stage. Its first two parameters' annotations give inputs and spec types.

    Bump `version` whenever the same inputs and settings may give other outputs.
    """

    def register(function: StageFunction) -> StageFunction:
        assert name not in _REGISTRY or _REGISTRY[name].function.__qualname__ == function.__qualname__, name
        hints = typing.get_type_hints(function)
        inputs_name, spec_name, *_ = inspect.signature(function).parameters
        _REGISTRY[name] = Stage(
            name=name,
            version=version,
            produces=produces,
            function=function,
            spec_type=hints[spec_name],
            inputs_type=hints[inputs_name],
            check=check,
            estimate=estimate,
        )
        return function

    return register


def registered() -> dict[str, Stage]:
    """Return all stages that were imported, by name."""
    return dict(_REGISTRY)
