"""Contract: exactly what the model is asked and how it answers, as one hashed value.

What lives here: reading a contract's folder and refusing one that was changed, rendering, encoding, parsing, linting
and checking through it. What does not: making the folder (`build`), comparing two (`diff`).

    contract = load_contract(artifact.path)
    contract.render_prompt(row.conversation.prompt).ids     # training, evaluation and the server send these
    contract.encode(row.conversation, row_id=row.id)        # examples whose prefix is that prompt, id by id

    contract.json     parts, their hashes, the hash over all
    tokenizer/        tokenizer.json tokenizer_config.json chat_template.jinja generation_config.json
    golden.jsonl      conversations and the ids they must become
    criteria.json     acceptance criteria: beside the contract, not part of it
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tunesmith.chat.files import (
    CONTRACT_FILE,
    CRITERIA_FILE,
    GENERATION_FILE,
    GOLDEN_FILE,
    TOKENIZER_DIR,
    generation_config,
    read_document,
    read_text,
    require_same,
)
from tunesmith.chat.golden import Encode, GoldenVector, read_vectors, replay
from tunesmith.chat.length import Overlong, cut
from tunesmith.chat.mask import train
from tunesmith.chat.parse import Parsed, Parser
from tunesmith.chat.parts import (
    Decoding,
    LossPolicy,
    System,
    SystemRule,
    contract_hash,
    part_hashes,
    read_loss,
)
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.render import Rendered, Renderer
from tunesmith.chat.schema import AnswerSchema, AnswerVerdict, read_schema, require_schema
from tunesmith.chat.skeleton import Skeletons
from tunesmith.chat.template import TEMPLATE_FILE, ChatTemplate
from tunesmith.chat.tokenizer import Tokenizer
from tunesmith.chat.toolcalls import ToolFormat
from tunesmith.chat.tooltext import write_into_text
from tunesmith.chat.turns import Reasoning, turn_weights, without_reasoning
from tunesmith.errors import ContractError
from tunesmith.types import JSON, Conversation, Example, Message, canonical_json, sha256_hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One way in which a conversation breaks the contract."""

    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A contract that was read and found unchanged. Immutable."""

    sha256: str
    parts: Mapping[str, str]
    """Part name -> sha256."""
    content: Mapping[str, JSON]
    """Part name -> the part as plain JSON."""
    criteria: tuple[str, ...]
    tokenizer: Tokenizer
    template: ChatTemplate
    golden: tuple[GoldenVector, ...] = field(default=(), repr=False)

    @cached_property
    def system_rule(self) -> System:
        """Where the system prompt comes from."""
        part = self.content["system"]
        return System(rule=SystemRule(part["rule"]), text=part["text"])

    @property
    def system(self) -> str | None:
        """The contract's own system prompt, or `None` where it has none."""
        return self.system_rule.text

    @cached_property
    def tools(self) -> tuple[Mapping[str, JSON], ...]:
        """Tools that every conversation declares; empty where rows bring their own."""
        return tuple(json.loads(self.content["tools"]["text"]))

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How tools and calls are written into messages; `None` where the template renders them."""
        form = self.content["tools"]["format"]
        return None if form is None else ToolFormat(form)

    @property
    def output_schema(self) -> dict[str, JSON] | None:
        """JSON Schema of the answer, or `None`."""
        schema: dict[str, JSON] | None = self.content["output"]["schema"]
        return schema

    @property
    def input_schema(self) -> dict[str, JSON] | None:
        """JSON Schema of the variables that `render_input` takes, or `None`."""
        schema: dict[str, JSON] | None = self.content["input"]["schema"]
        return schema

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer; the first is the one that training teaches."""
        return tuple(self.content["stop"]["ids"])

    @cached_property
    def decoding(self) -> Decoding:
        """How answers are generated."""
        return Decoding(**self.content["decoding"])

    @property
    def guardrails(self) -> dict[str, JSON]:
        """The guardrail policy, as the recipe states it."""
        return dict(self.content["guardrails"])

    @cached_property
    def loss(self) -> LossPolicy:
        """What trains."""
        return read_loss(self.content["loss"])

    @cached_property
    def renderer(self) -> Renderer:
        """Template, variables and tokenizer."""
        part = self.content["template"]
        date = datetime.date.fromisoformat(part["date"]) if part["date"] else None
        return Renderer(self.template, {**self.tokenizer.special, **part["arguments"]}, self.tokenizer, date)

    @cached_property
    def parser(self) -> Parser:
        """Reads answers under this template."""
        return Parser.of(self.renderer, tool_format=self.tool_format)

    @cached_property
    def _schema(self) -> AnswerSchema | None:
        return read_schema(self.output_schema)

    @cached_property
    def _input_schema(self) -> AnswerSchema | None:
        return read_schema(self.input_schema)

    def for_general_rows(self) -> Contract:
        """Return the contract as general rows meet it: template, masks and stops are the same ones.

        System prompt, tools and the form of the answer are each row's own. Only data is held to it, never a server.
        """
        content = dict(self.content)
        content["system"] = {"rule": SystemRule.FROM_ROWS.value, "text": None}
        content["tools"] = {**content["tools"], "text": "[]"}
        content["output"] = {**content["output"], "schema": None}
        return replace(self, content=content)

    def messages(self, conversation: Conversation) -> list[dict[str, JSON]]:
        """Return the messages as the template gets them: system prompt applied, tools written in where it drops them.

        Raises `Refused` for a foreign system prompt.
        """
        messages = self._with_system([message.to_json() for message in conversation.messages])
        if self.tool_format is None:
            return messages
        return write_into_text(messages, self.tools or conversation.tools, self.tool_format)

    def _with_system(self, messages: list[dict[str, JSON]]) -> list[dict[str, JSON]]:
        rule = self.system_rule
        if rule.rule is SystemRule.FROM_ROWS:
            return messages
        given = messages[0] if messages and messages[0]["role"] in ("system", "developer") else None
        if given is None:
            return messages if rule.text is None else [{"role": "system", "content": rule.text}, *messages]
        if rule.text is None or given.get("content") != rule.text:
            raise Refused(
                RefusalKind.FOREIGN_SYSTEM,
                "the conversation has a system prompt other than the contract's",
                expected=repr(rule.text)[:80] if rule.text is not None else "no system prompt",
                found=repr(given.get("content"))[:80],
                hint="remove the row's system message; the contract writes its own",
            )
        return messages

    def tools_of(self, conversation: Conversation) -> tuple[Mapping[str, JSON], ...]:
        """Return the tools that the template gets: the contract's, or else the conversation's."""
        return () if self.tool_format is not None else self.tools or conversation.tools

    def render_prompt(self, conversation: Conversation) -> Rendered:
        """Return what the server sends to the model: system prompt applied, generation prompt added.

        Raises `Refused` where the conversation ends with the assistant's turn, which a server would not be sent.
        """
        if conversation.messages and conversation.messages[-1].role == "assistant":
            raise Refused(
                RefusalKind.BAD_INPUT,
                "a prompt must end with what the assistant answers",
                found="a conversation that ends with the assistant's own turn",
                hint="pass conversation.prompt",
            )
        return self.renderer.prompt(self._shown(self.messages(conversation)), self.tools_of(conversation))

    def encode(self, conversation: Conversation, *, row_id: str) -> list[Example]:
        """Return training examples under the loss policy. Raises `Refused`, with a kind, where there are none."""
        messages, tools, loss = self.messages(conversation), self.tools_of(conversation), self.loss
        trained = train(self.renderer, messages, tools, train_on=loss.train_on, reasoning=loss.reasoning)
        if loss.max_tokens is not None and loss.overlong is Overlong.DROP_OLDEST_TURNS:
            while any(len(item.ids) > loss.max_tokens for item in trained):
                messages = _without_oldest_turn(messages, loss.max_tokens)
                trained = train(self.renderer, messages, tools, train_on=loss.train_on, reasoning=loss.reasoning)
        examples = []
        for item in trained:
            ids, weights = item.ids, item.weights
            if loss.max_tokens is not None:
                ids, weights = cut(ids, weights, budget=loss.max_tokens, overlong=loss.overlong)
            examples.append(Example(row_id=row_id, ids=ids, weights=weights))
        return examples

    def encode_many(self, rows: Sequence[tuple[str, Conversation]]) -> list[list[Example] | Refused]:
        """Return what `encode` returns for each (row id, conversation), or the refusal that it raises.

        Rows whose contents are plain are encoded by the template's skeleton, which gives the same ids and weights
        without running the template once a row.
        """
        shown = [self._shown_fast(conversation) for _, conversation in rows]
        made = self._skeletons.encode([messages or () for messages in shown])
        out: list[list[Example] | Refused] = []
        for (row_id, conversation), sequences in zip(rows, made, strict=True):
            try:
                if sequences is None:
                    out.append(self.encode(conversation, row_id=row_id))
                else:
                    out.append([self._example(row_id, ids, weights) for ids, weights in sequences])
            except Refused as refusal:
                out.append(refusal)
        return out

    def _example(self, row_id: str, ids: Sequence[int], weights: Sequence[float]) -> Example:
        budget = self.loss.max_tokens
        if budget is not None and len(ids) > budget:
            ids, weights = cut(ids, weights, budget=budget, overlong=self.loss.overlong)
        return Example(row_id=row_id, ids=tuple(ids), weights=tuple(weights))

    def _shown_fast(self, conversation: Conversation) -> tuple[Message, ...] | None:
        """Return the messages with the system prompt applied, or `None` where only the general way can tell."""
        if self.tools or conversation.tools or self.tool_format or self.loss.overlong is Overlong.DROP_OLDEST_TURNS:
            return None
        messages = conversation.messages
        rule = self.system_rule
        if rule.rule is SystemRule.FROM_ROWS or not messages:
            return messages
        if messages[0].role in ("system", "developer"):
            return messages if rule.text is not None and messages[0].content == rule.text else None
        return messages if self._system_message is None else (self._system_message, *messages)

    @cached_property
    def _system_message(self) -> Message | None:
        return None if self.system is None else Message(role="system", content=self.system)

    @cached_property
    def _skeletons(self) -> Skeletons:
        return Skeletons(self.renderer, self.loss.train_on, self.loss.reasoning)

    def parse(self, answer: str | Sequence[int]) -> Parsed:
        """Read an answer. Text without a stop counts as ended, ids without a stop as cut."""
        if isinstance(answer, str):
            return self.parser.parse(answer, ended=True)
        return self.parser.parse_ids(answer, stop_ids=self.stop_ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids without special tokens."""
        return self.tokenizer.decode(ids, skip_special=True)

    def check_answer(self, text: str) -> AnswerVerdict:
        """Judge an answer by the output schema. Raises `ContractError` where the contract has none."""
        return require_schema(self._schema).check(text)

    def render_input(self, variables: Mapping[str, JSON]) -> Conversation:
        """Return the conversation that asks for these variables, rendered by the contract's input template.

        Raises `ContractError` where the contract has no input template, or the variables break its schema.
        """
        source = self.content["input"]["render"]
        if source is None:
            raise ContractError(
                "this contract has no input template", hint="set input_render in the recipe, or send messages"
            )
        if self._input_schema is not None:
            verdict = self._input_schema.check(canonical_json(dict(variables)))
            if not verdict.adheres:
                raise ContractError("the variables break the input schema", found="; ".join(verdict.errors))
        text = ChatTemplate(source, name="input_render").render([], variables=variables)
        return Conversation.from_json({"messages": [{"role": "user", "content": text}]})

    def lint(self, conversation: Conversation) -> list[Violation]:
        """Return every way in which a row breaks the contract; empty where it fits."""
        found: list[Violation] = []
        if self.tools and conversation.tools and list(conversation.tools) != list(self.tools):
            found.append(Violation(kind="foreign_tools", message="the row's tools are not the contract's"))
        if not self.tools and not conversation.tools and any(m.tool_calls for m in conversation.messages):
            found.append(Violation(kind="missing_tools", message="the row calls tools that it does not declare"))
        answer = conversation.answer
        calls = bool(conversation.messages and conversation.messages[-1].tool_calls)
        if self._schema is not None and answer is not None and not calls:
            verdict = self._schema.check(answer)
            if not verdict.adheres:
                kind = "answer_breaks_schema" if verdict.parses else "answer_not_json"
                found.append(Violation(kind=kind, message="; ".join(verdict.errors)))
        try:
            self.encode(conversation, row_id="lint")
        except Refused as refusal:
            found.append(
                Violation(kind=refusal.kind.value, message=f"{refusal.what}: {refusal.found or ''}".rstrip(": "))
            )
        return found

    def replay(self, encode_fn: Encode | None = None) -> None:
        """Raise `ContractError` at the first golden vector that `encode_fn` does not reproduce.

        `encode_fn` is an engine's own way from a conversation to prompt ids; left out, it is this contract's.
        """
        replay(self.golden, encode_fn or (lambda conversation: self.render_prompt(conversation).ids))

    def _shown(self, messages: list[dict[str, JSON]]) -> list[dict[str, JSON]]:
        """Return the messages as a server shows them: without reasoning where training drops it."""
        if self.loss.reasoning is not Reasoning.DROP:
            return messages
        return [without_reasoning(message) for message in messages]


def _without_oldest_turn(messages: Sequence[dict[str, JSON]], budget: int) -> list[dict[str, JSON]]:
    """Drop the first user turn and all up to the next; keep the system prompt. Raises `Refused` where one is left."""
    head = 1 if messages and messages[0]["role"] in ("system", "developer") else 0
    users = [index for index, message in enumerate(messages) if message["role"] == "user" and index >= head]
    if len(users) < 2 or not turn_weights(messages[users[1] :], LossPolicy().train_on):
        raise Refused(
            RefusalKind.OVERLONG,
            "the last turn alone is longer than the budget",
            expected=f"at most {budget} tokens",
            hint="raise max_tokens, or shorten the row",
        )
    return [*messages[:head], *messages[users[1] :]]


def load_contract(path: Path) -> Contract:
    """Read a contract's folder and replay its golden vectors.

    Raises `ContractError` naming the part where contract, template, tokenizer, generation parameters, golden vectors or
    criteria were changed by hand, and where a golden vector is not reproduced.
    """
    document = read_document(path)
    content, hashes = document["parts"], document["hashes"]
    actual = part_hashes(content)
    for name, value in actual.items():
        require_same(hashes.get(name), value, part=name, where=path / CONTRACT_FILE)
    require_same(document["sha256"], contract_hash(actual), part="contract", where=path / CONTRACT_FILE)
    folder = path / TOKENIZER_DIR
    tokenizer = Tokenizer.load(folder)
    require_same(content["tokenizer"], tokenizer.describe(), part="tokenizer", where=folder)
    text = read_text(folder / TEMPLATE_FILE)
    require_same(content["template"]["sha256"], sha256_hex(text), part="template", where=folder / TEMPLATE_FILE)
    generation = json.loads(read_text(folder / GENERATION_FILE))
    wanted = generation_config(content["decoding"], content["stop"])
    require_same(wanted, generation, part="decoding", where=folder / GENERATION_FILE)
    golden = read_text(path / GOLDEN_FILE)
    require_same(content["golden"]["sha256"], sha256_hex(golden), part="golden", where=path / GOLDEN_FILE)
    criteria = read_text(path / CRITERIA_FILE)
    require_same(document["criteria_sha256"], sha256_hex(criteria), part="criteria", where=path / CRITERIA_FILE)
    contract = Contract(
        sha256=document["sha256"],
        parts=actual,
        content=content,
        criteria=tuple(json.loads(criteria)),
        tokenizer=tokenizer,
        template=ChatTemplate(text, name=TEMPLATE_FILE),
        golden=read_vectors(golden),
    )
    contract.replay()
    return contract
