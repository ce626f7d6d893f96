"""Engines: prompt ids in, token ids out, one at a time, from a thread of their own.

What lives here: the protocol that the server speaks and an engine that follows a script. What does not: text (an engine
never sees any: rendering is the contract's), HTTP. The engine over transformers is `serve.batching`.

    engine = ScriptedEngine(lambda prompt: (5, 6, 7), vocab_size=100)
    engine.start()
    cancel = engine.submit(request, print)          # NewTokens(ids=(5,)) ... Finished(reason=<FinishReason.STOP>)
    engine.close()
"""

from __future__ import annotations

import enum
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tunesmith.types import FinishReason

IMPOSSIBLE = -100.0
"""Log-probability of what a script does not say."""


class Weights(enum.StrEnum):
    """Which weights answer: the base alone, or the base with the bundle's adapter."""

    ADAPTER = "adapter"
    BASE = "base"


class Constraint(Protocol):
    """What may come next, for constrained decoding. One object serves one answer."""

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens of the vocabulary may come next."""
        ...

    def consume(self, token: int) -> None:
        """Take the token that came."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One answer to generate."""

    prompt: tuple[int, ...]
    stop_ids: frozenset[int]
    max_new_tokens: int
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    weights: Weights = Weights.ADAPTER
    make_constraint: Callable[[], Constraint] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokens:
    """Tokens that were just generated; a stop token is never among them."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of an answer; nothing follows it."""

    reason: FinishReason
    error: str | None = None
    """Why, where the reason is `ERROR`."""


Emit = Callable[[NewTokens | Finished], None]
"""Called from the engine's thread; must not block."""
Cancel = Callable[[], None]
"""Stops an answer that nobody waits for. `Finished` still follows, soon, unless it already came."""


class Engine(Protocol):
    """What generates. Every call may come from any thread."""

    name: str
    context_length: int | None
    """Positions of the model: prompt and answer together; `None` where it has no limit."""
    vocab_size: int
    """Rows of the logits; a tokenizer may know fewer."""

    def start(self) -> None:
        """Start the engine's thread."""
        ...

    def submit(self, request: GenerationRequest, emit: Emit) -> Cancel:
        """Queue one answer; `emit` gets its tokens as they come and then one `Finished`."""
        ...

    def next_token_logprobs(
        self, prompt: Sequence[int], weights: Weights, *, tokens: Sequence[int]
    ) -> tuple[float, ...]:
        """Return the log-probability of each of `tokens` to come next. Only before `start`."""
        ...

    def failure(self) -> str | None:
        """Return why the engine can no longer answer, or `None`."""
        ...

    def close(self) -> None:
        """Finish what is queued with `ERROR`, stop the thread and wait for it."""
        ...


class ScriptedEngine:
    """An engine that answers by a function of the prompt: for tests of the server, and of clients against it."""

    name = "scripted"

    def __init__(
        self,
        answer: Callable[[tuple[int, ...]], Sequence[int]],
        *,
        vocab_size: int,
        context_length: int | None = None,
    ) -> None:
        self.context_length = context_length
        self.vocab_size = vocab_size
        self._answer = answer
        self._jobs: queue.Queue[tuple[GenerationRequest, Emit, threading.Event] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="tunesmith-scripted-engine", daemon=True)
        self.gate = threading.Event()
        """Cleared by a test to hold all answers back."""
        self.gate.set()

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def submit(self, request: GenerationRequest, emit: Emit) -> Cancel:
        """Queue one answer."""
        cancelled = threading.Event()
        self._jobs.put((request, emit, cancelled))
        return cancelled.set

    def next_token_logprobs(
        self, prompt: Sequence[int], weights: Weights, *, tokens: Sequence[int]
    ) -> tuple[float, ...]:
        """Return 0 for the script's first token and a very small value for all others."""
        first = self._answer(tuple(prompt))[0]
        return tuple(0.0 if token == first else IMPOSSIBLE for token in tokens)

    def failure(self) -> str | None:
        """Return `None`: a script does not fail."""
        return None

    def close(self) -> None:
        """Stop after what is queued."""
        self.gate.set()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            request, emit, cancelled = job
            emit(self._say(request, emit, cancelled))

    def _say(self, request: GenerationRequest, emit: Emit, cancelled: threading.Event) -> Finished:
        for count, token in enumerate(self._answer(request.prompt), start=1):
            self.gate.wait()
            if cancelled.is_set():
                return Finished(reason=FinishReason.ERROR, error="cancelled")
            if token in request.stop_ids:
                return Finished(reason=FinishReason.STOP)
            emit(NewTokens(ids=(int(token),)))
            if count == request.max_new_tokens:
                return Finished(reason=FinishReason.LENGTH)
        return Finished(reason=FinishReason.LENGTH)
