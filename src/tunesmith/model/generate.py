"""Generate answers for many prompts at once.

What lives here: the one entry point, and the choice between two engines. What does not: sampling (`model.rows`),
rendering prompts (`chat.contract`), parsing answers (`evals`), the network.

    completions = generate(model, [[1, 7, 9], [1, 7, 4, 2]], stop_ids=(2,), max_new_tokens=32)

- `flat` runs Llama-shaped models on the CPU without padding, and refills its batch as rows end (`model.decoder`,
  `model.continuous`). Before it is used, its logits are compared with those of the model itself.
- `padded` runs any causal model of transformers, on any device: rows sorted by length, finished rows removed
  (`model.padded`).

Both compute what all prompts begin with once. Greedy answers in float32 equal `model.generate` of transformers token by
token (`tests/parity`). Sampling draws from one random stream per row, seeded by the seed and the prompt itself, so that
an answer does not depend on which rows shared its batch, nor on what was already cached.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tunesmith.errors import DataError
from tunesmith.model.continuous import run_continuous
from tunesmith.model.decoder import Decoder
from tunesmith.model.decoder_weights import unsupported
from tunesmith.model.padded import run_padded
from tunesmith.model.rows import Constraint, Row, next_tokens, shared_prefix_length, stream_seeds
from tunesmith.types import Completion

BATCH_TOKENS = 32_768
"""Default bound on rows x (longest prompt + new tokens) of one batch: the size of its key-value cache. For a model of
135 million parameters in bfloat16 that is 0.75 GB, for one of 8 billion 4.3 GB."""
MAX_POSITIONS = 1 << 15
"""Positions prepared for a model whose config names no limit."""
CHECK_TOKENS = 16
"""Tokens of the first prompt on which the flat engine must agree with the model."""

MIN_SHARED_PREFIX = 16
"""Tokens that all prompts must begin with for the flat engine to compute them apart: below, the attention over two
pieces costs each step more than computing a few tokens again costs each row once."""

GenerateProgress = Callable[[int, int], None]
"""`progress(finished rows, all rows)`."""


Engine = Literal["flat", "padded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Which engine answers, and why."""

    engine: Engine
    reason: str


def choose_engine(model: torch.nn.Module) -> EngineChoice:
    """Return the engine that `generate` takes for this model."""
    reason = unsupported(model)
    if reason is not None:
        return EngineChoice(engine="padded", reason=reason)
    return EngineChoice(engine="flat", reason="a Llama-shaped model on the CPU")


def generate(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    make_constraint: Callable[[], Constraint] | None = None,
    engine: Engine | None = None,
    decoder: Decoder | None = None,
    progress: GenerateProgress | None = None,
) -> list[Completion]:
    """Return one completion for each prompt, in order; the stop token is not part of an answer.

    `temperature` 0 is greedy. `make_constraint` makes one constraint for each answer; an answer that ran into its limit
    is still incomplete, so whoever reads it checks it all the same. `Completion.seconds` is the wall time from the
    row's first computation to its last token. `engine` names one; by default `choose_engine` does. `decoder`
    is what `make_decoder` returned for this very model and weights, for callers that generate more than once. Raises
    `DataError` for an empty prompt, or one that does not fit the model's context with `max_new_tokens`.
    """
    check_prompts(model, prompts, max_new_tokens=max_new_tokens)
    assert temperature >= 0, temperature
    assert 0 < top_p <= 1, top_p
    assert max_new_tokens > 0, max_new_tokens
    if not prompts:
        return []
    rows = [Row(index=index, prompt=tuple(prompt)) for index, prompt in enumerate(prompts)]
    if temperature > 0:
        for row, stream_seed in zip(rows, stream_seeds(prompts, seed), strict=True):
            row.random = torch.Generator().manual_seed(stream_seed)
    if make_constraint is not None:
        for row in rows:
            row.constraint = make_constraint()
    flat = decoder is not None or (engine or choose_engine(model).engine) == "flat"
    run = functools.partial(_run_flat, decoder=decoder) if flat else run_padded
    done: dict[int, Completion] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for row in run(
                model,
                rows,
                stop_ids=frozenset(stop_ids),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                batch_tokens=batch_tokens,
            ):
                done[row.index] = row.completion()
                if progress is not None:
                    progress(len(done), len(prompts))
    finally:
        model.train(was_training)
    return [done[index] for index in range(len(prompts))]


def _run_flat(
    model: torch.nn.Module,
    rows: list[Row],
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_tokens: int,
    decoder: Decoder | None,
) -> Iterator[Row]:
    """Answer with `model.decoder`, after checking it against the model itself."""
    prompts = [row.prompt for row in rows]
    if decoder is None:
        decoder = Decoder(model, max_positions=max(map(len, prompts)) + max_new_tokens)
        check_decoder(decoder, model, prompts[0])
    shared = shared_prefix_length(prompts)

    def choose_tokens(logits: torch.Tensor, indices: Sequence[int]) -> list[int]:
        return next_tokens(logits, [rows[index] for index in indices], temperature=temperature, top_p=top_p)

    def admit(indices: Sequence[int]) -> None:
        now = time.perf_counter()
        for index in indices:
            rows[index].started = now

    ended = run_continuous(
        decoder,
        prompts,
        prefix_length=shared if shared >= MIN_SHARED_PREFIX else 0,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        choose=choose_tokens,
        accept=lambda index, token: rows[index].accept(token, stop_ids=stop_ids, max_new_tokens=max_new_tokens),
        admit=admit,
    )
    for index in ended:
        yield rows[index]


def make_decoder(model: torch.nn.Module, *, sample: Sequence[int]) -> Decoder | None:
    """Return the flat engine for a model, checked on `sample`, or `None` where the padded engine answers.

    It copies the weights: one that was made before they changed must not be used after.
    """
    if choose_engine(model).engine != "flat":
        return None
    with torch.inference_mode():
        decoder = Decoder(model, max_positions=context_length(model) or MAX_POSITIONS)
        check_decoder(decoder, model, sample)
    return decoder


def check_decoder(decoder: Decoder, model: torch.nn.Module, prompt: Sequence[int]) -> None:
    """Raise `AssertionError` where the decoder's logits after a few tokens are not those of the model.

    It costs one short forward and catches what no test can: a model file whose code differs from the architecture that
    its name promises, or a new version of transformers.
    """
    ids = list(prompt[:CHECK_TOKENS])
    _, hidden = decoder.prefill([ids], None)
    ours = decoder.head(hidden)[0].float()
    theirs = model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1].float()
    gap, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    tolerance = 1e-3 if decoder.dtype == torch.float32 else 0.1
    assert gap <= tolerance * scale, f"the flat decoder is off by {gap:.3g} where logits reach {scale:.3g}"


def check_prompts(model: torch.nn.Module, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> None:
    """Raise `DataError` for prompts that the model cannot answer: empty, or longer than its context."""
    context = context_length(model)
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise DataError("a prompt has no tokens", where=f"prompt {index}")
        if context is not None and len(prompt) + max_new_tokens > context:
            raise DataError(
                "a prompt does not fit the model's context",
                where=f"prompt {index}",
                expected=f"at most {context} tokens",
                found=f"{len(prompt)} tokens of prompt and {max_new_tokens} new ones",
                hint="lower decoding.max_new_tokens, or leave the row out",
            )


def context_length(model: torch.nn.Module) -> int | None:
    """Return the number of positions that the model's config allows, or `None` where it names none."""
    config: Any = model.config
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length is not None else None
