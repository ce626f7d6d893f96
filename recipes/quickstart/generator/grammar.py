"""Fragments: read the hand-written lines and expand them to text.

What lives here: the notation of `fragments/README.md` and the slots. What does not: which fragments make a ticket
(`compose`), and what is done to the text afterwards (`noise`).

    >>> expand("{red|blue} [<product>//thing]", Random(1), product=None)
    'red thing'
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

FRAGMENTS = Path(__file__).parent / "fragments"
HARDWARE = ("hublet", "pacelet")
SOFTWARE = ("quillo", "prismat", "stashly")
PRODUCTS = (*SOFTWARE, *HARDWARE)

_TAG = re.compile(r"\((hw|sw|none|quillo|prismat|stashly|hublet|pacelet)\)\s+")
_SLOT = re.compile(r"<([a-z_]+\d?)>")

POOLS: dict[str, list[str]] = {
    name: values.strip().split("|")
    for name, _, values in (
        line.partition(":")
        for line in (Path(__file__).parent / "values.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
}
"""Slot -> its possible values, from `values.txt`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One fragment and the tickets it fits."""

    text: str
    tag: str | None

    def fits(self, product: str | None) -> bool:
        """Whether the fragment may stand in a ticket on `product` (`None`: no product is named)."""
        match self.tag:
            case None:
                return product is not None or "<product>" not in re.sub(r"\[[^\]]*\]", "", self.text)
            case "hw":
                return product in HARDWARE
            case "sw":
                return product in SOFTWARE
            case "none":
                return product is None
            case named:
                return product == named


@dataclass(slots=True)
class Library:
    """All fragments by section, and how often each was used: the least used come first."""

    sections: dict[str, list[Line]]
    uses: Counter[str] = field(default_factory=Counter)

    @classmethod
    def load(cls) -> Library:
        """Read every file of the fragments folder."""
        sections: dict[str, list[Line]] = defaultdict(list)
        for path in sorted(FRAGMENTS.glob("*.txt")):
            section = None
            for raw in path.read_text(encoding="utf-8").splitlines():
                if not raw.strip() or raw.startswith("#"):
                    continue
                heading = re.fullmatch(r"\[([a-z]+ [a-z]+)\]", raw.strip())
                if heading:
                    section = heading[1]
                    continue
                assert section is not None, f"{path.name}: a fragment before the first section"
                tag = _TAG.match(raw)
                sections[section].append(Line(text=raw[tag.end() :] if tag else raw, tag=tag[1] if tag else None))
        return cls(sections=dict(sections))

    def draw(self, section: str, rng: Random, *, product: str | None) -> str:
        """Return one expanded fragment of a section, from among the less used ones that fit the product."""
        lines = [line for line in self.sections[section] if line.fits(product)]
        assert lines, f"no fragment of [{section}] fits {product}"
        lines.sort(key=lambda line: (self.uses[line.text], rng.random()))
        line = lines[rng.randrange(max(1, len(lines) // 3))]
        self.uses[line.text] += 1
        return expand(line.text, rng, product=product)


def expand(text: str, rng: Random, *, product: str | None) -> str:
    """Resolve alternatives, product parts and slots of one fragment."""
    resolved, rest = _resolve(text, rng, product)
    assert not rest, f"unbalanced fragment: {text}"
    filled = _SLOT.sub(lambda match: slot(match[1], rng, product=product), resolved)
    filled = re.sub(r" {2,}", " ", filled.replace("\\n", "\n")).strip()
    return re.sub(r" +([,.?!])", r"\1", filled)


def _resolve(text: str, rng: Random, product: str | None) -> tuple[str, str]:
    """Return the resolved text up to the closing bracket that ends this level, and what follows it."""
    out = ""
    while text:
        char = text[0]
        if char in "{[":
            inner, text = _split(text)
            if char == "{":
                chosen = rng.choice(_parts(inner, "|"))
            else:
                parts = _parts(inner, "//")
                chosen = parts[0] if product is not None else (parts[1] if len(parts) > 1 else "")
            out += _resolve(chosen, rng, product)[0]
        else:
            out, text = out + char, text[1:]
    return out, ""


def _split(text: str) -> tuple[str, str]:
    """Split `{inner}rest` at the bracket that closes the first one."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char in "{[") - (char in "}]")
        if depth == 0:
            return text[1:index], text[index + 1 :]
    raise AssertionError(f"unbalanced fragment: {text}")


def _parts(inner: str, separator: str) -> list[str]:
    """Split at a separator that stands outside any bracket."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(inner):
        depth += (inner[index] in "{[") - (inner[index] in "}]")
        if depth == 0 and inner.startswith(separator, index):
            parts.append(inner[start:index])
            index += len(separator)
            start = index
            continue
        index += 1
    return [*parts, inner[start:]]


def slot(name: str, rng: Random, *, product: str | None) -> str:
    """Return a value for a slot. None of them is personal data: numbers are too short for cards and phones."""
    match name:
        case "product":
            assert product is not None
            return product.capitalize()
        case "other":
            return rng.choice([item for item in PRODUCTS if item != product]).capitalize()
        case "order":
            number = rng.randrange(20000, 99999)
            return rng.choice((f"FW-{number}", f"FW-{number}", f"#{number}", f"{number}"))
        case "invoice":
            return rng.choice((f"INV-{rng.randrange(1000, 9999)}", f"R-{rng.randrange(10000, 99999)}"))
        case "amount":
            whole, cents = rng.randrange(4, 240), rng.choice(("00", "50", "90", "95", "99", "49"))
            return rng.choice((f"${whole}.{cents}", f"{whole} euros", f"€{whole}.{cents}", f"£{whole}", f"{whole} USD"))
        case "date":
            day, month, months = rng.randrange(1, 29), rng.randrange(12), POOLS["month"]
            ordinal = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
            forms = (
                f"{day} {months[month]}",
                f"{months[month]} {day}",
                f"the {day}{ordinal}",
                f"{months[month][:3]} {day}{ordinal}",
                f"{day:02}/{month + 1:02}",
                f"2026-{month + 1:02}-{day:02}",
            )
            return rng.choice(forms)
        case "n":
            return rng.choice(POOLS["number"]) if rng.random() < 0.6 else str(rng.randrange(2, 10))
        case "n2":
            return str(rng.randrange(5, 19))
        case "num5":
            return str(rng.randrange(10000, 99999))
        case "pct":
            return str(rng.randrange(3, 99))
        case "year":
            return str(rng.randrange(2017, 2026))
        case "version":
            major, minor, patch = rng.randrange(1, 9), rng.randrange(0, 12), rng.randrange(0, 9)
            return rng.choice((f"{major}.{minor}", f"{major}.{minor}.{patch}", f"{major}.{minor}.{patch}"))
        case "err":
            return rng.choice(
                (f"E-{rng.randrange(100, 999)}", str(rng.randrange(400, 520)), f"0x{rng.randrange(4096, 65535):X}")
            )
        case "time":
            exact = f"{rng.randrange(8, 19)}:{rng.choice(('00', '15', '30', '45'))}"
            return rng.choice((exact, "noon", "5 pm", "9 am"))
        case "ago":
            unit = rng.choice(("days", "weeks"))
            return rng.choice(
                (f"{rng.choice(POOLS['number'])} {unit} ago", f"{rng.randrange(3, 20)} days ago", "a month ago")
            )
        case "initial":
            return rng.choice("ABDEFGHKLMNPRSTVW")
    return rng.choice(POOLS[name])
