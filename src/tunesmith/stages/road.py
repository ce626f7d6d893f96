"""The page over a whole run: which sections it has and what each shows.

What lives here: turning the figures that stages left into `tunesmith.page` pieces. What does not: reading artifacts
(`stages.report`), computing figures (the stages that made them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tunesmith import charts
from tunesmith.page import (
    Cell,
    Number,
    Section,
    Tone,
    badge,
    cards,
    code,
    columns,
    figure,
    heading,
    lead,
    page,
    table,
    text,
)
from tunesmith.types import JSON, canonical_json

_TONES = {"pass": Tone.GOOD, "fail": Tone.BAD, "not_resolvable": Tone.UNSURE}
_HEADLINE_METRICS = ("json_parse", "schema_adherence", "exact_match", "field_accuracy", "token_f1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """What the stages of a run left; `None`, or empty, where the recipe has no such stage."""

    summaries: Mapping[str, Mapping[str, Any]]
    results: Mapping[str, Any] | None
    attacks: Mapping[str, Any] | None
    tasks: Mapping[str, Mapping[str, Any]]
    """Heading -> results of questions that are not the held-out rows."""
    samples: Sequence[Mapping[str, Any]]
    gates: Mapping[str, Any] | None
    proof: Mapping[str, Any] | None
    contract: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, Any]]
    monitoring: Mapping[str, Any] | None


def verdict_of(road: Road) -> dict[str, JSON]:
    """Return the run in a few figures: gates, base against tuned, and what to type next."""
    out: dict[str, JSON] = {}
    if road.gates is not None:
        out["promotable"] = road.gates["promotable"]
        out["gates"] = {verdict["criterion"]: verdict["verdict"] for verdict in road.gates["verdicts"]}
    if road.results is not None:
        for metric in _headline(road.results):
            out[metric] = {
                system: round(road.results[system][metric]["value"], 4) for system in road.results["systems"]
            }
    out["next"] = _next_steps(road)
    return out


def _next_steps(road: Road) -> list[str]:
    if road.gates is None:
        return ["tunesmith show"]
    if road.gates["promotable"]:
        return ["tunesmith promote --to staging", "tunesmith serve", "tunesmith show --json"]
    missed = [v["criterion"] for v in road.gates["verdicts"] if v["verdict"] != "pass"]
    if not missed:
        return [
            "# not promotable yet: the contract states no acceptance criteria",
            "tunesmith explain contract.criteria",
        ]
    return [f"# not promotable yet: {missed[0]}", "tunesmith show evaluate", "tunesmith explain bundle"]


def road_page(title: str, road: Road) -> str:
    """Return the page as HTML text."""
    sections = [
        *_verdict_section(road),
        *_data_section(road),
        *_training_section(road),
        *_evaluation_sections(road),
        *_attack_section(road),
        *_task_sections(road),
        *_production_section(road),
        *_contract_section(road),
    ]
    return page(
        title, sections, subtitle="From raw rows to a served model: what went in, what came out, and how sure it is."
    )


def _headline(results: Mapping[str, Any]) -> list[str]:
    return [m for m in _HEADLINE_METRICS if all(m in results[system] for system in results["systems"])]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _plain_number(value: float) -> str:
    return f"{value:.3f}"


def _is_share(*estimates: Mapping[str, Any]) -> bool:
    """Whether figures are shares, shown in percent; a loss in nats or a BLEU of 0 to 100 is not."""
    return all(0 <= estimate["value"] <= 1 for estimate in estimates)


def _with_interval(estimate: Mapping[str, Any], *, share: bool) -> str:
    show = _percent if share else _plain_number
    if estimate["low"] is None:
        return show(estimate["value"])
    return f"{show(estimate['value'])}  [{show(estimate['low'])}, {show(estimate['high'])}]"


def _verdict_section(road: Road) -> list[Section]:
    parts: list[Markup] = []
    if road.results is not None and "tuned" in road.results["systems"]:
        figures = []
        for metric in _headline(road.results)[:4]:
            base, tuned = road.results["base"][metric]["value"], road.results["tuned"][metric]["value"]
            figures.append((_percent(tuned), f"{_words(metric)}, base {_percent(base)}"))
        parts.append(cards(figures))
    if road.gates is not None:
        promotable = road.gates["promotable"]
        parts.append(
            Markup("<p>{} {}</p>").format(
                badge("promotable" if promotable else "not promotable", Tone.GOOD if promotable else Tone.BAD),
                road.gates["reason"],
            )
        )
        rows: list[list[Cell]] = [
            [
                v["criterion"],
                badge(v["verdict"].replace("_", " "), _TONES[v["verdict"]]),
                Number(f"{v['observed']:.3f}"),
                v["explanation"],
            ]
            for v in road.gates["verdicts"]
        ]
        parts.append(table(["criterion, written before the data", "verdict", "observed", "why"], rows))
    steps = "\n".join(_next_steps(road))
    parts += [heading("Type next"), code(steps)]
    return [Section("Verdict", parts)]


def _data_section(road: Road) -> list[Section]:
    ingested, curated, splits = (road.summaries.get(name) for name in ("ingested", "curated", "splits"))
    if ingested is None:
        return []
    parts: list[Markup] = []
    names, values = ["records read", "readable rows"], [ingested["records_in"], ingested["rows_kept"]]
    dropped: list[list[Cell]] = [["ingest", reason, Number(f"{n:,}")] for reason, n in ingested["dropped"].items()]
    if curated is not None:
        names.append("curated rows")
        values.append(curated["rows_kept"])
        dropped += [["curate", reason.replace("_", " "), Number(f"{n:,}")] for reason, n in curated["dropped"].items()]
    if splits is not None:
        for side, n in splits["rows"].items():
            names.append(f"… {side}")
            values.append(n)
    parts.append(figure(charts.bars(names, values, x_label="rows"), caption="Every row is accounted for."))
    if curated is not None and curated.get("pii"):
        found: list[list[Cell]] = [
            [kind.lower().replace("_", " "), Number(f"{n:,}")] for kind, n in curated["pii"].items()
        ]
        parts.append(
            columns(
                Markup("{}{}").format(heading("Dropped, by reason"), table(["stage", "reason", "rows"], dropped)),
                Markup("{}{}").format(heading("Replaced by placeholders"), table(["type", "found"], found)),
            )
        )
    elif dropped:
        parts += [heading("Dropped, by reason"), table(["stage", "reason", "rows"], dropped)]
    if splits is not None:
        overlaps = ", ".join(f"{kind} {n}" for kind, n in splits["overlaps"].items())
        clean = not any(splits["overlaps"].values())
        parts.append(
            Markup("<p>{} {}</p>").format(
                badge("zero overlap" if clean else "overlap", Tone.GOOD if clean else Tone.BAD),
                f"Overlaps between sides, computed again after the split: {overlaps}.",
            )
        )
    return [Section("Data", parts)]


def _training_section(road: Road) -> list[Section]:
    if not road.metrics:
        return []
    train = [m for m in road.metrics if "loss" in m]
    validation = [m for m in road.metrics if "val_loss" in m]
    series = [
        charts.Line(name="training loss", x=[m["step"] for m in train], y=[m["loss"] for m in train]),
        charts.Line(
            name="validation loss",
            x=[m["step"] for m in validation],
            y=[m["val_loss"] for m in validation],
            color=charts.ORANGE,
            marker=True,
        ),
        charts.Line(
            name="loss on general text",
            x=[m["step"] for m in validation if "general_loss" in m],
            y=[m["general_loss"] for m in validation if "general_loss" in m],
            color=charts.GREY,
            marker=True,
        ),
    ]
    drawing = charts.lines([line for line in series if line.x], x_label="optimizer step", y_label="nats per token")
    parts = [figure(drawing, caption="Loss on supervised tokens only: the answer and its stop token.")]
    parts += [_metric_figure(name, road.metrics) for name in _task_metrics(road.metrics)]
    facts = road.summaries.get("adapter", {})
    rows: list[list[Cell]] = [
        [_words(key), _plain(value)] for key, value in facts.items() if not isinstance(value, dict)
    ]
    examples = road.summaries.get("examples", {})
    rows += [[f"encoded: {_words(k)}", _plain(v)] for k, v in examples.items() if isinstance(v, (int, float, str))]
    parts.append(table(["", ""], rows))
    return [Section("Training", parts)]


def _task_metrics(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of what was measured by answering while the model trained."""
    fixed = ("step", "best", "eval_seconds", "val_loss", "general_loss")
    return list(dict.fromkeys(name for m in metrics if "eval_seconds" in m for name in m if name not in fixed))


