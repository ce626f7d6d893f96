"""ingest: every record becomes a row or a reject with its reason; files that cannot be used are refused by name."""

import json
from pathlib import Path

import pytest

from tunesmith.data.write import read_rejects, read_rows
from tunesmith.errors import DataError, PlanError
from tunesmith.stages.ingest import IngestSpec, check_ingest

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def write_lines(path: Path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path.name


def test_rows_carry_provenance_labels_group_and_side(run_stage, tmp_path):
    answer = {"role": "assistant", "content": '{"intent": "refund", "urgent": true}'}
    name = write_lines(
        tmp_path / "tickets.jsonl",
        [{"messages": [{"role": "user", "content": "money back"}, answer], "who": 17, "ticket": "T1", "lic": "MIT"}],
    )
    source = {
        "path": name,
        "license_field": "lic",
        "subject_field": "who",
        "group_field": "ticket",
        "split": "test",
        "kind": "synthetic",
        "generator": "m1",
        "labels": {"intent": "answer.intent", "urgent": "answer.urgent", "absent": "answer.no"},
    }
    artifact = run_stage("ingest", {}, {"sources": [source]}, tmp_path)
    (row,) = read_rows(artifact.path / "rows.parquet")
    origin = row.provenance
    assert (origin.source, origin.path, origin.line) == ("tickets", "tickets.jsonl", 1)
    assert (origin.license, origin.subject, origin.kind, origin.generator) == ("MIT", "17", "synthetic", "m1")
    assert (row.group, row.split, row.labels) == ("T1", "test", {"intent": "refund", "urgent": "true"})
    assert artifact.summary["sources"]["tickets"]["without_label"]["absent"] == 1


def test_bad_records_are_kept_with_place_and_reason_and_all_are_counted(run_stage, tmp_path):
    lines = [json.dumps(ROW)] * 30
    lines[3] = '{"messages": [{"role": "user", "con'
    lines[9] = json.dumps({"messages": [{"role": "user", "content": "and?"}]})
    lines[12] = '["a list"]'
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    artifact = run_stage("ingest", {}, {"sources": ["rows.jsonl"], "max_bad_share": 0.2}, tmp_path)
    rejects = read_rejects(artifact.path / "rejects.parquet")
    assert [(reject.line, reject.reason) for reject in rejects] == [
        (4, "bad_json"),
        (10, "no_assistant_turn"),
        (13, "not_an_object"),
    ]
    assert "found only user" in rejects[1].detail
    assert rejects[0].raw == lines[3]
    summary = artifact.summary
    assert summary["records_in"] == 30 == summary["rows_kept"] + sum(summary["dropped"].values())
    assert len(read_rows(artifact.path / "rows.parquet")) == summary["rows_kept"] == 27


def test_too_many_bad_records_stop_the_run_with_the_first_of_them(run_stage, tmp_path):
    name = write_lines(tmp_path / "rows.jsonl", [ROW, {"messages": []}, ROW])
    with pytest.raises(DataError) as caught:
        run_stage("ingest", {}, {"sources": [name]}, tmp_path)
    text = str(caught.value)
    assert "1 of 3" in text
    assert "rows.jsonl:2" in text
    assert "empty_conversation" in text


def test_a_source_that_is_not_there_is_refused_when_planned(tmp_path):
    write_lines(tmp_path / "tickets.jsonl", [ROW])
    spec = IngestSpec.model_validate({"sources": [str(tmp_path / "ticket.jsonl")]})
    with pytest.raises(PlanError, match=r"near it: tickets\.jsonl"):
        check_ingest(spec, {})


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two sources are named 'a'"):
        IngestSpec.model_validate({"sources": ["x/a.jsonl", "y/a.jsonl"]})
