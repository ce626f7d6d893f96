"""Score answers with the base model, for `curate.difficulty`.

What lives here: rows in, scores out, through the contract's tokens; kept as they are made, so that a crash costs one
chunk. What does not: what the scores mean (`data.difficulty`), likelihoods (`model.likelihood`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tunesmith.core.stage import Progress
from tunesmith.stages.encode import encode_rows
from tunesmith.types import Row, RowRole

if TYPE_CHECKING:
    import torch

    from tunesmith.chat.contract import Contract
    from tunesmith.chat.refusal import Refused
    from tunesmith.data.difficulty import AnswerScore, Unscored
    from tunesmith.types import Example

CHUNK_ROWS = 64
"""Rows scored between two lines of progress: what a crash can lose."""
BATCH_TOKENS = 1024
"""Bound on rows x longest answer of a batch: its logits have the size of the vocabulary."""

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids before an answer, ids of the answer."""


class AnswerScorer:
    """Scores rows with one model, loaded when the first row needs it; finished rows are read back from `cache`."""

    def __init__(
        self,
        contract: Contract,
        *,
        model_dir: Path,
        dtype: Literal["float32", "bfloat16"],
        device: str,
        cache: Path,
        progress: Progress,
    ) -> None:
        self._held_to = {RowRole.TASK: contract, RowRole.GENERAL: contract.for_general_rows()}
        self._header = _header(contract)
        self._model_dir, self._dtype, self._device = model_dir, dtype, device
        self._cache = cache
        self._progress = progress
        self._model: torch.nn.Module | None = None

    def __call__(self, rows: Sequence[Row]) -> list[AnswerScore | Unscored]:
        """Return a score for each row, or why it has none."""
        known = _read(self._cache)
        todo = [row for row in rows if row.id not in known]
        with self._cache.open("a", encoding="utf-8") as handle:
            if self._cache.stat().st_size:
                handle.write("\n")  # ends a line that a crash cut short
            for start in range(0, len(todo), CHUNK_ROWS):
                part = todo[start : start + CHUNK_ROWS]
                for row, score in zip(part, self._score(part), strict=True):
                    known[row.id] = score
                    handle.write(json.dumps({"row": row.id, **asdict(score)}) + "\n")
                handle.flush()
                self._progress(len(rows) - len(todo) + start + len(part), len(rows), "answers read by the base model")
        return [known[row.id] for row in rows]

    def _score(self, rows: Sequence[Row]) -> list[AnswerScore | Unscored]:
        from tunesmith.data.difficulty import AnswerScore, Unscored

        found = [self._pairs(made) for made in encode_rows(rows, self._held_to)]
        behind = [pair for pairs in found if not isinstance(pairs, Unscored) for pair in pairs]
        losses = iter(self._losses(behind))
        alone = iter(self._losses([(self._header, answer) for _, answer in behind]))
        out: list[AnswerScore | Unscored] = []
        for pairs in found:
            if isinstance(pairs, Unscored):
                out.append(pairs)
                continue
            num_tokens = sum(len(answer) for _, answer in pairs)
            out.append(
                AnswerScore(
                    num_tokens=num_tokens,
                    loss=sum(itertools.islice(losses, len(pairs))) / num_tokens,
                    loss_alone=sum(itertools.islice(alone, len(pairs))) / num_tokens,
                )
            )
        return out

    def _pairs(self, made: list[Example] | Refused) -> list[Pair] | Unscored:
        """Return what stands before each answer and the answer, as training would see them."""
        from tunesmith.chat.refusal import Refused
        from tunesmith.data.difficulty import Unscored
        from tunesmith.model.generate import context_length

        if isinstance(made, Refused):
            return Unscored(reason=f"the contract does not encode it: {made.what}")
        context = context_length(self._loaded())
        longest = max(len(example.ids) for example in made)
        if context is not None and longest > context:
            return Unscored(reason=f"it has {longest:,} tokens, the base model's context {context:,}")
        return [pair for example in made for pair in _answers(example)]

    def _losses(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the summed negative log-likelihood of each pair's answer."""
        from tunesmith.model.likelihood import log_likelihood

        return [-found.total for found in log_likelihood(self._loaded(), pairs, batch_tokens=BATCH_TOKENS)]

    def _loaded(self) -> torch.nn.Module:
        from tunesmith.model.load import load_model

        if self._model is None:
            self._model = load_model(self._model_dir, dtype=self._dtype).to(self._device)
        return self._model


def _header(contract: Contract) -> tuple[int, ...]:
    """Return the ids that the template opens an answer with; where it has none, one token that begins a text."""
    ids = contract.tokenizer.encode(contract.renderer.traits.generation_prompt).ids
    if ids:
        return tuple(ids)
    bos = contract.tokenizer.bos_id
    return (contract.stop_ids[0] if bos is None else bos,)


def _answers(example: Example) -> list[Pair]:
    """Return each run of trained tokens of an example, and what stands before it."""
    pairs, start = [], 0
    for trained, run in itertools.groupby(example.weights, key=lambda weight: weight > 0):
        stop = start + sum(1 for _ in run)
        if trained:
            pairs.append((example.ids[:start], example.ids[start:stop]))
        start = stop
    return pairs


def _read(path: Path) -> dict[str, AnswerScore | Unscored]:
    """Read finished scores; a line that a crash cut short is ignored."""
    from tunesmith.data.difficulty import AnswerScore, Unscored

    known: dict[str, AnswerScore | Unscored] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            record: Mapping[str, object] = json.loads(line)
        except json.JSONDecodeError:
            continue
        fields = {name: value for name, value in record.items() if name != "row"}
        known[str(record["row"])] = Unscored(**fields) if "reason" in fields else AnswerScore(**fields)  # type: ignore[arg-type]
    return known
