"""Patterns of postal addresses: street and number in the orders and words of many countries, up to a post code.

What lives here: addresses only. What does not: other personal data (`data.personal`).

    "Meet me at 12 Harbour Street, Suite 4\n Cork, Ireland 30231"   the whole address is one span
    "I live at Dalmatinova 43"                                      no word for street: the words before it say so
"""

from __future__ import annotations

import re

from tunesmith.data.matching import Fit, Pattern, whole

_STREET_AFTER = (
    "street|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|place|pl|square|sq|terrace|way|parkway|pkwy"
    "|highway|hwy|close|crescent|row|alley|trail|circle|cir|loop|plaza|gardens|grove|quay|mews|hill|walk|squares|rapids"
    "|crossing|esplanade|promenade|rise|ridge|green|str"
)
_STREET_IN = (
    r"[^\W\d_]{2,24}(?:stra(?:ss|ß)e|str\.|gasse|platz|allee|ufer|damm|weg|laan|straat|gracht|plein|kade|gata|gatan|vägen"
    r"|vegen|veien|gade|vej|katu|tie|kuja|utca|út|stræti|braut|vangur|stien|hove?)"
)
_STREET_IN_HINTS = (
    *("strasse", "straße", "str.", "gasse", "platz", "allee", "ufer", "damm", "weg ", "laan ", "straat", "gracht"),
    *("plein", "kade", "gata", "väg", "veg", "veien", "gade ", "vej", "katu", "tie ", "kuja", "utca", "út "),
    *("stræti", "braut", "vangur", "stien", "hov"),
)
_STREET_BEFORE = (
    r"(?:rue|avenue|boulevard|place|chemin|allée|via|viale|piazza|corso|calle|c/|avenida|av\.|paseo|plaza|carrer|rua"
    r"|travessa|praça|ul\.|ulica|aleja|al\.|ulice|náměstí|strada|bulevardul)"
)
_STREET_BEFORE_HINTS = (
    *("rue ", "avenue", "boulevard", "place ", "chemin", "allée", "via", "piazza", "corso", "calle", "avenida", "av."),
    *("paseo", "plaza", "carrer", "rua ", "travessa", "praça", "ul.", "ulic", "aleja", "al.", "náměstí", "strada"),
    *("bulevard", "c/"),
)
_UNIT_WORD = r"(?:apt|apartment|suite|ste|unit|flat|room|floor|#)"
_UNIT = rf"(?:,?\s{{1,3}}{_UNIT_WORD}\.? ?\w{{1,5}})"
_CITY = r"(?:,?\s{1,3}[^\W\d_][\w'’-]+(?: [^\W\d_a-z][\w'’-]+){0,2})"
_POSTCODE = (
    r"(?:,?\s{1,3}(?:[A-Z]{2,3}\s)?(?:\d{5}(?:-\d{4})?|\d{4} ?[A-Z]{2}|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|\d{3} \d{2}"
    r"|\d{3}-\d{4}|\d{4,6})(?!\w))"
)
_NAME = r"[^\W\d_a-z][\w'’.-]+"
_ORDINAL = r"\d{1,3}(?:st|nd|rd|th)"

