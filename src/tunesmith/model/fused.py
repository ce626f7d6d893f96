"""A forward and backward of Llama-shaped decoders over flat batches, written for speed, over the model's own weights.

    hidden = FusedDecoder(model).hidden(embedded, positions, layout, rows)     # [S, E], after the final norm

What lives here: the two halves of a decoder layer with their hand-written backwards, and one autograd Function over all
of them. What does not: products with folded adapters (`model.folded`), attention (`model.attention`), what stands
between the products (`model.kernels`), the loss (`train.loss`).

    stream += branch -> norm -> entry product -> attention or GLU -> exit product -> branch of the next half

It serves Llama, Mistral, Qwen2, Qwen3, SmolLM2 and the first Gemma (`why_not_fused` names what it refuses), with LoRA
on any of the linear layers of a frozen base, or with all weights trained. transformers stays the reference:
`train.passes` proves both equal before training uses it.

Shapes: T rows, E hidden size, H query heads, K key heads, D head size, F feed-forward size.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear

from tunesmith.model.attention import attention_backward_, attention_forward_
from tunesmith.model.folded import LINEAR_TYPES, FoldedLinear
from tunesmith.model.kernels import glu_, glu_backward_, rotate_
from tunesmith.model.layout import DocumentLayout, Heads
from tunesmith.model.norms import Norm, normalized, normalized_backward, trained, weight_gradients

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma"})
GELU = "gelu_pytorch_tanh"
LINEAR_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP_LAYERS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What all layers of one pass share."""

    layout: DocumentLayout
    cos: torch.Tensor
    """[T, D] float32."""
    sin: torch.Tensor


