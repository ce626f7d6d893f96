"""Pairwise preference: win rate against a baseline, and what position and length had to do with it.

    votes = [Vote(item="q1", rater="r1", shown_first=Side.CANDIDATE, choice=Choice.FIRST, length_gap=12), ...]
    report = preference(votes)
    report.win_rate, report.first_shown, report.longer_wins, report.length_controlled

What lives here: votes, their win rate, the two biases, the length-controlled win rate. What does not: collecting votes
from people (`votes`) or from a model (`judge`), several models at once (`rating`).

A win counts 1, a tie one half, a loss 0. One rater's votes on one item under both orders are first averaged, so that a
rater who always takes the first answer says "tie" everywhere and yields exactly 50%. Votes of one order only cannot be
averaged; where both orders occur over the items, the two are given equal weight instead, which takes out a preference
for a position that is the same everywhere.
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tunesmith.errors import DataError
from tunesmith.evals.stats import LEVELS, Estimate, cluster_indices, critical, estimate
from tunesmith.types import JSON

Floats = npt.NDArray[np.float64]

PRIOR_SCALE_LENGTH = 2.5
"""Prior standard deviation of the length coefficient: a judge who goes by length alone has no finite estimate without
one (Gelman et al. 2008)."""
PRIOR_SCALE_INTERCEPT = 10.0
"""The same for the intercept, wide enough to leave 1 to 99% alone."""


class Side(enum.StrEnum):
    """The two answers of a pair."""

    CANDIDATE = "candidate"
    BASELINE = "baseline"


class Choice(enum.StrEnum):
    """What a rater said of two answers, by the place where they stood."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One rater's choice between the two answers to one item, in one order."""

    item: str
    rater: str
    shown_first: Side
    choice: Choice
    length_gap: float = 0.0
    """Length of the candidate's answer minus the baseline's, in characters."""
    cluster: str | None = None
    """Items that are not independent of each other share one; `None` is the item itself."""

    @property
    def candidate_score(self) -> float:
        """1 where the candidate was preferred, 0.5 for a tie, 0 where the baseline was."""
        if self.choice is Choice.TIE:
            return 0.5
        return float((self.choice is Choice.FIRST) == (self.shown_first is Side.CANDIDATE))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceReport:
    """What votes say, and how far they can be trusted."""

    win_rate: Estimate
    """Of the candidate, ties half. Both orders weigh the same."""
    shares: dict[str, float]
    """Shares of win, tie and loss among the judged (item, rater) pairs, both orders taken together."""
    first_shown: Estimate | None
    """Share of decided votes that went to the answer shown first: 0.5 without position bias. `None` without any."""
    position_biased: bool
    """Whether 0.5 lies outside its 95% interval."""
    flips: Estimate | None
    """Share of pairs judged in both orders whose decided winner changed with the order. `None` without such pairs."""
    longer_wins: Estimate | None
    """Share of decided pairs of unequal length that the longer answer won: 0.5 where length says nothing."""
    length_biased: bool
    """Whether 0.5 lies outside its 95% interval. Longer answers may also be better ones: read `length_controlled`."""
    length_controlled: Estimate | None
    """Win rate that the model of the votes gives to answers of equal length; `None` where length and system cannot be
    told apart, as where one system is always the longer."""
    num_votes: int
    num_items: int

    def to_json(self) -> dict[str, JSON]:
        """Return plain JSON."""
        out: dict[str, JSON] = {
            "shares": self.shares,
            "position_biased": self.position_biased,
            "length_biased": self.length_biased,
            "num_votes": self.num_votes,
            "num_items": self.num_items,
        }
        for name in ("win_rate", "first_shown", "flips", "longer_wins", "length_controlled"):
            found: Estimate | None = getattr(self, name)
            out[name] = None if found is None else found.to_json()
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """All that one rater said of one item."""

    score: float
    length_gap: float
    cluster: str
    flipped: bool | None
    """Whether two decided votes in opposite orders name different winners; `None` where there are no two."""
    weight: float = 1.0


