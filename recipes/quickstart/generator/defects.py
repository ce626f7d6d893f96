"""Defects that are planted on purpose, so that the road can be seen to find them.

What lives here: a clean entry in, a broken or repeated one out. What does not: how many of each, and where they go
(`make_data.py`). A near-duplicate keeps its numbers: two tickets with other order numbers are two tickets.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from random import Random

from generator import noise
from generator.compose import Labels, Ticket

_SYNONYMS = {
    "please": "kindly", "money": "payment", "want": "wish", "need": "require", "problem": "issue", "since": "from",
    "nothing": "nought", "wrong": "incorrect", "yesterday": "last evening", "again": "once more", "also": "too",
    "help": "assistance", "mail": "message", "thanks": "thank you", "account": "profile", "get": "receive",
    "still": "yet", "every": "each", "cannot": "can't", "phone": "mobile", "however": "but", "small": "little",
}  # fmt: skip
_FRAMES = (
    "---- Forwarded message ----\n{}",
    "[External] {}",
    "{}\n\nSent with the mobile app",
    "Ticket re-opened by customer. {}",
    "{}\n(second copy, the first one may have got lost)",
    "Hello again, {}",
)
_HOLDOUT_EDITS = (" Thanks.", " Please advise.", " Best, Anna")


@dataclass(eq=False, slots=True, kw_only=True)
class Entry:
    """One record of a file: a ticket, what was done to it, and what it repeats."""

    ticket: Ticket
    file: str
    answer: str | None
    customer: str
    date: str
    defect: str | None = None
    of: Entry | None = None
    types: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    license: str | None = "Apache-2.0"
    context: str = ""
    system: bool = False
    cut: bool = False
    line: int = 0
    extra: dict[str, str] = field(default_factory=dict)


def same_text(text: str, rng: Random, *, loose: bool) -> str:
    """Return a text that is equal after normalisation of case and white space."""
    if not loose:
        return text
    match rng.randrange(3):
        case 0:
            return text.upper() if not text.isupper() else text.lower()
        case 1:
            return re.sub(r" ", lambda _: "  " if rng.random() < 0.3 else " ", text) + " \n"
        case _:
            return "  " + text.swapcase() + "\n\n"


def near_text(text: str, rng: Random, *, way: str) -> str:
    """Return a light rewrite of a text: `words`, `frame`, `order` or `typos`."""
    match way:
        case "frame":
            return rng.choice(_FRAMES).format(text)
        case "order":
            head, *sentences = re.split(r"(?<=[.!?]) +(?=\S)", text)
            turned = sentences[1:] + sentences[:1]
            return " ".join([head, *turned]) if turned != sentences else " ".join([*sentences, head])
        case "typos":
            return noise.typos(text, rng, share=0.03)
    pieces = re.split(r"(\s+)", text)
    swaps = [i for i, piece in enumerate(pieces) if piece.lower().strip(".,!?") in _SYNONYMS]
    for index in rng.sample(swaps, min(2, len(swaps))):
        bare = pieces[index].lower().strip(".,!?")
        pieces[index] = re.sub(re.escape(bare), _SYNONYMS[bare], pieces[index], flags=re.IGNORECASE)
    if len(swaps) < 2:
        spots = [i for i, piece in enumerate(pieces) if piece.lower() in ("the", "a", "my", "so", "very", "this", "it")]
        for index in rng.sample(spots, min(2, len(spots))):
            pieces[index] = {"the": "this", "a": "one", "my": "our", "so": "really"}.get(pieces[index].lower(), "that")
    return "".join(pieces)


def leaked_text(text: str, rng: Random, *, way: str) -> str:
    """Return a held-out ticket as it may turn up in training data: `same`, `case`, `tail` or `typo`."""
    match way:
        case "same":
            return text
        case "case":
            return text.upper()
        case "tail":
            return text + rng.choice(_HOLDOUT_EDITS)
    return noise.typos(text, rng, share=0.01)


BREAKS = (
    *("missing_key",) * 4, *("wrong_enum",) * 4, *("prose",) * 3,
    *("broken_json",) * 3, *("fence",) * 3, *("extra_key",) * 3,
)  # fmt: skip
"""How the answers of the broken rows break the schema."""


def broken_answer(labels: Labels, rng: Random, *, way: str) -> str:
    """Return an answer that does not adhere to the schema."""
    answer = labels.answer()
    value = json.loads(answer)
    match way:
        case "missing_key":
            del value[rng.choice(("priority", "product", "needs_human"))]
        case "wrong_enum":
            key, wrong = rng.choice(
                (("priority", "critical"), ("intent", "refunds"), ("product", "Fernwick"), ("needs_human", "yes"))
            )
            value[key] = wrong
        case "extra_key":
            value[rng.choice(("sentiment", "confidence", "language"))] = rng.choice(("negative", "0.9", "en"))
        case "prose":
            tail = rng.choice((" The customer seems upset.", "\n\nLet me know if you need more.", " (checked by hand)"))
            return answer + tail
        case "broken_json":
            return rng.choice((answer[:-1], answer.replace(":", "=", 1), answer.replace('"', "'")))
        case "fence":
            return f"```json\n{answer}\n```"
    return json.dumps(value, separators=(",", ":"))
