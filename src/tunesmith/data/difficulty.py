"""Difficulty: how surprising an answer is to the base model, with its prompt and without it.

What lives here: the two figures, what is done with rows outside their limits, and `answer_scores.parquet`. What does
not: the model (a `ScoreAnswers` is handed in by the stage).

    perplexity = exp(mean loss of the answer's trained tokens behind their prompt)
    IFD        = that / exp(mean loss of the same tokens behind nothing but the header of the turn)

An IFD of 1 and more says that the prompt makes the answer no likelier: the two may not belong together. A low one says
that the model gives this answer anyway. Source: Li et al. 2024, Superfiltering (arXiv:2402.00530), equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high

import pyarrow as pa
import pyarrow.parquet as pq

from tunesmith.data.filters import Action
from tunesmith.data.lineage import Ledger
from tunesmith.types import JSON, Row

MAX_LOSS = 700.0
"""exp() of more is no finite number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScore:
    """What the base model says of the answers of one row: mean losses in nats a token."""

    num_tokens: int
    """Trained tokens, over all answers of the row."""
    loss: float
    """Behind their prompts, as training would see them."""
    loss_alone: float
    """The same tokens, each answer behind the header of its turn only."""

    @property
    def perplexity(self) -> float:
        """How many tokens the model hesitates between, on average."""
        return math.exp(min(self.loss, MAX_LOSS))

    @property
    def ifd(self) -> float:
        """Instruction-following difficulty."""
        return math.exp(min(self.loss - self.loss_alone, MAX_LOSS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """Why a row has no score."""

    reason: str


ScoreAnswers = Callable[[Sequence[Row]], list[AnswerScore | Unscored]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """Limits, and what follows for a row outside them. `None` is no limit."""

    score: ScoreAnswers
    max_perplexity: float | None
    min_ifd: float | None
    max_ifd: float | None
    action: Action


Scored = list[tuple[Row, AnswerScore | Unscored]]


def judge_difficulty(
    rows: Sequence[Row], ledger: Ledger, difficulty: Difficulty, *, pinned: frozenset[str]
) -> tuple[list[Row], Scored]:
    """Flag or drop rows outside the limits; return the rows that stay, and the scores of all.

    A row that cannot be scored stays, flagged `not_scored`; rows in `pinned` are never dropped.
    """
    scored = list(zip(rows, difficulty.score(rows), strict=True))
    kept = []
    for row, score in scored:
        if isinstance(score, Unscored):
            ledger.flag(row, reason="not_scored", detail=score.reason)
            kept.append(row)
            continue
        found = _outside(score, difficulty)
        if found and difficulty.action == "drop" and row.id not in pinned:
            reason, detail, value = found[0]
            ledger.drop(row, reason=reason, detail=detail, score=value)
            continue
        for reason, detail, value in found:
            ledger.flag(row, reason=reason, detail=detail, score=value)
        kept.append(row)
    return kept, scored


def _outside(score: AnswerScore, difficulty: Difficulty) -> list[tuple[str, str, float]]:
    """Return (reason, detail, value) for each limit that a row breaks."""
    found = []
    if difficulty.max_ifd is not None and score.ifd > difficulty.max_ifd:
        detail = f"expected an IFD of at most {difficulty.max_ifd:g}, found {score.ifd:.3f}: the prompt hardly helps"
        found.append(("high_ifd", detail, score.ifd))
    if difficulty.min_ifd is not None and score.ifd < difficulty.min_ifd:
        detail = f"expected an IFD of at least {difficulty.min_ifd:g}, found {score.ifd:.3f}: the base knows it already"
        found.append(("low_ifd", detail, score.ifd))
    if difficulty.max_perplexity is not None and score.perplexity > difficulty.max_perplexity:
        detail = f"expected a perplexity of at most {difficulty.max_perplexity:g}, found {score.perplexity:,.1f}"
        found.append(("high_perplexity", detail, score.perplexity))
    return found


def write_scores(path: Path, scored: Scored) -> None:
    """Write one record a row: `row_id`, `num_tokens`, `loss`, `loss_alone`, `perplexity`, `ifd`, `not_scored`."""
    numbers = [None if isinstance(score, Unscored) else score for _, score in scored]

    def column(read: Callable[[AnswerScore], float]) -> pa.Array:
        return pa.array([None if score is None else read(score) for score in numbers], pa.float64())

    columns = {
        "row_id": pa.array([row.id for row, _ in scored], pa.string()),
        "num_tokens": pa.array([None if score is None else score.num_tokens for score in numbers], pa.int64()),
        "loss": column(lambda score: score.loss),
        "loss_alone": column(lambda score: score.loss_alone),
        "perplexity": column(lambda score: score.perplexity),
        "ifd": column(lambda score: score.ifd),
        "not_scored": pa.array(
            [score.reason if isinstance(score, Unscored) else None for _, score in scored], pa.string()
        ),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def difficulty_summary(scored: Scored) -> dict[str, JSON]:
    """Return counts and medians of the scored rows."""
    scores = [score for _, score in scored if isinstance(score, AnswerScore)]
    return {
        "scored": len(scores),
        "not_scored": len(scored) - len(scores),
        "median_perplexity": median_high(score.perplexity for score in scores) if scores else None,
        "median_ifd": median_high(score.ifd for score in scores) if scores else None,
    }
