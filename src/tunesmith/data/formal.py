"""Formal texts: code, commands, queries and JSON, in which every sign counts.

What lives here: what makes a text formal, and the one form in which two formal texts are compared. What does not: texts
in words, where case and points make no difference (`data.words`).

    formal_text("ls  -R")                          ->  "ls -R"
    formal_text('{"a": 1, "b": 2}')                ->  '{"a":1,"b":2}'
    formal_text("Please list the files, thanks.")  ->  None

`ls -r` and `ls -R`, `x > 5` and `x < 5`, `name = 'Bob'` and `name = 'Ann'` are other texts, however near their
words are.
"""

from __future__ import annotations

import json
import re

from tunesmith.types import canonical_json

MIN_FORMAL_SHARE, MIN_LONG_SHARE, SHORT_TOKENS = 0.2, 0.3, 10
"""Share of the tokens of a text of up to ten tokens, and of a longer one, that must be formal: sentences of a manual
hold names and paths as well. Sums and prices are no formal tokens here."""

_QUERY = re.compile(
    r"\s*(select|insert|update|delete|create|alter|drop|with|explain)\b.*\b(from|into|set|table|view|index|as)\b",
    re.IGNORECASE | re.DOTALL,
)
_CODE_LINE = re.compile(r"^\s*(def|class|import|from|return|function|const|let|var|#include|public|fn)\b.*[:;({]", re.M)
_LETTER = re.compile(r"[^\W\d_]")
_SHELL = ("|", "||", "&&", ">", ">>", "<", "==", "!=", "=>", "->")
_ENDS = ".,;:!?\"'”“’‘…»«)("
_FORMAL = re.compile(
    r"""^(
        -{1,2}\w.*              # -r, --all, -5
      | [<>=!+*/|&^~%]+         # <=, |, &&
      | .*[\\/_$*<>|=+#@&^~{}[\]`%].*   # a/b, snake_case, $HOME, *.txt, x=1, c++, `ls`
      | .*\w\.[a-zA-Z]\w*.*     # file.txt, os.path
      | \w+\(.*                 # f(x)
    )$""",
    re.VERBOSE,
)


def formal_text(text: str) -> str | None:
    """Return what two formal texts must share to be the same: spacing apart, all of it. `None` for other texts."""
    stripped = text.strip()
    canonical = _canonical(stripped)
    if canonical is not None:
        return canonical
    return " ".join(stripped.split()) if is_formal(stripped) else None


def _canonical(stripped: str) -> str | None:
    """Return the canonical form of a JSON object or list; `None` for a text that is none, or that JSON cannot write."""
    if stripped[:1] not in ("{", "["):
        return None
    try:
        return canonical_json(json.loads(stripped))
    except ValueError:
        return None


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def is_formal(text: str) -> bool:
    """Whether a text is code, a command or a query rather than sentences."""
    if "```" in text or _QUERY.match(text) or _CODE_LINE.search(text):
        return True
    tokens = text.split()
    found = [token for token in formal_tokens(tokens) if _LETTER.search(token) or token in _SHELL]
    return bool(found) and len(found) >= len(tokens) * (
        MIN_FORMAL_SHARE if len(tokens) <= SHORT_TOKENS else MIN_LONG_SHARE
    )


def formal_tokens(tokens: list[str]) -> list[str]:
    """Return the tokens that are signs, flags, paths, names of variables or files, without points around them."""
    found = []
    for token in tokens:
        if token.isalpha():
            continue
        core = token.strip(_ENDS)
        # Most tokens are plain words: the expression is tried on the others only.
        if not core.isalpha() and _FORMAL.match(core):
            found.append(core)
    return found
