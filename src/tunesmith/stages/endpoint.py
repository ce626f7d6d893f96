"""Ask a further system over HTTP: any OpenAI-compatible URL, such as vLLM, or the bundle that is in production.

    evaluate:
      endpoints:
        - {name: production, url: "http://127.0.0.1:8000/v1", model: desk-triage, snapshot: 2026-11-20, system: none}

What lives here: requests, their retries, and answers kept while a stage is unfinished. What does not: scoring
(the stages), our own engines (`stages.answering`). A URL is no content: `snapshot` is what stands for the state of the
server, so the same name is asked once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from tunesmith.core.spec import Spec
from tunesmith.core.stage import Context
from tunesmith.errors import ServeError
from tunesmith.types import JSON, Completion, Conversation, FinishReason, ToolCall, canonical_json, sha256_hex

if TYPE_CHECKING:
    import openai

    from tunesmith.chat.contract import Contract

MAX_FAILED_SHARE = 0.02
"""More requests without an answer than this stop the stage: what is left would be a biased sample."""
ATTEMPTS = 4
"""Retries of a request that the server could not take just now, with growing waits (the openai client's)."""
_OWN_NAMES = ("base", "tuned")


class Endpoint(Spec):
    """A further system behind an OpenAI-compatible URL."""

    name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    """Name in results and criteria: `exact_match - NAME >= 0`."""
    url: str = Field(pattern=r"^https?://")
    """Base URL that ends in `/v1`."""
    model: str
    """Model id there."""
    snapshot: str
    """What you call the state of that server, such as a date or a bundle: a new name asks it again."""
    system: Literal["contract", "none"] = "contract"
    """Whether the contract's system prompt is sent; a server of tunesmith has its own."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself is never stored."""
    workers: int = Field(4, ge=1, le=64)
    """Requests under way at once."""

    @field_validator("name")
    @classmethod
    def _not_ours(cls, value: str) -> str:
        if value in _OWN_NAMES:
            raise ValueError(f"{value!r} is the name of a system of this run: call the endpoint otherwise")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAnswer:
    """What the server said. The ids are the contract's tokenizer's, for counts and loops."""

    text: str
    calls: tuple[ToolCall, ...]
    completion: Completion


def ask_endpoint(
    endpoint: Endpoint,
    conversations: Sequence[Conversation],
    contract: Contract,
    ctx: Context,
    *,
    max_new_tokens: int | None = None,
) -> list[EndpointAnswer | None]:
    """Return the server's answer to each conversation; `None` where it gave none after several attempts.

    Raises `ServeError` where it refuses a request itself (URL, model, key, parameters), or fails too often. Answers
    that came are kept in `ctx.work`, so that a second attempt asks only for the others.
    """
    bodies = [_body(endpoint, c, contract, max_new_tokens=max_new_tokens) for c in conversations]
    keys = [sha256_hex(canonical_json([endpoint.url, endpoint.snapshot, body])) for body in bodies]
    cache = ctx.work / f"endpoint-{endpoint.name}.jsonl"
    known = _read(cache)
    missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in known}
    failed: dict[str, str] = {}
    client = _client(endpoint)
    with cache.open("a", encoding="utf-8") as handle, ThreadPoolExecutor(endpoint.workers) as pool:
        if cache.stat().st_size:
            handle.write("\n")  # ends a line that a crash cut short
        asked = pool.map(lambda pair: (pair[0], _ask(client, endpoint, pair[1])), missing.items())
        for done, (key, said) in enumerate(asked, start=1):
            if isinstance(said, str):
                failed[key] = said
            else:
                known[key] = said
                handle.write(json.dumps({"key": key, **said}) + "\n")
                handle.flush()
            ctx.progress(done, len(missing), f"{endpoint.name}: {done} of {len(missing)} answers")
    if len(failed) > MAX_FAILED_SHARE * len(bodies):
        raise ServeError(
            f"the endpoint {endpoint.name!r} failed too often for its answers to be compared",
            where=endpoint.url,
            expected=f"at most {MAX_FAILED_SHARE:.0%} of {len(bodies)} requests",
            found=f"{len(failed)}, such as: {next(iter(failed.values()))[:200]}",
            hint="run again: what was answered is kept",
        )
    return [_answer(known[key], contract) if key in known else None for key in keys]


