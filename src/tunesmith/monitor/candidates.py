"""Candidates: which traces may teach the next data version, and which may not, each with its reason.

What lives here: choosing and sorting. What does not: text comparison (the caller passes what overlaps the held-out
rows), Parquet (`stages.harvest`, `api`).

    failures and bad ratings --> candidate --+-- overlaps held-out, no consent, not kept --> excluded
                                             +-- has a correction                        --> train
                                             +-- has none                                --> review: needs a label

An answer of the model itself never becomes a target: a row without a correction has no answer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.types import Conversation, Feedback, Message, Trace


class Why(enum.StrEnum):
    """What makes a trace worth learning from."""

    SCHEMA_BROKEN = "schema_broken"
    FLAGGED = "output_flagged"
    CUT = "cut"
    REFUSED = "refused"
    BAD_RATING = "bad_rating"
    CORRECTED = "corrected"


class Fate(enum.StrEnum):
    """Where a candidate goes."""

    TRAIN = "train"
    REVIEW = "review"
    EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A held-out row that a candidate repeats."""

    side: str
    """`test` or `val`."""
    row_id: str
    score: float
    """1 is equal after normalisation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A trace worth learning from, and what becomes of it."""

    trace: Trace
    why: tuple[Why, ...]
    correction: str | None
    rating: float | None
    fate: Fate = Fate.REVIEW
    reason: str = ""
    """`needs_label`, `no_consent`, `not_kept`, `overlaps_test`, `overlaps_val`, `repeated`; empty for `train`."""
    overlap: Overlap | None = None
    repeats: str | None = None
    """Id of the trace that has the same prompt and was taken before."""

    @property
    def prompt(self) -> Conversation:
        """What was asked, redacted. Only for traces whose content was kept."""
        assert self.trace.messages is not None
        return Conversation(messages=tuple(Message.from_json(message) for message in self.trace.messages))


Overlaps = Callable[[Sequence[Candidate]], Mapping[str, Overlap]]
"""Trace id -> the held-out row that it repeats, for those candidates that repeat one."""


def find_candidates(traces: Iterable[Trace], feedback: Iterable[Feedback]) -> list[Candidate]:
    """Return the traces worth learning from, in order of arrival. The last rating and the last correction count."""
    ratings: dict[str, float] = {}
    corrections: dict[str, str] = {}
    for item in sorted(feedback, key=lambda item: item.time):
        if item.rating is not None:
            ratings[item.trace_id] = item.rating
        if item.correction is not None:
            corrections[item.trace_id] = item.correction
    out = []
    for trace in sorted(traces, key=lambda trace: (trace.time, trace.id)):
        why = _why(trace, ratings.get(trace.id), corrections.get(trace.id))
        if why:
            out.append(
                Candidate(trace=trace, why=why, correction=corrections.get(trace.id), rating=ratings.get(trace.id))
            )
    return out


def _why(trace: Trace, rating: float | None, correction: str | None) -> tuple[Why, ...]:
    if trace.status != 200:
        return ()
    signs = (
        (Why.SCHEMA_BROKEN, trace.schema_ok is False),
        (Why.FLAGGED, any(flag.startswith("output:") and flag != "output:schema" for flag in trace.guard_flags)),
        (Why.CUT, trace.finish_reason == "length"),
        (Why.REFUSED, trace.finish_reason == "content_filter"),
        (Why.BAD_RATING, rating is not None and rating < 0),
        (Why.CORRECTED, correction is not None),
    )
    return tuple(why for why, holds in signs if holds)


def settle(candidates: Sequence[Candidate], *, overlaps: Overlaps, key: Callable[[Candidate], str]) -> list[Candidate]:
    """Return the candidates with their fates, in the same order.

    `key` tells which prompts are the same: of several, the one with a correction is taken, else the first.
    """
    usable = [candidate for candidate in candidates if _barred(candidate) is None]
    held_out = overlaps(usable)
    first: dict[str, Candidate] = {}
    for candidate in sorted(usable, key=lambda candidate: candidate.correction is None):
        if candidate.trace.id not in held_out:
            first.setdefault(key(candidate), candidate)
    return [_settled(candidate, held_out.get(candidate.trace.id), first, key) for candidate in candidates]


def _barred(candidate: Candidate) -> str | None:
    if candidate.trace.consent is not True:
        return "no_consent"
    return "not_kept" if candidate.trace.messages is None else None


def _settled(
    candidate: Candidate, overlap: Overlap | None, first: Mapping[str, Candidate], key: Callable[[Candidate], str]
) -> Candidate:
    barred = _barred(candidate)
    if barred is not None:
        return _with(candidate, Fate.EXCLUDED, barred)
    if overlap is not None:
        return _with(candidate, Fate.EXCLUDED, f"overlaps_{overlap.side}", overlap=overlap)
    taken = first[key(candidate)]
    if taken is not candidate:
        return _with(candidate, Fate.EXCLUDED, "repeated", repeats=taken.trace.id)
    if candidate.correction is None:
        return _with(candidate, Fate.REVIEW, "needs_label")
    return _with(candidate, Fate.TRAIN, "")


def _with(
    candidate: Candidate, fate: Fate, reason: str, *, overlap: Overlap | None = None, repeats: str | None = None
) -> Candidate:
    return Candidate(
        trace=candidate.trace,
        why=candidate.why,
        correction=candidate.correction,
        rating=candidate.rating,
        fate=fate,
        reason=reason,
        overlap=overlap,
        repeats=repeats,
    )
