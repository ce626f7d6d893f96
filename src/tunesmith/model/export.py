"""Export: a tuned model as one plain Hugging Face folder, and how far it is from what was tuned.

What lives here: merging an adapter in float32, casting last, writing the weights, and measuring any written model
against base and adapter. What does not: GGUF (`model.gguf_export`), the files of the contract beside the weights
(`serve.exported`).

    reference = reference_logits(base, tuned, prompts)
    write_merged(base, tuned, out, dtype="bfloat16")
    agreement = compare(reference, logits_of(load_model(out, dtype="bfloat16"), prompts))

Why float32: a bfloat16 base plus a small update rounds the update away; merged in float32 and cast last, the error is
that of the cast alone (SmolLM2-135M: 0.0024 nats against 0.0072).

An adapter that was trained on a quantised base belongs to the weights that base computed with: those are what it is
merged into. Merged into the unquantised base it meets other weights, and `on_plain_base` says how far off that is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from tunesmith.errors import TrainingError
from tunesmith.model.load import DtypeName, apply_adapter, is_whole_model, load_model, torch_dtype
from tunesmith.model.quantised import dequantise_
from tunesmith.types import JSON

MAX_POSITIONS = 512
"""Positions of a prompt that are compared; the logits of all would fill the memory on a large vocabulary."""
MAX_MEAN_KL = 0.05
"""Nats. A cast to bfloat16 is 0.002 to 0.005 off, Q8_0 about 0.001, a merge into 4 bits 0.3 and more."""
MAX_SHARE_OF_CHANGE = 0.3
"""An export may be this share as far from the tuned model as the base is, and no farther: else it lost the tuning."""
EXACT_KL = 1e-4
"""Below this an export counts as the tuned model, however little the tuning changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How an exported model's next-token probabilities compare with those of base and adapter in float32."""

    prompts: int
    positions: int
    mean_kl: float
    """Mean over positions of KL(tuned || exported), in nats."""
    max_kl: float
    top1: float
    """Share of positions with the same most likely token."""
    max_logit_difference: float
    """Largest absolute difference of a logit."""
    mean_kl_of_base: float
    """The same figure for the bare base: what the tuning changed."""

    def to_json(self) -> dict[str, JSON]:
        """Return plain JSON with figures of six digits."""
        return {
            key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Logits of the tuned model in float32, and how far the base is from them."""

    logits: tuple[torch.Tensor, ...]
    """Per prompt [positions, vocabulary]."""
    mean_kl_of_base: float


def logits_of(model: torch.nn.Module, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
    """Return float32 logits [positions, vocabulary] of each prompt."""
    device = next(model.parameters()).device
    out = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([list(prompt[:MAX_POSITIONS])], device=device)
            out.append(model(input_ids=ids).logits[0].float().cpu())
    return tuple(out)


def reference_logits(base_dir: Path, tuned_dir: Path, prompts: Sequence[Sequence[int]], *, device: str) -> Reference:
    """Return what the tuned model says in float32: an adapter unmerged, or a whole model."""
    tuned = load_model(base_dir, dtype="float32", adapter_dir=tuned_dir).to(device)
    logits = logits_of(tuned, prompts)
    if is_whole_model(tuned_dir):
        del tuned
        bare = logits_of(load_model(base_dir, dtype="float32").to(device), prompts)
    else:
        adapted: Any = tuned
        with adapted.disable_adapter():
            bare = logits_of(tuned, prompts)
    return Reference(logits=logits, mean_kl_of_base=_mean_kl(logits, bare)[0])


def compare(reference: Reference, found: Sequence[torch.Tensor]) -> Agreement:
    """Return how far logits are from the reference."""
    mean, largest = _mean_kl(reference.logits, found)
    pairs = list(zip(reference.logits, found, strict=True))
    positions = sum(len(logits) for logits in reference.logits)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    return Agreement(
        prompts=len(pairs),
        positions=positions,
        mean_kl=mean,
        max_kl=largest,
        top1=same / positions,
        max_logit_difference=max(float((a - b).abs().max()) for a, b in pairs),
        mean_kl_of_base=reference.mean_kl_of_base,
    )


def on_plain_base(
    base_dir: Path, tuned_dir: Path, prompts: Sequence[Sequence[int]], reference: Reference, *, device: str
) -> Agreement:
    """Return how far the adapter on the base as it lies in the file is from what was trained on a quantised one."""
    model: Any = apply_adapter(load_model(base_dir, dtype="float32"), tuned_dir)
    return compare(reference, logits_of(model.to(device), prompts))


def check_agreement(agreement: Agreement, *, where: Path) -> None:
    """Raise `TrainingError` where an export is not the tuned model any more."""
    allowed = min(MAX_MEAN_KL, max(EXACT_KL, MAX_SHARE_OF_CHANGE * agreement.mean_kl_of_base))
    if not agreement.mean_kl <= allowed:
        raise TrainingError(
            "the exported model does not say what the tuned one says",
            where=str(where),
            expected=f"a mean KL of {allowed:.2g} nats or less ({agreement.mean_kl_of_base:.2g} is the bare base's)",
            found=f"{agreement.mean_kl:.2g} nats, the same most likely token at {agreement.top1:.1%} of positions",
            hint="export in a wider number format: --dtype float32",
        )


def _mean_kl(reference: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Return (mean, maximum) over positions of KL(reference || found)."""
    kls = []
    for ours, theirs in zip(reference, found, strict=True):
        p, q = torch.log_softmax(ours, dim=-1), torch.log_softmax(theirs[:, : ours.shape[-1]], dim=-1)
        kls.append((p.exp() * (p - q)).sum(-1).clamp_(min=0))
    flat = torch.cat(kls)
    return float(flat.mean()), float(flat.max())


def merged_model(base_dir: Path, tuned_dir: Path) -> torch.nn.Module:
    """Return base and adapter as one float32 model, or the whole model of full fine-tuning, on the CPU.

    A base that was quantised in training is merged into as what it computed with, freshly made from the file.
    """
    model: Any = load_model(base_dir, dtype="float32", adapter_dir=tuned_dir)
    if not is_whole_model(tuned_dir):
        dequantise_(model)  # A merge adds to the weights in place, and a quantised layer makes its own anew.
        model = model.merge_and_unload(safe_merge=True)
    assert isinstance(model, torch.nn.Module)
    return model.eval()


def base_dtype(folder: Path) -> DtypeName:
    """Return the number format that a Hugging Face folder's config names; float32 where it names none."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    for known in get_args(DtypeName):
        if named == known:
            return known  # type: ignore[no-any-return]
    raise TrainingError(
        "the base model's number format is none that can be merged into",
        where=str(folder / "config.json"),
        expected=", ".join(get_args(DtypeName)),
        found=str(named),
        hint="export from the unquantised base",
    )


def write_merged(base_dir: Path, tuned_dir: Path, out: Path, *, dtype: DtypeName) -> int:
    """Write config and weights of the merged model, cast last; return the number of parameters.

    Raises `TrainingError` where a weight is not finite, or overflows the number format.
    """
    model: Any = merged_model(base_dir, tuned_dir).to(torch_dtype(dtype))
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"a weight does not fit {dtype}", where=name, hint="export in bfloat16 or float32: --dtype float32"
            )
    model.save_pretrained(str(out))
    (out / "generation_config.json").unlink(missing_ok=True)  # the contract's own is written beside the weights
    for file in out.glob("*.safetensors"):
        file.chmod(0o644)
    return sum(parameter.numel() for parameter in model.parameters())
