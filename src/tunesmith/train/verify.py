"""Is the adapter on disk the model that was trained? Reload it into a fresh base and compare.

What lives here: the comparison after the save, before a run is called a success. What does not: the comparison of the
file's bytes with the live tensors (`model.lora.save_adapter`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from tunesmith.errors import TrainingError
from tunesmith.model.load import DtypeName, load_model, torch_dtype
from tunesmith.train.batches import flatten
from tunesmith.train.examples import ExampleTable
from tunesmith.train.passes import LOSS_TOLERANCE, DocumentPass, LossPass, base_of, proof_examples
from tunesmith.types import JSON

LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest norm of the difference of logits, relative to their norm: live model against reloaded one."""


def verify_adapter(
    model: PeftModel,
    folder: Path,
    *,
    base_dir: Path,
    dtype: DtypeName,
    loss_pass: LossPass,
    table: ExampleTable,
) -> dict[str, JSON]:
    """Return how the reloaded adapter compares, on a few examples of `table`.

    The loss is compared in float32, whatever training ran in: PEFT in bfloat16 adds the adapter's output to an already
    rounded product and loses the small updates of a young adapter (measured: 1.22 against 1.09 after six steps), so it
    is no reference. What it computes is returned beside, as `loss_peft`.

    Raises `TrainingError` where its logits are not the live model's, where its loss is not what training computed, or
    where it changes nothing against the base.
    """
    examples = proof_examples(table)
    device = next(model.parameters()).device
    reloaded = load_model(base_dir, dtype=dtype, adapter_dir=folder).to(device)
    assert isinstance(reloaded, PeftModel)
    compute = torch_dtype(dtype)
    logit_difference, moved = 0.0, 0.0
    with torch.no_grad():
        for index in examples:
            ids = torch.tensor(table.example(index)[0], dtype=torch.int64, device=device)[None]
            live, saved = _logits(model, ids), _logits(reloaded, ids)
            with reloaded.disable_adapter():
                plain = _logits(reloaded, ids)
            scale = float(live.norm().clamp_min(1e-12))
            logit_difference = max(logit_difference, float((live - saved).norm()) / scale)
            moved = max(moved, float((saved - plain).norm()) / scale)
        batch = flatten(table, examples, share_prefixes=loss_pass.shares_prefixes, device=device)
        plain_batch = flatten(table, examples, share_prefixes=False, device=device)
        denominator = float(batch.weights.sum())
        trained_loss = float(loss_pass.loss(batch, denominator=denominator))
        peft_loss = float(DocumentPass(reloaded, attention="sdpa").loss(plain_batch, denominator=denominator))
        del reloaded
        exact = load_model(base_dir, dtype="float32", adapter_dir=folder).to(device)
        saved_loss = float(DocumentPass(exact, attention="sdpa").loss(plain_batch, denominator=denominator))
    if not logit_difference <= LOGIT_TOLERANCE[compute]:
        raise TrainingError(
            "the saved adapter does not compute what the trained model computes",
            where=str(folder),
            expected=f"logits within {LOGIT_TOLERANCE[compute]:g}",
            found=f"{logit_difference:.2e}",
        )
    if moved == 0.0:
        raise TrainingError("the saved adapter changes nothing: its logits are the base model's", where=str(folder))
    loss_difference = abs(saved_loss - trained_loss)
    if not loss_difference <= LOSS_TOLERANCE[compute] * max(1.0, abs(trained_loss)):
        raise TrainingError(
            "the reloaded model's loss is not the one that training computed",
            where=str(folder),
            expected=f"{trained_loss:.4f}",
            found=f"{saved_loss:.4f}",
        )
    return {
        "logit_difference": logit_difference,
        "logit_change_from_base": moved,
        "loss_live": trained_loss,
        "loss_float32": saved_loss,
        "loss_peft": peft_loss,
        "examples": len(examples),
    }


def _logits(model: PeftModel, ids: torch.Tensor) -> torch.Tensor:
    base = base_of(model)
    base.set_attn_implementation("sdpa")  # type: ignore[operator]
    logits: torch.Tensor = base(input_ids=ids, use_cache=False).logits
    return logits.float()
