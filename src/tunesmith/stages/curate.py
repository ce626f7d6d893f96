"""curate: of all rows those that may and should be trained on, each change and each loss with its reason.

    opt-out -> licence -> review -> empty -> contract -> personal data -> quality
            -> contamination -> duplicates and leaks -> difficulty -> rows

Every row that comes in is in `rows.parquet` or, with its reason, in `rejects.parquet`; `lineage.parquet` holds what was
done to each. Settings are in `stages.curating`, the rules in `data.curation`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.artifact import Artifact
from tunesmith.core.stage import Context, Inputs, Summary, role, stage
from tunesmith.stages.curating import CurateSpec, DifficultySpec, NamesSpec, QualitySpec, SemanticSpec, check_curate
from tunesmith.types import JSON, Row, RowRole

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.data.difficulty import Difficulty
    from tunesmith.data.filters import Quality
    from tunesmith.data.names import Names
    from tunesmith.data.semantic import Semantic


class CurateInputs(Inputs):
    """Rows, the contract that their answers must keep, and the base model that may score them."""

    rows: Artifact = role("rows", table="ingest")
    contract: Artifact | None = role("contract", table="contract", optional=True)
    base: Artifact | None = role("base", table="fetch", optional=True)


@stage(name="curate", version=8, produces="rows", check=check_curate)
def curate(inputs: CurateInputs, spec: CurateSpec, ctx: Context) -> Summary:
    """Keep, change, flag or drop each row, and say why."""
    from tunesmith.data.coverage import measure_coverage
    from tunesmith.data.croissant import croissant
    from tunesmith.data.curation import Lint, Rules, curate_rows
    from tunesmith.data.curation_report import Facts, write_report
    from tunesmith.data.datasheet import About, datasheet, gather
    from tunesmith.data.difficulty import write_scores
    from tunesmith.data.engines import open_engine
    from tunesmith.data.funnel import CountTokens, make_funnel
    from tunesmith.data.items import read_items
    from tunesmith.data.lineage import write_lineage
    from tunesmith.data.policy import OptOut, unmatched
    from tunesmith.data.review import read_decisions
    from tunesmith.data.takedown import read_opt_out
    from tunesmith.data.whatif import write_pairs
    from tunesmith.data.write import read_rows, write_rejects, write_rows

    contract: Contract | None = None
    lint: Lint | None = None
    count_tokens: CountTokens | None = None
    if inputs.contract is not None:
        from tunesmith.chat.contract import load_contract

        contract = load_contract(inputs.contract.path)

        held_to = {RowRole.TASK: contract, RowRole.GENERAL: contract.for_general_rows()}

        def lint(row: Row) -> list[tuple[str, str]]:
            found = held_to[row.role].lint(row.conversation)
            return [(violation.kind, violation.message) for violation in found]

        def count_tokens(texts: Sequence[str]) -> list[int]:
            return [len(ids) for ids in contract.tokenizer.encode_batch(texts)]

    rows = read_rows(inputs.rows.path / "rows.parquet")
    opt_out = OptOut(
        sources=frozenset(spec.opt_out.sources),
        subjects=frozenset(spec.opt_out.subjects),
        content_hashes=frozenset(spec.opt_out.content_hashes),
    )
    if spec.opt_out.file is not None:
        opt_out = opt_out | read_opt_out(Path(spec.opt_out.file))
    ctx.log("opt_out", {"named": opt_out.size, "without_a_row": unmatched(rows, opt_out)})
    rules = Rules(
        licenses=tuple(spec.licenses),
        unknown_license="keep" if spec.allow_unknown else "refuse",
        opt_out=opt_out,
        max_chars=spec.max_chars,
        quality=_quality(spec.quality),
        redact=None if spec.redact is None else frozenset(spec.redact),
        names=None if spec.names is None else _names(spec.names),
        near_threshold=spec.near_duplicates,
        semantic=None if spec.semantic is None else _semantic(spec.semantic),
        difficulty=None if spec.difficulty is None else _difficulty(spec.difficulty, contract, inputs.base, ctx),
        evaluations={name: read_items(Path(path)) for name, path in spec.evaluations.items()},
        contaminated=spec.contaminated,
        decisions=() if spec.decisions is None else tuple(read_decisions(Path(spec.decisions))),
    )
    with open_engine(ctx.engine, num_workers=ctx.workers) as engine:
        curated = curate_rows(rows, rules, lint=lint, progress=ctx.progress, engine=engine)
    write_rows(ctx.out / "rows.parquet", curated.rows)
    write_rejects(ctx.out / "rejects.parquet", curated.ledger.rejects)
    write_lineage(ctx.out / "lineage.parquet", curated.ledger)
    compared = curated.compared
    pairs_file = ctx.out / "near_pairs.parquet"
    write_pairs(pairs_file, compared.pairs, compared.standing, compared.rows, pinned=compared.pinned)
    if curated.scored:
        write_scores(ctx.out / "answer_scores.parquet", curated.scored)
    (ctx.out / "duplicates.json").write_text(_json(curated.duplicates), encoding="utf-8")
    (ctx.out / "pii.json").write_text(_json(curated.personal_data), encoding="utf-8")
    coverage = measure_coverage(curated.rows, production=_production(spec.production))
    (ctx.out / "coverage.json").write_text(_json(coverage), encoding="utf-8")
    funnel = make_funnel(rows, curated.ledger.rejects, count_tokens=count_tokens)
    (ctx.out / "funnel.json").write_text(_json(funnel.to_json()), encoding="utf-8")
    about = About(**spec.about.model_dump())
    facts = gather(curated.rows, about=about, curated=curated, funnel=funnel)
    (ctx.out / "DATASHEET.md").write_text(datasheet(facts), encoding="utf-8")
    (ctx.out / "croissant.json").write_text(_json(croissant(ctx.out, facts)), encoding="utf-8")
    write_report(ctx.out / "report.html", Facts(rows=rows, curated=curated, funnel=funnel, coverage=coverage))
    return {**curated.summary(), f"{funnel.unit}_in": funnel.units_in, f"{funnel.unit}_kept": funnel.units_kept}


def _semantic(spec: SemanticSpec) -> Semantic:
    from tunesmith.data.embeddings import load_embeddings
    from tunesmith.data.semantic import Semantic

    return Semantic(embeddings=load_embeddings(Path(spec.embeddings)), threshold=spec.threshold)


def _difficulty(spec: DifficultySpec, contract: Contract | None, base: Artifact | None, ctx: Context) -> Difficulty:
    from tunesmith.data.difficulty import Difficulty
    from tunesmith.stages.answer_scores import AnswerScorer

    assert contract is not None, "check_curate refuses a recipe without one"
    assert base is not None, "check_curate refuses a recipe without one"
    scorer = AnswerScorer(
        contract,
        model_dir=base.path / "model",
        dtype=spec.dtype,
        device=ctx.device,
        cache=ctx.work / "answer_scores.jsonl",
        progress=ctx.progress,
    )
    return Difficulty(
        score=scorer,
        max_perplexity=spec.max_perplexity,
        min_ifd=spec.min_ifd,
        max_ifd=spec.max_ifd,
        action=spec.action,
    )


def _production(path: str | None) -> list[str]:
    """Prompts of a file, or of the answered requests of a trace database."""
    if path is None:
        return []
    if not path.endswith(".sqlite"):
        from tunesmith.data.items import read_items

        return read_items(Path(path))
    from tunesmith.data.words import prompt_text
    from tunesmith.serve.traces import open_closed_span
    from tunesmith.types import Conversation, Message

    traces, _ = open_closed_span(Path(path))
    asked = (tuple(Message.from_json(message) for message in trace.messages or ()) for trace in traces)
    return [prompt_text(Conversation(messages=messages)) for messages in asked if messages]


def _names(spec: NamesSpec) -> Names:
    """The recipe's names, with their model loaded."""
    from tunesmith.data.names import Names
    from tunesmith.data.ner import load_tagger

    kinds = frozenset(spec.find)
    tag = load_tagger(spec.model, version=spec.version, kinds=kinds)
    return Names(tag=tag, kinds=kinds, spare=frozenset(spec.spare))


def _quality(spec: QualitySpec) -> Quality:
    """The recipe's quality rules; files that they name are read here."""
    from tunesmith.data.checks import load_check
    from tunesmith.data.filters import Quality
    from tunesmith.data.quality import Limits

    listed = Path(spec.word_list).read_text(encoding="utf-8") if spec.word_list is not None else ""
    return Quality(
        limits=Limits(
            min_answer_words=spec.min_answer_words,
            max_repetition=spec.max_repetition,
            languages=frozenset(spec.languages),
            listed_words=frozenset(word.strip().lower() for word in listed.splitlines() if word.strip()),
        ),
        actions={
            "too_short": spec.too_short,
            "language": spec.language,
            "repetition": spec.repetition,
            "truncated": spec.truncated,
            "refusal": spec.refusal,
            "prompt_copied": spec.prompt_copied,
            "broken_fence": spec.broken_fence,
            "broken_json": spec.broken_json,
            "listed_words": spec.listed_words,
        },
        checks=[(load_check(Path(check.file), check.function), check.action) for check in spec.checks],
    )


def _json(value: JSON) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
