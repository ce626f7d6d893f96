"""Plain frozen types that every layer shares.

What lives here: values without behaviour beyond conversion to and from JSON. What does not: rendering (`chat`),
reading files (`data`), tensors (`model`). Nothing here imports more than the standard library.

    Row (provenance, labels) ── holds ──> Conversation (messages, tools)
    Conversation ── Contract.encode ──> Example (ids, weights)
    prompt ids ── Generate ──> Completion
"""

from __future__ import annotations

import enum
import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

JSON = Any
"""A value that `json.dumps` takes."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool")


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
"""Made once: `json.dumps` makes an encoder for each call that sets an option, which costs half of a short text."""


def canonical_json(value: JSON) -> str:
    """Return the one JSON text of `value`: sorted keys, no spaces, no ASCII escapes, no NaN."""
    return _CANONICAL.encode(value)


def sha256_hex(data: bytes | str) -> str:
    """Return the sha256 of bytes, or of a text's UTF-8 bytes, as 64 hex digits."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call that an assistant message makes."""

    name: str
    arguments: Mapping[str, JSON] | str
    """As an object, or as the JSON text that the source had: templates differ in which they want."""
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    train: bool | None = None
    """Whether this turn trains; `None` leaves it to the contract's loss policy."""
    weight: float | None = None
    """Loss weight of this turn's tokens; `None` is 1."""
    spans: tuple[tuple[int, int, float], ...] = ()
    """(start, end, factor): loss weights of parts of the content, in characters, times the turn's weight."""

    def to_json(self) -> dict[str, JSON]:
        """Return the OpenAI chat shape, absent fields left out."""
        out: dict[str, JSON] = {"role": self.role}
        if self.content is not None:
            out["content"] = self.content
        if self.reasoning is not None:
            out["reasoning_content"] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = [
                {
                    "type": "function",
                    **({"id": call.id} if call.id is not None else {}),
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments if isinstance(call.arguments, str) else dict(call.arguments),
                    },
                }
                for call in self.tool_calls
            ]
        for key in ("name", "tool_call_id", "train", "weight"):
            value = getattr(self, key)
            if value is not None:
                out[key] = value
        if self.spans:
            out["spans"] = [list(span) for span in self.spans]
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, JSON]) -> Message:
        """Read the shape that `to_json` writes. Input from users goes through `data.read`, which checks it."""
        calls = []
        for call in value.get("tool_calls") or ():
            function = call.get("function", call)
            calls.append(ToolCall(name=function["name"], arguments=function["arguments"], id=call.get("id")))
        return cls(
            role=cast(Role, sys.intern(value["role"])),
            content=value.get("content"),
            reasoning=value.get("reasoning_content"),
            tool_calls=tuple(calls),
            name=value.get("name"),
            tool_call_id=value.get("tool_call_id"),
            train=value.get("train"),
            weight=value.get("weight"),
            spans=tuple((start, end, factor) for start, end, factor in value["spans"]) if value.get("spans") else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in order, with the tools that the assistant may call (JSON-schema function declarations)."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, JSON], ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """Return `{"messages": [...], "tools": [...]?}`."""
        out: dict[str, JSON] = {"messages": [message.to_json() for message in self.messages]}
        if self.tools:
            out["tools"] = [dict(tool) for tool in self.tools]
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, JSON]) -> Conversation:
        """Read the shape that `to_json` writes."""
        return cls(
            messages=tuple(Message.from_json(message) for message in value["messages"]),
            tools=tuple(value.get("tools") or ()),
        )

    @property
    def prompt(self) -> Conversation:
        """The conversation without its last assistant turn: what a server would be sent."""
        messages = self.messages
        if messages and messages[-1].role == "assistant":
            messages = messages[:-1]
        return Conversation(messages=messages, tools=self.tools)

    @property
    def answer(self) -> str | None:
        """The content of the last message where that is an assistant turn."""
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages[-1].content
        return None


class RowKind(enum.StrEnum):
    """Where a row's answer came from."""

    HUMAN = "human"
    EDITED_SYNTHETIC = "edited_synthetic"
    SYNTHETIC = "synthetic"
    LOG = "log"


class RowRole(enum.StrEnum):
    """What a row is for."""

    TASK = "task"
    """It teaches the task: its answer must keep the contract, and it may validate and test."""
    GENERAL = "general"
    """It keeps general ability alive: it brings its own system prompt or none and only ever trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a row came from and what may be done with it."""

    source: str
    """Name of the source in the recipe."""
    path: str
    """File name as the recipe wrote it, never an absolute path of one machine."""
    line: int
    """1-based line, or 1-based record number where the format has no lines."""
    license: str | None = None
    """SPDX identifier; `None` is unknown."""
    kind: RowKind = RowKind.HUMAN
    generator: str | None = None
    editor: str | None = None
    collected_at: str | None = None
    subject: str | None = None
    """Id of the person the row is about, for opt-out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One record of a data set: a conversation, where it came from, and what it is sliced and grouped by."""

    id: str
    """Content hash of conversation and source position: 16 hex digits, unique in a data version."""
    conversation: Conversation
    provenance: Provenance
    role: RowRole = RowRole.TASK
    labels: Mapping[str, str] = field(default_factory=dict)
    """Slices and strata, such as `{"intent": "refund"}`."""
    group: str | None = None
    """Rows of one group never stand on two sides of a split (a ticket, a customer, a document)."""
    split: str | None = None
    """Side that the source itself assigned: `train`, `val` or `test`."""
    rejected: tuple[Message, ...] = ()
    """The worse answer of a preference pair."""
    desirable: bool | None = None
    """KTO label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training sequence.

    `weights[i]` is the loss weight of predicting `ids[i]` from `ids[:i]`; 0 is masked; `weights[0]` is always 0.
    """

    row_id: str
    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def num_supervised(self) -> int:
        """Tokens with a weight above zero."""
        return sum(1 for weight in self.weights if weight > 0)


class FinishReason(enum.StrEnum):
    """How a generated answer ended."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generated answer, without its stop token."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seconds: float | None = None


Generate = Callable[[Sequence[Sequence[int]]], list[Completion]]
"""Prompt ids in, completions out, same order. Stop ids and decoding parameters are bound by whoever made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened in a run, as written to `events.jsonl`."""

    name: str
    fields: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """Which engine runs the parts of a run's work, as the recipe or the command line chose it: never identity."""

    kind: str = "local"
    address: str | None = None
    """`HOST:PORT` of a cluster that runs already; `None` starts one on this machine where the kind needs one."""
    num_workers: int | None = None
    """Parts at work at a time; `None` leaves it to the machine."""
    where: str | None = field(default=None, compare=False)
    """Where it was written, for errors."""

    def __str__(self) -> str:
        return self.kind if self.address is None else f"{self.kind}://{self.address}"


LOCAL_ENGINE = EngineChoice()
"""This process."""


Log = Callable[[str, Mapping[str, JSON]], None]
"""`log("train_step", {"step": 3, "loss": 1.2})`: below the stages this is the only way to say something."""


def ignore(name: str, fields: Mapping[str, JSON]) -> None:
    """A `Log` that keeps nothing, for callers that do not listen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One request that a server answered or refused, as `serve` writes it and `monitor` reads it.

    `None` is always "not measured" or "not kept", never zero or false.
    """

    id: str
    """The completion id that the client saw: `chatcmpl-` and a time-ordered UUID (version 7)."""
    time: float
    """When the request arrived, in seconds since 1970 UTC."""
    model: str
    """Model id that answered: the adapter's name or the base's."""
    contract_sha256: str
    adapter_sha256: str | None
    """`None` where the base answered without the adapter."""
    status: int
    """HTTP status; a streamed answer that broke keeps the status of what broke it."""
    error: str | None = None
    """The error's code where `status` is 400 or above."""
    messages: tuple[Mapping[str, JSON], ...] | None = None
    """What was asked, PII replaced by typed placeholders; `None` where the client said `store: false`."""
    completion: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    """`stop`, `length`, `content_filter`, `tool_calls` or `abort`."""
    parse_ok: bool | None = None
    schema_ok: bool | None = None
    guard_flags: tuple[str, ...] = ()
    """For example `input:injection`, `output:canary`, `input:pii`."""
    attempts: int = 1
    """Generations that it took under the policy `retry`."""
    latency_ms: float | None = None
    ttft_ms: float | None = None
    """Milliseconds to the first generated token."""
    streamed: bool = False
    deviation: Mapping[str, JSON] = field(default_factory=dict)
    """Parameter -> {contract, request} where the request changed what the contract says, within its limits."""
    consent: bool | None = None
    """Whether the content may become training data; `None` where nobody said."""
    leak_key: str | None = None
    """Hash of the normalised user text before redaction: finds a test item even where its text was redacted."""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What somebody said about one traced answer."""

    trace_id: str
    time: float
    rating: float | None = None
    """From -1 (bad) over 0 to 1 (good)."""
    comment: str | None = None
    correction: str | None = None
    """The answer that should have been given."""
    tags: Mapping[str, str] = field(default_factory=dict)
