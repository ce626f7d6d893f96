"""Patterns of personal data: contact details, accounts, cards, addresses of hosts, dates of birth.

What lives here: how each type is written, and what must hold besides. What does not: secrets (`data.secrets`),
national ids (`data.national_ids`), telephones (`data.phones`), postal addresses (`data.addresses`), the arithmetic of
check digits (`data.checksums`).
"""

from __future__ import annotations

import ipaddress
import re

from tunesmith.data import checksums
from tunesmith.data.addresses import ADDRESSES
from tunesmith.data.matching import Pattern, before, compact, where, whole
from tunesmith.data.national_ids import NATIONAL_IDS
from tunesmith.data.phones import PHONES

_BRANDS = re.compile(
    r"4(?:\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}(?:\d\d)?"
    r"|(?:5[0678]|6\d)\d{14}(?:\d{3})?"
    r"|35\d{14}|(?:2131|1800)\d{11}"
)
"""Visa, Mastercard, American Express, Diners, Discover with Maestro and UnionPay, JCB (ISO/IEC 7812 ranges)."""
_CARD_GROUPS = {
    (4, 4, 4, 4),
    (4, 4, 4, 4, 3),
    (4, 6, 5),
    (4, 6, 4),
    (4, 4, 4, 1),
    (4, 4, 4),
    (6, 13),
    (6, 8),
    (4, 4, 5),
}
_CARD_WORD = re.compile(r"\b(?:card|visa|mastercard|maestro|amex|cc|credit|debit|karte|carte|tarjeta)\b", re.IGNORECASE)


def _card(match: re.Match[str]) -> bool:
    """A number of a brand's own shape, or any of card length behind a word for cards; never a round number."""
    digits = compact(match)
    groups = tuple(len(group) for group in re.split(r"[ .-]", match.group()))
    if (len(groups) > 1 and groups not in _CARD_GROUPS) or digits.endswith("000000") or len(set(digits)) < 2:
        return False
    branded = _BRANDS.fullmatch(digits) is not None
    return (branded or before(match, _CARD_WORD, 64)) and checksums.luhn_holds(digits)


def _iban(match: re.Match[str]) -> tuple[int, int] | None:
    """The IBAN is as long as its country says, whatever words follow it."""
    needed = checksums.IBAN_LENGTHS.get(match.group()[:2].upper())
    if needed is None:
        return None
    end = match.start()
    held = ""
    while end < match.end() and len(held) < needed:
        character = match.string[end]
        held += character.upper() if character.isalnum() else ""
        end += 1
    follows = match.string[end : end + 1]
    return (match.start(), end) if checksums.iban_holds(held) and not follows.isalnum() else None


_NO_HOST = re.compile(
    r"(?:\bv|table|section|chapter|figure|clause|appendix|version|release|build|firmware|\bEC"
    r"|(?:up|down)(?:grade|date)[ds]?(?: \S{1,16})?(?: to)?"
    r"|pip install\b[^\n]*)\W*$",
    re.IGNORECASE,
)
_KNOWN_HOSTS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "1.2.3.4", "4.3.2.1", "5.6.7.8"} | {
    "192.168.0.1",
    "192.168.1.1",
    "10.0.0.1",
}
"""Public name servers, what examples count up, and the router of every home."""


def _ipv4(match: re.Match[str]) -> bool:
    """A host's address: no version number, no mask, no network, not the machine itself."""
    try:
        address = ipaddress.IPv4Address(match.group())
    except ValueError:
        return False
    last = match.group().rsplit(".", 1)[1]
    special = address.is_loopback or address.is_unspecified or address.is_multicast or match.group().startswith("255.")
    if special or last in ("0", "255") or match.group().startswith("0.") or match.group() in _KNOWN_HOSTS:
        return False
    return not before(match, _NO_HOST, 24)


def _ipv6(match: re.Match[str]) -> bool:
    text = match.group()
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    usual = text.count(":") >= 4 or len(text) >= 8 or text.lower().startswith("fe80")
    return usual and not address.is_loopback and not address.is_unspecified and any(c.isdigit() for c in text)


def _mac(match: re.Match[str]) -> bool:
    """A network card's address: not the one that all hosts hear, and no row of numbers."""
    signs = set(re.sub(r"[:.-]", "", match.group().lower()))
    return len(signs) > 2 and (":" in match.group() or not signs <= set("0123456789"))


_SHELL = re.compile(r"\b(?:ssh|scp|sftp|rsync|sshfs|mosh|ssh-copy-id|git)\b[^\n]{0,60}$")


_NOBODY = re.compile(
    r"(?:user|username|you|your[._-]?(?:name|email|mail)|name|someone|somebody|email|e-mail|mail|me|foo|bar|test"
    r"|first[._]?name[._-]?(?:last[._]?name)?|jane[._]?doe|john[._]?doe|noreply|no-reply|admin|info|support|contact)\d{0,3}"
    r"@(?:example|domain|yourdomain|your-domain|mydomain|company|yourcompany|email|test)\.(?:com|org|net|io|test)",
    re.IGNORECASE,
)
"""Mailboxes of manuals (RFC 2606 and its imitators): a word for a role at a word for a domain."""


def _mail(match: re.Match[str]) -> bool:
    """A mailbox: no account at a host, as `ssh user@host.example` and `scp x user@host.example:/tmp` write it."""
    path = re.compile(r":[~/\w.]").match(match.string, match.end())
    if path is not None or match.group().startswith("git@") or _NOBODY.fullmatch(match.group()):
        return False
    return not before(match, _SHELL, 64)


