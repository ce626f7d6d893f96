"""Text metrics as their reference implementations compute them: BLEU, chrF, ROUGE, MC1 and MC2, perplexity, diversity.

    rouge("the cat sat", ("the cat sat down",), kind="rougeL").f1
    bleu(["the cat sat"], [("the cat sat down",)]).score

What lives here: overlap of answers with references, figures from log-likelihoods, distinct n-grams. What does not:
exact match and token F1 (`scorers`), loops and abrupt ends (`degeneration`), where log-likelihoods come from
(`model.likelihood`), intervals (`stats`).

BLEU and chrF are sacrebleu's, in its 0 to 100; ROUGE is rouge-score's, in 0 to 1. A figure that cannot be formed (no
reference, nothing to compare after tokenising) is `None`: not scored, rather than 0.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.errors import DataError

BleuTokens = Literal["13a", "intl", "zh", "char", "none"]
"""sacrebleu's tokenisers that need no download. 13a for languages with spaces, zh for Chinese, char elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusScore:
    """One figure over a whole test set, with what is needed to compare it with another paper's."""

    score: float
    """0 to 100."""
    signature: str
    """sacrebleu's signature: tokeniser, smoothing, case, number of references, version."""


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]], *, tokens: BleuTokens = "13a") -> CorpusScore:
    """Return corpus BLEU; `references[i]` are the references of `answers[i]`, at least one, not equally many.

    Corpus BLEU pools n-gram counts over items, so it is not the mean of `sentence_bleu` and has no per-item score.
    Source: Papineni et al. 2002; Post 2018 (sacrebleu).

    Raises `DataError` for no items and for an item without references.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokens)
    score = metric.corpus_score(list(answers), _streams(answers, references)).score
    return CorpusScore(score=float(score), signature=str(metric.get_signature()))


def sentence_bleu(answer: str, references: Sequence[str], *, tokens: BleuTokens = "13a") -> float | None:
    """Return one item's BLEU in 0 to 100, with effective order (short answers are not zero for want of 4-grams)."""
    from sacrebleu.metrics import BLEU

    if not references:
        return None
    return float(BLEU(tokenize=tokens, effective_order=True).sentence_score(answer, list(references)).score)


def chrf(answers: Sequence[str], references: Sequence[Sequence[str]], *, word_order: int = 0) -> CorpusScore:
    """Return corpus chrF (character 6-grams, recall weighs twice); `word_order=2` is chrF++. Shapes as in `bleu`.

    Source: Popovic 2015, 2017; sacrebleu. Raises `DataError` as `bleu` does.
    """
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=word_order)
    score = metric.corpus_score(list(answers), _streams(answers, references)).score
    return CorpusScore(score=float(score), signature=str(metric.get_signature()))


def sentence_chrf(answer: str, references: Sequence[str], *, word_order: int = 0) -> float | None:
    """Return one item's chrF in 0 to 100."""
    from sacrebleu.metrics import CHRF

    if not references:
        return None
    return float(CHRF(word_order=word_order).sentence_score(answer, list(references)).score)


