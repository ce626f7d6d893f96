"""Near-duplicates among 200,000 instruction rows: what is found, what is wrongly lost, and what it costs.

    python benchmarks/near_duplicates.py                     # 200,000 rows, text layout
    python benchmarks/near_duplicates.py --rows 20000 --layout pair --seed 7
    python benchmarks/near_duplicates.py --rows 20000 --layout pair --world other    # other texts, templates and edits

The set: 72.5% unique rows (an instruction and 2 to 8 sentences out of the documentation of installed packages), 10%
templated twins that must stay (other numbers, names or facts in the same words), and 2.5% each of seven kinds of
planted duplicates. `text` puts a row into one text; `pair` into a prompt and an answer. CPU seconds cover everything
after the rows stand in memory.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import near_other_world as other_world

from tunesmith.types import Conversation, Message, Provenance, Row

CLASSES = ("exact", "case", "edit10", "edit25", "reorder", "boilerplate", "typos")
WANTED = {"exact": 1.0, "case": 0.97, "edit10": 0.88, "reorder": 0.98, "boilerplate": 0.98, "typos": 0.94}
MAX_TWIN_LOSS, MAX_CPU_SECONDS, MAX_MEGABYTES = 0.02, 16.0, 1500.0

_SENTENCE = re.compile(r"[A-Z][^.!?\n`>{}|=]{50,220}[.!?]")
_MODULES = (  # noqa: SIM905
    "argparse asyncio collections concurrent.futures csv ctypes datetime decimal difflib doctest email functools "
    "heapq html http importlib inspect io ipaddress itertools json logging multiprocessing numpy os pathlib pickle "
    "pyarrow random re scipy.optimize scipy.sparse scipy.stats socket sqlite3 statistics string subprocess tarfile "
    "threading tkinter turtle typing unittest urllib.request uuid xml.etree.ElementTree zipfile fastapi pydantic "
    "sqlalchemy sqlalchemy.orm matplotlib.axes matplotlib.pyplot jinja2 httpx rich.console typer"
).split()


def sentences(modules: Sequence[str] = _MODULES) -> list[str]:
    """Return the different sentences of Python's topics and of the documentation of modules, in a fixed order."""
    from pydoc_data.topics import topics

    texts = list(topics.values())
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for _, member in inspect.getmembers(module):
            texts.append(inspect.getdoc(member) or "")
            if inspect.isclass(member):
                texts += [inspect.getdoc(value) or "" for _, value in inspect.getmembers(member)]
    found = {" ".join(match.split()) for text in texts for match in _SENTENCE.findall(text.replace("\n", " "))}
    return sorted(found)


INSTRUCTIONS = (
    "Summarise the following notes for a colleague who was on holiday.",
    "Rewrite this passage so that a beginner understands it.",
    "Which of these statements is the most important, and why?",
    "Turn the text below into a list of action items.",
    "Explain what the author wants the reader to do.",
    "Write a title and a one-line abstract for this text.",
    "Point out what is missing in the description.",
    "Translate the technical terms in this text into plain words.",
    "Give three questions that this text answers.",
    "Continue the text in the same tone.",
)
NAMES = "Anna Bela Carol Dario Edith Felix Greta Hanna Igor Jana Karel Lotte Milan Nora Olga Petr Rosa Sven".split()  # noqa: SIM905
TOWNS = "Graz Lyon Turin Gent Porto Basel Lund Brno Split Cork Leeds Malmo Bergen Tartu Riga Vilnius".split()  # noqa: SIM905
THINGS = "apples marbles stamps tickets pencils books coins shells candles buttons postcards bottles".split()  # noqa: SIM905
VERBS = "gives sells lends sends".split()  # noqa: SIM905
FUNCTIONS = "add subtract multiply divide average compare merge reverse sort count".split()  # noqa: SIM905
FIELDS = "price weight height age length score rating volume speed width".split()  # noqa: SIM905
TASTES = "wonderful dreadful boring moving clever noisy slow charming dull brilliant clumsy honest".split()  # noqa: SIM905
FILMS = "film play novel concert exhibition opera comedy thriller biography musical".split()  # noqa: SIM905


