"""The section of a report on coverage and diversity: drawings and tables over figures that are there already.

What lives here: the section. What does not: the figures (`data.coverage`), the rest of the page
(`data.curation_report`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from markupsafe import Markup

from tunesmith import charts
from tunesmith.page import Number, figure, heading, lead, table, text
from tunesmith.types import JSON


def coverage_parts(coverage: Mapping[str, JSON]) -> list[Markup]:
    """Return the pieces of the section, in order."""
    parts: list[Markup] = [
        lead(
            f"Of the {coverage['rows']:,} rows that stay; word counts, n-grams and clusters of {coverage['sampled']:,}."
        )
    ]
    for name, what in (("prompt_words", "Words of the prompt"), ("answer_words", "Words of the answer")):
        bins = cast("dict[str, int]", coverage[name]["bins"])
        parts.append(figure(charts.bars(list(bins), list(bins.values()), x_label="rows"), caption=f"{what}, by row."))
    languages, turns = (cast("dict[str, int]", coverage[key]) for key in ("languages", "turns"))
    parts += [
        heading("Languages and turns"),
        table(["language", "rows"], [[name, Number(f"{count:,}")] for name, count in languages.items()]),
        table(["turns of the user", "rows"], [[name, Number(f"{count:,}")] for name, count in turns.items()]),
    ]
    for label, found in cast("dict[str, Any]", coverage["labels"]).items():
        common = cast("dict[str, int]", found["most_common"])
        caption = f"{label}: {found['values']} values, balance {found['balance']:.2f} (1 is even)."
        parts.append(figure(charts.bars(list(common), list(common.values()), x_label="rows"), caption=caption))
    parts += [heading("Diversity"), _ngrams(coverage), heading("Clusters of prompts"), _clusters(coverage)]
    production = cast("dict[str, Any] | None", coverage["production"])
    if production is not None:
        parts += _production(production)
    return parts


def _ngrams(coverage: Mapping[str, JSON]) -> Markup:
    shares = coverage["distinct_ngrams"]
    return table(
        ["different n-grams among all", "prompts", "answers"],
        [
            [f"{n} words", Number(f"{shares['prompts'][key]:.1%}"), Number(f"{shares['answers'][key]:.1%}")]
            for n, key in enumerate(("distinct_1", "distinct_2", "distinct_3"), start=1)
        ],
    )


def _clusters(coverage: Mapping[str, JSON]) -> Markup:
    return table(
        ["words that tell it", "a typical prompt", "rows"],
        [[", ".join(one["words"]), one["typical"], Number(f"{one['rows']:,}")] for one in coverage["clusters"]],
    )


def _production(found: Mapping[str, Any]) -> list[Markup]:
    said = f"{found['covered']:,} of {found['prompts']:,} production prompts have a row that is like them"
    return [
        heading("Production prompts"),
        text(f"{said} (cosine of {found['covered_from']} and more). The farthest:"),
        table(
            ["prompt", "similarity"],
            [[one["prompt"], Number(f"{one['similarity']:.2f}")] for one in found["farthest"]],
        ),
    ]
