"""Read what lm-evaluation-harness wrote: its samples become items and scored answers, like those of any other task.

What lives here: `results_*.json` and `samples_TASK_*.jsonl` of lm-eval 0.4 -> `HarnessRun`. What does not: running it
(`stages.lm_eval`), writing its shape (`evals.lm_eval_shape`).

A metric is `TASK.METRIC`, and `TASK.METRIC/FILTER` where the task cuts answers with a filter of another name than
`none`. A metric whose value of one item is no number (corpus BLEU, word perplexity) has no per-item score: the figure
that lm-eval computed of it stands under `reported`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError
from tunesmith.types import JSON

_UNNAMED = re.compile(r"\W")
_SAMPLES = re.compile(r"^samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[\d.-]+\.jsonl$")


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessSample:
    """One question of one task, as lm-eval asked and scored it."""

    item_id: str
    """`TASK/NUMBER`."""
    task: str
    prompt: str
    """The text that went to the tokenizer; of several endings, what stands before them."""
    expected: str
    output: str
    """The answer; of several endings, their log-likelihoods."""
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessRun:
    """One run of lm-eval over one model."""

    samples: tuple[HarnessSample, ...]
    better: Mapping[str, str]
    """Metric -> `higher` or `lower`."""
    reported: Mapping[str, Mapping[str, JSON]]
    """Metric -> `{value, stderr}`, as lm-eval computed them; its standard errors ignore groups."""
    facts: Mapping[str, JSON]
    """`version`, `chat_template_sha`, and per task `versions`, `hashes`, `n_shot`, `output_types`."""


def read_run(folder: Path) -> HarnessRun:
    """Read a folder that `lm_eval run --log_samples --output_path FOLDER` wrote.

    Raises `DataError` where files are missing or hold something else.
    """
    results_file = _only(sorted(folder.rglob("results_*.json")), folder)
    results: dict[str, Any] = json.loads(results_file.read_text(encoding="utf-8"))
    try:
        return _read(results, results_file)
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            "lm-eval's files have another shape than those of version 0.4",
            where=str(results_file),
            found=f"{error!r}, written by version {results.get('lm_eval_version')}",
        ) from error


def _only(found: list[Path], folder: Path) -> Path:
    if len(found) != 1:
        raise DataError(
            "lm-eval left no single results file", where=str(folder), found=", ".join(p.name for p in found) or "none"
        )
    return found[0]


def _read(results: Mapping[str, Any], results_file: Path) -> HarnessRun:
    better: dict[str, str] = {}
    samples: list[HarnessSample] = []
    for path in sorted(results_file.parent.glob("samples_*.jsonl")):
        matched = _SAMPLES.match(path.name)
        if matched is None:
            continue
        task = matched["task"]
        directions = results["higher_is_better"][task]
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        samples += _task_samples(task, lines)
        for line in lines:
            for name in line["metrics"]:
                higher = directions.get(name, True)
                better[metric_name(task, name, line["filter"])] = "lower" if higher is False else "higher"
    if not samples:
        raise DataError("lm-eval asked nothing", where=str(results_file.parent), hint="look at its limit and tasks")
    return HarnessRun(samples=tuple(samples), better=better, reported=_reported(results), facts=_facts(results))


def _task_samples(task: str, lines: list[dict[str, Any]]) -> list[HarnessSample]:
    """Join the lines of one question, one for each filter, into one sample."""
    scores: dict[int, dict[str, float]] = {}
    first: dict[int, dict[str, Any]] = {}
    for line in lines:
        number = line["doc_id"]
        first.setdefault(number, line)
        mine = scores.setdefault(number, {})
        for name in line["metrics"]:
            value = line[name]
            if isinstance(value, bool | int | float) and math.isfinite(value):
                mine[metric_name(task, name, line["filter"])] = float(value)
    return [
        HarnessSample(
            item_id=f"{task}/{number}",
            task=task,
            prompt=str(first[number]["arguments"]["gen_args_0"]["arg_0"]),
            expected=str(first[number]["target"]),
            output=_output(first[number]),
            scores=scores[number],
        )
        for number in sorted(first)
    ]


def _output(line: Mapping[str, Any]) -> str:
    """Return the generated text, or the log-likelihoods of the endings."""
    answers = [response[0] for response in line["resps"]]
    if all(isinstance(answer, str) for answer in answers):
        return str(answers[0])
    endings = [arguments.get("arg_1", "") for arguments in line["arguments"].values()]
    values = [answer[0] if isinstance(answer, list) else answer for answer in answers]
    return "\n".join(f"{value} {ending}" for value, ending in zip(values, endings, strict=False))


def metric_name(task: str, metric: str, filter_name: str) -> str:
    """Return a name that acceptance criteria can hold: letters, digits, `_`, one `.`, and `/` before a filter."""
    name = f"{_UNNAMED.sub('_', task)}.{_UNNAMED.sub('_', metric)}"
    return name if filter_name == "none" else f"{name}/{_UNNAMED.sub('_', filter_name)}"


def _reported(results: Mapping[str, Any]) -> dict[str, dict[str, JSON]]:
    out: dict[str, dict[str, JSON]] = {}
    for task, figures in results["results"].items():
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                stderr = figures.get(f"{metric}_stderr,{filter_name}")
                out[metric_name(task, metric, filter_name)] = {
                    "value": _number(value),
                    "stderr": _number(stderr),
                }
    return out


def _number(value: JSON) -> JSON:
    """Return a finite number, or `None`: lm-eval writes `N/A`, and NaN where it has no standard error."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _facts(results: Mapping[str, Any]) -> dict[str, JSON]:
    return {
        "version": results["lm_eval_version"],
        "transformers_version": results.get("transformers_version"),
        "chat_template_sha": results.get("chat_template_sha"),
        "system_instruction_sha": results.get("system_instruction_sha"),
        "versions": results["versions"],
        "hashes": results.get("task_hashes", {}),
        "n_shot": results["n-shot"],
        "output_types": {task: config.get("output_type") for task, config in results["configs"].items()},
    }
