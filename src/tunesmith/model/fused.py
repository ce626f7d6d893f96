"""A forward and backward of Llama-shaped decoders over flat batches, written for speed, over the model's own weights.

    hidden = FusedDecoder(model).hidden(embedded, positions, layout, rows)     # [S, E], after the final norm

What lives here: the two halves of a decoder layer as autograd Functions with hand-written backwards, and their
assembly. What does not: products with folded adapters (`model.folded`), attention (`model.attention`), the loss
(`train.loss`).

It serves Llama, Mistral, Qwen2, Qwen3, SmolLM2 (`why_not_fused` names what it refuses), with LoRA on any of the linear
layers of a frozen base, or with all weights trained. transformers stays the reference: `train.passes` proves both equal
before training uses it.

Shapes: T rows, E hidden size, H query heads, K key heads, D head size, F feed-forward size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear

from tunesmith.model.attention import DocumentLayout, Heads, attention_backward, attention_forward
from tunesmith.model.folded import LINEAR_TYPES, FoldedLinear

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
LINEAR_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP_LAYERS = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def rms_norm_(x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> torch.Tensor:
    """Write `x / rms(x) * weight` over the last dimension into `out`; return 1 / rms(x), float32.

    Rounds where transformers' RMSNorm rounds: after the division, and after the product with the weight.
    """
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
    torch.mul((wide * inverse).to(x.dtype), weight.detach(), out=out)
    return inverse


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the gradient of x, float32, and that of the weight where it trains.

    With n = x * inverse and g = grad * weight: dx = inverse * (g - n * mean(g * n)), dweight = sum of grad * n.
    """
    wide = grad.float()
    normal = x.float() * inverse
    weight_grads = [(wide * normal).flatten(0, -2).sum(0).to(weight.dtype)] if weight.requires_grad else []
    scaled = wide * weight.detach()
    mean = (scaled * normal).mean(-1, keepdim=True)
    return scaled.sub_(normal.mul_(mean)).mul_(inverse), weight_grads


def trained(*parameters: torch.Tensor) -> list[torch.nn.Parameter]:
    """Return those that require gradients."""
    return [part for part in parameters if isinstance(part, torch.nn.Parameter) and part.requires_grad]


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions in place to [T, heads, D]: the two halves of D are the two coordinates."""
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    turned = torch.cat((right.mul(sin[..., :half]).neg_(), left * sin[..., half:]), dim=-1)
    return x.mul_(cos).add_(turned)


def rotate_back_(grad: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply the transpose of `rotate_` in place."""
    half = grad.shape[-1] // 2
    left, right = grad[..., :half], grad[..., half:]
    turned = torch.cat((right.mul(sin[..., half:]), left.mul(sin[..., :half]).neg_()), dim=-1)
    return grad.mul_(cos).add_(turned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What all layers of one pass share."""

    layout: DocumentLayout
    cos: torch.Tensor
    """[T, 1, D]."""
    sin: torch.Tensor


class AttentionHalf:
    """Norm, q/k/v, rotary positions, attention, output product and residual of one layer."""

    def __init__(self, layer: torch.nn.Module) -> None:
        attention = layer.get_submodule("self_attn")
        self.norm: torch.Tensor = layer.get_submodule("input_layernorm").weight  # type: ignore[assignment]
        self.eps = float(layer.get_submodule("input_layernorm").variance_epsilon)  # type: ignore[arg-type]
        self.qkv = FoldedLinear([attention.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")])
        self.output = FoldedLinear([attention.get_submodule("o_proj")])
        self.head_size = int(attention.head_dim)  # type: ignore[arg-type]
        self.num_heads = self.qkv.sizes[0] // self.head_size
        self.num_key_heads = self.qkv.sizes[1] // self.head_size
        self.heads = Heads(num_queries=self.num_heads, num_keys=self.num_key_heads)
        self.scale = float(attention.scaling)  # type: ignore[arg-type]
        # Mistral keeps its window in the config, Qwen in each layer, Llama has none.
        holder = attention.config if attention.config.model_type == "mistral" else attention  # type: ignore[union-attr]
        self.window: int | None = getattr(holder, "sliding_window", None)
        names = {name for name, _ in attention.named_children()}
        self.head_norms: tuple[Any, Any] | None = (
            (attention.get_submodule("q_norm"), attention.get_submodule("k_norm")) if "q_norm" in names else None
        )

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable tensors, in the order of the gradients that the backward returns."""
        heads = [norm.weight for norm in self.head_norms or ()]
        return [*self.qkv.parameters, *self.output.parameters, *trained(*heads), *trained(self.norm)]

    def forward(self, x: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the layer's residual stream after attention, and what `backward` needs."""
        num_rows, size = x.shape
        wide = self.qkv.wide_input(num_rows)
        inverse = rms_norm_(x, self.norm, self.eps, out=wide[:, :size])
        qkv = self.qkv.forward(wide).view(num_rows, -1, self.head_size)
        raw: list[torch.Tensor] = []
        if self.head_norms:
            raw.append(qkv[:, : self.num_heads + self.num_key_heads].clone())
            for norm, part in self._head_parts():
                head_inverse = rms_norm_(qkv[:, part], norm.weight, norm.variance_epsilon, out=qkv[:, part])
                raw.append(head_inverse)
        rotate_(qkv[:, : self.num_heads + self.num_key_heads], rows.cos, rows.sin)
        mixed, kept = attention_forward(
            qkv, rows.layout, self.heads, scale=self.scale, window=self.window, softcap=None
        )
        wide_mixed = self.output.wide_input(num_rows)
        wide_mixed[:, : self.output.num_inputs] = mixed.flatten(1)
        out = self.output.forward(wide_mixed).add_(x)
        return out, [x, wide, inverse, qkv, wide_mixed, *raw, *kept]

    def _head_parts(self) -> list[tuple[Any, slice]]:
        assert self.head_norms is not None
        return [
            (self.head_norms[0], slice(0, self.num_heads)),
            (self.head_norms[1], slice(self.num_heads, self.num_heads + self.num_key_heads)),
        ]

    def backward(
        self, grad: torch.Tensor, saved: list[torch.Tensor], rows: Rows, *, needs_input: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradients of x and of `parameters`."""
        x, wide, inverse, qkv, wide_mixed, *rest = saved
        raw, kept = (rest[:3], rest[3:]) if self.head_norms else ([], rest)
        num_rows = x.shape[0]
        wide_grad = self.output.wide_output(num_rows)
        wide_grad[:, : self.output.num_outputs] = grad
        grad_mixed = self.output.backward(wide_grad, needs_input=True)
        assert grad_mixed is not None
        output_grads = self.output.gradients(wide_mixed, wide_grad)
        grad_packed = attention_backward(
            grad_mixed.view(num_rows, self.num_heads, self.head_size),
            qkv,
            kept,
            rows.layout,
            self.heads,
            scale=self.scale,
            window=self.window,
            softcap=None,
        )
        wide_qkv_grad = self.qkv.wide_output(num_rows)
        grad_qkv = torch.unflatten(wide_qkv_grad[:, : self.qkv.num_outputs], 1, (-1, self.head_size))
        turned = self.num_heads + self.num_key_heads
        grad_qkv[:, :turned] = rotate_back_(grad_packed[:, :turned], rows.cos, rows.sin)
        grad_qkv[:, turned:] = grad_packed[:, turned:]
        head_grads: list[torch.Tensor] = []
        if self.head_norms:
            before, *inverses = raw
            for (norm, part), head_inverse in zip(self._head_parts(), inverses, strict=True):
                grad_part, weight_grads = rms_norm_backward(
                    grad_qkv[:, part], before[:, part], norm.weight, head_inverse
                )
                grad_qkv[:, part] = grad_part
                head_grads += weight_grads
        needs_norm = needs_input or self.norm.requires_grad
        grad_normed = self.qkv.backward(wide_qkv_grad, needs_input=needs_norm)
        grads = [*self.qkv.gradients(wide, wide_qkv_grad), *output_grads, *head_grads]
        if grad_normed is None:
            return None, grads
        grad_x, norm_grads = rms_norm_backward(grad_normed, x, self.norm, inverse)
        return grad_x.add_(grad).to(x.dtype), [*grads, *norm_grads]


class FeedForwardHalf:
    """Norm, gate and up, SwiGLU, down and residual of one layer."""

    def __init__(self, layer: torch.nn.Module) -> None:
        mlp = layer.get_submodule("mlp")
        self.norm: torch.Tensor = layer.get_submodule("post_attention_layernorm").weight  # type: ignore[assignment]
        self.eps = float(layer.get_submodule("post_attention_layernorm").variance_epsilon)  # type: ignore[arg-type]
        self.gate_up = FoldedLinear([mlp.get_submodule("gate_proj"), mlp.get_submodule("up_proj")])
        self.down = FoldedLinear([mlp.get_submodule("down_proj")])

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable tensors, in the order of the gradients that the backward returns."""
        return [*self.gate_up.parameters, *self.down.parameters, *trained(self.norm)]

    def forward(self, x: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the residual stream after the feed-forward, and what `backward` needs."""
        num_rows, size = x.shape
        wide = self.gate_up.wide_input(num_rows)
        inverse = rms_norm_(x, self.norm, self.eps, out=wide[:, :size])
        gate_up = self.gate_up.forward(wide)
        gate, up = torch.split(gate_up, self.gate_up.sizes, dim=1)
        wide_product = self.down.wide_input(num_rows)
        torch.mul(torch.nn.functional.silu(gate), up, out=wide_product[:, : self.down.num_inputs])
        out = self.down.forward(wide_product).add_(x)
        return out, [x, wide, inverse, gate_up, wide_product]

    def backward(
        self, grad: torch.Tensor, saved: list[torch.Tensor], rows: Rows, *, needs_input: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradients of x and of `parameters`."""
        x, wide, inverse, gate_up, wide_product = saved
        num_rows = x.shape[0]
        wide_grad = self.down.wide_output(num_rows)
        wide_grad[:, : self.down.num_outputs] = grad
        grad_product = self.down.backward(wide_grad, needs_input=True)
        assert grad_product is not None
        down_grads = self.down.gradients(wide_product, wide_grad)
        gate, up = torch.split(gate_up, self.gate_up.sizes, dim=1)
        wide_gate_up_grad = self.gate_up.wide_output(num_rows)
        both = wide_gate_up_grad[:, : self.gate_up.num_outputs]
        grad_gate, grad_up = torch.split(both, self.gate_up.sizes, dim=1)
        torch.mul(grad_product, torch.nn.functional.silu(gate), out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad_product.mul_(up), gate))
        grad_normed = self.gate_up.backward(wide_gate_up_grad, needs_input=True)
        assert grad_normed is not None
        grad_x, norm_grads = rms_norm_backward(grad_normed, x, self.norm, inverse)
        grads = [*self.gate_up.gradients(wide, wide_gate_up_grad), *down_grads, *norm_grads]
        return grad_x.add_(grad).to(x.dtype), grads


Half = AttentionHalf | FeedForwardHalf


class _Half(torch.autograd.Function):
    """One half of a layer under autograd: `apply(x, half, rows, keep, *parameters)`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, half: Half, rows: Rows, keep: bool, *parameters: torch.Tensor
    ) -> torch.Tensor:
        out, saved = half.forward(x, rows)
        ctx.save_for_backward(*(saved if keep else [x]))
        ctx.half, ctx.rows, ctx.keep = half, rows, keep
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        if not ctx.keep:
            _, saved = ctx.half.forward(saved[0], ctx.rows)
        grad_x, grads = ctx.half.backward(grad_outputs[0], saved, ctx.rows, needs_input=ctx.needs_input_grad[0])
        return grad_x, None, None, None, *grads


def why_not_fused(model: torch.nn.Module) -> str | None:
    """Return why a model cannot take this forward, in words for the user, or `None` where it can."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    config: Any = base.config
    if config.model_type not in MODEL_TYPES:
        return f"the architecture {config.model_type!r} is none of {', '.join(sorted(MODEL_TYPES))}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act!r}, not silu"
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
        self.decoder = base.model
        self.keep = not gradient_checkpointing
        self.halves: list[Half] = []
        for layer in self.decoder.layers:
            self.halves += [AttentionHalf(layer), FeedForwardHalf(layer)]

    def refresh_(self) -> None:
        """Renew the rounded copies of the adapters from their float32 masters."""
        for half in self.halves:
            for folded in (half.qkv, half.output) if isinstance(half, AttentionHalf) else (half.gate_up, half.down):
                folded.refresh_()

    def hidden(
        self, embedded: torch.Tensor, positions: torch.Tensor, layout: DocumentLayout, rows: torch.Tensor
    ) -> torch.Tensor:
        """Return the normed hidden states [S, E] of the asked rows [S]; the last feed-forward computes only those.

        `embedded` are the token embeddings [T, E] of the flat batch.
        """
        x = embedded
        with torch.no_grad():
            cos, sin = self.decoder.rotary_emb(x[None], position_ids=positions[None])
        shared = Rows(layout=layout, cos=cos[0, :, None], sin=sin[0, :, None])
        for half in self.halves:
            if half is self.halves[-1]:
                x = x.index_select(0, rows)
            x = _Half.apply(x, half, shared, self.keep, *half.parameters)  # type: ignore[no-untyped-call]
        normed = self.decoder.norm(x)
        assert isinstance(normed, torch.Tensor)
        return normed
