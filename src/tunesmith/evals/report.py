"""The page of one evaluation: figures with intervals, slices, failures, answers side by side.

What lives here: `results.json` and samples as HTML. What does not: the run's own page (`stages.report`), how a page
looks (`tunesmith.page`), any computation: every figure is read from the results.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from tunesmith.charts import Interval, forest
from tunesmith.page import Cell, Number, Section, Tone, badge, cards, code, figure, heading, lead, page, table, text
from tunesmith.types import JSON

SHOWN_IDS = 4
"""Row ids named in a group of failures."""
_OUTCOMES = {
    "fixed": (Tone.GOOD, "only the tuned model is right"),
    "broken": (Tone.BAD, "only the base is right"),
    "both_right": (Tone.PLAIN, "both are right"),
    "both_wrong": (Tone.UNSURE, "both are wrong"),
    "right": (Tone.GOOD, "right"),
    "wrong": (Tone.BAD, "wrong"),
}


def evaluation_page(title: str, results: Mapping[str, JSON], samples: Sequence[Mapping[str, JSON]]) -> str:
    """Return the self-contained page of one `results.json` and its samples."""
    sections = [
        Section("Figures", _figures(results)),
        *([Section("Tuned against base", [_paired(results)])] if results["paired"] else []),
        *([Section("Training seeds", _seeds(results))] if results.get("adapters") else []),
        *([Section("Memory", _memory(results["memory"]))] if results.get("memory") else []),
        *([Section("Slices", _slices(results))] if results["slices"] else []),
        *([Section("Failures", _failures(results))] if results.get("failures") else []),
        *([Section("Answers side by side", _samples(samples))] if samples else []),
        Section("How it was measured", _circumstances(results)),
    ]
    asked = f"{results['n']} items, {' and '.join(results['systems'])}, {results['dtype']}"
    return page(title, sections, subtitle=asked)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _span(entry: Mapping[str, JSON]) -> str:
    return "too few items" if entry["low"] is None else f"{entry['low']:.3f} to {entry['high']:.3f}"


def _figures(results: Mapping[str, JSON]) -> list[Markup]:
    systems = results["systems"]
    names = list(dict.fromkeys(name for system in systems for name in results[system]))
    last = results[systems[-1]]
    headline = [name for name in ("schema_adherence", "exact_match", "attack_success", "general_loss") if name in last]
    parts = [cards([(_share(last[name]["value"]), f"{name} ({systems[-1]})") for name in headline])] if headline else []
    bounded = [
        name
        for name in names
        if all(name not in results[s] or _in_unit(results[s][name]) for s in systems) and name not in ("empty", "loop")
    ]
    if bounded and len(systems) == 2:
        drawn = [[_interval(results[system].get(name)) for name in bounded] for system in systems]
        caption = "Value and 95% interval of each metric. Orange: base; blue: tuned."
        parts.append(figure(forest(bounded, drawn[0], drawn[1]), caption=caption))
    rows: list[list[Cell]] = []
    for name in names:
        row: list[Cell] = [name, results["better"][name]]
        for system in systems:
            entry = results[system].get(name)
            row += [Number(_share(entry["value"])), _span(entry), Number(str(entry["n"]))] if entry else ["", "", ""]
        rows.append(row)
    headers = ["metric", "better", *(f"{system}{what}" for system in systems for what in ("", ", 95%", ", n"))]
    parts.append(table(headers, rows))
    zero = [
        f"{system} {name}: none of {entry['n']}, so the rate is below {entry['zero_upper_95']:.3f} with 95% confidence"
        for system in systems
        for name, entry in results[system].items()
        if "zero_upper_95" in entry and results["better"][name] == "lower"
    ]
    return parts + [text(line) for line in zero]


def _in_unit(entry: Mapping[str, JSON]) -> bool:
    return entry["low"] is not None and entry["low"] >= 0 and entry["high"] <= 1


def _interval(entry: Mapping[str, JSON] | None) -> Interval | None:
    return Interval(value=entry["value"], low=entry["low"], high=entry["high"]) if entry else None


def _verdict(entry: Mapping[str, JSON], better: str) -> Markup:
    if not entry["resolved"]:
        return badge(f"not resolvable with {entry['n']} items", Tone.UNSURE)
    improved = (entry["difference"] > 0) == (better == "higher")
    return badge("better", Tone.GOOD) if improved else badge("worse", Tone.BAD)


def _paired(results: Mapping[str, JSON]) -> Markup:
    rows: list[list[Cell]] = []
    for name, entry in results["paired"].items():
        wins = "" if entry["only_challenger"] is None else f"{entry['only_challenger']} / {entry['only_reference']}"
        smallest = "" if entry["minimum_detectable"] is None else f"{entry['minimum_detectable']:.3f}"
        rows.append(
            [
                name,
                Number(f"{entry['difference']:+.4g}"),
                _span(entry),
                Number(f"{entry['p']:.2g}"),
                _verdict(entry, results["better"][name]),
                Number(wins),
                Number(smallest),
            ]
        )
    headers = ["metric", "difference", "95% interval", "p", "verdict", "only tuned / only base", "smallest visible"]
    return table(headers, rows)


def _seeds(results: Mapping[str, JSON]) -> list[Markup]:
    """Show each seed's figure, how far seeds lie apart, and what other items would change."""
    number = len(results["adapters"])
    parts = [
        lead(f"{number} adapters that differ in their training seed. The joint interval holds both kinds of noise.")
    ]
    rows: list[list[Cell]] = []
    for name, entry in results["tuned"].items():
        seeds, items = entry["seeds"], entry["items"]
        rows.append(
            [
                name,
                *(Number(_share(value)) for value in seeds["values"]),
                Number(_share(seeds["mean"])),
                Number(f"{seeds['sd']:.3g}"),
                _span(items),
                _span(entry),
            ]
        )
    headers = [
        "metric",
        *(f"seed {n}" for n in range(1, number + 1)),
        "mean",
        "SD of seeds",
        "95%, other items",
        "95%, both",
    ]
    return [*parts, table(headers, rows)]


