"""Import a config of LLaMA-Factory, axolotl or TRL: the recipe that means the same, and what has no counterpart.

    made = import_config("llama3_lora_sft.yaml", "llama3.yaml")
    made.lost        # keys whose wish is not granted here, with the reason

What lives here: telling the tool, the recipe's text. What does not: going through the keys (`api.config_reader`), and
what they mean (`api.foreign_configs`). Every key of the config ends in exactly one of moved, always, lost and unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tunesmith.api.config_reader import ConfigReader, Fate
from tunesmith.api.foreign_configs import TOOLS, Tool
from tunesmith.core.recipe import parse_recipe
from tunesmith.core.stage import Stage
from tunesmith.errors import RecipeError
from tunesmith.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedConfig:
    """A recipe made of another tool's config."""

    tool: str
    text: str
    """The recipe, YAML."""
    moved: tuple[Fate, ...]
    always: tuple[Fate, ...]
    """Keys that need no counterpart."""
    lost: tuple[Fate, ...]
    """Keys whose wish is not granted."""
    unknown: tuple[Fate, ...]
    """Keys that are in no table: check them by hand."""


def import_config(path: Path, stages: Mapping[str, Stage], *, folder: Path) -> ImportedConfig:
    """Return the recipe of a config, checked as a recipe of `folder` would be.

    Raises `RecipeError` for a file that is no config of a known tool, or trains something that is not supervised
    fine-tuning of a decoder.
    """
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError("cannot read the config", where=str(path), found=str(error).splitlines()[0]) from error
    if not isinstance(config, dict):
        raise RecipeError("not a config: no mapping of keys", where=str(path), found=type(config).__name__)
    tool = tool_of(config, where=str(path))
    reader = ConfigReader(tool, config, where=str(path), folder=folder)
    recipe = reader.recipe(path.stem)
    text = _text(recipe, tool, path.name)
    parse_recipe(text, stages, path=(folder / "imported.yaml").absolute())
    return ImportedConfig(
        tool=tool.name,
        text=text,
        moved=tuple(reader.moved),
        always=tuple(reader.always),
        lost=tuple(reader.lost),
        unknown=tuple(reader.unknown),
    )


def tool_of(config: Mapping[str, JSON], *, where: str) -> Tool:
    """Return the tool whose telling keys a config has most of."""
    counts = [(sum(sign in config for sign in tool.signs), tool) for tool in TOOLS]
    best, tool = max(counts, key=lambda pair: pair[0])
    if best == 0 or sum(count == best for count, _ in counts) > 1:
        raise RecipeError(
            "cannot tell which tool this config is for",
            where=where,
            expected=" or ".join(f"{known.name} ({', '.join(known.signs[:3])} ...)" for known in TOOLS),
            found=", ".join(sorted(map(str, config))[:8]),
        )
    return tool


def _text(recipe: Mapping[str, JSON], tool: Tool, origin: str) -> str:
    head = (
        f"# Imported from {origin}, a config of {tool.name}. `tunesmith plan` says what would run.\n"
        "# Licences of the rows are not known to that tool: say them under ingest.sources, then remove allow_unknown.\n"
    )
    return head + yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
