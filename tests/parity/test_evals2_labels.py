"""Label and answer metrics on real rows against the packages that define them: scikit-learn and torchmetrics."""

from __future__ import annotations

import json

import pytest
import torch
from real_rows import rows_of

from tunesmith.evals.scorers import macro_f1, squad_exact, squad_f1
from tunesmith.evals.text import Denominator, perplexity


@pytest.mark.parametrize("unreadable", [0, 7])
def test_macro_f1_of_a_word_matcher_on_bank_messages_is_that_of_scikit_learn(unreadable):
    from sklearn.metrics import f1_score

    rows = rows_of("intent_banking77.test.jsonl", 400)[::2]
    words = [set(row["messages"][1]["content"].lower().split()) for row in rows]
    expected = [json.loads(row["messages"][-1]["content"])["intent"] for row in rows]
    given = []
    for at, own in enumerate(words):
        nearest = max((len(own & other), place) for place, other in enumerate(words) if place != at)[1]
        given.append(expected[nearest] if nearest % 11 >= unreadable / 7 else None)
    labels = sorted({*expected, *(label for label in given if label is not None)})
    theirs = f1_score(
        expected, [label or "" for label in given], labels=labels, average="macro", zero_division=0
    )  # fmt: skip
    assert 0.05 < theirs < 0.95
    assert (None in given) == bool(unreadable)
    assert macro_f1(given, expected) == pytest.approx(theirs, abs=1e-12)


def test_exact_match_and_token_f1_on_real_answers_are_those_of_squad():
    from torchmetrics.functional.text import squad

    scored = []
    for row in rows_of("summ_scitldr.test.jsonl", 150):
        references = tuple(row.get("references") or [row["messages"][-1]["content"]])
        source = row["messages"][-2]["content"]
        for answer in (source.split(". ")[0], references[-1].upper(), f"The {references[0]}!", ""):
            theirs = squad(
                {"prediction_text": answer, "id": "1"},
                {"answers": {"answer_start": [0] * len(references), "text": list(references)}, "id": "1"},
            )
            assert 100 * squad_exact(answer, references) == pytest.approx(float(theirs["exact_match"]))
            assert 100 * squad_f1(answer, references) == pytest.approx(float(theirs["f1"]), rel=1e-6)
            scored.append(float(theirs["f1"]))
    assert len({round(score) for score in scored}) > 20


def test_perplexity_is_pooled_over_tokens_as_in_torchmetrics():
    from torchmetrics.functional.text import perplexity as theirs

    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(5, 40, 30, dtype=torch.float64), torch.randint(30, (5, 40))
    for text, length in enumerate((40, 3, 17, 1, 29)):
        targets[text, length:] = -100
    chosen = torch.log_softmax(logits, -1).gather(2, targets.clamp_min(0)[..., None])[..., 0] * (targets >= 0)
    counts = (targets >= 0).sum(1).tolist()
    found = perplexity(chosen.sum(1).tolist(), counts, per=Denominator.TOKEN)
    assert found == pytest.approx(float(theirs(logits, targets, ignore_index=-100)), rel=1e-6)
