"""Record: what happened to a request becomes a trace, redacted before it is written, and is counted.

What lives here: job and answer to `Trace`, writing it off the event loop, and what happens when that fails: answers go
on, `/health` says that traces are lost, and the number of them is a metric. What does not: tables (`serve.traces`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy.exc import SQLAlchemyError

from tunesmith.serve.admission import Job
from tunesmith.serve.answer import Answer
from tunesmith.serve.bundle import Bundle
from tunesmith.serve.engines import Weights
from tunesmith.serve.metrics import ServerMetrics
from tunesmith.serve.requests import ChatRequest, FeedbackRequest, RequestError
from tunesmith.serve.traces import TraceStore, new_trace_id
from tunesmith.types import JSON, Feedback, Log, Message, Trace

Redact = Callable[[Sequence[Message]], tuple[Message, ...]]
"""Replace personal data and secrets in the messages of one conversation by typed placeholders."""


class Recorder:
    """Writes traces and feedback of one server."""

    def __init__(
        self,
        bundle: Bundle,
        store: TraceStore,
        *,
        redact: Redact,
        metrics: ServerMetrics,
        consent: bool | None,
        log: Log,
    ) -> None:
        """Take the parts. `consent` is what holds for a request that does not say `store`."""
        self._bundle = bundle
        self._store = store
        self._redact = redact
        self._metrics = metrics
        self._consent = consent
        self._log = log
        self.num_lost = 0
        """Traces that could not be written."""

    def answered(self, job: Job, answer: Answer, *, streamed: bool) -> tuple[str, ...]:
        """Write the trace of an answer, count it, and return its guard flags."""
        latency = time.perf_counter() - job.started
        messages, completion, changed = self._safe(job, answer)
        flags = (
            job.input_flags + (("input:pii",) if changed else ()) + tuple(f"output:{name}" for name in answer.failed)
        )
        self._write(
            Trace(
                id=job.id,
                time=job.arrived,
                model=job.model,
                contract_sha256=self._bundle.contract.sha256,
                adapter_sha256=self._adapter(job),
                status=200,
                messages=messages,
                completion=completion,
                prompt_tokens=len(job.generation.prompt),
                completion_tokens=answer.completion_tokens,
                finish_reason=answer.finish_reason,
                parse_ok=answer.parse_ok,
                schema_ok=answer.schema_ok,
                guard_flags=flags,
                attempts=answer.attempts,
                latency_ms=latency * 1000,
                ttft_ms=answer.ttft_ms,
                streamed=streamed,
                deviation=answer.deviation,
                consent=self._consent if job.request.store is None else job.request.store,
                leak_key=job.leak_key,
                tags=job.request.tags,
            )
        )
        self._count(job, answer, latency=latency, flags=flags)
        return flags

    def failed(self, job: Job, *, status: int, code: str, streamed: bool) -> None:
        """Write the trace of an admitted request that got no answer; status 499 where the client went away."""
        messages, _, _ = self._safe(job, None)
        self._write(
            Trace(
                id=job.id,
                time=job.arrived,
                model=job.model,
                contract_sha256=self._bundle.contract.sha256,
                adapter_sha256=self._adapter(job),
                status=status,
                error=code,
                messages=messages,
                prompt_tokens=len(job.generation.prompt),
                finish_reason="abort" if status == 499 else None,
                guard_flags=job.input_flags,
                latency_ms=(time.perf_counter() - job.started) * 1000,
                streamed=streamed,
                deviation=dict(job.deviation),
                consent=self._consent if job.request.store is None else job.request.store,
                leak_key=job.leak_key,
                tags=job.request.tags,
            )
        )
        self._metrics.refused.labels(str(status), code).inc()

    def refused(self, request: ChatRequest | None, error: RequestError) -> None:
        """Write the trace of a request that was not admitted; its content is not kept."""
        self._write(
            Trace(
                id=new_trace_id(),
                time=time.time(),
                model=(request.model if request is not None and request.model else self._bundle.name)[:300],
                contract_sha256=self._bundle.contract.sha256,
                adapter_sha256=None,
                status=error.status,
                error=error.code,
                streamed=request.stream if request is not None else False,
                tags=request.tags if request is not None else {},
            )
        )
        self._metrics.refused.labels(str(error.status), error.code).inc()

    def feedback(self, request: FeedbackRequest) -> None:
        """Write feedback. Raises `RequestError` 404 for an unknown completion, 503 where it cannot be written."""
        texts = [Message(role="user", content=text) for text in (request.comment, request.correction) if text]
        safe = [message.content for message in self._redact(texts)]
        comment = safe.pop(0) if request.comment else request.comment
        correction = safe.pop(0) if request.correction else request.correction
        item = Feedback(
            trace_id=request.completion_id,
            time=time.time(),
            rating=request.rating,
            comment=comment,
            correction=correction,
            tags=request.tags,
        )
        try:
            known = self._store.add_feedback(item)
        except SQLAlchemyError as error:
            self._lose(error)
            raise RequestError(503, "the feedback could not be written; send it again", code="not_written") from error
        if not known:
            raise RequestError(
                404, f"no completion {request.completion_id!r} here", code="completion_not_found", param="completion_id"
            )
        sign = "none" if request.rating is None else {1: "good", 0: "neutral", -1: "bad"}[_sign(request.rating)]
        self._metrics.feedback.labels(sign).inc()

    def _adapter(self, job: Job) -> str | None:
        return self._bundle.adapter_sha256 if job.generation.weights is Weights.ADAPTER else None

    def _safe(self, job: Job, answer: Answer | None) -> tuple[tuple[Mapping[str, JSON], ...] | None, str | None, bool]:
        """Return (messages, completion, whether the messages held personal data), nothing for `store: false`."""
        asked = job.request.conversation.messages
        content = None if answer is None else answer.content
        redacted = self._redact([*asked, Message(role="assistant", content=content or "")])
        changed = tuple(redacted[:-1]) != asked
        if job.request.store is False:
            return None, None, changed
        return (
            tuple(message.to_json() for message in redacted[:-1]),
            None if content is None else redacted[-1].content,
            changed,
        )

    def _count(self, job: Job, answer: Answer, *, latency: float, flags: Sequence[str]) -> None:
        metrics, model = self._metrics, job.model
        metrics.success.labels(model, answer.finish_reason).inc()
        metrics.prompt_tokens.labels(model).inc(len(job.generation.prompt))
        metrics.generation_tokens.labels(model).inc(answer.completion_tokens)
        metrics.request_prompt_tokens.labels(model).observe(len(job.generation.prompt))
        metrics.request_generation_tokens.labels(model).observe(answer.completion_tokens)
        metrics.latency_seconds.labels(model).observe(latency)
        if answer.ttft_ms is not None:
            metrics.first_token_seconds.labels(model).observe(answer.ttft_ms / 1000)
        for flag in flags:
            metrics.guard_flags.labels(model, flag).inc()
        for param in answer.deviation:
            metrics.contract_deviation.labels(model, param).inc()

    def _write(self, trace: Trace) -> None:
        try:
            self._store.add_trace(trace)
        except SQLAlchemyError as error:
            self._lose(error)

    def _lose(self, error: SQLAlchemyError) -> None:
        self.num_lost += 1
        self._metrics.lost.inc()
        self._log("trace_lost", {"error": str(error).splitlines()[0]})


def _sign(rating: float) -> int:
    return (rating > 0) - (rating < 0)
