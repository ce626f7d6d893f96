"""Rendering: messages to text and ids, with content kept apart from the template's own control strings.

What lives here: checking and shaping messages for a template, rendering a prompt or a whole conversation, encoding the
text. What does not: which tokens train (`mask`), system prompts and schemas (`contract`).

    renderer = Renderer(template, variables=tokenizer.special, tokenizer=tokenizer)
    renderer.prompt(messages).ids        # what a server sends to the model
    renderer.full(messages).text         # what transformers' apply_chat_template returns
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tunesmith.chat.control import Guard, Masked
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.template import ChatTemplate, RawMessage, normalise
from tunesmith.chat.tokenizer import Encoded, Tokenizer
from tunesmith.chat.traits import ArgumentsForm, ContentForm, Traits, as_parts, traits_of
from tunesmith.errors import ContractError
from tunesmith.types import JSON

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Halves of characters, which JSON can spell and UTF-8 cannot."""
TRAINING_KEYS = frozenset(("train", "weight", "spans"))
"""Keys of a message that say how it trains; templates never see them."""


@dataclass(frozen=True, slots=True)
class Text:
    """A rendered text. `literal` are the character ranges in which content spells a control string."""

    plain: str
    guarded: str
    """The same characters, with stand-ins where `literal` points."""
    literal: tuple[tuple[int, int], ...] = ()

    def cut(self, start: int, end: int) -> Text:
        """Return the text between two positions."""
        kept = tuple(
            (max(low, start) - start, min(high, end) - start)
            for low, high in self.literal
            if low < end and start < high
        )
        return Text(self.plain[start:end], self.guarded[start:end], kept)

    def startswith(self, other: Text) -> bool:
        """Whether the other text is a prefix, character by character and owner by owner."""
        return self.guarded.startswith(other.guarded)

    def __add__(self, other: Text) -> Text:
        moved = tuple((low + len(self.plain), high + len(self.plain)) for low, high in other.literal)
        return Text(self.plain + other.plain, self.guarded + other.guarded, self.literal + moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A rendered conversation; `ids` are empty where there is no tokenizer."""

    text: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Shaped:
    """Messages and tools as the template takes them, once as they are and once with stand-ins."""

    messages: list[dict[str, JSON]]
    tools: list[dict[str, JSON]]
    masked: Masked | None


@dataclass(frozen=True)
class Renderer:
    """A template with its variables, and a tokenizer where there is one."""

    template: ChatTemplate
    variables: Mapping[str, JSON] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    date: datetime.date | None = None
    """What templates see as today; the machine's clock where it is `None`."""

    @cached_property
    def guard(self) -> Guard:
        """The control strings of the tokenizer, or of the template where there is no tokenizer."""
        if self.tokenizer is None:
            return Guard.for_template(self.template, self.variables)
        return Guard.for_tokenizer(self.tokenizer, self.template)

    @cached_property
    def traits(self) -> Traits:
        """What the template does."""
        return traits_of(self.template, self.variables, self.guard)

    @cached_property
    def now(self) -> Callable[[str], str] | None:
        """The clock for templates."""
        date = self.date
        return None if date is None else lambda pattern: date.strftime(pattern)

    def shape(self, messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]] = ()) -> Shaped:
        """Check messages and give them the form that the template needs. Raises `Refused`."""
        shaped = [self._shape_message(message, index) for index, message in enumerate(normalise(messages))]
        if not shaped:
            raise Refused(RefusalKind.BAD_INPUT, "the conversation has no messages")
        if tools and not self.traits.renders_tools:
            raise Refused(
                RefusalKind.TOOLS_DROPPED,
                "the chat template leaves out the tools of this conversation",
                where=self.template.name,
                found=f"{len(tools)} tools",
                hint="choose a template that renders tools, or drop the tools from the row",
            )
        plain_tools = [dict(tool) for tool in tools]
        return Shaped(shaped, plain_tools, self.guard.mask(shaped, plain_tools))

    def text(self, shaped: Shaped, count: int, *, prompt: bool) -> Text:
        """Render the first `count` messages. `prompt` adds the generation prompt."""
        plain = self._render(shaped.messages[:count], shaped.tools, prompt=prompt)
        if not plain.isascii() and SURROGATE.search(plain):
            raise Refused(
                RefusalKind.BAD_INPUT,
                "the conversation holds half a character (a lone surrogate), which no tokenizer takes",
                hint="decode the source as UTF-8, or remove the broken character",
            )
        if shaped.masked is None:
            return Text(plain, plain)
        guarded = self._render(shaped.masked.messages[:count], shaped.masked.tools, prompt=prompt)
        restored, literal = shaped.masked.restore(guarded)
        if restored != plain:
            raise Refused(
                RefusalKind.CONTROL_STRING,
                "the chat template acts on a control string inside content",
                where=self.template.name,
                found=", ".join(shaped.masked.strings),
                hint="remove the string from the content; it cannot be kept apart from the template's own",
            )
        return Text(plain, guarded, tuple(literal))

    def encode(self, text: Text) -> Encoded:
        """Encode a rendered text: only what the template wrote becomes control tokens."""
        assert self.tokenizer is not None, "encode needs a tokenizer"
        if text.literal:
            return self.tokenizer.encode_mixed(text.plain, text.literal, self.guard.strings)
        return self.tokenizer.encode(text.plain)

    def prompt(self, messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]] = ()) -> Rendered:
        """Return what a server sends to the model for these messages."""
        shaped = self.shape(messages, tools)
        return self._rendered(shaped, prompt=True)

    def full(self, messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]] = ()) -> Rendered:
        """Return the rendering of a whole conversation, as transformers' `apply_chat_template` returns it."""
        shaped = self.shape(messages, tools)
        return self._rendered(shaped, prompt=False)

    def check_bos(self, ids: Sequence[int]) -> None:
        """Raise `Refused` where a text starts with two beginning-of-sequence tokens."""
        assert self.tokenizer is not None
        bos = self.tokenizer.bos_id
        if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos:
            raise Refused(
                RefusalKind.TWO_BOS,
                "the rendering starts with two beginning-of-sequence tokens",
                where=self.template.name,
                hint="the template writes it once; remove it from the content or from the template's variables",
            )

    def check_nothing_dropped(self, shaped: Shaped, text: str, *, upto: int) -> None:
        """Raise `Refused` where a message before `upto` that is not the assistant's is missing from the text."""
        for index, message in enumerate(shaped.messages[:upto]):
            if message["role"] == "assistant":
                continue
            for said in _texts(message.get("content")):
                if said.strip() not in text and not _says(text, said):
                    raise Refused(
                        RefusalKind.CONTENT_DROPPED,
                        "the chat template leaves out a message",
                        where=f"{self.template.name}, message {index + 1} ({message['role']})",
                        found=said.strip()[:80],
                        hint="choose a template that renders this role, or drop the row",
                    )

    def _rendered(self, shaped: Shaped, *, prompt: bool) -> Rendered:
        text = self.text(shaped, len(shaped.messages), prompt=prompt)
        if self.tokenizer is None:
            return Rendered(text=text.plain)
        ids = self.encode(text).ids
        self.check_bos(ids)
        return Rendered(text=text.plain, ids=tuple(ids))

    def _render(self, messages: Sequence[RawMessage], tools: Sequence[Mapping[str, JSON]], *, prompt: bool) -> str:
        return self.template.render(
            messages, tools=tools, add_generation_prompt=prompt, variables=self.variables, now=self.now
        )

    def _shape_message(self, message: dict[str, JSON], index: int) -> dict[str, JSON]:
        where = f"message {index + 1}"
        role = message.get("role")
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise Refused(RefusalKind.BAD_INPUT, "a message has no role", where=where, found=repr(role)[:80])
        shaped = {key: value for key, value in message.items() if key not in TRAINING_KEYS}
        content = shaped.get("content")
        if isinstance(content, list):
            shaped["content"] = _text_parts(content, where)
            if self.traits.content is ContentForm.STRING:
                shaped["content"] = "".join(part["text"] for part in shaped["content"])
        elif content is not None and not isinstance(content, str):
            raise Refused(
                RefusalKind.BAD_INPUT, "a message's content is not text", where=where, found=type(content).__name__
            )
        elif self.traits.content is ContentForm.PARTS:
            shaped = as_parts(shaped)
        if shaped.get("tool_calls") in ([], ()):
            del shaped["tool_calls"]  # no calls, as Arrow spells it; templates ask whether the key is there
        if shaped.get("tool_calls"):
            if not isinstance(shaped["tool_calls"], list):
                found = type(shaped["tool_calls"]).__name__
                raise Refused(RefusalKind.BAD_INPUT, "tool_calls must be a list", where=where, found=found)
            shaped["tool_calls"] = [self._shape_call(call, where) for call in shaped["tool_calls"]]
            if content is None and self.traits.calls_need_content:
                shaped["content"] = ""
        return shaped

    def _shape_call(self, call: Mapping[str, JSON], where: str) -> dict[str, JSON]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or "name" not in function or "arguments" not in function:
            raise Refused(
                RefusalKind.BAD_INPUT,
                "a tool call must be an object with a name and arguments",
                where=where,
                found=repr(call)[:80],
            )
        form, arguments = self.traits.arguments, function["arguments"]
        if form is ArgumentsForm.NONE:
            raise Refused(
                RefusalKind.TOOL_CALLS_DROPPED,
                "the chat template leaves out tool calls",
                where=f"{self.template.name}, {where}",
                found=str(function["name"]),
                hint="choose a template that renders tool calls, or write the call into the content",
            )
        if isinstance(arguments, str):
            parsed = _parse_arguments(arguments, where)
            arguments = parsed if form is ArgumentsForm.OBJECT else arguments
        elif form is ArgumentsForm.STRING:
            arguments = json.dumps(arguments, ensure_ascii=False)
        shaped = {**function, "arguments": arguments}
        return {**call, "function": shaped} if "function" in call else {"type": "function", "function": shaped}


