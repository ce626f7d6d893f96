"""Blind comparison by people: what is shown, in which order, and the file that keeps every vote.

    comparison = pair_answers(read_answers("base.jsonl"), read_answers("tuned.jsonl"))
    showings = plan_showings(comparison, rater="ada", seed=0)       # texts and order, no names of systems
    book = VoteBook.open(path, comparison, seed=0)
    book.add(showings[0], choice=Choice.FIRST, rater="ada")
    preference(book.votes(comparison))

What lives here: reading answers, planning sides, the votes file. What does not: asking (`cli.compare`, the page),
figures (`preference`).

The file is JSON lines. Its first line says which answers the votes are about; a book of other answers is refused. Votes
are only ever added: the last one of a rater on an item counts, and taking one back is a line of its own. A line that a
crash cut short is left out, and said so.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tunesmith.errors import DataError
from tunesmith.evals.agreement import Scale, krippendorff_alpha, with_interval
from tunesmith.evals.preference import Choice, Side, Vote
from tunesmith.evals.stats import Estimate
from tunesmith.types import JSON, canonical_json, sha256_hex

KIND = "tunesmith-votes"
VERSION = 1
PASSED_OVER = "skip"
TAKEN_BACK = "undo"
_RECORDED = frozenset({*(choice.value for choice in Choice), PASSED_OVER, TAKEN_BACK})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One system's answer to one prompt."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The answers of two systems to the same prompts: A is the baseline, B the candidate."""

    items: Mapping[str, tuple[Answer, Answer]]
    only_a: int
    """Items that only A answered; they are not compared."""
    only_b: int
    digest: str
    """sha256 of all prompts and answers: what a vote is about."""

    @property
    def equal(self) -> list[str]:
        """Items whose two answers are the same text: ties that nobody needs to be asked about."""
        return [item for item, (a, b) in self.items.items() if a.text == b.text]


@dataclass(frozen=True, slots=True, kw_only=True)
class Showing:
    """One item as a rater sees it."""

    item: str
    prompt: str
    first: str
    second: str
    shown_first: Side
    """Never shown to the rater."""


# ------------------------------------------------------------------------------------------------------ answers


def read_answers(source: str) -> dict[str, Answer]:
    """Read answers by item from JSON lines with `id`, `prompt` and `answer`, or from `items.parquet:SYSTEM`.

    The second form is what `evaluate` writes; SYSTEM is `base` or `tuned`. Raises `DataError` with file and line.
    """
    path, _, system = source.partition(".parquet:")
    if system:
        return _read_items(Path(path + ".parquet"), system)
    if source.endswith(".parquet"):
        raise DataError("which system's answers?", where=source, hint=f"write {source}:tuned, or {source}:base")
    out: dict[str, Answer] = {}
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot read the answers", where=source, found=str(error)) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError("a line is not JSON", where=where, found=str(error)) from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "answer")):
            raise DataError("a line is no answer", where=where, expected='{"id", "prompt", "answer"}', found=line[:80])
        if not isinstance(row.get("id"), (str, int)) or str(row["id"]) in out:
            raise DataError("an answer's id is missing or occurs twice", where=where, found=repr(row.get("id")))
        out[str(row["id"])] = Answer(prompt=row["prompt"], text=row["answer"])
    return out


def _read_items(path: Path, system: str) -> dict[str, Answer]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["row_id", "system", "prompt", "output"])
    except (OSError, pa.ArrowException) as error:
        raise DataError("cannot read the answers", where=str(path), found=str(error)) from error
    rows = [row for row in table.to_pylist() if row["system"] == system]
    if not rows:
        known = ", ".join(sorted(set(table.column("system").to_pylist())))
        raise DataError(f"there is no system {system!r}", where=str(path), expected=known)
    return {row["row_id"]: Answer(prompt=row["prompt"], text=row["output"]) for row in rows}


