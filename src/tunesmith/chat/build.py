"""Building a contract: settings and a base's tokenizer become a folder that `load_contract` takes.

What lives here: deriving stop ids, checking that the settings can hold together, golden vectors, writing. What does
not: reading recipes (`stages.contract`), reading it back (`contract`).
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.chat.contract import Contract, load_contract
from tunesmith.chat.files import (
    CONTRACT_FILE,
    CRITERIA_FILE,
    GENERATION_FILE,
    GOLDEN_FILE,
    TOKENIZER_DIR,
    generation_config,
)
from tunesmith.chat.golden import MIN_VECTORS, GoldenVector, awkward_conversations, write_vectors
from tunesmith.chat.parts import (
    CONTRACT_FORMAT,
    Decoding,
    LossPolicy,
    System,
    SystemRule,
    contract_hash,
    decoding_json,
    loss_json,
    part_hashes,
    tools_text,
)
from tunesmith.chat.refusal import Refused
from tunesmith.chat.render import Renderer
from tunesmith.chat.schema import AnswerSchema
from tunesmith.chat.template import TEMPLATE_FILE, ChatTemplate
from tunesmith.chat.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from tunesmith.chat.toolcalls import ToolFormat
from tunesmith.errors import ContractError
from tunesmith.types import JSON, canonical_json, sha256_hex

_COPIED = (TOKENIZER_FILE, CONFIG_FILE, "special_tokens_map.json", "added_tokens.json")
"""Files of a base's folder that make up its tokenizer; the template is written from the contract's own text."""


def build_contract(
    out: Path,
    *,
    base: Path,
    template: ChatTemplate,
    template_arguments: Mapping[str, JSON],
    template_date: datetime.date | None,
    system: System,
    tools: Sequence[Mapping[str, JSON]],
    tool_format: ToolFormat | None = None,
    input_schema: Mapping[str, JSON] | None,
    input_render: str | None,
    output_schema: Mapping[str, JSON] | None,
    extra_stops: Sequence[str],
    decoding: Decoding,
    guardrails: Mapping[str, JSON],
    loss: LossPolicy,
    criteria: Sequence[str],
) -> Contract:
    """Write a contract's folder to `out` and return it as `load_contract` reads it back.

    `base` is a Hugging Face folder with the tokenizer. Raises `ContractError` where the parts do not fit each other.
    """
    tokenizer = Tokenizer.load(base)
    renderer = Renderer(template, {**tokenizer.special, **template_arguments}, tokenizer, template_date)
    _check_clock(renderer)
    _check_system(renderer, system)
    _check_tools(renderer, tools, tool_format)
    for schema in (input_schema, output_schema):
        if schema is not None:
            AnswerSchema(schema)
    if input_render is not None:
        ChatTemplate(input_render, name="input_render")
    parts: dict[str, JSON] = {
        "system": {"rule": system.rule.value, "text": system.text},
        "template": {
            "sha256": template.sha256,
            "arguments": dict(template_arguments),
            "date": template_date.isoformat() if template_date and renderer.traits.reads_clock else None,
        },
        "tokenizer": tokenizer.describe(),
        "tools": {"text": tools_text(tools), "format": tool_format.value if tool_format else None},
        "input": {"schema": input_schema, "render": input_render},
        "output": {"schema": output_schema},
        "stop": _find_stop(renderer, tokenizer, extra_stops),
        "decoding": decoding_json(decoding),
        "guardrails": dict(guardrails),
        "loss": loss_json(loss),
        "golden": {"sha256": "", "count": 0},
    }
    folder = out / TOKENIZER_DIR
    folder.mkdir(parents=True, exist_ok=True)
    _copy_tokenizer(base, folder)
    (folder / TEMPLATE_FILE).write_bytes(template.text.encode())
    config = generation_config(parts["decoding"], parts["stop"])
    (folder / GENERATION_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    vectors = _pin(_draft(parts, tokenizer, template, criteria))
    golden = write_vectors(vectors)
    parts["golden"] = {"sha256": sha256_hex(golden), "count": len(vectors)}
    (out / GOLDEN_FILE).write_text(golden, "utf-8")
    criteria_text = json.dumps(list(criteria), ensure_ascii=False, indent=2) + "\n"
    (out / CRITERIA_FILE).write_text(criteria_text, "utf-8")
    hashes = part_hashes(parts)
    document = {
        "format": CONTRACT_FORMAT,
        "parts": parts,
        "hashes": hashes,
        "sha256": contract_hash(hashes),
        "criteria_sha256": sha256_hex(criteria_text),
    }
    (out / CONTRACT_FILE).write_text(canonical_json(document) + "\n", "utf-8")
    return load_contract(out)


def _draft(
    parts: Mapping[str, JSON], tokenizer: Tokenizer, template: ChatTemplate, criteria: Sequence[str]
) -> Contract:
    """A contract without golden vectors, to make them with."""
    return Contract(
        sha256="", parts={}, content=parts, criteria=tuple(criteria), tokenizer=tokenizer, template=template
    )


def _pin(contract: Contract) -> list[GoldenVector]:
    """Make golden vectors of the awkward conversations that the template takes."""
    stops = contract.content["stop"]["texts"]
    control = [*stops, *(item for item in contract.renderer.guard.strings if item not in stops)]
    vectors: list[GoldenVector] = []
    refused: list[str] = []
    for name, conversation in awkward_conversations(control, system=contract.system).items():
        try:
            ids = contract.render_prompt(conversation).ids
        except Refused as refusal:
            refused.append(f"{name}: {refusal.what}")
            continue
        messages = tuple(message.to_json() for message in conversation.messages)
        vectors.append(GoldenVector(name=name, messages=messages, ids=ids))
    if len(vectors) < MIN_VECTORS:
        raise ContractError(
            "the chat template refuses nearly every conversation, so nothing can be promised about it",
            where=contract.template.name,
            expected=f"at least {MIN_VECTORS} golden vectors",
            found="; ".join(refused)[:300],
        )
    return vectors


def _find_stop(renderer: Renderer, tokenizer: Tokenizer, extra: Sequence[str]) -> dict[str, JSON]:
    """Return the tokens that end an answer: those of the template first, then the base's own end, then the recipe's."""
    traits = renderer.traits
    derived = [*traits.stops, *(stop for stop in (traits.implied_stop, traits.implied_call_stop) if stop)]
    if not derived:
        raise ContractError(
            "nothing in the chat template ends an assistant turn: the model would never learn to stop",
            where=renderer.template.name,
            expected="a control token after the answer",
            hint="use a template that writes eos_token after each answer, for example the family alpaca",
        )
    eos = tokenizer.special.get("eos_token")
    texts = [*derived, *([eos] if eos else []), *extra]
    unique = list(dict.fromkeys(texts))
    ids = []
    for text in unique:
        token_id = tokenizer.id_of(text)
        if token_id is None or tokenizer.encode(text).ids != [token_id]:
            raise ContractError(
                "a stop is not one token of this tokenizer",
                where=renderer.template.name,
                found=f"{text!r} is {tokenizer.encode(text).ids}",
                hint="choose a template that was made for this base, or add the token and train its embedding",
            )
        ids.append(token_id)
    return {"ids": ids, "texts": unique}


def _check_clock(renderer: Renderer) -> None:
    if renderer.traits.reads_clock and renderer.date is None:
        raise ContractError(
            "the chat template prints today's date, so prompts would change from day to day",
            where=renderer.template.name,
            hint="set template_date in the recipe's contract, for example template_date: 2025-01-01",
        )


def _check_system(renderer: Renderer, system: System) -> None:
    traits = renderer.traits
    if system.rule is SystemRule.TEXT and not traits.takes_system:
        raise ContractError(
            "the chat template takes no system prompt",
            where=renderer.template.name,
            hint="put the instructions into the user message (input_render), or choose another template",
        )
    if system.rule is SystemRule.NONE and traits.default_system is not None:
        raise ContractError(
            "the contract says that there is no system prompt, and the chat template injects one",
            where=renderer.template.name,
            found=repr(traits.default_system)[:80],
            hint="set system to a text, leave system out to accept the template's, or choose another template",
        )


def _check_tools(renderer: Renderer, tools: Sequence[Mapping[str, JSON]], tool_format: ToolFormat | None) -> None:
    traits = renderer.traits
    if tool_format is not None and traits.renders_tools:
        raise ContractError(
            "the chat template renders tools itself",
            where=renderer.template.name,
            found=f"tool_format: {tool_format.value}",
            hint="remove tool_format",
        )
    if tools and tool_format is None and not traits.renders_tools:
        raise ContractError(
            "the chat template leaves out the contract's tools",
            where=renderer.template.name,
            hint="set tool_format (for example hermes) to write them into the messages, or choose another template",
        )


def _copy_tokenizer(base: Path, folder: Path) -> None:
    for name in _COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    config_path = folder / CONFIG_FILE
    config = json.loads(config_path.read_text("utf-8")) if config_path.is_file() else {}
    if config.pop("chat_template", None) is not None:
        config_path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", "utf-8")
