"""Patterns of personal data: contact details, accounts, cards, ids, addresses.

What lives here: how each type is written, and what must hold besides. What does not: secrets (`data.secrets`), the
arithmetic of check digits (`data.checksums`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from tunesmith.data import checksums
from tunesmith.data.addresses import ADDRESSES
from tunesmith.data.patterns import Fit, Pattern, compact, where, whole

_CARD_PREFIX = re.compile(r"4|5[0-8]|2[2-7]|3[47]|3[0689]|6|2131|1800|35")
"""First digits of Visa, Mastercard, Maestro, American Express, Diners, Discover, UnionPay and JCB numbers."""
_CARD_LENGTHS = {13, 14, 15, 16, 19}
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
    digits = compact(match)
    if _CARD_PREFIX.match(digits) is None and not _before(match, _CARD_WORD, 40):
        return False
    groups = tuple(len(group) for group in re.split(r"[ -]", match.group()))
    if len(groups) > 1 and groups not in _CARD_GROUPS:
        return False
    usual = len(digits) in _CARD_LENGTHS or (len(digits) in (12, 17, 18) and _before(match, _CARD_WORD, 40))
    return usual and len(set(digits)) > 1 and checksums.luhn_holds(digits)


def _before(match: re.Match[str], regex: re.Pattern[str], num_chars: int) -> bool:
    """Whether a word stands shortly before the value."""
    start = whole(match)[0]
    return regex.search(match.string, max(0, start - num_chars), start) is not None


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


_NO_HOST = re.compile(r"(?:\bv|version|release|build|firmware|update to|\bEC|pip install\b[^\n]*)\W*$", re.IGNORECASE)
_KNOWN_HOSTS = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "1.2.3.4", "4.3.2.1", "5.6.7.8"}
"""Public name servers, and what examples count up."""


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
    return not _before(match, _NO_HOST, 24)


def _ipv6(match: re.Match[str]) -> bool:
    text = match.group()
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return not address.is_loopback and not address.is_unspecified and (text.count(":") >= 4 or len(text) >= 8)


_PHONE_WORD = re.compile(
    r"(?:\bph(?:one)?|\btel(?:ephone)?|\bcell|\bmobile|\bcall(?:ing|ed|s)?|\bring|\btext (?:me|us|him|her|them)"
    r"|\bsms|\bwhats?app|\bfax|\bmy number|\bhandy|\bt[ée]l[ée]phone|\btelefon|\bdial"
    r"|\breach(?:ed)? (?:me|us|him|her|them))\b"
    r"[^.!?\d]{0,30}$",
    re.IGNORECASE,
)
_OTHER_NUMBER = re.compile(
    r"(?:\border|\binvoice|\bticket|\btracking|\bserial|\bref(?:erence)?|\bcase|\bsku|\bversion|\bmodel|\bpart|\bpo"
    r"|\bisbn|\bissn|\bid|\bcode|\bfirmware|\bbuild|\bparcel|\bshipment|\bbooking|\bconfirmation|\bcustomer|\bclient"
    r"|\bpolicy|\barticle|\bitem|\baccount|\bcontract|\bchapter|\bpages?|\bvin|\bdoi:?|\barxiv:?|\bpin|\botp|#)"
    r"\W{0,3}(?:number|no|nr|num|id|code|is|was)?\W{0,3}(?:is|was)?\W{0,3}$",
    re.IGNORECASE,
)
_DATE_LIKE = re.compile(r"\d{1,2}[-./ ]\d{1,2}[-./ ](?:19|20)?\d{2}|(?:19|20)\d{2}[-./ ]\d{1,2}[-./ ]\d{1,2}.*")
_NORTH_AMERICAN = re.compile(r"(?:1[-. ]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}([-. ]))\d{3}(?:\1|[-. ])\d{4}")
_TRUNK = re.compile(r"\(?0\d{1,5}\)?(?:[ -]\d{2,5}){2,4}|\(0\d{1,5}\) ?\d{5,8}")
_DIGITS_WITH_SIGN = re.compile(r"\+\d{1,9}")
"""A number with its sign, as in `tail -n +347340107`; international numbers have ten digits or are grouped."""
_EXIT_CODE = re.compile(r"00[1-9]\d{0,2}[ ().-]")
_NOT_PHONES = re.compile(r"(?:19|20)\d{2}-(?:19|20)\d{2}|\d+\.\d+|0?123456789?0?|97[89](?:[- ]?\d){10}")


def _phone(match: re.Match[str]) -> bool:
    """An international number, a national shape, or any 6 digits behind a word for phone."""
    text = match.group()
    digits = re.sub(r"\D", "", text)
    if not 6 <= len(digits) <= 15 or _DATE_LIKE.fullmatch(text) or _NOT_PHONES.fullmatch(text):
        return False
    if len(set(digits)) <= 2 and not text.startswith("+"):
        return False
    if text.startswith("+"):
        return len(digits) >= 8 and not _DIGITS_WITH_SIGN.fullmatch(text)
    before = match.string[max(0, match.start() - 48) : match.start()]
    if _OTHER_NUMBER.search(before):
        return False
    if _EXIT_CODE.match(text):
        return len(digits) >= 8
    if _NORTH_AMERICAN.fullmatch(text) and len(digits) in (10, 11):
        return True
    if _TRUNK.fullmatch(text) and 9 <= len(digits) <= 12:
        return True
    return _PHONE_WORD.search(before) is not None


_ID_WORD = re.compile(
    r"\b(?:ssn|social (?:security|insurance)|tax(?:payer)?|national|identi\w+|nino|nhs|dni|nie|nif|steuer\w*|fiscal\w*"
    r"|bsn|sofi|pesel|cpf|aadhaa?r|sozialversicherung\w*|personnummer|cpr|passport|insee|s[ée]curit[ée] sociale"
    r"|rijksregister\w*|insurance|patient|henkil\w*|nric|id card|personal (?:id|number|code))\b",
    re.IGNORECASE,
)


def _id(holds: Callable[[str], bool]) -> Fit:
    """An id whose check digit holds and whose shape is its own."""
    return where(lambda match: holds(compact(match)))


def _named_id(holds: Callable[[str], bool]) -> Fit:
    """An id that is a bare number: its check digit must hold and a word for ids stand before it."""
    return where(lambda match: _before(match, _ID_WORD, 48) and holds(compact(match)))


def _date_of(digits: str) -> bool:
    """Whether six digits are a date, in either order of day and year."""
    first, month, last = int(digits[:2]), int(digits[2:4]), int(digits[4:6])
    return 1 <= month <= 12 and (1 <= first <= 31 or 1 <= last <= 31)


def _ids() -> tuple[Pattern, ...]:
    def id_pattern(regex: str, fit: Fit, *, digits: int) -> Pattern:
        return Pattern(kind="NATIONAL_ID", regex=re.compile(regex, re.IGNORECASE), fit=fit, digits=digits)

    c = checksums
    return (
        id_pattern(r"(?<![\w-])\d{3}([- ])\d{2}\1\d{4}(?![\w-])", _id(c.ssn_holds), digits=9),
        id_pattern(
            r"(?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)",
            whole,
            digits=6,
        ),  # UK national insurance number (HMRC NIM39110)
        id_pattern(r"(?<!\w)(?:\d{8}|[XYZ]-?\d{7})-?[TRWAGMYFPDXBNJZSQVHLCKE](?!\w)", _id(c.dni_holds), digits=7),
        id_pattern(
            r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?!\w)", _id(c.codice_fiscale_holds), digits=3
        ),
        id_pattern(
            r"(?<!\d)[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?!\d)", _id(c.nir_holds), digits=15
        ),
        id_pattern(r"(?<![\d.])\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}(?!\d)", _id(c.rijksregister_holds), digits=11),
        id_pattern(r"(?<![\d.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)", _id(c.cpf_holds), digits=11),
        id_pattern(
            r"(?<!\d)\d{6}[-+]\d{4}(?!\d)",
            where(lambda match: _date_of(match.group()) and c.luhn_holds(compact(match).replace("+", ""))),
            digits=10,
        ),  # Swedish personnummer
        id_pattern(r"(?<!\w)\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y](?!\w)", where(_hetu), digits=9),
        id_pattern(r"(?<!\w)[STFG]\d{7}[A-Z](?!\w)", _id(c.nric_holds), digits=7),
        id_pattern(
            r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])\d{2}\d{3}[\dX](?!\w)", _id(c.china_id_holds), digits=17
        ),
        id_pattern(r"(?<![\d-])[2-9]\d{3}([ -])\d{4}\1\d{4}(?![\d-])", _id(c.verhoeff_holds), digits=12),
        id_pattern(r"(?<![\d-])\d{3}[ -]?\d{3}[ -]?\d{4}(?![\d-])", _named_id(c.nhs_holds), digits=10),
        id_pattern(r"(?<![\d-])\d{2} ?\d{3} ?\d{3} ?\d{3}(?![\d-])", _named_id(c.steuer_id_holds), digits=11),
        id_pattern(r"(?<![\d-])\d{11}(?![\d-])", _named_id(lambda t: c.pesel_holds(t) or c.cpf_holds(t)), digits=11),
        id_pattern(r"(?<![\d-])\d{12}(?![\d-])", _named_id(c.verhoeff_holds), digits=12),
        id_pattern(
            r"(?<![\d-])\d{3}[ -]?\d{3}[ -]?\d{3}(?![\d-])",
            _named_id(lambda t: c.bsn_holds(t) or c.luhn_holds(t) or c.ssn_holds(t)),
            digits=9,
        ),  # Dutch BSN, Canadian SIN, SSN without strokes
        id_pattern(
            r"\b(?:ssn|social security(?: number| no\.?)?|tax(?:payer)? id(?:entification)?(?: number)?"
            r"|national id(?:entity)?(?: card)?(?: number)?|passport(?: number| no\.?)?"
            r"|driv(?:er'?s?|ing) ?licen[cs]e(?: number| no\.?)?)"
            r"\W{0,3}(?:is|was)?\W{0,3}(?P<value>(?=[A-Z0-9-]*\d{4})[A-Z0-9][A-Z0-9-]{5,16})(?!\w)",
            whole,
            digits=4,
        ),
    )


def _hetu(match: re.Match[str]) -> bool:
    text = match.group().upper()
    return _date_of(text) and checksums.hetu_holds(text)


PERSONAL: tuple[Pattern, ...] = (
    Pattern(
        kind="EMAIL",
        regex=re.compile(r"(?<![\w.+%-])\w[\w.+%'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])"),
        fit=whole,
        hints=("@",),
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
        regex=re.compile(r"(?<![\w.-])\d(?:[ -]?\d){11,18}(?![\w]|[.-]\d)"),
        fit=where(_card),
        digits=12,
    ),
    *_ids(),
    Pattern(
        kind="BANK_ACCOUNT",
        regex=re.compile(
            r"\b(?:bank account|account (?:number|no\.?) at|checking account|savings account|giro account|iban|acct)"
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
        kind="IP_ADDRESS",
        regex=re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w/]|\.\d)"),
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
    Pattern(
        kind="PHONE",
        regex=re.compile(r"(?<![\w.#/$€£:=-])(?:\+\d|\(?\d)[\d ().-]{4,20}\d(?![\w/%€$£]|[.,:-]\d)"),
        fit=where(_phone),
        digits=6,
    ),
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