def _memory(memory: Mapping[str, JSON]) -> list[Markup]:
    """Show how much training text comes back, beside held-out text of the same form."""
    parts = [lead("Training text beside held-out text cut alike: what both give back was guessed, not remembered.")]
    rows: list[list[Cell]] = []
    for system, figures in memory.items():
        contrasts = {part: figures[part]["verbatim"] for part in ("message", "answer") if part in figures}
        if "secrets" in figures:
            contrasts["secrets"] = figures["secrets"]
        for what, contrast in contrasts.items():
            shown = [contrast[side] for side in ("trained", "control", "excess")]
            told = figures[what].get("membership")
            rows.append(
                [
                    f"{system}, {what}",
                    *(Number(f"{entry['value']:.3f} ({_span(entry)})") for entry in shown),
                    badge("remembers", Tone.BAD) if contrast["remembers"] else badge("not shown", Tone.PLAIN),
                    Number(f"{told['value']:.3f} ({_span(told)})") if told else "",
                ]
            )
        rows += [
            [f"{system}, {part}", str(n), "", "", "", ""]
            for part, n in figures["left_out"].items()
            if part not in contrasts
        ]
    headers = ["", "comes back, trained", "held out", "excess, 95%", "", "told apart (0.5: not at all)"]
    return [*parts, table(headers, rows)]


def _slices(results: Mapping[str, JSON]) -> list[Markup]:
    parts = [lead("p-values are adjusted over all slices of a metric (Holm). Slices under five items get no figures.")]
    systems = results["systems"]
    for dimension, values in results["slices"].items():
        measured = [entry for entry in values.values() if systems[-1] in entry]
        metrics = list(dict.fromkeys(name for entry in measured for name in entry[systems[-1]]))
        rows: list[list[Cell]] = []
        for value, entry in values.items():
            row: list[Cell] = [value, Number(str(entry["n"]))]
            for name in metrics:
                for system in systems:
                    found = entry.get(system, {}).get(name)
                    row.append(Number(f"{found['value']:.3f} ({_span(found)})" if found else ""))
                paired = entry.get("paired", {}).get(name)
                if len(systems) == 2:
                    row.append(Number(f"{paired['difference']:+.3f}, p {paired['p_holm']:.2g}" if paired else ""))
            rows.append(row)
        headers = ["", "n"]
        for name in metrics:
            headers += [f"{name}, {system}" for system in systems]
            headers += [f"{name}, difference"] if len(systems) == 2 else []
        parts += [heading(dimension), table(headers, rows)]
    return parts


