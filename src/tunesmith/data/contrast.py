"""Contrast: texts of nearly the same words that say something else.

What lives here: small differences that make another text. What does not: how many words two texts share
(`data.verify`), numbers (`data.near`), answers that are code (`data.formal`).

    the smallest file / the largest file             opposites, units, days, months, counts: one of a group for another
    is it allowed / is it not allowed                a negation in an otherwise equal text
    from Paris to Lyon / from Lyon to Paris          the same words, two of them exchanged
    ask Marie / ask Carol, ls -r / ls -R, 5% / -5%   names and signs are all that differs
    the same passage, another question               what is not shared word for word has little in common

Texts that differ in many words besides are left to their score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import pairwise

from tunesmith.data.formal import SHORT_TOKENS, formal_tokens
from tunesmith.data.verify import is_misspelling
from tunesmith.data.words import tokens

MAX_FEW, MAX_FEW_OF_LONG = 4, 2
"""Texts of which neither holds more words than this that the other lacks are compared sign for sign; of 40 words
and more, where fewer words differ."""
MAX_SWAPPED_APART = 12
"""Most words between two parts of a sentence that changed places."""
MIN_SAME_QUESTION = 0.5
"""Share of the words of the sentences that only one text has that the other must have in its own sentences."""
MAX_SLOT_WORDS = 4
"""Most words of each of the parts that changed places."""
MAX_CASED = 5
"""Flags and file endings of so many signs mean something else in another case."""
MIN_LETTERS = 4
"""Paths and names of fewer letters are never misspellings of one another."""
MAX_SIGNED = 40
"""In texts of more words a sign that is there or not is a matter of typing."""
MAX_NAMED = 16
"""In texts of more words a name that is one letter off is misspelt; in shorter ones it is another name."""

_GROUPS = (
    "left right middle|top bottom|up down|upper lower|above below|over under|inside outside|front back|"
    "first second third fourth fifth sixth seventh eighth ninth tenth last next previous|begin end|start stop|"
    "min max|minimum maximum|smallest largest|small large|smaller larger|lower higher|lowest highest|low high|"
    "less more|least most|fewer more|few many|shortest longest|short long|shorter longer|smaller greater bigger|"
    "smallest biggest greatest|older younger newer|oldest newest youngest|old new|slow fast|slower faster|early late|"
    "earlier later|earliest latest|even odd|positive negative neutral|true false|yes no|and or|all any none no|"
    "always never sometimes|everyone nobody someone|both neither either|with without|before after during|to from|"
    "import export|input output|increase decrease|increasing decreasing|increases decreases|increased decreased|"
    "ascending descending|add remove subtract|add delete|create delete|append prepend|insert delete|push pop|"
    "enable disable|enabled disabled|on off|open close|opened closed|opening closing|lock unlock|allow deny forbid|"
    "allowed forbidden|accept reject refuse|accepted rejected|include exclude|including excluding|show hide|read write|"
    "load save|upload download|send receive|sent received|buy sell|buying selling|bought sold|lend borrow|"
    "encrypt decrypt|encode decode|compress decompress|zip unzip|mount unmount|install uninstall|login logout|"
    "public private|local remote|internal external|domestic international|uppercase lowercase|hot cold|warm cool|"
    "heat cool|safe unsafe dangerous|legal illegal|possible impossible|valid invalid|correct incorrect wrong|"
    "good bad|better worse|best worst|cheap expensive|cheapest dearest|rich poor|win lose|won lost|pass fail|"
    "passed failed|success failure|male female|man woman|men women|boy girl|boys girls|husband wife|mother father|"
    "son daughter|brother sister|mr mrs|his her|he she|him her|sum product difference quotient|"
    "sine cosine tangent|sin cos tan|rows columns|row column|horizontal vertical|width height depth length|"
    "mean median mode|average median|north south east west|northern southern eastern western|"
    "january february march april may june july august september october november december|"
    "monday tuesday wednesday thursday friday saturday sunday|"
    "spring summer autumn winter|today tomorrow yesterday|morning afternoon evening night|"
    "breakfast lunch dinner|hourly daily weekly monthly quarterly yearly annually|"
    "second minute hour day week month quarter year decade century|"
    "seconds minutes hours days weeks months quarters years decades|am pm|"
    "mm cm dm m km mile miles yard yards foot feet inch inches|meter meters metre metres kilometer kilometers "
    "kilometre kilometres centimeter centimeters centimetre centimetres millimeter millimeters mile miles inches feet|"
    "mg g kg t lb lbs oz|gram grams kilogram kilograms pound pounds ounce ounces ton tons tonne tonnes|"
    "ml cl l|liter liters litre litres gallon gallons milliliter milliliters|celsius fahrenheit kelvin|"
    "bit bits byte bytes|b kb mb gb tb pb kib mib gib|kilobytes megabytes gigabytes terabytes|"
    "hz khz mhz ghz|w kw mw watts kilowatts|joules calories|volts amps|"
    "usd eur gbp jpy chf aud cad inr cny sek nok dkk pln czk|dollar euro pound yen franc rupee|"
    "dollars euros pounds yen francs rupees|cents pence|percent permille|"
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion|"
    "once twice thrice|single double triple|half quarter third whole|"
    "red green blue yellow black white orange purple pink brown grey gray|"
    "montag dienstag mittwoch donnerstag freitag samstag sonntag|lundi mardi mercredi jeudi vendredi samedi dimanche|"
    "lunes martes miércoles jueves viernes sábado domingo|"
    "januar februar märz april mai juni juli august september oktober november dezember|"
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre|"
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre|"
    "zwei drei vier fünf sechs sieben acht neun zehn elf zwölf zwanzig dreißig hundert tausend|"
    "deux trois quatre cinq six sept huit neuf dix onze douze vingt trente cent mille|"
    "dos tres cuatro cinco seis siete ocho nueve diez once doce veinte treinta cien mil|"
    "links rechts|gauche droite|izquierda derecha|größer kleiner|mehr weniger|mit ohne|plus moins|avec sans|más menos|"
    "mayor menor|con sin|heute morgen gestern|hier demain aujourd|hoy mañana ayer"
)
_members = [group.split() for group in _GROUPS.split("|")]
GROUPS_OF: dict[str, frozenset[int]] = {
    word: frozenset(number for number, group in enumerate(_members) if word in group)
    for word in {word for group in _members for word in group}
}
"""Word -> the groups of which it is one choice."""

_NEGATION_WORDS = (
    "not no never none nothing nobody neither nor without cannot can't non hardly "
    "nicht kein keine keinen keiner nie niemals ohne pas jamais aucun aucune sans nunca ningún ninguna tampoco sin "
    "não nem niet geen nooit 不 没 沒 無 无 别"
)
"""Of English, German, French, Spanish, Portuguese, Dutch and Chinese."""
_NEGATIONS = frozenset(_NEGATION_WORDS.split())
_AUXILIARIES = frozenset(
    "do does did is are was were be been has have had can could will would shall should may any it".split()  # noqa: SIM905
)
_EDGES = ".,;:!?\"'()[]“”‘’«»…"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_UNIT = re.compile(r"\d+[^\W\d_]{1,3}")


def contrast(only_one: Sequence[str], only_other: Sequence[str]) -> bool:
    """Whether of the words that only the one or only the other text holds, two are different choices of one group.

    A number with a unit is a choice as well: `10kb`, `10mb`.
    """
    if any(map(_UNIT.fullmatch, only_one)) and any(map(_UNIT.fullmatch, only_other)):
        return True
    chosen = {group for word in only_one for group in GROUPS_OF.get(word, ())}
    return any(group in chosen for word in only_other for group in GROUPS_OF.get(word, ()))


def says_another(one: str, other: str) -> bool:
    """Whether two texts that differ in few words, or only in signs, case and order, say different things."""
    left, right = tokens(one), tokens(other)
    if left == right:
        return False
    num_tokens, whole = len(left), (left, right)
    left, right = _changed(left, right)
    if (
        len(left) == len(right)
        and _folded(left) == _folded(right)
        and (_recased(*whole) or (num_tokens > SHORT_TOKENS and _in_one_case(one) != _in_one_case(other)))
    ):
        return False
    mine, yours = ([token.strip(_EDGES) or token for token in side] for side in (left, right))
    plain = _folded(mine), _folded(yours)
    if _denies(*plain, num_tokens) or _other_signs(left, right, mine, yours, num_tokens):
        return True
    if len(left) == len(right) and sorted(plain[0]) == sorted(plain[1]):
        return _exchanged(left, right)
    return _other_names(left, right, mine, yours, num_tokens)


def _folded(tokens: Sequence[str]) -> list[str]:
    return [token.casefold() for token in tokens]


def _changed(left: list[str], right: list[str]) -> tuple[list[str], list[str]]:
    """Leave out the tokens that both texts begin and end with, but one before what differs."""
    start, short = 0, min(len(left), len(right))
    while start < short and left[start] == right[start]:
        start += 1
    end = 0
    while end < short - start and left[-1 - end] == right[-1 - end]:
        end += 1
    start = max(0, start - 1)
    return left[start : len(left) - end], right[start : len(right) - end]


def _denies(one: Sequence[str], other: Sequence[str], num_tokens: int) -> bool:
    """Whether one text says no to what the other says: a negation more, and (in a long text) nothing else."""
    if not (_may_deny(one) or _may_deny(other)):
        return False
    counts = Counter(one), Counter(other)
    only = counts[0] - counts[1], counts[1] - counts[0]
    said = [{word for word in side if _is_negation(word)} for side in only]
    if bool(said[0]) == bool(said[1]):
        return False
    denying, rest = (0, 1) if said[0] else (1, 0)
    if any(
        word in other_word or is_misspelling(word, other_word) for word in said[denying] for other_word in only[rest]
    ):
        return False
    others = {word for side in only for word in side} - said[denying] - _AUXILIARIES
    return not others or num_tokens <= MAX_SIGNED


def _may_deny(words: Sequence[str]) -> bool:
    text = " ".join(words)
    return not _NEGATIONS.isdisjoint(words) or "n't" in text or "n’t" in text


def _is_negation(word: str) -> bool:
    return word in _NEGATIONS or word.endswith(("n't", "n’t"))


def _other_signs(left: list[str], right: list[str], mine: list[str], yours: list[str], num_tokens: int) -> bool:
    """Whether the texts have different flags, paths or signs, misspelt ones apart."""
    signs = formal_tokens(left), formal_tokens(right)
    if sorted(signs[0]) == sorted(signs[1]):
        return False
    one, other = Counter(signs[0]), Counter(signs[1])
    only_one, only_other = sorted((one - other).elements()), sorted((other - one).elements())
    recased = [(a, b) for a in only_one for b in only_other if a.casefold() == b.casefold()]
    if any(len(a) <= MAX_CASED for a, _ in recased) and not _recased(left, right):
        return True
    folded = Counter(map(str.casefold, only_one)), Counter(map(str.casefold, only_other))
    only_one, only_other = ([*(folded[0] - folded[1]).elements()], [*(folded[1] - folded[0]).elements()])
    rest, others = [_unlike(side, against) for side, against in ((only_one, only_other), (only_other, only_one))]
    if rest and others:
        return True
    # A sign that only one text has is a difference where no word explains it ("5" and "-5", "C" and "C++").
    return bool(rest or others) and _plain(mine) == _plain(yours) and num_tokens <= MAX_SIGNED


def _plain(tokens: Sequence[str]) -> Counter[str]:
    return Counter("".join(filter(str.isalnum, token)).casefold() for token in tokens)


def _recased(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether a plain word inside a sentence has another case, as where the whole text was changed to one case."""
    inside = [
        {token for before, token in pairwise(side) if token.isalpha() and before[-1] not in ".!?:"}
        for side in (left, right)
    ]
    folded = {token.casefold() for token in inside[0] - inside[1]} & {t.casefold() for t in inside[1] - inside[0]}
    return bool(folded)


