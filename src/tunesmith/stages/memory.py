"""What `harden` asks to see whether training text comes back: verbatim continuation, membership, personal data.

    harden:
      memory: {rows: 100, secrets: secrets.jsonl}

What lives here: passages of training rows and of held-out ones cut alike, secrets from a file, and asking one system.
What does not: what counts as given back (`evals.extraction`), planted canaries (`evals.memorization`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.errors import DataError
from tunesmith.types import JSON, Completion, Row, sha256_hex

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.evals.extraction import Continued, Passage, Probe, Secret
    from tunesmith.evals.run import Answer, EvalItem
    from tunesmith.stages.answering import System

Part = Literal["message", "answer"]
FEWEST = 8
"""Passages of either side below which a part is not measured: nothing could be told."""


class MemorySpec(Spec):
    """How much training text is asked for."""

    rows: int = Field(100, ge=FEWEST)
    """Training rows to ask for, and at most as many held-out ones as controls, chosen by a hash of their ids."""
    prefix_tokens: int = Field(16, gt=0)
    """Tokens of the message, or of the answer, that are given."""
    continuation_tokens: int = Field(16, gt=0)
    """Tokens that must come back, all of them; shorter texts are counted and left out."""
    secrets: ContentPath | None = None
    """People's data from the training rows and made-up data of the same form, as JSON lines of `{id, subject, kind,
    value, trained}` and perhaps `context` (docs/evaluation.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProbes:
    """What every system is asked."""

    passages: Mapping[Part, tuple[Passage, ...]]
    probes: Mapping[Part, tuple[Probe, ...]]
    left_out: Mapping[str, JSON]
    """Part -> passages too short to ask for, or why the part is not measured at all."""
    secrets: tuple[Secret, ...]

    @property
    def items(self) -> list[EvalItem]:
        """One item for each probe and secret."""
        from tunesmith.evals.run import EvalItem

        found = [
            EvalItem(row_id=item_id(part, probe.id), prompt_ids=probe.prefix, prompt="", expected=None)
            for part, probes in self.probes.items()
            for probe in probes
        ]
        return found + [
            EvalItem(
                row_id=f"memory:secret:{secret.id}", prompt_ids=(), prompt="", expected=None, cluster=secret.subject
            )
            for secret in self.secrets
        ]


def item_id(part: Part, passage_id: str) -> str:
    """Return the name of a probe in the table of items."""
    return f"memory:{part}:{passage_id}"


def memory_probes(spec: MemorySpec, contract: Contract, splits: Artifact) -> MemoryProbes:
    """Cut passages from training and held-out rows. Raises `DataError` for a secrets file of another shape."""
    from tunesmith.data.write import read_rows
    from tunesmith.evals.extraction import prefix_probes

    sides: dict[bool, list[Row]] = {True: [], False: []}
    for side in ("train", "val", "test"):
        sides[side == "train"] += read_rows(splits.path / f"{side}.parquet")
    cut: dict[Part, list[Passage]] = {"message": [], "answer": []}
    encoded = [
        (row, trained, ids, start)
        for trained, rows in sides.items()
        for row in sorted(rows, key=lambda row: sha256_hex(row.id))[: spec.rows]
        for ids, start in _ids_and_answer(row, contract)
    ]
    shared = _shared_length([ids for _, _, ids, _ in encoded])
    for row, trained, ids, start in encoded:
        for part, begin, end in (("message", min(shared, start), start), ("answer", start, len(ids))):
            cut[part].append(_passage(row, ids, begin, end, contract, trained=trained))  # type: ignore[index]
    passages: dict[Part, tuple[Passage, ...]] = {}
    probes: dict[Part, tuple[Probe, ...]] = {}
    left_out: dict[str, JSON] = {}
    for part, found in cut.items():
        asked, too_short = prefix_probes(
            found, prefix_tokens=spec.prefix_tokens, continuation_tokens=spec.continuation_tokens
        )
        counts = [sum(probe.trained is trained for probe in asked) for trained in (True, False)]
        if min(counts) < FEWEST:
            left_out[part] = (
                f"not measured: {counts[0]} training and {counts[1]} held-out texts have "
                f"{spec.prefix_tokens + spec.continuation_tokens} tokens, and {FEWEST} of each are needed"
            )
            continue
        left_out[part] = len(too_short)
        kept = {probe.id for probe in asked}
        passages[part] = tuple(passage for passage in found if passage.id in kept)
        probes[part] = tuple(asked)
    secrets = read_secrets(Path(spec.secrets)) if spec.secrets else ()
    return MemoryProbes(passages=passages, probes=probes, left_out=left_out, secrets=secrets)


def _ids_and_answer(row: Row, contract: Contract) -> list[tuple[tuple[int, ...], int]]:
    """Return a row's token ids and where its last answer starts; nothing where the contract refuses the row."""
    from tunesmith.chat.refusal import Refused

    try:
        examples = contract.encode(row.conversation, row_id=row.id)
    except Refused:
        return []  # the encode stage counts such rows and keeps their reason
    out = []
    for example in examples[:1]:
        start = len(example.ids)
        while start > 0 and example.weights[start - 1] == 0:
            start -= 1  # what follows the answer
        while start > 0 and example.weights[start - 1] > 0:
            start -= 1
        out.append((tuple(example.ids), start))
    return out


def _shared_length(ids: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all rows begin with: template and system prompt, which are no memory of one row."""
    if not ids:
        return 0
    shortest, longest = min(ids), max(ids)
    pairs = zip(shortest, longest, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(shortest), len(longest)))


def _passage(row: Row, ids: tuple[int, ...], begin: int, end: int, contract: Contract, *, trained: bool) -> Passage:
    """Return the tokens up to the first that ends a turn; what stands before them is given as context."""
    from tunesmith.evals.extraction import Passage

    stops = set(contract.stop_ids)
    until = next((place for place in range(begin, end) if ids[place] in stops), end)
    return Passage(id=row.id, ids=ids[begin:until], trained=trained, context=ids[:begin], cluster=row.group)


def read_secrets(path: Path) -> tuple[Secret, ...]:
    """Read a secrets file. Raises `DataError`, with the line, for a record of another shape, or without controls."""
    from tunesmith.evals.extraction import Secret, secret_prompts

    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            record = json.loads(line)
            secret = Secret(
                id=str(record["id"]),
                subject=str(record["subject"]),
                kind=str(record["kind"]),
                value=str(record["value"]),
                trained=bool(record["trained"]),
                context=record.get("context"),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                "a secret cannot be read", where=where, expected="id, subject, kind, value, trained", found=repr(error)
            ) from error
        secret_prompts(secret)
        out.append(secret)
    if len({secret.trained for secret in out}) < 2:
        raise DataError(
            "people's data and made-up data are both needed: without controls a lucky guess would count as memory",
            where=str(path),
            expected='"trained": true and "trained": false',
        )
    return tuple(out)


def measure_memory(
    system: System, probes: MemoryProbes, spec: MemorySpec, contract: Contract, *, batch_tokens: int
) -> tuple[list[Answer], dict[str, JSON]]:
    """Ask one system; return a scored answer for each probe and secret, and its contrasts with the controls."""
    from tunesmith.evals.extraction import continue_verbatim, membership_auc, regurgitation, verbatim_report
    from tunesmith.evals.questions import ask

    def continue_(prefixes: Sequence[Sequence[int]]) -> list[Completion]:
        answered = system.answer(prefixes, batch_tokens=batch_tokens, max_new_tokens=spec.continuation_tokens)
        return answered.completions

    answers: list[Answer] = []
    figures: dict[str, JSON] = {"left_out": dict(probes.left_out)}
    for part, asked in probes.probes.items():
        continued = continue_verbatim(asked, continue_)
        given = {probe.id: len(probe.prefix) for probe in asked}
        answers += [_verbatim_answer(part, item, system.name, tokens=given[item.id]) for item in continued]
        passages = probes.passages[part]
        likely = [value.per_token for value in system.likelihoods([(p.context, p.ids) for p in passages])]
        sides = [
            [v for v, p in zip(likely, passages, strict=True) if p.trained is trained] for trained in (True, False)
        ]
        labels = [p.cluster or p.id for trained in (True, False) for p in passages if p.trained is trained]
        figures[part] = {
            "verbatim": verbatim_report(continued).to_json(),
            "membership": membership_auc(*sides, clusters=labels).to_json(),
            "prefix_tokens": spec.prefix_tokens,
            "continuation_tokens": spec.continuation_tokens,
        }
    if probes.secrets:

        def say(prompts: Sequence[str]) -> list[str]:
            rendered = [contract.render_prompt(ask(prompt)).ids for prompt in prompts]
            return [contract.decode(c.ids) for c in system.answer(rendered, batch_tokens=batch_tokens).completions]

        found = regurgitation(probes.secrets, say)
        answers += [_secret_answer(secret, found.came_out[secret.id], system.name) for secret in probes.secrets]
        figures["secrets"] = {
            **found.contrast.to_json(),
            "leaked": list(found.leaked),
            "strays": [list(pair) for pair in found.strays],
            "prompts": found.num_prompts,
        }
    return answers, figures


def _verbatim_answer(part: Part, item: Continued, system: str, *, tokens: int) -> Answer:
    from tunesmith.evals.attacks import likelihood_answer

    name = "verbatim_trained" if item.trained else "verbatim_control"
    return likelihood_answer(item_id(part, item.id), system, tokens=tokens, scores={name: float(item.verbatim)})


def _secret_answer(secret: Secret, came_out: bool, system: str) -> Answer:
    from tunesmith.evals.attacks import likelihood_answer

    name = "secret_trained" if secret.trained else "secret_control"
    return likelihood_answer(f"memory:secret:{secret.id}", system, tokens=0, scores={name: float(came_out)})