def preference(votes: Sequence[Vote]) -> PreferenceReport:
    """Summarise votes. Intervals resample or cluster by item (or its cluster): raters of one item are not independent.

    Raises `DataError` without votes, and for two votes of one rater on one item in the same order: a vote that was
    withdrawn or repeated is the caller's to settle.
    """
    if not votes:
        raise DataError("there are no votes to summarise")
    pairs = _weigh_orders(_pairs(votes))
    decided = [vote for vote in votes if vote.choice is not Choice.TIE]
    first_shown = None
    if decided:
        went_first = [float(vote.choice is Choice.FIRST) for vote in decided]
        first_shown = estimate(went_first, clusters=[vote.cluster or vote.item for vote in decided])
    changes = [pair for pair in pairs if pair.flipped is not None]
    flips = None
    if changes:
        flips = estimate([float(bool(pair.flipped)) for pair in changes], clusters=[pair.cluster for pair in changes])
    unequal = [pair for pair in pairs if pair.length_gap != 0 and pair.score != 0.5]
    longer_wins = None
    if unequal:
        won = [float((pair.length_gap > 0) == (pair.score > 0.5)) for pair in unequal]
        longer_wins = estimate(won, clusters=[pair.cluster for pair in unequal])
    total = sum(pair.weight for pair in pairs)
    return PreferenceReport(
        win_rate=_win_rate(pairs),
        shares={
            "win": sum(pair.weight for pair in pairs if pair.score > 0.5) / total,
            "tie": sum(pair.weight for pair in pairs if pair.score == 0.5) / total,
            "loss": sum(pair.weight for pair in pairs if pair.score < 0.5) / total,
        },
        first_shown=first_shown,
        position_biased=_excludes_half(first_shown),
        flips=flips,
        longer_wins=longer_wins,
        length_biased=_excludes_half(longer_wins),
        length_controlled=length_controlled(
            [pair.score for pair in pairs],
            [pair.length_gap for pair in pairs],
            clusters=[pair.cluster for pair in pairs],
            weights=[pair.weight for pair in pairs],
        ),
        num_votes=len(votes),
        num_items=len({vote.item for vote in votes}),
    )


def _excludes_half(share: Estimate | None) -> bool:
    return share is not None and share.low is not None and share.high is not None and not share.low <= 0.5 <= share.high


def _pairs(votes: Sequence[Vote]) -> list[tuple[_Pair, Side | None]]:
    """Join the two orders of each (item, rater). The side says which order there is where there is only one."""
    grouped: dict[tuple[str, str], dict[Side, Vote]] = defaultdict(dict)
    for vote in votes:
        orders = grouped[vote.item, vote.rater]
        if vote.shown_first in orders:
            raise DataError(
                "one rater has two votes on one item in the same order",
                where=f"item {vote.item}, rater {vote.rater}, {vote.shown_first.value} shown first",
                hint="keep the last of a rater's votes, or give repeated judgements raters of their own",
            )
        orders[vote.shown_first] = vote
    out = []
    for (item, _), orders in grouped.items():
        scores = [vote.candidate_score for vote in orders.values()]
        vote = next(iter(orders.values()))
        both = len(orders) == 2
        pair = _Pair(
            score=sum(scores) / len(scores),
            length_gap=vote.length_gap,
            cluster=vote.cluster or item,
            flipped=scores[0] != scores[1] if both and 0.5 not in scores else None,
        )
        out.append((pair, None if both else vote.shown_first))
    return out


def _weigh_orders(found: list[tuple[_Pair, Side | None]]) -> list[_Pair]:
    """Give the two orders equal weight among the pairs that were judged in one order only."""
    counts = {side: sum(1 for _, order in found if order is side) for side in Side}
    single = sum(counts.values())
    out = []
    for pair, order in found:
        weight = 1.0
        if order is not None and all(counts.values()):
            weight = single / (2 * counts[order])
        out.append(replace(pair, weight=weight))
    return out


def _win_rate(pairs: Sequence[_Pair]) -> Estimate:
    """Return the weighted mean score. With equal weights it is `stats.estimate`; otherwise its robust equivalent."""
    if all(pair.weight == 1.0 for pair in pairs):
        return estimate([pair.score for pair in pairs], clusters=[pair.cluster for pair in pairs])
    weights = np.array([pair.weight for pair in pairs])
    scores = np.array([pair.score for pair in pairs])
    mean = float((weights * scores).sum() / weights.sum())
    labels = cluster_indices([pair.cluster for pair in pairs], len(pairs))
    groups = int(labels.max()) + 1
    sums = np.bincount(labels, weights=weights * (scores - mean))
    bounds = {}
    if groups >= 2:
        error = math.sqrt(groups / (groups - 1) * float((sums**2).sum())) / float(weights.sum())
        for level in LEVELS:
            half = critical(level, degrees=groups - 1) * error
            bounds[level] = (max(0.0, mean - half), min(1.0, mean + half))
    return Estimate(
        value=mean, n=len(pairs), intervals=bounds, method="t over clusters, orders weighted equally", clusters=groups
    )


