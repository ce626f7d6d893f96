"""Data warnings: what a user of `init` should know before training on the data.

What lives here: sentences. What does not: the facts they rest on (`api.data_look`).
"""

from __future__ import annotations

from tunesmith.api.data_look import Look

_SHAPE_WARNINGS = {
    "text": "rows of plain text have no prompt: the whole text is trained on, and no evaluation can ask for it",
    "preference": "of preference pairs only the better answers are trained on here; the worse ones stay in the rows",
    "kto": "rows whose label is false are bad examples: encode leaves them out, and counts them as undesirable",
    "request_log": "the answers of logs are a model's, and the requests are people's: name a consent_field, or be sure "
    "that they agreed",
}
"""Shape -> what its user should know before training on it."""


def warnings_of(seen: Look, *, license: str | None) -> list[str]:
    """Return one sentence for each thing that a user should see to before training on the data."""
    out = []
    shapes = {shape for file in seen.files for shape in file.report.shape.split(", ")}
    if seen.held_out_only is not None:
        out.append(
            f"all files are named as the side {seen.held_out_only}, which would leave nothing to train on: their rows "
            "are dealt to all sides; name the training file too, or take care not to train on a test set"
        )
    for file in seen.files:
        if file.foreign_splits:
            named = ", ".join(file.foreign_splits[:4])
            out.append(
                f"{file.path.name}: a field looks like a split, but {named} name no side: it is not followed; rename "
                "those values and set columns: {split: FIELD}"
            )
    out += [why for shape, why in _SHAPE_WARNINGS.items() if shape in shapes]
    if license is None and any(file.license_field is None for file in seen.files):
        out.append("no licence is said for the data: set `license:` of each source, then remove `allow_unknown`")
    if seen.rows < 200:
        out.append(f"{seen.rows} rows are few: intervals will be wide, and a good system prompt may do as well")
    for file in seen.files:
        bad = sum(file.report.problems.values())
        if bad:
            reasons = ", ".join(f"{reason} {count}" for reason, count in file.report.problems.items())
            out.append(f"{file.path.name}: {bad} records are no rows ({reasons}); first: {file.report.first_problem}")
    return out
