"""Llama-shaped decoders on the CPU, without padding in the matrix products.

What lives here: the weights in the form that is fastest for answering (projections of one input joined, an adapter
folded in, packed for oneDNN), and two passes over them: `prefill` for new prompts, `step` for one more token of every
running answer. What does not: which rows run when, stop tokens, sampling (`model.continuous`).

    decoder = Decoder(model, max_positions=512)
    prefix = decoder.prefix(ids that all prompts share)
    block, hidden_RD = decoder.prefill(rests of the prompts, prefix)
    hidden_BD = decoder.step(token ids, cache, prefix)
    logits_BV = decoder.head(hidden_BD)

Shapes: B running rows, R new rows, N tokens of all new rows end to end, D hidden, H key-value heads, G query heads for
each of them, E head size, P prefix tokens, T positions of the cache, V vocabulary.

An adapter is folded into the product, y = [x | xA'] [W | sB]', so that its small contribution is added inside the
product's float32 accumulator; adding it to a rounded bfloat16 y loses part of it (as PEFT does). The key-value
computation of a prefix that all prompts share is done once, and its attention is one product for all rows.
"""

from __future__ import annotations

import math
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
_PART_ROWS = 16
"""Rows that attend together where lengths differ much."""
_WORTH_PARTING = 1.3
"""Attention over all rows at once is given up where it computes this many times the positions."""
_MASKED = -1e30
"""Added to the score of a position that is not there: finite, so that a row of padding gives no NaN."""


def unsupported(model: torch.nn.Module) -> str | None:
    """Return why this module cannot be run here, or `None` where it can."""
    core = _core(model)
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


def _core(model: torch.nn.Module) -> Any:
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


class _Projection:
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
class _Layer:
    norm_in: torch.Tensor
    norm_mid: torch.Tensor
    qkv: _Projection
    out: _Projection
    gate_up: _Projection
    down: _Projection
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of tokens that all rows begin with, one pair a layer: (H, E, P) and (H, P, E)."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    length: int


