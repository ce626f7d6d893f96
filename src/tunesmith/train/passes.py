"""Ways to compute the loss of a flat batch, and the proof that a fast one equals the plain one.

    DocumentPass   transformers' own forward, one document at a time: the reference, for any causal model
    FlatPass       transformers' own layers over the whole flat batch: models on the attention interface
    FusedPass      our forward and backward over the model's weights: Llama-shaped models

What lives here: the three, and `choose_pass`, which takes the fastest whose loss and gradients agree with the
reference on this machine, in this dtype, on rows of this run. What does not: steps, optimizers (`train.loop`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor

from tunesmith.errors import TrainingError
from tunesmith.model import flash_attention
from tunesmith.model.attention import IMPLEMENTATION
from tunesmith.model.fused import FusedDecoder, why_not_fused
from tunesmith.model.kernels import why_not_compiled
from tunesmith.model.layout import DocumentLayout
from tunesmith.model.sharding import ShardedModel
from tunesmith.train.batches import FlatBatch, flatten
from tunesmith.train.examples import ExampleTable
from tunesmith.train.isolation import leak, why_not_together, with_sharing_pair
from tunesmith.train.loss import chunked_cross_entropy, logits_cross_entropy
from tunesmith.train.world import World, own_part

LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Largest relative difference of the loss between a pass and the reference."""

GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 1e-1}
"""Largest norm of the difference of all gradients, relative to the norm of the reference's."""

ALONE = World()

PROOF_DOCUMENTS = 3
PROOF_TOKENS = 384


class LossPass(Protocol):
    """Computes the loss of a flat batch, with gradients where autograd records."""

    name: str
    shares_prefixes: bool
    """Whether batches may hold a common prefix once."""

    def loss(self, batch: FlatBatch, *, denominator: float) -> torch.Tensor:
        """Return `sum(weights * negative log-likelihood) / denominator` as a float32 scalar."""
        ...

    def refresh_(self) -> None:
        """Take note that the parameters changed."""
        ...


def base_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return transformers' model under a PEFT wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _set_attention(model: torch.nn.Module, name: str) -> None:
    if model.config._attn_implementation != name:  # type: ignore[union-attr]
        model.set_attn_implementation(name)  # type: ignore[operator]


def embed(model: torch.nn.Module, batch: FlatBatch, *, noise_alpha: float | None) -> torch.Tensor:
    """Return the token embeddings [T, E] of a flat batch, with NEFTune's noise while the model trains.

    Each document gets uniform noise of at most `noise_alpha / sqrt(length * E)` (Jain et al. 2023, equation 1).
    """
    embedded: torch.Tensor = model.get_input_embeddings()(batch.ids)  # type: ignore[operator]
    if noise_alpha is None or not model.training:
        return embedded
    lengths = torch.empty(batch.num_rows, 1, dtype=torch.float32, device=batch.ids.device)
    for segment in batch.segments:
        assert segment.prefix_length == 0, "noise is drawn for each document: prefixes are not shared under it"
        lengths[segment.start : segment.stop] = segment.length
    size = noise_alpha / (lengths * embedded.shape[-1]).sqrt_()
    noise = torch.empty(embedded.shape, dtype=torch.float32, device=batch.ids.device).uniform_(-1, 1)
    return embedded + (noise * size).to(embedded.dtype)


class DocumentPass:
    """The plain forward of transformers, one document at a time, without padding."""

    name = "document"
    shares_prefixes = False

    def __init__(self, model: torch.nn.Module, *, attention: str, noise_alpha: float | None = None) -> None:
        self.model = base_of(model)
        self.attention = attention
        self.noise_alpha = noise_alpha

    def loss(self, batch: FlatBatch, *, denominator: float) -> torch.Tensor:
        """Return the loss of a batch that shares no prefixes."""
        _set_attention(self.model, self.attention)
        total = torch.zeros((), dtype=torch.float32, device=batch.ids.device)
        noisy = self.noise_alpha is not None and self.model.training
        embedded = embed(self.model, batch, noise_alpha=self.noise_alpha) if noisy else None
        for segment in batch.segments:
            assert segment.prefix_length == 0
            inside = (batch.rows >= segment.start) & (batch.rows < segment.stop)
            document = slice(segment.start, segment.stop)
            tokens = (
                {"input_ids": batch.ids[None, document]}
                if embedded is None
                else {"inputs_embeds": embedded[None, document]}
            )
            logits = self.model(
                **tokens,
                use_cache=False,
                logits_to_keep=batch.rows[inside] - segment.start,
            ).logits
            total = total + logits_cross_entropy(
                logits[0], batch.labels[inside], batch.weights[inside], denominator=denominator
            )
        return total

    def refresh_(self) -> None:
        """Do nothing: the model reads its parameters itself."""


