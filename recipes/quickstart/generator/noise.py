"""Noise: what people's keyboards and habits do to a text.

What lives here: typos, casing, chat spelling, second-language grammar. Codes, numbers and product names are left
alone, because a label must stay readable from the text. What does not: which ticket gets which noise (`compose`).
"""

from __future__ import annotations

import re
from random import Random

_NEIGHBOURS = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "wa", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip
_PRODUCT_TYPOS = {
    "Quillo": ("Quilo", "Qillo", "quillo"),
    "Prismat": ("Prizmat", "Prismatt", "prismat"),
    "Stashly": ("Stashley", "Stashli", "stashly"),
    "Hublet": ("Hublett", "Hub-let", "hublet"),
    "Pacelet": ("Pacelett", "Paclet", "pacelet"),
}
_CHAT = (
    (r"\b[Pp]lease\b", "pls"),
    (r"\b[Yy]ou\b", "u"),
    (r"\b[Yy]our\b", "ur"),
    (r"\b[Tt]hanks?\b", "thx"),
    (r"\b[Bb]ecause\b", "cuz"),
    (r"\band\b", "&"),
    (r"\bwithout\b", "w/o"),
    (r"\bto\b", "2"),
)
_SECOND_LANGUAGE = (
    (r"\b(the|a|an) (?=[a-z])", ""),
    (r"\bI would like\b", "I want"),
    (r"\bI have\b", "I am having"),
    (r"\bdoes not\b", "do not"),
    (r"\bdoesn't\b", "don't"),
    (r"\bdid not\b", "not did"),
    (r"\bCan you\b", "You can"),
    (r"\bHow do I\b", "How I can"),
    (r"\bsince\b", "from"),
    (r"\bmy account\b", "account of me"),
    (r"\bI am\b", "I"),
    (r"\bfor (?=(two|three|four|five|\d) )", "since "),
    (r"\bhas\b", "have"),
)


def _is_code(word: str) -> bool:
    letters = word.strip(".,;:!?()\"'")
    return any(char.isdigit() for char in word) or letters in _PRODUCT_TYPOS or "@" in word or "_" in word


def typo(word: str, rng: Random) -> str:
    """Return a word with one slip of the fingers: swapped, dropped, doubled or neighbouring letter."""
    spots = [i for i in range(1, len(word) - 1) if word[i].isalpha() and word[i].isascii()]
    if len(word) < 4 or not spots or _is_code(word):
        return word
    at = rng.choice(spots)
    match rng.randrange(4):
        case 0 if word[at + 1].isalpha():
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 1:
            return word[:at] + word[at + 1 :]
        case 2:
            return word[:at] + word[at] + word[at:]
        case _:
            near = _NEIGHBOURS.get(word[at].lower())
            return word[:at] + rng.choice(near) + word[at + 1 :] if near else word


def typos(text: str, rng: Random, *, share: float) -> str:
    """Misspell about `share` of the longer words, at least one where the text has one."""
    pieces = re.split(r"(\s+)", text)
    spots = [i for i, piece in enumerate(pieces) if len(piece) >= 4 and not _is_code(piece)]
    for index in rng.sample(spots, min(len(spots), max(1, round(share * len(spots))))):
        pieces[index] = typo(pieces[index], rng)
    return "".join(pieces)


def misspell_product(text: str, rng: Random) -> str:
    """Write the product's name as someone who has only heard it."""
    for name, wrong in _PRODUCT_TYPOS.items():
        text = text.replace(name, rng.choice(wrong))
    return text


def chat_spelling(text: str, rng: Random) -> str:
    """Lower case with some abbreviations and missing marks."""
    for pattern, short in _CHAT:
        if rng.random() < 0.5:
            text = re.sub(pattern, short, text)
    if rng.random() < 0.6:
        text = text.replace("'", "")
    return lower(text)


def lower(text: str) -> str:
    """Lower-case everything but codes."""
    return "".join(p if _is_code(p) and p not in _PRODUCT_TYPOS else p.lower() for p in re.split(r"(\s+)", text))


def second_language(text: str, rng: Random) -> str:
    """Grammar of somebody who writes English as a second language."""
    for pattern, other in _SECOND_LANGUAGE:
        text = re.sub(pattern, lambda match, o=other: o if rng.random() < 0.6 else match[0], text)  # type: ignore[misc]
    return text


def loose_marks(text: str, rng: Random) -> str:
    """Stretch or lose the punctuation marks."""
    match rng.randrange(5):
        case 0:
            return re.sub(r"[.](?=\s|$)", "...", text)
        case 1:
            return re.sub(r"[.](?=\s|$)", "!!", text)
        case 2:
            return re.sub(r"\.(?=$)", "", text)
        case 3:
            return re.sub(r"\?", "??", text)
        case _:
            return re.sub(r", ", " ", text)
