"""Rubric scores by people: which answers are still to be scored, and the file that keeps every score.

    book = ScoreBook(Path("scores.jsonl"))
    for item, answer in book.left(read_answers("items.parquet:tuned"), rater="ada"):
        book.add(answer, scores={"helpful": 4, ...}, rater="ada")
    book.medians(answers)       # item -> criterion -> score, what a judge is compared with

What lives here: order, the file, one score for each item over raters. What does not: asking (`cli.rate`), scales
(`evals.rubric`). A score belongs to the text of an answer: another text under the same id has none.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median_low

from tunesmith.errors import DataError
from tunesmith.evals.rubric import DEFAULT_RUBRIC
from tunesmith.evals.votes import Answer
from tunesmith.types import canonical_json, sha256_hex

Scores = Mapping[str, int]


class ScoreBook:
    """JSON lines that are only ever added to; the last scores of a rater for an answer count."""

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises `DataError`, with the line, for something else."""
        self._path = path
        self._scores: dict[str, dict[str, Scores]] = defaultdict(dict)
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                record = json.loads(line)
                scores = {criterion.name: int(record["scores"][criterion.name]) for criterion in DEFAULT_RUBRIC}
                self._scores[record["answer"]][record["rater"]] = scores
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    continue  # cut short by a crash: that answer is asked about again
                raise DataError(
                    "a score cannot be read", where=f"{path}, line {number}", found=f"{error!r} in {line[:80]}"
                ) from error

    def left(self, answers: Mapping[str, Answer], *, rater: str) -> list[tuple[str, Answer]]:
        """Return what this rater has not scored, in an order of the rater's own that says nothing of the system."""
        order = sorted(answers, key=lambda item: sha256_hex(f"{rater} {item}"))
        return [(item, answers[item]) for item in order if rater not in self._scores.get(_key(answers[item]), {})]

    def add(self, answer: Answer, *, scores: Scores, rater: str) -> None:
        """Append one answer's scores."""
        key = _key(answer)
        self._scores[key][rater] = dict(scores)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"answer": key, "rater": rater, "scores": dict(scores)}) + "\n")

    def medians(self, answers: Mapping[str, Answer]) -> dict[str, dict[str, int]]:
        """Return item -> criterion -> the raters' median (the lower one of two), for answers that somebody scored."""
        out = {}
        for item, answer in answers.items():
            given = list(self._scores.get(_key(answer), {}).values())
            if given:
                out[item] = {c.name: median_low([scores[c.name] for scores in given]) for c in DEFAULT_RUBRIC}
        return out


def _key(answer: Answer) -> str:
    return sha256_hex(canonical_json([answer.prompt, answer.text]))
