"""Is what lies on disk the model that was trained? Reload it in a fresh model and compare.

What lives here: the comparison after the save, before a run is called a success. What does not: the comparison of the
files' tensors with the live ones (`model.lora.save_adapter`, `model.full.save_model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from tunesmith.errors import TrainingError
from tunesmith.model.load import DtypeName, load_model, torch_dtype
from tunesmith.model.quantised import read_record
from tunesmith.train.batches import flatten
from tunesmith.train.examples import ExampleTable
from tunesmith.train.passes import LOSS_TOLERANCE, DocumentPass, LossPass, base_of, proof_examples
from tunesmith.types import JSON

Reference = Literal["float32", "own dtype"]

LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest norm of the difference of logits, relative to their norm: live model against reloaded one."""


def verify_trained(
    model: torch.nn.Module,
    folder: Path,
    *,
    base_dir: Path,
    dtype: DtypeName,
    trained_loss: float,
    reference: Reference,
    table: ExampleTable,
) -> dict[str, JSON]:
    """Return how what was saved compares with what was trained, on a few examples of `table`.

    `trained_loss` is their `proof_loss` as training computes it.

    The loss of the reloaded model is the one that training computed, in the dtype of `reference`. PEFT in bfloat16 adds
    the adapter's output to an already rounded product and loses the small updates of a young adapter (measured: 1.22
    against 1.09 after six steps). A pass that folds the adapter into the product does not, and is held to float32; one
    over transformers' own layers does the same, and is held to the reloaded model in its own dtype. Both losses are
    returned, as `loss_float32` and `loss_reloaded`; `rounding_warning` words a difference.

    Raises `TrainingError` where the reloaded logits are not the live model's, where the loss is not what training
    computed, or where the base model computes the same.
    """
    examples = proof_examples(table)
    device = next(model.parameters()).device
    compute = torch_dtype(dtype)
    tokens = [torch.tensor(table.example(index)[0], dtype=torch.int64, device=device)[None] for index in examples]
    live = _logits(model, tokens)
    base = load_model(base_dir, dtype=dtype, quantisation=read_record(folder))
    plain = _logits(base.to(device), tokens)
    del base
    reloaded = load_model(base_dir, dtype=dtype, adapter_dir=folder).to(device)
    saved = _logits(reloaded, tokens)
    difference = max(_relative(mine, theirs) for mine, theirs in zip(saved, live, strict=True))
    moved = max(_relative(mine, theirs) for mine, theirs in zip(saved, plain, strict=True))
    reloaded_loss = proof_loss(DocumentPass(reloaded, attention="sdpa"), table, device=device)
    saved_loss = reloaded_loss
    if compute is not torch.float32:
        del reloaded
        exact = load_model(base_dir, dtype="float32", adapter_dir=folder).to(device)
        saved_loss = proof_loss(DocumentPass(exact, attention="sdpa"), table, device=device)
    if not difference <= LOGIT_TOLERANCE[compute]:
        raise TrainingError(
            "the saved weights do not compute what the trained model computes",
            where=str(folder),
            expected=f"logits within {LOGIT_TOLERANCE[compute]:g}",
            found=f"{difference:.2e}",
        )
    if moved == 0.0:
        raise TrainingError("the saved weights change nothing: their logits are the base model's", where=str(folder))
    compared = saved_loss if reference == "float32" else reloaded_loss
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
        "loss_float32": saved_loss,
        "loss_reloaded": reloaded_loss,
        "examples": len(examples),
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


def _logits(model: torch.nn.Module, tokens: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return float32 logits of each document, through transformers' own attention."""
    base: Any = base_of(model)
    base.set_attn_implementation("sdpa")
    with torch.no_grad():
        return [base(input_ids=ids, use_cache=False).logits.float() for ids in tokens]


def _relative(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((mine - theirs).norm() / theirs.norm().clamp_min(1e-12))
