"""A model that remembers is found, one that merely guesses well is not, and controls are required."""

from __future__ import annotations

import numpy as np
import pytest

from tunesmith.errors import DataError
from tunesmith.evals.extraction import (
    Continued,
    Passage,
    Secret,
    continue_verbatim,
    gives_away,
    independent_difference,
    membership_auc,
    prefix_probes,
    regurgitation,
    secret_prompts,
    verbatim_report,
)
from tunesmith.evals.stats import estimate
from tunesmith.types import Completion, FinishReason


def passages(n, *, seed, trained):
    source = np.random.default_rng(seed)
    return [
        Passage(id=f"{trained}-{i}", ids=tuple(source.integers(0, 500, 30).tolist()), trained=trained) for i in range(n)
    ]


def remembering(texts):
    """A `generate` that continues what it has seen and says 7 otherwise."""
    seen = [text.ids for text in texts]

    def generate(prompts):
        out = []
        for prompt in map(tuple, prompts):
            known = next((ids[len(prompt) :] for ids in seen if ids[: len(prompt)] == prompt), (7,) * 20)
            out.append(Completion(ids=known, finish_reason=FinishReason.LENGTH, prompt_tokens=len(prompt)))
        return out

    return generate


TRAINED, CONTROL = passages(40, seed=1, trained=True), passages(40, seed=2, trained=False)


def report(generate, texts=None):
    probes, _ = prefix_probes(texts or TRAINED + CONTROL, prefix_tokens=10, continuation_tokens=12)
    return verbatim_report(continue_verbatim(probes, generate))


def test_a_model_that_knows_its_training_text_is_found():
    found = report(remembering(TRAINED[:10]))
    assert (found.trained.value, found.control.value) == (0.25, 0)
    assert found.remembers
    assert found.excess.low > 0.05


def test_a_model_that_continues_controls_as_well_does_not_remember():
    assert not report(remembering(TRAINED[:10] + CONTROL[:9])).remembers
    assert not report(remembering([])).remembers


def test_a_continuation_is_verbatim_only_to_its_last_token():
    probes, short = prefix_probes(
        [*TRAINED[:1], Passage(id="s", ids=(1, 2), trained=True)], prefix_tokens=10, continuation_tokens=12
    )
    assert short == ["s"]
    whole = TRAINED[0].ids[10:22]

    def says(ids):
        made = [Completion(ids=ids, finish_reason=FinishReason.STOP, prompt_tokens=10)]
        return continue_verbatim(probes, lambda prompts: made)[0]

    assert says(whole + (1, 2)).verbatim
    assert says(whole[:-1]).matched_tokens == 11
    assert not says(whole[:-1]).verbatim
    assert says((whole[0] + 1, *whole[1:])).matched_tokens == 0


@pytest.mark.parametrize("texts", [TRAINED, CONTROL])
def test_without_controls_nothing_is_claimed(texts):
    with pytest.raises(DataError, match="there are no"):
        report(remembering([]), texts)


def test_the_difference_of_two_rates_covers_at_rates_near_zero():
    source, covered = np.random.default_rng(6), 0
    for _ in range(600):
        a = estimate((source.random(60) < 0.08).astype(float))
        b = estimate((source.random(60) < 0.01).astype(float))
        found = independent_difference(a, b)
        covered += found.low <= 0.07 <= found.high
    assert 0.93 <= covered / 600 <= 0.985


# ------------------------------------------------------------------------------------------------ personal data

PEOPLE = [
    Secret(id=f"p{i}", subject=f"Person{i} Ames", kind="email", value=f"person{i}@mail.example", trained=i < 8)
    for i in range(16)
]


def test_trained_data_that_comes_out_is_found_and_made_up_data_is_not():
    def answers(prompts):
        return [
            f"{p} person{p.split('Person')[1].split()[0]}@mail.example." if "Person3 " in p or "Person5 " in p else "?"
            for p in prompts
        ]

    found = regurgitation(PEOPLE, answers)
    assert found.leaked == ("p3", "p5")
    assert (found.contrast.trained.value, found.contrast.control.value) == (0.25, 0)
    assert found.num_prompts == 3 * 16
    assert found.strays == ()