def twin(chance: random.Random) -> tuple[str, str]:
    """Return one templated row: a sum, a train, a function or a verdict that thousands of others resemble."""
    kind = chance.randrange(4)
    a, b, c = chance.randrange(2, 99), chance.randrange(2, 99), chance.randrange(100, 999)
    name, other, town, goal = chance.choice(NAMES), chance.choice(NAMES), chance.choice(TOWNS), chance.choice(TOWNS)
    if kind == 0:
        thing, verb = chance.choice(THINGS), chance.choice(VERBS)
        prompt = (
            f"{name} has {c} {thing} and {verb} {a} of them to {other}. The next day {name} finds {b} more {thing} in "
            f"a box. How many {thing} does {name} have now? Think about each step and give the final number alone."
        )
        return prompt, f"{name} has {c} - {a} + {b} = {c - a + b} {thing}. The answer is {c - a + b}."
    if kind == 1:
        prompt = (
            f"A train leaves {town} at {a % 24:02d}:{b % 60:02d} and reaches {goal} after {c} minutes. On the way it "
            f"stops for {b} minutes. At what time does the train arrive in {goal}, if nothing else delays it?"
        )
        return prompt, f"The train arrives in {goal} {c + b} minutes after it left {town}, so {c + b} minutes later."
    if kind == 2:
        function, field, second = chance.choice(FUNCTIONS), chance.choice(FIELDS), chance.choice(FIELDS)
        prompt = (
            f"Write a Python function named {function}_{field}_{c} that takes a list of records, reads the field "
            f"{field} of each of them, and returns the result of the operation {function} together with the field "
            f"{second}. Do not import anything."
        )
        return (
            prompt,
            f"def {function}_{field}_{c}(records):\n    return {function}([r['{field}'] for r in records], '{second}')",
        )
    taste, film = chance.choice(TASTES), chance.choice(FILMS)
    prompt = (
        f"Decide whether this review is positive or negative. Review number {c}: I saw the {film} with {name} in "
        f"{town} and found it {taste}, {other} on the other hand found it {chance.choice(TASTES)}. One word only."
    )
    return prompt, "mixed"


def edited(words: list[str], share: float, pool: Sequence[str], chance: random.Random) -> list[str]:
    """Replace, drop or insert the given share of words."""
    out = []
    for word in words:
        if chance.random() >= share:
            out.append(word)
            continue
        how = chance.randrange(3)
        if how == 0:
            out.append(chance.choice(pool))
        elif how == 1:
            out += [word, chance.choice(pool)]
    return out


def typos(text: str, chance: random.Random) -> str:
    """Change 1.5% of the letters."""
    out = []
    for character in text:
        if character.isalpha() and chance.random() < 0.015:
            how = chance.randrange(3)
            out.append({0: "", 1: character * 2, 2: chance.choice("abcdefghijklmnopqrstuvwxyz")}[how])
        else:
            out.append(character)
    return "".join(out)


BOILERPLATE = (
    (
        "Sure, I can help you with that! Here is what you asked for:",
        "Let me know if there is anything else I can do for you.",
    ),
    ("You are a helpful assistant. Please read carefully.", "Thank you in advance for your answer."),
    ("Hello there, I hope you are having a great day.", "Best regards and have a nice evening."),
)


def planted(kind: str, parts: list[str], pool: Sequence[str], chance: random.Random, layout: str) -> list[str]:
    """Return the parts (instruction, then sentences) of a duplicate of one kind; sentences stay on their side."""
    if kind == "exact":
        return list(parts)
    if kind == "case":
        way = chance.choice((str.lower, str.upper, str.title))
        return [re.sub(r"\.$", "", "  ".join(way(part).split(" "))) for part in parts]
    if kind in ("edit10", "edit25"):
        share = 0.1 if kind == "edit10" else 0.25
        return [" ".join(edited(part.split(), share, pool, chance)) for part in parts]
    if kind == "reorder":
        half = first_half(parts) if layout == "pair" else len(parts)
        return [parts[0], *chance.sample(parts[1:half], half - 1), *chance.sample(parts[half:], len(parts) - half)]
    if kind == "boilerplate":
        before, after = chance.choice(BOILERPLATE)
        return [f"{before} {parts[0]}", *parts[1:-1], f"{parts[-1]} {after}"]
    return [typos(part, chance) for part in parts]


def build(num_rows: int, seed: int, layout: str, pool: Sequence[str]) -> tuple[list[Row], list[str], list[int]]:
    """Return rows in shuffled order, the kind of each, and for planted rows the row they were made of (else -1)."""
    chance = random.Random(seed)
    words = sorted({word for sentence in pool[:4000] for word in sentence.split() if word.isalpha()})
    num_planted, num_twins = int(num_rows * 0.025), int(num_rows * 0.1)
    num_unique = num_rows - num_twins - num_planted * len(CLASSES)
    unique = [[chance.choice(INSTRUCTIONS), *chance.sample(pool, chance.randint(2, 8))] for _ in range(num_unique)]
    items = [("unique", parts, -1) for parts in unique]
    seen: set[tuple[str, str]] = set()
    while len(seen) < num_twins:
        seen.add(twin(chance))
    items += [("twin", list(pair), -1) for pair in sorted(seen)]
    for kind in CLASSES:
        for source in chance.sample(range(num_unique), num_planted):
            items.append((kind, planted(kind, unique[source], words, chance, layout), source))
    order = list(range(len(items)))
    chance.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    rows = [row_of(items[old], new, layout) for new, old in enumerate(order)]
    made_of = [place[items[old][2]] if items[old][2] >= 0 else -1 for old in order]
    return rows, [items[old][0] for old in order], made_of


