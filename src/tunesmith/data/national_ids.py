"""Patterns of national ids: numbers of persons at tax offices, insurances and registers, passports and licences.

What lives here: how each id is written. What does not: its check digits (`data.checksums`), other personal data
(`data.personal`).

An id whose shape is its own needs only its check digits. An id that is a bare number needs a word for ids before it
besides: one in ten order numbers has the right check digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tunesmith.data import checksums as c
from tunesmith.data.matching import Fit, Pattern, before, compact, where, whole

_ID_WORD = re.compile(
    r"\b(?:ssn|itin|social (?:security|insurance)|tax (?:id\w*|number|no\b|file|payer)|taxpayer|nino|nhs|dni|nie|nif"
    r"|national (?:id\w*|insurance|number)|identi(?:ty|fication) (?:card|number|no\b|document|code)|identifiant"
    r"|steuer\w*|fiscal (?:code|number|id)|(?:codice|num[ée]ro|c[óo]digo|num[ée]ro d'identification) fiscal\w*|bsn"
    r"|burgerservicenummer|sofi|pesel|cpf|aadhaa?r|uidai|sozialversicherung\w*|sv(?:nr|-nummer)|personnummer"
    r"|f[øo]dselsnummer|cpr|passport|insee|s[ée]curit[ée] sociale|rijksregister\w*"
    r"|(?:insurance|patient) (?:id|number|no)\b"
    r"|henkil\w*|nric|id card|(?:personal|citizen|resident|roc) (?:id|number|code)|id (?:number|no\.?)"
    r"|tfn|medicare|ahv|pps|ppsn|rodn[ée]|cnp|egn|oib|curp|cuit|cuil|kimlik|teudat|my ?number|hkid|thai id"
    r"|idnr|my social|s\.s\.n|s\.i\.n|t\.f\.n|b\.s\.n|d\.n\.i|n\.i\.[efn]"
    r"|permanent account|personalausweis\w*|reisepass\w*|(?-i:SIN|FIN|AVS|RFC|RUT|PAN))\b",
    re.IGNORECASE,
)
_ID_WORD_CHARS = 48


def _any(_: str) -> bool:
    """No check digit is known: the shape and the word before it are all that there is."""
    return True


_SCHEMES: dict[int, tuple[Callable[[str], bool], ...]] = {
    9: (c.bsn_holds, c.luhn_holds, c.tfn_holds, c.nif_holds),
    10: (c.nhs_holds, c.svnr_holds, c.medicare_holds, c.egn_holds, c.rodne_cislo_holds),
    11: (c.steuer_id_holds, c.pesel_holds, c.cpf_holds, c.oib_holds, c.kimlik_holds, c.fodselsnummer_holds),
    12: (c.verhoeff_holds, c.my_number_holds),
    13: (c.cnp_holds, c.luhn_holds, c.thai_id_holds),
}
"""Number of digits -> what may hold of a bare number behind a word for ids (Dutch BSN, Canadian SIN, ...)."""


_OTHER_NUMBER = re.compile(
    r"\b(?:order|invoice|ticket|tracking|serial|sku|version|model|part|batch|lot|item|membership|parcel|shipment|booking"
    r"|article|case|ref(?:erence)?|imei|isbn)\W{0,3}(?:number|no|nr)?\W{0,3}(?:is|was)?\W{0,3}$",
    re.IGNORECASE,
)


def _shaped(holds: Callable[[str], bool]) -> Fit:
    """An id whose check digit holds and whose shape is its own, unless the word before it names another number."""
    return where(lambda match: holds(compact(match)) and not before(match, _OTHER_NUMBER, _ID_WORD_CHARS))


def _named(*holds: Callable[[str], bool]) -> Fit:
    """An id that is a bare number: a check digit must hold and a word for ids stand before it."""
    return where(lambda match: before(match, _ID_WORD, _ID_WORD_CHARS) and any(hold(compact(match)) for hold in holds))


def _date_of(digits: str) -> bool:
    """Whether six digits are a date, in either order of day and year."""
    first, month, last = int(digits[:2]), int(digits[2:4]), int(digits[4:6])
    return 1 <= month <= 12 and (1 <= first <= 31 or 1 <= last <= 31)


def _has_a_scheme(text: str) -> bool:
    return any(holds(text) for holds in _SCHEMES[len(text)])


def _swedish(match: re.Match[str]) -> bool:
    digits = compact(match).replace("+", "")[-10:]
    dated = _date_of(digits) and not before(match, _OTHER_NUMBER, _ID_WORD_CHARS)
    return dated and c.luhn_holds(digits)


def _hetu(match: re.Match[str]) -> bool:
    text = match.group().upper()
    return _date_of(text) and c.hetu_holds(text)


def _korean(match: re.Match[str]) -> bool:
    digits = compact(match)
    dated = _date_of(digits[4:6] + digits[2:4] + digits[:2])
    return dated and (c.rrn_holds(digits) or before(match, _ID_WORD, _ID_WORD_CHARS))


def _verhoeff(match: re.Match[str]) -> bool:
    return c.verhoeff_holds(compact(match))


def _pattern(regex: str, fit: Fit, *, digits: int) -> Pattern:
    return Pattern(kind="NATIONAL_ID", regex=re.compile(regex, re.IGNORECASE), fit=fit, digits=digits)


_SHAPED = (
    _pattern(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", _shaped(c.ssn_holds), digits=9),
    _pattern(
        r"(?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)",
        whole,
        digits=6,
    ),  # UK national insurance number (HMRC NIM39110)
    _pattern(
        r"(?<!\w)(?:\d{8}|\d{1,2}\.\d{3}\.\d{3}|[XYZ]-?\d{7})-?[TRWAGMYFPDXBNJZSQVHLCKE](?!\w)",
        _shaped(c.dni_holds),
        digits=7,
    ),
    _pattern(r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?!\w)", _shaped(c.codice_fiscale_holds), digits=3),
    _pattern(
        r"(?<!\d)[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}(?!\d)",
        _shaped(c.nir_holds),
        digits=8,
    ),
    _pattern(r"(?<![\d.])\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}(?!\d)", _shaped(c.rijksregister_holds), digits=11),
    _pattern(r"(?<![\d.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)", _shaped(c.cpf_holds), digits=11),
    _pattern(r"(?<![\d.])756\.\d{4}\.\d{4}\.\d{2}(?!\d)", _shaped(c.ean13_holds), digits=13),  # Swiss AHV
    _pattern(r"(?<![\d-])(?:18|19|20)?\d{6}[-+]\d{4}(?![\d-])", where(_swedish), digits=10),
    _pattern(r"(?<!\w)\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y](?!\w)", where(_hetu), digits=9),
    _pattern(r"(?<![\d-])\d{6}-[1-8]\d{6}(?![\d-])", where(_korean), digits=13),
    _pattern(r"(?<![\d/])\d{6}/\d{4}(?![\d/])", _shaped(c.rodne_cislo_holds), digits=10),
    _pattern(r"(?<!\w)[STFG]\d{7}[A-Z](?!\w)", _shaped(c.nric_holds), digits=7),
    _pattern(r"(?<!\w)[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d(?!\w)", whole, digits=6),  # Mexican CURP
    _pattern(r"(?<!\w)(?-i:[A-Z]{3}P[A-Z]\d{4}[A-Z])(?!\w)", _shaped(_any), digits=4),  # Indian PAN of a person
    _pattern(
        r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])\d{2}\d{3}[\dX](?!\w)", _shaped(c.china_id_holds), digits=17
    ),
    _pattern(r"(?<![\d-])(?<!\d )[2-9]\d{3}([ -])\d{4}\1\d{4}(?![\d-]| \d)", _shaped(c.verhoeff_holds), digits=12),
    _pattern(r"(?<![\d.-])\d{1,2}\.\d{3}\.\d{3}-[\dK](?!\w)", _shaped(c.rut_holds), digits=8),
    _pattern(r"(?<![\d-])(?:20|23|24|27)-\d{8}-\d(?![\d-])", _shaped(c.cuit_holds), digits=11),
    _pattern(r"(?<!\w)[A-Z]{1,2}\d{6}\([0-9A]\)(?!\w)", _shaped(c.hkid_holds), digits=6),
)

_NAMED = (
    _pattern(r"(?<![\w-])\d{3} \d{2} \d{4}(?![\w-])", _named(c.ssn_holds), digits=9),
    _pattern(r"(?<![\d-])9\d{2}-[5-9]\d-\d{4}(?![\d-])", _named(_any), digits=9),  # US ITIN
    _pattern(r"(?<!\w)[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z](?!\w)", _named(_any), digits=4),  # Indian PAN of others
    _pattern(r"(?<!\w)\d{2} ?\d{6} ?[A-Z] ?\d{3}(?!\w)", _named(c.german_pension_holds), digits=8),
    _pattern(r"(?<!\w)\d{7}[A-W][A-I]?(?!\w)", _named(c.pps_holds), digits=7),
    _pattern(r"(?<!\w)[A-Z]{4}\d{6}[A-Z0-9]{3}(?!\w)", _named(_any), digits=6),  # Mexican RFC of a person
    _pattern(r"(?<!\w)[A-Z][12]\d{8}(?!\w)", _named(c.taiwan_id_holds), digits=9),
    _pattern(r"(?<![\d.-])\d{4}\.\d{2}\.\d{3}(?![\d-])", _named(c.bsn_holds), digits=9),
    _pattern(r"(?<![\d-])\d{6}-\d{4}(?![\d-])", _named(_date_of), digits=10),  # Danish CPR
    _pattern(r"(?<![\d.,-])\d(?:[ -]?\d){8,12}(?![\d-]|[.,]\d)", _named(_has_a_scheme), digits=9),
    _pattern(r"(?<!\w)(?-i:UID)\W{1,3}(?P<value>[2-9]\d{11})(?!\d)", where(_verhoeff), digits=12),  # Aadhaar
    _pattern(
        r"\b(?:ssn|social security(?: number| no\.?)?|(?:tax(?:payer)?|national) id(?:entification|entity)?(?: card)?"
        r"(?: number)?|passport(?: number| no\.?)?|driv(?:er'?s?|ing) ?licen[cs]e(?: number| no\.?)?"
        r"|reisepass(?:nummer)?|personalausweis(?:nummer)?|num[ée]ro fiscal|ausweisnummer|num[ée]ro de passeport)"
        r"(?: nr\.?)?\W{0,3}(?:is|was|lautet)?\W{0,3}(?P<value>(?=[A-Z0-9-]*\d{2})(?=(?:[A-Z-]*\d){4})"
        r"[A-Z0-9][A-Z0-9-]{5,16})(?!\w)",
        whole,
        digits=2,
    ),
)

NATIONAL_IDS: tuple[Pattern, ...] = (*_SHAPED, *_NAMED)
"""Patterns of national ids, those whose shape is their own first."""
