"""Semantic duplicates: paraphrases are suggested, whatever the order of the rows, and no row is ever dropped for one."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tunesmith.data.curation import Rules, curate_rows
from tunesmith.data.embeddings import embed, load_embeddings
from tunesmith.data.semantic import Semantic
from tunesmith.data.write import row_id
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Message, Provenance, Row

MEANINGS = {
    "card": ["card", "plastic"],
    "missing": ["missing", "absent", "lost"],
    "parcel": ["parcel", "package", "shipment"],
    "late": ["late", "delayed", "overdue"],
    "refund": ["refund", "reimbursement"],
    "wanted": ["want", "request", "demand"],
    "largest": ["largest"],
    "smallest": ["smallest"],
    "filler": ["my", "is", "a", "the", "i", "please", "still"],
    "number": ["7", "9"],
}
ROWS = [
    ("my card is still missing please", "delivery"),
    ("i lost the plastic", "delivery"),
    ("the parcel is overdue", "delivery"),
    ("my shipment is delayed please", "delivery"),
    ("i want a refund", "money"),
    ("i demand the reimbursement please", "other"),
    ("want the largest parcel", "shop"),
    ("request my smallest package", "shop"),
    ("the 7 card refund", "money"),
    ("a 9 plastic reimbursement", "money"),
]


def words_of_meanings():
    """Return words and vectors in which words of one meaning are all but the same."""
    chance = np.random.default_rng(5)
    words, vectors = ["[UNK]"], [np.zeros(16)]
    for place, (name, members) in enumerate(MEANINGS.items()):
        for word in members:
            words.append(word)
            strength = 0.2 if name == "filler" else 3.0
            vectors.append(strength * np.eye(16)[place] + chance.normal(0, 0.02, 16))
    # Opposites are neighbours in real embeddings.
    vectors[words.index("smallest")] = vectors[words.index("largest")] + 0.01
    return words, np.array(vectors, dtype=np.float32)


@pytest.fixture
def folder(tmp_path):
    words, vectors = words_of_meanings()
    save_file({"embeddings": vectors}, tmp_path / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def made(asked):
    rows = []
    for line, (prompt, answer) in enumerate(asked, start=1):
        conversation = Conversation(
            messages=(Message(role="user", content=prompt), Message(role="assistant", content=answer))
        )
        identity = row_id(conversation, source="s", path="p", line=line)
        place = Provenance(source="s", path="p", line=line, license="MIT")
        rows.append(Row(id=identity, conversation=conversation, provenance=place))
    return rows


def curated(rows, folder, threshold=0.9):
    semantic = Semantic(embeddings=load_embeddings(folder), threshold=threshold)
    return curate_rows(rows, Rules(redact=frozenset(), semantic=semantic), lint=None)


def lines(result):
    return {
        frozenset(int(entry[place].rpartition(":")[2]) for place in ("row_place", "keeper_place"))
        for entry in result.duplicates
        if entry["kind"] == "semantic_duplicate"
    }


def test_paraphrases_are_suggested_and_nothing_is_dropped(folder):
    result = curated(made(ROWS), folder)
    # Another label (5, 6), an opposite (7, 8) and another number (9, 10) make other rows, however near the vectors are.
    assert lines(result) == {frozenset({1, 2}), frozenset({3, 4})}
    assert len(result.rows) == len(ROWS)
    assert not result.ledger.rejects
    assert result.summary()["flagged"] == {"semantic_duplicate": 2}
    found = [entry for entry in result.duplicates if entry["kind"] == "semantic_duplicate"]
    flags = {action.row_id: action for action in result.ledger.actions if action.action == "flag"}
    assert all(entry["score"] >= 0.9 and flags[entry["row_id"]].matched_id == entry["keeper_id"] for entry in found)


def test_a_higher_threshold_suggests_less(folder):
    assert lines(curated(made(ROWS), folder, threshold=1.0)) == set()


def test_the_order_of_rows_changes_nothing(folder):
    rows = made(ROWS + [(f"{one} {two} card", "delivery") for one in MEANINGS["filler"] for two in MEANINGS["late"]])

    def told(rows):
        result = curated(rows, folder)
        return {
            (e["row_id"], e["keeper_id"], e["score"]) for e in result.duplicates if e["kind"] == "semantic_duplicate"
        }

    first = told(rows)
    assert len(first) > 10
    for seed in range(3):
        shuffled = list(rows)
        random.Random(seed).shuffle(shuffled)
        assert told(shuffled) == first


def test_rows_that_a_person_kept_are_not_asked_about_again(folder):
    from tunesmith.data.review import Decision
    from tunesmith.data.write import content_hash

    rows = made(ROWS)
    kept = tuple(
        Decision(content_hash=content_hash(row.conversation), decision="keep", reason="", reviewer="ada", time="2025")
        for row in rows
    )
    semantic = Semantic(embeddings=load_embeddings(folder), threshold=0.9)
    result = curate_rows(rows, Rules(redact=frozenset(), semantic=semantic, decisions=kept), lint=None)
    assert lines(result) == set()


def test_pairs_of_other_instructions_and_of_another_rule_are_left_alone(folder):
    first, second, *rest = made(ROWS)
    system = Message(role="system", content="Answer in German.")
    conversation = replace(second.conversation, messages=(system, *second.conversation.messages))
    assert lines(curated([first, replace(second, conversation=conversation), *rest], folder)) == {frozenset({3, 4})}


def test_long_answers_count_as_well(folder):
    same = "the parcel is late i want a refund please the card is missing"
    near = "my shipment is delayed i demand a reimbursement still the plastic is lost"
    other = "card card card plastic plastic card plastic card plastic card"
    told = lines(
        curated(
            made([("my card is lost", same), ("the plastic is missing", near), ("i lost my card please", other)]),
            folder,
        )
    )
    assert told == {frozenset({1, 2})}


def test_a_language_model_and_weights_of_tokens_are_read(folder, tmp_path):
    words, vectors = words_of_meanings()
    model = tmp_path / "lm"
    model.mkdir()
    (model / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    stored = (vectors.view(np.uint32) >> 16).astype(np.uint16)
    header = {
        "model.embed_tokens.weight": {"dtype": "BF16", "shape": list(stored.shape), "data_offsets": [0, stored.nbytes]}
    }
    said = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(said).to_bytes(8, "little") + said + stored.tobytes())
    texts = ["my card is lost", "a refund please"]
    assert np.allclose(embed(texts, load_embeddings(model)), embed(texts, load_embeddings(folder)), atol=1e-2)

    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    weights = np.ones(len(words), dtype=np.float32)
    weights[words.index("card")] = 0
    mapping = np.arange(len(words))[::-1].copy()
    save_file({"embeddings": vectors[::-1].copy(), "mapping": mapping, "weights": weights}, shared / "m.safetensors")
    vectors = embed(["my card", "my"], load_embeddings(shared))
    assert np.allclose(vectors[0], vectors[1], atol=1e-5)


def test_texts_without_words_have_no_vector(folder):
    assert not embed(["", "my"], load_embeddings(folder))[0].any()
    assert not embed(["", ""], load_embeddings(folder)).any()


def test_a_folder_that_is_none_is_said(folder, tmp_path):
    with pytest.raises(DataError, match="there is no folder of embeddings") as missing:
        load_embeddings(tmp_path / "nowhere")
    assert "model2vec" in str(missing.value)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    load_embeddings(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="holds no static embeddings"):
        load_embeddings(folder)
    (folder / "other.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{oops")
    with pytest.raises(DataError, match="cannot read a safetensors file"):
        load_embeddings(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    _, vectors = words_of_meanings()
    save_file({"embeddings": vectors[:5].copy()}, folder / "model.safetensors")
    with pytest.raises(DataError, match="does not belong to the embeddings"):
        load_embeddings(folder)
