"""Answer: one admitted job becomes text, checked against the contract's policy.

What lives here: waiting for a place, the attempts, what may be streamed, the verdict. What does not: HTTP
(`serve.app`), whether the job may run at all (`serve.admission`).

Where the policy can withhold an answer (`retry`, `refuse`), or a parser must see all of it (tools, reasoning), nothing
is sent before the verdict: a streamed character cannot be taken back. Canaries are held back in every case.
A retry decodes under the output schema, since at temperature 0 a plain second attempt would only repeat the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from tunesmith.chat.contract import Contract
from tunesmith.chat.parse import Parsed, ParseStatus
from tunesmith.errors import ServeError
from tunesmith.serve.admission import Job
from tunesmith.serve.constrain import JsonGrammar
from tunesmith.serve.engines import Engine, Finished, GenerationRequest, NewTokens
from tunesmith.serve.guardrails import OnFail, Policy
from tunesmith.serve.limits import Admission, Limits
from tunesmith.serve.requests import RequestError
from tunesmith.serve.textstream import TextStream
from tunesmith.types import JSON, FinishReason, ToolCall

_POLL_SECONDS = 0.5
"""How often a waiting request looks whether its client is still there."""

Disconnected = Callable[[], Awaitable[bool]]


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished answer with its verdict. `content` is `None` where it was refused."""

    content: str | None
    finish_reason: str
    refusal: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    completion_tokens: int
    """Of all attempts."""
    ttft_ms: float | None
    parse_ok: bool | None = None
    schema_ok: bool | None = None
    errors: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    """Output checks that the last attempt failed."""
    attempts: int = 1
    deviation: dict[str, JSON] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """One generation: its text and how it ended."""

    stream: TextStream
    finish: Finished | None = None
    num_tokens: int = 0
    first_token: float | None = None