def _streams(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Turn one list of references an item into sacrebleu's one list of items a reference, gaps as `None`.

    Handing over the first shape unturned is a classic mistake: with as many items as references it gives a number.
    """
    if len(answers) != len(references) or not answers:
        raise DataError(
            "a corpus score needs one list of references for each answer",
            expected=f"{len(answers)} lists, at least one",
            found=f"{len(references)} lists",
        )
    for index, items in enumerate(references):
        if isinstance(items, str) or not items:
            raise DataError(
                "an item has no list of references", where=f"item {index}", expected="a list of at least one text"
            )
    most = max(len(items) for items in references)
    return [[items[i] if i < len(items) else None for items in references] for i in range(most)]


# ------------------------------------------------------------------------------------------------------- ROUGE

RougeKind = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]


class Stemming(enum.StrEnum):
    """Whether English word endings count."""

    NONE = "none"
    """They do: `runs` is not `run`. The default of rouge-score."""
    PORTER = "porter"
    """They do not, in words longer than three letters. What `ROUGE-1.5.5 -m` and most summarisation papers use."""


class RougeTokens(enum.StrEnum):
    """What a token is."""

    ASCII = "ascii"
    """Runs of a-z and 0-9 after lower-casing, as in rouge-score. Other scripts vanish, accents split words."""
    UNICODE = "unicode"
    """Runs of letters and digits of any script; each Chinese or Japanese character by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How much of the answer is in the reference (precision), of the reference in the answer (recall), and both."""

    precision: float
    recall: float
    f1: float


def rouge(
    answer: str,
    references: Sequence[str],
    *,
    kind: RougeKind,
    stemming: Stemming = Stemming.NONE,
    tokens: RougeTokens = RougeTokens.ASCII,
) -> Overlap | None:
    """Return the ROUGE overlap with the reference that gives the best F1; `None` where no reference has a token.

    `rougeL` takes the longest common subsequence of the whole texts; `rougeLsum` the union over lines, so it needs
    sentences divided by newlines and equals `rougeL` on texts of one line. An empty answer scores 0. A reference
    without a single token, such as a Chinese one under `RougeTokens.ASCII`, cannot be agreed with and is left out.
    Source: Lin 2004; the rouge-score package, which reproduces ROUGE-1.5.5.
    """
    from rouge_score.rouge_scorer import RougeScorer

    # rouge-score ignores `use_stemmer` beside a tokeniser, so stemming lives in the tokeniser.
    tokenizer = _RougeTokenizer(stemming=stemming, tokens=tokens)
    scorer = RougeScorer([kind], tokenizer=tokenizer)
    overlaps = []
    for reference in references:
        if tokenizer.tokenize(reference):
            found = scorer.score(reference, answer)[kind]
            overlaps.append(Overlap(precision=found.precision, recall=found.recall, f1=found.fmeasure))
    return max(overlaps, key=lambda overlap: overlap.f1, default=None)


_UNICODE_TOKEN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


class _RougeTokenizer:
    """What rouge-score calls to split a text."""

    def __init__(self, *, stemming: Stemming, tokens: RougeTokens) -> None:
        self._tokens = tokens
        self._stem: Any = None
        if stemming is Stemming.PORTER:
            from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

            self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text."""
        if self._tokens is RougeTokens.UNICODE:
            words = _UNICODE_TOKEN.findall(text.lower())
        else:
            words = re.findall("[a-z0-9]+", text.lower())
        return [self._stem(word) if self._stem is not None and len(word) > 3 else word for word in words]


# --------------------------------------------------------------------------------------------- log-likelihoods


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice:
    """One multiple-choice question by log-likelihood."""

    mc1: float
    """1 where a true choice is the single most likely one."""
    mc2: float
    """Share of the choices' total probability that falls on the true ones."""


def multiple_choice(log_likelihoods: Sequence[float], *, truths: Sequence[bool]) -> MultipleChoice:
    """Score one question from the total log-likelihood (nats) of each choice given the question.

    Totals, not means per token: that is TruthfulQA's definition, and it favours short choices. A tie between a true and
    a false choice for the first place is not a correct answer; taking the first of the list would reward its order.
    Source: Lin et al. 2022 (TruthfulQA, arXiv 2109.07958), appendix.

    Raises `ValueError` without a true and a false choice, or for a likelihood that is not a finite number.
    """
    if len(log_likelihoods) != len(truths) or not any(truths) or all(truths):
        raise ValueError("a question needs at least one true and one false choice")
    if not all(math.isfinite(value) for value in log_likelihoods):
        raise ValueError(f"a log-likelihood is not finite: {list(log_likelihoods)}")
    best_true = max(value for value, true in zip(log_likelihoods, truths, strict=True) if true)
    best_false = max(value for value, true in zip(log_likelihoods, truths, strict=True) if not true)
    top = max(best_true, best_false)  # taken out before exp, so that nothing underflows to 0 / 0
    mass = [math.exp(value - top) for value in log_likelihoods]
    on_truth = math.fsum(part for part, true in zip(mass, truths, strict=True) if true)
    return MultipleChoice(mc1=float(best_true > best_false), mc2=on_truth / math.fsum(mass))


class Denominator(enum.StrEnum):
    """What a perplexity is per. Only bytes and words compare models with different tokenisers."""

    TOKEN = "token"
    WORD = "word"
    BYTE = "byte"


def perplexity(log_likelihoods: Sequence[float], counts: Sequence[int], *, per: Denominator) -> float:
    """Return exp(-sum of log-likelihoods / sum of counts) over a corpus: pooled, not a mean of perplexities.

    `log_likelihoods[i]` is the total (nats) of text i, `counts[i]` how many units of `per` it has: for tokens, those
    that were predicted (the first of a text without a prefix is not); for words and bytes see `count_units`. `per` is
    an argument so that the call says what was counted; the arithmetic is the same.

    Raises `ValueError` where there is nothing to divide by or a likelihood above 0.
    """
    total, units = math.fsum(log_likelihoods), sum(counts)
    if len(log_likelihoods) != len(counts) or units <= 0 or min(counts) < 0:
        raise ValueError(f"a perplexity per {per.value} needs as many counts as texts, and units to divide by")
    if total > 0:
        raise ValueError(f"a total log-likelihood of {total} is no log of a probability")
    return math.exp(-total / units)


def bits_per_byte(log_likelihoods: Sequence[float], texts: Sequence[str]) -> float:
    """Return the bits a model needs for a byte of UTF-8: log2 of the perplexity per byte."""
    counts = [count_units(text, per=Denominator.BYTE) for text in texts]
    return math.log2(perplexity(log_likelihoods, counts, per=Denominator.BYTE))


def count_units(text: str, *, per: Denominator) -> int:
    """Return how many UTF-8 bytes or white-space separated words a text has. Tokens are the caller's to count."""
    assert per is not Denominator.TOKEN, "only the tokenizer knows tokens"
    return len(text.encode("utf-8")) if per is Denominator.BYTE else len(text.split())


# --------------------------------------------------------------------------------------------------- diversity


def distinct(answers: Sequence[str], *, n: int) -> float | None:
    """Return the share of different n-grams among all n-grams of all answers together; `None` where there are none.

    Tokens are white-space separated and lower-cased; n-grams do not cross answers. It falls with the number of answers,
    so only sets of like size compare. Source: Li et al. 2016 (distinct-1, distinct-2).
    """
    grams = [gram for answer in answers for gram in _ngrams(answer.lower().split(), n)]
    return len(set(grams)) / len(grams) if grams else None


def _ngrams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    assert n >= 1, n
    return zip(*(words[start:] for start in range(n)), strict=False)
