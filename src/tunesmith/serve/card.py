"""The model card of a bundle: `README.md` with the front matter that the Hugging Face hub reads.

What lives here: words and tables out of figures that stages measured. What does not: measuring. A figure without its
interval, or a claim that nothing measured, has no place in it: what is not known is said to be not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from tunesmith.types import JSON

HEADLINE = ("schema_adherence", "exact_match", "json_parse", "field_accuracy", "token_f1")
"""Metrics of the front matter, as far as they were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Everything that the card says."""

    name: str
    base: Mapping[str, JSON]
    """`source.json` of the base: id, sha256, license, ..."""
    contract_sha256: str
    adapter_sha256: str
    trained: Literal["adapter", "whole model"]
    """What `adapter/` holds."""
    base_stored_in: str | None
    """How the base's linear layers were stored while the adapter trained; `None` where they were left as they are."""
    system_prompt: str | None
    output_schema: Mapping[str, JSON] | None
    evaluation: Mapping[str, Any]
    """`results.json` of the evaluation."""
    hardening: Mapping[str, Any] | None
    tasks: Mapping[str, Mapping[str, Any]]
    """Heading -> `results.json` of questions that are not the held-out rows."""
    verdicts: Sequence[Mapping[str, JSON]]
    promotable: bool
    reason: str
    split_proof: Mapping[str, JSON]
    sources: Mapping[str, Mapping[str, JSON]]
    """Source -> {rows, licenses, kinds} of the training rows."""
    training: Mapping[str, JSON]
    """Settings of the training stage."""
    fingerprints: Mapping[str, str]
    intended_use: str = ""
    limits: Sequence[str] = field(default_factory=tuple)


def model_card(facts: CardFacts) -> str:
    """Return the text of `README.md`."""
    sections = (
        _head(facts),
        _use(facts),
        _evaluation(facts),
        _gates(facts),
        _hardening(facts),
        _tasks(facts),
        _data(facts),
        _training(facts),
    )
    body = "\n".join(line for section in sections for line in section)
    return f"---\n{yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)}---\n\n{body}\n"


