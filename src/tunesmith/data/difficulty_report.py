"""The section of curation's report on the base model's view of the answers.

What lives here: the section. What does not: the scores (`data.difficulty`), the rest of the page
(`data.curation_report`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from tunesmith import charts
from tunesmith.data.difficulty import AnswerScore, Scored
from tunesmith.data.words import answer_text, prompt_text
from tunesmith.page import Cell, Number, figure, heading, lead, table, text
from tunesmith.types import Row

IFD_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
MAX_SHOWN = 8
MAX_CHARS = 160


def difficulty_parts(scored: Scored) -> list[Markup]:
    """Return the pieces of the section, in order; none where nothing was scored."""
    known = [(row, score) for row, score in scored if isinstance(score, AnswerScore)]
    if not scored:
        return []
    parts = [
        lead(
            f"The base model read the answers of {len(known):,} rows, with their prompts and without. IFD is the ratio "
            "of the two perplexities: at 1 and more the prompt makes the answer no likelier, near 0 it says it all."
        )
    ]
    if len(known) < len(scored):
        parts.append(text(f"{len(scored) - len(known):,} rows could not be scored; each is flagged with its reason."))
    if not known:
        return parts
    names, counts = _bins([score.ifd for _, score in known])
    ordered = sorted(known, key=lambda entry: (-entry[1].ifd, entry[0].id))
    return [
        *parts,
        figure(charts.bars(names, counts, x_label="rows"), caption="Instruction-following difficulty, by row."),
        _quantiles([score for _, score in known]),
        heading("Where the prompt helps least"),
        _rows(ordered[:MAX_SHOWN]),
        heading("Where the prompt says it all"),
        _rows(ordered[::-1][:MAX_SHOWN]),
    ]


def _bins(values: Sequence[float]) -> tuple[list[str], list[int]]:
    lows = (0.0, *IFD_EDGES)
    highs = (*IFD_EDGES, float("inf"))
    names = [*(f"{low:g} to {high:g}" for low, high in pairwise((0.0, *IFD_EDGES))), f"{IFD_EDGES[-1]:g} and more"]
    return names, [sum(low <= value < high for value in values) for low, high in zip(lows, highs, strict=True)]


def _quantiles(scores: Sequence[AnswerScore]) -> Markup:
    perplexities, ifds = sorted(score.perplexity for score in scores), sorted(score.ifd for score in scores)
    body: list[list[Cell]] = []
    for share in QUANTILES:
        place = min(len(scores) - 1, int(share * len(scores)))
        body.append([f"{share:.0%}", Number(f"{perplexities[place]:,.2f}"), Number(f"{ifds[place]:.3f}")])
    return table(["share of rows below", "perplexity", "IFD"], body)


def _rows(entries: Sequence[tuple[Row, AnswerScore]]) -> Markup:
    body: list[list[Cell]] = [
        [
            f"{row.provenance.path}:{row.provenance.line}",
            _short(prompt_text(row.conversation)),
            _short(answer_text(row.conversation)),
            Number(f"{score.ifd:.2f}"),
            Number(f"{score.perplexity:,.1f}"),
        ]
        for row, score in entries
    ]
    return table(["place", "prompt", "answer", "IFD", "perplexity"], body)


def _short(words: str) -> str:
    return words if len(words) <= MAX_CHARS else words[:MAX_CHARS] + " …"
