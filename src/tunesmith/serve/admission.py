"""Admission: a checked request meets the contract, and becomes a job for the engine or is refused.

What lives here: what a client may change (recorded as a deviation), what it may not (422), and what does not fit (400,
with the numbers). What does not: types of the wire format (`serve.requests`), generating (`serve.answer`).

    may change, recorded:   temperature, top_p, seed, max_tokens (within the server's limit), stop, response_format
                            where the contract has no output schema
    may not change, 422:    system prompt, chat template and its arguments, tools, output schema
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from tunesmith.chat.contract import Contract
from tunesmith.chat.parts import SystemRule
from tunesmith.chat.schema import AnswerSchema
from tunesmith.errors import ContractError, RecipeError, ServeError
from tunesmith.serve.bundle import Bundle, holds_whole_model
from tunesmith.serve.constrain import ANY_OBJECT, JsonGrammar
from tunesmith.serve.engines import Constraint, Engine, GenerationRequest, Weights
from tunesmith.serve.guardrails import Policy, injection_flags
from tunesmith.serve.limits import Limits
from tunesmith.serve.requests import ChatRequest, RequestError
from tunesmith.serve.traces import leak_key, new_trace_id
from tunesmith.types import JSON, Conversation, canonical_json

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One admitted request: everything that answering it needs."""

    id: str
    arrived: float
    """Seconds since 1970 UTC."""
    started: float
    """`time.perf_counter()` at arrival."""
    request: ChatRequest
    model: str
    generation: GenerationRequest
    schema: AnswerSchema | None
    """What the answer is checked against: the contract's output schema, or the request's where it has none."""
    deviation: Mapping[str, JSON] = field(default_factory=dict)
    input_flags: tuple[str, ...] = ()
    leak_key: str | None = None
    has_tools: bool = False
    """Whether the prompt declares tools, so that the answer may call them."""


