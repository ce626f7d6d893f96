"""Text metrics against the outside expectations and against the reference packages on real summaries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.evals.text import RougeTokens, Stemming, bleu, chrf, rouge, sentence_bleu

SHARED = Path(__file__).parents[2] / "../shared"


def _read(path):
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path.read_text()


def test_every_rouge_expectation_holds():
    cases = json.loads(_read(SHARED / "oracles/rouge_expectations.json"))["cases"]
    assert len(cases) == 21
    for case in cases:
        stemming = Stemming.PORTER if case.get("use_stemmer") else Stemming.NONE
        overlap = rouge(case["prediction"], (case["target"],), kind=case["rouge"], stemming=stemming)
        for theirs, ours in (("precision", overlap.precision), ("recall", overlap.recall), ("fmeasure", overlap.f1)):
            if theirs in case:
                assert round(ours - case[theirs], case.get("places", 7)) == 0, (case["id"], theirs, ours)


def test_scores_on_real_summaries_equal_those_of_the_packages():
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf
    from sacrebleu import sentence_bleu as package_sentence_bleu

    rows = [json.loads(line) for line in _read(SHARED / "data/summ_scitldr.test.jsonl").splitlines()][:120]
    references = [tuple(row.get("references") or [row["messages"][-1]["content"]]) for row in rows]
    answers = [" ".join(row["messages"][-2]["content"].split()[:25]) for row in rows]
    assert max(map(len, references)) > 1
    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    for stemming in Stemming:
        scorer = RougeScorer(list(kinds), use_stemmer=stemming is Stemming.PORTER)
        for answer, items in zip(answers[:40], references, strict=False):
            for kind in kinds:
                expected = max((scorer.score(item, answer)[kind] for item in items), key=lambda score: score.fmeasure)
                found = rouge(answer, items, kind=kind, stemming=stemming)
                assert (found.precision, found.recall, found.f1) == pytest.approx(tuple(expected), abs=1e-12)
    firsts = [items[0] for items in references]
    assert bleu(answers, [[item] for item in firsts]).score == pytest.approx(corpus_bleu(answers, [firsts]).score)
    assert chrf(answers, [[item] for item in firsts]).score == pytest.approx(corpus_chrf(answers, [firsts]).score)
    plus = corpus_chrf(answers, [firsts], word_order=2).score
    assert chrf(answers, [[item] for item in firsts], word_order=2).score == pytest.approx(plus)
    for answer, items in zip(answers[:20], references, strict=False):
        assert sentence_bleu(answer, items) == pytest.approx(package_sentence_bleu(answer, list(items)).score)


def test_unicode_tokens_equal_ascii_tokens_on_plain_english():
    rows = [json.loads(line) for line in _read(SHARED / "data/qa_gsm8k.test.jsonl").splitlines()][:50]
    for row in rows:
        question, answer = (message["content"] for message in row["messages"][-2:])
        if question.isascii() and answer.isascii() and "_" not in question + answer:
            both = [rouge(answer, (question,), kind="rouge2", tokens=tokens) for tokens in RougeTokens]
            assert both[0] == both[1]
