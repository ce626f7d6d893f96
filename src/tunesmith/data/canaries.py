"""Canaries: made-up personal data and secrets with valid checksums, to measure what redaction finds in this data.

What lives here: values by type, and `measured_recall`, which plants them in copies of rows and redacts those. What does
not: patterns (`data.patterns`). The copies are thrown away: no canary ever reaches an artefact.
"""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tunesmith.data.checksums import IBAN_LENGTHS, iban_holds, luhn_holds, ssn_holds
from tunesmith.data.redact import redact_row
from tunesmith.types import Row

PER_KIND = 20
_SEED = 20261122
_UPPER = string.ascii_uppercase
_ALNUM = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One planted value and the sentence that carries it."""

    kind: str
    value: str
    sentence: str


def canaries(seed: int = _SEED, per_kind: int = PER_KIND) -> list[Canary]:
    """Return `per_kind` canaries of each type, the same for the same seed."""
    chance = random.Random(seed)
    out = []
    for kind, (make, carriers) in _MAKERS.items():
        for _ in range(per_kind):
            value = make(chance)
            out.append(Canary(kind=kind, value=value, sentence=chance.choice(carriers).format(value)))
    return out


def measured_recall(rows: Sequence[Row], *, kinds: frozenset[str] | None = None) -> dict[str, float]:
    """Plant every canary in a copy of a row's first user turn, redact it, and return the share gone by type.

    `kinds` are the types that redaction replaces; `None` is all of them. Empty without rows.
    """
    if not rows:
        return {}
    chance = random.Random(_SEED)
    planted: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    for canary in canaries():
        if kinds is not None and canary.kind not in kinds:
            continue
        row = _with_sentence(rows[chance.randrange(len(rows))], canary.sentence, chance)
        texts = [message.content or "" for message in redact_row(row, kinds=kinds).row.conversation.messages]
        planted[canary.kind] += 1
        gone[canary.kind] += not any(canary.value in text for text in texts)
    return {kind: round(gone[kind] / count, 4) for kind, count in sorted(planted.items())}


def _with_sentence(row: Row, sentence: str, chance: random.Random) -> Row:
    """A copy of a row whose first turn with text holds one more sentence, at the end of one of its own."""
    messages = list(row.conversation.messages)
    place = next((i for i, m in enumerate(messages) if m.role == "user" and m.content), None)
    place = next(i for i, m in enumerate(messages) if m.content is not None) if place is None else place
    content = messages[place].content or ""
    ends = [i + 1 for i, c in enumerate(content) if c in ".!?\n" and content[i + 1 : i + 2] in ("", " ", "\n")]
    at = chance.choice([0, *ends, len(content)])
    messages[place] = replace(messages[place], content=f"{content[:at].rstrip()} {sentence} {content[at:].lstrip()}")
    return replace(row, conversation=replace(row.conversation, messages=tuple(messages)))


def _digits(chance: random.Random, count: int) -> str:
    return "".join(chance.choices(string.digits, k=count))


def _letters(chance: random.Random, count: int, alphabet: str = _ALNUM) -> str:
    return "".join(chance.choices(alphabet, k=count))


def _word(chance: random.Random) -> str:
    pairs = chance.randint(2, 4)
    return "".join(chance.choice("bcdfglmnprstv") + chance.choice("aeiou") for _ in range(pairs))


def _email(chance: random.Random) -> str:
    name = chance.choice(("{}.{}", "{}_{}", "{}{}", "{}-{}", "{}+{}")).format(_word(chance), _word(chance))
    name = name.title() if chance.random() < 0.2 else name
    return f"{name}@{_word(chance)}.{chance.choice(('com', 'org', 'co.uk', 'de', 'io', 'net', 'com.br', 'museum'))}"


def _phone(chance: random.Random) -> str:
    area, office, line = chance.randint(201, 989), chance.randint(200, 999), _digits(chance, 4)
    shape = chance.choice(("+1 {} {} {}", "({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+44 {} {} {}", "+49 {} {}{}"))
    return shape.format(area, office, line)


def _card(chance: random.Random) -> str:
    start, length = chance.choice((("4", 16), ("52", 16), ("37", 15), ("6011", 16), ("35", 16)))
    body = start + _digits(chance, length - len(start) - 1)
    number = next(body + check for check in string.digits if luhn_holds(body + check))
    if length == 15:
        return chance.choice((number, f"{number[:4]} {number[4:10]} {number[10:]}"))
    return chance.choice((" ", "-", "")).join(_fours(number))


def _fours(text: str) -> list[str]:
    return [text[start : start + 4] for start in range(0, len(text), 4)]


def _iban(chance: random.Random) -> str:
    country = chance.choice(("DE", "GB", "FR", "NL", "ES", "IT", "AT", "CH", "NO", "PL"))
    letters = {"GB": 4, "NL": 4}.get(country, 0)
    body = _letters(chance, letters, _UPPER) + _digits(chance, IBAN_LENGTHS[country] - 4 - letters)
    number = next(text for n in range(2, 99) if iban_holds(text := f"{country}{n:02d}{body}"))
    return chance.choice((number, " ".join(_fours(number))))


def _ssn(chance: random.Random) -> str:
    while not ssn_holds(number := _digits(chance, 9)):
        continue
    return f"{number[:3]}-{number[3:5]}-{number[5:]}"


def _ip(chance: random.Random) -> str:
    if chance.random() < 0.25:
        return ":".join(["2001", "db8", *(f"{chance.randint(1, 65535):x}" for _ in range(6))])
    first = chance.choice([n for n in range(11, 224) if n != 127])
    return ".".join(map(str, (first, *(chance.randint(1, 254) for _ in range(3)))))


def _address(chance: random.Random) -> str:
    street = chance.choice(("Street", "Avenue", "Road", "Lane", "Drive", "Court"))
    return f"{chance.randint(1, 999)} {_word(chance).title()} {street}"


def _api_key(chance: random.Random) -> str:
    shape, count, alphabet = chance.choice(
        (
            ("sk-proj-{}", 40, _ALNUM),
            ("sk_live_{}", 24, _ALNUM),
            ("AKIA{}", 16, _UPPER + string.digits),
            ("ghp_{}", 36, _ALNUM),
            ("glpat-{}", 20, _ALNUM),
            ("xoxb-{}", 40, string.digits),
            ("AIza{}", 35, _ALNUM),
            ("hf_{}", 34, _ALNUM),
            ("npm_{}", 36, _ALNUM),
        )
    )
    return shape.format(_letters(chance, count, alphabet))


def _jwt(chance: random.Random) -> str:
    return f"eyJ{_letters(chance, 33)}.eyJ{_letters(chance, 60)}.{_letters(chance, 43)}"


def _private_key(chance: random.Random) -> str:
    body = "\n".join(_letters(chance, 64) for _ in range(4))
    return f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"


def _password(chance: random.Random) -> str:
    return _letters(chance, 9) + chance.choice("!#%&*?") + _digits(chance, 2)


def _hex(chance: random.Random) -> str:
    return _letters(chance, 40, "0123456789abcdef")


_TELL = ("You can use {} for that.", "It is {} now.", "I wrote {} down, please check.", "{}")

_MAKERS: dict[str, tuple[Callable[[random.Random], str], tuple[str, ...]]] = {
    "EMAIL": (_email, ("Please write to {} instead.", "my mail is {}", "From: {}", "{}", "contact <{}> about it")),
    "PHONE": (_phone, ("Call me at {} please.", "my phone is {}", "Tel: {}", "You reach me under {} all day.")),
    "CARD": (_card, ("Charge my card {} again.", "Visa {}", "The card ending it is {}, thanks", "{}")),
    "IBAN": (_iban, ("Send it to {} please.", "IBAN: {}", "refund to my account {} soon", "{}")),
    "NATIONAL_ID": (_ssn, ("My SSN is {}.", "social security number {}", "{}", "id {} on file")),
    "IP_ADDRESS": (_ip, ("I log in from {} at home.", "client {} was blocked", "address: {}", "ping {}")),
    "ADDRESS": (_address, ("Ship it to {} please.", "I live at {}, third floor.", "Address: {}")),
    "API_KEY": (_api_key, (*_TELL, "Authorization: Bearer {}", 'key = "{}"', "export TOKEN={}")),
    "JWT": (_jwt, (*_TELL, "Authorization: Bearer {}", "cookie session={}")),
    "PRIVATE_KEY": (_private_key, ("{}", "this is the file:\n{}\nIs it right?")),
    "PASSWORD": (_password, ("my password is {}", "password: {}", "pwd={}", "Passwort: {}")),
    "SECRET": (_hex, ("client_secret={}", "access token: {}", "the api key is {}", "secret: {}")),
}
