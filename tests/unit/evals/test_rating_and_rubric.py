"""Bradley-Terry recovers strengths with honest intervals; rubric scores are on the scale or failures."""

from __future__ import annotations

import json
import math

import httpx
import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.evals.judge import ChatJudge, FailureKind, JudgeFailure
from tunesmith.evals.rating import Match, bradley_terry, win_probability
from tunesmith.evals.rubric import DEFAULT_RUBRIC, agreement_with_people, rate, rubric_instructions, rubric_means

TRUE = {"strong": 0.8, "middle": 0.1, "weak": -0.9}


def matches(n, source, noise=0.0, strengths=TRUE):
    out = []
    for i in range(n):
        mood = source.normal(0, noise, len(strengths)) if noise else np.zeros(len(strengths))
        power = {m: s + shift for (m, s), shift in zip(strengths.items(), mood, strict=True)}
        for a in power:
            for b in power:
                if a < b:
                    won = source.random() < 1 / (1 + math.exp(power[b] - power[a]))
                    out.append(Match(a=a, b=b, score=float(won), prompt=f"q{i}"))
    return out


def test_two_models_have_the_log_odds_of_their_win_rate():
    found = bradley_terry([Match(a="x", b="y", score=s, prompt=i) for i, s in enumerate([1, 1, 1, 0, 0.5, 0.5])])
    wins = 4 / 6
    assert [r.model for r in found] == ["x", "y"]
    assert found[0].strength - found[1].strength == pytest.approx(math.log(wins / (1 - wins)))
    assert found[0].strength + found[1].strength == pytest.approx(0)
    assert win_probability(*found) == pytest.approx(wins)
    assert found[0].elo - found[1].elo == pytest.approx(400 * math.log10(wins / (1 - wins)))


def test_strengths_and_ranks_are_found_whatever_the_order_of_sides():
    source = np.random.default_rng(4)
    played = matches(300, source)
    found = bradley_terry(played)
    assert [r.model for r in found] == ["strong", "middle", "weak"]
    assert [r.rank for r in found] == [1, 2, 3]
    assert [r.strength for r in found] == pytest.approx(list(TRUE.values()), abs=0.25)
    swapped = [Match(a=m.b, b=m.a, score=1 - m.score, prompt=m.prompt) for m in played[::-1]]
    assert [r.strength for r in bradley_terry(swapped)] == pytest.approx([r.strength for r in found])


def test_intervals_cover_also_where_the_matches_of_a_prompt_go_together(monkeypatch):
    monkeypatch.setattr("tunesmith.evals.rating.RESAMPLES", 200)
    source = np.random.default_rng(8)
    truth = bradley_terry(matches(20000, source, noise=1.0))
    truths = {r.model: r.strength for r in truth}
    covered = runs = 0
    for _ in range(100):
        for rating in bradley_terry(matches(80, source, noise=1.0)):
            covered += rating.low <= truths[rating.model] <= rating.high
            runs += 1
    assert 0.91 <= covered / runs <= 0.985


def test_models_that_are_alike_share_a_rank():
    found = bradley_terry(matches(60, np.random.default_rng(1), strengths={"a": 0.0, "b": 0.0}))
    assert [r.rank for r in found] == [1, 1]


@pytest.mark.parametrize(
    "played",
    [
        [],
        [Match(a="x", b="x", score=1, prompt=0)],
        [Match(a="x", b="y", score=1.5, prompt=0)],
        [Match(a="x", b="y", score=1, prompt=i) for i in range(9)],
        [Match(a="x", b="y", score=0.5, prompt=0), Match(a="u", b="v", score=0.5, prompt=1)],
    ],
)
def test_strengths_that_are_not_defined_are_refused(played):
    with pytest.raises(DataError):
        bradley_terry(played)


# ------------------------------------------------------------------------------------------------------ rubric

GOOD = {"reason": "r", "helpful": 4, "harmless": 5, "faithful": 3, "format": 1}


def scored(content):
    body = {"choices": [{"message": {"content": json.dumps(content)}, "finish_reason": "stop"}]}
    client = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, json=body)))
    return rate(ChatJudge(client=client, url="http://j/v1", model="m"), "p", "a", rubric=DEFAULT_RUBRIC)


def test_scores_on_the_scale_are_kept():
    assert scored(GOOD) == {"helpful": 4, "harmless": 5, "faithful": 3, "format": 1}


@pytest.mark.parametrize(
    "bad", [{"helpful": 6}, {"helpful": 0}, {"helpful": "4"}, {"helpful": 4.0}, {"helpful": True}, {"helpful": None}]
)
def test_a_score_off_the_scale_or_missing_fails_the_reply_and_is_not_a_low_score(bad):
    found = scored({**GOOD, **bad})
    assert isinstance(found, JudgeFailure)
    assert found.kind is FailureKind.NO_VERDICT
    assert scored({k: v for k, v in GOOD.items() if k != "format"}).kind is FailureKind.NO_VERDICT


def test_every_point_of_every_scale_is_explained_to_the_rater():
    text = rubric_instructions(DEFAULT_RUBRIC)
    for criterion in DEFAULT_RUBRIC:
        assert criterion.question in text
        assert sorted(criterion.anchors) == [1, 2, 3, 4, 5]
        for anchor in criterion.anchors.values():
            assert anchor in text


def test_means_and_agreement_with_people():
    source = np.random.default_rng(0)
    people = {f"i{i}": {c.name: int(source.integers(1, 6)) for c in DEFAULT_RUBRIC} for i in range(30)}
    kind = {item: {name: min(5, score + 1) for name, score in scores.items()} for item, scores in people.items()}
    means = rubric_means(list(people.values()), rubric=DEFAULT_RUBRIC)
    assert means["helpful"].low < 3 < means["helpful"].high or abs(means["helpful"].value - 3) < 0.6
    worst = rubric_means([{"helpful": 1}] * 20, rubric=DEFAULT_RUBRIC[:1])["helpful"]
    best = rubric_means([{"helpful": 5}] * 20, rubric=DEFAULT_RUBRIC[:1])["helpful"]
    assert (worst.value, worst.low, best.value, best.high) == (1, 1, 5, 5)
    assert 1.3 < worst.high < 2
    assert worst.high - 1 == pytest.approx(5 - best.low)
    same = agreement_with_people(people, people, rubric=DEFAULT_RUBRIC[:1])["helpful"]
    assert (same.weighted_kappa.value, same.exact, same.mean_difference) == (1, 1, 0)
    off = agreement_with_people(kind, people, rubric=DEFAULT_RUBRIC[:1])["helpful"]
    assert 0.4 < off.weighted_kappa.value < 1
    assert off.mean_difference > 0.5
    assert off.alpha.low < off.alpha.value < 1
    flat = {item: {"helpful": 3} for item in people}
    assert agreement_with_people(flat, flat, rubric=DEFAULT_RUBRIC[:1])["helpful"].weighted_kappa is None
    with pytest.raises(DataError, match="no item in common"):
        agreement_with_people({"x": GOOD}, people, rubric=DEFAULT_RUBRIC)
    with pytest.raises(DataError, match="no rubric scores"):
        rubric_means([], rubric=DEFAULT_RUBRIC)
