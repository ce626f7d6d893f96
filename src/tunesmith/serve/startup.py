"""Start: what must hold before a server listens.

    port free -> files unchanged -> base is the base -> golden ids reproduced -> golden probabilities reproduced
      -> one real answer that is not empty -> listen

What lives here: those proofs, in that order, and the port. What does not: the files themselves (`serve.bundle`).
Each failure is a `ServeError` that says what was expected and found; none is logged and passed over.
"""

from __future__ import annotations

import queue
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tunesmith.errors import ServeError
from tunesmith.serve.bundle import Bundle
from tunesmith.serve.engines import Engine, Finished, GenerationRequest, Weights
from tunesmith.types import Conversation, FinishReason

MAX_ERROR, MIN_ERROR = 0.05, 0.02
"""Bounds on the error that golden log-probabilities may have, as `_errors` measures it. One engine against another, or
bfloat16 against float32, is 0.01 off; an adapter at half its scale 0.27 (SmolLM2-135M)."""
SHARE_OF_SEPARATION = 0.3
"""Within those two, the error may be this share of what the adapter changes on the same tokens: an engine that applies
half of an adapter is half of that away."""
FIRST_ANSWER_SECONDS = 300.0
FIRST_ANSWER_TOKENS = 8
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

PromptIds = Callable[[Conversation], Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a start proved, as `/health` shows it."""

    golden_vectors: int
    golden_probabilities: int
    mean_logprob_error: float | None
    """Relative, against the figures that the bundle recorded; `None` where it recorded none."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host name or address."""
    return host in _LOOPBACK or host.startswith("127.")


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet; port 0 takes any free one. Raises `ServeError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise ServeError(
            f"cannot listen on port {port}",
            where=f"{host}:{port}",
            found=getattr(error, "strerror", None) or str(error),
            hint="stop the process that has the port, or give another one with --port",
        ) from error
    return bound


def replay_golden(bundle: Bundle, prompt_ids: PromptIds) -> int:
    """Render every golden conversation the way requests are rendered; return how many there were.

    Raises `ServeError` that names the first position at which the ids differ.
    """
    for number, golden in enumerate(bundle.golden, start=1):
        found = tuple(prompt_ids(golden.conversation))
        if found == golden.ids:
            continue
        position = next(
            (index for index, (a, b) in enumerate(zip(golden.ids, found, strict=False)) if a != b),
            min(len(golden.ids), len(found)),
        )
        raise ServeError(
            f"golden vector {number} is not reproduced: it differs at position {position}",
            where=str(bundle.root / "golden.jsonl"),
            expected=f"{len(golden.ids)} ids, there {_around(golden.ids, position)}",
            found=f"{len(found)} ids, there {_around(found, position)}",
            hint="this server would ask the model something else than it was trained on; make the bundle again",
        )
    return len(bundle.golden)


def _around(ids: Sequence[int], position: int) -> str:
    return str(list(ids[position : position + 5])) if position < len(ids) else "nothing"


def replay_probabilities(bundle: Bundle, engine: Engine) -> tuple[int, float | None]:
    """Compare the engine's next-token log-probabilities with the recorded ones; return (vectors, mean error in nats).

    Raises `ServeError` where they are far off: wrong weights, an adapter that the engine does not apply, or one that it
    applies in part.
    """
    probes = [golden for golden in bundle.golden if golden.next_tokens]
    if not probes:
        return 0, None
    to_tuned: list[float] = []
    to_base: list[float] = []
    apart: list[float] = []
    for golden in probes:
        found = engine.next_token_logprobs(golden.ids, Weights.ADAPTER, tokens=golden.next_tokens)
        to_tuned += _errors(found, golden.tuned_logprobs)
        to_base += _errors(found, golden.base_logprobs)
        apart += _errors(golden.base_logprobs, golden.tuned_logprobs)
    error, error_to_base = fmean(to_tuned), fmean(to_base)
    allowed = min(MAX_ERROR, max(MIN_ERROR, SHARE_OF_SEPARATION * fmean(apart)))
    if error > allowed:
        reason = "the adapter is not applied" if error_to_base < MIN_ERROR else "these are other weights"
        raise ServeError(
            f"the engine does not reproduce the model: {reason}",
            where=engine.name,
            expected=f"golden log-probabilities at most {allowed:.1%} off on average",
            found=f"{error:.1%} off, and {error_to_base:.1%} off those of the bare base",
            hint="check the engine's support for this adapter, or serve with the transformers engine",
        )
    return len(probes), error


def _errors(found: Sequence[float], recorded: Sequence[float]) -> list[float]:
    """Return differences of log-probabilities relative to their size, or to one nat where that is more.

    Rounding changes a log-probability in proportion to its size: 0.1 nats are much at -0.5 and nothing at -15.
    """
    return [abs(a - b) / max(1.0, abs(b)) for a, b in zip(found, recorded, strict=True)]


def answer_once(bundle: Bundle, engine: Engine) -> None:
    """Generate from the first golden prompt. Raises `ServeError` for an error, silence or an empty answer."""
    golden, decoding = bundle.golden[0], bundle.contract.decoding
    events: queue.Queue[object] = queue.Queue()
    request = GenerationRequest(
        prompt=golden.ids,
        stop_ids=frozenset(bundle.contract.stop_ids),
        max_new_tokens=min(FIRST_ANSWER_TOKENS, decoding.max_new_tokens),
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        seed=decoding.seed,
        weights=Weights.ADAPTER,
    )
    cancel = engine.submit(request, events.put)
    num_tokens = 0
    try:
        while not isinstance(event := events.get(timeout=FIRST_ANSWER_SECONDS), Finished):
            num_tokens += 1
    except queue.Empty:
        cancel()
        raise ServeError(
            f"the model gave no first answer within {FIRST_ANSWER_SECONDS:g} s", where=engine.name
        ) from None
    if event.reason is FinishReason.ERROR:
        raise ServeError("the model cannot answer", where=engine.name, found=event.error)
    if num_tokens == 0:
        raise ServeError(
            "the model's first answer is empty",
            where=engine.name,
            expected="at least one token before the stop token",
            found=f"stop ids {sorted(request.stop_ids)} at once",
            hint="check that training supervised the answers and that pad is not among the stop ids",
        )


def prove(bundle: Bundle, engine: Engine, prompt_ids: PromptIds) -> Proof:
    """Run all proofs and start the engine. Raises `ServeError`; the engine is closed then."""
    vectors = replay_golden(bundle, prompt_ids)
    probabilities, error = replay_probabilities(bundle, engine)
    engine.start()
    try:
        answer_once(bundle, engine)
    except ServeError:
        engine.close()
        raise
    return Proof(golden_vectors=vectors, golden_probabilities=probabilities, mean_logprob_error=error)