def _body(
    endpoint: Endpoint, conversation: Conversation, contract: Contract, *, max_new_tokens: int | None
) -> dict[str, JSON]:
    turns = [m.to_json() for m in conversation.messages if m.role not in ("system", "developer")]
    if endpoint.system == "contract" and contract.system:
        turns.insert(0, {"role": "system", "content": contract.system})
    decoding = contract.decoding
    body: dict[str, JSON] = {
        "model": endpoint.model,
        "messages": turns,
        "temperature": decoding.temperature,
        "max_tokens": decoding.max_new_tokens if max_new_tokens is None else max_new_tokens,
    }
    if decoding.temperature > 0:
        body |= {"top_p": decoding.top_p, "seed": decoding.seed}
    if conversation.tools:
        body["tools"] = [dict(tool) for tool in conversation.tools]
    return body


def _client(endpoint: Endpoint) -> openai.OpenAI:
    import openai

    key = "none"
    if endpoint.api_key_env is not None:
        try:
            key = os.environ[endpoint.api_key_env]
        except KeyError:
            raise ServeError(
                f"the key of the endpoint {endpoint.name!r} is not in the environment",
                expected=endpoint.api_key_env,
                found="no such variable",
            ) from None
    return openai.OpenAI(base_url=endpoint.url, api_key=key, max_retries=ATTEMPTS, timeout=600.0)


def _ask(client: openai.OpenAI, endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, JSON] | str:
    """Return what was said, or why nothing came."""
    import openai

    started = time.perf_counter()
    try:
        answer = client.chat.completions.create(**body)
    except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
        return f"{type(error).__name__}: {error}"
    except openai.APIStatusError as error:
        raise ServeError(
            f"the endpoint {endpoint.name!r} refuses the request",
            where=endpoint.url,
            found=f"{error.status_code}: {error.message}"[:300],
            hint="check url, model, api_key_env and system of the endpoint",
        ) from error
    if not answer.choices:
        return "the answer holds no choice"
    choice = answer.choices[0]
    return {
        "text": choice.message.content or "",
        "tool_calls": [
            {"name": call.function.name, "arguments": call.function.arguments, "id": call.id}
            for call in choice.message.tool_calls or ()
            if call.type == "function"
        ],
        "cut": choice.finish_reason == "length",
        "prompt_tokens": answer.usage.prompt_tokens if answer.usage else 0,
        "seconds": time.perf_counter() - started,
    }


def _answer(said: Mapping[str, JSON], contract: Contract) -> EndpointAnswer:
    completion = Completion(
        ids=tuple(contract.tokenizer.encode(said["text"]).ids),
        finish_reason=FinishReason.LENGTH if said["cut"] else FinishReason.STOP,
        prompt_tokens=said["prompt_tokens"],
        seconds=said["seconds"],
    )
    calls = tuple(
        ToolCall(name=c["name"], arguments=_arguments(c["arguments"]), id=c["id"]) for c in said["tool_calls"]
    )
    return EndpointAnswer(text=said["text"], calls=calls, completion=completion)


def _arguments(text: str) -> JSON:
    """Return arguments as a value, or the text itself where it is no JSON: the scorer then says what is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _read(cache: Any) -> dict[str, dict[str, JSON]]:
    out: dict[str, dict[str, JSON]] = {}
    if not cache.exists():
        return out
    for line in cache.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
            out[value.pop("key")] = value
        except (json.JSONDecodeError, KeyError):
            continue  # the line that a crash cut short: it is asked again
    return out
