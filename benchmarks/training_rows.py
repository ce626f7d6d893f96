"""Rows for `benchmarks/training.py`: documentation tasks out of Python's own standard library.

    rows = instruction_rows(tokenizer, number=96)          # mean about 160 tokens, only the template shared
    rows = instruction_rows(tokenizer, number=96, system=SUPPORT_POLICY)
    rows = long_rows(tokenizer, number=16, tokens=2048)

What lives here: real text that every machine has (PSF licence), as token ids and loss weights. What does not: training.

A row asks for the docstring of a function and answers with it; a long row asks to go on with a module. Rows are the
same for one version of Python and one tokenizer: files in order of name, then a seeded shuffle.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = tuple[list[int], list[float]]

MIN_TOKENS, MAX_TOKENS = 60, 512
MAX_CODE, MIN_DOC = 500, 90
"""Characters of a function that is asked about and of its docstring: keeps the mean near 160 tokens, 40% of them
answer."""

SUPPORT_POLICY = """You write documentation for the Python standard library. Follow these rules in every answer.
1. Begin with one sentence in the imperative that says what the function does, and end it with a full stop.
2. Name every argument whose meaning the signature does not tell, with its type and the values it may take.
3. Say what is returned, and what the result is where nothing was found.
4. Name the exceptions that a caller has to expect, and what causes each of them.
5. Mention side effects: files that are written, global state that changes, locks that are held.
6. Say nothing about how the function works inside unless a caller can observe it.
7. Keep lines under eighty characters, use plain words, and never repeat the name of the function.
8. Write for a reader who knows the language and has never seen this module before."""
"""A system prompt of about 190 tokens, as one task's rows share it."""


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]]) -> Row:
    """Return ids of a chat and a weight of 1 for each token of the last answer and its end."""
    *asked, answer = messages
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answer["content"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return [*prompt_ids, *answer_ids], [0.0] * len(prompt_ids) + [1.0] * len(answer_ids)


def _sources() -> Iterator[str]:
    """Yield the text of the library's modules, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if not {"test", "tests", "idlelib", "site-packages", "lib2to3", "__pycache__"} & set(parts):
            yield file.read_text("utf-8", errors="ignore")


def _documented_functions(source: str) -> Iterator[tuple[str, str]]:
    """Yield (function without its docstring, docstring)."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        doc = ast.get_docstring(node)
        if doc and len(node.body) > 1:
            node.body = node.body[1:]
            yield ast.unparse(node), doc


def instruction_rows(tokenizer: Any, *, number: int, system: str | None = None, seed: int = 0) -> list[Row]:
    """Return chats of 60 to 512 tokens, in a seeded order."""
    pairs = [pair for source in _sources() for pair in _documented_functions(source)]
    random.Random(seed).shuffle(pairs)
    rows: list[Row] = []
    for code, doc in pairs:
        if len(code) > MAX_CODE or len(doc) < MIN_DOC:
            continue
        head = [{"role": "system", "content": system}] if system else []
        asked = {"role": "user", "content": f"{code}\n\nWrite the docstring of this function."}
        row = encode_chat(tokenizer, [*head, asked, {"role": "assistant", "content": doc}])
        if MIN_TOKENS <= len(row[0]) <= MAX_TOKENS:
            rows.append(row)
        if len(rows) == number:
            return rows
    raise ValueError(f"the standard library gives {len(rows)} rows, {number} were asked for")


def long_rows(tokenizer: Any, *, number: int, tokens: int, seed: int = 0) -> list[Row]:
    """Return chats of exactly `tokens` tokens: the first half of a module asks, what follows answers."""
    sources = list(_sources())
    random.Random(seed).shuffle(sources)
    rows: list[Row] = []
    for source in sources:
        # A token is seldom more than six characters here, and a longer text would be tokenized for nothing.
        begin, rest = source[: tokens * 2], source[tokens * 2 : tokens * 8]
        asked = {"role": "user", "content": f"Go on with this module:\n\n{begin}"}
        ids, weights = encode_chat(tokenizer, [asked, {"role": "assistant", "content": rest}])
        if len(ids) >= tokens and any(weights[:tokens]):
            rows.append((ids[:tokens], weights[:tokens]))
        if len(rows) == number:
            return rows
    raise ValueError(f"the standard library gives {len(rows)} rows of {tokens} tokens, {number} were asked for")
