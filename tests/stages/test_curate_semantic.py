"""curate.semantic through the kernel: flagged, listed on the page and in the queue, refused by name where it cannot be."""

import json

import pytest
from safetensors.numpy import save_file

from tunesmith.data.review_queue import make_queue
from tunesmith.errors import DataError
from tunesmith.stages.curating import CurateSpec, check_curate


def test_a_paraphrase_is_on_the_page_and_in_the_queue(run_stage, tmp_path):
    import numpy as np
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "vectors"
    folder.mkdir()
    words = ["[UNK]", "card", "plastic", "lost", "missing", "tax"]
    vectors = np.array([[0, 0, 0], [1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0.1, 1, 0], [0, 0, 1]], dtype=np.float32)
    save_file({"embeddings": vectors}, folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    asked = [("lost card", "block"), ("missing plastic", "block"), ("tax", "block")]
    records = [{"instruction": prompt, "input": "", "output": answer} for prompt, answer in asked]
    (tmp_path / "desk.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = run_stage("ingest", {}, {"sources": [{"path": "desk.jsonl", "license": "MIT"}]}, tmp_path)
    off = run_stage("curate", {"rows": rows}, {}, tmp_path)
    assert json.loads((off.path / "duplicates.json").read_text()) == []
    on = run_stage("curate", {"rows": rows}, {"semantic": {"embeddings": "vectors"}}, tmp_path)
    assert on.summary["rows_kept"] == 3
    assert on.summary["flagged"] == {"semantic_duplicate": 1}
    assert "Semantic duplicates" in (on.path / "report.html").read_text()
    queue = make_queue(on.path, per_stratum=5, strata=("borderline",))
    assert [item.machine for item in queue] == ["flagged: semantic_duplicate"]
    assert queue[0].twin is not None


def test_a_folder_without_embeddings_is_refused_before_the_run(tmp_path):
    spec = CurateSpec.model_validate({"semantic": {"embeddings": str(tmp_path)}})
    with pytest.raises(DataError, match="holds no static embeddings"):
        check_curate(spec, {})
