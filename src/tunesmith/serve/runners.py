"""Runners: the arithmetic under the engine. A state is the running rows of one lane; each step adds a token to all.

    state, logits_RV = runner.prefill(lane, prompts)     # new rows
    state = runner.join(running, state)                  # they run together from now on
    state, logits_BV = runner.step(lane, state, tokens)
    state = runner.keep(state, [0, 2])                   # row 1 has ended

- `FlatRunner` runs Llama-shaped models on the CPU over `model.decoder`: adapter folded in, no padding in the products,
  and what all prompts of a contract begin with computed once.
- `PaddedRunner` runs any causal model of transformers, on any device, rows padded on the left.

What lives here: tensors. What does not: which rows run when, tokens, constraints (`serve.batching`).
A lane is a set of rows that one forward pass can hold: the same weights, and the same shared prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from tunesmith.errors import ServeError
from tunesmith.model.decoder import Decoder
from tunesmith.model.decoder_cache import MASKED, Block, Cache, Prefix
from tunesmith.model.decoder_weights import unsupported
from tunesmith.model.generate import check_decoder, context_length
from tunesmith.serve.engines import Weights

_ATTENTION_LAYERS = ("full_attention", "sliding_attention")
"""Layer types whose cache is keys and values by position, so that rows can join and leave."""
_ROOM = 64
"""Positions that a cache is made longer than it must be."""
_PREFILL_TOKENS = 1024
"""Prompts share a prefill while rows x longest stays below this: attention computes every row as the longest one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What rows must share to run together."""

    weights: Weights
    has_prefix: bool
    """Whether the rows begin with what all prompts of the contract begin with."""


class Runner(Protocol):
    """The arithmetic of one model, adapter and base. Used from one thread at a time."""

    name: str
    vocab_size: int
    context_length: int | None
    has_adapter: bool

    def lane(self, prompt: Sequence[int], weights: Weights) -> Lane:
        """Return the lane that a prompt runs in."""
        ...

    def prefill(self, lane: Lane, prompts: Sequence[Sequence[int]]) -> tuple[Any, torch.Tensor]:
        """Compute new rows; return their state and the logits of the next tokens (rows, vocabulary)."""
        ...

    def step(self, lane: Lane, state: Any, tokens: Sequence[int]) -> tuple[Any, torch.Tensor]:
        """Add one token to every row. The old state must not be used again."""
        ...

    def join(self, one: Any, two: Any) -> Any:
        """Return the rows of both, in order."""
        ...

    def keep(self, state: Any, rows: Sequence[int]) -> Any:
        """Return these rows alone. The old state must not be used again."""
        ...


def choose_runner(model: torch.nn.Module, *, prefix: Sequence[int]) -> tuple[Runner, str]:
    """Return the runner for a model, and why. `prefix` is what prompts usually begin with.

    Raises `ServeError` for an architecture that neither can run.
    """
    reason = unsupported(model)
    if reason is None:
        return FlatRunner(model, prefix=prefix), "a Llama-shaped model on the CPU"
    return PaddedRunner(model), reason


@contextmanager
def _with_weights(model: Any, weights: Weights) -> Iterator[None]:
    off = weights is Weights.BASE and hasattr(model, "disable_adapter")
    with model.disable_adapter() if off else nullcontext():
        yield


class FlatRunner:
    """Answers with `model.decoder`. The base's weights are laid out when the first request asks for the base."""

    name = "flat"

    def __init__(self, model: torch.nn.Module, *, prefix: Sequence[int]) -> None:
        config: Any = model.config
        self.vocab_size = int(config.vocab_size)
        self.context_length = context_length(model)
        self.has_adapter = hasattr(model, "disable_adapter")
        self._model = model
        self._prefix_ids = list(prefix)
        self._decoders: dict[Weights, tuple[Decoder, Prefix | None]] = {}
        with torch.inference_mode():
            self._decoder(Weights.ADAPTER if self.has_adapter else Weights.BASE)

    def _decoder(self, weights: Weights) -> tuple[Decoder, Prefix | None]:
        weights = weights if self.has_adapter else Weights.BASE  # without an adapter there is one set of weights
        if weights not in self._decoders:
            with _with_weights(self._model, weights):
                decoder = Decoder(self._model, max_positions=self.context_length or 1 << 15)
                check_decoder(decoder, self._model, self._prefix_ids or [0])
            self._decoders[weights] = decoder, decoder.prefix(self._prefix_ids)
        return self._decoders[weights]

    def lane(self, prompt: Sequence[int], weights: Weights) -> Lane:
        """Return the lane: a prompt that is the prefix and no more has none, since a row needs a token of its own."""
        length = len(self._prefix_ids)
        has_prefix = 0 < length < len(prompt) and list(prompt[:length]) == self._prefix_ids
        return Lane(weights=weights, has_prefix=has_prefix)

    def prefill(self, lane: Lane, prompts: Sequence[Sequence[int]]) -> tuple[Cache, torch.Tensor]:
        """Compute new rows, in groups whose attention stays small."""
        decoder, prefix = self._parts(lane)
        rows = [list(prompt[prefix.length if prefix else 0 :]) for prompt in prompts]
        caches, hidden = [], []
        for group in _groups(rows):
            block, last = decoder.prefill(group, prefix)
            caches.append(_cache_of_block(decoder, block))
            hidden.append(last)
        state = caches[0]
        for cache in caches[1:]:
            state = self.join(state, cache)
        return state, decoder.head(torch.cat(hidden))

    def step(self, lane: Lane, state: Cache, tokens: Sequence[int]) -> tuple[Cache, torch.Tensor]:
        """Add one token to every row, after making room for it."""
        decoder, prefix = self._parts(lane)
        if state.end == state.capacity:
            state = _rows_together(decoder, [state])
        return state, decoder.head(decoder.step(tokens, state, prefix))

    def join(self, one: Cache, two: Cache) -> Cache:
        """Return one cache with the rows of both, aligned at their ends."""
        return _rows_together(next(iter(self._decoders.values()))[0], [one, two])

    def keep(self, state: Cache, rows: Sequence[int]) -> Cache:
        """Drop the other rows."""
        state.keep_(rows)
        return state

    def _parts(self, lane: Lane) -> tuple[Decoder, Prefix | None]:
        decoder, prefix = self._decoder(lane.weights)
        return decoder, prefix if lane.has_prefix else None


