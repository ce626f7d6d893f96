"""Diff: what changed between two contracts, part by part, and what it means for a model that was trained under one.

What lives here: the three severities and how each part is judged. What does not: showing it (`cli.diff`).

    diff_contracts(old, new) -> [PartChange(part="decoding", severity=SOFT, reason="...", before=..., after=...)]
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.chat.contract import Contract, load_contract
from tunesmith.chat.parts import PART_NAMES
from tunesmith.chat.refusal import Refused
from tunesmith.chat.template import parse_template
from tunesmith.types import JSON


class Severity(enum.StrEnum):
    """What a change means."""

    COSMETIC = "cosmetic"
    """The model sees and says the same."""
    SOFT = "soft"
    """The model sees the same and may answer otherwise: evaluate again."""
    BREAKING = "breaking"
    """The model was not trained for this: train again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartChange:
    """One part that differs."""

    part: str
    severity: Severity
    reason: str
    before: JSON
    after: JSON


_ANNOTATIONS = frozenset(("title", "description", "examples", "$comment", "$id", "$schema", "default", "deprecated"))
"""Keywords of JSON Schema that no validation reads."""


def diff_contracts(path_a: Path, path_b: Path) -> list[PartChange]:
    """Return the parts that differ between two contract folders, most severe first. Raises `ContractError`."""
    before, after = load_contract(path_a), load_contract(path_b)
    changes = []
    for part in PART_NAMES:
        if before.parts[part] != after.parts[part]:
            severity, reason = _judge(part, before, after)
            changes.append(
                PartChange(
                    part=part,
                    severity=severity,
                    reason=reason,
                    before=_shown(part, before),
                    after=_shown(part, after),
                )
            )
    if before.criteria != after.criteria:
        changes.append(
            PartChange(
                part="criteria",
                severity=Severity.SOFT,
                reason="the acceptance criteria changed, not the model",
                before=list(before.criteria),
                after=list(after.criteria),
            )
        )
    order = list(reversed(Severity))
    return sorted(changes, key=lambda change: order.index(change.severity))


def _shown(part: str, contract: Contract) -> JSON:
    """Return a part as people read it."""
    if part == "tokenizer":
        return {key: contract.content[part][key] for key in ("tokenizer_json_sha256", "special")}
    return contract.content[part]


def _judge(part: str, a: Contract, b: Contract) -> tuple[Severity, str]:
    before, after = a.content[part], b.content[part]
    if part == "template":
        return _judge_template(a, b)
    if part == "tokenizer":
        return _judge_tokenizer(before, after)
    if part == "output":
        return _judge_schema(before["schema"], after["schema"])
    if part == "input":
        if before["render"] != after["render"]:
            return Severity.BREAKING, "variables render to another prompt"
        return Severity.SOFT, "other variables are taken; what is taken renders the same"
    if part == "stop":
        if before["ids"][:1] != after["ids"][:1]:
            return Severity.BREAKING, "answers end with another token than the trained one"
        return Severity.SOFT, "further tokens end an answer"
    if part == "decoding":
        changed = {key for key in before if before[key] != after[key]}
        if changed == {"seed"} and before["temperature"] == 0:
            return Severity.COSMETIC, "greedy answers do not depend on the seed"
        return Severity.SOFT, "answers are generated otherwise"
    if part == "golden":
        return Severity.COSMETIC, "golden vectors follow from the other parts"
    return {
        "system": (Severity.BREAKING, "every prompt changes"),
        "tools": (Severity.BREAKING, "every prompt declares other tools"),
        "guardrails": (Severity.SOFT, "answers are checked otherwise"),
        "loss": (Severity.BREAKING, "other tokens train"),
    }[part]


def _judge_template(a: Contract, b: Contract) -> tuple[Severity, str]:
    before, after = a.content["template"], b.content["template"]
    same_settings = all(before[key] == after[key] for key in ("arguments", "date"))
    if same_settings and parse_template(a.template.text) == parse_template(b.template.text):
        return Severity.COSMETIC, "only comments or spacing of the template changed"
    try:
        for vector in a.golden:
            if b.render_prompt(vector.conversation).ids != vector.ids:
                return Severity.BREAKING, f"the prompt of {vector.name!r} becomes other ids"
    except Refused as refusal:
        return Severity.BREAKING, f"the new template refuses a conversation: {refusal.what}"
    return Severity.SOFT, "every golden vector becomes the same ids; other conversations may not"


def _judge_tokenizer(before: Mapping[str, JSON], after: Mapping[str, JSON]) -> tuple[Severity, str]:
    names = before["special"].keys() | after["special"].keys()
    special = {name for name in names if before["special"].get(name) != after["special"].get(name)}
    if before["tokenizer_json_sha256"] == after["tokenizer_json_sha256"] and special <= {"pad_token", "unk_token"}:
        return Severity.COSMETIC, "padding never trains and is never sent"
    return Severity.BREAKING, "text becomes other ids"


def _judge_schema(before: JSON, after: JSON) -> tuple[Severity, str]:
    if _bare(before) == _bare(after):
        return Severity.COSMETIC, "only annotations of the schema changed"
    if before is None or after is None:
        return Severity.SOFT, "answers are held to a schema on one side only"
    if _is_wider(_bare(before), _bare(after)):
        return Severity.SOFT, "every answer that was valid still is"
    return Severity.BREAKING, "answers that were valid no longer are"


def _bare(schema: JSON) -> JSON:
    """Return a schema without annotations. Names of properties are kept, whatever they are."""
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    out = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "patternProperties", "dependentSchemas") and isinstance(value, Mapping):
            out[key] = {name: _bare(item) for name, item in value.items()}
        elif key not in _ANNOTATIONS:
            out[key] = value if key in ("enum", "const", "required") else _bare(value)
    return out


_UPPER_BOUNDS = ("maxLength", "maxItems", "maximum", "exclusiveMaximum", "maxProperties")
_LOWER_BOUNDS = ("minLength", "minItems", "minimum", "exclusiveMinimum", "minProperties")


def _is_wider(before: JSON, after: JSON) -> bool:
    """Whether all that `before` allows is certainly allowed by `after`; false where that is not plain to see."""
    if before == after or after is True or after == {}:
        return True
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return False
    dropped = set(before.get("properties") or ()) - set(after.get("properties") or ())
    if dropped and after.get("additionalProperties", True) is not True:
        return False
    return all(_keyword_is_wider(key, before, after) for key in after)


def _keyword_is_wider(key: str, before: Mapping[str, JSON], after: Mapping[str, JSON]) -> bool:
    old, new = before.get(key), after[key]
    if old == new:
        return True
    if key == "required":
        return set(new) <= set(old or ())
    if key in ("enum", "type"):
        if old is None:
            return False
        wide = new if isinstance(new, list) else [new]
        return all(item in wide for item in (old if isinstance(old, list) else [old]))
    if key in _UPPER_BOUNDS:
        return old is not None and new >= old
    if key in _LOWER_BOUNDS:
        return old is not None and new <= old
    if key == "properties":
        closed = before.get("additionalProperties") is False
        known = old or {}
        return all(_is_wider(known[name], item) if name in known else closed for name, item in new.items())
    if key in ("items", "additionalProperties"):
        return old is not None and _is_wider(old, new)
    return False