_COUNTRY = (
    "Argentina|Australia|Austria|Belgium|Brazil|Bulgaria|Canada|Chile|China|Colombia|Croatia|Cyprus"
    "|Czech(?:ia| Republic)|Denmark|England|Estonia|Finland|France|Germany|Greece|Greenland(?:er)?|Hong Kong|Hungary"
    "|Iceland|India|Ireland|Israel|Italy|Japan|Latvia|Lithuania|Luxembourg|Malta|Mexico|Netherlands|New Zealand|Norway"
    "|Poland|Portugal|Romania|Russia|Scotland|Serbia|Singapore|Slovakia|Slovenia|South Africa|South Korea|Spain|Sweden"
    "|Switzerland|Tunisia|Turkey|UK|Ukraine|United Kingdom|United States(?: of America)?|Uruguay|USA|Wales|Vietnam"
)
_BREAK = r"[\s,>?|]{1,6}"
_PLACE = rf"{_BREAK}[^\W\d_a-z][^\W\d_'’()∆.-]*(?:[ '’().∆-]{{1,2}}[^\W\d_][^\W\d_'’()-]*){{0,3}}"
_TAIL = re.compile(
    rf"(?:\.?{_BREAK}(?i:{_UNIT_WORD})\.? ?\d{{1,5}}[A-Z]?){{0,2}}"
    rf"(?:(?:{_PLACE}){{0,4}}(?:{_BREAK}nan)?(?:{_BREAK}\d{{4,6}}(?![\w-])|{_BREAK}(?:{_COUNTRY})\b(?: \(\w+\))?)"
    rf"(?:{_BREAK}\d{{4,6}}(?![\w-]))?)?"
)
"""What follows a street: units, then places up to a post code, a country or both. An empty region prints `nan`."""
_UNIT_END = re.compile(rf"(?i:{_UNIT_WORD})\.? ?\d{{1,5}}[A-Z]?$")
_CITY_END = re.compile(
    r"(?:,?[ \n]{1,3}|\n[ >?|]{0,4})[^\W\d_a-z][^\W\d_]+(?:[ -][^\W\d_a-z][^\W\d_]+){0,2}(?: nan\b)?(?=[\n,.?!]|$)"
)
"""The city behind a unit or a comma, up to the end of its line or sentence."""
_CORNER = re.compile(r"(?i:\b(?:the )?corner of )$")
_OTHER_STREET = re.compile(rf" and {_NAME}(?: {_NAME}){{0,3}}")

_YEAR = re.compile(r"(?:1[89]|20)\d{2}(?:-(?:1[89]|20)?\d{2})?,? ")
_COPYRIGHT = re.compile(r"copyright|\(c\)|©", re.IGNORECASE)
_AT_A_TIME = re.compile(r"\b(?:the|in|of|since|volume|vol\.?|chapter|part|no\.?) $", re.IGNORECASE)


def _address(match: re.Match[str]) -> tuple[int, int] | None:
    """The street, and what follows it up to a post code, over line breaks as well; no "the 1929 Wall Street crash"."""
    if _YEAR.match(match.group()) and (
        _AT_A_TIME.search(match.string, max(0, match.start() - 8), match.start())
        or _COPYRIGHT.search(match.string, max(0, match.start() - 64), match.start())
    ):
        return None
    return _start(match), _end(match)


_HOUSE = re.compile(r"(?<![\w#.$€£/-])(?:(?i:flat|unit|apt|suite)\.? \d{1,5}[A-Za-z]?,? )?(?:\d{1,5}[ /])?(?<=[ /])$")
"""A flat, or a second number, before the street."""


def _corner(match: re.Match[str]) -> re.Match[str] | None:
    """The words "the corner of" before a street."""
    start = whole(match)[0]
    return _CORNER.search(match.string, max(0, start - 16), start)


def _start(match: re.Match[str]) -> int:
    """Where the address begins: at the corner, flat or second number before the street."""
    start = whole(match)[0]
    left = _corner(match) or _HOUSE.search(match.string, max(0, start - 24), start)
    return start if left is None else left.start()


def _end(match: re.Match[str]) -> int:
    """Where the address ends: behind its units, city, post code, country."""
    end = _tail_end(match)
    if _UNIT_END.search(match.string, max(0, end - 16), end) or match.string[end : end + 1] == ",":
        city = _CITY_END.match(match.string, end)
        end = end if city is None else city.end()
    return end


def _tail_end(match: re.Match[str]) -> int:
    """Where the address ends without a city of its own."""
    end = whole(match)[1]
    if _corner(match) is not None:
        other = _OTHER_STREET.match(match.string, end)
        end = end if other is None else other.end()
    tail = _TAIL.match(match.string, end)
    return end if tail is None else tail.end()


