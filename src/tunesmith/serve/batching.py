"""The engine: continuous batching, adapter and base side by side, in one thread that owns the model.

What lives here: who runs. A round generates one token for every running answer; new requests are prefilled between two
rounds and join their lane, finished ones leave it. What does not: the arithmetic (`serve.runners`), text, HTTP, limits
on how many may wait (`serve.limits`).

    lane (adapter)   row row row      each round: one forward pass a lane
    lane (base)      row

Answers at temperature 0 may differ between batch compositions where two tokens tie within rounding; `max_batch=1`
gives one composition at the price of throughput.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ServeError
from tunesmith.model.load import DtypeName, is_whole_model, load_model
from tunesmith.model.rows import choose
from tunesmith.serve.engines import Cancel, Constraint, Emit, Finished, GenerationRequest, NewTokens, Weights
from tunesmith.serve.runners import Lane, Runner, choose_runner
from tunesmith.types import FinishReason, Log

IDLE_SECONDS = 0.05
"""How long the thread sleeps at most before it looks again whether it shall close."""


@dataclass(slots=True, kw_only=True)
class _Running:
    """One answer in the batch."""

    request: GenerationRequest
    emit: Emit
    cancelled: threading.Event
    constraint: Constraint | None
    random: torch.Generator
    num_new: int = 0


@dataclass(slots=True, kw_only=True)
class _Batch:
    """The answers that run in one lane: at least one."""

    rows: list[_Running]
    state: Any
    """The runner's."""
    tokens: list[int]
    """Last token of each row: what the next step reads."""


