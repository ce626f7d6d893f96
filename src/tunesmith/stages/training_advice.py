"""What rarely does well, said before a run with its reason, and what card a run fits on.

What lives here: warnings from settings, rows and contract; the notes of a plan. What does not: refusals
(`stages.training.check`), the arithmetic of memory (`train.footprint`), the probe (`stages.training_probe`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from tunesmith.core.artifact import Artifact
from tunesmith.types import RowRole

USUAL_LEARNING_RATES = {"lora": (1e-4, 3e-4), "dora": (1e-4, 3e-4), "full": (1e-5, 5e-5)}
"""Peak rates with AdamW that usually do well (Hu et al. 2021, table 11; Biderman et al. 2024, figure 8)."""
WHY_NOT = {
    "lora": ("an adapter that starts at zero hardly leaves it", "it forgets more and its loss is apt to run away"),
    "dora": ("an adapter that starts at zero hardly leaves it", "it forgets more and its loss is apt to run away"),
    "full": ("the weights hardly move in a run of usual length", "pretrained weights are overwritten and forget"),
}
"""Why a lower and why a higher rate rarely does well."""
FEW_STEPS = 10
FEW_ROWS, MANY_EPOCHS, MANY_EPOCHS_OF_FEW = 1_000, 3.0, 5.0
"""Beyond about 3 passes models recite their rows; fewer than 1,000 rows may take 5."""


def unwise_settings(*, kind: str, optimizer: str, learning_rate: float, warmup_ratio: float, dtype: str) -> list[str]:
    """Return warnings of settings that rarely do well, whatever the rows are."""
    warnings = []
    low, high = USUAL_LEARNING_RATES[kind]
    if optimizer.startswith("adamw") and not low <= learning_rate <= high:
        why = WHY_NOT[kind][learning_rate > high]
        warnings.append(
            f"learning_rate {learning_rate:g} lies outside {low:g} to {high:g}, where {kind} training usually does "
            f"best: {why}"
        )
    if warmup_ratio == 0:
        warnings.append("warmup_ratio is 0: the first steps run at the full rate on an optimizer that knows nothing")
    if dtype == "float16":
        warnings.append(
            "float16 overflows where bfloat16 does not, and a CPU emulates it: take it for GPUs without bfloat16"
        )
    return warnings


def unwise_for_rows(
    train: Path,
    contract: Artifact | None,
    *,
    longest: int,
    context: int | None,
    num_epochs: float,
    max_steps: int | None,
    batch_size: int,
    max_tokens_per_batch: int,
) -> list[str]:
    """Return warnings of settings that rarely do well for these encoded rows, the longest of `longest` tokens."""
    import pyarrow.parquet as pq

    warnings = []
    num_rows = pq.read_metadata(train).num_rows
    if longest > max_tokens_per_batch:
        warnings.append(
            f"the longest row has {longest:,} tokens, above max_tokens_per_batch {max_tokens_per_batch:,}: "
            "it makes a pass of its own and needs that much more memory"
        )
    steps = math.ceil(num_epochs * num_rows / batch_size)
    if max_steps is not None and max_steps < steps:
        steps, num_epochs = max_steps, max_steps * batch_size / num_rows
    if steps < FEW_STEPS:
        warnings.append(f"{steps} steps are few: use a smaller batch_size or more epochs")
    limit = MANY_EPOCHS_OF_FEW if num_rows < FEW_ROWS else MANY_EPOCHS
    if num_epochs > limit:
        warnings.append(
            f"{num_epochs:g} epochs over {num_rows:,} rows: beyond about {limit:g} models recite the rows instead of "
            "learning from them; more rows do more"
        )
    if contract is not None and (contract.path / "contract.json").is_file():
        warnings += _beside_the_contract(train, contract, longest=longest, context=context)
    return warnings


def _beside_the_contract(train: Path, contract: Artifact, *, longest: int, context: int | None) -> list[str]:
    """Return warnings of rows that the contract's own limits would cut when it answers."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from tunesmith.chat.contract import load_contract

    allowed = load_contract(contract.path).decoding.max_new_tokens
    table = pq.read_table(train)
    if "role" in table.column_names:  # General rows are no questions of this contract.
        table = table.filter(pc.equal(table["role"], RowRole.TASK.value))
    column = table["weights"].combine_chunks()
    offsets = column.offsets.to_numpy()
    weights = column.flatten().to_numpy(zero_copy_only=False)
    counts = np.diff(np.concatenate(([0], np.cumsum(weights != 0)))[offsets - offsets[0]])
    long = int((counts > allowed).sum())
    warnings = []
    if long:
        warnings.append(
            f"{long:,} of {len(counts):,} rows teach answers of up to {int(counts.max()):,} tokens, and the contract "
            f"stops at decoding.max_new_tokens {allowed:,}: such answers will be cut"
        )
    if context is not None and longest + allowed > context:
        warnings.append(
            f"the longest row ({longest:,} tokens) and max_new_tokens {allowed:,} exceed the base's context of "
            f"{context:,}: prompts as long as it leave no room for an answer"
        )
    return warnings


def context_of(model_dir: Path) -> int | None:
    """Return the positions that a base can read, where its config says so."""
    limit = json.loads((model_dir / "config.json").read_text("utf-8")).get("max_position_embeddings")
    return None if limit is None else int(limit)


def card_notes(model_dir: Path, *, tokens: int, rank: int) -> tuple[str, ...]:
    """Return on which card what kind of training of this base fits, where its shape is known."""
    from tunesmith.train.footprint import Shape, advice

    shape = Shape.of(json.loads((model_dir / "config.json").read_text("utf-8")))
    if shape is None:
        return ()
    size = f"{shape.parameters / 1e9:.2g}B" if shape.parameters >= 1e9 else f"{shape.parameters / 1e6:.0f}M"
    lines = "; ".join(advice(shape, tokens=tokens, rank=rank))
    return (f"{size} parameters, passes of {tokens:,} tokens, rank {rank}, by arithmetic: {lines}",)