def pair_answers(a: Mapping[str, Answer], b: Mapping[str, Answer]) -> Comparison:
    """Join two systems' answers by item. Raises `DataError` where they share none or were asked different things."""
    shared = [item for item in a if item in b]
    if not shared:
        raise DataError("the two files share no item", expected="the same ids", found=f"{len(a)} and {len(b)} answers")
    for item in shared:
        if a[item].prompt != b[item].prompt:
            raise DataError("the two systems were asked different things", where=f"item {item}")
    items = {item: (a[item], b[item]) for item in shared}
    digest = sha256_hex(canonical_json([[item, x.prompt, x.text, y.text] for item, (x, y) in sorted(items.items())]))
    return Comparison(items=items, only_a=len(a) - len(shared), only_b=len(b) - len(shared), digest=digest)


def plan_showings(comparison: Comparison, *, rater: str, seed: int) -> list[Showing]:
    """Return the items in this rater's order, each with its sides: shuffled, each system first equally often.

    Items with equal answers are left out. The plan depends on the answers, the rater and the seed alone, so that work
    resumes where it stopped and two raters see different orders.
    """
    source = random.Random(sha256_hex(f"{comparison.digest}\0{seed}\0{rater}"))
    equal = set(comparison.equal)
    items = sorted(item for item in comparison.items if item not in equal)
    source.shuffle(items)
    sides = [Side.BASELINE, Side.CANDIDATE] * (len(items) // 2 + 1)
    sides = sides[: len(items)]
    source.shuffle(sides)
    out = []
    for item, side in zip(items, sides, strict=True):
        a, b = comparison.items[item]
        first, second = (b.text, a.text) if side is Side.CANDIDATE else (a.text, b.text)
        out.append(Showing(item=item, prompt=a.prompt, first=first, second=second, shown_first=side))
    return out


# ------------------------------------------------------------------------------------------------- the votes file


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of the votes file."""

    item: str
    rater: str
    shown_first: Side
    choice: str
    """A `Choice`, `skip` or `undo`."""
    at: str
    """UTC, ISO 8601."""

    def to_json(self) -> dict[str, JSON]:
        """Return the line."""
        return {
            "item": self.item,
            "rater": self.rater,
            "shown_first": "b" if self.shown_first is Side.CANDIDATE else "a",
            "choice": self.choice,
            "at": self.at,
        }


class VoteBook:
    """An append-only votes file about one comparison."""

    def __init__(self, path: Path, records: list[Record], *, num_cut_short: int, ends_whole: bool) -> None:
        self.path = path
        self.records = records
        self.num_cut_short = num_cut_short
        """Lines that a crash left incomplete."""
        self._ends_whole = ends_whole

    @classmethod
    def open(cls, path: Path, comparison: Comparison, *, seed: int) -> VoteBook:
        """Open a votes file, or begin one. Raises `DataError` where it is about other answers or another seed."""
        header = {"kind": KIND, "version": VERSION, "answers_sha256": comparison.digest, "seed": seed}
        if not path.exists() or path.stat().st_size == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, canonical_json(header))
            return cls(path, [], num_cut_short=0, ends_whole=True)
        text = path.read_text(encoding="utf-8")
        rows, cut_short = [], 0
        for number, line in enumerate(text.split("\n"), start=1):
            if line:
                try:
                    rows.append((number, json.loads(line)))
                except ValueError:
                    cut_short += 1
        if not rows or rows[0][1] != header:
            raise DataError(
                "these votes are about something else",
                where=str(path),
                expected=canonical_json(header),
                found=canonical_json(rows[0][1]) if rows else "no first line",
                hint="name another votes file with --votes, or give the answers and the seed it was begun with",
            )
        records = [_read_record(row, f"{path}, line {number}") for number, row in rows[1:]]
        return cls(path, records, num_cut_short=cut_short, ends_whole=text.endswith("\n"))

    def add(self, showing: Showing, *, choice: Choice | str, rater: str) -> None:
        """Append one record and see it onto the disk. `choice` may also be `skip` or `undo`."""
        assert str(choice) in _RECORDED, choice
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(item=showing.item, rater=rater, shown_first=showing.shown_first, choice=str(choice), at=now)
        line = canonical_json(record.to_json())
        _append(self.path, line if self._ends_whole else "\n" + line)
        self._ends_whole = True
        self.records.append(record)

    def standing(self, rater: str) -> dict[str, Record]:
        """Return this rater's last record on each item, those taken back left out."""
        last: dict[str, Record] = {}
        for record in self.records:
            if record.rater == rater:
                last.pop(record.item, None)
                if record.choice != TAKEN_BACK:
                    last[record.item] = record
        return last

    @property
    def raters(self) -> list[str]:
        """Everybody with a record, in order of appearance."""
        return list(dict.fromkeys(record.rater for record in self.records))

    def votes(self, comparison: Comparison) -> list[Vote]:
        """Return the votes that stand. Equal answers are a tie of every rater who voted at all."""
        out = []
        for rater in self.raters:
            standing = {i: r for i, r in self.standing(rater).items() if r.choice != PASSED_OVER}
            for item, record in standing.items():
                out.append(_vote(comparison, item, rater, record.shown_first, Choice(record.choice)))
            if standing:
                for item in comparison.equal:
                    out += [_vote(comparison, item, rater, side, Choice.TIE) for side in Side]
        return out


def rater_agreement(votes: Sequence[Vote], comparison: Comparison) -> Estimate | None:
    """Return Krippendorff's alpha (ordinal: loss, tie, win) of the raters over items; `None` where it is not defined.

    Items with equal answers are left out: nobody was asked about them.
    """
    equal = set(comparison.equal)
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for vote in votes:
        if vote.item in equal:
            continue
        scores[vote.item][vote.rater].append(vote.candidate_score)
    items = [[sum(given) / len(given) for given in by_rater.values()] for by_rater in scores.values()]
    return with_interval(items, lambda sample: krippendorff_alpha(sample, scale=Scale.ORDINAL))


def _vote(comparison: Comparison, item: str, rater: str, shown_first: Side, choice: Choice) -> Vote:
    if item not in comparison.items:
        raise DataError("a vote is about an item that is not compared", where=f"item {item}, rater {rater}")
    a, b = comparison.items[item]
    gap = len(b.text) - len(a.text)
    return Vote(item=item, rater=rater, shown_first=shown_first, choice=choice, length_gap=gap)


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_record(row: JSON, where: str) -> Record:
    if (
        not isinstance(row, dict)
        or row.keys() != {"item", "rater", "shown_first", "choice", "at"}
        or not all(isinstance(value, str) for value in row.values())
        or row["choice"] not in _RECORDED
        or row["shown_first"] not in ("a", "b")
    ):
        raise DataError("a line is no vote", where=where, found=canonical_json(row)[:120])
    side = Side.CANDIDATE if row["shown_first"] == "b" else Side.BASELINE
    return Record(item=row["item"], rater=row["rater"], shown_first=side, choice=row["choice"], at=row["at"])


def import_page_votes(book: VoteBook, comparison: Comparison, downloaded: JSON, *, seed: int) -> int:
    """Append what the page's download holds and return how many records were new.

    The page knows first and second only; the sides come from the plan of its rater. A record that already stands is not
    added again. Raises `DataError` where the download is about other answers, or holds what no page writes.
    """
    shape = isinstance(downloaded, dict) and downloaded.get("kind") == f"{KIND}-page"
    if not shape or downloaded.get("answers_sha256") != comparison.digest or downloaded.get("seed") != seed:
        raise DataError(
            "this download is not from the page of this comparison",
            expected=f"{KIND}-page of answers {comparison.digest[:12]} with seed {seed}",
            found=canonical_json({k: v for k, v in downloaded.items() if k != "choices"})[:160]
            if shape
            else "another shape",
        )
    rater, choices = downloaded.get("rater"), downloaded.get("choices")
    if not isinstance(rater, str) or not rater or not isinstance(choices, dict):
        raise DataError("the download names no rater or holds no choices", found=repr(rater))
    showings = {showing.item: showing for showing in plan_showings(comparison, rater=rater, seed=seed)}
    for item, choice in choices.items():
        if item not in showings or choice not in _RECORDED - {TAKEN_BACK}:
            raise DataError(
                "the download holds a choice that the page does not offer", where=f"item {item}", found=repr(choice)
            )
    standing = book.standing(rater)
    fresh = {i: c for i, c in choices.items() if i not in standing or standing[i].choice != c}
    for item, choice in fresh.items():
        book.add(showings[item], choice=choice, rater=rater)
    return len(fresh)
