"""Patterns of personal data and secrets, with the checks that tell a card number from an order number.

What lives here: patterns by type, and the checksum or context that each needs. What does not: replacing (`redact`).

    find("mail me at ann@example.org")  ->  [Span(start=11, end=26, kind="EMAIL")]

A run of digits is personal data only where a checksum (Luhn, mod 97), a fixed shape or a word beside it says so. Order
numbers, versions, dates, prices and times are never found: the tests hold a list of them.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One found value: characters `start` to `end` of the text."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One way in which a type is written. `check` sees the match and the whole text."""

    kind: str
    regex: re.Pattern[str]
    check: Callable[[re.Match[str]], bool]
    hints: tuple[str, ...]
    """Pieces of text without which the regex cannot match: the cheap test that is done first. Empty: always tried."""


def luhn_holds(digits: str) -> bool:
    """Whether the last digit is the Luhn check digit of the others (ISO/IEC 7812-1)."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if position % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban_holds(text: str) -> bool:
    """Whether a compact IBAN has the length of its country and the remainder 1 modulo 97 (ISO 13616)."""
    if IBAN_LENGTHS.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24,
    "XK": 20,
}  # fmt: skip
"""Country -> length of its IBAN (SWIFT IBAN registry, release 99)."""

_CARD_PREFIX = re.compile(r"(?:4|5[1-5]|2[2-7]|3[47]|3(?:0|6|8|9)|6(?:011|4|5|2)|35)")
"""First digits of Visa, Mastercard, American Express, Diners, Discover, UnionPay and JCB numbers."""
_CARD_LENGTHS = {13, 14, 15, 16, 19}


def _card(match: re.Match[str]) -> bool:
    digits = re.sub(r"\D", "", match.group())
    return (
        len(digits) in _CARD_LENGTHS
        and _CARD_PREFIX.match(digits) is not None
        and len(set(digits)) > 1
        and luhn_holds(digits)
    )


def _iban(match: re.Match[str]) -> bool:
    return iban_holds(re.sub(r"[ -]", "", match.group()).upper())


def _always(match: re.Match[str]) -> bool:
    return True


def _ip(match: re.Match[str]) -> bool:
    text = match.group()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 4:
        before = match.string[max(0, match.start() - 12) : match.start()].casefold()
        is_version = re.search(r"(?:\bv|version|release|build|firmware)\W*$", before) is not None
        return not is_version and not text.startswith("0.") and not address.is_unspecified
    return text.count(":") >= 3 or ("::" in text and len(text) > 4)


def _ssn(match: re.Match[str]) -> bool:
    """US social security number: no area 000, 666 or 9xx, no group 00, no serial 0000 (SSA)."""
    area, group, serial = match.group(1), match.group(2), match.group(3)
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def _nino(match: re.Match[str]) -> bool:
    """UK national insurance number: forbidden letters and prefixes (HMRC NIM39110)."""
    prefix = match.group()[:2].upper()
    return prefix not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _entropy(text: str) -> float:
    """Shannon entropy in bits a character."""
    counts = Counter(text)
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())


def _looks_random(match: re.Match[str]) -> bool:
    value = match.group("value")
    mixed = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return mixed and _entropy(value) >= 3.0


def _password(match: re.Match[str]) -> bool:
    value = match.group("value")
    return any(not c.isalpha() for c in value) and not value.startswith(("<", "{", "$", "%", "["))


_PHONE_WORD = re.compile(
    r"(?:\bph(?:one)?|\btel(?:ephone)?|\bcell|\bmobile|\bcall(?:ing)?|\bring|\btext|\bsms|\bwhats?app|\bfax|\bnumber is"
    r"|\bnumber|\breach(?: me| us| him| her)?|\bcontact|\bhandy|\bt[ée]l[ée]phone)\b[^.!?\n]{0,40}$",
    re.IGNORECASE,
)
_NOT_PHONE_WORD = re.compile(
    r"(?:\border|\binvoice|\bticket|\btracking|\bserial|\bref(?:erence)?|\bcase|\bsku|\bversion|\bmodel|\bpart|\bpo"
    r"|\bisbn|\bid|\bcode|\bfirmware|\bbuild|\bparcel|\bshipment|\bbooking|\bconfirmation|\binvoice no|#)"
    r"\W{0,3}(?:number|no|nr|num|id|code|is|was)?\W{0,3}(?:is|was)?\W{0,3}$",
    re.IGNORECASE,
)
_DATE_LIKE = re.compile(r"(?:\d{1,2}[-./ ]\d{1,2}[-./ ]\d{2,4}|\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2})")


def _phone(match: re.Match[str]) -> bool:
    """A plus sign, an area code in brackets, or the 3-3-4 shape say phone; other shapes need a word before them."""
    text = match.group()
    digits = re.sub(r"\D", "", text)
    if not 7 <= len(digits) <= 15 or _DATE_LIKE.fullmatch(text):
        return False
    before = match.string[max(0, match.start() - 60) : match.start()]
    if _NOT_PHONE_WORD.search(before):
        return False
    if text.startswith(("+", "00")) and len(digits) >= 9:
        return True
    if re.fullmatch(r"(?:1[-. ])?\(\d{3}\) ?\d{3}[-. ]\d{4}|(?:1[-. ])?\d{3}([-.])\d{3}\1\d{4}", text):
        return True
    if re.fullmatch(r"\(0\d{2,4}\) ?\d[\d -]{5,9}", text):
        return True
    return _PHONE_WORD.search(before) is not None and (len(digits) >= 8 or (len(digits) == 7 and "-" in text))


_STREETS = (
    "street|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|place|pl|square|sq|terrace|way|parkway|pkwy"
    "|highway|hwy|close|crescent|row|alley"
)

PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        kind="PRIVATE_KEY",
        regex=re.compile(
            r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.*?"
            r"(?:-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.DOTALL,
        ),
        check=_always,
        hints=("PRIVATE KEY",),
    ),
    Pattern(
        kind="JWT",
        regex=re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?![\w-])"),
        check=_always,
        hints=("eyJ",),
    ),
    Pattern(
        kind="API_KEY",
        regex=re.compile(
            r"(?<![A-Za-z0-9])(?:"
            r"sk-(?:proj-|ant-(?:api\d\d-)?|or-v1-|live-|test-)?[A-Za-z0-9_-]{16,}"
            r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|pk_live_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9]{24,}"
            r"|(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}"
            r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}"
            r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}"
            r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}"
            r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|dop_v1_[a-f0-9]{64}"
            r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|key-[a-f0-9]{32}|(?:SK|AC)[a-f0-9]{32}"
            r"|sq0(?:atp|csp)-[A-Za-z0-9_-]{22,}|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|EAAC[A-Za-z0-9]{20,}"
            r"|\d{8,10}:AA[A-Za-z0-9_-]{33}|AGE-SECRET-KEY-1[A-Z0-9]{58}|dckr_pat_[A-Za-z0-9_-]{27,}"
            r"|nvapi-[A-Za-z0-9_-]{40,}|gsk_[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{37}|pplx-[A-Za-z0-9]{40,}"
            r"|lin_api_[A-Za-z0-9]{40}|ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{40,}|figd_[A-Za-z0-9_-]{40,}"
            r")(?![A-Za-z0-9])"
        ),
        check=_always,
        hints=(),
    ),
    Pattern(
        kind="URL_PASSWORD",
        regex=re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:(?P<value>[^\s/@]+)@(?=[^\s/])", re.IGNORECASE),
        check=_always,
        hints=("://",),
    ),
    Pattern(
        kind="SECRET",
        regex=re.compile(
            r"(?i:\b(?:api|access|auth|client|secret|private|encryption|signing|bearer)[ _-]?(?:key|token|secret)"
            r"|\bsecret|\btoken|\bbearer)[\"']?(?: is| was)?\s{0,2}(?:[:=]|=>|\s)\s{0,2}[\"'`]?"
            r"(?P<value>[A-Za-z0-9+/_.~-]{20,}={0,2})"
        ),
        check=_looks_random,
        hints=(),
    ),
    Pattern(
        kind="PASSWORD",
        regex=re.compile(
            r"(?i:\b(?:password|passwd|passphrase|pwd|passcode))[\"']?"
            r"(?:(?: is| was)\s{0,2}:?|\s{0,2}[:=]|\s?=>)\s{0,2}[\"'`]?(?P<value>[^\s\"'`,;]{6,})"
        ),
        check=_password,
        hints=(),
    ),
    Pattern(
        kind="EMAIL",
        regex=re.compile(
            r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])", re.UNICODE
        ),
        check=_always,
        hints=("@",),
    ),
    Pattern(
        kind="EMAIL",
        regex=re.compile(
            r"\b[\w.+-]{2,64}\s?(?:\(at\)|\[at\]|\{at\}| at )\s?[\w-]{2,}"
            r"(?:\s?(?:\(dot\)|\[dot\]|\{dot\}| dot )\s?[\w-]{2,})+\b",
            re.IGNORECASE,
        ),
        check=_always,
        hints=("dot", "DOT", "Dot"),
    ),
    Pattern(
        kind="IBAN",
        regex=re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{1,4}){3,8}(?![A-Za-z0-9])"),
        check=_iban,
        hints=(),
    ),
    Pattern(
        kind="CARD",
        regex=re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w]|[.-]\d)"),
        check=_card,
        hints=(),
    ),
    Pattern(
        kind="NATIONAL_ID",
        regex=re.compile(r"(?<![\w-])(\d{3})[- ](\d{2})[- ](\d{4})(?![\w-])"),
        check=_ssn,
        hints=(),
    ),
    Pattern(
        kind="NATIONAL_ID",
        regex=re.compile(
            r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)", re.IGNORECASE
        ),
        check=_nino,
        hints=(),
    ),
    Pattern(
        kind="NATIONAL_ID",
        regex=re.compile(
            r"(?i:\b(?:ssn|social security(?: number| no\.?)?|tax id|national id|passport(?: number| no\.?)?"
            r"|driver'?s? licen[cs]e(?: number| no\.?)?))\W{0,3}(?:is|was)?\W{0,3}"
            r"(?P<value>(?=[A-Z0-9-]*\d{4})[A-Z0-9-]{7,14})(?!\w)"
        ),
        check=_always,
        hints=(),
    ),
    Pattern(
        kind="IP_ADDRESS",
        regex=re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"),
        check=_ip,
        hints=(".",),
    ),
    Pattern(
        kind="IP_ADDRESS",
        regex=re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"),
        check=_ip,
        hints=(":",),
    ),
    Pattern(
        kind="PHONE",
        regex=re.compile(r"(?<![\w.#/$€£-])(?:\+\d|\(?\d)[\d ().-]{5,20}\d(?![\w/%€$£]|[.,:-]\d)"),
        check=_phone,
        hints=(),
    ),
    Pattern(
        kind="ADDRESS",
        regex=re.compile(
            r"(?<![\w#.-])\d{1,5}[A-Za-z]? (?:[NSEW]\.? )?(?:[A-Z][\w'.-]+ ){1,4}(?i:" + _STREETS + r")\b\.?"
            r"(?:,? (?i:apt|suite|unit|flat|#)\.? ?\w{1,5})?"
            r"(?:,? [A-Z][\w'-]+(?: [A-Z][\w'-]+){0,2})?(?:,? [A-Z]{2})?"
            r"(?: \d{5}(?:-\d{4})?| [A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2})?"
        ),
        check=_always,
        hints=(),
    ),
)
"""All patterns, strongest first: where two match the same characters the earlier one names them."""


def find(text: str) -> list[Span]:
    """Return the personal data and secrets of a text, in order, without overlaps."""
    found: list[Span] = []
    for pattern in PATTERNS:
        if pattern.hints and not any(hint in text for hint in pattern.hints):
            continue
        for match in pattern.regex.finditer(text):
            group = "value" if "value" in pattern.regex.groupindex else 0
            start, end = match.span(group)
            taken = any(span.start < end and start < span.end for span in found)
            if not taken and pattern.check(match):
                found.append(Span(start=start, end=end, kind=pattern.kind))
    return sorted(found, key=lambda span: span.start)
