"""Decontamination: planted test items found, clean rows flagged, rows a CPU-second.

    python benchmarks/decontamination.py                                            # made-up items and rows
    python benchmarks/decontamination.py --items qa_gsm8k.test.jsonl --rows instructions.jsonl     # real ones

Half of the items (at most 1,000) are indexed. The others are siblings: same style, not indexed. Rows of the training
side of the same evaluation are no clean rows: that of GSM8K holds items of its test side with other numbers. Each class
of edits is planted on 150 indexed items.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tunesmith.data.decontam import Index
from tunesmith.data.files import read_records
from tunesmith.data.read import Origin, rows_of
from tunesmith.data.words import prompt_text
from tunesmith.types import Row

MIN_RECALL_EDIT20, MIN_ROWS_PER_SECOND = 0.98, 25_000
PLANTED = 150


def prompts(path: Path) -> list[str]:
    """Return the prompts of a file of rows."""
    items = rows_of(read_records(path), Origin(name=path.stem), name=path.name)[1]
    return [prompt_text(item.conversation) for item in items if isinstance(item, Row)]


def made_up(sizes: tuple[int, ...], chance: random.Random) -> list[list[str]]:
    """Return sets of questions whose words come as often as in Python's documentation, in no order of sense."""
    from pydoc_data.topics import topics

    counts = Counter(word for text in topics.values() for word in text.split() if word.isalpha())
    names, weights = list(counts), list(counts.values())
    out = []
    for size in sizes:
        questions = [chance.choices(names, weights, k=chance.randint(25, 60)) for _ in range(size)]
        out.append([f"{' '.join(question)}. Why is that so?" for question in questions])
    return out


def edited(text: str, share: float, pool: list[str], chance: random.Random) -> str:
    """Replace, drop or insert the given share of words."""
    out = []
    for word in text.split():
        if chance.random() >= share:
            out.append(word)
        elif (how := chance.randrange(3)) < 2:
            out += [chance.choice(pool)] if how == 0 else [word, chance.choice(pool)]
    return " ".join(out)


def measure(indexed: list[str], siblings: list[str], clean: list[str], seed: int) -> dict[str, object]:
    """Plant edited items among clean rows and look for them."""
    chance = random.Random(seed)
    pool = sorted({word for text in indexed for word in text.split()})
    classes: dict[str, Callable[[str], str]] = {
        "exact": lambda text: text,
        "case_and_points": lambda text: text.upper().replace(".", "").replace(",", ""),
        "chat_wrapped": lambda text: f"Hi! Please help me with this question. {text} Thank you very much in advance.",
        "edit5": lambda text: edited(text, 0.05, pool, chance),
        "edit10": lambda text: edited(text, 0.10, pool, chance),
        "edit20": lambda text: edited(text, 0.20, pool, chance),
        "numbers": lambda text: "".join(str(chance.randrange(10)) if c.isdigit() else c for c in text),
        "reordered": lambda text: ". ".join(chance.sample(parts := text.split(". "), len(parts))),
    }
    rows = [(name, edit(text)) for name, edit in classes.items() for text in chance.sample(indexed, PLANTED)]
    rows += [("clean", text) for text in clean] + [("sibling", text) for text in siblings]
    chance.shuffle(rows)
    index = Index({"benchmark": indexed})
    started = time.process_time()
    matches = index.matches([text for _, text in rows])
    seconds = time.process_time() - started
    hit = [rows[match.row][0] for match in matches]
    return {
        "items": len(indexed),
        "rows": len(rows),
        "clean_rows": len(clean),
        "clean_flagged": hit.count("clean"),
        "siblings": len(siblings),
        "siblings_flagged": hit.count("sibling"),
        "recall": {name: round(hit.count(name) / PLANTED, 4) for name in classes},
        "rows_per_cpu_second": round(len(rows) / seconds),
    }


def verdicts(result: dict[str, object]) -> list[str]:
    """Return the limits that do not hold."""
    recall = result["recall"]
    assert isinstance(recall, dict)
    out = []
    if recall["edit20"] < MIN_RECALL_EDIT20:
        out.append(f"recall of edit20 {recall['edit20']} < {MIN_RECALL_EDIT20}")
    if result["clean_flagged"] != 0:
        out.append(f"clean rows flagged: {result['clean_flagged']}")
    rate = result["rows_per_cpu_second"]
    assert isinstance(rate, int)
    if rate < MIN_ROWS_PER_SECOND:
        out.append(f"rows a CPU-second {rate} < {MIN_ROWS_PER_SECOND}")
    return out


def main() -> int:
    """Print the figures as JSON and the limits that do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--rows", type=Path, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    indexed, siblings, clean = made_up((1000, 500, 10_000), chance)
    if arguments.items:
        items = prompts(arguments.items)
        chance.shuffle(items)
        half = min(1000, len(items) // 2)
        indexed, siblings = items[:half], items[half:]
    if arguments.rows:
        clean = [text for path in arguments.rows for text in prompts(path)]
    result = measure(indexed, siblings, clean, arguments.seed)
    print(json.dumps(result, indent=1))
    failed = verdicts(result)
    print("\n".join(failed) if failed else "all limits hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
