"""Results in the shape of lm-evaluation-harness, for tools that read it.

What lives here: `results.json` and `samples.jsonl` as lm-eval 0.4 writes them, one folder a system. What does not:
running lm-eval's own tasks. Names and hashes follow lm-eval 0.4.13: `metric,filter` keys with `_stderr` beside them,
`chat_template_sha` the sha256 of the template's text, `doc_hash`, `prompt_hash` and `target_hash` of each sample.

The standard error is lm-eval's, sd / sqrt(n) with ddof 1. It ignores groups; the intervals of `results.json` do not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from tunesmith.types import JSON, canonical_json, sha256_hex

FILTER = "none"
"""Name of lm-eval's filter where an answer is scored as it is."""


def lm_eval_results(
    results: Mapping[str, JSON],
    system: str,
    records: Sequence[Mapping[str, JSON]],
    *,
    task: str,
    chat_template: str,
    system_prompt: str | None,
) -> dict[str, JSON]:
    """Return one system's figures as lm-eval's `results.json`. `records` are the system's rows of `items.parquet`."""
    row: dict[str, JSON] = {"alias": task, "sample_len": len(records)}
    for metric in results[system]:
        scores = [record[f"score.{metric}"] for record in records if record.get(f"score.{metric}") is not None]
        row[f"{metric},{FILTER}"] = results[system][metric]["value"]
        row[f"{metric}_stderr,{FILTER}"] = standard_error(scores)
    decoding = results["decoding"]
    generation = {
        "max_gen_toks": decoding["max_new_tokens"],
        "do_sample": decoding["temperature"] > 0,
        "temperature": decoding["temperature"],
        "top_p": decoding["top_p"],
    }
    return {
        "results": {task: row},
        "group_subtasks": {task: []},
        "configs": {task: {"task": task, "output_type": "generate_until", "generation_kwargs": generation}},
        "versions": {task: results["format"]},
        "n-shot": {task: 0},
        "higher_is_better": {task: {metric: results["better"][metric] == "higher" for metric in results[system]}},
        "n-samples": {task: {"original": results["n"], "effective": results["n"]}},
        "config": {"model": "tunesmith", "model_args": {"system": system}, "model_dtype": results["dtype"]},
        "model_name": system,
        "chat_template": chat_template,
        "chat_template_sha": sha256_hex(chat_template),
        "system_instruction": system_prompt,
        "system_instruction_sha": sha256_hex(system_prompt) if system_prompt is not None else None,
        "task_hashes": {task: task_hash(results)},
        "total_evaluation_time_seconds": results["timing"][system].get("seconds"),
    }


def lm_eval_samples(records: Sequence[Mapping[str, JSON]], *, generation: Mapping[str, JSON]) -> list[dict[str, JSON]]:
    """Return one system's rows of `items.parquet` as lines of lm-eval's `samples.jsonl`."""
    out = []
    for number, record in enumerate(records):
        scores = {
            name.removeprefix("score."): value
            for name, value in record.items()
            if name.startswith("score.") and value is not None
        }
        doc = {"row_id": record["row_id"], "expected": record["expected"]}
        out.append(
            {
                "doc_id": number,
                "doc": doc,
                "target": record["expected"],
                "arguments": {"gen_args_0": {"arg_0": record["prompt"], "arg_1": dict(generation)}},
                "resps": [[record["output"]]],
                "filtered_resps": [record["output"]],
                "filter": FILTER,
                "metrics": sorted(scores),
                "doc_hash": sha256_hex(json.dumps(doc, indent=2, ensure_ascii=False)),
                "prompt_hash": sha256_hex(record["prompt"]),
                "target_hash": sha256_hex(str(record["expected"])),
                **scores,
            }
        )
    return out


def standard_error(scores: Sequence[float]) -> float | str:
    """Return sd / sqrt(n) with ddof 1, or lm-eval's `N/A` under two scores."""
    n = len(scores)
    if n < 2:
        return "N/A"
    mean = math.fsum(scores) / n
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (n - 1) / n)


def task_hash(results: Mapping[str, JSON]) -> str:
    """Return a hash of what was asked and how: equal for two runs whose scores may be compared."""
    return sha256_hex(canonical_json([results["prompts_sha256"], results["decoding"], results["contract_sha256"]]))
