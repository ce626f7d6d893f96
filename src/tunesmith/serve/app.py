"""The application: routes of an OpenAI-compatible server over one bundle.

    GET  /v1/models             the adapter (default) and its base
    POST /v1/chat/completions   with `stream`, `stream_options.include_usage`, `response_format`, `store`, `metadata`
    POST /tokenize              the ids that a request's messages become, as vLLM
    POST /v1/feedback           {completion_id, rating, comment, correction, tags}
    GET  /health                what was proved at start, and whether anything is wrong now
    GET  /metrics               Prometheus

What lives here: HTTP, server-sent events, the API key. What does not: the meaning of a request (`serve.admission`),
the answer (`serve.answer`), the proofs at start (`serve.startup`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from tunesmith.serve.admission import Gate, Job
from tunesmith.serve.answer import Answer, Answerer, ClientGone
from tunesmith.serve.bundle import Bundle
from tunesmith.serve.constrain import JsonGrammar
from tunesmith.serve.engines import Engine
from tunesmith.serve.guardrails import read_policy
from tunesmith.serve.limits import Admission, BodyLimit, Limits
from tunesmith.serve.metrics import ServerMetrics
from tunesmith.serve.record import Recorder, Redact
from tunesmith.serve.replies import chunk_body, completion_body, error_body, message_body, usage
from tunesmith.serve.requests import RequestError, read_feedback, read_request
from tunesmith.serve.startup import Proof, prove
from tunesmith.serve.traces import TraceStore
from tunesmith.types import JSON, Log

CONTRACT_HEADER = "x-tunesmith-contract"
CLIENT_GONE = 499
"""As nginx: the client closed the connection first. Only traces see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a server treats its clients; nothing here changes what the model is asked."""

    limits: Limits
    api_key: str | None = None
    """Bearer token that all routes but `/health` ask for."""
    consent: bool | None = None
    """What holds for a request that does not say `store`."""


class Server:
    """One bundle on one started engine, ready for HTTP."""

    def __init__(
        self, bundle: Bundle, engine: Engine, traces: TraceStore, *, redact: Redact, settings: Settings, log: Log
    ) -> None:
        """Prove the engine and start it. Raises `ServeError` or `ContractError` where anything does not hold."""
        self.bundle, self.engine, self.settings = bundle, engine, settings
        self.metrics = ServerMetrics()
        self.policy = read_policy(bundle.contract.guardrails)
        self.grammar = _grammar_maker(bundle, engine)
        self.gate = Gate(bundle, engine, policy=self.policy, limits=settings.limits, grammar=self.grammar)
        self.recorder = Recorder(bundle, traces, redact=redact, metrics=self.metrics, consent=settings.consent, log=log)
        self.started = time.time()
        self.proof: Proof = prove(bundle, engine, self.gate.prompt_ids)
        log("server_proved", {"golden_vectors": self.proof.golden_vectors, "error": self.proof.mean_logprob_error})
        for name in self.gate.models:
            self.metrics.contract_info.labels(name, bundle.contract.sha256, bundle.adapter_sha256).set(1)

    def answerer(self, admission: Admission) -> Answerer:
        """Return what answers on the running event loop."""
        self.metrics.watch(running=lambda: admission.num_running, waiting=lambda: admission.num_waiting)
        return Answerer(
            self.engine,
            self.bundle.contract,
            policy=self.policy,
            limits=self.settings.limits,
            admission=admission,
            grammar=self.grammar,
            count_failure=lambda model, check: self.metrics.invalid_output.labels(model, check).inc(),
        )

    def health(self) -> tuple[int, dict[str, JSON]]:
        """Return status and body of `/health`."""
        failure = self.engine.failure()
        status = "failed" if failure is not None else "degraded" if self.recorder.num_lost else "ok"
        body: dict[str, JSON] = {
            "status": status,
            "model": self.bundle.name,
            "base": self.bundle.base.id,
            "contract": self.bundle.contract.sha256,
            "adapter": self.bundle.adapter_sha256,
            "engine": self.engine.name,
            "golden_vectors": self.proof.golden_vectors,
            "golden_probabilities": self.proof.golden_probabilities,
            "mean_logprob_error": self.proof.mean_logprob_error,
            "promotable": self.bundle.promotable,
            "traces_lost": self.recorder.num_lost,
            "uptime_seconds": round(time.time() - self.started, 1),
        }
        if failure is not None:
            body["failure"] = failure
        return (503 if failure is not None else 200), body


def _grammar_maker(bundle: Bundle, engine: Engine) -> Callable[[], JsonGrammar]:
    """Return a function that makes the JSON compiler at its first call: most servers never need it."""

    @cache
    def make() -> JsonGrammar:
        contract = bundle.contract
        return JsonGrammar(
            contract.tokenizer.json_text, vocab_size=engine.vocab_size, stop_ids=sorted(contract.stop_ids)
        )

    return make


def create_app(server: Server) -> FastAPI:
    """Return the ASGI application of a proved server. Closing the application closes the engine."""
    state: dict[str, Answerer] = {}

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        state["answerer"] = server.answerer(Admission(server.settings.limits))
        yield
        await run_in_threadpool(server.engine.close)

    app = FastAPI(title="tunesmith", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_error_handlers(app)

    @app.get("/health")
    async def health() -> JSONResponse:
        status, body = server.health()
        return JSONResponse(body, status_code=status)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        _authorise(server, request)
        return Response(server.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        _authorise(server, request)
        return JSONResponse({"object": "list", "data": [_model_body(server, name) for name in server.gate.models]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> JSONResponse:
        _authorise(server, request)
        if name not in server.gate.models:
            raise RequestError(404, f"there is no model {name!r} here", code="model_not_found", param="model")
        return JSONResponse(_model_body(server, name))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        _authorise(server, request)
        return await _complete(server, state["answerer"], request)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> JSONResponse:
        _authorise(server, request)
        ids = await run_in_threadpool(server.gate.render, read_request(await _body(request)))
        return JSONResponse({"tokens": list(ids), "count": len(ids), "max_model_len": server.engine.context_length})

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> JSONResponse:
        _authorise(server, request)
        item = read_feedback(await _body(request))
        if item.correction is not None and server.bundle.contract.output_schema is not None:
            verdict = server.bundle.contract.check_answer(item.correction)
            if not verdict.adheres:
                raise RequestError(
                    422,
                    f"the correction breaks the output schema: {'; '.join(verdict.errors)}",
                    code="correction_breaks_schema",
                    param="correction",
                )
        await run_in_threadpool(server.recorder.feedback, item)
        return JSONResponse({"object": "feedback", "completion_id": item.completion_id}, status_code=201)

    # Starlette runs the middleware that was added last first
    app.add_middleware(BodyLimit, max_bytes=server.settings.limits.max_body_bytes)
    return app


async def _complete(server: Server, answerer: Answerer, request: Request) -> Response:
    read = None
    try:
        read = read_request(await _body(request))
        job = await run_in_threadpool(server.gate.admit, read)
    except RequestError as error:
        await run_in_threadpool(server.recorder.refused, read, error)
        raise
    headers = {CONTRACT_HEADER: server.bundle.contract.sha256}
    pieces = answerer.run(job, disconnected=request.is_disconnected)
    answer: Answer | None = None
    try:
        # A stream waits for its first piece, so that a refusal still has a status of its own
        first = await anext(pieces)
        if job.request.stream:
            body = _events(server, answerer, job, first=first, rest=pieces)
            return StreamingResponse(
                body, media_type="text/event-stream", headers={**headers, "cache-control": "no-cache"}
            )
        async with aclosing(pieces):
            answer = first if isinstance(first, Answer) else None
            async for piece in pieces:
                if isinstance(piece, Answer):
                    answer = piece
    except RequestError as error:
        await run_in_threadpool(
            server.recorder.failed, job, status=error.status, code=error.code, streamed=job.request.stream
        )
        raise
    except ClientGone:
        await run_in_threadpool(
            server.recorder.failed, job, status=CLIENT_GONE, code="client_gone", streamed=job.request.stream
        )
        return Response(status_code=CLIENT_GONE)
    assert answer is not None
    flags = await run_in_threadpool(server.recorder.answered, job, answer, streamed=False)
    return JSONResponse(
        completion_body(
            trace_id=job.id,
            created=int(job.arrived),
            model=job.model,
            fingerprint=server.bundle.fingerprint,
            message=message_body(
                answer.content, reasoning=answer.reasoning, tool_calls=answer.tool_calls, refusal=answer.refusal
            ),
            finish_reason=answer.finish_reason,
            token_usage=usage(len(job.generation.prompt), answer.completion_tokens),
            verdict=_verdict(server, answer, flags),
        ),
        headers=headers,
    )


async def _events(
    server: Server, answerer: Answerer, job: Job, *, first: str | Answer, rest: AsyncGenerator[str | Answer, None]
) -> AsyncGenerator[str, None]:
    """Yield the server-sent events of a streamed answer; whatever ends it, a trace is written."""
    common: dict[str, Any] = {
        "trace_id": job.id,
        "created": int(job.arrived),
        "model": job.model,
        "fingerprint": server.bundle.fingerprint,
    }
    live = answerer.streams_live(job)
    answer = first if isinstance(first, Answer) else None
    failure = (500, "internal_error")
    recorded = False
    try:
        yield _event(chunk_body(**common, delta={"role": "assistant", "content": "", "refusal": None}))
        async with aclosing(rest):
            if isinstance(first, str):
                yield _event(chunk_body(**common, delta={"content": first}))
            async for piece in rest:
                if isinstance(piece, Answer):
                    answer = piece
                else:
                    yield _event(chunk_body(**common, delta={"content": piece}))
        assert answer is not None
        flags = await run_in_threadpool(server.recorder.answered, job, answer, streamed=True)
        recorded = True
        if delta := _closing_delta(answer, live=live):
            yield _event(chunk_body(**common, delta=delta))
        verdict = _verdict(server, answer, flags)
        yield _event(chunk_body(**common, delta={}, finish_reason=answer.finish_reason, verdict=verdict))
        if job.request.include_usage:
            counts = usage(len(job.generation.prompt), answer.completion_tokens)
            yield _event(chunk_body(**common, token_usage=counts))
        yield "data: [DONE]\n\n"
    except RequestError as error:
        failure = (error.status, error.code)
        yield _event(error.body)
    except ClientGone:
        failure = (CLIENT_GONE, "client_gone")
    except (asyncio.CancelledError, GeneratorExit):
        failure = (CLIENT_GONE, "client_gone")
        raise
    finally:
        if not recorded:
            # Written in place: a task that is being cancelled cannot await, and the write takes about a millisecond
            server.recorder.failed(job, status=failure[0], code=failure[1], streamed=True)


def _closing_delta(answer: Answer, *, live: bool) -> dict[str, JSON]:
    """Return what the chunks so far did not say: a refusal, or all of an answer that was held back."""
    if answer.refusal is not None:
        return {"refusal": answer.refusal}
    if live:
        return {}
    body = message_body(answer.content, reasoning=answer.reasoning, tool_calls=answer.tool_calls)
    calls = body.get("tool_calls")
    if calls:
        body["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    return {name: value for name, value in body.items() if name != "role" and value is not None}


def _verdict(server: Server, answer: Answer, flags: tuple[str, ...]) -> dict[str, JSON]:
    return {
        "contract": server.bundle.contract.sha256,
        "parse_ok": answer.parse_ok,
        "schema_ok": answer.schema_ok,
        "errors": list(answer.errors),
        "guard_flags": list(flags),
        "attempts": answer.attempts,
        "deviation": answer.deviation,
    }


def _model_body(server: Server, name: str) -> dict[str, JSON]:
    body: dict[str, JSON] = {
        "id": name,
        "object": "model",
        "created": int(server.started),
        "owned_by": "tunesmith",
        "contract": server.bundle.contract.sha256,
        "max_model_len": server.engine.context_length,
    }
    if name == server.bundle.name:
        body |= {"parent": server.bundle.base.id, "adapter": server.bundle.adapter_sha256}
    return body


def _event(body: Mapping[str, JSON]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _body(request: Request) -> JSON:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}", code="invalid_json") from error


def _authorise(server: Server, request: Request) -> None:
    key = server.settings.api_key
    if key is None:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), key.encode()):
        raise RequestError(401, "the API key is missing or wrong", code="invalid_api_key")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_request: Request, error: RequestError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body, status_code=error.status, headers=headers)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        code = "method_not_allowed" if error.status_code == 405 else "not_found"
        return JSONResponse(error_body(error.status_code, str(error.detail), code=code), status_code=error.status_code)

    @app.exception_handler(Exception)
    async def bug(_request: Request, error: Exception) -> JSONResponse:
        body = error_body(500, f"a bug in the server: {type(error).__name__}", code="internal_error")
        return JSONResponse(body, status_code=500)
