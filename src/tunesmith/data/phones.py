"""The pattern of telephone numbers: international, in the shapes of many countries, or behind a word for phone.

What lives here: telephones only. What does not: other personal data (`data.personal`).

    "+44 20 7946 0958", "(555) 867-5309 ext. 12", "0151-23456789"    found by their shape
    "my mobile: 4155552671", "llámame al 612 345 678"                found by the word before
    "order 4155552671", "2026-03-04", "978-3-16-148410-0"            none
"""

from __future__ import annotations

import re

from tunesmith.data.matching import Pattern, left_of

_WORD = re.compile(
    r"(?:\bph(?:one)?|\btel(?:ephone)?|\bcell(?:ulare|phone)?|\bmobile?|\bcall(?:ing|ed|s)?|\bring"
    r"|\btext (?:me|us|him|her|them)|\bsms|\bwhats?app|\bfax|\bmy (?:registered|number)|\bhandy(?:nummer)?"
    r"|\bt[ée]l[ée](?:phone|fono)|\btelefo\w*|\btlf|\bdial|\breach(?:ed)? (?:me|us|him|her|them)|\bruf\w*|\banruf\w*"
    r"|\bm[óo]vil|\bll[áa]m\w*|\bzadzwo\w*|\bappel\w*|\bchiam\w*|\bligue?|\bсотов\w*|\bтелефон\w*|电话|手机|電話|携帯)\b"
    r"(?:\W{1,3}(?:is|was|are|me|us|him|her|them|back|at|on|under|via|by|to|or|and|the|my|our|his|their|work|home|office|nr|no"
    r"|number|num|now|please|today|directly|support|hotline|line|again|for|with|using|auf|an|unter|bitte|mich|al|en|o|au|le"
    r"|moi|mig|på|ist|est|es|[^\W\d_a-z]\w*)\b){0,6}\W{0,4}$",
    re.IGNORECASE,
)
_WORD_CHARS = 48
_OTHER_NUMBER = re.compile(
    r"(?:\border|\bbatch|\blot|\bmembership|\binvoice|\bticket|\btracking|\bserial|\bref(?:erence)?|\bcase|\bsku|\bversion|\bmodel|\bpart|\bpo"
    r"|\bisbn|\bissn|\bid|\bcode|\bfirmware|\bbuild|\bparcel|\bshipment|\bbooking|\bconfirmation|\bcustomer|\bclient"
    r"|\bpolicy|\barticle|\bitem|\baccount|\bcontract|\bchapter|\bpages?|\bvin|\bdoi:?|\barxiv:?|\bpin|\botp|#)"
    r"\W{0,3}(?:number|no|nr|num|id|code|is|was)?\W{0,3}(?:is|was)?\W{0,3}$",
    re.IGNORECASE,
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_DATE_LIKE = re.compile(rf"{_DAY}[-./ ]{_DAY}[-./ ](?:19|20)?\d{{2}}|(?:19|20)\d{{2}}[-./ ]\d{{1,2}}[-./ ]\d{{1,2}}.*")
_NOT_PHONES = re.compile(
    r"(?:19|20)\d{2}-(?:19|20)\d{2}|\d+\.\d+|0?123456789?0?|(?:\d\d ){5,}\d\d|97[89](?:[- ]?\d){10}"
)
_DIGITS_WITH_SIGN = re.compile(r"\+\d{1,9}")
"""A number with its sign, as in `tail -n +347340107`; international numbers have ten digits or are grouped."""
_EXIT_CODE = re.compile(r"00 ?[1-9]\d{0,2}[ ().-]")
_NATIONAL_SHAPES: tuple[tuple[re.Pattern[str], range], ...] = (
    (re.compile(r"(?:1[-. ]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}([-. ]))\d{3}(?:\1|[-. ])\d{4}"), range(10, 12)),
    (re.compile(r"\(?0\d{1,5}\)?(?:[ -]\d{2,5}){2,4}|\(0\d{1,5}\) ?\d{5,8}"), range(9, 13)),
    (re.compile(r"0[1-9]\d{0,4}(?:[- ]| ?/ ?)\d{6,8}"), range(10, 13)),
    (re.compile(r"0[1-9](?:\.\d{2}){4}"), range(10, 11)),
    (re.compile(r"\([1-9]\d\) ?9?\d{4}-\d{4}"), range(10, 12)),
    (re.compile(r"8 ?\(\d{3}\) ?\d{3}-\d{2}-\d{2}"), range(11, 12)),
)
"""Shape -> digits it may have: North America, trunk prefix 0 in groups, area and number, France, Brazil, Russia."""
_EXTENSION = re.compile(r",? ?(?:ext(?:ension)?\.?|x|durchwahl|poste) ?\d{1,5}\b", re.IGNORECASE)


def _phone(match: re.Match[str]) -> tuple[int, int] | None:
    """The number with its extension."""
    if not _is_phone(match):
        return None
    extension = _EXTENSION.match(match.string, match.end())
    return match.start(), match.end() if extension is None else extension.end()


def _is_phone(match: re.Match[str]) -> bool:
    """An international number, a national shape, or any 6 digits behind a word for phone."""
    text = match.group()
    digits = re.sub(r"\D", "", text)
    if not 6 <= len(digits) <= 15 or _DATE_LIKE.fullmatch(text) or _NOT_PHONES.fullmatch(text):
        return False
    if len(set(digits)) <= 2 and not text.startswith("+"):
        return False
    if text.startswith("+"):
        most = 15 if re.search(r"[ ()./-]", text) else 13
        return 8 <= len(digits) <= most and not _DIGITS_WITH_SIGN.fullmatch(text)
    left = left_of(match, _WORD_CHARS)
    if _OTHER_NUMBER.search(left):
        return False
    if _EXIT_CODE.match(text):
        return len(digits) >= 8
    shaped = any(len(digits) in sizes and shape.fullmatch(text) for shape, sizes in _NATIONAL_SHAPES)
    return (shaped and not left.endswith("=")) or (" / " not in text and _WORD.search(left) is not None)


PHONES = Pattern(
    kind="PHONE",
    regex=re.compile(r"(?<![\w.#/$€£-])(?<!\d:)(?:\+\d|\(?\d)[\d ()./-]{4,20}\d(?![\w/%€$£]|[.,:-]\d)"),
    fit=_phone,
    digits=6,
)
"""The pattern of telephone numbers."""