def _numbered(match: re.Match[str]) -> tuple[int, int] | None:
    return _address(match) if match.group("before") is not None or match.group("after") is not None else None


def _capital(match: re.Match[str]) -> tuple[int, int] | None:
    return _address(match) if match.group()[0].isupper() or match.group()[0].isdigit() else None


_SAYS_ADDRESS = (
    r"\b(?:liv(?:e[sd]?|ing) at|wohn\w* (?:in|an)|corner of|address\W{1,3}(?:it )?(?:is|to|with)(?: the corner of)?"
    r"|address of [\w&.' -]{2,32} is|(?:address|adresse|anschrift|direcci[óo]n|indirizzo|адрес)\s?:(?: the corner of)?)"
)
_SAYS_PLACE = (
    r"\b(?:(?:located|arrived?|offices? (?:is|are)|meet (?:me|you|us|him|her)|stay(?:ing|s)?|reside[sd]?|home is)"
    r" (?:at|on)"
    r"|(?:ship|deliver|send|post|mail|moved?|relocat)\w*(?: \w+){0,5} to|drops (?:you|me|us) off at"
    r"|(?:address(?:es)?|sent to)\b[^.!?]{0,32}[:?](?: user:)?)"
)
"""Words before an address, and words that stand before much else as well."""
_SAY_HINTS = (
    *(
        "live",
        "living",
        "wohn",
        "corner of",
        "address",
        "adresse",
        "anschrift",
        "direcci",
        "indirizzo",
        "адрес",
        "locat",
    ),
    *(
        "arrive",
        "office",
        "meet ",
        "stay",
        "reside",
        "ship",
        "deliver",
        "send",
        "sent to",
        "post",
        "mail",
        "move",
        "drops",
    ),
)
_NO_STREET = re.compile(
    r"(?:\d{1,2}(?:st|nd|rd|th)? )?(?:(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*|room|gate|terminal|hall"
    r"|floor|platform|exit|stage|level|step|line|page|chapter|table|figure|section|building|booth|stand|pier|dock|bay|bus"
    r"|seat|version|route|highway|windows|python|office|port|area|zone|world|war|group|grade|class|unit|season|episode"
    r"|monday|tuesday|wednesday|thursday|friday|saturday|sunday|around|about|over|under|least|most|only|order|ticket|the"
    r"|product|a|an|my|your|our)\b",
    re.IGNORECASE,
)


def _said(match: re.Match[str]) -> tuple[int, int] | None:
    """A name and a number behind words that announce an address; weak words need a house number or places besides."""
    first, last = match.span("value")
    if _NO_STREET.match(match.group("value")):
        return None
    sure = match.group("sure") is not None or match.string[first].isdigit() or _tail_end(match) > last
    return (_start(match), _end(match)) if sure else None


def _placed(match: re.Match[str]) -> tuple[int, int] | None:
    """A name between two numbers, where units or places up to a country or a post code follow."""
    if _NO_STREET.match(match.group().lstrip("0123456789, ")):
        return None
    end = _tail_end(match)
    dated = _YEAR_NUMBER.search(match.group()) and not _UNIT_END.search(match.string, match.end(), end)
    return (match.start(), _end(match)) if end > match.end() and not dated else None


_YEAR_NUMBER = re.compile(r"\b(?:19|20)\d{2}\b")


def _pattern(regex: str, fit: Fit, *, hints: tuple[str, ...] = (), digits: int = 1) -> Pattern:
    return Pattern(kind="ADDRESS", regex=re.compile(regex), fit=fit, hints=hints, digits=digits)


_FREE = r"(?<![\w#.,$€£-])"
_INNER = r"(?:[Ss]tr\.|strasse|straße|tee|puiestee|gate|gade|gata|út|útja|u\.|rkp\.|kapu|tér|st|str)"

