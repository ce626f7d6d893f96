"""Patterns of postal addresses: street and number in the orders and words of many countries, up to a post code.

What lives here: addresses only. What does not: other personal data (`data.personal`).

    "Meet me at 12 Harbour Street, Suite 4\n Cork, Ireland 30231"   the whole address is one span
"""

from __future__ import annotations

import re

from tunesmith.data.patterns import Pattern, whole

_STREET_AFTER = (
    "street|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|place|pl|square|sq|terrace|way|parkway|pkwy"
    "|highway|hwy|close|crescent|row|alley|trail|circle|cir|loop|plaza|gardens|grove|quay|mews|hill|walk"
)
_STREET_IN = (
    r"[^\W\d_]{2,24}(?:stra(?:ss|ß)e|str\.|gasse|platz|allee|ufer|damm|weg|laan|straat|gracht|plein|kade|gata|gatan|vägen"
    r"|vegen|veien|gade|vej|katu|tie|kuja|utca|út)"
)
_STREET_IN_HINTS = (
    *("strasse", "straße", "str.", "gasse", "platz", "allee", "ufer", "damm", "weg ", "laan ", "straat", "gracht"),
    *("plein", "kade", "gata", "väg", "veg", "veien", "gade ", "vej", "katu", "tie ", "kuja", "utca", "út "),
)
_STREET_BEFORE = (
    r"(?:rue|avenue|boulevard|place|chemin|allée|via|viale|piazza|corso|calle|avenida|av\.|paseo|plaza|carrer|rua|travessa"
    r"|praça|ul\.|ulica|aleja|al\.|ulice|náměstí|strada|bulevardul)"
)
_STREET_BEFORE_HINTS = (
    *("rue ", "avenue", "boulevard", "place ", "chemin", "allée", "via", "piazza", "corso", "calle", "avenida", "av."),
    *("paseo", "plaza", "carrer", "rua ", "travessa", "praça", "ul.", "ulic", "aleja", "al.", "náměstí", "strada"),
    "bulevard",
)
_UNIT = r"(?:,?\s{1,3}(?:apt|apartment|suite|ste|unit|flat|room|floor|#)\.? ?\w{1,5})"
_CITY = r"(?:,?\s{1,3}[^\W\d_][\w'’-]+(?: [^\W\d_a-z][\w'’-]+){0,2})"
_POSTCODE = (
    r"(?:,?\s{1,3}(?:[A-Z]{2}\s)?(?:\d{5}(?:-\d{4})?|\d{4} ?[A-Z]{2}|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|\d{4,6})(?!\w))"
)
_NAME = r"[^\W\d_a-z][\w'’.-]+"

_BREAK = r"[\s,>?|]{1,6}"
_REST = re.compile(
    rf"(?:{_BREAK}(?i:apt|apartment|suite|unit|flat)\.? ?\d{{1,5}})?"
    rf"(?:(?:{_BREAK}[^\W\d_a-z][\w'’()-]*(?: [^\W\d_][\w'’()-]*){{0,3}}){{0,4}}{_BREAK}\d{{4,6}}(?![\w-]))?"
)


_YEAR = re.compile(r"(?:1[89]|20)\d{2} ")
_AT_A_TIME = re.compile(r"\b(?:the|in|of|since|volume|vol\.?|chapter|part|no\.?) $", re.IGNORECASE)


def _address(match: re.Match[str]) -> tuple[int, int] | None:
    """The street, and what follows it up to a post code, over line breaks as well; no "the 1929 Wall Street crash"."""
    if _YEAR.match(match.group()) and _AT_A_TIME.search(match.string, max(0, match.start() - 8), match.start()):
        return None
    rest = _REST.match(match.string, match.end())
    return match.start(), rest.end() if rest is not None else match.end()


def _numbered(match: re.Match[str]) -> tuple[int, int] | None:
    return _address(match) if match.group("before") is not None or match.group("after") is not None else None


def _capital(match: re.Match[str]) -> tuple[int, int] | None:
    return _address(match) if match.group()[0].isupper() or match.group()[0].isdigit() else None


ADDRESSES: tuple[Pattern, ...] = (
    Pattern(
        kind="ADDRESS",
        regex=re.compile(
            rf"(?<![\w#.$€£-])\d{{1,5}}[A-Za-z]?,? (?:[NSEW]\.? )?(?:{_NAME} ){{1,4}}(?i:{_STREET_AFTER})\b\.?"
            rf"(?i:{_UNIT})?(?:{_CITY}{_POSTCODE}|{_CITY},? [A-Z]{{2}}\b{_POSTCODE}?|{_POSTCODE})?"
        ),
        fit=_address,
        digits=1,
    ),
    Pattern(
        kind="ADDRESS",
        regex=re.compile(
            rf"(?<![\w#.$€£-])\d{{1,5}} (?:{_NAME},? ?){{1,4}}(?:\d{{1,4}})?"
            r"(?i:,?\s{1,3}(?:apt|suite|unit|flat)\.? ?\d{1,5})"
            rf"(?:{_CITY})?(?:{_POSTCODE})?"
        ),
        fit=_address,
        hints=("apt", "suite", "unit", "flat"),
        digits=2,
    ),
    Pattern(
        kind="ADDRESS",
        regex=re.compile(
            rf"(?<!\w)(?:\d{{1,5}} )?(?:{_STREET_IN}|{_NAME} {_STREET_IN}) \d{{1,4}} ?[a-zA-Z]?\b(?i:{_UNIT})?"
            rf"(?:{_POSTCODE}{_CITY}|{_POSTCODE})?"
        ),
        fit=_capital,
        hints=_STREET_IN_HINTS,
        digits=1,
    ),
    Pattern(
        kind="ADDRESS",
        regex=re.compile(
            rf"(?<!\w)(?:(?P<before>\d{{1,5}}(?: ?(?:bis|ter))?),? )?(?i:{_STREET_BEFORE})"
            rf"(?: (?:de|du|des|la|le|les|del|della|di|da|do|dos|d'|l')){{0,2}} ?(?:{_NAME} ?){{1,4}}"
            rf"(?P<after>,? ?(?:n[o°º]\.? ?)?\d{{1,4}}\b)?(?:{_POSTCODE}{_CITY}?)?"
        ),
        fit=_numbered,
        hints=_STREET_BEFORE_HINTS,
        digits=1,
    ),
    Pattern(
        kind="ADDRESS",
        regex=re.compile(r"\b(?:P\.? ?O\.? Box|Post(?:al )?box|Postfach|Apartado|Casilla) \d{1,6}\b", re.IGNORECASE),
        fit=whole,
        hints=("box", "postfach", "apartado", "casilla"),
        digits=1,
    ),
)
