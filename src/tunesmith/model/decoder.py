"""Llama-shaped decoders on the CPU, without padding in the matrix products.

What lives here: two passes over a model's weights: `prefill` for new prompts, `step` for one more token of every
running answer. What does not: the weights' form (`model.decoder_weights`), keys and values (`model.decoder_cache`),
which rows run when, stop tokens, sampling (`model.continuous`).

    decoder = Decoder(model, max_positions=512)
    prefix = decoder.prefix(ids that all prompts share)
    block, hidden_RD = decoder.prefill(rests of the prompts, prefix)
    hidden_BD = decoder.step(token ids, cache, prefix)
    logits_BV = decoder.head(hidden_BD)

Shapes: B running rows, R new rows, N tokens of all new rows end to end, D hidden, H key-value heads, G query heads for
each of them, E head size, P prefix tokens, T positions of the cache, V vocabulary.

The residual stream is float32 whatever the weights are, and what stands between the products runs as the loops of
`model.kernels`. The key-value computation of a prefix that all prompts share is done once, and its attention is one
product for all rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from tunesmith.model import compiled_attention
from tunesmith.model.decoder_cache import MASKED, Block, Cache, Prefix
from tunesmith.model.decoder_weights import Layer, Projection, core_of, layer_of, unsupported
from tunesmith.model.kernels import add_norm_, attend_rows, attend_step_, glu_, rotate_
from tunesmith.model.norms import normalized


class Decoder:
    """Weights of one model, laid out for answering. The model itself is not changed and may be freed."""

    def __init__(self, model: torch.nn.Module, *, max_positions: int) -> None:
        reason = unsupported(model)
        assert reason is None, reason
        core = core_of(model)
        config = core.config
        first = core.model.layers[0].self_attn
        self.dtype = next(core.parameters()).dtype
        self.head_size: int = first.head_dim
        self.num_kv_heads: int = config.num_key_value_heads
        self.num_groups: int = config.num_attention_heads // config.num_key_value_heads
        self.num_layers: int = config.num_hidden_layers
        self._num_queries = self.num_kv_heads * self.num_groups
        self._scale = 1 / math.sqrt(self.head_size)
        self._eps: float = config.rms_norm_eps
        self._embedding = core.model.embed_tokens.weight.detach()
        self._norm = core.model.norm.weight.detach()
        self._head = Projection([core.lm_head])
        self._layers = [layer_of(layer) for layer in core.model.layers]
        positions = torch.arange(max_positions)[None]
        cos, sin = core.model.rotary_emb(self._embedding[:1, None].float(), positions)
        self._cos, self._sin = cos[0].contiguous(), sin[0].contiguous()

    def prefix(self, ids: Sequence[int]) -> Prefix | None:
        """Compute what all rows share; `None` for no tokens."""
        return self.prefill([list(ids)], None)[0].as_prefix() if ids else None

    def prefill(self, rows: Sequence[Sequence[int]], prefix: Prefix | None) -> tuple[Block, torch.Tensor]:
        """Compute new rows after the prefix; return their keys and values, and the hidden state of each last token."""
        lengths = [len(row) for row in rows]
        before = prefix.length if prefix else 0
        positions_N = torch.cat([torch.arange(before, before + length) for length in lengths])
        turn = self._cos[positions_N], self._sin[positions_N]
        stream_ND = self._embedding[torch.tensor([token for row in rows for token in row])].float()
        last_R = torch.tensor(lengths).cumsum(0) - 1
        attend = _NewRows(self, lengths, prefix)
        kept: list[torch.Tensor] = []
        branch = None
        for index, layer in enumerate(self._layers):
            heads = self._heads(layer, self._normed(stream_ND, branch, layer.norm_in), turn)
            kept.append(heads[:, self._num_queries :].clone())
            mixed = attend(heads, index)
            if index == self.num_layers - 1:
                stream_ND, mixed = stream_ND[last_R], mixed[last_R]
            branch = self._feed_forward(layer, stream_ND, mixed)
        assert branch is not None
        return Block(kept, lengths), stream_ND.add_(branch)

    def step(self, ids: Sequence[int], cache: Cache, prefix: Prefix | None) -> torch.Tensor:
        """Add one token to every row of the cache; return its hidden state (B, D), float32."""
        before = prefix.length if prefix else 0
        rows, now = cache.rows, cache.end
        positions_B = before + now - cache.start_B
        turn = self._cos[positions_B], self._sin[positions_B]
        stream_BD: torch.Tensor = self._embedding[torch.tensor(ids)].float()
        branch = None
        for index, layer in enumerate(self._layers):
            heads = self._heads(layer, self._normed(stream_BD, branch, layer.norm_in), turn)
            keys, values = cache.keys[index], cache.values[index]
            shared = prefix.rows[index] if prefix else None
            mixed = attend_step_(heads, keys, values, cache.start_B, now, shared=shared, scale=self._scale)
            if mixed is None:
                mixed = self._attend_in_parts(heads, cache, prefix, index)
            branch = self._feed_forward(layer, stream_BD, mixed.reshape(rows, -1))
        cache.end += 1
        assert branch is not None
        return stream_BD.add_(branch)

    def _attend_in_parts(self, heads: torch.Tensor, cache: Cache, prefix: Prefix | None, index: int) -> torch.Tensor:
        """Do in torch what `attend_step_` does: (B, heads, E) in, (B, H, G, E) out."""
        q, k, v = self.split(heads)
        q = q.reshape(cache.rows, self.num_kv_heads, self.num_groups, self.head_size)
        keys, values, until = cache.keys[index], cache.values[index], cache.end + 1
        keys[:, :, cache.end], values[:, :, cache.end] = k, v
        parts = [
            self.attend(
                q[rows],
                keys[rows, :, begin:until].mT,
                values[rows, :, begin:until],
                cache.bias_BT[rows, None, begin:until],
                prefix,
                index,
            )
            for rows, begin in cache.spans()
        ]
        return torch.cat(parts)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (rows, V) of hidden states (rows, D)."""
        return self._head(self._normed(hidden, None, self._norm))

    def split(self, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cut (..., heads, E) into queries, keys and values."""
        q, k, v = torch.split(heads, [self._num_queries, self.num_kv_heads, self.num_kv_heads], dim=-2)
        return q, k, v

    def attend(
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

    def _heads(self, layer: Layer, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return all heads (n, H * G + 2 * H, E) of rows (n, D): queries and keys rotated, then values."""
        heads = layer.qkv(x).view(x.shape[0], -1, self.head_size)
        num_turned = self._num_queries + self.num_kv_heads
        if layer.q_norm is not None and layer.k_norm is not None:
            for norm, part in ((layer.q_norm, heads[:, : self._num_queries]),
                               (layer.k_norm, heads[:, self._num_queries : num_turned])):  # fmt: skip
                torch.mul(normalized(part, self._eps)[0], norm, out=part)
        rotate_(heads, num_turned, *turn, backward=False)
        return heads

    def _feed_forward(self, layer: Layer, stream: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Add attention's output to the stream, and return what the layer adds last."""
        gate_up = layer.gate_up(self._normed(stream, layer.out(mixed), layer.norm_mid))
        product = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        glu_(gate_up, product=product)
        return layer.down(product)

    def _normed(self, stream: torch.Tensor, branch: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """Add a branch to the float32 stream (n, D), in place, and return it normed, in the dtype of the weights."""
        normal, wide = (torch.empty(stream.shape, dtype=self.dtype) for _ in range(2))
        add_norm_(stream, branch, weight, self._eps, normal=normal, wide=wide)
        return wide


class _NewRows:
    """Attention of new rows, which lie end to end: (N, heads, E) in, (N, H * G * E) out, one call a layer."""

    def __init__(self, decoder: Decoder, lengths: Sequence[int], prefix: Prefix | None) -> None:
        self.decoder, self.lengths, self.prefix = decoder, lengths, prefix
        ends = torch.tensor(lengths).cumsum(0)
        self.bounds = torch.stack([ends - torch.tensor(lengths), ends], dim=1)
        self.in_blocks = compiled_attention.can_compute(
            torch.empty(0, decoder.head_size, dtype=decoder.dtype), softcap=None
        )

    def __call__(self, heads: torch.Tensor, index: int) -> torch.Tensor:
        shared = self.prefix.rows[index] if self.prefix else None
        if self.in_blocks:
            return self._in_blocks(heads, shared).view(len(heads), -1)
        mixed = attend_rows(
            heads, self.bounds, self.decoder.num_kv_heads, shared=shared, scale=self.decoder.head_size**-0.5
        )
        return self._spread(heads, index) if mixed is None else mixed.view(len(heads), -1)

    def _in_blocks(self, heads: torch.Tensor, shared: torch.Tensor | None) -> torch.Tensor:
        """Compute by training's loops, which multiply bfloat16; they want shared rows in the same tensor."""
        num_rows, total, size = heads.shape
        num_queries, before = total - 2 * self.decoder.num_kv_heads, 0 if shared is None else len(shared)
        if shared is not None:
            packed = heads.new_empty(before + num_rows, total, size)
            packed[:before, num_queries:] = shared  # Nobody asks for its queries.
            packed[before:] = heads
            heads = packed
        own = before + self.bounds
        documents = torch.cat([own, torch.tensor([0, before]).expand_as(own)], dim=1)
        out = heads.new_empty(len(heads), num_queries, size)
        compiled_attention.forward_(heads, documents, num_queries, scale=size**-0.5, window=None, out=out)
        return out[before:]

    @functools.cached_property
    def _block(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows as long as the longest, their ends aligned, one block for all layers; where tokens stand in it; bias."""
        decoder, width = self.decoder, max(self.lengths)
        ends = [(row + 1) * width for row in range(len(self.lengths))]
        place_N = torch.cat([torch.arange(end - n, end) for end, n in zip(ends, self.lengths, strict=True)])
        heads = decoder.num_kv_heads * (decoder.num_groups + 2)
        return torch.zeros(ends[-1], heads, decoder.head_size, dtype=decoder.dtype), place_N, self._bias()

    def _spread(self, heads: torch.Tensor, index: int) -> torch.Tensor:
        """Do it in torch, over a padded block."""
        decoder, rows, width = self.decoder, len(self.lengths), max(self.lengths)
        block, place_N, bias = self._block
        block[place_N] = heads
        q, k, v = decoder.split(block.view(rows, width, *heads.shape[1:]))
        # (R, W, H, G, E) -> (R, H, W * G, E): the queries of a head's group are further rows of one product
        grouped = (rows, width, decoder.num_kv_heads, decoder.num_groups, decoder.head_size)
        q = q.reshape(grouped).transpose(1, 2).flatten(2, 3)
        mixed = decoder.attend(q, k.permute(0, 2, 3, 1), v.transpose(1, 2), bias, self.prefix, index)
        mixed = mixed.view(rows, decoder.num_kv_heads, width, decoder.num_groups, decoder.head_size)
        return mixed.transpose(1, 2).reshape(rows * width, -1)[place_N]

    def _bias(self) -> torch.Tensor:
        """Return what is added to the scores (R, W * G, W): causal, and nothing before a row's first token."""
        width = max(self.lengths)
        index = torch.arange(width)
        causal = index[:, None] < index[None]
        outside = index[None] < (width - torch.tensor(self.lengths))[:, None]
        masked = causal[None] | outside[:, None]
        bias = torch.zeros(masked.shape, dtype=self.decoder.dtype).masked_fill_(masked, MASKED)
        return bias.repeat_interleave(self.decoder.num_groups, dim=1)