class FlatPass:
    """transformers' layers over the flat batch, documents kept apart by `model.attention`."""

    name = "flat"
    shares_prefixes = True

    def __init__(self, model: torch.nn.Module, *, plain_head: bool, noise_alpha: float | None = None) -> None:
        self.model = base_of(model)
        self.plain_head = plain_head
        self.noise_alpha = noise_alpha

    def loss(self, batch: FlatBatch, *, denominator: float) -> torch.Tensor:
        """Return the loss; logits are made for supervised rows only."""
        _set_attention(self.model, IMPLEMENTATION)
        layout = DocumentLayout(batch.segments, batch.ids.device)
        if self.noise_alpha is not None and self.model.training:
            tokens = {"inputs_embeds": embed(self.model, batch, noise_alpha=self.noise_alpha)[None]}
        else:
            tokens = {"input_ids": batch.ids[None]}
        inputs = {
            **tokens,
            "position_ids": batch.positions[None],
            "use_cache": False,
            "document_layout": layout,
        }
        if self.plain_head:
            hidden = self.model.get_decoder()(**inputs).last_hidden_state[0]  # type: ignore[operator]
            head = self.model.get_output_embeddings().weight  # type: ignore[operator]
            return chunked_cross_entropy(
                hidden.index_select(0, batch.rows), head, batch.labels, batch.weights, denominator=denominator
            )
        logits = self.model(**inputs, logits_to_keep=batch.rows).logits[0]
        return logits_cross_entropy(logits, batch.labels, batch.weights, denominator=denominator)

    def refresh_(self) -> None:
        """Do nothing: the model reads its parameters itself."""


class FusedPass:
    """Our own layers (`model.fused`)."""

    name = "fused"
    shares_prefixes = True

    def __init__(
        self, model: torch.nn.Module, *, gradient_checkpointing: bool, noise_alpha: float | None = None
    ) -> None:
        self.model = base_of(model)
        self.decoder = FusedDecoder(model, gradient_checkpointing=gradient_checkpointing)
        self.head = self.model.get_output_embeddings().weight  # type: ignore[operator]
        self.noise_alpha = noise_alpha

    def loss(self, batch: FlatBatch, *, denominator: float) -> torch.Tensor:
        """Return the loss; the head sees supervised rows only."""
        layout = DocumentLayout(batch.segments, batch.ids.device)
        embedded = embed(self.model, batch, noise_alpha=self.noise_alpha)
        hidden = self.decoder.hidden(embedded, batch.positions, layout, batch.rows)
        return chunked_cross_entropy(hidden, self.head, batch.labels, batch.weights, denominator=denominator)

    def refresh_(self) -> None:
        """Renew the decoder's rounded copies of the adapters."""
        self.decoder.refresh_()


class ShardedPass:
    """Another pass, computed where the weights that it reads are gathered."""

    def __init__(self, inner: LossPass, sharded: ShardedModel) -> None:
        self.inner = inner
        self.sharded = sharded
        self.name = inner.name
        self.shares_prefixes = inner.shares_prefixes

    def loss(self, batch: FlatBatch, *, denominator: float) -> torch.Tensor:
        """Return the other pass's loss of this process's batch; every process must call this as often."""
        loss = self.sharded(self.inner.loss, batch, denominator=denominator)
        assert isinstance(loss, torch.Tensor)
        return loss

    def refresh_(self) -> None:
        """Let the other pass take note."""
        self.inner.refresh_()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How far a pass is from the reference, relative."""

    name: str
    loss_difference: float
    gradient_difference: float
    holds: bool


def _loss_and_gradients(
    loss_pass: LossPass, batch: FlatBatch, parameters: Sequence[torch.nn.Parameter]
) -> tuple[float, torch.Tensor]:
    """Return the loss and all gradients end to end: of this process's slices where the weights are sharded."""
    loss = loss_pass.loss(batch, denominator=float(batch.weights.sum()))
    grads: Sequence[torch.Tensor | None]
    if isinstance(parameters[0], DTensor):  # FSDP2 makes the gradients of slices in a whole backward only.
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [None if parameter.grad is None else own_part(parameter.grad) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
    else:
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        torch.zeros(own_part(parameter).numel()) if grad is None else grad.float().flatten().cpu()
        for grad, parameter in zip(grads, parameters, strict=True)
    ]
    return float(loss.detach()), torch.cat(flat)


