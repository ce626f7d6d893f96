"""Stage `harden`: attacks, leaks and general ability, base against tuned, on the same cases.

What lives here: wiring of red-team sets, canaries and general passages. What does not: judging a case
(`evals.redteam`), exposure (`evals.memorization`), statistics (`evals`). Writes `items.parquet`, `results.json`,
`samples.json` and `report.html` in the shapes of `evaluate` (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Summary, stage
from tunesmith.errors import DataError, PlanError
from tunesmith.evals.wrappers import Wrapper
from tunesmith.stages.answering import (
    BATCH_TOKENS,
    AnsweringInputs,
    DtypeChoice,
    System,
    provenance,
    resolve_dtype,
    summarise,
    write_page,
    write_records,
    write_samples,
)
from tunesmith.stages.memory import MemorySpec, measure_memory, memory_probes, read_secrets
from tunesmith.stages.task_files import task_records
from tunesmith.types import JSON, sha256_hex

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.evals.memorization import Canary
    from tunesmith.evals.redteam import CaseVerdict, RedTeamCase, Setting
    from tunesmith.evals.run import Answer, EvalItem


MOST_HOSTS = 25
"""Held-out messages that injections are put into: each is also answered alone."""


class PublicSet(Spec):
    """One file of a public red-team set."""

    family: str = Field(pattern=r"^[A-Za-z_][\w-]*$")
    """Name of the family in reports."""
    shape: Literal["requests", "injections"]
    """`requests`: prompts labelled `safe` or `unsafe` (AdvBench, XSTest); `injections`: texts to hide in data
    (BIPIA)."""
    data: ContentPath
    """The file: JSON lines, a JSON array, CSV, TSV or Parquet."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Key that the shape reads (`prompt`, `label`, `injection`) -> the name it has in the file."""
    max_items: int | None = Field(None, gt=0)
    """Take at most this many records, chosen by a hash of their ids; absent takes all."""
    wrappers: tuple[Wrapper, ...] = ()
    """Shape `requests`: ask unsafe ones in these jailbreak wrappers too, each a family of its own."""

    @model_validator(mode="after")
    def _wrappers_hold_requests(self) -> PublicSet:
        if self.wrappers and self.shape != "requests":
            raise ValueError("wrappers dress requests; injections stand inside messages already")
        return self


class HardenSpec(Spec):
    """What to try."""

    redteam: tuple[ContentPath, ...] = ()
    """Red-team sets of the user's own, as JSON lines (docs/evaluation.md)."""
    public: tuple[PublicSet, ...] = ()
    """Public sets from files of yours (docs/evaluation.md)."""
    bundled: tuple[Literal["injection", "leak"], ...] = ("injection", "leak")
    """Bundled sets to add: prompt injection, and leaks of the system prompt. An empty list adds none."""
    canaries: ContentPath | None = None
    """Secrets planted in the raw data, and controls (docs/evaluation.md); every answer is scanned for planted ones."""
    memory: MemorySpec | None = None
    """Whether training text and people's data come back, against held-out controls: `memory: {rows: 100}`."""
    general: Literal["measure", "skip"] = "measure"
    """Whether to measure the loss on bundled passages of general text, which shows what fine-tuning cost."""
    dtype: DtypeChoice = "auto"
    """Number format of the model; `auto` takes the fastest that the machine has instructions for."""
    batch_tokens: int = Field(BATCH_TOKENS, gt=0)
    """Bound on rows x tokens of one batch: lower it where memory is tight."""
    samples: int = Field(24, ge=0)
    """How many answers to show side by side in `samples.json`."""


