"""Training in several processes: the settings, what is known to be wrong with them, and the launch.

    train:
      parallel: {kind: sharded, processes: 4}
      parallel: {kind: sharded, processes: 16, machines: {count: 2, address: "10.0.0.1:29500"}}

What lives here: `train.parallel` and the way from a stage to its processes and back. What does not: what one process
does (`stages.train.train_process`, started by `stages.training_rank`), watching processes (`train.launch`), the other
machines (`stages.training_machines`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Estimate, Summary
from tunesmith.errors import PlanError, TrainingError
from tunesmith.types import JSON

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from tunesmith.stages.training import TrainSpec
    from tunesmith.stages.training_model import Assembled
    from tunesmith.train.messages import Mailbox
    from tunesmith.train.world import World

FOLDER = "processes"
"""Requests, logs and messages of the processes, in the stage's work folder."""

REQUEST, RESULT = "request.json", "result.json"


class Machines(Spec):
    """The machines of a run without Ray: this one, and those on which `tunesmith join ADDRESS` runs."""

    count: int = Field(ge=2)
    """How many machines share the processes, equally."""
    address: str
    """HOST:PORT of the machine that runs `tunesmith run`, at which the others find it. Whoever reaches it can run code
    in the run: use a network of your own."""


class _Processes(Spec):
    """Where a run's processes stand, and what they do with the checkpoint of others."""

    processes: int = Field(ge=1)
    """How many processes compute each step together; on GPUs, one for each."""
    machines: Machines | None = None
    """Several machines without Ray, which share one store. Under `engine: ray` the cluster places the processes."""
    other_world: Literal["refuse", "reshard"] = "refuse"
    """A checkpoint that another number of processes wrote is refused, or divided anew. The loss stays the same to
    rounding; bit for bit the run is then another."""


class Replicated(_Processes):
    """Every process holds all weights."""

    kind: Literal["replicated"]
    """Every process holds all weights and computes its share of each step's rows: for adapters, and small models."""


class Sharded(_Processes):
    """Every process holds a slice of every weight."""

    kind: Literal["sharded"]
    """Every process holds a slice of every weight, gathered layer by layer (FSDP2): for models too large for one."""


ParallelSpec = Annotated[Replicated | Sharded, Field(discriminator="kind")]


def check_parallel(spec: TrainSpec) -> list[str]:
    """Refuse what cannot run in several processes, and warn of processes without work."""
    parallel = spec.parallel
    if parallel is None:
        return []
    if isinstance(parallel, Sharded) and spec.optimizer.kind in ("muon", "adafactor", "adamw_8bit"):
        raise PlanError(
            f"{spec.optimizer.kind} needs whole matrices, and a sharded run has slices of them",
            where="train.optimizer",
            expected="adamw or sgd with train.parallel: {kind: sharded}",
            hint="set train.optimizer to {kind: adamw}, or train.parallel to {kind: replicated}",
        )
    if isinstance(parallel, Sharded) and spec.quantisation is not None:
        raise PlanError(
            "a quantised base cannot be sliced over processes: its blocks have scales of their own",
            where="train.parallel",
            expected="{kind: replicated} with train.adapter.quantization",
            hint="set train.parallel.kind to replicated, or leave the base as it is",
        )
    if isinstance(parallel, Sharded) and spec.task_metric is not None:
        raise PlanError(
            "a model in slices cannot answer while it trains",
            where="train.task_metric",
            hint="leave the key out, or set train.parallel.kind to replicated",
        )
    if parallel.machines is not None:
        _check_machines(parallel.processes, parallel.machines)
    if parallel.processes > spec.batch_size:
        return [
            f"{parallel.processes} processes share steps of {spec.batch_size} rows: "
            f"{parallel.processes - spec.batch_size} of them have nothing to do"
        ]
    return []


def _check_machines(processes: int, machines: Machines) -> None:
    from tunesmith.train.meeting import split_address

    if processes % machines.count:
        raise PlanError(
            "the machines cannot share the processes equally",
            where="train.parallel.processes",
            expected=f"a multiple of {machines.count}, the number of machines",
            found=str(processes),
        )
    try:
        split_address(machines.address)
    except TrainingError as error:
        raise PlanError(
            error.what, where="train.parallel.machines.address", expected=error.expected, found=machines.address
        ) from error


