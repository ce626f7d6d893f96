"""The mix of a training run: its settings, what is wrong with them, and what a run will see of each source.

    train:
      mix: {shares: {general: 0.15}}                            # one mix from the first step to the last

    train:
      mix:                                                      # a curriculum: stages in order
        - {name: general, length: 1, shares: {general: 0.6}}
        - {name: domain, length: 3, shares: {general: 0.15}}
        - {name: format, length: 1, shares: {general: 0.1, strict_json: 0.6}}

What lives here: `MixStage`, the order of a run made from it, its account. What does not: the algorithm
(`train.mixing`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from tunesmith.core.spec import Spec
from tunesmith.errors import PlanError
from tunesmith.types import JSON, RowRole

if TYPE_CHECKING:
    from tunesmith.train.batches import DataOrder
    from tunesmith.train.examples import ExampleTable
    from tunesmith.train.mixing import Order, Origins, SourceAccount

LOW_GENERAL, HIGH_GENERAL = 0.10, 0.30
"""Share of general data, in trained tokens, that keeps general ability without costing the task."""
_ROUNDING = 1e-6


class MixStage(Spec):
    """A stretch of training with shares of its own."""

    name: str | None = None
    """What reports call it; its number where nothing is said."""
    length: float = Field(1.0, gt=0)
    """How long it is, in trained tokens, relative to the other stages."""
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]]
    """`general`, `task` or a source's name -> share of the trained tokens. What is left of 1 is the task's; a source
    that is named has no part in the share of its role."""

    @model_validator(mode="after")
    def _shares_of_one(self) -> MixStage:
        total = sum(self.shares.values())
        if total > 1 + _ROUNDING or ("task" in self.shares and not math.isclose(total, 1, abs_tol=_ROUNDING)):
            raise ValueError(f"shares are parts of 1, and what is left of it is the task's: found a sum of {total:g}")
        return self


def data_order(
    mix: Sequence[MixStage],
    rows: ExampleTable,
    origins: Origins | None,
    *,
    batch_size: int,
    num_epochs: float,
    max_steps: int | None,
    seed: int,
) -> DataOrder:
    """Return which examples each step sees: all rows alike, or as the mix says.

    `origins` may be `None` where nothing is mixed. Raises `PlanError` for a share of what is not there.
    """
    from tunesmith.train.batches import StepPlan, count_steps
    from tunesmith.train.mixing import MixedPlan, Part, mixed_order

    if not mix:
        steps = count_steps(len(rows), batch_size=batch_size, num_epochs=num_epochs, max_steps=max_steps)
        return StepPlan(num_examples=len(rows), batch_size=batch_size, total_steps=steps, seed=seed)
    assert origins is not None
    parts = [
        Part(name=stage.name or f"stage {number}", length=stage.length, shares=stage.shares)
        for number, stage in enumerate(mix, start=1)
    ]
    mixed = mixed_order(parts, rows.num_supervised_each, origins, num_epochs=num_epochs, seed=seed)
    return MixedPlan(
        order=mixed.order,
        parts=tuple((part.name, begin) for part, begin in zip(parts, mixed.begins, strict=True)),
        batch_size=batch_size,
        num_epochs=num_epochs,
        max_steps=max_steps,
    )


def read_mix_origins(examples: Path, mix: Sequence[MixStage]) -> Origins | None:
    """Read where the training examples come from. Examples that do not say so may only be trained unmixed."""
    import pyarrow.parquet as pq

    from tunesmith.train.mixing import read_origins

    path = examples / "train.parquet"
    if not mix and "source" not in pq.read_schema(path).names:
        return None
    return read_origins(path)


def mix_account(plan: DataOrder, rows: ExampleTable, origins: Origins | None) -> dict[str, JSON]:
    """Return what the run sees: general share, epochs and rows never seen of each source, in all and by stage."""
    import numpy as np

    from tunesmith.train.mixing import MixedPlan, account, share_of_general

    if origins is None:
        return {}
    steps = [np.asarray(plan.examples_of(step), dtype=np.int64) for step in range(plan.total_steps)]
    order = np.concatenate(steps) if steps else np.empty(0, dtype=np.int64)
    trained = rows.num_supervised_each
    whole = account(order, trained, origins)
    out: dict[str, JSON] = {
        "general_share": round(share_of_general(whole), 4),
        "sources": {item.source: _figures(item) for item in whole},
        "rows_never_seen": sum(item.never_seen for item in whole),
    }
    if isinstance(plan, MixedPlan) and len(plan.parts) > 1:
        out["stages"] = [_stage_account(name, order[begin:end], trained, origins) for name, begin, end in plan.spans()]
    return out


def _stage_account(name: str, order: Order, trained: Order, origins: Origins) -> dict[str, JSON]:
    from tunesmith.train.mixing import account, share_of_general

    items = account(order, trained, origins)
    return {
        "name": name,
        "trained_tokens": sum(item.trained_tokens for item in items),
        "general_share": round(share_of_general(items), 4),
        "epochs": {item.source: round(item.epochs, 3) for item in items},
    }


def _figures(item: SourceAccount) -> dict[str, JSON]:
    return {
        "role": item.role,
        "rows": item.examples,
        "epochs": round(item.epochs, 3),
        "never_seen": item.never_seen,
        "trained_tokens": item.trained_tokens,
    }


def check_mix(
    mix: Sequence[MixStage], examples: Path, *, num_epochs: float, max_steps: int | None, batch_size: int, seed: int,
    max_source_epochs: float,
) -> list[str]:  # fmt: skip
    """Warn of a general share outside 10 to 30%; refuse a mix that cannot be made or repeats a source too often."""
    from tunesmith.train.examples import read_examples

    origins = read_mix_origins(examples, mix)
    if origins is None or (not mix and RowRole.GENERAL not in origins.roles):
        return []
    rows = read_examples(examples / "train.parquet")
    plan = data_order(mix, rows, origins, batch_size=batch_size, num_epochs=num_epochs, max_steps=max_steps, seed=seed)
    found = mix_account(plan, rows, origins)
    warnings = []
    if not mix:
        warnings.append("general rows are trained in whatever number there are: train.mix gives them a share")
    for name, figures in found["sources"].items():
        if mix and figures["epochs"] > max_source_epochs:
            raise PlanError(
                f"the mix repeats {name} more often than allowed: {figures['rows']:,} rows for "
                f"{figures['trained_tokens']:,} trained tokens",
                where="train.mix",
                expected=f"at most {max_source_epochs:g} passes (train.max_source_epochs)",
                found=f"{figures['epochs']:.1f}",
                hint="lower its share, add rows, or raise max_source_epochs",
            )
        if mix and figures["never_seen"] and figures["role"] == RowRole.TASK:
            warnings.append(f"{figures['never_seen']:,} of {figures['rows']:,} rows of {name} are never seen")
    return [*_general_warnings(found["general_share"]), *warnings]


def _general_warnings(share: float) -> list[str]:
    if LOW_GENERAL <= share <= HIGH_GENERAL:
        return []
    why = "narrow data costs general ability" if share < LOW_GENERAL else "the task gets the less of them"
    return [
        f"general rows have {share:.1%} of the trained tokens, outside {LOW_GENERAL:.0%} to {HIGH_GENERAL:.0%}: {why}"
    ]


def mix_text(found: dict[str, JSON]) -> str:
    """Return one line for `tunesmith plan`: the general share, epochs of each source, rows never seen."""
    epochs = ", ".join(f"{name} {figures['epochs']:g}" for name, figures in found["sources"].items())
    return (
        f"{found['general_share']:.1%} of the trained tokens general; epochs: {epochs}; "
        f"{found['rows_never_seen']:,} rows never seen"
    )
