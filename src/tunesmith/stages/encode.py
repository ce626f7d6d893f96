"""encode: rows become token ids and loss weights through the contract, and the arithmetic of it is written down.

What lives here: splits in, examples out, rejected rows with their reasons. What does not: which token trains
(`chat.mask`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage
from tunesmith.errors import DataError
from tunesmith.types import JSON, RowRole

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.chat.refusal import RefusalKind, Refused
    from tunesmith.data.write import Reject
    from tunesmith.types import Example, Row

SIDES = ("train", "val")
"""The test side is never encoded for training."""
_BATCH_ROWS = 512
"""Rows encoded between two reports."""
_NAMED_ROWS = 10
"""Row ids that an error lists."""
_MEASURED_ROWS = 2000
"""Rows of a side whose tokens are attributed to roles, evenly spaced."""
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))


class EncodeInputs(Inputs):
    """Rows and the contract that encodes them."""

    splits: Artifact = role("splits", table="split")
    contract: Artifact = role("contract", table="contract")


class EncodeSpec(Spec):
    """Encoding has no settings of its own: the contract's loss policy decides."""


@dataclass(slots=True)
class _Side:
    """What became of the rows of one side."""

    name: str
    rows: int = 0
    kept_rows: int = 0
    examples: list[Example] = field(default_factory=list)
    origins: list[tuple[str, RowRole]] = field(default_factory=list)
    """Source and role of each example's row."""
    rejects: list[Reject] = field(default_factory=list)
    measured_rows: int = 0
    tokens_by_role: Counter[str] = field(default_factory=Counter)
    """Of the measured rows."""
    measured_supervised: int = 0