# ---------------------------------------------------------------------------------------------------------- length


def length_controlled(
    scores: Sequence[float],
    gaps: Sequence[float],
    *,
    clusters: Sequence[Hashable],
    weights: Sequence[float] | None = None,
) -> Estimate | None:
    """Return the win rate at equal length, from a logistic model of the scores (0, 0.5, 1 or between).

    logit P(candidate) = theta + phi tanh(gap / sd of the gaps); the figure is sigmoid(theta). As in length-controlled
    AlpacaEval (Dubois et al. 2024, arXiv 2404.04475), without its term for the difficulty of an instruction, which
    needs other models' results. Its standard error there takes phi as known; here the interval comes from the
    cluster-robust (sandwich) covariance of both coefficients, so it is wider where length and system go together.

    `None` where system and length cannot be told apart: gaps that do not vary or all have one sign, scores that all
    go one way, or a length beyond which every vote goes one way and below which the other (the model then has no
    finite estimate, and a penalised one would only show the penalty).
    """
    gap, y = np.asarray(gaps, dtype=float), np.asarray(scores, dtype=float)
    spread = float(gap.std())
    if spread == 0 or (gap > 0).all() or (gap < 0).all() or _separable(y, gap):
        return None
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=float)
    features = np.column_stack([np.ones(gap.size), np.tanh(gap / spread)])
    penalty = np.array([PRIOR_SCALE_INTERCEPT**-2, PRIOR_SCALE_LENGTH**-2])
    theta = _fit_logistic(features, y, weights=w, penalty=penalty)
    labels = cluster_indices(clusters, gap.size)
    groups = int(labels.max()) + 1
    bounds = {}
    if groups > 2:
        error = _sandwich_error(features, y, theta, weights=w, penalty=penalty, labels=labels)
        for level in LEVELS:
            half = critical(level, degrees=groups - 2) * error
            low, high = _sigmoid(np.array([theta[0] - half, theta[0] + half]))
            bounds[level] = (float(low), float(high))
    value = float(_sigmoid(theta[0]))
    method = "logistic at equal length, cluster-robust t"
    return Estimate(value=value, n=gap.size, intervals=bounds, method=method, clusters=groups)


def _separable(scores: Floats, gaps: Floats) -> bool:
    """Whether one threshold on the gap divides the wins from the losses; ties may lie anywhere."""
    wins, losses = gaps[scores > 0.5], gaps[scores < 0.5]
    if wins.size == 0 or losses.size == 0:
        return bool((scores != 0.5).any())
    return bool(wins.min() >= losses.max() or wins.max() <= losses.min())


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _fit_logistic(features: Floats, scores: Floats, *, weights: Floats, penalty: Floats) -> Floats:
    """Return the penalised maximum likelihood of a logistic model with scores in [0, 1], by damped Newton steps."""
    beta = np.zeros(features.shape[1])

    def objective(at: Floats) -> float:
        logits = features @ at
        likelihood = weights * (scores * logits - np.logaddexp(0, logits))
        return float(likelihood.sum() - 0.5 * (penalty * at**2).sum())

    for _ in range(100):
        p = _sigmoid(features @ beta)
        gradient = features.T @ (weights * (scores - p)) - penalty * beta
        curvature = (features * (weights * p * (1 - p))[:, None]).T @ features + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        scale = 1.0
        while objective(beta + scale * step) < objective(beta) and scale > 1e-8:
            scale /= 2
        beta = beta + scale * step
        if float(np.abs(step).max()) < 1e-10:
            break
    return beta


def _sandwich_error(
    features: Floats, scores: Floats, beta: Floats, *, weights: Floats, penalty: Floats, labels: npt.NDArray[np.int64]
) -> float:
    """Return the cluster-robust standard error of the first coefficient."""
    p = _sigmoid(features @ beta)
    bread = np.linalg.inv((features * (weights * p * (1 - p))[:, None]).T @ features + np.diag(penalty))
    parts = features * (weights * (scores - p))[:, None]
    groups = int(labels.max()) + 1
    sums = np.zeros((groups, features.shape[1]))
    np.add.at(sums, labels, parts)
    covariance = bread @ (sums.T @ sums) @ bread * groups / max(1, groups - 1)
    return math.sqrt(float(covariance[0, 0]))