def _metric_figure(name: str, metrics: Sequence[Mapping[str, Any]]) -> Markup:
    measured = [m for m in metrics if name in m]
    line = charts.Line(name=name, x=[m["step"] for m in measured], y=[m[name] for m in measured], marker=True)
    drawing = charts.lines([line], x_label="optimizer step", y_label=_words(name))
    return figure(drawing, caption=f"{_words(name)} on validation rows, answered while the model trained.")


def _evaluation_sections(road: Road) -> list[Section]:
    results = road.results
    if results is None:
        return []
    parts: list[Markup] = [
        lead(f"{results['n']} held-out items, asked with the contract's own template, system prompt and decoding.")
    ]
    both = "tuned" in results["systems"]
    metrics = [m for m in results["base"] if not both or m in results["tuned"]]
    shares = [m for m in metrics if 0 <= results["base"][m]["value"] <= 1 and m not in ("cut", "loop", "empty")]
    if both:
        drawing = charts.forest(
            [_words(m) for m in shares],
            [_interval(results["base"][m]) for m in shares],
            [_interval(results["tuned"][m]) for m in shares],
        )
        parts.append(figure(drawing, caption="Value and 95% interval, base against tuned."))
    parts.append(_comparison_table(results, metrics))
    for dimension, values in results["slices"].items():
        parts += [heading(f"By {dimension}"), _slice_table(results, values)]
    sections = [Section("Base against tuned", parts)]
    if road.samples:
        sections.append(Section("Answers", [_sample(sample) for sample in road.samples]))
    return sections


