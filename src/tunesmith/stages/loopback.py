"""A chat endpoint on loopback over one model and its contract, for programs that ask over HTTP.

    with serve_chat(engine, contract, model="tuned") as endpoint:
        run_program([..., endpoint.url], ...)
    endpoint.asked

What lives here: `GET /v1/models` and `POST /v1/chat/completions` without streaming, as much as a red-team tool needs.
What does not: the server that bundles are served with (`serve.app`): guardrails, traces and admission stand outside of
what a model is measured for, and there is no bundle before it was measured.
"""

from __future__ import annotations

import json
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ContractError
from tunesmith.types import JSON, Conversation, FinishReason, Message

if TYPE_CHECKING:
    from tunesmith.chat.contract import Contract
    from tunesmith.serve.engines import Engine, Finished, NewTokens, Weights

_MOST_BYTES = 4_000_000
"""Longest request that is read."""


@dataclass(slots=True)
class Endpoint:
    """Where a model answers while the context lasts."""

    url: str
    """Ends in `/v1`."""
    api_key: str
    asked: int = 0
    """Requests that were answered."""
    refused: list[str] = field(default_factory=list)
    """Why others were not."""


@contextmanager
def serve_chat(engine: Engine, contract: Contract, *, weights: Weights, model: str) -> Iterator[Endpoint]:
    """Answer chat requests under the contract: its system prompt, template, decoding and longest answer.

    `engine` must have been started. A request may ask for fewer tokens, never for more, and for nothing else.
    """
    endpoint = Endpoint(url="", api_key=secrets.token_urlsafe(24))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(engine, contract, weights, model, endpoint))
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, name="tunesmith-loopback", daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(
    engine: Engine, contract: Contract, weights: Weights, model: str, endpoint: Endpoint
) -> type[BaseHTTPRequestHandler]:
    """Return a request handler over these objects."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing goes to the terminal."""

        def do_GET(self) -> None:
            if self._authorised():
                self._send(200, {"object": "list", "data": [{"id": model, "object": "model", "owned_by": "tunesmith"}]})

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(min(length, _MOST_BYTES))
            if not self._authorised():
                return
            if length > _MOST_BYTES or not self.path.endswith("/chat/completions"):
                self._refuse(404, f"nothing is answered at {self.path}")
                return
            try:
                request = json.loads(body)
                prompt = render_request(request, contract)
                longest = _longest(request, contract)
                _check_fits(prompt, longest, engine)
            except (ValueError, KeyError, TypeError, ContractError) as error:
                self._refuse(400, str(error).splitlines()[0])
                return
            ids, finished = ask(engine, contract, prompt, weights=weights, max_new_tokens=longest)
            if finished.reason is FinishReason.ERROR:
                self._refuse(500, finished.error or "the engine failed")
                return
            endpoint.asked += 1
            text = contract.decode(ids)
            self._send(200, _completion(model, text, finished.reason, prompt=len(prompt), new=len(ids)))

        def _authorised(self) -> bool:
            if secrets.compare_digest(self.headers.get("authorization") or "", f"Bearer {endpoint.api_key}"):
                return True
            self._refuse(401, "another key than the one that this run made")
            return False

        def _refuse(self, status: int, reason: str) -> None:
            endpoint.refused.append(reason)
            self._send(status, {"error": {"message": reason, "type": "invalid_request_error", "code": status}})

        def _send(self, status: int, body: Mapping[str, JSON]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def render_request(request: Mapping[str, Any], contract: Contract) -> tuple[int, ...]:
    """Return the prompt ids of a chat request.

    A request's own system prompt stands where the contract leaves that to rows. Raises `ContractError` where the
    contract has one, or refuses the conversation otherwise.
    """
    messages = tuple(Message(role=item["role"], content=_text(item["content"])) for item in request["messages"])
    own = any(message.role in ("system", "developer") for message in messages)
    if own and contract.system is not None:
        raise ContractError("the request brings a system prompt, and the contract has its own")
    return tuple(contract.render_prompt(Conversation(messages=messages)).ids)


def _text(content: JSON) -> str:
    """Return a message's text, given as text or as parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content)


def _longest(request: Mapping[str, Any], contract: Contract) -> int:
    asked = request.get("max_completion_tokens") or request.get("max_tokens")
    most = contract.decoding.max_new_tokens
    return min(most, int(asked)) if asked else most


def _check_fits(prompt: tuple[int, ...], longest: int, engine: Engine) -> None:
    if engine.context_length is not None and len(prompt) + longest > engine.context_length:
        raise ValueError(f"{len(prompt)} tokens and {longest} new ones do not fit {engine.context_length} positions")


def ask(
    engine: Engine, contract: Contract, prompt: tuple[int, ...], *, weights: Weights, max_new_tokens: int
) -> tuple[list[int], Finished]:
    """Return an answer's tokens and how it ended, waiting for them."""
    from tunesmith.serve.engines import Finished, GenerationRequest

    came: queue.Queue[NewTokens | Finished] = queue.Queue()
    decoding = contract.decoding
    request = GenerationRequest(
        prompt=prompt,
        stop_ids=frozenset(contract.stop_ids),
        max_new_tokens=max_new_tokens,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=decoding.seed,
        weights=weights,
    )
    engine.submit(request, came.put)
    ids: list[int] = []
    while not isinstance(event := came.get(), Finished):
        ids += event.ids
    return ids, event


def _completion(model: str, text: str, reason: FinishReason, *, prompt: int, new: int) -> dict[str, JSON]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reason.value,
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new},
    }
