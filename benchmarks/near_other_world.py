"""A second world of near-duplicates, which shares neither texts nor templates nor edits with the first one.

What lives here: rows whose template recurs (SQL, dates, units, code, chats of several turns, JSON, product texts, short
prompts, German, Spanish and Chinese), free texts out of the descriptions and comments of installed packages, and
edits that people make. What does not: what is measured on them (`near_duplicates.py --world other`).
"""

from __future__ import annotations

import importlib.metadata
import random
import re
from collections.abc import Sequence
from pathlib import Path

from tunesmith.types import Conversation, Message, Provenance, Row

EDITS = (
    *("exact", "casing", "spacing", "punctuation", "contractions", "spelling", "greeting"),
    *("synonyms", "dropped", "swapped", "reordered", "slips", "edit10"),
)
OF_TWINS = ("exact", "casing", "spacing", "greeting")
"""Edits of which copies of templated rows are planted as well, as `exact_of_twin` and so on."""
CLASSES = (*EDITS, *(f"{kind}_of_twin" for kind in OF_TWINS))
WANTED = {"exact": 1.0, "casing": 0.97, "spacing": 0.97, "greeting": 0.98, "dropped": 0.88, "slips": 0.94}
"""Least share found of the edits that have a counterpart in the first world."""
_SENTENCE = re.compile(r"[A-Z][^.!?\n`>{}|=<\[\]*#]{50,220}[.!?]")
_COMMENT = re.compile(r"(?:^[ ]*#[ ].*\n)+", re.MULTILINE)


def descriptions() -> list[str]:
    """Return what the installed packages say of themselves."""
    return [str(found.metadata.get_payload() or "") for found in importlib.metadata.distributions()]


def prose(more: Sequence[str]) -> list[str]:
    """Return sentences of some texts and of comments in Python's library, in a fixed order."""
    texts = list(more)
    for path in sorted(Path(re.__file__).parents[1].glob("*/*.py")):
        blocks = _COMMENT.findall(path.read_text(encoding="utf-8", errors="replace"))
        texts += [" ".join(line.strip().lstrip("# ") for line in block.splitlines()) for block in blocks]
    joined = [re.sub(r"\n(?!\n)", " ", text) for text in texts]
    return sorted({" ".join(match.split()) for text in joined for match in _SENTENCE.findall(text)})


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "Amina Boris Chloe Deepak Elif Farid Gloria Hugo Ines Jamal Keiko Luca Mei Nadia Omar Priya Quentin Rita"
)
CITIES = _words("Accra Bogota Cairo Dakar Essen Fukuoka Genoa Hanoi Izmir Jaipur Kyoto Lima Mumbai Nairobi Oslo Quito")
GOODS = _words("kettle backpack lantern blender armchair headset notebook tent scooter toaster mattress umbrella")
STUFF = _words("bamboo steel linen ceramic oak leather cotton glass aluminium walnut wool rubber")
TRAITS = _words("compact sturdy elegant lightweight quiet colourful foldable waterproof rustic modern")
TABLES = _words("employees invoices flights patients books sensors shipments courses players hotels")
COLUMNS = _words("salary amount duration age pages temperature weight credits goals price rating distance")
TOPICS = _words("budget roadmap hiring onboarding migration audit newsletter warehouse parking insurance")
WORDS = _words("brave ancient silent generous rapid fragile honest bitter hollow gentle clever humid loyal narrow")
LANGUAGES = _words("French Finnish Swahili Polish Turkish Korean Italian Dutch Hindi Greek")
COUNTRIES = _words(
    "Austria Australia Chile Kenya Norway Peru Japan Ghana Nepal Cuba Latvia Jordan Brazil Iran Iraq Malta"
)
ORGANS = _words("liver spleen kidney pancreas heart stomach bladder lung skin brain thyroid gallbladder")
STRUCTURES = _words("list tuple queue stack heap tree graph matrix string dictionary")
TASKS = _words("reverses rotates flattens shuffles filters partitions deduplicates serialises validates clones")
MONTHS = _words("January February March April May June July August September October November December")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
UNITS = (("miles", "kilometres"), ("pounds", "kilograms"), ("gallons", "litres"), ("inches", "centimetres"))
DINGE = _words("Fahrkarte Rechnung Lampe Tasche Jacke Kamera Uhr Decke Flasche Leiter")
COSAS = _words("bicicleta mochila silla camisa mesa lámpara guitarra cámara maleta alfombra")
SHI = ("苹果", "电脑", "火车票", "雨伞", "手机", "咖啡", "自行车", "书包", "手表", "椅子")

Turns = tuple[str, ...]


