"""What curate leaves for people and programs: lineage of one record a row, funnel, datasheet, Croissant, a page."""

import hashlib
import json
import logging

import pyarrow.parquet as pq
import pytest

from tunesmith.data.datasheet import UNKNOWN
from tunesmith.data.funnel import make_funnel
from tunesmith.data.write import read_rejects, read_rows

ABOUT = {"name": "lamps", "creators": ["the shop"], "purpose": "Sort messages.", "limitations": "English alone."}


@pytest.fixture(scope="module")
def world(run_stage, tmp_path_factory):
    root = tmp_path_factory.mktemp("output")
    asked = [
        ("The blue lamp of my last order flickers since it was hung up in the hall of our house by the sea", "MIT"),
        ("The blue lamp of my last order flickers since it was hung up in the hall of our home by the sea", "MIT"),
        ("Write to ann@example.org about the coffee machine with the steel jug, please, as soon as you can", "MIT"),
        ("Where do I find the invoice of the garden chairs that I bought in spring for our terrace", None),
    ]
    records = [{"instruction": text, "input": "", "output": "Thanks.", "lic": name} for text, name in asked]
    (root / "desk.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (root / "exam.jsonl").write_text(json.dumps({"prompt": asked[2][0]}) + "\n")
    source = {"path": "desk.jsonl", "license_field": "lic", "kind": "synthetic", "generator": "a-model"}
    rows = run_stage("ingest", {}, {"sources": [source]}, root)
    settings = {"about": ABOUT, "evaluations": {"exam": "exam.jsonl"}}
    return rows, run_stage("curate", {"rows": rows}, settings, root)


def test_lineage_has_one_record_for_each_row_that_came_in(world):
    rows, curated = world
    records = pq.read_table(curated.path / "lineage.parquet").to_pylist()
    came = [row.id for row in read_rows(rows.path / "rows.parquet")]
    assert sorted(record["row_id"] for record in records) == sorted(came)
    by_line = {record["line"]: record for record in records}
    assert [by_line[line]["fate"] for line in (1, 2, 3, 4)] == ["keep", "drop", "keep", "drop"]
    assert by_line[2]["matched_id"] == by_line[1]["row_id"]
    assert [action["action"] for action in by_line[3]["actions"]] == ["change", "flag", "keep"]
    assert by_line[3]["before_hash"] != by_line[3]["after_hash"] == by_line[3]["actions"][-1]["after_hash"]
    assert by_line[4]["reason"] == "license_unknown"
    assert by_line[4]["after_hash"] is None


def test_the_funnel_is_even_in_rows_and_in_tokens(world):
    rows, curated = world
    came = read_rows(rows.path / "rows.parquet")
    rejects = read_rejects(curated.path / "rejects.parquet")
    funnel = make_funnel(came, rejects, count_tokens=lambda texts: [len(text.split()) for text in texts])
    assert funnel.unit == "tokens"
    assert funnel.units_in == sum(len(row.conversation.messages[0].content.split()) + 1 for row in came)
    assert funnel.rows_in - sum(step.rows for step in funnel.steps) == funnel.rows_kept == 2
    assert funnel.units_kept == sum(source.units_kept for source in funnel.sources)
    told = json.loads((curated.path / "funnel.json").read_text())
    assert told["unit"] == "characters"
    assert told["sources"]["desk"]["taken"] == {"license_unknown": 1, "near_duplicate": 1}


def test_many_rows_are_estimated_and_it_is_said(world, monkeypatch):
    monkeypatch.setattr("tunesmith.data.funnel.MAX_COUNTED_ROWS", 2)
    came = read_rows(world[0].path / "rows.parquet")
    funnel = make_funnel(came, [], count_tokens=lambda texts: [len(text) for text in texts])
    assert funnel.counted_rows == 2
    assert abs(funnel.units_in - sum(len(m.content) for row in came for m in row.conversation.messages)) <= 10


def test_the_datasheet_says_what_is_known_and_calls_the_rest_unknown(world):
    text = (world[1].path / "DATASHEET.md").read_text()
    assert "# Datasheet: lamps" in text
    assert "a-model" in text
    assert "EMAIL 1" in text
    assert "license_unknown" in text
    assert f"**Where is it?** {UNKNOWN}" in text
    assert f"Who made it?** {UNKNOWN}" not in text


def test_croissant_is_valid_and_reads_the_rows_back(world, caplog):
    mlcroissant = pytest.importorskip("mlcroissant")
    path = world[1].path / "croissant.json"
    with caplog.at_level(logging.CRITICAL):
        dataset = mlcroissant.Dataset(str(path))
    metadata = dataset.metadata
    assert metadata.ctx.issues.errors == set()
    assert metadata.ctx.is_v1_1()
    assert metadata.license == ["https://spdx.org/licenses/MIT.html"]
    assert metadata.data_limitations == ["English alone."] or metadata.data_limitations == "English alone."
    kept = read_rows(world[1].path / "rows.parquet")
    assert [record["rows/id"].decode() for record in dataset.records("rows")] == [row.id for row in kept]
    for file in json.loads(path.read_text())["distribution"]:
        assert file["sha256"] == hashlib.sha256((path.parent / file["name"]).read_bytes()).hexdigest()
        assert "url" not in file


def test_a_description_with_a_wrong_type_is_refused_by_the_same_check(world, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    value = json.loads((world[1].path / "croissant.json").read_text())
    value["recordSet"][0]["field"][0]["source"]["fileObject"]["@id"] = "nowhere.parquet"
    (tmp_path / "croissant.json").write_text(json.dumps(value))
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(str(tmp_path / "croissant.json"))


def test_the_page_marks_what_differs_and_holds_no_personal_data(world):
    page = (world[1].path / "report.html").read_text()
    assert "<del>home</del>" in page
    assert "<ins>house</ins>" in page
    assert "ann@example.org" not in page
    assert "holds item 1 of exam" in page or "of exam:" in page
    for title in ("Funnel", "Duplicates", "Personal data and secrets", "Contamination", "Licences", "Dropped rows"):
        assert f">{title}</h2>" in page
