"""Judging: two or more systems' answers compared by a model at an OpenAI-compatible URL.

    with httpx.Client(timeout=120) as client:
        judge = ChatJudge(client=client, url="http://127.0.0.1:8000/v1", model="judge")
        found = judge_answers(["items.parquet:base", "items.parquet:tuned"], judge, verdicts=Path("verdicts.jsonl"))
    found.to_json()

What lives here: which pairs are asked, verdicts kept so that nothing is asked twice, and what is made of them. What
does not: asking and biases (`evals.judge`, `evals.preference`), scales (`evals.rubric`), strengths (`evals.rating`).
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from tunesmith.errors import DataError
from tunesmith.evals.judge import (
    ChatJudge,
    JudgeFailure,
    Pair,
    corrected_win_rate,
    judge_pairs,
    require_few_failures,
)
from tunesmith.evals.preference import Choice, PreferenceReport, Vote, preference
from tunesmith.evals.rating import Match, Rating, bradley_terry
from tunesmith.evals.rubric import DEFAULT_RUBRIC, RubricAgreement, agreement_with_people, rate, rubric_means
from tunesmith.evals.scores import ScoreBook
from tunesmith.evals.stats import Estimate
from tunesmith.evals.votes import Answer, VoteBook, pair_answers, read_answers
from tunesmith.types import JSON, canonical_json, sha256_hex

Progress = Callable[[int], None]
"""Called with the number of requests answered so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairJudging:
    """Two systems under one judge."""

    baseline: str
    candidate: str
    report: PreferenceReport
    votes: tuple[Vote, ...]
    failures: Mapping[str, int]
    """Kind of failure -> requests that ended so; they are no verdicts."""
    corrected: Estimate | None
    """The win rate that people would give, by how this judge agrees with theirs; `None` without people's votes."""

    def to_json(self) -> dict[str, JSON]:
        """Return plain JSON."""
        return {
            "baseline": self.baseline,
            "candidate": self.candidate,
            **self.report.to_json(),
            "failures": dict(self.failures),
            "corrected_win_rate": self.corrected.to_json() if self.corrected is not None else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """What a judge said of all systems."""

    pairs: tuple[PairJudging, ...]
    ratings: tuple[Rating, ...] = ()
    """Bradley-Terry strengths, where there are more than two systems."""
    rubric: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """System -> criterion -> mean score."""
    agreement: Mapping[str, RubricAgreement] = field(default_factory=dict)
    """Criterion -> agreement of the judge's scores with people's, over all systems; empty without people's scores."""

    def to_json(self) -> dict[str, JSON]:
        """Return plain JSON."""
        return {
            "pairs": [pair.to_json() for pair in self.pairs],
            "ratings": [
                {
                    "model": one.model,
                    "strength": one.strength,
                    "low": one.low,
                    "high": one.high,
                    "elo": one.elo,
                    "rank": one.rank,
                    "matches": one.matches,
                }
                for one in self.ratings
            ],
            "rubric": {
                system: {name: found.to_json() for name, found in scores.items()}
                for system, scores in self.rubric.items()
            },
            "agreement": {
                name: {
                    "weighted_kappa": one.weighted_kappa.to_json() if one.weighted_kappa else None,
                    "alpha": one.alpha.to_json() if one.alpha else None,
                    "exact": one.exact,
                    "mean_difference": one.mean_difference,
                    "items": one.num_items,
                }
                for name, one in self.agreement.items()
            },
        }


class VerdictBook:
    """Verdicts by what was asked, in a file that is only ever added to. Failures are not kept: they are asked again."""

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises `DataError` for a file of something else."""
        self._path, self._lock = path, Lock()
        self._kept: dict[str, JSON] = {}
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line) if line else None
            except ValueError as error:
                if number == len(lines):
                    continue  # cut short by a crash: asked again
                raise DataError("cannot read the verdicts", where=f"{path}, line {number}", found=line[:80]) from error
            if record is not None:
                self._kept[record["asked"]] = record["verdict"]

    def recall(self, asked: Sequence[str]) -> JSON:
        """Return the verdict on what was asked, or `None`."""
        return self._kept.get(sha256_hex(canonical_json(list(asked))))

    def keep(self, asked: Sequence[str], verdict: JSON) -> None:
        """Add a verdict."""
        key = sha256_hex(canonical_json(list(asked)))
        with self._lock:
            self._kept[key] = verdict
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"asked": key, "verdict": verdict}) + "\n")


def judge_answers(
    sources: Sequence[str],
    judge: ChatJudge,
    *,
    verdicts: Path,
    most: int | None = None,
    workers: int = 4,
    rubric: bool = False,
    people: Path | None = None,
    people_seed: int = 0,
    people_scores: Path | None = None,
    progress: Progress = lambda _: None,
) -> Judging:
    """Judge every two of the systems in both orders, and each answer by the rubric where that is asked for.

    `sources` are what `read_answers` takes; the first of two is the baseline. `most` takes at most so many items, by a
    hash of their ids. `people` is a votes file of `tunesmith compare` about the same two systems, `people_seed` the
    seed it was begun with; `people_scores` is a file of `tunesmith rate`, to hold the rubric against. Raises
    `DataError` where systems share no item, `GateError` where more than 2% of the requests failed, `ServeError` where
    the endpoint refuses them.
    """
    if len(sources) < 2 or len(set(sources)) < len(sources):
        raise DataError("a judge compares two different systems or more", found=", ".join(sources))
    if people is not None and (len(sources) != 2 or not people.exists()):
        raise DataError(
            "people's votes are a file about two systems", where=str(people), found=f"{len(sources)} systems"
        )
    if people_scores is not None and not (rubric and people_scores.exists()):
        raise DataError(
            "people's scores are held against the judge's by rubric", where=str(people_scores), hint="add --rubric"
        )
    answers = {source: read_answers(source) for source in sources}
    book = VerdictBook(verdicts)
    asking = _Asking(judge, book, progress)
    pairs = []
    for baseline, candidate in itertools.combinations(sources, 2):
        judged = judge_pairs(
            _pairs(answers[baseline], answers[candidate], most=most), asking.choose, rater=judge.model, workers=workers
        )
        require_few_failures(judged.failures, judged.num_asked)
        corrected = None
        if people is not None:
            comparison = pair_answers(answers[baseline], answers[candidate])
            votes = VoteBook.open(people, comparison, seed=people_seed).votes(comparison)
            corrected = corrected_win_rate(_by_item(judged.votes), _by_item(votes))
        pairs.append(
            PairJudging(
                baseline=baseline,
                candidate=candidate,
                report=preference(judged.votes),
                votes=judged.votes,
                failures=dict(Counter(failure.kind.value for failure in judged.failures)),
                corrected=corrected,
            )
        )
    scores = {source: _rubric(answers[source], asking, most=most, workers=workers) for source in sources if rubric}
    agreement: Mapping[str, RubricAgreement] = {}
    if people_scores is not None:
        given = ScoreBook(people_scores)
        by_people = {f"{s}/{item}": score for s in sources for item, score in given.medians(answers[s]).items()}
        by_judge = {f"{s}/{item}": score for s, found in scores.items() for item, score in found.items()}
        agreement = agreement_with_people(by_judge, by_people, rubric=DEFAULT_RUBRIC)
    return Judging(
        pairs=tuple(pairs),
        ratings=tuple(bradley_terry(_matches(pairs))) if len(sources) > 2 else (),
        rubric={source: rubric_means(list(found.values()), rubric=DEFAULT_RUBRIC) for source, found in scores.items()},
        agreement=agreement,
    )


class _Asking:
    """A judge whose verdicts are kept."""

    def __init__(self, judge: ChatJudge, book: VerdictBook, progress: Progress) -> None:
        self.judge, self._book, self._progress = judge, book, progress
        self._done = itertools.count(1)

    def choose(self, prompt: str, first: str, second: str) -> Choice | JudgeFailure:
        asked = ("pair", self.judge.model, prompt, first, second)
        kept = self._book.recall(asked)
        found = Choice(kept) if kept is not None else self.judge.choose(prompt, first, second)
        if kept is None and isinstance(found, Choice):
            self._book.keep(asked, found.value)
        self._progress(next(self._done))
        return found

    def rate(self, prompt: str, answer: str) -> Mapping[str, int] | JudgeFailure:
        asked = ("rubric", self.judge.model, prompt, answer)
        kept = self._book.recall(asked)
        found = kept if kept is not None else rate(self.judge, prompt, answer, rubric=DEFAULT_RUBRIC)
        if kept is None and not isinstance(found, JudgeFailure):
            self._book.keep(asked, found)
        self._progress(next(self._done))
        return found


def _chosen(items: Sequence[str], most: int | None) -> list[str]:
    if most is None or len(items) <= most:
        return list(items)
    kept = set(sorted(items, key=sha256_hex)[:most])
    return [item for item in items if item in kept]


def _pairs(a: Mapping[str, Answer], b: Mapping[str, Answer], *, most: int | None) -> list[Pair]:
    comparison = pair_answers(a, b)
    return [
        Pair(item=item, prompt=first.prompt, baseline=first.text, candidate=second.text)
        for item in _chosen(list(comparison.items), most)
        for first, second in (comparison.items[item],)
    ]


def _by_item(votes: Sequence[Vote]) -> dict[str, float]:
    """Return item -> the candidate's mean score over all votes: both orders of a judge, or several people."""
    scores: dict[str, list[float]] = defaultdict(list)
    for vote in votes:
        scores[vote.item].append(vote.candidate_score)
    return {item: sum(found) / len(found) for item, found in scores.items()}


def _rubric(
    answers: Mapping[str, Answer], asking: _Asking, *, most: int | None, workers: int
) -> dict[str, Mapping[str, int]]:
    """Return item -> the judge's scores of its answer; failures are left out, and too many stop."""
    chosen = _chosen(list(answers), most)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        found = list(pool.map(lambda item: asking.rate(answers[item].prompt, answers[item].text), chosen))
    scores = {item: score for item, score in zip(chosen, found, strict=True) if not isinstance(score, JudgeFailure)}
    require_few_failures([score for score in found if isinstance(score, JudgeFailure)], len(found))
    return scores


def _matches(pairs: Sequence[PairJudging]) -> list[Match]:
    """Return one match for each pair and item, both orders averaged."""
    return [
        Match(a=pair.candidate, b=pair.baseline, score=score, prompt=item)
        for pair in pairs
        for item, score in _by_item(pair.votes).items()
    ]