@dataclass(frozen=True, slots=True)
class Block:
    """Keys and values of new rows, right-aligned, one pair a layer: (R, H, E, width) and (R, H, width, E)."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: list[int]
    width: int


class Cache:
    """Keys and values of running rows, all aligned to one clock.

    Every row writes its next position at the same index `end`, whatever its own length: row b owns the indices from
    `start_B[b]` to `end`. A step thus writes one slice, and a row that ended can be replaced in place.
    """

    def __init__(self, decoder: Decoder, *, rows: int, capacity: int) -> None:
        shape = (rows, decoder.num_kv_heads, decoder.head_size, capacity)
        self.rows, self.capacity, self.end = rows, capacity, 0
        self._dtype, self._num_layers = decoder.dtype, decoder.num_layers
        # bfloat16 products read keys fastest with positions last, float32 ones with the head's numbers last
        if decoder.dtype == torch.bfloat16:
            self.keys = [torch.zeros(shape, dtype=decoder.dtype) for _ in range(decoder.num_layers)]
        else:
            swapped = (shape[0], shape[1], shape[3], shape[2])
            self.keys = [torch.zeros(swapped, dtype=decoder.dtype).mT for _ in range(decoder.num_layers)]
        self.values = [
            torch.zeros((shape[0], shape[1], capacity, shape[2]), dtype=decoder.dtype)
            for _ in range(decoder.num_layers)
        ]
        self.start_B = torch.zeros(rows, dtype=torch.long)
        # Positions of the future stay at 0: a row only ever masks what lies before its start
        self.bias_BT = torch.zeros(rows, capacity, dtype=decoder.dtype)

    @property
    def begin(self) -> int:
        """First index that any row owns."""
        return int(self.start_B.min())

    def spans(self) -> list[tuple[slice, int]]:
        """Return the parts of the rows that attend together, each with the first index that any of its rows owns.

        Rows of very different length are cut into parts of `_PART_ROWS`: one product over all of them would compute
        every row as long as the longest.
        """
        starts = self.start_B.tolist()
        parts = [slice(first, first + _PART_ROWS) for first in range(0, self.rows, _PART_ROWS)]
        begins = [min(starts[part]) for part in parts]
        together = self.rows * (self.end + 1 - min(begins))
        apart = sum((self.end + 1 - b) * len(starts[part]) for part, b in zip(parts, begins, strict=True))
        if together <= _WORTH_PARTING * apart:
            return [(slice(0, self.rows), min(begins))]
        return list(zip(parts, begins, strict=True))

    def put_(self, slots: Sequence[int], block: Block) -> None:
        """Let new rows take `slots`; their last position becomes the one before `end`.

        The buffer must hold the block: rows may be wider than `end` only while no row owns anything.
        """
        width = block.width
        if width > self.end:
            assert self.begin >= self.end, "a wider row joined rows that are running"
            self.end = width
            self.start_B.fill_(width)
        where = torch.tensor(slots)
        span = slice(self.end - width, self.end)
        for layer in range(self._num_layers):
            self.keys[layer][where, :, :, span] = block.keys[layer]
            self.values[layer][where, :, span] = block.values[layer]
        for slot, length in zip(slots, block.lengths, strict=True):
            self.start_B[slot] = self.end - length
            self.bias_BT[slot, : self.end - length] = _MASKED
            self.bias_BT[slot, self.end - length :] = 0

    def free_(self, slots: Sequence[int]) -> None:
        """Let the rows in `slots` own nothing; a step still computes them, from nothing, until they are replaced."""
        for slot in slots:
            self.start_B[slot] = self.end
            self.bias_BT[slot, : self.end] = _MASKED

    def keep_(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        where = torch.tensor(rows)
        for layer in range(self._num_layers):
            keys = self.keys[layer]
            # indexing gives a contiguous result: the layout of the keys is kept by indexing under it
            self.keys[layer] = keys[where] if keys.is_contiguous() else keys.mT[where].mT
            self.values[layer] = self.values[layer][where]
        self.start_B, self.bias_BT = self.start_B[where], self.bias_BT[where]
        self.rows = len(rows)

    def make_room_(self) -> None:
        """Move what rows own to the front when the clock has reached the end of the buffer."""
        if self.end < self.capacity:
            return
        shift = self.begin
        assert shift > 0, "the buffer is as long as its longest row"
        keep = self.end - shift
        for layer in range(self._num_layers):
            self.keys[layer][..., :keep] = self.keys[layer][..., shift : self.end].clone()
            self.values[layer][:, :, :keep] = self.values[layer][:, :, shift : self.end].clone()
        self.bias_BT[:, :keep] = self.bias_BT[:, shift : self.end].clone()
        self.bias_BT[:, keep:] = 0
        self.start_B -= shift
        self.end = keep


class Decoder:
    """Weights of one model, laid out for answering. The model itself is not changed and may be freed."""

    def __init__(self, model: torch.nn.Module, *, max_positions: int) -> None:
        reason = unsupported(model)
        assert reason is None, reason
        core = _core(model)
        config = core.config
        first = core.model.layers[0].self_attn
        self.dtype = next(core.parameters()).dtype
        self.head_size: int = first.head_dim
        self.num_kv_heads: int = config.num_key_value_heads
        self.num_groups: int = config.num_attention_heads // config.num_key_value_heads
        self.num_layers: int = config.num_hidden_layers
        self._scale = 1 / math.sqrt(self.head_size)
        self._eps: float = config.rms_norm_eps
        self._embedding = core.model.embed_tokens.weight.detach()
        self._norm = core.model.norm.weight.detach()
        self._head = _Projection([core.lm_head])
        self._layers = [_layer(layer) for layer in core.model.layers]
        positions = torch.arange(max_positions)[None]
        cos, sin = core.model.rotary_emb(self._embedding[:1, None], positions)
        half = self.head_size // 2
        self._cos, self._sin = cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()

    def prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Compute what all rows share; `None` for no tokens."""
        if not ids:
            return None
        block, _ = self.prefill([list(ids)], None)
        return Prefix(
            [keys[0].contiguous() for keys in block.keys], [values[0].contiguous() for values in block.values], len(ids)
        )

    def prefill(self, rows: Sequence[Sequence[int]], prefix: Prefix | None) -> tuple[Block, torch.Tensor]:
        """Compute new rows after the prefix; return their keys and values, and the hidden state of each last token."""
        lengths = [len(row) for row in rows]
        width, num_rows = max(lengths), len(rows)
        before = prefix.length if prefix else 0
        # place_N: where each token of the flat sequence stands in the right-aligned (R, width) block
        place_N = torch.cat([torch.arange((r + 1) * width - n, (r + 1) * width) for r, n in enumerate(lengths)])
        positions_N = torch.cat([torch.arange(before, before + n) for n in lengths])
        bias = self._prefill_bias(lengths, width)
        turn = self._cos[positions_N], self._sin[positions_N]
        x_ND = self._embedding[torch.tensor([token for row in rows for token in row])]
        keys, values = [], []
        for index, layer in enumerate(self._layers):
            heads = self._heads(layer, self._rms(x_ND, layer.norm_in), turn)
            q_RW, k_RW, v_RW = self._split(self._spread(heads, place_N, num_rows, width))
            # (R, W, H, G, E) -> (R, H, W * G, E): the queries of a head's group are further rows of one product
            grouped = (num_rows, width, self.num_kv_heads, self.num_groups, self.head_size)
            q = q_RW.reshape(grouped).transpose(1, 2).flatten(2, 3)
            k, v = k_RW.permute(0, 2, 3, 1), v_RW.transpose(1, 2)
            keys.append(k)
            values.append(v)
            mixed = self._attend(q, k, v, bias, prefix, index)
            mixed = mixed.view(num_rows, self.num_kv_heads, width, self.num_groups, self.head_size)
            mixed = mixed.transpose(1, 2).reshape(num_rows * width, -1)
            x_ND = self._rest(layer, x_ND, mixed[place_N] if num_rows > 1 else mixed)
        last_R = torch.tensor(lengths).cumsum(0) - 1
        return Block(keys, values, lengths, width), x_ND[last_R]

    def step(self, ids: Sequence[int], cache: Cache, prefix: Prefix | None) -> torch.Tensor:
        """Add one token to every row of the cache; return its hidden state (B, D)."""
        before = prefix.length if prefix else 0
        rows, now = cache.rows, cache.end
        spans = cache.spans()
        positions_B = before + now - cache.start_B
        turn = self._cos[positions_B], self._sin[positions_B]
        biases = [cache.bias_BT[part, None, begin : now + 1] for part, begin in spans]
        x_BD: torch.Tensor = self._embedding[torch.tensor(ids)]
        for index, layer in enumerate(self._layers):
            q, k, v = self._split(self._heads(layer, self._rms(x_BD, layer.norm_in), turn))
            keys, values = cache.keys[index], cache.values[index]
            keys[..., now] = k
            values[:, :, now] = v
            q = q.reshape(rows, self.num_kv_heads, self.num_groups, self.head_size)
            mixed = [
                self._attend(
                    q[part], keys[part, ..., begin : now + 1], values[part, :, begin : now + 1], bias, prefix, index
                )
                for (part, begin), bias in zip(spans, biases, strict=True)
            ]
            x_BD = self._rest(layer, x_BD, torch.cat(mixed).reshape(rows, -1))
        cache.end += 1
        assert isinstance(x_BD, torch.Tensor)
        return x_BD

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (rows, V) of hidden states (rows, D)."""
        return self._head(self._rms(hidden, self._norm))

    def _prefill_bias(self, lengths: Sequence[int], width: int) -> torch.Tensor:
        """Return what is added to the scores (R, W * G, W): causal, and nothing before a row's first token."""
        index = torch.arange(width)
        causal = index[:, None] < index[None]
        outside = index[None] < (width - torch.tensor(lengths))[:, None]
        masked = causal[None] | outside[:, None]
        bias = torch.zeros(masked.shape, dtype=self.dtype).masked_fill_(masked, _MASKED)
        return bias.repeat_interleave(self.num_groups, dim=1)

    def _heads(self, layer: _Layer, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return all heads (n, H * G + 2 * H, E) of rows (n, D): queries and keys rotated, then values."""
        heads = layer.qkv(x).view(x.shape[0], -1, self.head_size)
        num_q, num_turned = self.num_kv_heads * self.num_groups, self.num_kv_heads * (self.num_groups + 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            heads[:, :num_q] = self._rms(heads[:, :num_q], layer.q_norm)
            heads[:, num_q:num_turned] = self._rms(heads[:, num_q:num_turned], layer.k_norm)
        half = self.head_size // 2
        cos, sin = turn[0][:, None], turn[1][:, None]
        a, b = heads[:, :num_turned, :half], heads[:, :num_turned, half:]
        turned_a = a * cos - b * sin
        b.mul_(cos).add_(a * sin)
        a.copy_(turned_a)
        return heads

    def _split(self, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cut (..., heads, E) into queries, keys and values."""
        sizes = [self.num_kv_heads * self.num_groups, self.num_kv_heads, self.num_kv_heads]
        q, k, v = torch.split(heads, sizes, dim=-2)
        return q, k, v

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor,
        prefix: Prefix | None,
        index: int,
    ) -> torch.Tensor:
        """Mix values: q (R, H, Q, E) over k (R, H, E, T) and v (R, H, T, E), plus the prefix that all rows see."""
        rows, heads, queries, size = q.shape
        q = q * self._scale
        scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1)).view(rows, heads, queries, -1).add_(bias[:, None])
        if prefix is None:
            weights = torch.softmax(scores, dim=-1)
            return torch.bmm(weights.flatten(0, 1), v.flatten(0, 1)).view(rows, heads, queries, size)
        # The prefix is the same for all rows: one product a head, with the queries of all rows
        by_head = q.transpose(0, 1).reshape(heads, rows * queries, size)
        shared = torch.bmm(by_head, prefix.keys[index]).view(heads, rows, queries, -1).transpose(0, 1)
        weights = torch.softmax(torch.cat([shared, scores], dim=-1), dim=-1)
        to_prefix = weights[..., : prefix.length].transpose(0, 1).reshape(heads, rows * queries, prefix.length)
        mixed = torch.bmm(to_prefix, prefix.values[index]).view(heads, rows, queries, size).transpose(0, 1)
        own = torch.bmm(weights[..., prefix.length :].flatten(0, 1), v.flatten(0, 1))
        return own.view(rows, heads, queries, size).add_(mixed)

    def _rest(self, layer: _Layer, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = layer.out(mixed).add_(x)
        gate_up = layer.gate_up(self._rms(x, layer.norm_mid))
        gate, up = gate_up.chunk(2, dim=-1)
        return layer.down(F.silu(gate).mul_(up)).add_(x)

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32:
            scaled: torch.Tensor = weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self._eps))
            return scaled
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps)
        normed: torch.Tensor = weight * wide.to(x.dtype)
        return normed

    def _spread(self, flat: torch.Tensor, place_N: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """Put (N, heads, E) into a zero-filled right-aligned (R, width, heads, E)."""
        if rows == 1:
            return flat[None]
        out = flat.new_zeros(rows * width, *flat.shape[1:])
        out[place_N] = flat
        return out.view(rows, width, *flat.shape[1:])


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return _Layer(
        norm_in=layer.input_layernorm.weight.detach(),
        norm_mid=layer.post_attention_layernorm.weight.detach(),
        qkv=_Projection([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=_Projection([attention.o_proj]),
        gate_up=_Projection([mlp.gate_proj, mlp.up_proj]),
        down=_Projection([mlp.down_proj]),
        q_norm=q_norm.weight.detach() if q_norm is not None else None,
        k_norm=k_norm.weight.detach() if k_norm is not None else None,
    )
