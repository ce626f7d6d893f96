"""Is what lies on disk the model that was trained? Reload it in a fresh model and compare.

What lives here: the comparison after the save, before a run is called a success. What does not: the comparison of the
files' tensors with the live ones (`model.lora.save_adapter`, `model.full.save_model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.errors import TrainingError
from tunesmith.model.load import DtypeName, apply_adapter, is_whole_model, load_model, torch_dtype
from tunesmith.model.quantised import cast_, read_record
from tunesmith.train.batches import flatten
from tunesmith.train.examples import ExampleTable
from tunesmith.train.passes import LOSS_TOLERANCE, DocumentPass, LossPass, base_of, proof_examples
from tunesmith.types import JSON

Reference = Literal["float32", "own dtype"]

LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest norm of the difference of logits, relative to their norm: live model against reloaded one."""


def live_logits(model: torch.nn.Module, table: ExampleTable) -> list[torch.Tensor]:
    """Return what a model computes on the proof's examples of a table: float32 `[1, tokens, vocabulary]` for each."""
    return _logits(model, _proof_tokens(table, next(model.parameters()).device))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBack:
    """What lies on disk, on a few examples."""

    base_logits: list[torch.Tensor]
    logits: list[torch.Tensor]
    loss: float
    """In the dtype of training."""
    loss_float32: float
    """Of the same weights."""


def read_back(folder: Path, *, base_dir: Path, dtype: DtypeName, device: torch.device, table: ExampleTable) -> ReadBack:
    """Load what was saved into a fresh model and compute with it; one model is in memory at a time."""
    tokens = _proof_tokens(table, device)
    base: Any = load_model(base_dir, dtype=dtype, quantisation=read_record(folder)).to(device)
    base_logits = _logits(base, tokens)
    if is_whole_model(folder):
        del base
        reloaded = load_model(folder, dtype=dtype).to(device)
    else:
        reloaded = apply_adapter(base, folder)
    logits = _logits(reloaded, tokens)
    loss = loss_float32 = proof_loss(DocumentPass(reloaded, attention="sdpa"), table, device=device)
    if dtype != "float32":
        cast_(reloaded.float(), torch.float32)
        loss_float32 = proof_loss(DocumentPass(reloaded, attention="sdpa"), table, device=device)
    return ReadBack(base_logits=base_logits, logits=logits, loss=loss, loss_float32=loss_float32)


def verify_trained(
    folder: Path,
    saved: ReadBack,
    *,
    live: Sequence[torch.Tensor],
    trained_loss: float,
    reference: Reference,
    dtype: DtypeName,
) -> dict[str, JSON]:
    """Return how what was saved compares with what was trained, on a few examples.

    `live` are the trained model's `live_logits`, and `trained_loss` the examples' `proof_loss` as training computes it:
    the model itself is not needed any more.

    The loss of the reloaded model is the one that training computed, in the dtype of `reference`. PEFT in bfloat16 adds
    the adapter's output to an already rounded product and loses the small updates of a young adapter (measured: 1.22
    against 1.09 after six steps). A pass that folds the adapter into the product does not, and is held to the same
    weights in float32; one over transformers' own layers does the same, and is held to the reloaded model in its own
    dtype. Both losses are returned, as `loss_float32` and `loss_reloaded`; `rounding_warning` words a difference.

    Raises `TrainingError` where the reloaded logits are not the live model's, where the loss is not what training
    computed, or where the base model computes the same.
    """
    compute = torch_dtype(dtype)
    difference = max(_relative(mine, theirs) for mine, theirs in zip(saved.logits, live, strict=True))
    moved = max(_relative(mine, theirs) for mine, theirs in zip(saved.logits, saved.base_logits, strict=True))
    if not difference <= LOGIT_TOLERANCE[compute]:
        raise TrainingError(
            "the saved weights do not compute what the trained model computes",
            where=str(folder),
            expected=f"logits within {LOGIT_TOLERANCE[compute]:g}",
            found=f"{difference:.2e}",
        )
    if moved == 0.0:
        raise TrainingError("the saved weights change nothing: their logits are the base model's", where=str(folder))
    compared = saved.loss_float32 if reference == "float32" else saved.loss
    if not _close(compared, trained_loss, compute):
        raise TrainingError(
            f"the reloaded model's {reference} loss is not the one that training computed",
            where=str(folder),
            expected=f"{trained_loss:.4f}",
            found=f"{compared:.4f}",
        )
    return {
        "logit_difference": difference,
        "logit_change_from_base": moved,
        "loss_live": trained_loss,
        "loss_float32": saved.loss_float32,
        "loss_reloaded": saved.loss,
        "examples": len(live),
    }


def rounding_warning(verified: Mapping[str, JSON], dtype: DtypeName) -> list[str]:
    """Return what to say where training computed another loss than its weights have in float32."""
    trained, exact = verified["loss_live"], verified["loss_float32"]
    if _close(exact, trained, torch_dtype(dtype)):
        return []
    return [
        f"training computed a loss of {trained:.3f} where float32 computes {exact:.3f}: in {dtype} this pass rounds "
        "small updates away; train.dtype: float32 does not"
    ]


def _close(mine: float, theirs: float, dtype: torch.dtype) -> bool:
    return abs(mine - theirs) <= LOSS_TOLERANCE[dtype] * max(1.0, abs(theirs))


def proof_loss(loss_pass: LossPass, table: ExampleTable, *, device: torch.device) -> float:
    """Return the mean loss of the proof's examples of a table; every process of a sharded run must ask for it."""
    batch = flatten(table, proof_examples(table), share_prefixes=loss_pass.shares_prefixes, device=device)
    with torch.no_grad():
        return float(loss_pass.loss(batch, denominator=float(batch.weights.sum())))


def _proof_tokens(table: ExampleTable, device: torch.device) -> list[torch.Tensor]:
    """Return ids `[1, tokens]` of each of the proof's examples."""
    return [
        torch.tensor(table.example(index)[0], dtype=torch.int64, device=device)[None] for index in proof_examples(table)
    ]


def _logits(model: torch.nn.Module, tokens: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return float32 logits of each document, through transformers' own attention."""
    base: Any = base_of(model)
    base.set_attn_implementation("sdpa")
    with torch.no_grad():
        return [base(input_ids=ids, use_cache=False).logits.float() for ids in tokens]


def _relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12))
