"""Keep a batch full: finished rows make place for waiting prompts, so that no product runs half empty.

What lives here: which row sits in which slot, and when new prompts are computed. What does not: the arithmetic
(`model.decoder`), the choice of a token (handed in).

Prompts wait longest first. That keeps new rows narrower than running ones, which is what the cache's common clock
needs, and leaves the short ones for the end, where the batch runs empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from tunesmith.model.decoder import Decoder
from tunesmith.model.decoder_cache import Cache, Prefix

MAX_ROWS = 96
"""Most rows that run at once: products gain little beyond, and attention grows with every row."""
_REFILL_SHARE = 8
"""New prompts are computed when this fraction of the slots (one in eight) is free: several at once fill a product."""
_SLACK = 32
"""Steps between two moves of the cache to the front of its buffer, at the least."""
_PREFILL_ELEMENTS = 1 << 24
"""Bound on the attention scores of one prefill."""
_ALIKE, _FEWEST = 0.7, 4
"""Rows join one prefill while they are at least this long against its longest, and at least so many: attention computes
every row as long as the longest, and a product of few tokens is slow."""

Choose = Callable[[torch.Tensor, Sequence[int]], list[int]]
"""(logits of some rows, their indices) -> one token for each."""
Admit = Callable[[Sequence[int]], None]
"""Told which rows are about to be computed for the first time."""


def run_continuous(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    prefix_length: int,
    max_new_tokens: int,
    batch_tokens: int,
    choose: Choose,
    accept: Callable[[int, int], bool],
    admit: Admit,
) -> Iterator[int]:
    """Answer prompts whose first `prefix_length` tokens are the same; yield the index of each row that ended.

    `accept(index, token)` takes a row's next token and says whether the row goes on. `admit` is called before rows
    are computed. `batch_tokens` bounds rows x positions of the cache.
    """
    waiting = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    suffixes = [prompt[prefix_length:] for prompt in prompts]
    span = len(suffixes[waiting[0]]) + max_new_tokens
    num_slots = max(1, min(len(prompts), MAX_ROWS, batch_tokens // (span + _SLACK)))
    # Without refills the clock never passes the longest row
    capacity = span + (_SLACK if len(prompts) > num_slots else 0)
    prefix = decoder.prefix(prompts[0][:prefix_length])
    cache = Cache(decoder, rows=num_slots, capacity=capacity)
    rows: list[int | None] = [None] * num_slots  # which prompt sits in each slot
    tokens = [0] * num_slots
    while True:
        free = [slot for slot, row in enumerate(rows) if row is None]
        if waiting and (len(free) * _REFILL_SHARE >= num_slots or len(free) == len(rows)):
            yield from _fill_(
                decoder, cache, prefix, suffixes, waiting, rows, tokens, free, choose=choose, accept=accept, admit=admit
            )
        elif not waiting and free and len(free) * _REFILL_SHARE >= len(rows):
            alive = _together([row is not None for row in rows])
            if not alive:
                return
            cache.keep_(alive)
            rows, tokens = [rows[slot] for slot in alive], [tokens[slot] for slot in alive]
        if all(row is None for row in rows):
            if not waiting:
                return
            continue
        cache.make_room_()
        hidden = decoder.step(tokens, cache, prefix)
        running = [slot for slot, row in enumerate(rows) if row is not None]
        indices = [row for row in rows if row is not None]
        if len(running) < len(rows):
            hidden = hidden[running]
        ended = []
        for slot, index, token in zip(running, indices, choose(decoder.head(hidden), indices), strict=True):
            tokens[slot] = token
            if not accept(index, token):
                rows[slot] = None
                ended.append(slot)
                yield index
        cache.free_(ended)


def _together(occupied: Sequence[bool]) -> list[int]:
    """Return the occupied slots, the last of them in the place of the free ones, so that few rows move."""
    alive = [slot for slot, is_occupied in enumerate(occupied) if is_occupied]
    last = [slot for slot in alive if slot >= len(alive)]
    return [slot if occupied[slot] else last.pop() for slot in range(len(alive))]


def _fill_(
    decoder: Decoder,
    cache: Cache,
    prefix: Prefix | None,
    suffixes: Sequence[Sequence[int]],
    waiting: list[int],
    rows: list[int | None],
    tokens: list[int],
    free: list[int],
    *,
    choose: Choose,
    accept: Callable[[int, int], bool],
    admit: Admit,
) -> Iterator[int]:
    """Put waiting prompts into free slots, in pieces that bound memory; yield those that end with their first token."""
    while free and waiting:
        width = len(suffixes[waiting[0]])
        scores = width * (width + (prefix.length if prefix else 0)) * decoder.num_kv_heads * decoder.num_groups
        alike = sum(len(suffixes[index]) >= _ALIKE * width for index in waiting[: len(free)])
        count = min(max(alike, _FEWEST), len(free), len(waiting), max(1, _PREFILL_ELEMENTS // scores))
        indices, slots = waiting[:count], free[:count]
        del waiting[:count]
        admit(indices)
        block, hidden = decoder.prefill([suffixes[index] for index in indices], prefix)
        cache.put_(slots, block)
        for slot, index, token in zip(slots, indices, choose(decoder.head(hidden), indices), strict=True):
            tokens[slot] = token
            if accept(index, token):
                rows[slot] = index
                free.remove(slot)
            else:
                cache.free_([slot])
                yield index