def prove(
    candidate: LossPass,
    reference: LossPass,
    table: ExampleTable,
    indices: Sequence[int],
    model: torch.nn.Module,
    *,
    dtype: torch.dtype | None = None,
    world: World = ALONE,
) -> Proof:
    """Compare loss and gradients of two passes on the same examples, dropout off.

    `dtype` is what they compute in, where it is not the weights' own.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dtype = dtype or next(base_of(model).parameters()).dtype
    device = parameters[0].device
    was_training = model.training
    model.eval()
    plain_loss, plain = _loss_and_gradients(
        reference, flatten(table, indices, share_prefixes=reference.shares_prefixes, device=device), parameters
    )
    fast_loss, fast = _loss_and_gradients(
        candidate, flatten(table, indices, share_prefixes=candidate.shares_prefixes, device=device), parameters
    )
    model.train(was_training)
    loss_difference = abs(fast_loss - plain_loss) / max(abs(plain_loss), 1e-6)
    difference, size = float((fast - plain).norm()), float(plain.norm())
    if world.layout == "sharded":
        difference, size = (math.sqrt(total) for total in world.totals(difference**2, size**2))
    gradient_difference = difference / max(size, 1e-12)
    return Proof(
        name=candidate.name,
        loss_difference=loss_difference,
        gradient_difference=gradient_difference,
        holds=loss_difference <= LOSS_TOLERANCE[dtype] and gradient_difference <= GRADIENT_TOLERANCE[dtype],
    )


def proof_examples(table: ExampleTable) -> list[int]:
    """Return a few short examples, of different lengths where there are such: enough to show documents mixing."""
    by_length = sorted(range(len(table)), key=lambda index: (table.length(index), index))
    chosen: list[int] = []
    for index in by_length[:: max(1, len(by_length) // (4 * PROOF_DOCUMENTS))]:
        tokens = sum(table.length(at) for at in chosen) + table.length(index)
        if len(chosen) < PROOF_DOCUMENTS and (not chosen or tokens <= PROOF_TOKENS):
            chosen.append(index)
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The pass that training uses, and why not a faster one."""

    loss_pass: LossPass
    proof: Proof | None
    """`None` for the reference itself."""
    notes: tuple[str, ...]


def choose_pass(
    model: torch.nn.Module,
    table: ExampleTable,
    *,
    gradient_checkpointing: bool,
    noise_alpha: float | None = None,
    only: str | None = None,
    sharded: ShardedModel | None = None,
    world: World = ALONE,
) -> Choice:
    """Return the fastest pass that this machine computes right, proven on a few examples of `table` and a pair of
    documents that begin alike.

    Sharded weights are gathered for each pass, and every process of the world calls this.
    `only` names the pass of an interrupted run, which a resumed one must repeat; then nothing else is tried, and
    `TrainingError` says so where its proof fails now.
    """
    base = base_of(model)
    own_attention = str(base.config._attn_implementation)  # type: ignore[union-attr]

    def gathering(inner: LossPass) -> LossPass:
        return inner if sharded is None else ShardedPass(inner, sharded)

    reference = gathering(
        DocumentPass(
            model, attention="sdpa" if own_attention == IMPLEMENTATION else own_attention, noise_alpha=noise_alpha
        )
    )
    proven = with_sharing_pair(table, proof_examples(table))
    alone = why_not_together(base, table)
    notes = [] if alone is None else [f"row by row: {alone}"]
    for name in ("fused", "flat") if alone is None else ():
        if only not in (None, name):
            continue
        if name == "fused":
            reason = why_not_fused(model) if sharded is None else "its weights are sharded"
            if reason is not None:
                notes.append(f"not fused: {reason}")
                continue
            candidate: LossPass = FusedPass(
                model, gradient_checkpointing=gradient_checkpointing, noise_alpha=noise_alpha
            )
        else:
            candidate = gathering(FlatPass(model, plain_head=_has_plain_head(base), noise_alpha=noise_alpha))
        try:
            proof = prove(
                candidate,
                reference,
                proven,
                range(len(proven)),
                model,
                dtype=None if sharded is None else sharded.compute_dtype,
                world=world,
            )
            seen = leak(candidate, base, proven, range(len(proven)), sharded=sharded is not None)
        except (TypeError, TrainingError, NotImplementedError) as error:
            notes.append(f"not {name}: {str(error).splitlines()[0]}")
            continue
        if proof.holds and seen:
            notes.append(f"not {name}: documents of one batch see each other, by a gradient of {seen:.1e}")
            continue
        if proof.holds:
            if name == "fused" and why_not_compiled() is not None:
                notes.append(f"fused without its compiled loops: {why_not_compiled()}")
            notes += [f"{name} without FlashAttention: {reason}" for reason in flash_attention.refusals()]
            return Choice(loss_pass=candidate, proof=proof, notes=tuple(notes))
        notes.append(
            f"not {name}: its loss differs from transformers' by {proof.loss_difference:.1e}, "
            f"its gradients by {proof.gradient_difference:.1e}"
        )
    if only not in (None, "document"):
        raise TrainingError(
            f"the interrupted run used the {only} pass, which does not hold on this machine",
            found="; ".join(notes),
            hint="start the run anew, or resume it on the machine that began it, with train.parallel as it was",
        )
    return Choice(loss_pass=reference, proof=None, notes=tuple(notes))


def _has_plain_head(base: torch.nn.Module) -> bool:
    """Whether logits are hidden states times the output embedding and nothing else, as far as the class tells."""
    head = base.get_output_embeddings()  # type: ignore[operator]
    config = base.config
    scaled = any(
        getattr(config, key, None) not in (None, 1, 1.0)
        for key in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
    )
    return type(head) is torch.nn.Linear and head.bias is None and not scaled
