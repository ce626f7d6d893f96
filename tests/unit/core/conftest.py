"""Toy stages for the kernel's tests, kept apart from the real ones by a registry of their own."""

import errno
import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from tunesmith.core import stage as stage_module
from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Inputs, Stage, role, stage
from tunesmith.core.store import Store
from tunesmith.errors import PlanError


class NumberSpec(Spec):
    value: float = Field(1.0, ge=0)
    """The number."""
    file: ContentPath | None = None
    """A file that holds the number instead."""
    files: tuple[ContentPath, ...] = ()
    """More files, added up."""


class NoInputs(Inputs):
    pass


class Slow(Spec):
    kind: Literal["slow"]
    """Tag."""
    factor: int = 2
    """Multiplier."""


class Quick(Spec):
    kind: Literal["quick"]
    """Tag."""
    shift: int = 0
    """Addend."""


class DoubleSpec(Spec):
    how: Annotated[Slow | Quick, Field(discriminator="kind")] = Slow(kind="slow")
    """Which way."""
    note: str = ""
    """Free text."""
    rate: float = Field(2e-4, gt=0)
    """A rate."""
    verbose: bool = False
    """Says more."""
    ranks: tuple[int, ...] = ()
    """Some ranks."""
    names: dict[str, int] = Field(default_factory=dict)
    """Some names."""
    fail: Literal["no", "error", "kill", "interrupt", "full", "term"] = "no"
    """How to end."""
    megabytes: int = 0
    """How much to write."""
    meet: str | None = None
    """Folder where to say `started` and wait for `go`."""


class DoubleInputs(Inputs):
    number: Artifact = role("number", table="number")


class SumInputs(Inputs):
    left: Artifact = role("number", table="number")
    right: Artifact | None = role("number", table="double", optional=True)


class SumSpec(Spec):
    forbid: bool = False
    """Refuse at plan time."""


def read(artifact: Artifact) -> float:
    return float((artifact.path / "number.txt").read_text())


def run_number(inputs: NoInputs, spec: NumberSpec, ctx: Context) -> dict:
    value = sum(float(Path(file).read_text()) for file in [*([spec.file] if spec.file else []), *spec.files])
    (ctx.out / "number.txt").write_text(str(value or spec.value))
    return {"value": value or spec.value}


def run_double(inputs: DoubleInputs, spec: DoubleSpec, ctx: Context) -> dict:
    tries = ctx.work / "tries"
    tries.write_text((tries.read_text() if tries.exists() else "") + "x")
    (ctx.out / "part.txt").write_text("half")
    ctx.log("doubling", {"rate": spec.rate})
    ctx.progress(1, 2, "half", loss=1.5)
    if spec.meet is not None:
        (Path(spec.meet) / f"started-{os.getpid()}").touch()
        while not (Path(spec.meet) / "go").exists():
            time.sleep(0.01)
    if spec.megabytes:
        (ctx.out / "big.bin").write_bytes(bytes(spec.megabytes << 20))
    if spec.fail == "full":
        raise OSError(errno.ENOSPC, "No space left on device", str(ctx.out / "big.bin"))
    if spec.fail == "error":
        raise ValueError("this toy fails")
    if spec.fail == "interrupt":
        raise KeyboardInterrupt
    if spec.fail == "term":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    if spec.fail == "kill" and len(tries.read_text()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    (ctx.out / "part.txt").unlink()
    (ctx.out / "number.txt").write_text(str(2 * read(inputs.number)))
    ctx.progress(2, 2)
    return {"value": 2 * read(inputs.number), "tries": len(tries.read_text())}


def run_add(inputs: SumInputs, spec: SumSpec, ctx: Context) -> dict:
    total = read(inputs.left) + (read(inputs.right) if inputs.right else 0)
    (ctx.out / "sum.txt").write_text(str(total))
    return {"value": total}


def check_add(spec: SumSpec, inputs: dict) -> list[str]:
    if spec.forbid:
        raise PlanError("adding is forbidden")
    return [] if inputs.get("right") else ["adds one number only"]


def register() -> None:
    stage(name="number", version=1, produces="number")(run_number)
    stage(name="double", version=1, produces="number")(run_double)
    stage(name="add", version=1, produces="sum", check=check_add)(run_add)


RECIPE = """
name: toy
number:
  value: 3
double:
  rate: 1e-3
add:
  forbid: false
"""


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Stage]]:
    """The toy stages, alone in the registry."""
    monkeypatch.setattr(stage_module, "_REGISTRY", {})
    register()
    return stage_module.registered()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / ".tunesmith")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(textwrap.dedent(RECIPE).lstrip())
    return path
