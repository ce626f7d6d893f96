"""Constrained decoding: only tokens that keep the answer inside a JSON Schema may come next.

What lives here: llguidance behind `engines.Constraint`. What does not: the check of the finished answer, which always
follows (an answer cut by its length limit is no valid JSON under any engine).
llguidance because it enforces a keyword or refuses the schema; xgrammar 0.2.8 accepted invalid JSON in 7 of 10 probes.

    grammar = JsonGrammar(tokenizer_json, vocab_size=49152, stop_ids=(2,))
    make_constraint = grammar.compile({"type": "object", ...})      # ServeError names what it cannot enforce
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence

import llguidance
import numpy as np
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

from tunesmith.errors import ServeError
from tunesmith.serve.engines import Constraint
from tunesmith.types import JSON, canonical_json

ANY_OBJECT: Mapping[str, JSON] = {"type": "object"}
_WHITESPACE = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n[ ]{0,24})?"}
"""Between two JSON tokens: nothing, a space, or a new indented line. Free whitespace would let a model that is lost
write spaces up to its length limit; none at all would force a spelling that the model may not have learnt."""
_CACHED_SCHEMAS = 32


class JsonGrammar:
    """Compiles JSON Schemas to constraints over one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer_json: str, *, vocab_size: int, stop_ids: Sequence[int]) -> None:
        """Prepare the tokenizer (about half a second). `vocab_size` counts the rows of the model's logits."""
        self._vocab_size = vocab_size
        self._tokenizer = llguidance.LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=list(stop_ids))
        self._compiled: dict[str, str] = {}
        self._lock = threading.Lock()

    def compile(self, schema: Mapping[str, JSON]) -> Callable[[], Constraint]:
        """Return a maker of constraints. Raises `ServeError` for a schema that cannot be enforced in full."""
        key = canonical_json(schema)
        with self._lock:
            grammar = self._compiled.get(key)
        if grammar is None:
            grammar = self._checked(schema)
            with self._lock:
                if len(self._compiled) >= _CACHED_SCHEMAS:
                    self._compiled.pop(next(iter(self._compiled)))
                self._compiled[key] = grammar
        return lambda: _Matcher(self._tokenizer, grammar, vocab_size=self._vocab_size)

    def _checked(self, schema: Mapping[str, JSON]) -> str:
        try:
            grammar: str = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_WHITESPACE)
            problem = llguidance.LLMatcher.validate_grammar(grammar, self._tokenizer)
        except ValueError as error:
            problem, grammar = str(error), ""
        if problem:
            raise ServeError(
                "this JSON Schema cannot be enforced while decoding",
                found=problem.splitlines()[0][:300],
                hint="leave the keyword out; the finished answer is checked against the contract's schema all the same",
            )
        return grammar


class _Matcher:
    """One answer's state."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, grammar: str, *, vocab_size: int) -> None:
        self._matcher = llguidance.LLMatcher(tokenizer, grammar)
        self._words: NDArray[np.int32] = np.zeros((1, (vocab_size + 31) // 32), dtype=np.int32)
        self._vocab_size = vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next."""
        fill_next_token_bitmask(self._matcher, self._words)
        self._raise_on_error()
        bits = np.unpackbits(self._words[0].view(np.uint8), bitorder="little")[: self._vocab_size]
        return bits.astype(np.bool_)

    def consume(self, token: int) -> None:
        """Take the token that came."""
        self._matcher.consume_token(token)
        self._raise_on_error()

    def _raise_on_error(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"constrained decoding failed: {self._matcher.get_error()}")
