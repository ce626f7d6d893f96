"""The data side of the road finds every defect that the quickstart plants, and loses no clean row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import yaml

from tunesmith.data.curation import Rules, curate_rows
from tunesmith.data.patterns import find
from tunesmith.data.policy import OptOut
from tunesmith.data.split import prove, split_rows
from tunesmith.data.words import prompt_text
from tunesmith.data.write import read_rejects, read_rows
from tunesmith.types import RowRole

RECIPES = Path(__file__).parents[2] / "recipes"
QUICKSTART = RECIPES / "quickstart"
REASONS = {
    "exact_duplicate": {"exact_duplicate"},
    "near_duplicate": {"near_duplicate"},
    "leaked_test": {"leak"},
    "broken_answer": {"answer_breaks_schema"},
    "no_license": {"license_unknown"},
    "opted_out_source": {"opt_out"},
    "opted_out_subject": {"opt_out"},
    "unreadable": {"bad_json"},
    "no_answer": {"no_assistant_turn"},
}
KINDS = {"email": "EMAIL", "phone": "PHONE", "card": "CARD", "iban": "IBAN", "ip": "IP_ADDRESS", "key": "API_KEY"}


def recipe():
    return yaml.safe_load((RECIPES / "quickstart.yaml").read_text("utf-8"))


def planted():
    items = json.loads((QUICKSTART / "planted.json").read_text("utf-8"))
    return {(item["file"], item["line"]): item for item in items}


def lint(row):
    """What the contract says of a ticket's answer: whether it is the schema's JSON. Of general rows it says nothing."""
    if row.role is RowRole.GENERAL:
        return []
    schema = json.loads((QUICKSTART / "schema.json").read_text("utf-8"))
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(row.conversation.answer))
    except (ValueError, jsonschema.ValidationError) as error:
        return [("answer_breaks_schema", str(error))]
    return []


def hard_leaks():
    """Held-out tickets that came back with a slip in one word."""
    return {where for where, item in planted().items() if item["defect"] == "leaked_test" and item["how"] == "typo"}


_made = {}


@pytest.fixture
def made(run_stage, tmp_path_factory):
    """(ingested rows, rejects of ingest, what curation made of the rows); worked out once for all tests here."""
    if not _made:
        tables = recipe()
        sources = [{**source, "path": str(RECIPES / source["path"])} for source in tables["ingest"]["sources"]]
        ingested = run_stage("ingest", {}, {"sources": sources}, tmp_path_factory.mktemp("quickstart"))
        rows = read_rows(ingested.path / "rows.parquet")
        curate = tables["curate"]
        opt_out = {
            name: frozenset(curate["opt_out"].get(name, ())) for name in ("sources", "subjects", "content_hashes")
        }
        rules = Rules(
            licenses=tuple(curate["licenses"]), opt_out=OptOut(**opt_out), near_threshold=curate["near_duplicates"]
        )
        rejects = read_rejects(ingested.path / "rejects.parquet")
        _made["all"] = rows, rejects, curate_rows(rows, rules, lint=lint)
    return _made["all"]


def place(item):
    """File and line of a row or a reject."""
    origin = getattr(item, "provenance", item)
    return origin.path, origin.line


def test_every_planted_defect_is_dropped_for_its_reason_and_no_clean_row_is_lost(made):
    rows, unread, curated = made
    reasons = {place(reject): reject.reason for reject in [*unread, *curated.ledger.rejects]}
    repeats = {}
    for where, item in planted().items():
        if where in hard_leaks():
            repeats |= {where: "leaked_test"} if where in reasons else {}
            continue
        if item["defect"] not in REASONS:
            assert where not in reasons, (item, reasons.get(where))
            continue
        gone = where
        if item["defect"] in ("exact_duplicate", "near_duplicate"):
            # one of the two goes; which one is decided by the order of the sources
            file, _, line = item["of"].rpartition(":")
            gone = next((one for one in (where, (file, int(line))) if one in reasons), where)
        assert reasons.get(gone) in REASONS[item["defect"]], (item, reasons.get(gone))
        repeats[gone] = item["defect"]
    assert set(reasons) == set(repeats), "rows were dropped that nobody planted"
    assert len(curated.rows) == len(rows) - len(curated.ledger.rejects)


def test_a_held_out_ticket_with_a_slip_in_one_word_is_found_in_training_data(made):
    _, _, curated = made
    reasons = {place(reject): reject.reason for reject in curated.ledger.rejects}
    assert hard_leaks()
    assert not [where for where in hard_leaks() if reasons.get(where) != "leak"]


def test_planted_personal_data_is_found_by_type_and_clean_rows_are_left_as_they_are(made):
    rows, _, curated = made
    before = {place(row): prompt_text(row.conversation) for row in rows}
    missed, changed = [], set()
    for row in curated.rows:
        text = prompt_text(row.conversation)
        expected = Counter(KINDS[kind] for kind in planted().get(place(row), {}).get("types", ()))
        found = Counter(span.kind for span in find(before[place(row)]))
        if found != expected:
            missed.append((before[place(row)], expected, found))
        if text != before[place(row)]:
            changed.add(place(row))
    assert not missed
    assert changed == {where for where, item in planted().items() if item["defect"] in ("pii", "canary")}


def test_no_canary_is_left_in_any_curated_row(made):
    _, _, curated = made
    canaries = json.loads((QUICKSTART / "canaries.json").read_text("utf-8"))
    prompts = [prompt_text(row.conversation) for row in curated.rows]
    assert not [canary["id"] for canary in canaries if any(canary["value"] in text for text in prompts)]


def test_the_sides_have_the_sizes_that_the_documents_say_and_do_not_overlap(made):
    _, _, curated = made
    split = recipe()["split"]
    done = split_rows(curated.rows, shares=split["shares"], label=split["stratify_by"], near_threshold=0.6)
    general = [side for side, rows in done.sides.items() for row in rows if row.role is RowRole.GENERAL]
    assert general == ["train"] * 146
    sizes = {side: sum(row.role is RowRole.TASK for row in rows) for side, rows in done.sides.items()}
    assert sizes["test"] == 180
    assert 980 <= sizes["train"] <= 1030
    assert 90 <= sizes["val"] <= 120
    proof = prove(done.sides, near_threshold=0.6, label=split["stratify_by"])
    assert not any(proof["overlaps"].values())