@stage(name="encode", version=2, produces="examples")
def encode(inputs: EncodeInputs, spec: EncodeSpec, ctx: Context) -> Summary:
    """Write `train.parquet`, `val.parquet`, `rejects.parquet` and `arithmetic.json`."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.data.write import read_rows, write_rejects

    contract = load_contract(inputs.contract.path)
    sides = []
    for name in SIDES:
        side = _encode_side(read_rows(inputs.splits.path / f"{name}.parquet"), contract, name, ctx)
        _write_examples(ctx.out / f"{name}.parquet", side)
        sides.append(side)
    if not sides[0].examples:
        raise DataError(
            "no row of the training side can be encoded",
            expected="at least one example",
            found=", ".join(f"{count} {reason}" for reason, count in _reasons(sides[0]).items()) or "an empty side",
            hint="look at the rejected rows' reasons, and at the contract's loss policy",
        )
    rejects = [reject for side in sides for reject in side.rejects]
    write_rejects(ctx.out / "rejects.parquet", rejects)
    arithmetic: dict[str, JSON] = {side.name: _arithmetic(side) for side in sides}
    arithmetic["contract_sha256"] = contract.sha256
    (ctx.out / "arithmetic.json").write_text(json.dumps(arithmetic, indent=2) + "\n", "utf-8")
    ctx.log("arithmetic", arithmetic)
    return {**arithmetic, "rejects": dict(Counter(reject.reason for reject in rejects))}


def _encode_side(rows: Sequence[Row], contract: Contract, name: str, ctx: Context) -> _Side:
    from tunesmith.chat.length import Overlong
    from tunesmith.chat.parts import NoTarget
    from tunesmith.chat.refusal import RefusalKind, Refused

    side = _Side(name=name, rows=len(rows))
    held_to = {RowRole.TASK: contract, RowRole.GENERAL: contract.for_general_rows()}
    fatal: dict[RefusalKind, list[tuple[str, Refused]]] = {}
    side.rejects += [_undesirable(row) for row in rows if row.desirable is False]
    every = max(1, len(rows) // _MEASURED_ROWS)
    for start in range(0, len(rows), _BATCH_ROWS):
        batch = [row for row in rows[start : start + _BATCH_ROWS] if row.desirable is not False]
        ctx.progress(start, len(rows), f"{name}: {start} of {len(rows)} rows")
        made = encode_rows(batch, held_to)
        for index, (row, found) in enumerate(zip(batch, made, strict=True), start=start):
            if isinstance(found, Refused):
                strict = (found.kind is RefusalKind.NO_TARGET and contract.loss.no_target is NoTarget.ERROR) or (
                    found.kind is RefusalKind.OVERLONG and contract.loss.overlong is Overlong.ERROR
                )
                if strict:
                    fatal.setdefault(found.kind, []).append((row.id, found))
                side.rejects.append(_reject(row, found))
                continue
            side.kept_rows += 1
            side.examples += found
            side.origins += [(row.provenance.source, row.role)] * len(found)
            if index % every == 0:
                side.measured_rows += 1
                side.measured_supervised += sum(example.num_supervised for example in found)
                _count_roles(side, row, held_to[row.role])
    if fatal:
        _raise_fatal(fatal)
    return side


def encode_rows(batch: Sequence[Row], held_to: Mapping[RowRole, Contract]) -> list[list[Example] | Refused]:
    """Encode rows in their order, each under the contract as its role meets it."""
    made: dict[int, list[Example] | Refused] = {}
    for row_role, contract in held_to.items():
        indices = [index for index, row in enumerate(batch) if row.role is row_role]
        rows = [(batch[index].id, batch[index].conversation) for index in indices]
        made.update(zip(indices, contract.encode_many(rows), strict=True))
    return [made[index] for index in range(len(batch))]


def _raise_fatal(fatal: dict[RefusalKind, list[tuple[str, Refused]]]) -> None:
    kind, found = next(iter(fatal.items()))
    names = ", ".join(row_id for row_id, _ in found[:_NAMED_ROWS])
    more = f" and {len(found) - _NAMED_ROWS} more" if len(found) > _NAMED_ROWS else ""
    raise DataError(
        f"{len(found)} rows cannot train: {found[0][1].what}",
        where=f"rows {names}{more}",
        expected=found[0][1].expected,
        found=found[0][1].found,
        hint=f"fix the rows, or set contract.loss.{'no_target' if kind.value == 'no_target' else 'overlong'}: drop",
    )


def _undesirable(row: Row) -> Reject:
    from tunesmith.data.write import Reject

    origin = row.provenance
    return Reject(
        stage="encode",
        reason="undesirable",
        detail="the row's label says that its answer is a bad one: it must not be imitated",
        source=origin.source,
        path=origin.path,
        line=origin.line,
        row=row,
    )


def _reject(row: Row, refusal: Refused) -> Reject:
    from tunesmith.data.write import Reject

    origin = row.provenance
    detail = "; ".join(part for part in (refusal.what, refusal.where, refusal.found) if part)
    return Reject(
        stage="encode",
        reason=refusal.kind.value,
        detail=detail,
        source=origin.source,
        path=origin.path,
        line=origin.line,
        row=row,
    )


def _count_roles(side: _Side, row: Row, contract: Contract) -> None:
    """Count tokens by role: what each message adds to the rendering."""
    from tunesmith.chat.roles import count_by_role

    side.tokens_by_role += count_by_role(
        contract.renderer, contract.messages(row.conversation), contract.tools_of(row.conversation)
    )


def _write_examples(path: Path, side: _Side) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    examples = side.examples
    columns = {
        "row_id": pa.array([example.row_id for example in examples], pa.string()),
        "ids": pa.array([example.ids for example in examples], pa.list_(pa.int32())),
        "weights": pa.array([example.weights for example in examples], pa.list_(pa.float32())),
        "source": pa.array([origin[0] for origin in side.origins], pa.string()),
        "role": pa.array([origin[1].value for origin in side.origins], pa.string()),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _reasons(side: _Side) -> dict[str, int]:
    return dict(Counter(reject.reason for reject in side.rejects))


def _arithmetic(side: _Side) -> dict[str, JSON]:
    """Return what one side adds up to: rows, tokens, lengths, and the share that trains."""
    lengths = sorted(len(example.ids) for example in side.examples)
    tokens = sum(lengths)
    supervised = sum(example.num_supervised for example in side.examples)
    return {
        "rows": side.rows,
        "kept_rows": side.kept_rows,
        "rejected": _reasons(side),
        "examples": len(side.examples),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "supervised_share": round(supervised / tokens, 6) if tokens else None,
        "lengths": {name: _quantile(lengths, share) for name, share in _QUANTILES},
        "shared_prefix_tokens": _shared_prefix(
            [example for example, origin in zip(side.examples, side.origins, strict=True) if origin[1] is RowRole.TASK]
        ),
        "sources": _by_source(side),
        "roles": {
            "rows_measured": side.measured_rows,
            "tokens": dict(sorted(side.tokens_by_role.items())),
            "supervised": {"assistant": side.measured_supervised},
        },
    }


def _by_source(side: _Side) -> dict[str, JSON]:
    """Return what each source adds: what a mix of the train stage draws on."""
    out: dict[str, dict[str, JSON]] = {}
    for example, (source, row_role) in zip(side.examples, side.origins, strict=True):
        entry = out.setdefault(source, {"role": row_role.value, "examples": 0, "tokens": 0, "supervised_tokens": 0})
        entry["examples"] += 1
        entry["tokens"] += len(example.ids)
        entry["supervised_tokens"] += example.num_supervised
    return dict(sorted(out.items()))


def _quantile(ordered: Sequence[int], share: float) -> int | None:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _shared_prefix(examples: Sequence[Example]) -> int:
    """Return how many ids the examples of task rows begin with: what a trainer may compute once a batch."""
    if not examples:
        return 0
    low, high = min(example.ids for example in examples), max(example.ids for example in examples)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
