"""Compose: a plan (intent, product, signals, manner) becomes one ticket with its labels.

What lives here: the quotas, the order of the parts, and the labelling rules of `../POLICY.md` as code (`label`).
What does not: the words (`fragments/`), spelling (`noise`), planted defects (`defects`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from random import Random

from generator import noise
from generator.grammar import HARDWARE, SOFTWARE, Library

INTENTS = ("refund", "billing", "login", "bug", "cancel", "shipping", "feature", "account", "other")
PRIORITIES = ("low", "normal", "high", "urgent")

URGENT = ("security", "dataloss", "outage", "hazard")
HIGH = ("deadline", "repeat", "legal")

QUOTA = {
    "refund": 150, "billing": 150, "login": 150, "bug": 190, "cancel": 125,
    "shipping": 140, "feature": 100, "account": 115, "other": 110,
}  # fmt: skip
"""Tickets by intent that `tickets` composes. A desk sees many faults and few wishes."""

SIGNAL_SHARE: dict[str, dict[str, float]] = {
    "refund": {"hazard": 0.10, "deadline": 0.05, "repeat": 0.14, "legal": 0.14, "norush": 0.12, "askhuman": 0.03},
    "billing": {"security": 0.14, "deadline": 0.08, "repeat": 0.10, "legal": 0.06, "norush": 0.14, "askhuman": 0.09},
    "login": {"security": 0.18, "outage": 0.12, "deadline": 0.12, "repeat": 0.08, "norush": 0.10, "askhuman": 0.08},
    "bug": {
        "dataloss": 0.14, "hazard": 0.11, "outage": 0.10, "deadline": 0.08,
        "repeat": 0.07, "norush": 0.14, "askhuman": 0.06,
    },
    "cancel": {"deadline": 0.13, "repeat": 0.12, "legal": 0.09, "norush": 0.14, "askhuman": 0.07},
    "shipping": {"deadline": 0.18, "repeat": 0.12, "legal": 0.05, "norush": 0.15, "askhuman": 0.08},
    "feature": {"deadline": 0.03, "norush": 0.10, "askhuman": 0.06},
    "account": {"security": 0.14, "deadline": 0.13, "repeat": 0.08, "norush": 0.15, "askhuman": 0.08},
    "other": {"norush": 0.06, "askhuman": 0.04},
}  # fmt: skip
"""Share of an intent's tickets that carry each signal; the rest carries none."""