def _failures(results: Mapping[str, JSON]) -> list[Markup]:
    parts: list[Markup] = []
    for system, groups in results["failures"].items():
        if not groups:
            parts += [heading(system), text("No wrong answer.")]
            continue
        rows: list[list[Cell]] = [
            [group["kind"], Number(str(group["n"])), ", ".join(group["row_ids"][:SHOWN_IDS])] for group in groups
        ]
        parts += [heading(system), table(["what is wrong", "n", "for example"], rows)]
    return parts


def _samples(samples: Sequence[Mapping[str, JSON]]) -> list[Markup]:
    parts: list[Markup] = []
    for sample in samples:
        tone, words = _OUTCOMES[sample["outcome"]]
        title = Markup("{} {}").format(sample["row_id"], badge(words, tone))
        parts.append(Markup("<h3>{}</h3>").format(title))
        rows: list[list[Cell]] = [["prompt", code(sample["prompt"])]]
        if sample["expected"] is not None:
            rows.append(["expected", code(sample["expected"])])
        for system, answer in sample["answers"].items():
            shown = Markup("<pre>{}</pre>").format(diff(sample["expected"], answer["output"]))
            notes = [answer["finish_reason"] or "", *answer.get("failed", ())]
            rows.append([f"{system} ({'; '.join(note for note in notes if note)})", shown])
        parts.append(table(["", ""], rows))
    return parts


def diff(expected: str | None, output: str) -> Markup:
    """Return an answer with what it lacks struck out and what it adds marked, word by word."""
    if expected is None or expected == output:
        return escape(output)
    before, after = (re.findall(r"\s+|\w+|[^\w\s]", part) for part in (expected, output))
    out = Markup()
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            out += "".join(after[c:d])
            continue
        if b > a:
            out += Markup("<del>{}</del>").format("".join(before[a:b]))
        if d > c:
            out += Markup("<ins>{}</ins>").format("".join(after[c:d]))
    return out


def _circumstances(results: Mapping[str, JSON]) -> list[Markup]:
    decoding = ", ".join(f"{name} {value}" for name, value in results["decoding"].items())
    rows: list[list[Cell]] = [
        ["contract", results["contract_sha256"]],
        ["template", results["contract_parts"].get("template", "")],
        ["decoding", decoding],
        ["number format", f"{results['dtype']}: {results['dtype_reason']}"],
        ["no held-out row in training", _proof(results["leakage_proof"])],
        ["prompts", f"sha256 {results['prompts_sha256']}"],
    ]
    for system in results["systems"]:
        took = results["timing"][system]
        stops = ", ".join(f"{count} {reason}" for reason, count in results["stop_reasons"][system].items())
        rate = f"{took['tokens_per_second']:.0f} new tokens/s" if took.get("tokens_per_second") else "rate not measured"
        rows.append(
            [f"{system} answers", f"{stops}; {took['output_tokens']} tokens; {rate}; {took.get('engine') or ''}"]
        )
        if system in results["unparsable"]:
            rows.append([f"{system} unparsable", f"{results['unparsable'][system]:.1%}"])
    if results.get("excluded"):
        rows.append(["not asked", f"{len(results['excluded'])} rows that the contract refuses"])
    return [table(["", ""], rows), heading("The first prompt, as the model saw it"), code(results["sample_prompt"])]


def _proof(proof: Mapping[str, JSON] | None) -> str:
    if proof is None:
        return "not proven: the split carries no proof"
    return "; ".join(f"{name}: {value}" for name, value in proof.items() if not isinstance(value, dict | list))
