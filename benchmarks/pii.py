"""Personal data and secrets: recall by type, clean texts flagged, documents a CPU-second.

    python benchmarks/pii.py                                  # canaries, values in sentences, and clean texts
    python benchmarks/pii.py --seeds 7 8                      # other values and sentences of the same kinds
    python benchmarks/pii.py --spans pii_presidio.jsonl       # {"text", "spans": [{"label", "start", "end"}]} a line
    python benchmarks/pii.py --clean some_chat_rows.jsonl     # share of the rows of a data set that are flagged

A value counts as found only where every letter and digit of it is covered: half a card number is not redacted. Planted
values come from `tunesmith.data.canaries` with other seeds than the stage uses, and, in ordinary sentences, code and
configuration, from `planted_texts`, which was written from the formats' specifications before its author had seen the
patterns. Both are made up: they rank changes and promise nothing about other people's data.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planted_texts import clean_texts as lookalikes
from planted_texts import planted as values_in_sentences

from tunesmith.data.canaries import canaries
from tunesmith.data.files import read_records
from tunesmith.data.patterns import find
from tunesmith.data.read import Origin, rows_of
from tunesmith.types import Row

LABELS = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "US_SSN": "NATIONAL_ID",
    "US_DRIVER_LICENSE": "NATIONAL_ID",
    "IP_ADDRESS": "IP_ADDRESS",
    "STREET_ADDRESS": "ADDRESS",
}
"""Labels of presidio-research -> ours. Names, places and organisations are not the pattern tier's."""
MIN_RECALL, MAX_FLAGGED, MIN_DOCS_PER_SECOND = 0.95, 0.02, 4000
WORDS_A_DOCUMENT = 49
MAX_SHOWN = 12


