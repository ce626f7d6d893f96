"""LLaMA-Factory's dataset_info.json is read as it is: columns, tags, and what we cannot read is said."""

import json

import pytest

from tunesmith.data.llamafactory import entry_of
from tunesmith.data.write import read_rows
from tunesmith.errors import DataError

INFO = {
    "alpaca": {"file_name": "alpaca.json", "columns": {"prompt": "ask", "query": "more", "response": "say"}},
    "plain": {"file_name": "alpaca.json"},
    "tagged": {
        "file_name": "tagged.json",
        "formatting": "sharegpt",
        "columns": {"messages": "turns", "system": "rules"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"},
    },
    "texts": {"file_name": "texts.jsonl", "columns": {"prompt": "body"}},
    "hub": {"hf_hub_url": "org/name"},
    "pictures": {
        "file_name": "alpaca.json",
        "formatting": "sharegpt",
        "columns": {"messages": "m", "images": "images"},
    },
    "sampled": {"file_name": "alpaca.json", "num_samples": 10},
    "strange": {"file_name": "alpaca.json", "formatting": "parquet", "tags": {"rol_tag": "x"}},
    "openai": {"file_name": "openai.json", "formatting": "openai", "columns": {"messages": "messages"}},
    "gone": {"file_name": "gone.json"},
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(json.dumps(INFO))
    alpaca = {"ask": "a", "more": "b", "say": "c", "instruction": "i", "output": "o"}
    (folder / "alpaca.json").write_text(json.dumps([alpaca]))
    turns = [{"who": "U", "what": "hi"}, {"who": "A", "what": "ok"}]
    (folder / "tagged.json").write_text(json.dumps([{"turns": turns, "rules": "be brief"}]))
    openai = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ok"},
    ]
    (folder / "openai.json").write_text(json.dumps([{"messages": openai}]))
    (folder / "texts.jsonl").write_text('{"body": "once upon a time"}\n')
    return folder


def test_entries_become_rows(run_stage_of_data, folder):
    assert run_stage_of_data("alpaca") == [("user", "a\nb"), ("assistant", "c")]
    assert run_stage_of_data("plain") == [("user", "i"), ("assistant", "o")]
    assert run_stage_of_data("tagged") == [("system", "be brief"), ("user", "hi"), ("assistant", "ok")]
    assert run_stage_of_data("openai") == [("system", "s"), ("user", "hi"), ("assistant", "ok")]
    assert run_stage_of_data("texts") == [("assistant", "once upon a time")]


@pytest.fixture
def run_stage_of_data(folder, tmp_path):
    from tunesmith.core.stage import Context
    from tunesmith.stages.ingest import IngestInputs, IngestSpec, ingest

    def run(name):
        out = tmp_path / f"out-{name}"
        out.mkdir()
        spec = IngestSpec.model_validate({"sources": [{"path": str(folder / "dataset_info.json"), "dataset": name}]})
        context = Context(
            out=out, work=out, log=lambda *a: None, progress=lambda *a, **k: None, workers=1, device="cpu"
        )
        summary = ingest(IngestInputs(), spec, context)
        assert list(summary["sources"]) == [name]
        (row,) = read_rows(out / "rows.parquet")
        return [(message.role, message.content) for message in row.conversation.messages]

    return run


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("alpca", "for example alpaca"),
        ("hub", "lies on a hub"),
        ("pictures", "images"),
        ("sampled", "num_samples"),
        ("strange", "tags.rol_tag, formatting: parquet"),
        ("gone", "gone.json"),
    ],
)
def test_what_cannot_be_read_is_said(folder, name, said):
    with pytest.raises(DataError) as caught:
        entry_of(folder, name)
    assert said in str(caught.value)


def test_the_data_beside_the_file_is_part_of_the_identity(folder):
    from tunesmith.stages.ingest import Source

    source = Source.model_validate({"path": str(folder / "dataset_info.json"), "dataset": "alpaca"})
    before = source.identity()
    (folder / "alpaca.json").write_text("[]")
    assert source.identity() != before