def _in_one_case(text: str) -> bool:
    """Whether a text is in capitals, or has at most one capital a line: then its case says nothing."""
    capitals = sum(map(str.isupper, text))
    return capitals <= len(text.splitlines()) or text.isupper()


def _unlike(tokens: Sequence[str], others: Sequence[str]) -> list[str]:
    """The tokens whose letters are not those of one of the others, a misspelling or a change of case apart."""
    letters = ["".join(filter(str.isalpha, other)).casefold() for other in others]
    out = []
    for token in tokens:
        mine = "".join(filter(str.isalpha, token)).casefold()
        if not (len(mine) >= MIN_LETTERS and any(mine == other or is_misspelling(mine, other) for other in letters)):
            out.append(token)
    return out


def _exchanged(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether two parts of a sentence changed places around at most three words that stay between them."""
    one, other = ([token.strip(_EDGES).casefold() for token in side] for side in (left, right))
    start = next((place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    end = len(one)
    while end > start and one[end - 1] == other[end - 1]:
        end -= 1
    first, second = one[start:end], other[start:end]
    swapped = any(
        first[size + between :] + first[size : size + between] + first[:size] == second
        for size in range(1, min(MAX_SLOT_WORDS, len(first) - 2) + 1)
        for between in range(1, MAX_SWAPPED_APART + 1)
        if 0 < len(first) - size - between <= MAX_SLOT_WORDS
    )
    # Whole sentences in another order say the same.
    return swapped and sentences_of(" ".join(left)) != sentences_of(" ".join(right))


def _other_names(left: list[str], right: list[str], mine: list[str], yours: list[str], num_tokens: int) -> bool:
    """Whether names (capitals inside a sentence) or quoted words stand for one another, and nothing else differs."""
    one, other = _folded(mine), _folded(yours)
    if len(left) == len(right):
        changed = [place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
        if not changed or not all(_is_name(left, mine, p) and _is_name(right, yours, p) for p in changed):
            return False
        return num_tokens <= MAX_NAMED or not any(is_misspelling(one[p], other[p]) for p in changed)
    for side, cores, said, against in ((left, mine, one, other), (right, yours, other, one)):
        named = {word for place, word in enumerate(said) if _is_name(side, cores, place)}
        if not set(said) - set(against) <= named:
            return False
    steps = SequenceMatcher(None, one, other, autojunk=False)
    replaced = [step for step in steps.get_opcodes() if step[0] != "equal"]
    return bool(replaced) and all(
        kind == "replace"
        and all(_is_name(left, mine, place) for place in range(a, b))
        and all(_is_name(right, yours, place) for place in range(c, d))
        for kind, a, b, c, d in replaced
    )


def _is_name(tokens: Sequence[str], cores: Sequence[str], place: int) -> bool:
    """Whether a token has a capital, or is quoted, and does not merely begin a sentence."""
    if not cores[place][:1].isalnum():
        return False
    if tokens[place][:1] in "\"'“‘`" and tokens[place].rstrip(".,;:!?")[-1:] in "\"'”’`":
        return True
    begins = place == 0 or tokens[place - 1][-1:] in ".!?:"
    return cores[place][:1].isupper() and not begins and not (len(cores[place]) > 1 and cores[place].isupper())


def sentences_of(text: str) -> frozenset[str]:
    """Return the sentences of a text, whatever their order, case, spacing and the signs around them."""
    parts = (" ".join(part.split()).strip(_EDGES) for part in _SENTENCE_END.split(text.casefold()))
    return frozenset(filter(None, parts))


def asks_another(mine: frozenset[str], yours: frozenset[str]) -> bool:
    """Whether two texts share sentences word for word, and what each has besides has little in common."""
    if mine.isdisjoint(yours):
        return False
    rest, others = ({word for part in side for word in part.split()} for side in (mine - yours, yours - mine))
    if not rest or not others:
        return False
    return len(rest & others) < MIN_SAME_QUESTION * min(len(rest), len(others))
