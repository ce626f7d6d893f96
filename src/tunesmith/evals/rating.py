"""Bradley-Terry strengths of several models from pairwise results.

    ratings = bradley_terry([Match(a="tuned", b="base", score=1.0, prompt="q1"), ...])
    ratings[0].model, ratings[0].strength, ratings[0].low, ratings[0].high

What lives here: strengths, their intervals, ranks. What does not: two models only (`preference`).

P(a beats b) = 1 / (1 + exp(-(strength_a - strength_b))); a tie is half a win each way. Strengths are natural-log odds
and average to 0 over the models, so only differences mean anything. Intervals resample whole prompts: the answers of
all models to one prompt share its difficulty and its judge's mood.
Source: Bradley and Terry 1952; Ford 1957 for existence; Chiang et al. 2024 (Chatbot Arena) for bootstrap and ranks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunesmith.errors import DataError
from tunesmith.evals.stats import cluster_indices

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
SEED = 20_240_615
ELO_POINTS = 400 / math.log(10)
"""Elo points to one unit of strength: 400 points are odds of ten to one."""
_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One comparison of two models on one prompt."""

    a: str
    b: str
    score: float
    """1 where a won, 0 where b won, 0.5 for a tie; values between from votes in both orders."""
    prompt: Hashable


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """One model's strength among those that were compared."""

    model: str
    strength: float
    low: float
    """2.5% bound over resampled prompts."""
    high: float
    rank: int
    """1 plus the number of models that are clearly stronger: whose lower bound is above this one's upper bound."""
    matches: int

    @property
    def elo(self) -> float:
        """The strength on Elo's scale, with the average model at 1000."""
        return 1000 + ELO_POINTS * self.strength


def bradley_terry(matches: Sequence[Match], *, seed: int = SEED) -> list[Rating]:
    """Return the models' ratings, strongest first.

    Raises `DataError` where strengths are not defined: no matches, a model against itself, or a group of models that
    never lost (or never won) against the rest, which would be infinitely strong.
    """
    for match in matches:
        if match.a == match.b or not 0 <= match.score <= 1:
            raise DataError("a match needs two models and a score in [0, 1]", found=repr(match))
    models = sorted({match.a for match in matches} | {match.b for match in matches})
    if len(models) < 2:
        raise DataError("a rating needs matches between two models at least", found=f"{len(matches)} matches")
    place = {model: index for index, model in enumerate(models)}
    labels = cluster_indices([match.prompt for match in matches], len(matches))
    groups = int(labels.max()) + 1
    wins = np.zeros((groups, len(models), len(models)))
    for match, prompt in zip(matches, labels, strict=True):
        wins[prompt, place[match.a], place[match.b]] += match.score
        wins[prompt, place[match.b], place[match.a]] += 1 - match.score
    _require_connection(wins.sum(axis=0), models)
    strengths = _fit(wins.sum(axis=0))
    drawn = _resampled(wins, seed=seed)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    counts: dict[str, int] = defaultdict(int)
    for match in matches:
        counts[match.a] += 1
        counts[match.b] += 1
    ratings = [
        Rating(
            model=model,
            strength=float(strengths[index]),
            low=float(low[index]),
            high=float(high[index]),
            rank=1 + int((low > high[index]).sum()),
            matches=counts[model],
        )
        for index, model in enumerate(models)
    ]
    return sorted(ratings, key=lambda rating: (-rating.strength, rating.model))


def win_probability(stronger: Rating, weaker: Rating) -> float:
    """Return the chance that the first beats the second, by their strengths."""
    return 1 / (1 + math.exp(weaker.strength - stronger.strength))


def _fit(wins: Floats) -> Floats:
    """Return strengths, mean 0, that maximise the likelihood of a table of wins, or of a stack of tables, by Newton.

    The likelihood is concave and has its maximum at a finite place where every model beat every other directly or
    through others; `_require_connection` and `_made_finite` see to that.
    """
    games = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1)
    count = wins.shape[-1]
    at = np.zeros(won.shape)
    for _ in range(_STEPS):
        chance = 0.5 * (1 + np.tanh((at[..., :, None] - at[..., None, :]) / 2))
        slope = won - (games * chance).sum(axis=-1)
        bend = -games * chance * (1 - chance)
        diagonal = -bend.sum(axis=-1)
        # Only differences are determined: adding the all-ones matrix pins the mean without moving the solution
        curvature = bend + diagonal[..., None] * np.eye(count) + 1.0
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        at = at + np.clip(step, -2, 2)
        at = at - at.mean(axis=-1, keepdims=True)
        if float(np.abs(step).max()) < 1e-9:
            break
    return np.asarray(at)


def _resampled(wins: Floats, *, seed: int) -> Floats:
    """Return strengths over resampled prompts, one row a resample."""
    random = np.random.default_rng(seed)
    groups, count = wins.shape[0], wins.shape[1]
    weights = random.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES).astype(float)
    totals = (weights @ wins.reshape(groups, -1)).reshape(RESAMPLES, count, count)
    return _fit(np.array([_made_finite(total, whole=wins.sum(axis=0)) for total in totals]))


def _made_finite(total: Floats, *, whole: Floats) -> Floats:
    """Return a resample as it is, or, where some model beat all in it, with half a win each way between those that met.

    Leaving such resamples out would make the interval of a strong model too narrow on its far side.
    """
    return total if _reachable(total > 0).all() else total + 0.5 * ((whole + whole.T) > 0)


def _require_connection(wins: Floats, models: Sequence[str]) -> None:
    reach = _reachable(wins > 0)
    for index, model in enumerate(models):
        missed = [other for place, other in enumerate(models) if not reach[index, place]]
        if missed:
            raise DataError(
                "strengths are not defined: some models never won, directly or through others, against some",
                found=f"{model} never came out ahead of {', '.join(missed)}",
                hint="compare more prompts, or report the win rates of the pairs",
            )


def _reachable(beats: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return who is connected to whom by a chain of wins (Warshall's closure)."""
    reach = beats | np.eye(len(beats), dtype=bool)
    for middle in range(len(beats)):
        reach |= np.outer(reach[:, middle], reach[middle, :])
    return reach
