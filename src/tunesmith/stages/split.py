"""split: rows become train, val and test, with a proof that no side knows another."""

from __future__ import annotations

import json
import math

from pydantic import Field, model_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage


class SharesSpec(Spec):
    """Share of the rows for each side; they sum to 1."""

    train: float = Field(0.8, gt=0, le=1)
    """Rows to train on."""
    val: float = Field(0.1, ge=0, lt=1)
    """Rows to choose and stop by."""
    test: float = Field(0.1, ge=0, lt=1)
    """Rows to judge by."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> SharesSpec:
        total = self.train + self.val + self.test
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"train, val and test are shares of all rows and must sum to 1, found {total:g}")
        return self


class SplitInputs(Inputs):
    """Curated rows."""

    rows: Artifact = role("rows", table="curate")


class SplitSpec(Spec):
    """Settings of split."""

    shares: SharesSpec = SharesSpec(train=0.8, val=0.1, test=0.1)
    """Shares of the sides. Rows that name val or test keep that side; the shares then deal the others."""
    stratify_by: str | None = None
    """Label whose values are spread evenly over the sides; length and source are always."""
    near_duplicates: float = Field(0.6, gt=0, le=1)
    """IDF-weighted overlap of words from which two long prompts must stand on one side; short ones need more."""


@stage(name="split", version=5, produces="splits")
def split(inputs: SplitInputs, spec: SplitSpec, ctx: Context) -> Summary:
    """Write one file of rows a side, `rejects.parquet` (leaks) and `split_proof.json`; refuse sides that overlap."""
    from tunesmith.data.engines import open_engine
    from tunesmith.data.split import SIDES, prove, refuse_overlap, split_rows
    from tunesmith.data.write import Reject, read_rows, write_rejects, write_rows

    rows = read_rows(inputs.rows.path / "rows.parquet")
    shares = {"train": spec.shares.train, "val": spec.shares.val, "test": spec.shares.test}
    with open_engine(ctx.engine, num_workers=ctx.workers) as engine:
        done = split_rows(
            rows, shares=shares, label=spec.stratify_by, near_threshold=spec.near_duplicates, engine=engine
        )
        ctx.progress(1, 2, f"{done.num_units:,} units dealt")
        for side in SIDES:
            write_rows(ctx.out / f"{side}.parquet", done.sides[side])
        write_rejects(
            ctx.out / "rejects.parquet",
            [
                Reject(
                    stage="split",
                    reason="leak",
                    detail=leak.detail,
                    source=leak.row.provenance.source,
                    path=leak.row.provenance.path,
                    line=leak.row.provenance.line,
                    row=leak.row,
                    matched_id=leak.heldout.id,
                    score=leak.score,
                )
                for leak in done.leaks
            ],
        )
        dealt = {
            "units": done.num_units,
            "groups": done.num_groups,
            "clusters": done.num_clusters,
            "sides_from_outside": done.from_outside,
            "leaks_dropped": len(done.leaks),
        }
        declared = {side: sum(row.split == side for row in rows) for side in done.from_outside}
        del rows, done  # the proof reads what was written; without this all rows would be held twice
        proof = prove(
            {side: read_rows(ctx.out / f"{side}.parquet") for side in SIDES},
            near_threshold=spec.near_duplicates,
            label=spec.stratify_by,
            engine=engine,
        )
    proof |= {"declared": declared, "leaks_dropped": dealt["leaks_dropped"]}
    (ctx.out / "split_proof.json").write_text(json.dumps(proof, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    refuse_overlap(proof)
    ctx.progress(2, 2, "no overlap")
    return {
        "rows": proof["rows"],
        "general_rows": proof["general_rows"],
        **dealt,
        "overlaps": proof["overlaps"],
        "drift": proof["drift"],
    }