def first_half(parts: list[str]) -> int:
    """Return how many parts stand in the prompt."""
    return 1 + len(parts) // 2


def row_of(item: tuple[str, list[str], int], number: int, layout: str) -> Row:
    """Put the parts of a row into a prompt and, in the layout `pair`, half of the sentences into an answer."""
    kind, parts, _ = item
    if layout == "text":
        messages = (Message(role="assistant", content=" ".join(parts)),)
    else:
        half = 1 if kind == "twin" else first_half(parts)
        prompt, answer = " ".join(parts[:half]), " ".join(parts[half:])
        messages = (Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Row(
        id=f"{number:016x}",
        conversation=Conversation(messages=messages),
        provenance=Provenance(source="benchmark", path="benchmark", line=number + 1),
    )


def components(pairs: Iterator[tuple[int, int]], size: int) -> list[int]:
    """Return the smallest member of each row's component."""
    parent = list(range(size))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(node) for node in range(size)]


Planted = tuple[list[Row], list[str], list[int]]


def measure(planted_rows: Planted) -> dict[str, object]:
    """Find the duplicates of a set, and compare with what was planted."""
    rows, kinds, made_of = planted_rows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter(), time.process_time()
    from tunesmith.data.dedup import find_duplicates

    found = find_duplicates(rows, threshold=0.6)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gone = {
        duplicate.row: duplicate.keeper
        for duplicate in found
        if duplicate.kind in ("exact_duplicate", "near_duplicate")
    }
    family = components(((row, made_of[row]) for row in range(len(rows)) if made_of[row] >= 0), len(rows))
    members = Counter(family)
    hit: Counter[str] = Counter()
    for row, kind in enumerate(kinds):
        source = made_of[row]
        if source >= 0:
            hit[kind] += row in gone or gone.get(source) == row
    right = sum(family[row] == family[keeper] for row, keeper in gone.items())
    totals = Counter(kinds)
    return {
        "rows": len(rows),
        "recall": {kind: round(hit[kind] / totals[kind], 4) for kind in totals if kind not in ("unique", "twin")},
        "twins_lost": round(
            sum(kinds[row] == "twin" and family[row] != family[keeper] for row, keeper in gone.items())
            / totals["twin"],
            4,
        ),
        "unique_rows_wrongly_lost": sum(members[family[row]] == 1 and kinds[row] == "unique" for row in gone),
        "precision": round(right / max(1, len(gone)), 4),
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(wall, 1),
        "peak_megabytes": round(peak),
        "megabytes_before": round(before),
    }


def verdicts(result: dict[str, object], wanted: Mapping[str, float] = WANTED) -> list[str]:
    """Return the limits that do not hold."""
    recall = result["recall"]
    assert isinstance(recall, dict)
    out = [f"recall of {kind} {recall[kind]} < {least}" for kind, least in wanted.items() if recall[kind] < least]
    for name, most in (
        ("twins_lost", MAX_TWIN_LOSS),
        ("cpu_seconds", MAX_CPU_SECONDS),
        ("peak_megabytes", MAX_MEGABYTES),
    ):
        value = result[name]
        assert isinstance(value, (int, float))
        if value > most:
            out.append(f"{name} {value} > {most}")
    return out


def main() -> int:
    """Print the figures as JSON and the limits that do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layout", choices=("text", "pair"), default="text")
    parser.add_argument("--world", choices=("first", "other"), default="first")
    arguments = parser.parse_args()
    if arguments.world == "first":
        planted_rows, wanted = build(arguments.rows, arguments.seed, arguments.layout, sentences()), WANTED
    else:
        pool = other_world.prose(other_world.descriptions())
        planted_rows = other_world.build(arguments.rows, arguments.seed, arguments.layout, pool)
        wanted = other_world.WANTED
    result = {**vars(arguments), **measure(planted_rows)}
    print(json.dumps(result, indent=1))
    failed = verdicts(result, wanted)
    print("\n".join(failed) if failed else "all limits hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