def twin(chance: random.Random, kind: int) -> Turns:
    """Return the turns (user, assistant, user, ...) of one row of a template that others share."""
    a, b = chance.choice, chance.randrange
    who, whom = chance.sample(PEOPLE, 2)
    here, there = chance.sample(CITIES, 2)
    good, stuff, trait, n, m = a(GOODS), a(STUFF), a(TRAITS), b(2, 400), b(1, 29)
    table, column, second = a(TABLES), *chance.sample(COLUMNS, 2)
    if kind == 0:
        op = a(("greater", "less"))
        ask = f"Write an SQL query that lists the {second} of all {table} whose {column} is {op} than {n}."
        return ask, f"SELECT {second} FROM {table} WHERE {column} {'>' if op == 'greater' else '<'} {n};"
    if kind == 1:
        return f"Which weekday was {m} {a(MONTHS)} {1900 + n}?", f"It was a {a(DAYS)}."
    if kind == 2:
        one, other = a(UNITS)
        return f"Convert {n} {one} to {other} and round the result.", f"{n} {one} are about {n * 2} {other}."
    if kind == 3:
        task, structure = a(TASKS), a(STRUCTURES)
        ask = f"Implement a function that {task} a {structure} of {table} in Python, with type hints and a docstring."
        return (
            ask,
            f"def run(items):\n    '''{task} the {structure}'''\n    return {task}_{structure}(items, '{table}')",
        )
    if kind == 4:
        return (
            f"Hello, my name is {who} and I have a question about an order.",
            f"Of course, {who}. What would you like to know?",
            f"I ordered a {stuff} {good} for my flat in {here} last week and it has still not arrived. Where is it?",
            f"I am sorry about that. The {stuff} {good} left our warehouse and will reach {here} on {a(DAYS)}.",
        )
    if kind == 5:
        ask = f"Extract person and places as JSON: {who} moved from {here} to {there} to work with {whom}."
        return ask, f'{{"person": "{who}", "from": "{here}", "to": "{there}"}}'
    if kind == 6:
        ask = f"Write a product description for a {trait} {good} made of {stuff}."
        say = (
            f"Meet the {trait} {good} that your home has been waiting for. Made of chosen {stuff}, it combines "
            f"everyday comfort with a design that lasts for years. Whether you give it away or keep it for yourself, "
            f"this {good} will soon be a part of your daily life. Order it today and enjoy free returns within a month."
        )
        return ask, say
    if kind == 7:
        return a(
            (
                (f"What is the capital of {(land := a(COUNTRIES))}?", f"The capital of {land} is its largest city."),
                (f"Give an antonym of the word {(word := a(WORDS))}.", f"The opposite of {word} is un{word}."),
                (
                    f"Translate '{(word := a(WORDS))}' into {(tongue := a(LANGUAGES))}.",
                    f"In {tongue} it is {word[::-1]}.",
                ),
                (f"What does the {(organ := a(ORGANS))} do?", f"The {organ} keeps the body working."),
            )
        )
    if kind == 8:
        topic, day, later = a(TOPICS), *chance.sample(DAYS, 2)
        ask = f"Write an email to {who} that moves the {topic} meeting from {day} to {later}."
        say = (
            f"Dear {who},\n\nI hope this finds you well. Something has come up, and I will not be able to join "
            f"our {topic} meeting on {day}. Would {later} work instead? I am free most of the day and can adapt "
            f"to your calendar. Please let me know what suits you best.\n\nKind regards,\n{whom}"
        )
        return ask, say
    if kind == 9:
        ding = a(DINGE)
        ask = f"Guten Tag, ich habe meine {ding} gestern in {here} verloren. Können Sie mir sagen, was ich tun soll?"
        return ask, f"Bitte melden Sie den Verlust Ihrer {ding} beim Fundbüro in {here}."
    if kind == 10:
        cosa = a(COSAS)
        ask = f"¿Cuánto cuesta enviar una {cosa} desde {here} hasta {there} y cuántos días tarda el envío?"
        return ask, f"El envío de una {cosa} desde {here} hasta {there} tarda {m} días."
    ask = f"我昨天在网上买了一个{a(SHI)},可是今天收到的是{a(SHI)},请问我应该怎么办?"
    return ask, "请您先联系客服,我们会尽快为您处理。"


NUM_TEMPLATES = 12
QUESTIONS = (
    "What would you tell a new colleague about this?",
    "Sum up the passage in your own words.",
    "Is anything in here out of date?",
    "Explain this to somebody who has never programmed.",
    "What questions does the text leave open?",
    "Draft a short announcement based on this.",
)


def free(chance: random.Random, pool: Sequence[str]) -> Turns:
    """Return a row of its own: a question about a few sentences, and an answer, in two or four turns."""
    picked = chance.sample(pool, chance.randint(3, 9))
    cut = chance.randint(1, len(picked) - 1)
    ask, say = f"{chance.choice(QUESTIONS)} {' '.join(picked[:cut])}", " ".join(picked[cut:])
    if chance.random() < 0.2:
        return ask, picked[0], "Could you say more about that?", say
    return ask, say


