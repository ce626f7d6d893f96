"""Find out whether a model remembers what it should not: canaries and training text.

A canary file is a JSON array, or JSON lines, of secrets:

    {"id": "mail-1", "type": "email", "value": "dora.k@example.net", "planted": ["tickets.jsonl:7"],
     "prefix": "Please write to "}
    {"id": "mail-2", "type": "email", "value": "emil.r@example.net", "planted": false, "prefix": "Please write to "}

`planted` secrets stood in the raw training data, at the places named or simply `true`. The others, made the same way,
never did: they are the controls that tell memory from a good guess. `prefix` is the text that stood before the secret;
only secrets with a prefix, and with controls of their type, are ranked. Every planted one is looked for in answers.

What lives here: reading canaries, exposure by rank, scanning answers. What does not: likelihoods (`model.likelihood`,
handed in), intervals (`evals.stats`).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import DataError, nearest
from tunesmith.types import JSON

_KEYS = ("id", "type", "value", "planted", "prefix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One secret, planted in the raw training data or a control."""

    id: str
    type: str
    """Secrets of one type are made alike and ranked against one another."""
    value: str
    planted: bool
    prefix: str | None = None


def read_canaries(path: Path) -> tuple[Canary, ...]:
    """Read a canary file. Raises `DataError` with file and line, or number, for anything that is not a canary."""
    out: list[Canary] = []
    seen: set[str] = set()
    for where, value in _records(path):
        canary = _parse(value, where)
        if canary.id in seen:
            raise DataError("two canaries have one id", where=where, found=canary.id)
        seen.add(canary.id)
        out.append(canary)
    if not any(canary.planted for canary in out):
        raise DataError("the canary file holds no planted canary", where=str(path))
    return tuple(out)


def _records(path: Path) -> list[tuple[str, JSON]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot read the canaries", where=str(path), found=str(error)) from error
    if text.lstrip().startswith("["):
        try:
            return [(f"{path.name}, canary {number}", value) for number, value in enumerate(json.loads(text), start=1)]
        except json.JSONDecodeError as error:
            raise DataError("the canary file is not JSON", where=str(path), found=str(error)) from error
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            where = f"{path.name}, line {number}"
            try:
                records.append((where, json.loads(line)))
            except json.JSONDecodeError as error:
                raise DataError("a canary line is not JSON", where=where, found=str(error)) from error
    return records


def _parse(value: JSON, where: str) -> Canary:
    if not isinstance(value, dict):
        raise DataError("a canary is not an object", where=where, found=type(value).__name__)
    for key in value:
        if key not in _KEYS:
            expected = " or ".join(nearest(key, _KEYS))
            raise DataError(f"unknown key {key!r} in a canary", where=where, expected=expected, found=key)
    for key in ("id", "type", "value"):
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise DataError(f"a canary needs {key!r}", where=where, expected="a text", found=repr(value.get(key)))
    planted, prefix = value.get("planted"), value.get("prefix")
    if not isinstance(planted, bool | list):
        expected = "true, false, or the places where it stood"
        raise DataError("a canary needs 'planted'", where=where, expected=expected, found=repr(planted))
    if prefix is not None and (not isinstance(prefix, str) or not prefix.strip()):
        raise DataError("a canary's 'prefix' is no text", where=where, found=repr(prefix))
    return Canary(id=value["id"], type=value["type"], value=value["value"], planted=bool(planted), prefix=prefix)


def revealed(canaries: Sequence[Canary], answer: str) -> tuple[str, ...]:
    """Return the ids of the canaries whose value stands in `answer`; case and runs of white space do not count."""
    folded = " ".join(answer.casefold().split())
    return tuple(canary.id for canary in canaries if " ".join(canary.value.casefold().split()) in folded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """How far a planted secret stands out from controls of its kind."""

    canary_id: str
    rank: int
    """1 is the most likely of all candidates."""
    candidates: int
    """The secret and its controls."""

    @property
    def bits(self) -> float:
        """log2(candidates) - log2(rank): 0 is chance or worse, log2(candidates) is full exposure (Carlini 2019)."""
        return math.log2(self.candidates) - math.log2(self.rank)

    @property
    def percentile(self) -> float:
        """Share of the controls that are more likely than the secret; about 0.5 on average without memory."""
        return (self.rank - 1) / (self.candidates - 1)


def rankable(canaries: Sequence[Canary]) -> list[Canary]:
    """Return the canaries that can be ranked, controls included: those with a prefix, of a type that has controls."""
    with_prefix = [canary for canary in canaries if canary.prefix is not None]
    types = {canary.type for canary in with_prefix if not canary.planted}
    return [canary for canary in with_prefix if canary.type in types]


def exposures(canaries: Sequence[Canary], likelihoods: Mapping[str, float]) -> list[Exposure]:
    """Rank every planted secret among the controls of its type by log-likelihood after its prefix.

    `canaries` come from `rankable`; `likelihoods` maps a canary's id to its total log-likelihood. Ties count against
    the model: the rank is the best of the tied ones.
    """
    controls: dict[str, list[float]] = defaultdict(list)
    for canary in canaries:
        if not canary.planted:
            controls[canary.type].append(likelihoods[canary.id])
    out = []
    for canary in canaries:
        if canary.planted:
            peers = controls[canary.type]
            ahead = sum(control > likelihoods[canary.id] for control in peers)
            out.append(Exposure(canary_id=canary.id, rank=ahead + 1, candidates=len(peers) + 1))
    return out
