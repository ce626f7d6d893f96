"""The quickstart's data is what its documents say: labels by rule, planted defects where they are listed, nothing else."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

RECIPES = Path(__file__).parents[3] / "recipes"
QUICKSTART = RECIPES / "quickstart"
CSV_FILE = "tickets_mail.csv"
FILES = (
    "tickets_alpaca.jsonl",
    "tickets_chat.jsonl",
    CSV_FILE,
    "tickets_forum.jsonl",
    "tickets_canary.jsonl",
    "tickets_recent.jsonl",
    "tickets_holdout.jsonl",
)
GENERAL = "general_chat.jsonl"
"""General rows, mixed into training: written by hand, not by the generator."""
FRESH = "tickets_fresh.jsonl"
"""Traffic for the rehearsal: read by no source."""
GONE = {
    "exact_duplicate",
    "near_duplicate",
    "leaked_test",
    "broken_answer",
    "no_license",
    "opted_out_source",
    "opted_out_subject",
    "unreadable",
    "no_answer",
}
STAYS = {"templated_keep", "pii", "canary"}
LABELS = ("intent", "priority", "product", "needs_human")

Place = tuple[str, int]


def place_of(text: str) -> Place:
    file, _, line = text.rpartition(":")
    return file, int(line)


@cache
def planted() -> dict[Place, dict[str, Any]]:
    items = json.loads((QUICKSTART / "planted.json").read_text("utf-8"))
    return {(item["file"], item["line"]): item for item in items}


@cache
def records() -> dict[Place, dict[str, Any]]:
    """All records that are JSON, or cells, by file and line."""
    out: dict[Place, dict[str, Any]] = {}
    for name in FILES:
        if name == CSV_FILE:
            with (QUICKSTART / name).open(encoding="utf-8", newline="") as handle:
                reader = csv.DictReader(handle)
                start = 2
                for row in reader:
                    out[name, start] = row
                    start = reader.line_num + 1
            continue
        for number, line in enumerate((QUICKSTART / name).read_text("utf-8").splitlines(), start=1):
            if planted().get((name, number), {}).get("defect") != "unreadable":
                out[name, number] = json.loads(line)
    return out


def ticket(place: Place) -> tuple[str, str]:
    """Message and answer of a record, whatever its columns."""
    record = records()[place]
    if "instruction" in record:
        return "\n".join(part for part in (record["instruction"], record["input"]) if part), record["output"]
    if "prompt" in record:
        return record["prompt"], record["completion"]
    turns = record.get("messages") or [
        {"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": turn["value"]}
        for turn in record["conversations"]
    ]
    said = {turn["role"]: turn["content"] for turn in turns}
    return said["user"], said.get("assistant", "")


def clean() -> list[Place]:
    return [place for place in records() if planted().get(place, {}).get("defect") not in GONE]


@cache
def schema() -> Any:
    value = json.loads((QUICKSTART / "schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(value)
    return jsonschema.Draft202012Validator(value)


def grams(text: str, length: int = 3) -> frozenset[str]:
    words = re.findall(r"[^\W_]+", text.lower())
    return frozenset(" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+", text))


def test_the_generator_writes_the_committed_files_byte_for_byte(tmp_path: Path) -> None:
    script = QUICKSTART / "make_data.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=True, capture_output=True)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted([*FILES, FRESH, "planted.json", "canaries.json"])
    for name in written:
        assert (tmp_path / name).read_bytes() == (QUICKSTART / name).read_bytes(), name


def test_the_recipe_reads_every_file_and_states_the_prompt_of_the_generator() -> None:
    recipe = yaml.safe_load((RECIPES / "quickstart.yaml").read_text("utf-8"))
    sources = recipe["ingest"]["sources"]
    assert {Path(source["path"]).name for source in sources} == {*FILES, GENERAL}
    assert [Path(source["path"]).name for source in sources if source.get("role") == "general"] == [GENERAL]
    systems = {
        turn["content"]
        for record in records().values()
        for turn in record.get("messages", ())
        if turn["role"] == "system"
    }
    assert systems == {recipe["contract"]["system"]}
    properties = schema().schema["properties"]
    for key in ("intent", "priority", "product"):
        assert f"{key}: {', '.join(properties[key]['enum'])}" in recipe["contract"]["system"]


def test_every_clean_answer_adheres_and_is_spelt_in_one_way() -> None:
    for place in clean():
        answer = ticket(place)[1]
        value = json.loads(answer)
        schema().validate(value)
        assert answer == json.dumps(value, separators=(",", ":")), place
        assert tuple(value) == LABELS, place


def test_fresh_tickets_are_labelled_and_stand_in_no_source() -> None:
    rows = [json.loads(line) for line in (QUICKSTART / FRESH).read_text("utf-8").splitlines()]
    assert len(rows) >= 24
    known = [grams(ticket(place)[0]) for place in clean()]
    for row in rows:
        asked, answered = (turn["content"] for turn in row["messages"])
        schema().validate(json.loads(answered))
        assert max(jaccard(grams(asked), other) for other in known) < 0.3


def test_every_planted_broken_answer_is_broken() -> None:
    broken = [place for place, item in planted().items() if item["defect"] == "broken_answer"]
    assert len(broken) == 20
    for place in broken:
        try:
            value = json.loads(ticket(place)[1])
        except ValueError:
            continue
        assert not schema().is_valid(value), place


def test_a_product_label_is_named_in_the_text() -> None:
    for place in clean():
        text, answer = ticket(place)
        product = json.loads(answer)["product"]
        if product != "none":
            words = re.findall(r"[\w-]+", text.lower())  # misspelt by up to two letters
            assert max(SequenceMatcher(None, word, product).ratio() for word in words) > 0.7, place


def test_planted_counts_are_those_of_the_documents() -> None:
    counts = Counter(item["defect"] for item in planted().values())
    assert set(counts) == GONE | STAYS
    assert counts == {
        "exact_duplicate": 25,
        "near_duplicate": 30,
        "leaked_test": 12,
        "templated_keep": 40,
        "broken_answer": 20,
        "no_license": 15,
        "opted_out_source": 20,
        "opted_out_subject": 3,
        "pii": 40,
        "canary": 16,
        "unreadable": 1,
        "no_answer": 1,
    }


def test_a_planted_repeat_is_close_to_its_partner_and_the_partner_is_clean() -> None:
    for place, item in planted().items():
        if "of" not in item:
            continue
        partner = place_of(item["of"])
        assert partner in set(clean()), item
        one, other = ticket(place)[0], ticket(partner)[0]
        assert ticket(place)[1] == ticket(partner)[1]
        assert numbers(one) == numbers(other), item
        if item["defect"] == "exact_duplicate":
            assert " ".join(one.lower().split()) == " ".join(other.lower().split())
        else:
            assert jaccard(grams(one), grams(other)) > 0.45, item
        if item["defect"] == "leaked_test":
            assert partner[0] in ("tickets_holdout.jsonl", "tickets_recent.jsonl")
            assert place[0] not in ("tickets_holdout.jsonl", "tickets_recent.jsonl")


def test_no_two_clean_rows_are_near_duplicates_but_for_templated_ones_with_other_numbers() -> None:
    kept = [(place, grams(ticket(place)[0])) for place in clean()]
    by_gram: dict[str, list[int]] = {}
    for index, (_, found) in enumerate(kept):
        for gram in found:
            by_gram.setdefault(gram, []).append(index)
    for index, (place, found) in enumerate(kept):
        near: Counter[int] = Counter(other for gram in found for other in by_gram[gram] if other < index)
        for other, shared in near.items():
            if shared / (len(found) + len(kept[other][1]) - shared) < 0.5:
                continue
            twin = kept[other][0]
            assert numbers(ticket(place)[0]) != numbers(ticket(twin)[0]), (ticket(place)[0], ticket(twin)[0])


def test_a_templated_row_looks_like_another_one() -> None:
    rows = [grams(re.sub(r"\d+", "0", ticket(p)[0])) for p, i in planted().items() if i["defect"] == "templated_keep"]
    assert len(rows) == 40
    for index, found in enumerate(rows):
        assert max(jaccard(found, other) for at, other in enumerate(rows) if at != index) > 0.25


def test_customers_of_the_test_sources_wrote_nothing_else() -> None:
    customers: dict[str, set[str]] = {}
    for (name, _), record in records().items():
        customers.setdefault(record["customer"], set()).add(name)
    for names in customers.values():
        if names & {"tickets_holdout.jsonl", "tickets_recent.jsonl"}:
            assert len(names) == 1


def test_every_intent_has_enough_rows_and_no_label_value_is_missing() -> None:
    values = [json.loads(ticket(place)[1]) for place in clean()]
    assert 1200 <= len(values) <= 1350
    for key in ("intent", "priority", "product"):
        counts = Counter(value[key] for value in values)
        assert set(counts) == set(schema().schema["properties"][key]["enum"])
        assert min(counts.values()) >= 80, counts
    humans = sum(value["needs_human"] for value in values)
    assert 0.25 < humans / len(values) < 0.5


def test_messages_vary_in_length_from_one_line_to_several_paragraphs() -> None:
    lengths = sorted(len(ticket(place)[0].split()) for place in clean())
    assert lengths[len(lengths) // 20] <= 6
    assert lengths[-len(lengths) // 20] >= 65
    assert lengths[-1] < 200
    assert sum("\n\n" in ticket(place)[0] for place in clean()) > 150


def test_canaries_stand_only_where_they_are_planted_and_controls_nowhere() -> None:
    canaries = json.loads((QUICKSTART / "canaries.json").read_text("utf-8"))
    messages = {place: ticket(place)[0] for place in records()}
    hidden = [canary for canary in canaries if canary["planted"]]
    assert len(hidden) == 8
    for canary in canaries:
        found = {f"{name}:{line}" for (name, line), text in messages.items() if canary["value"] in text}
        assert found == set(canary["planted"] or ()), canary["id"]
        if found:
            prefixed = [text for text in messages.values() if canary["prefix"] + canary["value"] in text]
            assert prefixed, canary["id"]


def test_red_team_prompts_start_secrets_that_really_were_planted() -> None:
    canaries = json.loads((QUICKSTART / "canaries.json").read_text("utf-8"))
    values = [canary["value"] for canary in canaries if canary["planted"]]
    lines = (QUICKSTART / "redteam.jsonl").read_text("utf-8").splitlines()
    prompts = [case["prompt"] for case in map(json.loads, lines) if case["family"] == "pii_extraction"]
    begun = [value for value in values if any(value[:6] in prompt for prompt in prompts)]
    assert len(begun) >= 5
    assert not any(value in prompt for value in values for prompt in prompts)


def test_no_key_can_be_read_in_the_bytes_of_a_file() -> None:
    patterns = re.compile(rb"\b(?:sk[-_](?:test|live|proj)|gh[pousr]_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{8}")
    for path in QUICKSTART.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert not patterns.search(path.read_bytes()), path.name
    keys = [place for place, item in planted().items() if "key" in item.get("types", ())]
    assert len(keys) >= 8
    assert all(patterns.search(ticket(place)[0].encode()) for place in keys), "the parsed text must hold the key"


def test_only_planted_rows_hold_addresses_or_long_numbers() -> None:
    personal = re.compile(r"@|\+\d{2}|(?:\d[ -]?){12,}|(?:\d{1,3}\.){3}\d{1,3}")
    for place in clean():
        planted_here = planted().get(place, {}).get("defect") in ("pii", "canary")
        if not planted_here:
            assert not personal.search(ticket(place)[0]), place


@pytest.mark.parametrize("defect", ["pii", "canary"])
def test_rows_with_personal_data_say_of_which_type(defect: str) -> None:
    types = [kind for item in planted().values() if item["defect"] == defect for kind in item["types"]]
    assert set(types) == {"email", "phone", "card", "iban", "ip", "key"}


def test_red_team_ids_are_unique_and_each_family_has_attacks_and_look_alikes() -> None:
    cases = [json.loads(line) for line in (QUICKSTART / "redteam.jsonl").read_text("utf-8").splitlines()]
    assert len({case["id"] for case in cases}) == len(cases) >= 60
    families = Counter((case["family"], case["attack"]) for case in cases)
    assert {family for family, _ in families} == {
        "injection",
        "policy",
        "system_prompt_leak",
        "pii_extraction",
        "harmful",
    }
    assert min(families.values()) >= 2
    seen = {grams(ticket(place)[0]) for place in clean()}
    assert not any(grams(case["prompt"]) in seen for case in cases)


def test_the_general_set_is_distinct_and_answered() -> None:
    lines = (RECIPES / "general" / "general.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 150
    assert len({row["instruction"] for row in rows}) == len(rows)
    assert all(row["output"].strip() and row["license"] == "Apache-2.0" for row in rows)
    assert len({row["kind"] for row in rows}) >= 12


def general_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (QUICKSTART / GENERAL).read_text("utf-8").splitlines()]


def test_general_rows_are_varied_and_alternate_between_user_and_assistant() -> None:
    rows = general_rows()
    assert 140 <= len(rows) <= 160
    assert len({row["id"] for row in rows}) == len(rows)
    kinds = Counter(row["kind"] for row in rows)
    assert len(kinds) >= 12
    assert max(kinds.values()) <= len(rows) / 6
    for row in rows:
        turns = [turn["role"] for turn in row["messages"] if turn["role"] != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2), row["id"]
    lengths = [len(row["messages"][-1]["content"].split()) for row in rows]
    assert min(lengths) <= 12
    assert max(lengths) >= 70


def test_general_rows_hold_nothing_of_the_passages_that_watch_general_ability() -> None:
    from tunesmith.evals.general import general_passages

    # Six words in a row meet only where one text was taken from the other; four do by chance ("is the capital of").
    watched = frozenset().union(*(grams(passage.text, 6) for passage in general_passages()))
    for row in general_rows():
        assert not grams(" ".join(turn["content"] for turn in row["messages"]), 6) & watched, row["id"]


def test_general_rows_are_no_tickets() -> None:
    known = [grams(ticket(place)[0]) for place in clean()]
    for row in general_rows():
        asked = next(turn["content"] for turn in row["messages"] if turn["role"] == "user")
        assert max(jaccard(grams(asked), other) for other in known) < 0.5, row["id"]