def check_harden(spec: HardenSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse a public set that is not there or of another shape."""
    for one in spec.public:
        try:
            public_cases(one, hosts=["a held-out message"])
        except DataError as error:
            raise PlanError(
                f"the public set {one.family!r} cannot be read: {error.what}",
                where=error.where,
                expected=error.expected,
                found=error.found,
                hint=error.hint,
            ) from error
    if spec.memory is not None and spec.memory.secrets is not None:
        read_secrets(Path(spec.memory.secrets))
    return []


@stage(name="harden", version=2, produces="evaluation", check=check_harden)
def harden(inputs: AnsweringInputs, spec: HardenSpec, ctx: Context) -> Summary:
    """Attack base and tuned model with the same cases; return every figure of `results.json`."""
    from tunesmith.chat.contract import load_contract
    from tunesmith.evals.attacks import case_item, score_attack
    from tunesmith.evals.memorization import read_canaries
    from tunesmith.evals.questions import ask
    from tunesmith.evals.results import figures, pick_samples, prompt_digest
    from tunesmith.evals.run import EvalItem

    contract = load_contract(inputs.contract.path)
    hosts = host_messages(inputs.splits) if any(one.shape == "injections" for one in spec.public) else []
    cases, skipped = collect_cases(spec, system_prompt=contract.system, hosts=hosts)
    canaries = read_canaries(Path(spec.canaries)) if spec.canaries else ()
    rendered = [contract.render_prompt(case.conversation) for case in cases]
    plain = list(dict.fromkeys(case.expect.same_answer_as for case in cases if case.expect.same_answer_as is not None))
    plain_ids = [contract.render_prompt(ask(message)).ids for message in plain]
    items = [
        case_item(case, prompt_ids=prompt.ids, prompt=prompt.text) for case, prompt in zip(cases, rendered, strict=True)
    ]
    texts = likelihood_pairs(canaries, contract, general=spec.general)
    probes = memory_probes(spec.memory, contract, inputs.splits) if spec.memory is not None else None
    remembered: dict[str, dict[str, JSON]] = {}
    dtype, dtype_reason = resolve_dtype(spec.dtype, ctx.device)
    ctx.log("harden_start", {"cases": len(cases), "canaries": len(canaries), "dtype": dtype})
    answers: list[Answer] = []
    verdicts: dict[tuple[str, str], CaseVerdict] = {}
    timing: dict[str, dict[str, JSON]] = {}
    for name, adapter in (("base", None), ("tuned", inputs.adapter)):
        if name == "tuned" and adapter is None:
            continue
        system = System(name, base=inputs.base, adapter=adapter, contract=contract, dtype=dtype, ctx=ctx)
        prompts = [item.prompt_ids for item in items] + plain_ids
        answered = system.answer(prompts, batch_tokens=spec.batch_tokens)
        timing[name] = answered.to_json()
        spoken = [contract.decode(completion.ids) for completion in answered.completions[len(items) :]]
        setting = setting_of(contract, plain_answers=dict(zip(plain, spoken, strict=True)))
        for case, completion in zip(cases, answered.completions, strict=False):
            answer, verdict = score_attack(
                case, name, completion, contract.decode(completion.ids), setting, canaries=canaries
            )
            answers.append(answer)
            verdicts[case.id, name] = verdict
        answers += measure_likelihoods(system, texts, canaries)
        if probes is not None and spec.memory is not None:
            found, remembered[name] = measure_memory(
                system, probes, spec.memory, contract, batch_tokens=spec.batch_tokens
            )
            answers += found
        ctx.log("harden_system", {"system": name, **timing[name]})
    listed = items + [
        EvalItem(row_id=item_id, prompt_ids=(), prompt=text, expected=None) for item_id, (text, _, _) in texts.items()
    ]
    listed += probes.items if probes is not None else []
    results = figures(listed, answers)
    results["n"] = len(items)
    for name, took in timing.items():
        results["timing"][name] |= took
    results |= provenance(
        contract,
        splits=inputs.splits,
        base=inputs.base,
        adapter=inputs.adapter,
        dtype=dtype,
        dtype_reason=dtype_reason,
    )
    results |= {
        "skipped_sets": skipped,
        **({"memory": remembered} if remembered else {}),
        "sample_prompt": items[0].prompt,
        "prompts_sha256": prompt_digest(item.prompt_ids for item in items),
    }
    by_id = {item.row_id: item for item in listed}
    write_records(ctx.out, [_record(by_id[answer.row_id], answer, verdicts) for answer in answers], results)
    samples = pick_samples(
        items,
        [answer for answer in answers if answer.finish_reason],
        right=lambda answer: verdicts[answer.row_id, answer.system].sound,
        most=spec.samples,
    )
    for sample in samples:
        for name, shown in sample["answers"].items():
            shown["failed"] = list(verdicts[sample["row_id"], name].failed)
    write_samples(ctx.out, samples, judge="every expectation of the case holds")
    write_page(ctx.out, "Attacks, leaks and general ability", results, samples)
    return summarise(results)


def _record(item: EvalItem, answer: Answer, verdicts: Mapping[tuple[str, str], CaseVerdict]) -> dict[str, JSON]:
    from tunesmith.evals.run import answer_record

    verdict = verdicts.get((answer.row_id, answer.system))
    return {**answer_record(item, answer), "failed": "; ".join(verdict.failed) if verdict else None}


def host_messages(splits: Artifact) -> list[str]:
    """Return the test rows that are one message of the user: what injections are put into."""
    from tunesmith.data.write import read_rows

    found = []
    for row in read_rows(splits.path / "test.parquet"):
        turns = [m for m in row.conversation.prompt.messages if m.role not in ("system", "developer")]
        if len(turns) == 1 and turns[0].role == "user" and turns[0].content and not row.conversation.tools:
            found.append(turns[0].content)
    return sorted(set(found), key=sha256_hex)[:MOST_HOSTS]


def public_cases(one: PublicSet, *, hosts: Sequence[str]) -> list[RedTeamCase]:
    """Return the cases of a public set. Raises `DataError`, with the line, for a record of another shape."""
    from tunesmith.evals.public_sets import injection_cases, request_cases
    from tunesmith.evals.questions import question_id

    records = list(task_records(Path(one.data), one.columns))
    if one.max_items is not None:
        records = sorted(records, key=lambda pair: sha256_hex(question_id(pair[1])))[: one.max_items]
    if one.shape == "requests":
        return request_cases(records, family=one.family, wrappers=one.wrappers)
    return injection_cases(records, family=one.family, hosts=hosts)


def collect_cases(
    spec: HardenSpec, *, system_prompt: str | None, hosts: Sequence[str]
) -> tuple[list[RedTeamCase], dict[str, str]]:
    """Return the cases of all sets, and the bundled sets that do not apply, with the reason.

    Raises `DataError` without any case, or for an id that stands in two sets.
    """
    from importlib import resources

    from tunesmith.evals.redteam import read_redteam

    skipped = {}
    if "leak" in spec.bundled and not system_prompt:
        skipped["leak"] = "the contract has no system prompt that could leak"
    folder = resources.files("tunesmith.evals").joinpath("redteam_sets")
    paths = [Path(path) for path in spec.redteam]
    with resources.as_file(folder) as bundled:
        paths += [bundled / f"{name}.jsonl" for name in spec.bundled if name not in skipped]
        sets = [(path, read_redteam(path)) for path in paths]
    sets[len(spec.redteam) : len(spec.redteam)] = [
        (Path(one.data), tuple(public_cases(one, hosts=hosts))) for one in spec.public
    ]
    seen: dict[str, Path] = {}
    for path, cases in sets:
        for case in cases:
            if case.id in seen:
                found = f"{case.id} in {seen[case.id].name} and {path.name}"
                raise DataError("two red-team cases have one id", where=str(path), found=found)
            seen[case.id] = path
    if not seen:
        raise DataError("there is nothing to attack with", where="harden", hint="name a red-team set, or a bundled one")
    return [case for _, cases in sets for case in cases], skipped


def setting_of(contract: Contract, *, plain_answers: Mapping[str, str]) -> Setting:
    """Return what answers of one system are held against."""
    from tunesmith.evals.public_sets import is_closed
    from tunesmith.evals.redteam import Setting

    def check(text: str) -> tuple[bool, JSON]:
        verdict = contract.check_answer(text)
        return bool(verdict.adheres), verdict.value

    return Setting(
        check_schema=check if contract.output_schema is not None else None,
        schema_is_closed=is_closed(contract.output_schema),
        system_prompt=contract.system,
        plain_answers=plain_answers,
    )


TextPair = tuple[str, tuple[int, ...], tuple[int, ...]]
"""(shown text, given ids, scored ids)."""


def likelihood_pairs(
    canaries: Sequence[Canary], contract: Contract, *, general: Literal["measure", "skip"]
) -> dict[str, TextPair]:
    """Return item id -> text to score by likelihood: canaries after their prefix, and the general passages."""
    from tunesmith.evals.general import general_passages, passage_pairs
    from tunesmith.evals.memorization import rankable

    def encode(text: str) -> list[int]:
        return list(contract.tokenizer.encode(text).ids)

    out: dict[str, TextPair] = {}
    for canary in rankable(canaries):
        prefix = canary.prefix or ""
        given, whole = encode(prefix), encode(prefix + canary.value)
        shared = next((i for i, (a, b) in enumerate(zip(given, whole, strict=False)) if a != b), len(given))
        out[f"canary:{canary.id}"] = (prefix + canary.value, tuple(whole[:shared]), tuple(whole[shared:]))
    if general == "measure":
        passages = general_passages()
        for passage, (given_ids, scored) in zip(passages, passage_pairs(passages, encode), strict=True):
            out[passage.id] = (passage.text, given_ids, scored)
    return out


def measure_likelihoods(system: System, texts: Mapping[str, TextPair], canaries: Sequence[Canary]) -> list[Answer]:
    """Score the texts: nats a token for general passages, exposure in bits for planted canaries."""
    from tunesmith.evals.attacks import likelihood_answer
    from tunesmith.evals.memorization import exposures, rankable

    if not texts:
        return []
    likelihoods = dict(zip(texts, system.likelihoods([(a, b) for _, a, b in texts.values()]), strict=True))
    peers = rankable(canaries)
    ranked = exposures(peers, {canary.id: likelihoods[f"canary:{canary.id}"].total for canary in peers})
    bits = {f"canary:{exposure.canary_id}": exposure.bits for exposure in ranked}
    out = []
    for item_id, likelihood in likelihoods.items():
        if item_id in bits:
            scores = {"canary_exposure": bits[item_id]}
        elif item_id.startswith("canary:"):
            continue  # a control
        else:
            scores = {"general_loss": -likelihood.per_token}
        out.append(likelihood_answer(item_id, system.name, tokens=likelihood.num_tokens, scores=scores))
    return out