class Answerer:
    """Answers jobs on one engine under one contract. Belongs to one event loop."""

    def __init__(
        self,
        engine: Engine,
        contract: Contract,
        *,
        policy: Policy,
        limits: Limits,
        admission: Admission,
        grammar: Callable[[], JsonGrammar],
        count_failure: Callable[[str, str], None],
    ) -> None:
        """Take the parts. `count_failure(model, check)` is called for each attempt that fails an output check."""
        self._engine = engine
        self._contract = contract
        self._policy = policy
        self._limits = limits
        self._admission = admission
        self._grammar = grammar
        self._count_failure = count_failure

    def streams_live(self, job: Job) -> bool:
        """Whether characters may be sent before the verdict."""
        withholds = self._policy.on_fail is not OnFail.FLAG and bool(set(self._policy.output) - {"canary"})
        return not withholds and self._reads_plainly(job)

    def _reads_plainly(self, job: Job) -> bool:
        """Whether all text of an answer is its content: no reasoning, no tool calls, nothing to strip."""
        parser = self._contract.parser
        return parser.reasoning is None and not parser.opening and not job.has_tools

    async def run(self, job: Job, *, disconnected: Disconnected | None = None) -> AsyncGenerator[str | Answer, None]:
        """Yield pieces of text as they may be sent, then one `Answer`.

        Raises `RequestError` 429 (no place), 504 (too slow), 500 (the engine failed), and `ClientGone`.
        """
        deadline = time.monotonic() + self._limits.request_seconds
        live = self.streams_live(job)
        deviation: dict[str, JSON] = dict(job.deviation)
        num_tokens, first_token = 0, None
        most = 1 + (self._policy.retries if self._policy.on_fail is OnFail.RETRY else 0)
        async with self._admission.place():
            for number in range(1, most + 1):
                attempt = _Attempt(
                    stream=TextStream(self._contract.decode, stop=job.request.stop, forbidden=self._canaries())
                )
                generation = job.generation if number == 1 else self._second_try(job, number, deviation)
                pieces = self._generate(generation, attempt, deadline=deadline, disconnected=disconnected)
                async with aclosing(pieces):
                    async for piece in pieces:
                        if live:
                            yield piece
                num_tokens += attempt.num_tokens
                first_token = first_token or attempt.first_token
                answer = self._judge(job, attempt)
                for check in answer.failed:
                    self._count_failure(job.model, check)
                if not answer.failed or "canary" in answer.failed:
                    break
            withheld = "canary" in answer.failed or (bool(answer.failed) and self._policy.on_fail is not OnFail.FLAG)
            yield replace(
                answer if not withheld else _refused(answer, number),
                completion_tokens=num_tokens,
                ttft_ms=None if first_token is None else (first_token - job.started) * 1000,
                attempts=number,
                deviation=deviation,
            )

    def _canaries(self) -> tuple[str, ...]:
        return self._policy.canaries if "canary" in self._policy.output else ()

    def _second_try(self, job: Job, number: int, deviation: dict[str, JSON]) -> GenerationRequest:
        """Return the generation of a further attempt, and record how it differs from the contract's."""
        if job.schema is not None and job.generation.make_constraint is None:
            try:
                constraint = self._grammar().compile(job.schema.schema)
            except ServeError:
                pass  # llguidance cannot enforce this schema: sample instead, which is recorded just the same
            else:
                deviation["retry"] = "constrained"
                return replace(job.generation, make_constraint=constraint)
        deviation["retry"] = "sampled"
        warm = max(job.generation.temperature, 0.7)
        return replace(job.generation, temperature=warm, seed=job.generation.seed + number)

    async def _generate(
        self, generation: GenerationRequest, attempt: _Attempt, *, deadline: float, disconnected: Disconnected | None
    ) -> AsyncGenerator[str, None]:
        """Fill the attempt, yielding text that may leave. Cancels the engine's work whenever it is left early."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[NewTokens | Finished] = asyncio.Queue()
        cancel = self._engine.submit(generation, lambda event: _tell(loop, events, event))
        try:
            while attempt.finish is None:
                event = await self._next(events, deadline=deadline, disconnected=disconnected)
                if isinstance(event, Finished):
                    attempt.finish = event
                    break
                attempt.first_token = attempt.first_token or time.perf_counter()
                attempt.num_tokens += len(event.ids)
                if piece := attempt.stream.push(event.ids):
                    yield piece
                if attempt.stream.stopped or attempt.stream.forbidden_hit is not None:
                    attempt.finish = Finished(reason=FinishReason.STOP)
            if attempt.finish.reason is FinishReason.ERROR:
                raise RequestError(500, f"the model failed: {attempt.finish.error}", code="engine_error")
            if piece := attempt.stream.finish():
                yield piece
        finally:
            cancel()

    async def _next(
        self, events: asyncio.Queue[NewTokens | Finished], *, deadline: float, disconnected: Disconnected | None
    ) -> NewTokens | Finished:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise RequestError(
                    504, f"no complete answer within {self._limits.request_seconds:g} s", code="generation_timeout"
                )
            try:
                return await asyncio.wait_for(events.get(), min(left, _POLL_SECONDS))
            except TimeoutError:
                if disconnected is not None and await disconnected():
                    raise ClientGone from None

    def _judge(self, job: Job, attempt: _Attempt) -> Answer:
        """Return the answer with its verdict; what was refused is decided by the caller."""
        assert attempt.finish is not None
        stream = attempt.stream
        if self._reads_plainly(job):
            parsed = Parsed(content=stream.text, status=ParseStatus.OK)
        else:
            parsed = self._contract.parse(stream.text if stream.stopped else self._whole_ids(attempt))
        content, failed = parsed.content, []
        parse_ok = schema_ok = None
        errors: tuple[str, ...] = ()
        if job.schema is not None and not parsed.tool_calls:
            verdict = job.schema.check(content)
            parse_ok, schema_ok, errors = verdict.parses, verdict.adheres, verdict.errors
            if attempt.finish.reason is FinishReason.LENGTH:
                # As in evaluation: an answer adheres only where it ended by itself
                schema_ok, errors = False, (*errors, "the answer was cut at its token limit")
            if not schema_ok and "schema" in self._policy.output:
                failed.append("schema")
        if stream.forbidden_hit is not None:
            failed.append("canary")
        if "empty" in self._policy.output and not content.strip() and not parsed.tool_calls:
            failed.append("empty")
        return Answer(
            content=content,
            finish_reason="tool_calls" if parsed.tool_calls else str(attempt.finish.reason),
            reasoning=parsed.reasoning,
            tool_calls=parsed.tool_calls,
            completion_tokens=attempt.num_tokens,
            ttft_ms=None,
            parse_ok=parse_ok,
            schema_ok=schema_ok,
            errors=errors,
            failed=tuple(failed),
        )

    def _whole_ids(self, attempt: _Attempt) -> list[int]:
        """Return the ids with the stop token that the engine took off, so that the parser sees how the answer ended."""
        assert attempt.finish is not None
        ended = attempt.finish.reason is FinishReason.STOP
        return [*attempt.stream.ids, *(self._contract.stop_ids[:1] if ended else ())]


def _tell(
    loop: asyncio.AbstractEventLoop, events: asyncio.Queue[NewTokens | Finished], event: NewTokens | Finished
) -> None:
    """Hand an event over from the engine's thread; a loop that has ended wants no more events."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


def _refused(answer: Answer, attempts: int) -> Answer:
    reasons = {
        "canary": "the answer held text that must not leave this server",
        "schema": "the answer did not keep to the output schema",
        "empty": "the answer was empty",
    }
    what = "; ".join(reasons[check] for check in answer.failed)
    tried = f" in {attempts} attempts" if attempts > 1 else ""
    return replace(
        answer,
        content=None,
        reasoning=None,
        tool_calls=(),
        refusal=f"No answer{tried}: {what}.",
        finish_reason="content_filter",
    )
