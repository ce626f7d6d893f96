"""The engine over transformers: continuous batching with a key-value cache, adapter and base side by side.

What lives here: one thread that owns the model. A step generates one token for every running answer; new requests are
prefilled between two steps and join the batch, finished ones leave it. Requests to the adapter and to the base run in
two lanes over the same weights, the adapter switched off for the second.

    cache of a lane:   . . . p p p g g        p prompt, g generated, . padding (mask 0)
                       p p p p p p g g

What does not: text, HTTP, limits on how many may wait (`serve.limits`).
Answers at temperature 0 may differ between batch compositions where two tokens tie within rounding; `max_batch=1`
gives one composition at the price of throughput.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from tunesmith.errors import ServeError
from tunesmith.model.generate import choose, context_length
from tunesmith.model.load import DtypeName, load_model
from tunesmith.serve.engines import Cancel, Constraint, Emit, Finished, GenerationRequest, NewTokens, Weights
from tunesmith.types import FinishReason, Log

IDLE_SECONDS = 0.05
"""How long the thread sleeps at most before it looks again whether it shall close."""
_ATTENTION_LAYERS = ("full_attention", "sliding_attention")
"""Layer types whose cache is keys and values by position, so that rows can join and leave a batch."""


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
    """The answers that run on one set of weights: at least one. Shapes: B rows, T positions."""

    rows: list[_Running]
    cache: DynamicCache
    mask_BT: torch.Tensor
    """Which positions of the cache, and of `ids`, are not padding."""
    ids: torch.Tensor
    """What the next forward pass reads: (B, prompt) at first, then (B, 1)."""
    places: torch.Tensor
    """Positions of `ids` in their own rows."""


class TransformersEngine:
    """Generate with a causal language model of transformers, under PEFT or bare."""

    name = "transformers"

    def __init__(self, model: torch.nn.Module, *, max_batch: int, log: Log) -> None:
        """Take over the model. Raises `ServeError` for an architecture whose cache cannot be batched."""
        self.context_length = context_length(model)
        config: Any = model.config
        self.vocab_size = int(config.vocab_size)
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._has_adapter = hasattr(model, "disable_adapter")
        self._max_batch = max_batch
        self._log = log
        self._jobs: queue.Queue[tuple[GenerationRequest, Emit, threading.Event]] = queue.Queue()
        self._lock = threading.Lock()
        self._lanes: dict[Weights, _Batch | None] = dict.fromkeys(Weights)
        self._closing = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="tunesmith-engine", daemon=True)
        for kind in getattr(config, "layer_types", None) or ():
            if kind not in _ATTENTION_LAYERS:
                raise ServeError(
                    f"the transformers engine cannot batch layers of type {kind!r}",
                    expected=" or ".join(_ATTENTION_LAYERS),
                    hint="serve this model with vLLM",
                )

    def start(self) -> None:
        """Start the thread that owns the model from now on."""
        self._model.eval()
        self._thread.start()

    def submit(self, request: GenerationRequest, emit: Emit) -> Cancel:
        """Queue one answer."""
        assert request.prompt, "an empty prompt"
        if request.weights is Weights.ADAPTER and not self._has_adapter:
            raise ServeError("no adapter is loaded", hint="ask for the base model, or serve a bundle with an adapter")
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
        """Return the log-probability of each of `tokens` to come next."""
        assert not self._thread.is_alive(), "the engine's thread owns the model"
        with torch.inference_mode(), self._with_weights(weights):
            ids = torch.tensor([list(prompt)], device=self._device)
            logits_V = self._model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        return tuple(torch.log_softmax(logits_V.float(), dim=-1)[list(tokens)].tolist())

    def failure(self) -> str | None:
        """Return why the engine's thread ended, or `None` while it runs."""
        return self._failure

    def close(self) -> None:
        """Stop the thread; what still runs or waits finishes with `ERROR`."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def _with_weights(self, weights: Weights) -> Iterator[None]:
        off = self._has_adapter and weights is Weights.BASE
        with self._model.disable_adapter() if off else nullcontext():
            yield

    def _run(self) -> None:
        reason = "the server is closing"
        try:
            with torch.inference_mode():
                while not self._closing.is_set():
                    for weights, rows in self._take_waiting().items():
                        fresh = self._advanced(weights, _prompt_batch(rows, self._device))
                        self._lanes[weights] = _joined(self._lanes[weights], fresh)
                    for weights, batch in self._lanes.items():
                        if batch is not None:
                            self._lanes[weights] = self._advanced(weights, _without_cancelled(batch))
        except BaseException as error:
            reason = f"the engine stopped: {type(error).__name__}: {error}"
            raise
        finally:
            with self._lock:
                self._failure = reason
            for batch in self._lanes.values():
                if batch is not None:
                    _fail(batch.rows, reason)
            while not self._jobs.empty():
                self._jobs.get_nowait()[1](Finished(reason=FinishReason.ERROR, error=reason))

    def _take_waiting(self) -> dict[Weights, list[_Running]]:
        """Take what waits, as far as there is room; sleep a little where nothing runs and nothing waits."""
        num_running = sum(len(batch.rows) for batch in self._lanes.values() if batch is not None)
        taken: dict[Weights, list[_Running]] = {}
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
            taken.setdefault(request.weights, []).append(row)
            num_running += 1
        return taken

    def _advanced(self, weights: Weights, batch: _Batch | None) -> _Batch | None:
        """Generate one token for each row and return the rows that go on.

        Where the step fails (out of memory, say), its answers fail with the reason and the engine goes on.
        """
        if batch is None:
            return None
        try:
            with self._with_weights(weights):
                output = self._model(
                    input_ids=batch.ids,
                    attention_mask=batch.mask_BT,
                    position_ids=batch.places,
                    past_key_values=batch.cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            chosen = [_choose(logits_V, row) for logits_V, row in zip(output.logits[:, -1], batch.rows, strict=True)]
        except (RuntimeError, MemoryError, IndexError, ValueError) as error:
            self._log("engine_step_failed", {"error": f"{type(error).__name__}: {error}", "rows": len(batch.rows)})
            _fail(batch.rows, f"generation failed: {error}")
            return None
        keep = [
            index for index, (row, token) in enumerate(zip(batch.rows, chosen, strict=True)) if _goes_on(row, token)
        ]
        batch.ids = torch.tensor(chosen, device=self._device)[:, None]
        batch.places = batch.places[:, -1:] + 1
        batch.mask_BT = torch.nn.functional.pad(batch.mask_BT, (0, 1), value=1)
        return _kept(batch, keep)


def _prompt_batch(rows: list[_Running], device: torch.device) -> _Batch:
    prompts = [row.request.prompt for row in rows]
    width = max(len(prompt) for prompt in prompts)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return _Batch(
        rows=rows,
        cache=DynamicCache(),
        mask_BT=mask,
        ids=torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device),
        places=(mask.cumsum(1) - 1).clamp_(min=0),
    )


def _without_cancelled(batch: _Batch) -> _Batch | None:
    keep = []
    for index, row in enumerate(batch.rows):
        if row.cancelled.is_set():
            row.emit(Finished(reason=FinishReason.ERROR, error="cancelled"))
        else:
            keep.append(index)
    return _kept(batch, keep)


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


def _kept(batch: _Batch, keep: list[int]) -> _Batch | None:
    """Return the batch of the rows `keep`, without the columns that are padding for all of them."""
    if not keep:
        return None
    if len(keep) == len(batch.rows):
        return batch
    index = torch.tensor(keep, device=batch.mask_BT.device)
    mask_BT = batch.mask_BT[index]
    start = int((mask_BT.sum(0) > 0).int().argmax())
    return _Batch(
        rows=[batch.rows[place] for place in keep],
        cache=_cache_of(
            [(layer.keys[index][:, :, start:], layer.values[index][:, :, start:]) for layer in batch.cache.layers]
        ),
        mask_BT=mask_BT[:, start:],
        ids=batch.ids[index],
        places=batch.places[index],
    )


def _joined(one: _Batch | None, two: _Batch | None) -> _Batch | None:
    """Return one batch that holds the rows of both, the shorter one padded on the left."""
    if one is None or two is None:
        return two if one is None else one
    width = max(one.mask_BT.shape[1], two.mask_BT.shape[1])
    pad_one, pad_two = width - one.mask_BT.shape[1], width - two.mask_BT.shape[1]
    layers = [
        (
            torch.cat([_left_padded(left.keys, pad_one), _left_padded(right.keys, pad_two)]),
            torch.cat([_left_padded(left.values, pad_one), _left_padded(right.values, pad_two)]),
        )
        for left, right in zip(one.cache.layers, two.cache.layers, strict=True)
    ]
    masks = [torch.nn.functional.pad(mask, (pad, 0)) for mask, pad in ((one.mask_BT, pad_one), (two.mask_BT, pad_two))]
    return _Batch(
        rows=one.rows + two.rows,
        cache=_cache_of(layers),
        mask_BT=torch.cat(masks),
        ids=torch.cat([one.ids, two.ids]),
        places=torch.cat([one.places, two.places]),
    )


def _left_padded(tensor_BHTD: Any, pad: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor_BHTD, (0, 0, pad, 0)) if pad else tensor_BHTD


def _cache_of(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for index, (keys, values) in enumerate(layers):
        cache.update(keys, values, index)
    return cache


def open_engine(
    base_dir: Path, *, adapter_dir: Path | None, dtype: DtypeName, device: str, max_batch: int, log: Log
) -> TransformersEngine:
    """Load base and adapter and return an engine over them, not yet started."""
    model = load_model(base_dir, dtype=dtype, adapter_dir=adapter_dir).to(device)
    return TransformersEngine(model, max_batch=max_batch, log=log)
