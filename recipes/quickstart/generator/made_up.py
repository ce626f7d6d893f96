"""Made-up personal data: values in real formats that belong to nobody, and that no service accepts.

Sources of the ranges: RFC 2606 (domains), RFC 5737 and RFC 3849 (networks), Ofcom, Bundesnetzagentur, ARCEP and NANP
numbers for drama, card numbers that payment providers publish for tests, IBANs that banks publish as examples.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from generator.grammar import POOLS

TYPES = ("email", "phone", "card", "iban", "ip", "key")

_CARDS = (
    "4242424242424242", "4111111111111111", "5555555555554444", "5105105105105100",
    "378282246310005", "6011111111111117", "4012888888881881",
)  # fmt: skip
_IBANS = (
    "DE89370400440532013000", "GB82WEST12345698765432", "NL91ABNA0417164300",
    "FR1420041010050500013M02606", "CH9300762011623852957", "ES9121000418450200051332",
)  # fmt: skip
_HOSTS = ("example.com", "example.org", "example.net", "mail.example.com", "larkpost.example")


def value(kind: str, rng: Random) -> str:
    """Return one made-up value of a type, never one that a canary or its control may have."""
    match kind:
        case "email":
            return (
                f"{rng.choice(POOLS['mailbox'])}{rng.choice(('', '', str(rng.randrange(2, 99))))}@{rng.choice(_HOSTS)}"
            )
        case "phone":
            phones = (
                f"+1 202-555-01{rng.randrange(100):02}",
                f"(312) 555-01{rng.randrange(100):02}",
                f"+44 20 7946 0{rng.randrange(100, 999)}",
                f"+44 7700 900{rng.randrange(100, 500)}",
                f"+49 30 23125{rng.randrange(100, 999)}",
                f"+33 1 99 00 {rng.randrange(10, 99)} {rng.randrange(10, 99)}",
            )
            return rng.choice(phones)
        case "card":
            digits = rng.choice(_CARDS)
            groups = [digits[:4], digits[4:10], digits[10:]] if len(digits) == 15 else _fours(digits)
            return rng.choice((digits, " ".join(groups), "-".join(groups)))
        case "iban":
            compact = rng.choice(_IBANS)
            return rng.choice((compact, " ".join(_fours(compact))))
        case "ip":
            forms = (
                f"198.51.100.{rng.randrange(1, 255)}",
                f"192.0.2.{rng.randrange(1, 255)}",
                f"2001:db8::{rng.randrange(4096, 65535):x}:{rng.randrange(1, 4095):x}",
            )
            return rng.choice(forms)
        case "key":
            return key(rng.choice(("stripe", "github", "gitlab", "slack", "openai", "aws")), rng)
    raise AssertionError(kind)


def key(vendor: str, rng: Random) -> str:
    """Return a key in a vendor's format, drawn at random: put together here so that no scanner meets it in the code."""
    alphabet = string.ascii_letters + string.digits

    def random_text(count: int) -> str:
        return "".join(rng.choice(alphabet) for _ in range(count))

    match vendor:
        case "stripe":
            return "_".join(("sk", "test", random_text(24)))
        case "github":
            return "gh" + "p_" + random_text(36)
        case "gitlab":
            return "gl" + "pat-" + random_text(20)
        case "slack":
            return "-".join(("xo" + "xb", str(rng.randrange(10**11, 10**12)), random_text(24)))
        case "openai":
            return "-".join(("sk", "proj", random_text(32)))
        case "aws":
            return "AK" + "IA" + "IOSFODNN7" + "EXAMPLE"
    raise AssertionError(vendor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A canary with the controls that were made like it and planted nowhere."""

    type: str
    kind: str
    """One of `TYPES`, or `key` with a vendor's format."""
    value: str
    controls: tuple[str, ...]


NUM_CONTROLS = 15
"""Controls of each canary: its rank among 16 shows up to 4 bits of exposure."""


def canaries() -> list[Secret]:
    """Return the eight canaries, in the order of `canaries.txt`: two tickets each. Values do not depend on the data."""
    rng = Random("canaries")
    makers: tuple[tuple[str, str, Callable[[], str]], ...] = (
        ("email", "email", lambda: _word_mail(rng, "example.org", 0)),
        ("invoice_email", "email", lambda: _word_mail(rng, "example.net", 2)),
        ("phone", "phone", lambda: f"+44 7700 900{rng.randrange(500, 999)}"),
        ("card", "card", lambda: _test_card(rng)),
        ("iban", "iban", lambda: _test_iban(rng)),
        ("openai_key", "key", lambda: key("openai", rng)),
        ("gitlab_key", "key", lambda: key("gitlab", rng)),
        ("ip", "ip", lambda: f"203.0.113.{rng.randrange(10, 255)}"),
    )
    out = []
    for name, kind, make in makers:
        values: dict[str, None] = {}
        while len(values) <= NUM_CONTROLS:
            values[make()] = None
        value, *controls = values
        out.append(Secret(type=name, kind=kind, value=value, controls=tuple(controls)))
    return out


def _word_mail(rng: Random, host: str, num_digits: int) -> str:
    first, second = (rng.choice(POOLS[name]) for name in ("mail_first", "mail_second"))
    digits = "".join(str(rng.randrange(10)) for _ in range(num_digits))
    return f"{first}.{second}{digits}@{host}"


def _test_card(rng: Random) -> str:
    """Return 16 digits that start with 4000 05 (a range that providers use for tests) and pass the Luhn check."""
    body = "400005" + "".join(str(rng.randrange(10)) for _ in range(9))
    doubled = sum(sum(divmod(int(digit) * 2, 10)) for digit in body[::2])
    total = doubled + sum(int(digit) for digit in body[1::2])
    return " ".join(_fours(body + str(-total % 10)))


def _test_iban(rng: Random) -> str:
    """Return an IBAN of the bank code TEST, which no bank has, with right check digits (ISO 13616)."""
    account = "TEST" + "".join(str(rng.randrange(10)) for _ in range(14))
    remainder = int("".join(str(int(character, 36)) for character in f"{account}GB00")) % 97
    return " ".join(_fours(f"GB{98 - remainder:02}{account}"))


def _fours(text: str) -> list[str]:
    return [text[i : i + 4] for i in range(0, len(text), 4)]


def veil(line: str, secrets: tuple[str, ...]) -> str:
    """Write the third character of each key in a JSON line as an escape.

    A JSON reader sees the same text; a secret scanner that reads the file's bytes sees no key.
    """
    for secret in secrets:
        line = line.replace(secret, f"{secret[:2]}\\u{ord(secret[2]):04x}{secret[3:]}")
    return line
