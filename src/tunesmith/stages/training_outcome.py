"""The figures of a finished training run, for its summary and for plots.

What lives here: turning the loop's result and its log into JSON. What does not: making them (`train.loop`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.stages.training import TrainSpec
from tunesmith.stages.training_watch import general_warnings
from tunesmith.types import JSON

if TYPE_CHECKING:
    from tunesmith.train.loop import Result
    from tunesmith.train.passes import Choice


def outcome(spec: TrainSpec, result: Result, curve: Mapping[str, JSON], warnings: Sequence[str]) -> dict[str, JSON]:
    """Return what the steps led to; `warnings` are those known already."""
    counters = result.counters
    first, kept = (
        counters.first,
        counters.best or {name: figure["value"][-1] for name, figure in curve["figures"].items()},
    )
    base_loss, best_loss = first.get("val_loss"), counters.best.get("val_loss")
    warnings = [*warnings, *general_warnings(spec.general_watch, first, kept)]
    if best_loss is not None and base_loss is not None and best_loss >= base_loss:
        warnings.append("the validation loss never fell below the base model's")
    if counters.skipped_steps:
        warnings.append(f"{counters.skipped_steps} steps changed nothing: their float16 gradients overflowed")
    return {
        "steps_done": result.steps,
        "stopped_early": result.stopped_early,
        "resumed_from_step": result.resumed_from,
        "first_loss": curve["loss"][0] if curve["loss"] else None,
        "last_loss": result.last_loss,
        "base_val_loss": base_loss,
        "best_val_loss": best_loss,
        "best_step": counters.best_step if counters.best else result.steps,
        "best_by": spec.best_by,
        "figures": {name: {"base": value, "kept": kept.get(name)} for name, value in first.items()},
        "skipped_steps": counters.skipped_steps,
        "tokens": counters.tokens,
        "supervised_tokens": counters.supervised_tokens,
        "train_seconds": counters.seconds,
        "tokens_per_second": counters.tokens / counters.seconds if counters.seconds else None,
        "warnings": warnings,
    }


def pass_summary(choice: Choice) -> dict[str, JSON]:
    """Return which pass computed the loss, and how far it is from the reference."""
    proof = choice.proof
    return {
        "pass": choice.loss_pass.name,
        "pass_notes": list(choice.notes),
        "pass_proof": None
        if proof is None
        else {"loss_difference": proof.loss_difference, "gradient_difference": proof.gradient_difference},
    }


def write_curves(metrics: Path, out: Path) -> dict[str, JSON]:
    """Copy `metrics.jsonl` and write `curve.json`: the same as columns, for plots."""
    text = metrics.read_text("utf-8")
    (out / "metrics.jsonl").write_text(text, "utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    steps = [record for record in records if "loss" in record]
    evals = [record for record in records if "eval_seconds" in record]
    names = dict.fromkeys(name for record in evals for name in record if name not in ("step", "best", "eval_seconds"))
    measured = {name: [(record["step"], record[name]) for record in evals if name in record] for name in names}
    curve: dict[str, JSON] = {
        "step": [record["step"] for record in steps],
        "loss": [record["loss"] for record in steps],
        "learning_rate": [record["learning_rate"] for record in steps],
        "grad_norm": [record["grad_norm"] for record in steps],
        "tokens_per_second": [record["tokens_per_second"] for record in steps],
        "figures": {
            name: {"step": [step for step, _ in pairs], "value": [value for _, value in pairs]}
            for name, pairs in measured.items()
        },
    }
    (out / "curve.json").write_text(json.dumps(curve) + "\n", "utf-8")
    return curve
