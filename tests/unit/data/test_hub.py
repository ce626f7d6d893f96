"""Hub data sets are read through `datasets`; what cannot be had is said with what to do."""

import json

import pytest

from tunesmith.data.hub import read_hub
from tunesmith.errors import DataError, PlanError
from tunesmith.stages.ingest import IngestSpec, check_ingest

pytest.importorskip("datasets")


def test_a_split_is_read_as_records(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = [{"prompt": f"q{n}", "completion": "ok", "note": None if n else "x"} for n in range(1500)]
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    records = list(read_hub(str(folder), subset=None, part="train", revision="v1"))
    assert [record.line for record in records] == list(range(1, 1501))
    assert records[0].value == rows[0]
    assert records[1].value == {"prompt": "q1", "completion": "ok"}
    with pytest.raises(DataError, match="cannot be loaded"):
        list(read_hub(str(folder), subset=None, part="elsewhere", revision="v1"))


def test_without_a_network_the_error_says_what_to_do(monkeypatch):
    with pytest.raises(DataError) as caught:
        list(read_hub("nobody/nothing", subset=None, part="train", revision="v1"))
    assert "save_to_disk(FOLDER)" in str(caught.value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    spec = IngestSpec.model_validate({"hub": [{"name": "n", "id": "a/b", "revision": "v1"}]})
    with pytest.raises(PlanError, match="HF_DATASETS_OFFLINE forbids"):
        check_ingest(spec, {})