def in_processes(alone: Estimate, parallel: Replicated | Sharded | None) -> Estimate:
    """Return what a plan says of a run in several processes, from what one process alone would need.

    A process with all weights needs the memory of one alone. What one with slices needs, and what several gain in time,
    depends on the machine: it is left unknown rather than guessed.
    """
    if parallel is None:
        return alone
    time = "" if alone.seconds is None else f" {alone.seconds:,.0f} s"
    on = "" if parallel.machines is None else f" on {parallel.machines.count} machines"
    world = f"{parallel.processes} processes{on}, weights {parallel.kind}, memory of each"
    return Estimate(
        seconds=None,
        memory_bytes=alone.memory_bytes if isinstance(parallel, Replicated) else None,
        basis=f"{world}; one alone{time}: {alone.basis}",
    )


def mesh_of(world: World, device: str) -> DeviceMesh | None:
    """Return the mesh over which a sharded world slices weights, `None` for other worlds."""
    from torch.distributed.device_mesh import init_device_mesh

    if world.layout != "sharded":
        return None
    return init_device_mesh(device.partition(":")[0], (world.size,))


def with_whole_weights(made: Assembled, world: World, assembled: Callable[[], Assembled]) -> Assembled | None:
    """Return what one process can save: the model itself, or where it is sliced a whole one with its weights.

    Every process calls this; `None` in those that do not save. `assembled` makes a whole model.
    """
    import torch

    from tunesmith.train.world import whole

    if made.sharded is None:
        return made if world.leads else None
    copy = assembled() if world.leads else None
    with torch.no_grad():
        for name, parameter in made.parameters.items():
            tensor = whole(parameter)
            if copy is not None:
                copy.parameters[name].copy_(tensor)
    if copy is not None:
        copy.publish()
        copy.model.eval()
    return copy


def train_in_processes(spec: TrainSpec, *, base: Path, examples: Path, contract: Path, ctx: Context) -> Summary:
    """Run the stage in the processes that the recipe asks for, and return what the first of them returned."""
    from tunesmith.train.messages import Mailbox

    assert spec.parallel is not None
    num_machines = 1 if spec.parallel.machines is None else spec.parallel.machines.count
    if ctx.engine.kind == "ray" and num_machines > 1:
        raise PlanError(
            "engine: ray places the processes on its cluster's machines itself",
            where="train.parallel.machines",
            hint="leave the key out, or set engine to local",
        )
    folder = ctx.work / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    request = {
        "spec": spec.model_dump(mode="json"),
        "base": str(base),
        "examples": str(examples),
        "contract": str(contract),
        "out": str(ctx.out),
        "work": str(ctx.work),
        "device": ctx.device,
        "workers": ctx.workers,
        "threads": max(1, (os.cpu_count() or 1) * num_machines // spec.parallel.processes),
    }
    path = folder / REQUEST
    path.write_text(json.dumps(request), "utf-8")
    mailbox = Mailbox(folder, log=ctx.log, progress=ctx.progress)
    start = _on_ray if ctx.engine.kind == "ray" else _from_this_machine
    restarts = start(path, spec.parallel, mailbox, ctx)
    summary: dict[str, JSON] = json.loads((folder / RESULT).read_text("utf-8"))
    return {**summary, "processes": spec.parallel.processes, "weights": spec.parallel.kind, "restarts": restarts}


def _from_this_machine(request: Path, parallel: Replicated | Sharded, mailbox: Mailbox, ctx: Context) -> int:
    """Start the processes under torch's elastic agent; return how often they were started again."""
    from tunesmith.stages.training_machines import code_of_training, command_of
    from tunesmith.train.launch import launch

    machines = parallel.machines
    return launch(
        command_of(request),
        processes=parallel.processes,
        folder=request.parent,
        mailbox=mailbox,
        log=ctx.log,
        machines=1 if machines is None else machines.count,
        address=None if machines is None else machines.address,
        request=str(request),
        code=() if machines is None else code_of_training(),
    )


def _on_ray(request: Path, parallel: Replicated | Sharded, mailbox: Mailbox, ctx: Context) -> int:
    """Start the processes as workers of Ray Train; return how often they were started again."""
    from tunesmith.cluster import cluster, is_loopback
    from tunesmith.stages.training_rank import take_part_on_ray
    from tunesmith.train.ray_launch import launch_on_ray

    processes = parallel.processes
    with cluster(ctx.engine, num_workers=processes) as num_workers:
        if num_workers < processes:
            raise PlanError(
                "the engine has fewer workers than the run has processes",
                where="engine.num_workers",
                expected=f"at least {processes}",
                found=str(num_workers),
                hint="raise engine.num_workers, or lower train.parallel.processes",
            )
        return launch_on_ray(
            take_part_on_ray,
            {"request": str(request)},
            processes=processes,
            use_gpu=ctx.device != "cpu",
            on_loopback=ctx.engine.address is None or is_loopback(ctx.engine.address.rpartition(":")[0]),
            folder=request.parent,
            mailbox=mailbox,
            log=ctx.log,
        )