PERSONAL: tuple[Pattern, ...] = (
    Pattern(
        kind="EMAIL",
        regex=re.compile(r"(?<![\w.+%-])\w[\w.+%'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])"),
        fit=where(_mail),
        hints=("@",),
    ),
    Pattern(
        kind="EMAIL",
        regex=re.compile(
            r"\b[\w.+-]{2,64} ?(?:\(at\)|\[at\]|\{at\}) ?(?:[\w-]{2,63}\.){1,3}[a-z]{2,24}\b", re.IGNORECASE
        ),
        fit=whole,
        hints=("(at)", "[at]", "{at}"),
    ),
    Pattern(
        kind="EMAIL",
        regex=re.compile(
            r"\b[\w.+-]{2,64} ?(?:\(at\)|\[at\]|\{at\}|(?<= )at(?= )) ?[\w-]{2,63}"
            r"(?: ?(?:\(dot\)|\[dot\]|\{dot\}|(?<= )dot(?= )) ?[\w-]{2,24}){1,3}\b",
            re.IGNORECASE,
        ),
        fit=whole,
        hints=("dot",),
    ),
    Pattern(
        kind="IBAN",
        regex=re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{1,4}){3,12}"),
        fit=_iban,
        digits=2,
    ),
    Pattern(
        kind="CARD",
        regex=re.compile(r"(?<![\w.-])\d(?:[ .-]?\d){11,18}(?![\w]|[.-]\d)"),
        fit=where(_card),
        digits=12,
    ),
    *NATIONAL_IDS,
    Pattern(
        kind="BANK_ACCOUNT",
        regex=re.compile(
            r"\b(?:(?:bank|checking|savings|giro) account|account (?:number|no\.?|#)(?: at)?|iban|acct)"
            r"(?: number| no\.?|#)?\W{0,3}(?:is|was)?\W{0,3}(?P<value>\d(?:[ -]?\d){6,16})(?!\d)",
            re.IGNORECASE,
        ),
        fit=whole,
        hints=("account", "acct", "iban"),
        digits=7,
    ),
    Pattern(
        kind="BANK_ACCOUNT",
        regex=re.compile(
            r"\b(?:routing|aba)(?: transit)?(?: number| no\.?|#)?\W{0,3}(?:is)?\W{0,3}(?P<value>\d{9})\b", re.IGNORECASE
        ),
        fit=where(lambda match: checksums.routing_holds(compact(match))),
        hints=("routing", "aba"),
        digits=9,
    ),
    Pattern(
        kind="BANK_ACCOUNT",
        regex=re.compile(r"\bsort code\W{0,3}(?:is)?\W{0,3}(?P<value>\d{2}[- ]?\d{2}[- ]?\d{2})\b", re.IGNORECASE),
        fit=whole,
        hints=("sort code",),
        digits=6,
    ),
    Pattern(
        kind="CRYPTO_WALLET",
        regex=re.compile(r"(?<![A-Za-z0-9])[13][1-9A-HJ-NP-Za-km-z]{25,34}(?![A-Za-z0-9])"),
        fit=where(lambda match: checksums.base58check_holds(match.group())),
        digits=1,
    ),
    Pattern(
        kind="CRYPTO_WALLET",
        regex=re.compile(r"(?<![A-Za-z0-9])bc1[02-9ac-hj-np-z]{25,62}(?![A-Za-z0-9])"),
        fit=whole,
        hints=("bc1",),
        digits=1,
    ),
    Pattern(
        kind="CRYPTO_WALLET",
        regex=re.compile(r"(?<![A-Za-z0-9])0x[0-9a-fA-F]{40}(?![A-Za-z0-9])"),
        fit=whole,
        hints=("0x",),
    ),
    Pattern(
        kind="MAC_ADDRESS",
        regex=re.compile(
            r"(?<![\w:.-])(?:[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}"
            r"|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4})(?![\w:-]|\.\w)"
        ),
        fit=where(_mac),
        digits=1,
    ),
    Pattern(
        kind="IP_ADDRESS",
        regex=re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|/\d{1,2}\b|\.\d)"),
        fit=where(_ipv4),
        hints=(".",),
        digits=4,
    ),
    Pattern(
        kind="IP_ADDRESS",
        regex=re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"),
        fit=where(_ipv6),
        hints=(":",),
        digits=1,
    ),
    PHONES,
    Pattern(
        kind="DATE_OF_BIRTH",
        regex=re.compile(
            r"\b(?:date of birth|d\.?o\.?b\.?|birth ?date|I(?:'m| was) born(?: on)?)\W{0,3}(?:is|was)?\W{0,3}"
            r"(?P<value>\d{1,2}[-./ ]\d{1,2}[-./ ]\d{2,4}|\d{4}-\d{2}-\d{2}"
            r"|\d{1,2}(?:st|nd|rd|th)? (?:of )?[A-Z][a-z]{2,8},? \d{4}"
            r"|[A-Z][a-z]{2,8} \d{1,2}(?:st|nd|rd|th)?,? \d{4})\b",
            re.IGNORECASE,
        ),
        fit=whole,
        hints=("birth", "dob", "d.o.b", "born"),
        digits=4,
    ),
    *ADDRESSES,
)
"""Patterns of personal data, strongest first."""
