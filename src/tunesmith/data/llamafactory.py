"""LLaMA-Factory's `dataset_info.json`, read as it is.

What lives here: one entry of that file becomes a path, a shape and a mapping of columns. What does not: reading the
data. Source: `data/README.md` of LLaMA-Factory 0.9, sections alpaca and sharegpt format.

    entry_of(Path("data"), "glaive_toolcall_en_demo")
    ->  Entry(path="data/glaive_toolcall_en_demo.json", columns={"messages": "conversations", "tools": "tools"})
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.files import read_records
from tunesmith.data.records import Record
from tunesmith.errors import DataError, nearest
from tunesmith.types import JSON

FILE_NAME = "dataset_info.json"

_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "label",
}
"""LLaMA-Factory's name of a column -> ours."""
_DEFAULTS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_MEDIA = ("images", "videos", "audios")
_READ_KEYS = ("file_name", "formatting", "ranking", "columns", "tags", "subset", "split", "folder")
"""Keys of a local entry; the last three only mean something on a hub."""
_FORMATTING = ("alpaca", "sharegpt", "openai")
_OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
"""Tags of `formatting: openai`, which its entry need not say."""
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one data set of the file says."""

    path: Path
    columns: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags that differ from ShareGPT's."""
    may_be_text: bool = False
    """Whether the entry names a prompt and nothing else: its records may be plain texts (pre-training)."""

    def is_plain_text(self, encoding: str) -> bool:
        """Whether the entry names only a prompt and its first record holds no answer."""
        if not self.may_be_text:
            return False
        first = next(read_records(self.path, encoding=encoding))
        return isinstance(first, Record) and self.columns["output"] not in first.value

    def prepare(self) -> Callable[[Mapping[str, JSON]], Mapping[str, JSON]] | None:
        """Return what puts a record's turns into ShareGPT's names, or `None` where they are in them already."""
        return _retagged(self.tags, [self.columns.get(name, name) for name in ("messages", "chosen", "rejected")])


def entry_of(folder: Path, name: str) -> Entry:
    """Read the entry `name`. Raises `DataError` where it is not there, not local, or needs what we do not read."""
    info = folder / FILE_NAME
    known = _read(info)
    if name not in known:
        local = [key for key, value in known.items() if "file_name" in value]
        raise DataError(
            f"{FILE_NAME} has no data set {name!r}",
            where=str(info),
            expected=f"for example {', '.join(nearest(name, local or known))}",
            found=f"{len(known)} data sets, {len(local)} of them local",
        )
    entry = known[name]
    where = f"{info}, {name}"
    if "file_name" not in entry:
        hub = next((value for key, value in entry.items() if key.endswith("_url")), "no file_name")
        raise DataError(
            f"the data set {name!r} lies on a hub",
            where=where,
            expected="an entry with file_name",
            found=str(hub),
            hint="name it under ingest.hub with a revision, or download it and point file_name at it",
        )
    _refuse_unknown(entry, name, where)
    columns = entry.get("columns", {})
    media = [column for column in _MEDIA if column in columns]
    unknown = [column for column in columns if column not in _COLUMNS and column not in _MEDIA]
    if media or unknown:
        raise DataError(
            f"the data set {name!r} has columns that are not read",
            where=where,
            expected=f"columns out of {', '.join(_COLUMNS)}",
            found=", ".join(media + unknown),
            hint="text only: images, videos and audios are not trained on" if media else None,
        )
    path = folder / entry["file_name"]
    if not path.exists():
        raise DataError(f"the file of the data set {name!r} is not there", where=where, found=str(path))
    return _entry(path, entry, columns)


def _refuse_unknown(entry: Mapping[str, JSON], name: str, where: str) -> None:
    """Raise `DataError` for what an entry says that is not done: rows would differ from LLaMA-Factory's unnoticed."""
    tags = entry.get("tags", {})
    unknown = [key for key in entry if key not in _READ_KEYS and not key.endswith("_url")]
    unknown += [f"tags.{tag}" for tag in tags if tag not in _TAGS] if isinstance(tags, Mapping) else ["tags"]
    if entry.get("formatting", "alpaca") not in _FORMATTING:
        unknown.append(f"formatting: {entry['formatting']}")
    if unknown:
        hint = "take it out to read all rows; ingest has no sampling" if "num_samples" in unknown else None
        raise DataError(
            f"the data set {name!r} says what is not read",
            where=where,
            expected=f"keys out of {', '.join(_READ_KEYS)}; formatting {', '.join(_FORMATTING)}",
            found=", ".join(unknown),
            hint=hint,
        )


def _read(info: Path) -> dict[str, dict[str, JSON]]:
    try:
        known = json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {FILE_NAME}", where=str(info), expected="LLaMA-Factory's JSON object", found=str(error)
        ) from error
    if not isinstance(known, dict) or not all(isinstance(value, dict) for value in known.values()):
        raise DataError(f"{FILE_NAME} is not LLaMA-Factory's", where=str(info), expected="an object of data sets")
    return known


def _entry(path: Path, entry: Mapping[str, JSON], columns: Mapping[str, str]) -> Entry:
    named = {_COLUMNS[column]: at for column, at in columns.items()}
    tags = {tag: said for tag, said in entry.get("tags", {}).items() if tag in _TAGS and said != _TAGS[tag]}
    if entry.get("formatting") == "openai":
        tags = {tag: said for tag, said in {**_OPENAI_TAGS, **entry.get("tags", {})}.items() if said != _TAGS[tag]}
        return Entry(path=path, columns={"messages": "messages", **named}, tags=tags)
    if entry.get("formatting", "alpaca") == "sharegpt":
        return Entry(path=path, columns={"messages": _DEFAULTS["messages"], **named}, tags=tags)
    defaults = {_COLUMNS[column]: at for column, at in _DEFAULTS.items() if column != "messages"}
    if set(columns) == {"prompt"}:
        return Entry(path=path, columns={**defaults, **named, "text": columns["prompt"]}, may_be_text=True)
    return Entry(path=path, columns={**defaults, **named})


def _retagged(tags: Mapping[str, str], fields: list[str]) -> Callable[[Mapping[str, JSON]], Mapping[str, JSON]] | None:
    if not tags:
        return None
    role_key, text_key = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    speakers = {tags.get(tag, usual): usual for tag, usual in _TAGS.items() if tag not in ("role_tag", "content_tag")}

    def turn(value: JSON) -> JSON:
        if isinstance(value, list):
            return [turn(item) for item in value]
        if not isinstance(value, Mapping) or role_key not in value or text_key not in value:
            return value
        rest = {key: item for key, item in value.items() if key not in (role_key, text_key)}
        return {**rest, "from": speakers.get(value[role_key], value[role_key]), "value": value[text_key]}

    def prepare(record: Mapping[str, JSON]) -> Mapping[str, JSON]:
        return {key: turn(value) if key in fields else value for key, value in record.items()}

    return prepare
