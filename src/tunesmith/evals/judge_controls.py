"""Judges whose bias is known, to try a judging pipeline on before a real judge is believed.

    judged = judge_pairs(pairs, prefers_longer(), rater="control")
    preference(judged.votes).length_biased          # True, or the pipeline hides what it should show

What lives here: judges as functions, and an OpenAI-compatible endpoint that answers with one of them. What does not:
judging (`judge`), the figures (`preference`). Every control answers the same pair the same way in every run.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import httpx

from tunesmith.evals.judge import Ask, read_pair_prompt
from tunesmith.evals.preference import Choice
from tunesmith.types import sha256_hex


def always_first() -> Ask:
    """Return a judge that takes the answer shown first, whatever it says."""
    return lambda prompt, first, second: Choice.FIRST


def prefers_longer() -> Ask:
    """Return a judge that takes the longer answer, and calls equal lengths a tie."""
    return lambda prompt, first, second: _by(len(first), len(second))


def prefers(quality: Callable[[str], float], *, noise: float = 0.0, first_bonus: float = 0.0) -> Ask:
    """Return a judge that takes the answer of higher quality.

    `noise` is the standard deviation of what is added to each answer's quality, drawn from the pair's content;
    `first_bonus` is added to the answer shown first.
    """

    def ask(prompt: str, first: str, second: str) -> Choice:
        source = random.Random(sha256_hex("\0".join((prompt, first, second))))
        shift = first_bonus + source.gauss(0, noise) - source.gauss(0, noise)
        return _by(quality(first) + shift, quality(second))

    return ask


def _by(first: float, second: float) -> Choice:
    if first == second:
        return Choice.TIE
    return Choice.FIRST if first > second else Choice.SECOND


def endpoint(judge: Ask, *, spoil: Callable[[int], httpx.Response | None] | None = None) -> httpx.MockTransport:
    """Return a transport that speaks the chat completions API and answers pair prompts with `judge`.

    `spoil` is called with the number of the request, from 0, and may return another response instead.
    """
    seen = iter(range(1 << 62))

    def answer(request: httpx.Request) -> httpx.Response:
        spoiled = spoil(next(seen)) if spoil is not None else None
        if spoiled is not None:
            return spoiled
        body = json.loads(request.content)
        prompt, first, second = read_pair_prompt(body["messages"][-1]["content"])
        choice = judge(prompt, first, second)
        assert isinstance(choice, Choice), "a control has an opinion"
        content = json.dumps({"reason": "a control", "verdict": choice.value})
        message = {"role": "assistant", "content": content}
        return httpx.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    return httpx.MockTransport(answer)
