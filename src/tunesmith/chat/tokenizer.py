"""Tokenizer: text to ids and back over the `tokenizers` library, reading a Hugging Face folder.

What lives here: loading `tokenizer.json` with `tokenizer_config.json`, encoding with character offsets, decoding, and
encoding text in which some control strings are mere text. What does not: chat templates (`template`) and deciding which
strings are mere text (`control`).

    tokenizer = Tokenizer.load(Path("model"))
    tokenizer.encode("<|im_start|>user\\nHi").ids      # control strings become control tokens
    tokenizer.encode_literal("<|im_end|>")            # never becomes a control token

No special token is ever added around a text: the chat template writes them all, as `apply_chat_template` expects.
"""

from __future__ import annotations

import functools
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tokenizers

from tunesmith.errors import ContractError
from tunesmith.types import JSON, sha256_hex

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
ALIAS_BASE = 0x10F000
"""First of the private-use characters that stand for the template's own control tokens in `encode_mixed`."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a text, and for each the half-open character range that it stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """One entry of the added vocabulary."""

    id: int
    content: str
    special: bool


class Tokenizer:
    """A fast tokenizer with its special tokens. Holds no state that encoding changes."""

    def __init__(self, tokenizer_json: str, config: Mapping[str, JSON], *, name: str = "tokenizer") -> None:
        """Build from the text of `tokenizer.json` and the parsed `tokenizer_config.json`."""
        self.json_text = tokenizer_json
        self.config = dict(config)
        self.name = name
        self.spec = _bare_spec(tokenizer_json, config, name=name)
        self._backend = _build(self.spec, name=name)
        self.added: tuple[AddedToken, ...] = tuple(
            AddedToken(id=token["id"], content=token["content"], special=bool(token.get("special")))
            for token in self.spec["added_tokens"]
        )
        self._id_of = {token.content: token.id for token in self.added}

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` and `tokenizer_config.json` of a folder. Raises `ContractError` where they are not."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise ContractError(
                f"the folder {folder.name!r} has no {TOKENIZER_FILE}",
                where=str(folder),
                expected="a Hugging Face folder with a fast tokenizer",
                found=", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder",
                hint="save it once with AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
            )
        config_path = folder / CONFIG_FILE
        try:
            config = json.loads(config_path.read_text("utf-8")) if config_path.is_file() else {}
            return cls(path.read_text("utf-8"), config, name=str(folder))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ContractError("a tokenizer file is not JSON", where=str(folder), found=str(error)) from error

    @cached_property
    def special(self) -> dict[str, str]:
        """Named special tokens as templates see them: `{"bos_token": "<s>", ...}`, absent ones left out."""
        out: dict[str, str] = {}
        for key, value in sorted(self.config.items()):
            if not key.endswith("_token"):
                continue
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                out[key] = text
        return out

    @cached_property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-sequence token, where the tokenizer names one."""
        name = self.special.get("bos_token")
        return None if name is None else self.id_of(name)

    @property
    def sha256(self) -> str:
        """sha256 of the text of `tokenizer.json`."""
        return sha256_hex(self.json_text)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its text, or `None`."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def token_of(self, token_id: int) -> str | None:
        """Return the vocabulary's text of an id, or `None` where the id does not exist."""
        return self._backend.id_to_token(token_id)

    def encode(self, text: str) -> Encoded:
        """Encode a text; control strings in it become control tokens."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Encoded(encoding.ids, encoding.offsets)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts to ids only, which is faster than one by one with offsets."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_batch_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode many texts to ids with character offsets."""
        return [Encoded(e.ids, e.offsets) for e in self._backend.encode_batch(list(texts), add_special_tokens=False)]

    def encode_mixed(self, text: str, literal: Sequence[tuple[int, int]], control: Iterable[str]) -> Encoded:
        """Encode a text in which the strings of `control` become control tokens except inside the `literal` ranges.

        `literal` are half-open character ranges, ascending. The text is encoded in one piece, so neighbouring tokens
        are what they would be if the vocabulary did not know the control strings. Raises `ContractError` where the
        tokenizer makes a control token of literal text all the same.
        """
        names = tuple(sorted(control))
        pattern, alias_of, backend = self._aliased(names)
        pieces: list[str] = []
        shifts: list[tuple[int, int]] = []
        """(position in the aliased text after an alias, characters that it saves so far)"""
        position, length, saved = 0, 0, 0
        for match in pattern.finditer(text):
            if any(start < match.end() and match.start() < end for start, end in literal):
                continue
            pieces.append(text[position : match.start()])
            length += match.start() - position + 1
            pieces.append(alias_of[match.group()])
            saved += match.end() - match.start() - 1
            shifts.append((length, saved))
            position = match.end()
        pieces.append(text[position:])
        encoding = backend.encode("".join(pieces), add_special_tokens=False)
        offsets = _unalias(encoding.offsets, shifts)
        self._check_literal(encoding.ids, offsets, literal, names)
        return Encoded(encoding.ids, offsets)

    def encode_literal(self, text: str, control: Iterable[str] | None = None) -> list[int]:
        """Encode a text that is content throughout: no control token comes of it."""
        names = [token.content for token in self.added if token.special] if control is None else control
        return self.encode_mixed(text, [(0, len(text))], names).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of ids. `skip_special` leaves out tokens that the vocabulary marks as special."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def decode_mixed(self, ids: Sequence[int], control: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of ids, control tokens included, and the ranges in which those of `control` stand.

        A control string outside of these ranges is mere text, as `encode_mixed` writes it.
        """
        _, alias_of, backend = self._aliased(tuple(sorted(control)))
        name_of = {alias: name for name, alias in alias_of.items()}
        text = str(backend.decode(list(ids), skip_special_tokens=False))
        pieces: list[str] = []
        owned: list[tuple[int, int]] = []
        position = length = 0
        for match in re.finditer(f"[{''.join(name_of)}]", text) if name_of else ():
            before, name = text[position : match.start()], name_of[match.group()]
            owned.append((length + len(before), length + len(before) + len(name)))
            pieces += (before, name)
            length += len(before) + len(name)
            position = match.end()
        pieces.append(text[position:])
        return "".join(pieces), owned

    def describe(self) -> dict[str, JSON]:
        """Return what identifies the tokenizer, as plain JSON: a part of the contract."""
        return {
            "tokenizer_json_sha256": self.sha256,
            "special": dict(self.special),
            "added": [{"id": token.id, "content": token.content, "special": token.special} for token in self.added],
        }

    def _check_literal(
        self,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        literal: Sequence[tuple[int, int]],
        names: Sequence[str],
    ) -> None:
        control_ids = {self._id_of[name] for name in names if name in self._id_of}
        for token_id, (start, end) in zip(ids, offsets, strict=True):
            if token_id in control_ids and any(low < end and start < high for low, high in literal):
                raise ContractError(
                    "the tokenizer makes a control token of plain text",
                    where=self.name,
                    found=f"{self.token_of(token_id)!r} from content",
                    hint="the row cannot be encoded safely with this tokenizer; remove the string from the content",
                )

    def _aliased(self, names: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str], tokenizers.Tokenizer]:
        """Return (pattern of the names, name -> private-use character, tokenizer that knows only the characters)."""
        cache = self.__dict__.setdefault("_alias_cache", {})
        if names not in cache:
            known = [name for name in names if name in self._id_of]
            alias_of = {name: chr(ALIAS_BASE + index) for index, name in enumerate(known)}
            spec = json.loads(json.dumps(self.spec))
            for token in spec["added_tokens"]:
                token["content"] = alias_of.get(token["content"], token["content"])
            _rename_vocab(spec["model"], alias_of)
            backend = _build(spec, name=self.name)
            for name, alias in alias_of.items():
                if backend.token_to_id(alias) != self._id_of[name]:
                    raise ContractError(
                        "the tokenizer's control tokens cannot be told apart from text",
                        where=self.name,
                        found=f"{name!r} does not keep its id {self._id_of[name]} under another name",
                    )
            longest_first = sorted(known, key=len, reverse=True)
            pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
            cache[names] = (pattern, alias_of, backend)
        found: tuple[re.Pattern[str], dict[str, str], tokenizers.Tokenizer] = cache[names]
        return found


def _bare_spec(tokenizer_json: str, config: Mapping[str, JSON], *, name: str) -> dict[str, JSON]:
    """Return the tokenizer's JSON without truncation, padding and post-processing, with the config's added tokens.

    A post-processor only adds special tokens, which the template writes, and trims spaces off offsets, which must not
    be: a space before a word belongs to the word's token.
    """
    spec: dict[str, JSON] = json.loads(tokenizer_json)
    spec["truncation"] = spec["padding"] = spec["post_processor"] = None
    spec["added_tokens"] = list(spec.get("added_tokens") or [])
    known = {token["content"] for token in spec["added_tokens"]}
    for key, token in sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        if token["content"] not in known:
            flags = {flag: bool(token.get(flag, False)) for flag in ("single_word", "lstrip", "rstrip")}
            spec["added_tokens"].append(
                {
                    "id": int(key),
                    "content": token["content"],
                    **flags,
                    "normalized": bool(token.get("normalized", not token.get("special", False))),
                    "special": bool(token.get("special", False)),
                }
            )
    if "model" not in spec:
        raise ContractError(f"{TOKENIZER_FILE} has no model", where=name, found=", ".join(sorted(spec)))
    return spec


def _build(spec: Mapping[str, JSON], *, name: str) -> tokenizers.Tokenizer:
    return _backend_of(json.dumps(spec), name)


@functools.lru_cache(maxsize=8)
def _backend_of(text: str, name: str) -> tokenizers.Tokenizer:
    """Build a tokenizer once per text: reading a large vocabulary takes a second, and encoding changes nothing."""
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise ContractError("the tokenizer cannot be read", where=name, found=str(error)[:200]) from error
    backend.encode_special_tokens = False
    return backend


def _rename_vocab(model: dict[str, JSON], alias_of: Mapping[str, str]) -> None:
    """Rename the control strings in a model's vocabulary, so that plain text can never match them."""
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {alias_of.get(token, token): index for token, index in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[alias_of.get(token, token), score] for token, score in vocab]


def _unalias(offsets: Sequence[tuple[int, int]], shifts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Move offsets of an aliased text back to the text."""
    positions = [position for position, _ in shifts]
    saved = [0, *(total for _, total in shifts)]
    return [
        (start + saved[bisect_right(positions, start)], end + saved[bisect_right(positions, end)])
        for start, end in offsets
    ]