def clean_texts() -> list[str]:
    """Return the texts that the tests hold to be clean, each with words of its own around it."""
    path = Path(__file__).parents[1] / "tests" / "unit" / "data" / "test_personal_data.py"
    spec = importlib.util.spec_from_file_location("test_personal_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    texts: list[str] = module.CLEAN
    return texts


def covered(text: str, start: int, end: int) -> bool:
    """Whether spans cover every letter and digit of a value."""
    held = {place for span in find(text) for place in range(span.start, span.end)}
    return all(place in held for place in range(start, end) if text[place].isalnum())


def planted(seeds: Sequence[int]) -> dict[str, object]:
    """Measure recall on canaries and the share of clean texts flagged."""
    made, hit = Counter[str](), Counter[str]()
    for seed in seeds:
        for canary in canaries(seed, per_kind=100):
            start = canary.sentence.index(canary.value)
            made[canary.kind] += 1
            hit[canary.kind] += covered(canary.sentence, start, start + len(canary.value))
    clean = clean_texts()
    flagged = [text for text in clean if find(text)]
    return {
        "recall": {kind: round(hit[kind] / count, 4) for kind, count in sorted(made.items())},
        "clean_texts": len(clean),
        "clean_flagged": round(len(flagged) / len(clean), 4),
    }


def in_sentences(seeds: Sequence[int]) -> dict[str, object]:
    """Measure recall by kind and by group on values in sentences, and the share of look-alike texts flagged."""
    made, hit = Counter[str](), Counter[str]()
    missed: list[str] = []
    for seed in seeds:
        for value in values_in_sentences(seed):
            start = value.text.index(value.value)
            found = covered(value.text, start, start + len(value.value))
            for name in (value.kind, f"all {value.group}"):
                made[name] += 1
                hit[name] += found
            if not found:
                missed.append(value.text[:120])
    clean = [text for seed in seeds for text in lookalikes(seed)]
    flagged = [text for text in clean if find(text)]
    return {
        "recall": {kind: round(hit[kind] / count, 4) for kind, count in made.items()},
        "values": sum(count for kind, count in made.items() if kind.startswith("all ")),
        "missed": missed[:MAX_SHOWN],
        "clean_texts": len(clean),
        "clean_flagged": round(len(flagged) / len(clean), 4),
        "flagged": flagged[:MAX_SHOWN],
    }


def outside(path: Path) -> dict[str, object]:
    """Measure recall by label and wrongly flagged texts on a file of texts with spans."""
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    made, hit = Counter[str](), Counter[str]()
    wrong = clean = 0
    for row in rows:
        for span in row["spans"]:
            if span["label"] in LABELS:
                made[span["label"]] += 1
                hit[span["label"]] += covered(row["text"], span["start"], span["end"])
        ours = find(row["text"])
        if not any(span["label"] in LABELS for span in row["spans"]):
            clean += 1
            wrong += any(all(s["end"] <= o.start or o.end <= s["start"] for s in row["spans"]) for o in ours)
    return {
        "texts": len(rows),
        "recall": {label: round(hit[label] / count, 4) for label, count in made.most_common()},
        "values": dict(made.most_common()),
        "clean_texts": clean,
        "clean_flagged": round(wrong / max(1, clean), 4),
    }


def flagged_rows(path: Path) -> dict[str, object]:
    """Return the share of the rows of a data set in which anything is found."""
    items = rows_of(read_records(path), Origin(name=path.stem), name=path.name)[1]
    rows = [item for item in items if isinstance(item, Row)]
    kinds: Counter[str] = Counter()
    flagged = 0
    for row in rows:
        found = [span for message in row.conversation.messages for span in find(message.content or "")]
        kinds.update(span.kind for span in found)
        flagged += bool(found)
    return {"rows": len(rows), "flagged": round(flagged / len(rows), 4), "kinds": dict(kinds.most_common())}


def speed() -> float:
    """Return documents of 49 words a CPU-second: plain prose, one in ten of them with a value or a number in it."""
    from pydoc_data.topics import topics

    prose = " ".join(topics.values()).split()
    hard = [canary.sentence for canary in canaries(1, per_kind=30) if canary.kind != "PRIVATE_KEY"] + clean_texts()
    documents = []
    for number in range(8000):
        start = number * WORDS_A_DOCUMENT % (len(prose) - WORDS_A_DOCUMENT)
        text = " ".join(prose[start : start + WORDS_A_DOCUMENT])
        documents.append(f"{text} {hard[number % len(hard)]}" if number % 10 == 0 else text)
    find(documents[0])
    started = time.process_time()
    for document in documents:
        find(document)
    return len(documents) / (time.process_time() - started)


def main() -> int:
    """Print the figures as JSON and the limits that do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=Path)
    parser.add_argument("--clean", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    canary_figures, sentence_figures = planted((11, 12, 13)), in_sentences(arguments.seeds)
    docs_per_second = round(speed())
    result: dict[str, object] = {
        "canaries": canary_figures,
        "sentences": sentence_figures,
        "documents_per_cpu_second": docs_per_second,
    }
    if arguments.spans is not None:
        result["outside"] = outside(arguments.spans)
    for path in arguments.clean:
        result[path.name] = flagged_rows(path)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    failed = [*_limits("canaries", canary_figures), *_limits("sentences", sentence_figures)]
    if docs_per_second < MIN_DOCS_PER_SECOND:
        failed.append(f"documents a CPU-second {docs_per_second} < {MIN_DOCS_PER_SECOND}")
    print("\n".join(failed) if failed else "all limits hold")
    return 1 if failed else 0


def _limits(name: str, figures: dict[str, Any]) -> list[str]:
    """Which limits the figures of one set do not keep."""
    failed = [
        f"{name}: recall of {kind} {value} < {MIN_RECALL}"
        for kind, value in figures["recall"].items()
        if value < MIN_RECALL
    ]
    if figures["clean_flagged"] > MAX_FLAGGED:
        failed.append(f"{name}: clean texts flagged {figures['clean_flagged']} > {MAX_FLAGGED}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