def _parse_arguments(text: str, where: str) -> dict[str, JSON]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise Refused(
            RefusalKind.BAD_INPUT, "the arguments of a tool call are not valid JSON", where=where, found=text[:80]
        ) from error
    if not isinstance(value, dict):
        raise Refused(
            RefusalKind.BAD_INPUT,
            "the arguments of a tool call must be a JSON object",
            where=where,
            found=type(value).__name__,
        )
    return value


def _text_parts(parts: Sequence[JSON], where: str) -> list[dict[str, JSON]]:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise Refused(
                RefusalKind.UNSUPPORTED_CONTENT,
                "only text can be trained on here",
                where=where,
                expected="text parts",
                found=f"a part of type {kind!r}",
                hint="drop rows with images, audio or files, or describe them in words",
            )
    return [{"type": "text", "text": part["text"]} for part in parts]


def _texts(content: JSON) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or ()]


def squash(text: str) -> str:
    """Return the text without whitespace: templates may trim and re-break what they are given."""
    return "".join(text.split())


def _says(text: str, said: str) -> bool:
    """Whether a text contains what was said, as JSON or with other whitespace."""
    return json.dumps(said, ensure_ascii=False)[1:-1] in text or squash(said) in squash(text)


def require_tokenizer(renderer: Renderer) -> Tokenizer:
    """Return the renderer's tokenizer. Raises `ContractError` where there is none."""
    if renderer.tokenizer is None:
        raise ContractError("ids need a tokenizer", hint="name a folder that has tokenizer.json")
    return renderer.tokenizer
