"""The page on which one person compares answers blind: one file, no server, nothing loaded from anywhere.

    Path("for-ada.html").write_text(render_page(comparison, rater="ada", seed=0))

What lives here: filling `compare_page.html`. What does not: planning sides and taking the votes back (`votes`).

The page holds texts, order and nothing that tells the systems apart. Votes stay in the browser until they are
downloaded as one JSON file, which `tunesmith compare --import` reads.
"""

from __future__ import annotations

import json
from importlib.resources import files

from tunesmith.errors import DataError
from tunesmith.evals.votes import Comparison, plan_showings


def render_page(comparison: Comparison, *, rater: str, seed: int) -> str:
    """Return the HTML for one rater. Raises `DataError` where there is nothing to compare."""
    showings = plan_showings(comparison, rater=rater, seed=seed)
    if not showings:
        raise DataError("all answers are equal: there is nothing to compare", found=f"{len(comparison.items)} items")
    data = {
        "answers_sha256": comparison.digest,
        "seed": seed,
        "rater": rater,
        "items": [
            {"item": item.item, "prompt": item.prompt, "first": item.first, "second": item.second} for item in showings
        ],
    }
    # Inside a script element only `<` could end it; as an escape it is the same JSON.
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    template = files("tunesmith.evals").joinpath("compare_page.html").read_text(encoding="utf-8")
    before, after = template.split("__DATA__")
    return before + text + after
