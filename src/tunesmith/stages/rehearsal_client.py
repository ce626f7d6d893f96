"""The client's side of a rehearsal: requests over HTTP as OpenAI's own library sends them, ratings, and what must fail.

What lives here: sending, rating by known answers, provoking refusals. What does not: which requests there are, the
server's process, the report (`stages.rehearse`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ServeError
from tunesmith.types import JSON, canonical_json, sha256_hex

if TYPE_CHECKING:
    import openai

CLIENTS = 8

Heard = Callable[[int, int], None]
"""`heard(answers, requests)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to send."""

    messages: list[dict[str, str]]
    expected: str | None
    """The known answer; `None` where there is none."""
    origin: str
    """`test`, `val`, `fresh` or `out_of_scope`."""
    streamed: bool
    private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """What came back."""

    ask: Ask
    completion_id: str
    content: str | None
    seconds: float
    first_seconds: float | None
    """To the first piece of text, where it was streamed."""
    schema_ok: bool | None


def _client(url: str) -> openai.OpenAI:
    import openai

    # No proxy of the environment stands between a machine and itself
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300.0, http_client=http)


def send(url: str, asks: Sequence[Ask], heard: Heard) -> list[Got]:
    """Send all requests, several at a time, and return what came back, in their order."""
    client = _client(url)
    model = client.models.list().data[0].id
    got: list[Got] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done, item in enumerate(pool.map(lambda ask: _ask(client, model, ask), asks), start=1):
            got.append(item)
            heard(done, len(asks))
    return got


def _ask(client: openai.OpenAI, model: str, ask: Ask) -> Got:
    create: Any = client.chat.completions.create
    common = {
        "model": model,
        "messages": ask.messages,
        "store": not ask.private,
        "metadata": {"origin": ask.origin},
    }
    began = time.perf_counter()
    if not ask.streamed:
        answer = create(**common)
        message = answer.choices[0].message
        return Got(
            ask=ask,
            completion_id=answer.id,
            content=message.content,
            seconds=time.perf_counter() - began,
            first_seconds=None,
            schema_ok=answer.tunesmith["schema_ok"],
        )
    first, text, verdict, ident, usage = None, "", None, "", None
    for chunk in create(**common, stream=True, stream_options={"include_usage": True}):
        ident, usage = chunk.id, chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.perf_counter() - began
                text += choice.delta.content
        verdict = getattr(chunk, "tunesmith", None) or verdict
    if usage is None or verdict is None:
        raise ServeError("a streamed answer ended without usage or verdict", found=f"{len(text)} characters of {ident}")
    return Got(
        ask=ask,
        completion_id=ident,
        content=text,
        seconds=time.perf_counter() - began,
        first_seconds=first,
        schema_ok=verdict["schema_ok"],
    )


def rate(url: str, got: Sequence[Got], wanted: float) -> dict[str, int]:
    """Rate by the known answers: good, or bad with the right answer; return the counts."""
    client = _client(url)
    counts = {"good": 0, "bad": 0, "unrated": 0}
    for item in got:
        chosen = int(sha256_hex(f"rate {canonical_json(item.ask.messages)}")[:8], 16) / 0xFFFFFFFF
        if item.ask.expected is None or chosen >= wanted:
            counts["unrated"] += 1
            continue
        right = same_answer(item.content, item.ask.expected)
        body: dict[str, JSON] = {"completion_id": item.completion_id, "rating": 1 if right else -1}
        if not right:
            body |= {"correction": item.ask.expected, "comment": "not the known answer"}
        client.post("/feedback", body=body, cast_to=object)
        counts["good" if right else "bad"] += 1
    return counts


def same_answer(answer: str | None, expected: str) -> bool:
    """Whether two answers are the same JSON value, or the same text where one is no JSON."""
    if answer is None:
        return False
    try:
        return bool(canonical_json(json.loads(answer)) == canonical_json(json.loads(expected)))
    except (ValueError, RecursionError):
        return answer.strip() == expected.strip()


def provoke(url: str, model: str) -> dict[str, dict[str, JSON]]:
    """Send what must be refused; return name -> {expected, found, code}."""
    import openai

    client = _client(url)
    hello = [{"role": "user", "content": "hello"}]
    create: Any = client.chat.completions.create
    attempts: dict[str, tuple[int, Callable[[], object]]] = {
        "over_long_prompt": (
            400,
            lambda: create(model=model, messages=[{"role": "user", "content": "again and again " * 40_000}]),
        ),
        "unknown_model": (404, lambda: create(model="no-such-model", messages=hello)),
        "unknown_parameter": (400, lambda: create(model=model, messages=hello, extra_body={"temprature": 1})),
        "two_answers": (400, lambda: create(model=model, messages=hello, n=2)),
        "image": (
            400,
            lambda: create(
                model=model,
                messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
            ),
        ),
        "other_template": (
            422,
            lambda: create(model=model, messages=hello, extra_body={"chat_template": "{{ messages }}"}),
        ),
        "body_that_is_no_object": (400, lambda: client.post("/chat/completions", body=[1], cast_to=object)),
        "body_too_large": (413, lambda: create(model=model, messages=[{"role": "user", "content": "x" * 2_000_000}])),
        "feedback_on_nothing": (
            404,
            lambda: client.post("/feedback", body={"completion_id": "no-such-id", "rating": 1}, cast_to=object),
        ),
    }
    out: dict[str, dict[str, JSON]] = {}
    for name, (expected, attempt) in attempts.items():
        try:
            attempt()
            found: tuple[int, JSON] = (200, None)
        except openai.APIStatusError as error:
            found = (error.status_code, error.body.get("code") if isinstance(error.body, dict) else None)
        out[name] = {"expected": expected, "found": found[0], "code": found[1]}
    return out


def get(url: str, path: str) -> str:
    """Return the text behind a path of the server."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}{path}", timeout=30) as response:
        text: str = response.read().decode("utf-8")
    return text