class BatchingEngine:
    """Generate with a runner. See `engines.Engine`."""

    def __init__(self, runner: Runner, *, max_batch: int, log: Log, holds: frozenset[Weights] | None = None) -> None:
        """Take the runner. `holds` are the weights that it answers with; by default the base's, and an adapter's."""
        self._holds = holds or frozenset(Weights if runner.has_adapter else (Weights.BASE,))
        self.name = runner.name
        self.context_length = runner.context_length
        self.vocab_size = runner.vocab_size
        self._runner = runner
        self._max_batch = max_batch
        self._log = log
        self._jobs: queue.Queue[tuple[GenerationRequest, Emit, threading.Event]] = queue.Queue()
        self._lock = threading.Lock()
        self._batches: dict[Lane, _Batch] = {}
        self._closing = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="tunesmith-engine", daemon=True)

    def start(self) -> None:
        """Start the thread that owns the model from now on."""
        self._thread.start()

    def submit(self, request: GenerationRequest, emit: Emit) -> Cancel:
        """Queue one answer. Raises `ServeError` where it asks for an adapter and none is loaded."""
        assert request.prompt, "an empty prompt"
        if request.weights not in self._holds:
            missing = "no adapter is" if request.weights is Weights.ADAPTER else "the base is not"
            raise ServeError(f"{missing} loaded", hint="ask for the other model, or serve a bundle with an adapter")
        cancelled = threading.Event()
        with self._lock:
            if self._failure is None:
                self._jobs.put((request, emit, cancelled))
                return cancelled.set
        emit(Finished(reason=FinishReason.ERROR, error=self._failure))
        return cancelled.set

    def next_token_logprobs(
        self, prompt: Sequence[int], weights: Weights, *, tokens: Sequence[int]
    ) -> tuple[float, ...]:
        """Return the log-probability of each of `tokens` to come next, computed as answers are."""
        assert not self._thread.is_alive(), "the engine's thread owns the model"
        with torch.inference_mode():
            _, logits_RV = self._runner.prefill(self._runner.lane(prompt, weights), [prompt])
        return tuple(torch.log_softmax(logits_RV[0].float(), dim=-1)[list(tokens)].tolist())

    def failure(self) -> str | None:
        """Return why the engine's thread ended, or `None` while it runs."""
        return self._failure

    def close(self) -> None:
        """Stop the thread; what still runs or waits finishes with `ERROR`."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        reason = "the server is closing"
        try:
            with torch.inference_mode():
                while not self._closing.is_set():
                    for lane, rows in self._take_waiting().items():
                        self._admit(lane, rows)
                    for lane in list(self._batches):
                        self._step(lane)
        except BaseException as error:
            reason = f"the engine stopped: {type(error).__name__}: {error}"
            raise
        finally:
            with self._lock:
                self._failure = reason
            for batch in self._batches.values():
                _fail(batch.rows, reason)
            while not self._jobs.empty():
                self._jobs.get_nowait()[1](Finished(reason=FinishReason.ERROR, error=reason))

    def _take_waiting(self) -> dict[Lane, list[_Running]]:
        """Take what waits, as far as there is room; sleep a little where nothing runs and nothing waits."""
        num_running = sum(len(batch.rows) for batch in self._batches.values())
        taken: dict[Lane, list[_Running]] = {}
        while num_running < self._max_batch:
            try:
                request, emit, cancelled = self._jobs.get(block=num_running == 0, timeout=IDLE_SECONDS)
            except queue.Empty:
                break
            row = _Running(
                request=request,
                emit=emit,
                cancelled=cancelled,
                constraint=request.make_constraint() if request.make_constraint is not None else None,
                random=torch.Generator().manual_seed(request.seed),
            )
            taken.setdefault(self._runner.lane(request.prompt, request.weights), []).append(row)
            num_running += 1
        return taken

    def _admit(self, lane: Lane, rows: list[_Running]) -> None:
        """Prefill new rows, emit their first tokens, and let those that go on join their lane."""
        fresh = self._guarded(rows, lambda: self._runner.prefill(lane, [row.request.prompt for row in rows]))
        if fresh is None:
            return
        running = self._batches.get(lane)
        if running is None:
            self._batches[lane] = fresh
            return
        running.state = self._runner.join(running.state, fresh.state)
        running.rows += fresh.rows
        running.tokens += fresh.tokens

    def _step(self, lane: Lane) -> None:
        """Add one token to every answer of a lane, those apart that nobody waits for any more."""
        batch = self._batches[lane]
        keep = []
        for index, row in enumerate(batch.rows):
            if row.cancelled.is_set():
                row.emit(Finished(reason=FinishReason.ERROR, error="cancelled"))
            else:
                keep.append(index)
        kept = self._kept(batch, keep)
        advanced = None
        if kept is not None:
            advanced = self._guarded(kept.rows, lambda: self._runner.step(lane, kept.state, kept.tokens))
        if advanced is not None:
            self._batches[lane] = advanced
        else:
            del self._batches[lane]

    def _guarded(self, rows: list[_Running], forward: Callable[[], tuple[Any, torch.Tensor]]) -> _Batch | None:
        """Run one forward pass and emit a token of each row; return the batch of those that go on.

        Where it fails (out of memory, say), its answers fail with the reason and the engine goes on.
        """
        try:
            state, logits_BV = forward()
            tokens = [_choose(logits_V, row) for logits_V, row in zip(logits_BV, rows, strict=True)]
        except (RuntimeError, MemoryError, IndexError, ValueError) as error:
            self._log("engine_step_failed", {"error": f"{type(error).__name__}: {error}", "rows": len(rows)})
            _fail(rows, f"generation failed: {error}")
            return None
        except BaseException:
            _fail(rows, "the engine stopped")
            raise
        keep = [index for index, (row, token) in enumerate(zip(rows, tokens, strict=True)) if _goes_on(row, token)]
        return self._kept(_Batch(rows=rows, state=state, tokens=tokens), keep)

    def _kept(self, batch: _Batch, keep: list[int]) -> _Batch | None:
        if not keep:
            return None
        if len(keep) == len(batch.rows):
            return batch
        return _Batch(
            rows=[batch.rows[index] for index in keep],
            state=self._runner.keep(batch.state, keep),
            tokens=[batch.tokens[index] for index in keep],
        )


def _fail(rows: Sequence[_Running], reason: str) -> None:
    for row in rows:
        row.emit(Finished(reason=FinishReason.ERROR, error=reason))


def _goes_on(row: _Running, token: int) -> bool:
    """Emit what the token means for the row, and tell whether the row wants another one."""
    if token in row.request.stop_ids:
        row.emit(Finished(reason=FinishReason.STOP))
        return False
    row.num_new += 1
    row.emit(NewTokens(ids=(token,)))
    if row.num_new == row.request.max_new_tokens:
        row.emit(Finished(reason=FinishReason.LENGTH))
        return False
    return True


def _choose(logits_V: torch.Tensor, row: _Running) -> int:
    if row.constraint is not None:
        allowed = torch.from_numpy(row.constraint.allowed()).to(logits_V.device)
        logits_V = logits_V.masked_fill(~allowed, float("-inf"))
    request = row.request
    token = choose(logits_V[None], [row.random], temperature=request.temperature, top_p=request.top_p)[0]
    if row.constraint is not None:
        row.constraint.consume(token)
    return token


def open_engine(
    base_dir: Path,
    *,
    adapter_dir: Path | None,
    dtype: DtypeName,
    device: str,
    max_batch: int,
    prefix: Sequence[int],
    log: Log,
) -> BatchingEngine:
    """Load base and adapter and return an engine over them, not yet started.

    `prefix` is what prompts of the contract begin with: a runner may compute it once.
    """
    model = load_model(base_dir, dtype=dtype, adapter_dir=adapter_dir).to(device).eval()
    runner, reason = choose_runner(model, prefix=prefix)
    log("engine_chosen", {"engine": runner.name, "reason": reason, "prefix_tokens": len(prefix)})
    whole = adapter_dir is not None and is_whole_model(adapter_dir)
    return BatchingEngine(runner, max_batch=max_batch, log=log, holds=frozenset((Weights.ADAPTER,)) if whole else None)