_SYNONYMS = (
    "use:employ uses:employs used:employed make:create makes:creates need:require needs:requires show:display "
    "shows:displays help:assist get:obtain gets:obtains give:provide gives:provides big:sizable small:little "
    "many:numerous often:frequently also:additionally only:merely but:however about:regarding because:since "
    "new:fresh fast:quick way:manner change:modify changes:modifies allow:permit allows:permits default:standard "
    "provided:supplied following:subsequent example:instance method:approach return:yield returns:yields "
    "write:compose last:final still:yet sure:certain will:shall whole:entire important:crucial each:every"
)
SYNONYMS = dict(pair.split(":") for pair in _words(_SYNONYMS))
SPELLING = _words("our:or colour:color ise:ize isation:ization re:er ogue:og lled:led lling:ling ence:ense")
CONTRACTIONS = (
    "do not:don't does not:doesn't is not:isn't are not:aren't will not:won't can not:can't cannot:can't it is:it's "
    "I am:I'm you are:you're that is:that's we will:we'll I have:I've you will:you'll it will:it'll"
)
_CONTRACTED = re.findall(r"(\S[^:]*?):(\S+)", CONTRACTIONS)
GREETINGS = ("Hi!", "Hey there,", "Good morning,", "Quick question:", "Dear assistant,", "Please help:", "")
CLOSINGS = ("Thanks!", "Thank you so much.", "Cheers", "Looking forward to your reply.", "")
KEYS = {a: b for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm") for a, b in zip(row, row[1:] + row[-2], strict=True)}


def edited(kind: str, text: str, chance: random.Random, pool: Sequence[str], *, first: bool) -> str:
    """Return a turn as somebody else would have typed it. `first` is the first turn of a row."""
    parts = text.split(" ")
    if kind == "casing":
        return chance.choice((str.lower, str.upper, str.capitalize))(text)
    if kind == "spacing":
        return "\n\n".join(re.split(r"(?<=[.!?]) ", text)).replace(", ", ",  ") + chance.choice((" ", "\n", "\t"))
    if kind == "punctuation":
        return re.sub(r"[,;]", "", text).replace(".", chance.choice(("!", "...", ""))).replace("'", "’")
    if kind == "contractions":
        for long, short in _CONTRACTED:
            text = re.sub(rf"\b{long}\b", short, text)
        return text
    if kind == "spelling":
        for pair in SPELLING:
            text = re.sub(rf"(?<=\w){pair.split(':')[0]}\b", pair.split(":")[1], text)
        return text
    if kind == "greeting":
        return f"{chance.choice(GREETINGS)} {text} {chance.choice(CLOSINGS)}".strip() if first else text
    if kind == "synonyms":
        return " ".join(SYNONYMS.get(part, part) for part in parts)
    if kind == "dropped":
        return " ".join(part for part in parts if chance.random() > 0.08) or text
    if kind == "swapped":
        for place in range(len(parts) - 1):
            if chance.random() < 0.04:
                parts[place], parts[place + 1] = parts[place + 1], parts[place]
        return " ".join(parts)
    if kind == "reordered":
        sentences = re.split(r"(?<=[.!?]) ", text)
        return " ".join(chance.sample(sentences, len(sentences)))
    if kind == "slips":
        return "".join(KEYS.get(c, c) if chance.random() < 0.012 else c for c in text)
    if kind == "edit10":
        words = [chance.choice(chance.choice(pool).split()) if chance.random() < 0.1 else part for part in parts]
        return " ".join(words)
    return text


def build(num_rows: int, seed: int, layout: str, pool: Sequence[str]) -> tuple[list[Row], list[str], list[int]]:
    """Return rows in shuffled order, the kind of each, and for planted rows the row they were made of (else -1)."""
    chance = random.Random(seed)
    num_planted, num_twins = num_rows // 50, num_rows // 5
    num_free = num_rows - num_twins - num_planted * len(EDITS)
    items = [("unique", free(chance, pool), -1) for _ in range(num_free)]
    seen: dict[Turns, None] = {}
    for number in range(num_twins):
        seen[twin(chance, number % NUM_TEMPLATES)] = None
    # Two twins with the same prompt are no twins: of several answers to one question the first stays.
    asked = {tuple(turns[:-1]): turns for turns in reversed(list(seen))}
    items += [("twin", turns, -1) for turns in sorted(asked.values())]
    plan = [(kind, kind, range(num_free), num_planted) for kind in EDITS]
    plan += [(f"{kind}_of_twin", kind, range(num_free, len(items)), num_planted // 4) for kind in OF_TWINS]
    for name, kind, among, count in plan:
        for source in chance.sample(among, count):
            turns = items[source][1]
            copy = tuple(edited(kind, text, chance, pool, first=not place) for place, text in enumerate(turns))
            items.append((name, copy, source))
    order = list(range(len(items)))
    chance.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    rows = [_row(items[old][1], new, layout) for new, old in enumerate(order)]
    made_of = [place[items[old][2]] if items[old][2] >= 0 else -1 for old in order]
    return rows, [items[old][0] for old in order], made_of


def _row(turns: Turns, number: int, layout: str) -> Row:
    if layout == "text":
        messages: tuple[Message, ...] = (Message(role="assistant", content=" ".join(turns)),)
    else:
        messages = tuple(
            Message(role="assistant" if place % 2 else "user", content=text) for place, text in enumerate(turns)
        )
    return Row(
        id=f"{number:016x}",
        conversation=Conversation(messages=messages),
        provenance=Provenance(source="benchmark", path="benchmark", line=number + 1),
    )
