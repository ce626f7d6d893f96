"""Limits: how large a request may be, how many run and wait at once, how long anyone waits.

What lives here: the numbers, the queue in front of the engine, and the cut-off for bodies. What does not: the context
length of the model (the engine's) and the meaning of a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tunesmith.serve.requests import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server takes on."""

    max_body_bytes: int = 1 << 20
    max_prompt_tokens: int = 4096
    max_new_tokens: int = 1024
    """Largest `max_tokens` that a request may ask for."""
    max_running: int = 8
    """Answers in generation at once: the engine's batch."""
    max_waiting: int = 64
    """Requests that wait for a place; one more gets 429."""
    queue_seconds: float = 30.0
    request_seconds: float = 120.0
    """Longest generation, all attempts together; then 504."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            assert getattr(self, name) > 0, (name, getattr(self, name))


class Admission:
    """The queue in front of the engine. Belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(limits.max_running)
        self.num_waiting = 0
        self.num_running = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place. Raises `RequestError` 429 where too many wait already, or the wait takes too long."""
        if self._places.locked() and self.num_waiting >= self._limits.max_waiting:
            raise RequestError(
                429,
                f"{self.num_running} requests run and {self.num_waiting} wait; try again later",
                code="queue_full",
            )
        self.num_waiting += 1
        try:
            await asyncio.wait_for(self._places.acquire(), self._limits.queue_seconds)
        except TimeoutError:
            raise RequestError(
                429,
                f"no place came free within {self._limits.queue_seconds:g} s; try again later",
                code="queue_timeout",
            ) from None
        finally:
            self.num_waiting -= 1
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            self._places.release()


class BodyLimit:
    """ASGI middleware that answers 413 once a body is longer than the limit, whatever its header said."""

    def __init__(self, app: Asgi, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting its bytes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise RequestError(413, f"the body is longer than {self._max_bytes:,} bytes", code="body_too_large")
            return message

        await self._app(scope, counted, send)