ADDRESSES: tuple[Pattern, ...] = (
    _pattern(
        rf"{_FREE}\d{{1,5}}[A-Za-z]?(?:-\d{{1,5}})?,? (?:[NSEW]\.? )?(?:(?:{_NAME}|{_ORDINAL}) ){{1,4}}"
        rf"(?i:{_STREET_AFTER})\b\.?(?: (?:N|S|E|W|NE|NW|SE|SW|North|South|East|West|Central)\b)?"
        rf"(?i:{_UNIT})?(?:{_CITY}{_POSTCODE}|{_CITY},? [A-Z]{{2}}\b{_POSTCODE}?|{_POSTCODE})?",
        _address,
    ),
    _pattern(
        rf"{_FREE}\d{{1,5}} (?:{_NAME},? ?){{1,4}}(?:\d{{1,4}})?(?i:,?\s{{1,3}}(?:apt|suite|unit|flat)\.? ?\d{{1,5}})",
        _address,
        hints=("apt", "suite", "unit", "flat"),
        digits=2,
    ),
    _pattern(
        rf"(?<!\w)(?:\d{{1,5}} )?(?:{_STREET_IN}|(?:{_NAME} ){{1,3}}(?:{_STREET_IN}|{_INNER})) \d{{1,4}}\.?"
        r"(?: ?[a-zA-Z]\b)?"
        rf"(?i:{_UNIT})?(?:{_POSTCODE}{_CITY}|{_POSTCODE})?",
        _capital,
        hints=(*_STREET_IN_HINTS, "gate ", "tee ", "u. ", "rkp.", "kapu", "tér ", "útja", " st ", " str "),
    ),
    _pattern(
        rf"(?<!\w)(?:(?P<before>\d{{1,5}}(?: ?(?:bis|ter))?),? )?(?i:{_STREET_BEFORE})"
        rf"(?: (?:de|du|des|la|le|les|del|della|di|da|do|dos|d'|l')){{0,2}} ?(?:{_NAME} ?){{1,4}}"
        rf"(?P<after>,? ?(?:n[o°º]\.? ?)?\d{{1,4}}(?:/\d{{1,4}})?\b)?(?:{_POSTCODE}{_CITY}?)?",
        _numbered,
        hints=_STREET_BEFORE_HINTS,
    ),
    _pattern(
        rf"(?i:\b(?:\d{{1,5}} )?(?:P\.? ?O\.? Box|Post(?:al )?box|Postfach|Apartado|Casilla) \d{{1,6}}\b{_UNIT}?)",
        lambda match: (match.start(), _end(match)),
        hints=("box", "postfach", "apartado", "casilla"),
    ),
    _pattern(
        r"(?i:\b(?:(?:PSC|CMR|Unit) \d{1,5},? Box \d{1,5}|US[A-Z]{1,4} \w{2,20})\s{1,3}(?:APO|FPO|DPO),? A[AEP] \d{5})",
        whole,
        hints=("apo", "fpo", "dpo"),
    ),  # military mail (USPS Publication 28, section 225)
    _pattern(rf"{_FREE}(?:\d{{1,5}},? )?\d{{1,5}} (?:{_NAME} ){{1,3}}\d{{1,4}}\b\.?(?=[,\s])", _placed, digits=2),
    _pattern(
        rf"(?:(?P<sure>(?i:{_SAYS_ADDRESS}))|(?i:{_SAYS_PLACE}))\s{{1,8}}"
        rf"(?P<value>(?:\d{{1,5}},? ){{0,2}}{_NAME}(?: [^\W\d_][\w'’.-]*){{0,3}} \d{{1,5}}[a-zA-Z]?\b"
        rf"(?:{_POSTCODE}{_CITY})?"
        rf"|(?i:\d{{1,5}}[a-z]? (?:the \w+|(?:\w+ ){{1,3}}(?:{_STREET_AFTER}))\b{_UNIT}?))",
        _said,
        hints=_SAY_HINTS,
    ),
)
"""Patterns of addresses."""
