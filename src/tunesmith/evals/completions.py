"""Generate once: answers kept by content, so that a crash costs one chunk and a rerun costs nothing.

What lives here: a JSON-lines file of completions keyed by prompt ids. What does not: how they are made (a
`tunesmith.types.Generate` is handed in), what else decides them (the caller names the file by model, decoding, seed).

    answers = generate_cached(generate, prompts, cache=work / f"tuned-{key}.jsonl")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.types import Completion, FinishReason, Generate, canonical_json, sha256_hex

CHUNK_PROMPTS = 256
"""Prompts handed over at once: what a crash can lose. Large enough to fill batches, sorted by length inside."""


def generate_cached(
    generate: Generate,
    prompts: Sequence[Sequence[int]],
    *,
    cache: Path,
    chunk: int = CHUNK_PROMPTS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Return completions in the order of `prompts`, generating only those that `cache` does not hold.

    A line that a crash cut short is ignored. Equal prompts are generated once. Prompts are handed over in order of
    length, so that chunks do not mix long and short ones.
    """
    known = _read(cache)
    keys = [_key(prompt) for prompt in prompts]
    missing: dict[str, Sequence[int]] = {}
    for key, prompt in zip(keys, prompts, strict=True):
        if key not in known:
            missing.setdefault(key, prompt)
    todo = sorted(missing.items(), key=lambda item: (-len(item[1]), item[0]))
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a", encoding="utf-8") as handle:
        if cache.stat().st_size:
            handle.write("\n")  # ends a line that a crash cut short
        for start in range(0, len(todo), chunk):
            part = todo[start : start + chunk]
            for (key, _), completion in zip(part, generate([prompt for _, prompt in part]), strict=True):
                known[key] = completion
                handle.write(json.dumps({"key": key, **_to_json(completion)}) + "\n")
            handle.flush()
            if progress is not None:
                progress(len(known), len(set(keys)))
    return [known[key] for key in keys]


def _key(prompt: Sequence[int]) -> str:
    return sha256_hex(canonical_json(list(prompt)))


def _to_json(completion: Completion) -> dict[str, object]:
    return {
        "ids": list(completion.ids),
        "finish_reason": completion.finish_reason.value,
        "prompt_tokens": completion.prompt_tokens,
        "seconds": completion.seconds,
    }


def _read(cache: Path) -> dict[str, Completion]:
    out: dict[str, Completion] = {}
    if not cache.exists():
        return out
    for line in cache.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
            out[value["key"]] = Completion(
                ids=tuple(value["ids"]),
                finish_reason=FinishReason(value["finish_reason"]),
                prompt_tokens=value["prompt_tokens"],
                seconds=value["seconds"],
            )
        except (json.JSONDecodeError, KeyError):
            continue  # the line that a crash cut short: its prompt is generated again
    return out
