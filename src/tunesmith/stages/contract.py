"""contract: what the model is asked and how it answers becomes one hashed value, before any row is read.

contract:
  system: Reply with one JSON object and nothing else.
  output_schema: ticket.schema.json
  criteria:
    - schema_adherence >= 0.97 with 95% confidence
"""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tunesmith.chat.build import build_contract
from tunesmith.chat.families import family_names, family_template
from tunesmith.chat.length import Overlong
from tunesmith.chat.parts import Decoding, LossPolicy, NoTarget, System, SystemRule
from tunesmith.chat.schema import AnswerSchema
from tunesmith.chat.template import ChatTemplate, find_templates, read_template
from tunesmith.chat.toolcalls import ToolFormat
from tunesmith.chat.turns import Reasoning, TrainOn
from tunesmith.core.artifact import Artifact
from tunesmith.core.spec import ContentPath, Spec
from tunesmith.core.stage import Context, Inputs, Summary, role, stage
from tunesmith.errors import ContractError, PlanError, RecipeError
from tunesmith.types import JSON

NEAR = 0.85
"""Similarity from which an unknown metric is taken for a misspelt one."""


class FromRows(Spec):
    """The contract says nothing about system prompts: rows bring their own or none."""

    source: Literal["rows"]
    """`rows`."""


class BaseTemplate(Spec):
    """The chat template that comes with the base."""

    kind: Literal["base"]
    """`base`."""
    name: str = "default"
    """Which of the base's templates, where it has several (`tool_use`)."""


class FamilyTemplate(Spec):
    """A template of this project."""

    kind: Literal["family"]
    """`family`."""
    name: str
    """Name of the family, such as `chatml` or `qwen3`."""
    sha256: str = ""
    """Hash of the family's text: filled in, so that another text is another contract. Given, it must be that one."""

    @model_validator(mode="before")
    @classmethod
    def _with_hash(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("name") not in family_names():
            return value
        actual = family_template(value["name"]).sha256
        if value.get("sha256", actual) != actual:
            raise ValueError(f"the family {value['name']!r} has the hash {actual} in this version of tunesmith")
        return {**value, "sha256": actual}


class FileTemplate(Spec):
    """A template in a file."""

    kind: Literal["file"]
    """`file`."""
    path: ContentPath
    """Jinja file."""


class SchemaFile(Spec):
    """A JSON Schema in a file."""

    path: ContentPath
    """JSON file."""


def _template_from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value == "base":
        return {"kind": "base"}
    if value.endswith((".jinja", ".jinja2", ".j2")) or "/" in value:
        return {"kind": "file", "path": value}
    return {"kind": "family", "name": value}


def _schema_from_text(value: Any) -> Any:
    return SchemaFile(path=value) if isinstance(value, str) else value


TemplateSource = Annotated[
    Annotated[BaseTemplate | FamilyTemplate | FileTemplate, Field(discriminator="kind")],
    BeforeValidator(_template_from_text),
]
SchemaSource = Annotated[SchemaFile | dict[str, Any] | None, BeforeValidator(_schema_from_text)]


class DecodingSpec(Spec):
    """How answers are generated, in evaluation and at the server alike."""

    temperature: float = Field(0.0, ge=0, le=5)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1 takes all tokens."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""
    seed: int = Field(0, ge=0)
    """Seed of sampling."""


class LossSpec(Spec):
    """Which tokens train."""

    train_on: TrainOn = TrainOn.ALL
    """`all` assistant turns, the `last`, or those `flagged` with `train: true`."""
    reasoning: Reasoning = Reasoning.TRAIN
    """`train` on reasoning, `mask` it (it stands there and does not train), or `drop` it from the rows."""
    overlong: Overlong = Overlong.DROP
    """Rows longer than `max_tokens`: `drop` and report, `error`, `drop_oldest_turns`, `cut_end` or `cut_both`."""
    max_tokens: int | None = Field(None, ge=8)
    """Longest training sequence, in tokens; no limit unless given."""
    no_target: NoTarget = NoTarget.ERROR
    """A row in which nothing trains is an `error`, or is `drop`ped and counted."""


class ContractInputs(Inputs):
    """The base gives tokenizer and template."""

    base: Artifact = role("base", table="fetch")


class ContractSpec(Spec):
    """Everything that the model is asked, and how it answers."""

    system: str | FromRows | None = FromRows(source="rows")
    """System prompt of every conversation. `null` is none on purpose; left out, rows bring their own."""
    template: TemplateSource = BaseTemplate(kind="base")
    """`base`, the name of a family, or the path of a .jinja file."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Variables of the template, such as {enable_thinking: false}."""
    template_date: str | None = Field(None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    """What a template that prints the date sees as today; such a template needs it."""
    tools: list[dict[str, Any]] = Field(default_factory=list)
    """Tools of every conversation, as JSON-schema function declarations; rows bring their own unless given."""
    tool_format: Literal["hermes", "llama", "mistral", "name_line", "pythonic", "react"] | None = None
    """How tools, calls and results are written into messages, for a template that renders none of them."""
    input_schema: SchemaSource = None
    """JSON Schema of the variables that `input_render` takes: a file or the schema itself."""
    input_render: str | None = None
    """Jinja text that makes the user message of variables, such as "Subject: {{ subject }}"."""
    output_schema: SchemaSource = None
    """JSON Schema of the answer: a file or the schema itself."""
    stop: list[str] = Field(default_factory=list)
    """Further stop tokens, beside those that the template ends a turn with."""
    decoding: DecodingSpec = DecodingSpec.model_validate({})
    """How answers are generated."""
    guardrails: dict[str, Any] = Field(default_factory=dict)
    """Policy of the server's checks."""
    loss: LossSpec = LossSpec.model_validate({})
    """Which tokens train."""
    criteria: list[str] = Field(default_factory=list)
    """Acceptance criteria, such as "schema_adherence >= 0.97 with 95% confidence"."""

    @field_validator("template_date")
    @classmethod
    def _date_exists(cls, value: str | None) -> str | None:
        if value is not None:
            datetime.date.fromisoformat(value)
        return value

    @model_validator(mode="after")
    def _render_has_variables(self) -> ContractSpec:
        if self.input_schema is not None and self.input_render is None:
            raise ValueError("input_schema describes the variables of input_render, which is not set")
        return self


def check(spec: ContractSpec, inputs: Mapping[str, Artifact | None]) -> list[str]:
    """Refuse criteria, schemas, guardrails and families that cannot be read; warn of what is missing."""
    from tunesmith.evals.gates import parse_criterion
    from tunesmith.serve.guardrails import read_policy

    misspelt = [
        f"contract.criteria names {metric!r}, which no stage measures under that name; did you mean {close!r}?"
        for metric in (parse_criterion(text).metric for text in spec.criteria)
        if (close := _near_metric(metric)) is not None
    ]
    read_policy(spec.guardrails)
    for name in ("input_schema", "output_schema"):
        schema = _read_schema(getattr(spec, name), key=name)
        if schema is not None:
            AnswerSchema(schema)
    if isinstance(spec.template, FamilyTemplate) and spec.template.name not in family_names():
        family_template(spec.template.name)
    base = inputs.get("base")
    if base is not None:
        _choose_template(spec, base.path / "model")
    warnings = misspelt
    if not spec.criteria:
        warnings.append("contract.criteria is empty: no bundle of this recipe can be refused, or trusted, by a gate")
    return warnings


def _near_metric(name: str) -> str | None:
    """Return the metric that a name all but spells, or `None` where it is one, or none is near: a stage may know it."""
    from tunesmith.evals.run import METRICS
    from tunesmith.evals.tasks import TASK_METRICS

    known = {*METRICS, *TASK_METRICS}
    if name in known or "." in name or name.startswith("pass_at_"):  # A dot: a metric of one set of tasks, or a field.
        return None
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=NEAR)), None)


