"""Drift: has what is asked, or what is answered, moved away from the reference? With the power to say so, or not.

What lives here: tests between two samples and their verdicts. What does not: which samples (`stages.monitor`).

    numeric_drift("prompt_chars", reference=[...], current=[...])       Kolmogorov-Smirnov, with the PSI beside it
    categorical_drift("answer.intent", reference=[...], current=[...])  chi-squared by permutation, Cramer's V
    word_drift("words", reference=[text, ...], current=[text, ...])     Jensen-Shannon, permuted over whole texts

A verdict is one of four. `drift`: significant and at least as large as what matters. `small`: significant, smaller.
`none`: not significant, though a shift that matters would have been found. `not_resolvable`: not significant, and with
so few observations a shift that matters may well have been missed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from tunesmith.types import JSON

Verdict = Literal["drift", "small", "none", "not_resolvable"]
Floats = npt.NDArray[np.float64]

ALPHA = 0.01
"""Level of the whole family of tests (Holm): monitors run often, and a false alarm each week is soon ignored."""
POWER_Z = float(stats.norm.ppf(0.8))
KS_MATTERS = 0.2
"""Largest distance of two distribution functions: a fifth of all prompts on another side of some length."""
V_MATTERS = 0.3
"""Cramer's V that Cohen (1988) calls a medium effect."""
JS_MATTERS = 0.1
"""Bits, above what chance gives: about a change of topic for a tenth of the texts."""
PSI_BINS = 10
PERMUTATIONS = 999
MAX_WORDS = 500
"""Most frequent words of both sides that are compared; rarer ones count together."""
MAX_TEXTS = 2000
"""Texts a side whose words are compared: a larger side is sampled, since the permutations take time."""
MIN_SAMPLE = 5
_WORD = re.compile(r"\w+")
_SEED = 20_240_901


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftTest:
    """One comparison of a current sample with its reference."""

    name: str
    method: str
    effect_name: str
    effect: float | None
    """`None` where a side has fewer than `MIN_SAMPLE` observations."""
    matters: float
    """Effect from which on a shift counts."""
    detectable: float | None
    """Effect that a sample of this size finds with about 80% probability."""
    p_value: float | None
    p_holm: float | None = None
    psi: float | None = None
    """Population stability index, for those who know it: 0.1 is small, 0.25 large by convention."""
    psi_by_chance: float | None = None
    """What the index stays below 95% of the time without any drift, at these sizes."""
    n_reference: int
    n_current: int
    verdict: Verdict = "not_resolvable"
    explanation: str = ""

    def to_json(self) -> dict[str, JSON]:
        """Return the fields, figures rounded to six digits."""
        names = (
            *("name", "method", "effect_name", "effect", "matters", "detectable", "p_value", "p_holm", "psi"),
            *("psi_by_chance", "n_reference", "n_current", "verdict", "explanation"),
        )
        values = {name: getattr(self, name) for name in names}
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def numeric_drift(name: str, *, reference: Sequence[float], current: Sequence[float]) -> DriftTest:
    """Compare two samples of numbers by Kolmogorov-Smirnov. Ties make the test conservative."""
    n, m = len(reference), len(current)
    if min(n, m) < MIN_SAMPLE:
        return _too_few(name, "Kolmogorov-Smirnov", "D", KS_MATTERS, n, m)
    found = stats.ks_2samp(np.asarray(reference, float), np.asarray(current, float))
    scale = math.sqrt(1 / n + 1 / m)
    # 1.628 is the 99% point of the Kolmogorov distribution; a share of one half has the largest variance, (1/2)^2
    detectable = scale * (1.628 + POWER_Z / 2)
    psi, by_chance = _psi_numeric(np.asarray(reference, float), np.asarray(current, float))
    return DriftTest(
        name=name,
        method="Kolmogorov-Smirnov",
        effect_name="D",
        effect=float(found.statistic),
        matters=KS_MATTERS,
        detectable=detectable,
        p_value=float(found.pvalue),
        psi=psi,
        psi_by_chance=by_chance,
        n_reference=n,
        n_current=m,
    )


def categorical_drift(name: str, *, reference: Sequence[str], current: Sequence[str]) -> DriftTest:
    """Compare two samples of categories: chi-squared with a permutation p-value, which small counts do not break."""
    n, m = len(reference), len(current)
    if min(n, m) < MIN_SAMPLE:
        return _too_few(name, "chi-squared, permuted", "Cramer's V", V_MATTERS, n, m)
    values = sorted(set(reference) | set(current))
    place = {value: index for index, value in enumerate(values)}
    codes = np.array([place[value] for value in (*reference, *current)])
    side = np.array([0] * n + [1] * m)
    observed = _chi2(codes, side, len(values))
    random = np.random.default_rng(_SEED)
    as_large = sum(_chi2(codes, random.permutation(side), len(values)) >= observed - 1e-9 for _ in range(PERMUTATIONS))
    freedom = max(len(values) - 1, 1)
    counts = [np.bincount(codes[side == which], minlength=len(values)) for which in (0, 1)]
    psi, by_chance = _psi(counts[0], counts[1])
    return DriftTest(
        name=name,
        method="chi-squared, permuted",
        effect_name="Cramer's V",
        effect=math.sqrt(observed / (n + m)),
        matters=V_MATTERS,
        detectable=_detectable_v(n, m, freedom),
        p_value=(as_large + 1) / (PERMUTATIONS + 1),
        psi=psi,
        psi_by_chance=by_chance,
        n_reference=n,
        n_current=m,
    )


def word_drift(name: str, *, reference: Sequence[str], current: Sequence[str]) -> DriftTest:
    """Compare the words of two sets of texts by Jensen-Shannon divergence in bits, less what chance gives.

    Whole texts are permuted, not words: words of one text are not independent.
    """
    n, m = len(reference), len(current)
    if min(n, m) < MIN_SAMPLE:
        return _too_few(name, "Jensen-Shannon, permuted", "bits above chance", JS_MATTERS, n, m)
    random = np.random.default_rng(_SEED)
    left, right = _sampled(reference, random), _sampled(current, random)
    n, m = len(left), len(right)
    table = _word_counts((*left, *right))
    side = np.array([False] * n + [True] * m)
    observed = _js(table[~side].sum(0), table[side].sum(0))
    total = table.sum(0)
    chance = np.empty(PERMUTATIONS)
    for index in range(PERMUTATIONS):
        mine = table[random.permutation(n + m)[:m]].sum(0)
        chance[index] = _js(total - mine, mine)
    mean = float(chance.mean())
    return DriftTest(
        name=name,
        method="Jensen-Shannon, permuted",
        effect_name="bits above chance",
        effect=max(0.0, observed - mean),
        matters=JS_MATTERS,
        detectable=float(np.quantile(chance, 1 - ALPHA)) - mean + POWER_Z * float(chance.std()),
        p_value=(int((chance >= observed - 1e-12).sum()) + 1) / (PERMUTATIONS + 1),
        n_reference=n,
        n_current=m,
    )


def judge(tests: Sequence[DriftTest]) -> list[DriftTest]:
    """Return the tests with their verdicts, p-values adjusted for the number of tests by Holm (1979)."""
    order = sorted((t.p_value, index) for index, t in enumerate(tests) if t.p_value is not None)
    adjusted: dict[int, float] = {}
    largest = 0.0
    for rank, (p_value, index) in enumerate(order):
        largest = max(largest, min(1.0, p_value * (len(order) - rank)))
        adjusted[index] = largest
    return [_judged(test, adjusted.get(index)) for index, test in enumerate(tests)]


