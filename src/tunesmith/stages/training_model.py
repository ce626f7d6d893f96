"""The model, optimizer and way of saving that the settings of the `train` stage describe.

What lives here: `assemble`, which both the stage and the probe of a plan use. What does not: the settings and their
checks (`stages.training`), the engine (`train`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.stages.training import Dora, Full, Lora, TrainSpec
from tunesmith.stages.training_optimizers import settings_of

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from tunesmith.model.load import DtypeName
    from tunesmith.model.sharding import ShardedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A model ready to train."""

    model: torch.nn.Module
    parameters: Mapping[str, torch.nn.Parameter]
    """What the optimizer changes, float32."""
    optimizer: torch.optim.Optimizer
    publish: Callable[[], None]
    """Carry the parameters into the model, where it holds rounded copies."""
    save: Callable[[Path], None]
    """Write what was trained into a folder, and check the folder against the live model, which is not sharded."""
    sharded: ShardedModel | None = None
    """What gathers the model's weights, where they are sharded."""


def assemble(
    spec: TrainSpec, *, base_dir: Path, base_name: str, dtype: DtypeName, device: str, mesh: DeviceMesh | None = None
) -> Assembled:
    """Load the base and make trainable what the settings say; slice it over the processes of a mesh.

    A model that is sliced and trained whole keeps float32 weights, rounded to `dtype` where they compute.
    """
    import torch

    from tunesmith.model import full, lora
    from tunesmith.model.load import load_model, torch_dtype
    from tunesmith.model.sharding import shard_
    from tunesmith.train import optim
    from tunesmith.train.passes import base_of

    torch.manual_seed(spec.seed)
    masters_are_slices = mesh is not None and isinstance(spec.adapter, Full)
    model = load_model(base_dir, dtype="float32" if masters_are_slices else dtype, quantisation=spec.quantisation)
    if mesh is None:
        model.to(device)
    ratio = 1.0
    adapter = spec.adapter
    parameters: Mapping[str, torch.nn.Parameter]
    if isinstance(adapter, Full):
        parameters, publish = full.train_all_(model)

        def save(folder: Path) -> None:
            full.save_model(model, folder, base_dir=base_dir)
    else:
        adapted = lora.add_lora(
            model,
            rank=adapter.rank,
            alpha=adapter.alpha,
            dropout=adapter.dropout,
            targets=adapter.targets,
            scaling=adapter.scaling if isinstance(adapter, Lora) else "classic",
            decomposition="dora" if isinstance(adapter, Dora) else "none",
            seed=spec.seed,
        )
        ratio = adapter.lora_plus_ratio if isinstance(adapter, Lora) else 1.0
        parameters = lora.adapter_parameters(adapted)
        model = adapted

        def publish() -> None:
            """The adapters are float32 themselves."""

        def save(folder: Path) -> None:
            lora.save_adapter(adapted, folder, base_name=base_name, quantisation=spec.quantisation)

    sharded = None
    if mesh is not None:
        sharded = shard_(base_of(model), mesh, compute_dtype=torch_dtype(dtype) if masters_are_slices else None)
        parameters = lora.adapter_parameters(model)
    groups = optim.parameter_groups(parameters, weight_decay=spec.weight_decay, lora_plus_ratio=ratio)
    optimizer = optim.make(spec.optimizer.kind, groups, **settings_of(spec.optimizer))
    return Assembled(
        model=model, parameters=parameters, optimizer=optimizer, publish=publish, save=save, sharded=sharded
    )