@stage(name="contract", version=2, produces="contract", check=check)
def contract(inputs: ContractInputs, spec: ContractSpec, ctx: Context) -> Summary:
    """Write `contract.json`, `tokenizer/`, `golden.jsonl` and `criteria.json`."""
    check(spec, {})
    base = inputs.base.path / "model"
    ctx.progress(0, 1, "probing the chat template")
    made = build_contract(
        ctx.out,
        base=base,
        template=_choose_template(spec, base),
        template_arguments=spec.template_arguments,
        template_date=None if spec.template_date is None else datetime.date.fromisoformat(spec.template_date),
        system=_system(spec.system),
        tools=spec.tools,
        tool_format=None if spec.tool_format is None else ToolFormat(spec.tool_format),
        input_schema=_read_schema(spec.input_schema, key="input_schema"),
        input_render=spec.input_render,
        output_schema=_read_schema(spec.output_schema, key="output_schema"),
        extra_stops=spec.stop,
        decoding=Decoding(**spec.decoding.model_dump()),
        guardrails=spec.guardrails,
        loss=LossPolicy(**spec.loss.model_dump()),
        criteria=spec.criteria,
    )
    traits = made.renderer.traits
    ctx.progress(1, 1, f"{len(made.golden)} golden vectors")
    return {
        "sha256": made.sha256,
        "parts": dict(made.parts),
        "template": {"source": spec.template.kind, "sha256": made.template.sha256},
        "system": made.system_rule.rule.value,
        "default_system": traits.default_system if made.system is None else None,
        "stop": made.content["stop"],
        "renders": {
            "tools": traits.renders_tools,
            "tool_arguments": traits.arguments.value,
            "reasoning": traits.renders_reasoning,
        },
        "golden_vectors": len(made.golden),
        "criteria": list(made.criteria),
    }


def _system(value: str | FromRows | None) -> System:
    if isinstance(value, FromRows):
        return System(rule=SystemRule.FROM_ROWS)
    if value is None:
        return System(rule=SystemRule.NONE)
    return System(rule=SystemRule.TEXT, text=value)


def _choose_template(spec: ContractSpec, base: Path) -> ChatTemplate:
    source = spec.template
    if isinstance(source, FileTemplate):
        return read_template(Path(source.path))
    if isinstance(source, FamilyTemplate):
        return family_template(source.name)
    found = find_templates(base)
    if source.name not in found:
        raise PlanError(
            "the base has no chat template" if not found else f"the base has no chat template {source.name!r}",
            where="contract.template",
            expected=", ".join(sorted(found)) or "a family, for example alpaca or chatml",
            hint="set template to a family or to a .jinja file; a base model without one is a plain language model",
        )
    return ChatTemplate(found[source.name], name="the base's chat template")


def _read_schema(source: SchemaFile | dict[str, Any] | None, *, key: str) -> dict[str, JSON] | None:
    if source is None or isinstance(source, dict):
        return source
    path = Path(source.path)
    try:
        schema = json.loads(path.read_bytes())
    except OSError as error:
        raise RecipeError(
            f"the schema {path.name} cannot be read", where=f"contract.{key}", found=error.strerror or str(error)
        ) from error
    except ValueError as error:
        raise RecipeError(f"the schema {path.name} is not JSON", where=f"contract.{key}", found=str(error)) from error
    if not isinstance(schema, dict):
        raise ContractError(
            f"the schema {path.name} is not an object", where=f"contract.{key}", found=type(schema).__name__
        )
    return schema