def _judged(test: DriftTest, p_holm: float | None) -> DriftTest:
    if test.effect is None or p_holm is None:
        return test
    sizes = f"n = {test.n_current} against {test.n_reference}"
    shown = f"{test.effect_name} = {test.effect:.3f}"
    assert test.detectable is not None
    if p_holm <= ALPHA and test.effect >= test.matters:
        verdict, words = "drift", f"{shown} is at least {test.matters:g}, p = {p_holm:.2g} over all tests, {sizes}"
    elif p_holm <= ALPHA:
        verdict, words = "small", f"{shown} is no chance (p = {p_holm:.2g}), but below {test.matters:g}, {sizes}"
    elif test.detectable <= test.matters:
        verdict, words = "none", f"{shown} may be chance (p = {p_holm:.2g}); {test.matters:g} would be seen, {sizes}"
    else:
        verdict = "not_resolvable"
        words = f"not resolvable with {sizes}: only {test.effect_name} of {test.detectable:.2f} or more would be seen"
    return replace(test, p_holm=p_holm, verdict=verdict, explanation=words)  # type: ignore[arg-type]


def _too_few(name: str, method: str, effect_name: str, matters: float, n: int, m: int) -> DriftTest:
    return DriftTest(
        name=name,
        method=method,
        effect_name=effect_name,
        effect=None,
        matters=matters,
        detectable=None,
        p_value=None,
        n_reference=n,
        n_current=m,
        verdict="not_resolvable",
        explanation=f"not resolvable with n = {m} against {n}: each side needs {MIN_SAMPLE}",
    )


def _chi2(codes: npt.NDArray[np.int64], side: npt.NDArray[np.int64], num_values: int) -> float:
    counts = np.bincount(codes * 2 + side, minlength=2 * num_values).reshape(num_values, 2).astype(float)
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
    used = expected > 0
    return float((((counts - expected) ** 2)[used] / expected[used]).sum())


def _detectable_v(n: int, m: int, freedom: int) -> float:
    """Return the V that chi-squared finds with 80% power; for two groups V is the w of Cohen."""
    critical = float(stats.chi2.ppf(1 - ALPHA, freedom))

    def miss(noncentral: float) -> float:
        return float(stats.ncx2.cdf(critical, freedom, noncentral)) - 0.2

    return math.sqrt(float(optimize.brentq(miss, 1e-6, 500.0)) / (n + m))


def _psi_numeric(reference: Floats, current: Floats) -> tuple[float, float]:
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, PSI_BINS + 1)[1:-1]))
    counts = [np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (reference, current)]
    return _psi(counts[0], counts[1])


def _psi(reference: npt.NDArray[np.int64], current: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the population stability index, and its 95% point without drift.

    Half a count is added to each bin, so that an empty one gives no infinity. Without drift the index is about
    (1/n + 1/m) times chi-squared with bins - 1 degrees of freedom (Yurdakul and Naranjo 2020).
    """
    n, m, bins = int(reference.sum()), int(current.sum()), len(reference)
    p = (reference + 0.5) / (n + bins / 2)
    q = (current + 0.5) / (m + bins / 2)
    by_chance = (1 / n + 1 / m) * float(stats.chi2.ppf(0.95, max(bins - 1, 1)))
    return float(((q - p) * np.log(q / p)).sum()), by_chance


def _sampled(texts: Sequence[str], random: np.random.Generator) -> list[str]:
    if len(texts) <= MAX_TEXTS:
        return list(texts)
    return [texts[index] for index in sorted(random.choice(len(texts), MAX_TEXTS, replace=False))]


def _word_counts(texts: Sequence[str]) -> Floats:
    """Return (texts, words) counts of the most frequent words; the last column counts all others."""
    found = [Counter(_WORD.findall(text.casefold())) for text in texts]
    total: Counter[str] = Counter()
    for counts in found:
        total.update(counts)
    place = {word: index for index, (word, _) in enumerate(total.most_common(MAX_WORDS))}
    table = np.zeros((len(texts), len(place) + 1))
    for row, counts in enumerate(found):
        for word, count in counts.items():
            table[row, place.get(word, len(place))] += count
    return table


def _js(left: Floats, right: Floats) -> float:
    if not left.sum() or not right.sum():
        return 0.0
    p, q = left / left.sum(), right / right.sum()
    middle = (p + q) / 2

    def divergence(side: Floats) -> float:
        used = side > 0
        return float((side[used] * np.log2(side[used] / middle[used])).sum())

    return (divergence(p) + divergence(q)) / 2