def _groups(rows: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    for row in rows:
        longest = max(len(item) for item in (*group, row))
        if group and longest * (len(group) + 1) > _PREFILL_TOKENS:
            yield group
            group = []
        group.append(row)
    yield group


def _cache_of_block(decoder: Decoder, block: Block) -> Cache:
    cache = Cache(decoder, rows=len(block.lengths), capacity=block.width + _ROOM)
    cache.put_(range(len(block.lengths)), block)
    return cache


def _rows_together(decoder: Decoder, caches: Sequence[Cache]) -> Cache:
    """Return a roomier cache with the rows of all, their ends at one index, and no column that nobody owns."""
    kept = [cache.end - cache.begin for cache in caches]
    width = max(kept)
    out = Cache(decoder, rows=sum(cache.rows for cache in caches), capacity=width + _ROOM)
    first = 0
    for cache, length in zip(caches, kept, strict=True):
        rows = slice(first, first + cache.rows)
        first += cache.rows
        here, there = slice(width - length, width), slice(cache.begin, cache.end)
        for layer in range(decoder.num_layers):
            out.keys[layer][rows, :, here] = cache.keys[layer][:, :, there]
            out.values[layer][rows, :, here] = cache.values[layer][:, :, there]
        out.bias_BT[rows, : width - length] = MASKED
        out.bias_BT[rows, here] = cache.bias_BT[:, there]
        out.start_B[rows] = cache.start_B + (width - cache.end)
    out.end = width
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Padded:
    """Rows under transformers' cache, padded on the left: B rows, T positions."""

    cache: DynamicCache
    mask_BT: torch.Tensor
    places_B: torch.Tensor
    """Position of each row's next token."""


class PaddedRunner:
    """Answers with the model itself, under a cache of transformers."""

    name = "transformers"

    def __init__(self, model: torch.nn.Module) -> None:
        """Take the model. Raises `ServeError` where rows of its cache cannot join and leave."""
        config: Any = model.config
        self.vocab_size = int(config.vocab_size)
        self.context_length = context_length(model)
        self.has_adapter = hasattr(model, "disable_adapter")
        self._model: Any = model
        self._device = next(model.parameters()).device
        for kind in getattr(config, "layer_types", None) or ():
            if kind not in _ATTENTION_LAYERS:
                raise ServeError(
                    f"the transformers engine cannot batch layers of type {kind!r}",
                    expected=" or ".join(_ATTENTION_LAYERS),
                    hint="serve this model with vLLM",
                )

    def lane(self, prompt: Sequence[int], weights: Weights) -> Lane:
        """Return the lane of the weights."""
        return Lane(weights=weights, has_prefix=False)

    def prefill(self, lane: Lane, prompts: Sequence[Sequence[int]]) -> tuple[_Padded, torch.Tensor]:
        """Compute new rows in one pass."""
        width = max(len(prompt) for prompt in prompts)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self._device)
        state = _Padded(cache=DynamicCache(), mask_BT=mask, places_B=mask.sum(1))
        return state, self._forward(lane, state, ids, (mask.cumsum(1) - 1).clamp_(min=0))

    def step(self, lane: Lane, state: _Padded, tokens: Sequence[int]) -> tuple[_Padded, torch.Tensor]:
        """Add one token to every row."""
        ids = torch.tensor(list(tokens), device=self._device)[:, None]
        mask = torch.nn.functional.pad(state.mask_BT, (0, 1), value=1)
        new = replace(state, mask_BT=mask, places_B=state.places_B + 1)
        return new, self._forward(lane, new, ids, state.places_B[:, None])

    def join(self, one: _Padded, two: _Padded) -> _Padded:
        """Return one cache with the rows of both, the shorter ones padded on the left."""
        width = max(one.mask_BT.shape[1], two.mask_BT.shape[1])
        pads = [width - state.mask_BT.shape[1] for state in (one, two)]
        layers = [
            (
                torch.cat([_left_padded(left.keys, pads[0]), _left_padded(right.keys, pads[1])]),
                torch.cat([_left_padded(left.values, pads[0]), _left_padded(right.values, pads[1])]),
            )
            for left, right in zip(one.cache.layers, two.cache.layers, strict=True)
        ]
        masks = [torch.nn.functional.pad(state.mask_BT, (pad, 0)) for state, pad in zip((one, two), pads, strict=True)]
        return _Padded(
            cache=_cache_of(layers), mask_BT=torch.cat(masks), places_B=torch.cat([one.places_B, two.places_B])
        )

    def keep(self, state: _Padded, rows: Sequence[int]) -> _Padded:
        """Drop the other rows, and the columns that are padding for all who stay."""
        index = torch.tensor(list(rows), device=state.mask_BT.device)
        mask_BT = state.mask_BT[index]
        start = int((mask_BT.sum(0) > 0).int().argmax())
        layers = [(layer.keys[index][:, :, start:], layer.values[index][:, :, start:]) for layer in state.cache.layers]
        return _Padded(cache=_cache_of(layers), mask_BT=mask_BT[:, start:], places_B=state.places_B[index])

    def _forward(self, lane: Lane, state: _Padded, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        with _with_weights(self._model, lane.weights):
            output = self._model(
                input_ids=ids,
                attention_mask=state.mask_BT,
                position_ids=places,
                past_key_values=state.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def _left_padded(tensor_BHTD: Any, pad: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor_BHTD, (0, 0, pad, 0)) if pad else tensor_BHTD


def _cache_of(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache
