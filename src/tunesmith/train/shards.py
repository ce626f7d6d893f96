"""Tensors of a sharded run on disk: every process writes the slices it holds, any number of processes reads them.

    shards/shard-00001-model-00001-of-00001.safetensors    slices of the first process, with their offsets
    shards/shard-00002-model-00001-of-00001.safetensors

What lives here: torch's distributed checkpoint (DCP) in its safetensors form, which holds no pickles. What does not:
what a checkpoint consists of and when it is complete (`train.checkpoint`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

FOLDER = "shards"


def mesh_for_writing() -> DeviceMesh:
    """Return a mesh of all processes in main memory, with a group of its own. Every process calls this.

    A thread that writes must not share a group with the training: their calls would meet in any order.
    """
    mesh: DeviceMesh = DeviceMesh.from_group(dist.new_group(backend="gloo"), "cpu")
    return mesh


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], mesh: DeviceMesh | None) -> None:
    """Write the slices of sharded tensors, and whole ones once. Every process calls this with the same names.

    The processes speak through the group of `mesh`, or the default one.
    """
    _quieten()
    group = None if mesh is None else mesh.get_group()
    dist.barrier(group)  # The folder is there.
    writer = HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True)
    save(dict(tensors), storage_writer=writer, process_group=group)


def read_shards(folder: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors by name, sliced as those of `like` are. Every process calls this with the same names."""
    _quieten()
    tensors = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    load(tensors, storage_reader=HuggingFaceStorageReader(str(folder / FOLDER)))
    return tensors


def shapes_in(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and number format of every tensor in the files; a missing file shows as a smaller shape."""
    held = HuggingFaceStorageReader(str(folder / FOLDER)).read_metadata().state_dict_metadata
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in held.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def sliced_as(tensor: torch.Tensor, own: torch.Tensor, mesh: DeviceMesh | None = None) -> torch.Tensor:
    """Return the sharded tensor of which `own` is this process's slice, shaped as `tensor`.

    It lies on `mesh`, or where `tensor` does.
    """
    if not isinstance(tensor, DTensor):
        return own
    mesh = mesh or tensor.device_mesh
    return DTensor.from_local(
        own.to(mesh.device_type),
        mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def _quieten() -> None:
    """DCP warns of every planner it chooses itself."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