def _front_matter(facts: CardFacts) -> dict[str, JSON]:
    license_id = facts.base.get("license")
    metrics = [
        {
            "type": name,
            "name": f"{name}, 95% interval {figure['low']:.3f} to {figure['high']:.3f}",
            "value": round(figure["value"], 4),
        }
        for name in HEADLINE
        if (figure := facts.evaluation.get("tuned", {}).get(name)) is not None and figure["low"] is not None
    ]
    dataset = {"type": "held-out", "name": f"held-out {facts.evaluation['side']} rows"}
    results = [{"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}]
    return {
        "base_model": str(facts.base["id"]),
        "base_model_relation": "adapter" if facts.trained == "adapter" else "finetune",
        "library_name": "peft" if facts.trained == "adapter" else "transformers",
        "license": str(license_id) if license_id else "other",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", *(["lora"] if facts.trained == "adapter" else [])],
        "datasets": sorted(facts.sources),
        "model-index": [{"name": facts.name, "results": results}],
    }


def _head(facts: CardFacts) -> list[str]:
    is_adapter = facts.trained == "adapter"
    what, loader = ("LoRA adapter on", "PEFT") if is_adapter else ("fine-tuning of all weights of", "transformers")
    return [
        f"# {facts.name}",
        "",
        f"A {what} `{facts.base['id']}`, made by tunesmith. It belongs to one contract (system prompt, chat "
        "template, output schema, stop tokens, decoding): asked any other way, its figures below do not hold.",
        "",
        f"- contract `{facts.contract_sha256}`",
        f"- adapter `{facts.adapter_sha256}`",
        f"- base `{facts.base.get('sha256', 'not pinned')}`",
        *([f"- base stored in {facts.base_stored_in}: the adapter belongs on it"] if facts.base_stored_in else []),
        "",
        "Serve it with `tunesmith serve`, which proves the contract before it listens. In other engines load "
        f"`adapter/` with {loader} and render prompts with `contract/tokenizer/chat_template.jinja`; `golden.jsonl` "
        "holds the exact token ids to compare with.",
        "",
    ]


def _use(facts: CardFacts) -> list[str]:
    own = [f"- {limit}" for limit in facts.limits]
    known = [f"- {limit}" for limit in _known_limits(facts)]
    prompt = facts.system_prompt or "(none of its own: conversations bring theirs)"
    return [
        "## Intended use",
        "",
        facts.intended_use or "Not stated: the recipe has no `bundle.intended_use`.",
        "",
        "System prompt:",
        "",
        *(f"> {line}" for line in prompt.splitlines()),
        "",
        "## Limits",
        "",
        *own,
        *known,
        "",
    ]


def _known_limits(facts: CardFacts) -> list[str]:
    """Return what the figures themselves say of their limits."""
    results = facts.evaluation
    out = [
        f"Measured on {results['n']} held-out rows of the same sources as the training rows: other sources may differ.",
    ]
    unresolved = sorted(name for name, pair in results.get("paired", {}).items() if not pair.get("resolved", True))
    if unresolved:
        out.append(f"No difference to the base could be resolved in: {', '.join(unresolved)}.")
    if facts.hardening is None:
        out.append("Attacks, leaks and general ability were not measured.")
    if facts.output_schema is not None:
        out.append("It answers under one JSON Schema alone; it is no general assistant.")
    unknown = sorted(name for name, source in facts.sources.items() if "unknown" in source["licenses"])
    if unknown:
        out.append(f"The licence of rows of {', '.join(unknown)} is unknown.")
    return out


def _evaluation(facts: CardFacts) -> list[str]:
    results = facts.evaluation
    lines = [
        "## Evaluation",
        "",
        f"{results['n']} held-out rows ({results['side']}), decoding of the contract, {results['dtype']}. Intervals "
        "are 95%; the difference is paired.",
        "",
    ]
    return lines + _metric_table(results)


def _metric_table(results: Mapping[str, Any]) -> list[str]:
    names = list(results.get("tuned") or results["base"])
    systems = [system for system in ("base", "tuned") if system in results]
    lines = [
        f"| metric | better | {' | '.join(systems)} | difference |",
        f"|---|---|{'---|' * len(systems)}---|",
    ]
    for name in names:
        cells = [_figure(results[system].get(name)) for system in systems]
        pair = results.get("paired", {}).get(name)
        lines.append(f"| {name} | {results['better'][name]} | {' | '.join(cells)} | {_difference(pair)} |")
    return [*lines, ""]


def _figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "not measured"
    if figure["low"] is None:
        return f"{figure['value']:.3f} (n = {figure['n']}, no interval)"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _difference(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return "not measured"
    if pair["low"] is None:
        return f"{pair['difference']:+.3f}"
    words = "" if pair.get("resolved", True) else ", not resolved"
    return f"{pair['difference']:+.3f} ({pair['low']:+.3f} to {pair['high']:+.3f}{words})"


def _gates(facts: CardFacts) -> list[str]:
    lines = ["## Acceptance criteria", "", f"{facts.reason}", ""]
    if facts.verdicts:
        lines += ["| criterion | verdict | why |", "|---|---|---|"]
        lines += [
            f"| {v['criterion']} | {str(v['verdict']).replace('_', ' ')} | {v['explanation']} |" for v in facts.verdicts
        ]
        lines.append("")
    return lines


def _hardening(facts: CardFacts) -> list[str]:
    if facts.hardening is None:
        return []
    lead = f"{facts.hardening['n']} cases of attacks, leaks and general text, base and tuned asked the same."
    return ["## Safety and general ability", "", lead, "", *_metric_table(facts.hardening)]


def _tasks(facts: CardFacts) -> list[str]:
    lines = []
    for title, results in facts.tasks.items():
        asked = ", ".join(f"{name} ({task['n']})" for name, task in results["tasks"].items())
        lines += [f"## {title}", "", f"Questions of {asked}, base and tuned asked the same.", ""]
        lines += _metric_table(results)
    return lines


def _data(facts: CardFacts) -> list[str]:
    rows, overlaps = facts.split_proof["rows"], facts.split_proof["overlaps"]
    counts = ", ".join(f"{count} {side}" for side, count in rows.items())
    found = ", ".join(f"{count} {kind}" for kind, count in overlaps.items())
    lines = [
        "## Data",
        "",
        f"Rows: {counts}. Overlaps between the sides: {found}.",
        "",
        "| source | training rows | licence | kind |",
        "|---|---|---|---|",
    ]
    for name, source in sorted(facts.sources.items()):
        lines.append(f"| {name} | {source['rows']} | {', '.join(source['licenses'])} | {', '.join(source['kinds'])} |")
    return [*lines, ""]


def _training(facts: CardFacts) -> list[str]:
    lines = ["## Training", "", "| setting | value |", "|---|---|"]
    lines += [f"| {name} | `{value}` |" for name, value in facts.training.items()]
    lines += ["", "Artifacts that this bundle was made of:", ""]
    lines += [f"- {role} `{fingerprint}`" for role, fingerprint in facts.fingerprints.items()]
    return lines
