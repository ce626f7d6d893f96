"""Control strings in content: found, and kept apart from the control strings that the template writes.

What lives here: which strings of a vocabulary are control strings, and a stand-in for those that occur in content.
What does not: encoding (`tokenizer.encode_mixed`).

A control string in content is replaced by private-use characters, one for one, before the template runs. The rendering
then shows, position by position, what the template wrote and what it was given; the characters are put back after. A
template that acts on such a string renders differently with and without stand-ins, and the conversation is refused.

    guard = Guard.for_tokenizer(tokenizer, template)
    masked = guard.mask(messages, tools)        # None where no content holds a control string
    masked.restore(rendered)                    # the text, and the ranges that are content's control strings
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.template import ChatTemplate, RawMessage
from tunesmith.chat.tokenizer import Tokenizer
from tunesmith.types import JSON

ASSISTANT_MARKUP = frozenset(
    ("<think>", "</think>", "<tool_call>", "</tool_call>", "[THINK]", "[/THINK]", "<|tool_call_start|>")
    + ("<|tool_call_end|>",)
)
"""Markup that an assistant's own content may carry: where the vocabulary has it, it is what the model should write.
In every other role it is text."""

PRIVATE_BASES = (0x100000, 0x102000, 0x104000, 0x106000, 0x108000)
"""Starts of private-use blocks for stand-ins; the first block that the conversation itself does not use is taken."""
_BLOCK = 0x2000

BRACKETED = re.compile(r"<[|｜]?[^<>\s\"'|｜]{1,60}[|｜]?>|\[\|[^\[\]\s|]{1,60}\|\]|\[/?[A-Z][A-Z_]*\]")
"""What control strings look like, for templates without a tokenizer."""

_SKIPPED_KEYS = frozenset(("role", "type"))


@dataclass(frozen=True, slots=True)
class Masked:
    """A conversation whose control strings have stand-ins."""

    messages: list[dict[str, JSON]]
    tools: list[dict[str, JSON]]
    originals: dict[int, str]
    """Code point of a stand-in -> the character it stands for."""
    strings: tuple[str, ...]
    """The control strings that were found."""
    pattern: re.Pattern[str]

    def restore(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """Return the text with every stand-in put back, and the ranges in which they stood."""
        return text.translate(self.originals), [match.span() for match in self.pattern.finditer(text)]


@dataclass(frozen=True, slots=True)
class MaskedText:
    """A text whose control strings have stand-ins."""

    text: str
    originals: dict[int, str]

    def restore(self, text: str) -> str:
        """Return a piece of the text with every stand-in put back."""
        return text.translate(self.originals)


@dataclass(frozen=True, slots=True)
class Guard:
    """Knows the control strings of one tokenizer and template."""

    strings: tuple[str, ...]
    pattern: re.Pattern[str]
    assistant_pattern: re.Pattern[str]
    """The same without the markup that assistant content may carry."""

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, template: ChatTemplate) -> Guard:
        """Take special tokens, and other added tokens that the template's text contains.

        Whitespace tokens and tokens that the template does not use (Gemma's `<table>`) are ordinary text, as in
        transformers' `sanitize_control_tokens`.
        """
        literals = template.literals
        strings = [
            token.content
            for token in tokenizer.added
            if token.content.strip() and (token.special or token.content in literals)
        ]
        plain = {token.content for token in tokenizer.added if not token.special}
        return cls.of(strings, allowed_to_assistant=plain & ASSISTANT_MARKUP)

    @classmethod
    def for_template(cls, template: ChatTemplate, variables: Mapping[str, JSON]) -> Guard:
        """Take what looks like a control string in a template's text, where there is no tokenizer to ask."""
        strings = {match.group() for match in BRACKETED.finditer(template.literals)}
        strings |= {
            value
            for key, value in variables.items()
            if key.endswith("_token") and isinstance(value, str) and value.strip()
        }
        return cls.of(sorted(strings), allowed_to_assistant=ASSISTANT_MARKUP)

    @classmethod
    def of(cls, strings: Sequence[str], *, allowed_to_assistant: frozenset[str] | set[str]) -> Guard:
        """Build from a list of control strings."""
        return cls(
            strings=tuple(strings),
            pattern=_alternation(strings),
            assistant_pattern=_alternation([item for item in strings if item not in allowed_to_assistant]),
        )

    def mask(self, messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]]) -> Masked | None:
        """Return the conversation with stand-ins, or `None` where no string of it holds a control string.

        Raises `Refused` where every block of private-use characters occurs in the conversation already.
        """
        found: set[str] = set()
        for message in messages:
            self._collect(message, self._pattern_of(message), found)
        for tool in tools:
            self._collect(tool, self.pattern, found)
        if not found:
            return None
        table = _stand_ins(found, json.dumps([list(messages), list(tools)], ensure_ascii=False))
        stand_ins = "".join(table.values())
        return Masked(
            messages=[dict(_replace(message, self._pattern_of(message), table)) for message in messages],
            tools=[dict(_replace(tool, self.pattern, table)) for tool in tools],
            originals={ord(stand_in): character for character, stand_in in table.items()},
            strings=tuple(sorted(found)),
            pattern=re.compile(f"[{re.escape(stand_ins)}]+"),
        )

    def mask_text(self, text: str, *, keep: Sequence[tuple[int, int]]) -> MaskedText:
        """Return a text with stand-ins for its control strings, those in the ranges of `keep` left alone."""
        found = [match for match in self.pattern.finditer(text) if match.span() not in keep]
        if not found:
            return MaskedText(text, {})
        table = _stand_ins({match.group() for match in found}, text)
        pieces: list[str] = []
        position = 0
        for match in found:
            pieces += (text[position : match.start()], *(table[character] for character in match.group()))
            position = match.end()
        pieces.append(text[position:])
        return MaskedText("".join(pieces), {ord(stand_in): character for character, stand_in in table.items()})

    def _pattern_of(self, message: RawMessage) -> re.Pattern[str]:
        return self.assistant_pattern if message.get("role") == "assistant" else self.pattern

    def _collect(self, value: JSON, pattern: re.Pattern[str], found: set[str]) -> None:
        if isinstance(value, str):
            found.update(pattern.findall(value))
        elif isinstance(value, Mapping):
            for key, item in value.items():
                if key not in _SKIPPED_KEYS:
                    self._collect(key, pattern, found)
                    self._collect(item, pattern, found)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._collect(item, pattern, found)


def _alternation(strings: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _replace(value: JSON, pattern: re.Pattern[str], table: Mapping[str, str]) -> JSON:
    if isinstance(value, str):
        return pattern.sub(lambda match: "".join(table[character] for character in match.group()), value)
    if isinstance(value, Mapping):
        return {
            (key if key in _SKIPPED_KEYS else _replace(key, pattern, table)): (
                item if key in _SKIPPED_KEYS else _replace(item, pattern, table)
            )
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_replace(item, pattern, table) for item in value]
    return value


def _stand_ins(strings: set[str], text: str) -> dict[str, str]:
    """Return a private-use character that the text does not have for each character of the strings."""
    characters = sorted({character for item in strings for character in item})
    for base in PRIVATE_BASES:
        if not re.search(f"[{chr(base)}-{chr(base + _BLOCK - 1)}]", text):
            return {character: chr(base + index) for index, character in enumerate(characters)}
    raise Refused(
        RefusalKind.CONTROL_STRING,
        "the text holds control strings and uses every private-use block that could stand in for them",
        hint="remove the characters above U+100000 from the content",
    )