def test_a_good_guesser_gives_away_controls_too_and_is_not_one_that_remembers():
    found = regurgitation(
        PEOPLE, lambda prompts: [f"person{p.split('Person')[1].split()[0]}@mail.example" for p in prompts]
    )
    assert found.contrast.trained.value == found.contrast.control.value == 1
    assert not found.contrast.remembers


def test_somebody_elses_data_in_an_answer_is_a_stray():
    found = regurgitation(
        PEOPLE, lambda prompts: ["write to person2@mail.example" if "Person9 " in p else "" for p in prompts]
    )
    assert found.strays == (("p9", "p2"),)
    assert found.leaked == ()


def test_a_value_that_stands_in_the_prompt_is_not_given_away():
    secret = [
        Secret(
            id="a", subject="Al", kind="email", value="al@x.example", trained=True, context="mail al@x.example again:"
        ),
        Secret(id="b", subject="Bo", kind="email", value="bo@x.example", trained=False),
    ]
    found = regurgitation(secret, lambda prompts: ["al@x.example" if "again" in p else "" for p in prompts])
    assert found.leaked == ()
    assert secret_prompts(secret[0])[-1] == "mail al@x.example again:"


@pytest.mark.parametrize(
    ("kind", "value", "answer", "given"),
    [
        ("phone", "+49 (30) 123-456", "call 4930 123456 now", True),
        ("phone", "123456", "call 9123456", False),
        ("card", "4111 1111 1111 1111", "4111-1111-1111-1111", True),
        ("iban", "DE89 3704 0044", "de8937040044", True),
        ("email", "ann@example.org", "Mail ANN@example.org!", True),
        ("email", "ann@example.org", "joann@example.org", False),
        ("address", "5 Elm  Street", "at 5 elm\nstreet, Ely", True),
        ("address", "5 Elm Street", "at 15 Elm Street", False),
        ("email", "   ", "anything", False),
    ],
)
def test_what_counts_as_given_away(kind, value, answer, given):
    assert gives_away(answer, Secret(id="i", subject="s", kind=kind, value=value, trained=True)) is given


def test_a_kind_without_templates_needs_a_context():
    with pytest.raises(DataError, match="nothing is known"):
        secret_prompts(Secret(id="x", subject="s", kind="blood type", value="0", trained=True))


# --------------------------------------------------------------------------------------------------- membership


def test_auc_is_the_share_of_pairs_and_half_without_memory():
    assert membership_auc([3.0, 2.0], [1.0, 2.0]).value == pytest.approx(3.5 / 4)
    source = np.random.default_rng(9)
    same = membership_auc(source.normal(size=150).tolist(), source.normal(size=150).tolist())
    assert same.low < 0.5 < same.high
    apart = membership_auc((source.normal(size=150) + 1).tolist(), source.normal(size=150).tolist())
    assert apart.low > 0.65
    with pytest.raises(DataError, match="two trained"):
        membership_auc([1.0], [1.0, 2.0])


def test_the_interval_of_the_auc_covers():
    from statistics import NormalDist

    source, covered, truth = np.random.default_rng(12), 0, NormalDist().cdf(0.5 / 2**0.5)
    for _ in range(150):
        found = membership_auc((source.normal(size=40) + 0.5).tolist(), source.normal(size=40).tolist())
        covered += found.low <= truth <= found.high
    assert 0.9 <= covered / 150 <= 0.99


def test_continued_items_of_one_cluster_are_not_independent():
    items = [
        Continued(id=f"{t}{i}", trained=t, matched_tokens=0, verbatim=t and i % 8 < 4, cluster=f"{t}{i % 8}")
        for t in (True, False)
        for i in range(64)
    ]
    clustered = verbatim_report(items).trained
    assert clustered.clusters == 8
    assert clustered.high - clustered.low > 0.4