class Gate:
    """Admits requests to one bundle on one engine. Holds no state that a request changes."""

    def __init__(
        self, bundle: Bundle, engine: Engine, *, policy: Policy, limits: Limits, grammar: Callable[[], JsonGrammar]
    ) -> None:
        """Prepare. `grammar` makes the JSON compiler when the first request needs one."""
        contract = bundle.contract
        if contract.decoding.max_new_tokens > limits.max_new_tokens:
            raise ServeError(
                "the contract's answers may be longer than this server allows",
                expected=f"at most {limits.max_new_tokens} new tokens",
                found=f"{contract.decoding.max_new_tokens} in the contract",
                hint="start the server with a larger --max-new-tokens",
            )
        self._bundle = bundle
        self._contract: Contract = contract
        self._engine = engine
        self._policy = policy
        self._limits = limits
        self._grammar = grammar
        self._schema = None if contract.output_schema is None else AnswerSchema(contract.output_schema)
        models = {bundle.name: Weights.ADAPTER, bundle.base.id: Weights.BASE}
        if holds_whole_model(bundle.root):
            del models[bundle.base.id]  # full fine-tuning leaves no base in the model that answers
        self.models: Mapping[str, Weights] = models

    def prompt_ids(self, conversation: Conversation) -> tuple[int, ...]:
        """Render a conversation to the ids that the engine gets: the one path for requests and for golden vectors.

        Raises `ContractError` for what the template cannot render.
        """
        return tuple(self._contract.render_prompt(conversation).ids)

    def admit(self, request: ChatRequest) -> Job:
        """Return the job of a request. Raises `RequestError`."""
        arrived, started = time.time(), time.perf_counter()
        model = self._bundle.name if request.model is None else request.model
        if model not in self.models:
            raise RequestError(
                404,
                f"there is no model {model!r} here; there are {' and '.join(self.models)}",
                code="model_not_found",
                param="model",
            )
        conversation = self._conversation(request)
        deviation: dict[str, JSON] = {}
        max_new = _changed(deviation, "max_tokens", request.max_tokens, self._contract.decoding.max_new_tokens)
        ids = self._fitting_ids(conversation, request, max_new)
        schema, make_constraint = self._output(request, deviation)
        decoding = self._contract.decoding
        if request.stop:
            deviation["stop"] = {"contract": [], "request": list(request.stop)}
        seed = _changed(deviation, "seed", request.seed, decoding.seed)
        generation = GenerationRequest(
            prompt=ids,
            stop_ids=frozenset(self._contract.stop_ids),
            max_new_tokens=max_new,
            temperature=_changed(deviation, "temperature", request.temperature, decoding.temperature),
            top_p=_changed(deviation, "top_p", request.top_p, decoding.top_p),
            seed=seed % (1 << 63),
            weights=self.models[model],
            make_constraint=make_constraint,
        )
        asked = "\n".join(message.content or "" for message in conversation.messages if message.role == "user")
        flags = injection_flags(asked) if "injection" in self._policy.input else ()
        return Job(
            id=new_trace_id(),
            arrived=arrived,
            started=started,
            request=request,
            model=model,
            generation=generation,
            schema=schema,
            deviation=deviation,
            input_flags=tuple(f"input:injection.{name}" for name in flags),
            leak_key=leak_key(asked),
            has_tools=bool(self._contract.tools_of(conversation)),
        )

    def render(self, request: ChatRequest) -> tuple[int, ...]:
        """Return the prompt ids of a request, whatever their number. Raises `RequestError`."""
        return self._rendered(self._conversation(request))

    def _rendered(self, conversation: Conversation) -> tuple[int, ...]:
        try:
            return self.prompt_ids(conversation)
        except ContractError as error:
            detail = f": {error.found}" if error.found else ""
            raise RequestError(400, f"{error.what}{detail}", code="cannot_render", param="messages") from error

    def _conversation(self, request: ChatRequest) -> Conversation:
        """Return the conversation with its tools. Raises `RequestError` 422 for a system prompt or tools of its own."""
        contract, messages = self._contract, request.conversation.messages
        for index, message in enumerate(messages):
            own = message.role in ("system", "developer") and contract.system_rule.rule is not SystemRule.FROM_ROWS
            if own and (index > 0 or contract.system is None or message.content != contract.system):
                raise RequestError(
                    422,
                    "the system prompt is fixed by the contract that this model was trained with; leave it out",
                    code="contract_override",
                    param=f"messages[{index}]",
                )
        tools = request.tools or ()
        if tools and contract.tools and canonical_json(list(tools)) != canonical_json(list(contract.tools)):
            raise RequestError(
                422,
                "the tools are fixed by the contract that this model was trained with; leave them out or send the same",
                code="contract_override",
                param="tools",
            )
        if request.tool_choice == "none" and (tools or contract.tools):
            raise RequestError(
                400,
                "tool_choice none is not supported: the prompt that this model was trained with declares the tools",
                code="unsupported_parameter",
                param="tool_choice",
            )
        return Conversation(messages=messages, tools=tools)

    def _fitting_ids(self, conversation: Conversation, request: ChatRequest, max_new: int) -> tuple[int, ...]:
        if max_new > self._limits.max_new_tokens:
            raise RequestError(
                400,
                f"max_tokens is {max_new}; at most {self._limits.max_new_tokens} are allowed here",
                code="invalid_value",
                param="max_tokens",
            )
        ids = self._rendered(conversation)
        context = self._engine.context_length
        room = (
            self._limits.max_prompt_tokens
            if context is None
            else max(0, min(self._limits.max_prompt_tokens, context - max_new))
        )
        if len(ids) > room:
            raise RequestError(
                400,
                f"the prompt has {len(ids)} tokens; at most {room} fit"
                + ("" if context is None else f" beside {max_new} new ones into a context of {context}"),
                code="context_length_exceeded",
                param="messages",
            )
        return ids

    def _output(
        self, request: ChatRequest, deviation: dict[str, JSON]
    ) -> tuple[AnswerSchema | None, Callable[[], Constraint] | None]:
        """Return the schema to check against and, where the client asked for a format, the constraint on decoding."""
        own, wanted = self._contract.output_schema, request.response_format
        if wanted is None or wanted.kind == "text":
            return self._schema, None
        if own is None:
            schema = wanted.schema if wanted.kind == "json_schema" else ANY_OBJECT
            assert schema is not None
            deviation["response_format"] = {"contract": None, "request": dict(schema)}
        elif wanted.kind == "json_object" or canonical_json(wanted.schema) == canonical_json(own):
            schema = own
        else:
            raise RequestError(
                422,
                "the output schema is fixed by the contract that this model was trained with; leave it out, send the "
                "same, or ask for json_object",
                code="contract_override",
                param="response_format",
            )
        try:
            checker = self._schema if own is not None else AnswerSchema(schema)
            return checker, self._grammar().compile(schema)
        except (RecipeError, ServeError) as error:
            detail = f": {error.found}" if error.found else ""
            raise RequestError(
                400, f"{error.what}{detail}", code="unsupported_schema", param="response_format"
            ) from error


def _changed(deviation: dict[str, JSON], name: str, asked: Number | None, contract: Number) -> Number:
    """Return what counts, and record it where it is not the contract's."""
    if asked is None or asked == contract:
        return contract
    deviation[name] = {"contract": contract, "request": asked}
    return asked
