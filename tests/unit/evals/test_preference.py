"""Win rates are fair to both orders, biases are exposed, and length control recovers the rate at equal length."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evals.judge import Pair, judge_pairs
from tunesmith.evals.judge_controls import always_first, prefers, prefers_longer
from tunesmith.evals.preference import Choice, Side, Vote, length_controlled, preference


def quality(text):
    """The quality that an answer states: `3.5 xxxx`."""
    return float(text.split()[0])


def pairs(n, *, gain=0.0, seed=1, longer=0.5):
    source = random.Random(seed)
    out = []
    for i in range(n):
        ours, theirs = source.gauss(gain, 1), source.gauss(0, 1)
        gap = 40 if source.random() < longer else -40
        pads = ("x" * (100 + gap // 2), "x" * (100 - gap // 2))
        out.append(
            Pair(item=f"q{i}", prompt=f"p{i}", candidate=f"{ours:+.6f} {pads[0]}", baseline=f"{theirs:+.6f} {pads[1]}")
        )
    return out


def judged(items, ask):
    return preference(judge_pairs(items, ask, rater="control").votes)


def test_a_judge_that_takes_the_first_answer_yields_half_all_ties_and_is_flagged():
    report = judged(pairs(80, gain=2), always_first())
    assert report.win_rate.value == 0.5
    assert report.shares == {"win": 0, "tie": 1, "loss": 0}
    assert report.position_biased
    assert report.first_shown.value == 1
    assert report.flips.value == 1
    assert not report.length_biased


def test_a_judge_that_takes_the_longer_answer_is_flagged_and_corrected():
    report = judged(pairs(200, longer=0.8), prefers_longer())
    assert report.win_rate.value > 0.7
    assert report.longer_wins.value == 1
    assert report.length_biased
    assert not report.position_biased
    assert report.length_controlled is None, "length alone explains every vote"

    noisy = judged(pairs(300, longer=0.8), lambda prompt, first, second: prefers(len, noise=60)(prompt, first, second))
    assert noisy.win_rate.low > 0.55
    assert noisy.length_biased
    assert noisy.length_controlled.low < 0.5 < noisy.length_controlled.high


def test_a_fair_judge_is_flagged_for_nothing_and_finds_the_better_system():
    report = judged(pairs(300, gain=1), prefers(quality))
    assert not report.position_biased
    assert not report.length_biased
    assert report.win_rate.low > 0.6
    assert report.length_controlled.low > 0.6
    assert report.flips.value == 0


def test_a_slight_bonus_for_the_first_answer_is_found_but_does_not_move_the_win_rate():
    fair, leaning = judged(pairs(400), prefers(quality)), judged(pairs(400), prefers(quality, first_bonus=0.6))
    assert leaning.position_biased
    assert leaning.first_shown.value > 0.55
    assert leaning.win_rate.value == pytest.approx(fair.win_rate.value, abs=0.05)


VOTES = st.lists(
    st.tuples(
        st.integers(0, 15),
        st.integers(0, 2),
        st.sampled_from(list(Side)),
        st.sampled_from(list(Choice)),
        st.integers(-9, 9),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda vote: vote[:3],
).map(lambda raw: [Vote(item=f"i{i}", rater=f"r{r}", shown_first=s, choice=c, length_gap=g) for i, r, s, c, g in raw])


def _mirrored(vote):
    side = Side.BASELINE if vote.shown_first is Side.CANDIDATE else Side.CANDIDATE
    return Vote(item=vote.item, rater=vote.rater, shown_first=side, choice=vote.choice, length_gap=-vote.length_gap)


@given(VOTES)
def test_swapping_the_systems_mirrors_everything(votes):
    here, there = preference(votes), preference([_mirrored(vote) for vote in votes])
    assert here.win_rate.value == pytest.approx(1 - there.win_rate.value)
    assert here.shares["win"] == pytest.approx(there.shares["loss"])
    assert sum(here.shares.values()) == pytest.approx(1)
    assert here.position_biased == there.position_biased
    assert (here.length_controlled is None) == (there.length_controlled is None)
    if here.length_controlled is not None:
        assert here.length_controlled.value == pytest.approx(1 - there.length_controlled.value, abs=1e-6)
    if here.win_rate.low is not None:
        assert here.win_rate.low <= here.win_rate.value + 1e-9
        assert here.to_json()["win_rate"]["value"] == here.win_rate.value


def test_one_order_a_pair_is_corrected_by_giving_both_orders_equal_weight():
    # A first-lover sees the candidate first in 30 of 40: unweighted it would "win" 75%.
    votes = [
        Vote(item=f"i{i}", rater="r", shown_first=Side.CANDIDATE if i < 30 else Side.BASELINE, choice=Choice.FIRST)
        for i in range(40)
    ]
    report = preference(votes)
    assert report.win_rate.value == pytest.approx(0.5)
    assert report.position_biased
    assert report.flips is None


def test_raters_of_one_item_do_not_count_as_independent_items():
    source = np.random.default_rng(3)
    votes, alone = [], []
    for i in range(40):
        choice = Choice.FIRST if source.random() < 0.5 else Choice.SECOND
        for r in range(6):
            vote = Vote(item=f"i{i}", rater=f"r{r}", shown_first=Side.CANDIDATE, choice=choice)
            votes.append(vote)
            if r == 0:
                alone.append(vote)
    many, few = preference(votes).win_rate, preference(alone).win_rate
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.15)


def test_votes_that_cannot_be_summarised_are_refused():
    with pytest.raises(DataError, match="no votes"):
        preference([])
    vote = Vote(item="i", rater="r", shown_first=Side.CANDIDATE, choice=Choice.TIE)
    with pytest.raises(DataError, match="two votes on one item"):
        preference([vote, vote])
    report = preference([vote])
    assert (report.first_shown, report.longer_wins, report.flips) == (None, None, None)


def _simulate(source, n, theta, phi, shift):
    gaps = source.normal(shift, 1, n) * 50
    p = 1 / (1 + np.exp(-(theta + phi * np.tanh(gaps / gaps.std()))))
    return (source.random(n) < p).astype(float), gaps


@pytest.mark.parametrize(("theta", "phi", "shift"), [(0.0, 1.5, 0.8), (0.8, 1.0, -0.5), (1.5, 0.0, 0.0)])
def test_the_length_controlled_interval_covers_the_rate_at_equal_length(theta, phi, shift):
    source = np.random.default_rng(11)
    truth, covered, runs = 1 / (1 + math.exp(-theta)), 0, 400
    for _ in range(runs):
        scores, gaps = _simulate(source, 150, theta, phi, shift)
        found = length_controlled(scores, gaps, clusters=range(150))
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / runs <= 0.98


def test_length_cannot_be_controlled_where_one_system_is_always_longer():
    assert length_controlled([1, 0, 1], [5, 9, 2], clusters=range(3)) is None
    assert length_controlled([1, 0, 1], [-5, -9, -2], clusters=range(3)) is None
    assert length_controlled([1, 0, 1], [0, 0, 0], clusters=range(3)) is None


def test_where_length_alone_explains_every_vote_or_all_go_one_way_nothing_is_claimed():
    gaps = [(-1) ** i * (i + 1) for i in range(60)]
    assert length_controlled([float(gap > 0) for gap in gaps], gaps, clusters=range(60)) is None
    assert length_controlled([float(gap > 7) for gap in gaps], gaps, clusters=range(60)) is None
    assert length_controlled([1.0] * 60, gaps, clusters=range(60)) is None
    assert (
        length_controlled([float(gap > 0) for gap in gaps[1:]] + [1.0], [*gaps[1:], -99], clusters=range(60))
        is not None
    )