def _comparison_table(results: Mapping[str, Any], metrics: Sequence[str]) -> Markup:
    systems = results["systems"]
    rows: list[list[Cell]] = []
    for metric in metrics:
        share = _is_share(*(results[system][metric] for system in systems))
        row: list[Cell] = [_words(metric), *(Number(_with_interval(results[s][metric], share=share)) for s in systems)]
        row.append(Number(_difference(results["paired"].get(metric), share=share)))
        row.append(results["better"].get(metric, ""))
        rows.append(row)
    return table(["metric", *systems, "difference", "better"], rows)


def _difference(paired: Mapping[str, Any] | None, *, share: bool) -> str:
    """Return a paired difference, in percentage points where the figures are shares."""
    if paired is None:
        return "–"
    scale, digits = (100, 1) if share else (1, 3)
    points = f"{scale * paired['difference']:+.{digits}f}"
    if paired["low"] is None:
        return points
    interval = f"{points}  [{scale * paired['low']:+.{digits}f}, {scale * paired['high']:+.{digits}f}]"
    return interval if paired["resolved"] else f"{interval}  not resolved with n={paired['n']}"


def _slice_table(results: Mapping[str, Any], values: Mapping[str, Any]) -> Markup:
    metric = next((m for m in ("exact_match", "token_f1", "schema_adherence") if m in results["base"]), None)
    systems = results["systems"]
    rows: list[list[Cell]] = []
    for value, entry in values.items():
        cells = [
            Number(_with_interval(entry[s][metric], share=True) if metric in entry.get(s, {}) else "–") for s in systems
        ]
        rows.append([str(value), Number(str(entry["n"])), *cells])
    return table(["", "n", *(f"{_words(metric or '')}, {s}" for s in systems)], rows)


def _sample(sample: Mapping[str, Any]) -> Markup:
    prompt = str(sample["prompt"])
    answers = [
        Markup("<p><b>{}</b> ({})</p>{}").format(system, answer["finish_reason"], code(answer["output"]))
        for system, answer in sample["answers"].items()
    ]
    return Markup("{}{}<p><b>expected</b></p>{}{}").format(
        heading(sample["outcome"].replace("_", " ")),
        code(prompt),
        code(str(sample["expected"])),
        columns(answers[0], answers[1]) if len(answers) == 2 else Markup("").join(answers),
    )


def _task_sections(road: Road) -> list[Section]:
    sections = []
    for title, results in road.tasks.items():
        asked = ", ".join(f"{task['n']} of {name}" for name, task in results["tasks"].items())
        metrics = [m for m in results["base"] if m in results.get("tuned", results["base"])]
        sections.append(Section(title, [lead(f"Questions: {asked}."), _comparison_table(results, metrics)]))
    return sections


def _attack_section(road: Road) -> list[Section]:
    results = road.attacks
    if results is None:
        return []
    parts: list[Markup] = [lead(f"{results['n']} prompts of the red-team set, base and tuned asked the same.")]
    parts.append(_comparison_table(results, [m for m in results["base"] if m in results.get("tuned", results["base"])]))
    families = results["slices"].get("family", {})
    if families:
        rows: list[list[Cell]] = []
        for family, entry in families.items():
            cells = [
                Number(
                    _with_interval(entry[s]["attack_success"], share=True)
                    if "attack_success" in entry.get(s, {})
                    else "–"
                )
                for s in results["systems"]
            ]
            rows.append([family, Number(str(entry["n"])), *cells])
        parts += [
            heading("Attack success by family"),
            table(["family", "n", *(str(s) for s in results["systems"])], rows),
        ]
    return [Section("Red team", parts)]


def _production_section(road: Road) -> list[Section]:
    parts: list[Markup] = []
    for name, title in (("traces", "Rehearsal"), ("monitoring", "Monitoring"), ("candidates", "Harvest")):
        facts = road.summaries.get(name)
        if facts:
            parts += [heading(title), table(["", ""], [[_words(k), _plain(v)] for k, v in facts.items()])]
    if not parts:
        return []
    explanation = (
        "The real server, on loopback, spoken to with the openai client; then its traces, and what they teach."
    )
    return [Section("Serving, monitoring, harvest", [text(explanation), *parts])]


def _contract_section(road: Road) -> list[Section]:
    if road.contract is None:
        return []
    facts = road.summaries.get("contract", {})
    rows: list[list[Cell]] = [[_words(k), _plain(v)] for k, v in facts.items()]
    base = road.summaries.get("base", {})
    rows += [[f"base: {_words(k)}", _plain(v)] for k, v in base.items()]
    return [Section("Contract and base", [table(["", ""], rows)])]


def _interval(estimate: Mapping[str, Any]) -> charts.Interval | None:
    if estimate["low"] is None:
        return None
    return charts.Interval(value=estimate["value"], low=estimate["low"], high=estimate["high"])


def _words(key: str) -> str:
    return key.replace("field.", "field ").replace("_", " ")


def _plain(value: JSON) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and all(isinstance(v, (int, float, str, bool)) for v in value.values()):
        return ", ".join(f"{_words(str(k))} {_plain(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value) or "none"
    return canonical_json(value)