_WORD = re.compile(r"[a-z]+|\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the answer says."""

    intent: str
    priority: str
    product: str
    needs_human: bool

    def answer(self) -> str:
        """Return the one spelling of the answer: fixed key order, no spaces."""
        fields = {
            "intent": self.intent,
            "priority": self.priority,
            "product": self.product,
            "needs_human": self.needs_human,
        }
        return json.dumps(fields, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One message and its labels."""

    text: str
    labels: Labels
    manner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How somebody writes: lengths are shares of short, medium, long and very long messages."""

    name: str
    lengths: tuple[float, float, float, float]
    subject: float
    formal: float


CHAT = Manner(name="chat", lengths=(0.44, 0.48, 0.08, 0.0), subject=0.0, formal=0.1)
DESK = Manner(name="desk", lengths=(0.20, 0.52, 0.22, 0.06), subject=0.05, formal=0.45)
MAIL = Manner(name="mail", lengths=(0.04, 0.44, 0.36, 0.16), subject=0.55, formal=0.7)


def label(intent: str, product: str | None, signals: tuple[str, ...]) -> Labels:
    """Apply the labelling rules: urgent before high before low before the intent's own level."""
    if any(signal in URGENT for signal in signals):
        priority = "urgent"
    elif any(signal in HIGH for signal in signals):
        priority = "high"
    elif "norush" in signals or intent in ("feature", "other"):
        priority = "low"
    else:
        priority = "normal"
    return Labels(
        intent=intent,
        priority=priority,
        product=product or "none",
        needs_human=intent == "refund" or priority in ("high", "urgent") or "askhuman" in signals,
    )


def pick_product(intent: str, rng: Random) -> str | None:
    """Draw a product that the intent can be about."""
    none_share = {"other": 0.8, "shipping": 0.3, "billing": 0.3, "account": 0.3}.get(intent, 0.16)
    if rng.random() < none_share:
        return None
    if intent == "shipping":
        return rng.choice(HARDWARE)
    return rng.choice(SOFTWARE + HARDWARE)


def pick_signals(intent: str, product: str | None, rng: Random) -> tuple[str, ...]:
    """Draw no, one or sometimes two signals that fit the intent and the product."""
    shares = dict(SIGNAL_SHARE[intent])
    if product not in HARDWARE:
        shares.pop("hazard", None)
    if product not in SOFTWARE:
        shares.pop("dataloss", None)
    drawn, roll = [], rng.random()
    for signal, share in shares.items():
        if roll < share:
            drawn.append(signal)
            break
        roll -= share
    extra = [signal for signal in ("askhuman", "deadline", "repeat") if signal in shares and signal not in drawn]
    if drawn and drawn[0] != "norush" and extra and rng.random() < 0.12:
        drawn.append(rng.choice(extra))
    return tuple(drawn)


def write(
    library: Library, rng: Random, *, intent: str, product: str | None, signals: tuple[str, ...], manner: Manner
) -> tuple[str, bool]:
    """Return the text of one ticket, and whether its request names the product."""

    def draw(section: str) -> str:
        return library.draw(section, rng, product=product)

    size = rng.choices(range(4), weights=manner.lengths)[0]
    angry = rng.random() < 0.18
    formal = rng.random() < manner.formal and not angry
    body = [draw(f"short {intent}" if size == 0 else f"core {intent}")]
    named = product is not None and product.capitalize() in body[0]
    if not named:
        product = None
    if size >= 1 and rng.random() < (0.0, 0.3, 0.8, 1.0)[size]:
        body.append(draw(f"detail {intent}"))
    if size == 3 or (size == 2 and rng.random() < 0.4):
        body.append(draw(f"detail {intent}"))
    marks = [draw(f"signal {signal}") for signal in signals]
    if "norush" not in signals and rng.random() < (0.06, 0.1, 0.15, 0.2)[size]:
        marks.append(draw("trap any"))
    for mark in marks:
        body.insert(rng.choice((1, len(body), len(body))), mark)
    body = _second_request(library, rng, body, intent=intent, product=product) if size >= 1 else body
    if product is not None and size >= 2 and rng.random() < 0.12:
        body.append(draw("distractor any"))
    lead = []
    if size >= 2:
        kind = "angry" if angry else rng.choice(("polite", "rambling", "rambling"))
        if rng.random() < 0.6:
            lead.append(draw(f"opening {kind}"))
        if size == 3 or rng.random() < 0.2:
            lead.append(draw("context any"))
        if lead and rng.random() < 0.2:
            body[0] = f"{draw('filler any')} {body[0]}"
        if size == 3:
            lead.append(draw("context any"))
            body.append(draw("context any") if rng.random() < 0.5 else draw(f"detail {intent}"))
    text = _frame(
        library, rng, lead, body, size=size, angry=angry, formal=formal, intent=intent, product=product, manner=manner
    )
    return text, named


def _second_request(library: Library, rng: Random, body: list[str], *, intent: str, product: str | None) -> list[str]:
    """Sometimes add a second wish, after the first or before a request that is marked as the main one."""
    if intent == "other" or rng.random() >= 0.12:
        return body
    second = rng.choice([other for other in INTENTS if other not in (intent, "other")])
    wish = library.draw(f"second {second}", rng, product=product)
    if rng.random() < 0.7:
        return [*body, wish]
    bare = re.sub(
        r"^(Also and|And could you tell me|And while I am at it|Also|And a wish|And|Second thing|Besides|By the way|"
        r"One more thing|One more|Another|On top of that|While I'm writing|Then|After that)\b[ ,:]*(thing: )?", "", wish
    )  # fmt: skip
    return [bare[:1].upper() + bare[1:], f"{library.draw('main any', rng, product=product)} {body[0]}", *body[1:]]


def _frame(
    library: Library,
    rng: Random,
    lead: list[str],
    body: list[str],
    *,
    size: int,
    angry: bool,
    formal: bool,
    intent: str,
    product: str | None,
    manner: Manner,
) -> str:
    """Put greeting, subject, closing and signature around the body, and break it into paragraphs."""

    def draw(section: str) -> str:
        return library.draw(section, rng, product=product)

    paragraphs = [" ".join(lead), " ".join(body)] if size >= 2 and rng.random() < 0.6 else [" ".join(lead + body)]
    if size == 3 and len(body) > 3:
        half = len(body) // 2
        paragraphs = [" ".join(lead), " ".join(body[:half]), " ".join(body[half:])]
    if rng.random() < (0.06, 0.3, 0.5, 0.8)[size]:
        paragraphs[-1] += " " + draw(f"closing {'angry' if angry else 'polite'}")
    voice = "formal" if formal else "casual"
    if rng.random() < (0.1, 0.35, 0.6, 0.9)[size]:
        greeting = draw(f"greeting {voice}")
        if formal or (size >= 2 and rng.random() < 0.5):
            paragraphs.insert(0, greeting)
        else:
            paragraphs[0] = f"{greeting} {paragraphs[0]}"
    if rng.random() < (0.02, 0.14, 0.4, 0.8)[size]:
        paragraphs.append(draw(f"signature {voice}"))
    text = ("\n\n" if formal else "\n").join(part for part in paragraphs if part)
    if rng.random() < manner.subject:
        text = f"Subject: {draw(f'subject {intent}')}\n\n{text}"
    return _roughen(text, rng, angry=angry, formal=formal)


def _roughen(text: str, rng: Random, *, angry: bool, formal: bool) -> str:
    """Apply the writer's habits to the text."""
    if rng.random() < 0.05:
        text = noise.misspell_product(text, rng)
    if rng.random() < 0.09:
        text = noise.second_language(text, rng)
    if angry and rng.random() < 0.35:
        return noise.typos(text, rng, share=0.03).upper() if rng.random() < 0.3 else text.upper()
    if not formal:
        roll = rng.random()
        if roll < 0.12:
            text = noise.chat_spelling(text, rng)
        elif roll < 0.30:
            text = noise.lower(text)
        elif roll < 0.42:
            text = noise.loose_marks(text, rng)
    if rng.random() < 0.2:
        text = noise.typos(text, rng, share=0.05)
    if not formal and rng.random() < 0.05:
        text += rng.choice((" :)", " :(", " 🙂", " 😡", " 🙏", " ;-)"))
    return text


def shingles(text: str) -> frozenset[str]:
    """Return the word 3-grams of a text, numbers read as one word; of a text under three words all of it."""
    words = ["0" if word.isdigit() else word for word in _WORD.findall(text.lower())]
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


class Distinct:
    """Remembers tickets, and says whether a new one is too close to one of them."""

    def __init__(self, *, limit: float) -> None:
        self.limit = limit
        self._kept: list[frozenset[str]] = []
        self._by_gram: dict[str, list[int]] = {}

    def add(self, text: str) -> bool:
        """Keep a text whose 3-gram Jaccard to every kept text is below the limit; return whether it was kept."""
        grams = shingles(text)
        shared: Counter[int] = Counter()
        for gram in sorted(grams):
            shared.update(self._by_gram.get(gram, ()))
        for index, both in shared.items():
            if both / (len(grams) + len(self._kept[index]) - both) >= self.limit:
                return False
        for gram in grams:
            self._by_gram.setdefault(gram, []).append(len(self._kept))
        self._kept.append(grams)
        return True


def tickets(library: Library, rng: Random, distinct: Distinct, *, manners: dict[Manner, float]) -> list[Ticket]:
    """Compose the quota of every intent, each ticket distinct from all before, in an order that mixes intents."""
    plan = [intent for intent, count in QUOTA.items() for _ in range(count)]
    rng.shuffle(plan)
    out: list[Ticket] = []
    for intent in plan:
        product = pick_product(intent, rng)
        signals = pick_signals(intent, product, rng)
        manner = rng.choices(list(manners), weights=list(manners.values()))[0]
        for _ in range(60):
            text, named = write(library, rng, intent=intent, product=product, signals=signals, manner=manner)
            if distinct.add(text):
                break
        else:
            raise AssertionError(f"no new ticket for {intent}, {product}, {signals} in 60 tries: add fragments")
        labels = label(intent, product if named else None, signals)
        out.append(Ticket(text=text, labels=labels, manner=manner.name))
    return out