class AttentionHalf:
    """q/k/v, rotary positions, attention and output product of one layer, over the normed stream."""

    def __init__(self, layer: torch.nn.Module) -> None:
        attention = layer.get_submodule("self_attn")
        self.norm = Norm(layer.get_submodule("input_layernorm"))
        self.entry = FoldedLinear([attention.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")])
        self.exit = FoldedLinear([attention.get_submodule("o_proj")])
        self.head_size = int(attention.head_dim)  # type: ignore[arg-type]
        self.num_heads = self.entry.sizes[0] // self.head_size
        self.num_key_heads = self.entry.sizes[1] // self.head_size
        self.heads = Heads(num_queries=self.num_heads, num_keys=self.num_key_heads)
        self.scale = float(attention.scaling)  # type: ignore[arg-type]
        # Mistral keeps its window in the config, Qwen in each layer, Llama has none.
        holder = attention.config if attention.config.model_type == "mistral" else attention  # type: ignore[union-attr]
        self.window: int | None = getattr(holder, "sliding_window", None)
        names = {name for name, _ in attention.named_children()}
        self.head_norms: tuple[Any, ...] = (
            (attention.get_submodule("q_norm"), attention.get_submodule("k_norm")) if "q_norm" in names else ()
        )

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable tensors, in the order of the gradients that the backward returns."""
        heads = [norm.weight for norm in self.head_norms]
        return [*self.entry.parameters, *self.exit.parameters, *trained(*heads), *trained(self.norm.parameter)]

    def forward(self, wide: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what this half adds to the stream, and what `backward` needs; `wide` is the entry's input."""
        num_rows = wide.shape[0]
        packed = self.entry.forward(wide).view(num_rows, -1, self.head_size)
        kept = [wide[:, self.entry.num_inputs :].clone(), packed]
        for norm, part in self._head_parts():
            normal, inverse = normalized(packed[:, part], norm.variance_epsilon)
            torch.mul(normal, norm.weight.detach(), out=packed[:, part])
            kept += [normal, inverse]
        rotate_(packed, self.num_heads + self.num_key_heads, rows.cos, rows.sin, backward=False)
        wide_mixed = self.exit.wide_input(num_rows)
        attended = attention_forward_(
            packed,
            rows.layout,
            self.heads,
            scale=self.scale,
            window=self.window,
            softcap=None,
            out=self._by_head(wide_mixed, self.exit.num_inputs),
        )
        return self.exit.forward(wide_mixed), [*kept, wide_mixed, *attended]

    def _by_head(self, wide: torch.Tensor, columns: int) -> torch.Tensor:
        return torch.unflatten(wide[:, :columns], 1, (-1, self.head_size))

    def _head_parts(self) -> list[tuple[Any, slice]]:
        parts = (slice(0, self.num_heads), slice(self.num_heads, self.num_heads + self.num_key_heads))
        return list(zip(self.head_norms, parts, strict=False))

    def backward(
        self, wide_grad: torch.Tensor, wide: torch.Tensor, kept: list[torch.Tensor], rows: Rows, *, needs_input: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradients of the normed stream and of the layers' parameters.

        `wide_grad` holds the gradient of the stream; `wide` the normed stream, its last columns to be filled.
        """
        low, packed, *rest = kept
        num_rows = packed.shape[0]
        turned = self.num_heads + self.num_key_heads
        head_kept, (wide_mixed, *attended) = rest[: 2 * len(self.head_norms)], rest[2 * len(self.head_norms) :]
        grad_mixed = self.exit.backward(wide_grad, needs_input=True)
        assert grad_mixed is not None
        exit_grads = self.exit.gradients(wide_mixed, wide_grad)
        wide_grad_packed = self.entry.wide_output(num_rows)
        grad_packed = self._by_head(wide_grad_packed, self.entry.num_outputs)
        attention_backward_(
            grad_mixed.view(num_rows, self.num_heads, self.head_size),
            packed,
            self._by_head(wide_mixed, self.exit.num_inputs),
            attended,
            rows.layout,
            self.heads,
            scale=self.scale,
            window=self.window,
            softcap=None,
            grad=grad_packed,
        )
        rotate_(grad_packed, turned, rows.cos, rows.sin, backward=True)
        head_grads: list[torch.Tensor] = []
        for number, (norm, part) in enumerate(self._head_parts()):
            grad_part, weight_grads = normalized_backward(
                grad_packed[:, part], norm.weight, *head_kept[2 * number : 2 * number + 2]
            )
            grad_packed[:, part] = grad_part
            head_grads += weight_grads
        grad_normed = self.entry.backward(wide_grad_packed, needs_input=needs_input)
        wide[:, self.entry.num_inputs :] = low
        return grad_normed, [*self.entry.gradients(wide, wide_grad_packed), *exit_grads, *head_grads]


class FeedForwardHalf:
    """Gate and up, SwiGLU and down of one layer, over the normed stream."""

    def __init__(self, layer: torch.nn.Module) -> None:
        mlp = layer.get_submodule("mlp")
        self.norm = Norm(layer.get_submodule("post_attention_layernorm"))
        self.gelu: bool = mlp.config.hidden_act == GELU  # type: ignore[union-attr]
        self.entry = FoldedLinear([mlp.get_submodule("gate_proj"), mlp.get_submodule("up_proj")])
        self.exit = FoldedLinear([mlp.get_submodule("down_proj")])

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable tensors, in the order of the gradients that the backward returns."""
        return [*self.entry.parameters, *self.exit.parameters, *trained(self.norm.parameter)]

    def forward(self, wide: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return what this half adds to the stream, and what `backward` needs; `wide` is the entry's input."""
        gate_up = self.entry.forward(wide)
        wide_product = self.exit.wide_input(wide.shape[0])
        glu_(gate_up, gelu=self.gelu, product=wide_product[:, : self.exit.num_inputs])
        branch = self.exit.forward(wide_product)
        return branch, [
            wide[:, self.entry.num_inputs :].clone(),
            gate_up,
            wide_product[:, self.exit.num_inputs :].clone(),
        ]

    def backward(
        self, wide_grad: torch.Tensor, wide: torch.Tensor, kept: list[torch.Tensor], rows: Rows, *, needs_input: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradients of the normed stream and of the layers' parameters (as in `AttentionHalf`)."""
        low, gate_up, low_product = kept
        num_rows = gate_up.shape[0]
        grad_product = self.exit.backward(wide_grad, needs_input=True)
        assert grad_product is not None
        wide_product, wide_gate_up_grad = self.exit.wide_input(num_rows), self.entry.wide_output(num_rows)
        glu_backward_(
            gate_up,
            grad_product,
            gelu=self.gelu,
            grads=wide_gate_up_grad[:, : self.entry.num_outputs],
            product=wide_product[:, : self.exit.num_inputs],
        )
        wide_product[:, self.exit.num_inputs :] = low_product
        exit_grads = self.exit.gradients(wide_product, wide_grad)
        grad_normed = self.entry.backward(wide_gate_up_grad, needs_input=needs_input)
        wide[:, self.entry.num_inputs :] = low
        return grad_normed, [*self.entry.gradients(wide, wide_gate_up_grad), *exit_grads]


Half = AttentionHalf | FeedForwardHalf


class Keep(Enum):
    """What the forward keeps of each half for the backward."""

    NOTHING = "nothing"
    """There is no backward."""
    NORMED = "normed"
    """The normed stream; all else is computed again."""
    ALL = "all"


class _Decoder(torch.autograd.Function):
    """All layers and the final norm: `apply(embedded, decoder, shared, rows, keep, *parameters)`.

    The residual stream and its gradient are float32 whatever the weights are, and change in place: of each half only
    its normed input is kept, from which the norm's backward follows. One function for all layers, because autograd
    between them would round the gradient to the weights' dtype and hold what the backward has used up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embedded: torch.Tensor,
        decoder: FusedDecoder,
        shared: Rows,
        rows: torch.Tensor,
        keep: Keep,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        dtype = embedded.dtype
        stream, branch = embedded.to(torch.float32, copy=True), None
        kept: list[list[torch.Tensor]] = []
        for half in decoder.halves:
            if half is decoder.halves[-1]:
                assert branch is not None
                stream, branch = stream.index_select(0, rows), branch.index_select(0, rows)
            normal = torch.empty(stream.shape, dtype=dtype, device=stream.device)
            wide = half.entry.wide_input(len(stream))
            inverse = half.norm.add_(stream, branch, normal=normal, wide=wide[:, : half.entry.num_inputs])
            branch, needed = half.forward(wide, shared)
            if keep is not Keep.NOTHING:
                kept.append([normal, inverse, *(needed if keep is Keep.ALL else [])])
        normal, hidden = (torch.empty(stream.shape, dtype=dtype, device=stream.device) for _ in range(2))
        inverse = decoder.norm.add_(stream, branch, normal=normal, wide=hidden)
        ctx.decoder, ctx.shared, ctx.rows, ctx.num_rows, ctx.kept = decoder, shared, rows, len(embedded), kept
        ctx.last = (normal, inverse)
        return hidden

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        decoder, kept = ctx.decoder, ctx.kept
        normal, inverse = ctx.last
        (grad_hidden,) = grad_outputs
        needs_embedded = ctx.needs_input_grad[0]
        reversed_grads = [weight_gradients(grad_hidden, normal, decoder.norm.parameter)]
        grad = torch.zeros(normal.shape, dtype=torch.float32, device=normal.device)
        wide_grad = decoder.halves[-1].exit.wide_output(len(grad))
        decoder.norm.backward_(grad, grad_hidden.contiguous(), normal, inverse, rounded=wide_grad[:, : grad.shape[1]])
        for number in reversed(range(len(decoder.halves))):
            half = decoder.halves[number]
            normal, inverse, *needed = kept.pop()
            wide = half.entry.wide_input(len(normal))
            half.norm.scale_(normal, wide=wide[:, : half.entry.num_inputs])
            if not needed:
                _, needed = half.forward(wide, ctx.shared)
            needs_input = number > 0 or needs_embedded or half.norm.parameter.requires_grad
            grad_normed, grads = half.backward(wide_grad, wide, needed, ctx.shared, needs_input=needs_input)
            if grad_normed is None:
                reversed_grads.append(grads)
                break
            reversed_grads.append([*grads, *weight_gradients(grad_normed, normal, half.norm.parameter)])
            rounded = None
            if number and half is not decoder.halves[-1]:
                wide_grad = decoder.halves[number - 1].exit.wide_output(len(grad))
                rounded = wide_grad[:, : grad.shape[1]]
            half.norm.backward_(grad, grad_normed, normal, inverse, rounded=rounded)
            if half is decoder.halves[-1]:
                # Back from the asked rows, which may repeat, to all of them.
                grad = grad.new_zeros(ctx.num_rows, grad.shape[1]).index_add_(0, ctx.rows, grad)
                wide_grad = decoder.halves[number - 1].exit.wide_output(len(grad))
                wide_grad[:, : grad.shape[1]] = grad
        parameter_grads = [part for grads in reversed(reversed_grads) for part in grads]
        return grad.to(grad_hidden.dtype) if needs_embedded else None, None, None, None, None, *parameter_grads


def why_not_fused(model: torch.nn.Module) -> str | None:
    """Return why a model cannot take this forward, in words for the user, or `None` where it can."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config: Any = base.config
    if config.model_type not in MODEL_TYPES:
        return f"the architecture {config.model_type!r} is none of {', '.join(sorted(MODEL_TYPES))}"
    if config.hidden_act not in ("silu", GELU):
        return f"its activation is {config.hidden_act!r}, neither silu nor {GELU}"
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention looks ahead"
    if config.attention_dropout:
        return "it uses attention dropout"
    known = {id(part) for part in (base.lm_head.weight, base.model.embed_tokens.weight)}  # type: ignore[union-attr]
    known |= {id(part) for name, part in base.named_parameters() if "norm" in name}
    for index, layer in enumerate(base.model.layers):  # type: ignore[arg-type, union-attr]
        for name in (*LINEAR_LAYERS, *MLP_LAYERS):
            part = layer.get_submodule(name)
            if isinstance(part, LoraLinear):
                reason = _why_not_folded(part)
                if reason is not None:
                    return f"{name} of layer {index}: {reason}"
            elif type(part) not in LINEAR_TYPES:
                return f"{name} of layer {index} is a {type(part).__name__}"
            known |= {id(parameter) for parameter in part.parameters()}
    foreign = [name for name, part in model.named_parameters() if part.requires_grad and id(part) not in known]
    return f"{foreign[0]} is trainable and stands outside the decoder" if foreign else None


def _why_not_folded(layer: LoraLinear) -> str | None:
    adapters = layer.active_adapters
    if len(adapters) != 1 or layer.merged:
        return "its adapter is not one unmerged LoRA"
    if layer.use_dora.get(adapters[0], False):
        return "a DoRA update is no plain product"
    if any(isinstance(drop, torch.nn.Dropout) and drop.p > 0 for drop in layer.lora_dropout.values()):
        return "adapter dropout is on"
    if type(layer.base_layer) not in LINEAR_TYPES:
        return f"its base is a {type(layer.base_layer).__name__}"
    return None


class FusedDecoder:
    """The decoder of a model, computed by the functions above over the model's own tensors.

    Making one moves the base weights into folded matrices and leaves views in the model: the model still computes the
    same. Call `refresh_` after each change of the parameters.
    """

    def __init__(self, model: torch.nn.Module, *, gradient_checkpointing: bool = False) -> None:
        reason = why_not_fused(model)
        assert reason is None, reason
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.keep = Keep.NORMED if gradient_checkpointing else Keep.ALL
        self.rotary: Any = base.model.rotary_emb
        self.norm = Norm(base.model.norm)
        self.halves: list[Half] = []
        for layer in base.model.layers:
            self.halves += [AttentionHalf(layer), FeedForwardHalf(layer)]

    def refresh_(self) -> None:
        """Renew the rounded copies of the adapters from their float32 masters."""
        for half in self.halves:
            half.entry.refresh_()
            half.exit.refresh_()

    def hidden(
        self, embedded: torch.Tensor, positions: torch.Tensor, layout: DocumentLayout, rows: torch.Tensor
    ) -> torch.Tensor:
        """Return the normed hidden states [S, E] of the asked rows [S]; the last feed-forward computes only those.

        `embedded` are the token embeddings [T, E] of the flat batch.
        """
        with torch.no_grad():
            cos, sin = self.rotary(embedded[None].float(), position_ids=positions[None])
        shared = Rows(layout=layout, cos=cos[0].contiguous(), sin=sin[0].contiguous())
        parameters = [*(part for half in self.halves for part in half.parameters), *trained(self.norm.parameter)]
        keep = self.keep if torch.is_grad_enabled() else Keep.NOTHING
        hidden = _Decoder.apply(embedded, self, shared, rows, keep, *parameters)  # type: ignore[no-untyped-call]
        assert isinstance(hidden, torch.Tensor)
        return hidden
