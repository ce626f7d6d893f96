"""Answers of any causal model of transformers, on any device: rows padded on the left, finished ones removed.

What lives here: batches and their cache. What does not: rows and the choice of a token (`model.rows`), the engine for
Llama-shaped models on the CPU (`model.continuous`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunesmith.model.rows import Row, next_tokens, shared_prefix_length


def run_padded(
    model: torch.nn.Module,
    rows: list[Row],
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_tokens: int,
) -> Iterator[Row]:
    """Answer batch after batch with the model's own forward."""
    prompts = [row.prompt for row in rows]
    for batch in _batches(prompts, batch_tokens=batch_tokens, max_new_tokens=max_new_tokens):
        now = time.perf_counter()
        for index in batch:
            rows[index].started = now
        yield from _run_batch(
            model,
            [rows[index] for index in batch],
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
        )


def _run_batch(
    model: torch.nn.Module,
    rows: list[Row],
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> Iterator[Row]:
    """Answer one batch. Layout of the cache: [shared prefix][left padding][own suffix][new tokens]."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    prefix_len = shared_prefix_length([row.prompt for row in rows]) if _all_layers_attend_fully(model) else 0
    suffixes = [row.prompt[prefix_len:] for row in rows]
    width = max(len(suffix) for suffix in suffixes)
    cache = DynamicCache(config=model.config)
    if prefix_len:
        prefix = torch.tensor([rows[0].prompt[:prefix_len]], device=device)
        model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(rows))
    ids = torch.tensor([[0] * (width - len(suffix)) + list(suffix) for suffix in suffixes], device=device)
    own = torch.tensor([[0] * (width - len(suffix)) + [1] * len(suffix) for suffix in suffixes], device=device)
    mask = torch.cat([own.new_ones(len(rows), prefix_len), own], dim=1)
    positions = (mask.cumsum(1) - 1).clamp_(min=0)[:, prefix_len:]
    while True:
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = next_tokens(output.logits[:, -1], rows, temperature=temperature, top_p=top_p)
        keep = []
        for place, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            if row.accept(token, stop_ids=stop_ids, max_new_tokens=max_new_tokens):
                keep.append(place)
            else:
                yield row
        if not keep:
            return
        if len(keep) < len(rows):
            kept = torch.tensor(keep, device=device)
            cache.batch_select_indices(kept)
            mask, positions = mask[kept], positions[kept]
            rows, chosen = [rows[place] for place in keep], [chosen[place] for place in keep]
        ids = torch.tensor(chosen, device=device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1


def _all_layers_attend_fully(model: torch.nn.Module) -> bool:
    """Whether no layer has a window: windows count cache slots, and the padding behind a shared prefix takes some."""
    config: Any = model.config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None


def _batches(prompts: Sequence[Sequence[int]], *, batch_tokens: int, max_new_tokens: int) -> list[list[int]]:
    """Return prompt indices grouped so that rows x (longest + new) stays within `batch_tokens`, longest first."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    batches: list[list[int]] = []
    rows_fit = 0
    for index in order:
        if not batches or len(batches[-1]) >= rows_fit:
            batches.append([])
            rows_fit = max(1, batch_tokens // (len(prompts[index]) + max_new_tokens))
        batches[-1].append(index)
    return batches
