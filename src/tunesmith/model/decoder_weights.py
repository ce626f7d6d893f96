"""The weights of a Llama-shaped model in the form that is fastest for answering on the CPU.

What lives here: which models have that form, projections of one input joined into one product, adapters folded in, all
packed for oneDNN. What does not: what is computed with them (`model.decoder`).

An adapter is folded into the product, y = [x | xA'] [W | sB]', so that its small contribution is added inside the
product's float32 accumulator; adding it to a rounded bfloat16 y loses part of it (as PEFT does).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional as F

from tunesmith.model.quantised import QuantisedLinear

_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Attention and MLP of these are the same up to biases and head norms, which are read from the modules."""
_LINEAR_TYPES = (torch.nn.Linear, QuantisedLinear)
"""A quantised weight is spread out here, once: answering reads every weight for every token."""
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary tables that do not depend on how long the text became."""
_PACKED_FOR_ROWS = 64
"""Rows a packed weight is laid out for; any number of rows is right."""


def unsupported(model: torch.nn.Module) -> str | None:
    """Return why this module cannot be run here, or `None` where it can."""
    core = core_of(model)
    name = type(core).__name__
    if name not in _ARCHITECTURES:
        return f"{name} is not one of {', '.join(_ARCHITECTURES)}"
    config: Any = core.config
    parameter = next(model.parameters())
    if parameter.device.type != "cpu":
        return f"it runs on {parameter.device.type}"
    if parameter.dtype not in (torch.bfloat16, torch.float32):
        return f"its numbers are {parameter.dtype}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or (name == "MistralForCausalLM" and config.sliding_window is not None):
        return "some layers attend through a window"
    rope = core.model.rotary_emb.rope_type
    if rope not in _STATIC_ROPE:
        return f"its rotary positions are {rope}"
    for layer in core.model.layers:
        for module in (*_projections(layer.self_attn), *_projections(layer.mlp)):
            reason = _unsupported_linear(module)
            if reason:
                return reason
    return _unsupported_linear(core.lm_head)


def core_of(model: torch.nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model is not None else model


def _projections(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [child for name, child in module.named_children() if name.endswith("_proj")]


def _is_lora(module: torch.nn.Module) -> bool:
    lora = sys.modules.get("peft.tuners.lora")  # a PEFT module exists only where PEFT was imported
    return lora is not None and isinstance(module, lora.Linear)


def _unsupported_linear(module: torch.nn.Module) -> str | None:
    if type(module) in _LINEAR_TYPES:
        return None
    if not _is_lora(module):
        return f"it has a {type(module).__name__}"
    lora = cast(Any, module)
    if type(lora.base_layer) not in _LINEAR_TYPES:
        return f"its adapter sits on a {type(lora.base_layer).__name__}"
    if lora.fan_in_fan_out or any(lora.use_dora.values()) or any(lora.lora_bias.values()) or lora.lora_variant:
        return "its adapter is more than a low-rank product"
    if lora.merged:
        return "its adapter is merged in place"
    return None


@dataclass(frozen=True, slots=True)
class _Low:
    """An adapter's down and up projection, the scale in the latter: (rank, in), (out, rank)."""

    a: torch.Tensor
    b: torch.Tensor


def _parts(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None, list[_Low]]:
    """Return weight, bias and active adapters of a projection."""
    if not _is_lora(module):
        linear = cast(torch.nn.Linear, module)
        return linear.weight, linear.bias, []
    lora = cast(Any, module)
    weight, bias = lora.base_layer.weight, lora.base_layer.bias
    low = []
    if not lora.disable_adapters:
        for name in lora.active_adapters:
            if name in lora.lora_A:
                b = lora.lora_B[name].weight.float() * lora.scaling[name]
                low.append(_Low(lora.lora_A[name].weight.to(weight.dtype), b.to(weight.dtype)))
    return weight, bias, low


class Projection:
    """One or several projections of the same input as one product, adapters folded in."""

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        parts = [_parts(module) for module in modules]
        weight = torch.cat([part[0] for part in parts]) if len(parts) > 1 else parts[0][0]
        out_features = [part[0].shape[0] for part in parts]
        biases = [part[1] for part in parts]
        self._bias: torch.Tensor | None = None
        if any(bias is not None for bias in biases):
            zeros = [weight.new_zeros(size) for size in out_features]
            self._bias = torch.cat([z if b is None else b for b, z in zip(biases, zeros, strict=True)])
        downs, ups, row = [], [], 0
        for size, (_, _, lows) in zip(out_features, parts, strict=True):
            for low in lows:
                downs.append(low.a)
                up = weight.new_zeros(weight.shape[0], low.b.shape[1])
                up[row : row + size] = low.b
                ups.append(up)
            row += size
        self._down = _pack(torch.cat(downs)) if downs else None
        self._weight = _pack(torch.cat([weight, *ups], dim=1) if ups else weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the products of rows (n, in), side by side: (n, out of all)."""
        if self._down is not None:
            x = torch.cat([x, _linear(x, self._down, None)], dim=-1)
        return _linear(x, self._weight, self._bias)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight in oneDNN's own layout: 1.1 to 2 times as fast, and on AMD float32 avoids MKL's AVX2 path."""
    weight = weight.detach()
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)
        return packed
    return weight


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if weight.is_mkldnn:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer."""

    norm_in: torch.Tensor
    norm_mid: torch.Tensor
    qkv: Projection
    out: Projection
    gate_up: Projection
    down: Projection
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


def layer_of(layer: Any) -> Layer:
    """Lay out the weights of a decoder layer of transformers."""
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Layer(
        norm_in=layer.input_layernorm.weight.detach(),
        norm_mid=layer.post_attention_layernorm.weight.detach(),
        qkv=Projection([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=Projection([attention.o_proj]),
        gate_up=Projection([mlp.gate_proj, mlp.up_proj]),
        down=Projection([mlp.down_proj]),
        q_norm=q_norm.weight.detach() if q_norm is not None else None,
        k_norm=k_norm.weight.detach() if k_norm is not None else None,
    )
