"""split: sides by unit and stratum, the same everywhere, with a proof that can fail."""

import json
import random

import pytest

from tunesmith.data.split import prove, refuse_overlap, split_rows
from tunesmith.data.write import read_rows, row_id, write_rows
from tunesmith.errors import DataError
from tunesmith.types import Conversation, Message, Provenance, Row

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
WORDS = [a + b for a in ("ba", "ko", "ri", "su", "te", "mo", "li", "na") for b in ("dan", "fel", "gor", "hut", "jim")]


def make(line, text, *, label="a", group=None, split=None):
    conversation = Conversation(messages=(Message(role="user", content=text), Message(role="assistant", content="ok")))
    return Row(
        id=row_id(conversation, source="s", path="p", line=line),
        conversation=conversation,
        provenance=Provenance(source="s", path="p", line=line),
        labels={"kind": label},
        group=group,
        split=split,
    )


def many(count=300, seed=0, **more):
    chance = random.Random(seed)
    return [
        make(line, " ".join(chance.choices(WORDS, k=12)), label="abc"[line % 3], **more) for line in range(1, count + 1)
    ]


def sides_of(split):
    return {row.id: side for side, rows in split.sides.items() for row in rows}


def test_sides_have_their_shares_in_every_stratum():
    split = split_rows(many(), shares=SHARES, label="kind", near_threshold=0.6)
    assert {side: len(rows) for side, rows in split.sides.items()} == {"train": 240, "val": 30, "test": 30}
    for side in ("val", "test"):
        assert all(sum(row.labels["kind"] == label for row in split.sides[side]) == 10 for label in "abc")


def test_sides_do_not_depend_on_the_order_of_the_rows():
    rows = many()
    first = sides_of(split_rows(rows, shares=SHARES, label="kind", near_threshold=0.6))
    random.Random(1).shuffle(rows)
    assert sides_of(split_rows(rows, shares=SHARES, label="kind", near_threshold=0.6)) == first


def test_new_rows_move_few_old_ones():
    rows = many(600)
    before = sides_of(split_rows(rows[:500], shares=SHARES, label=None, near_threshold=0.6))
    after = sides_of(split_rows(rows, shares=SHARES, label=None, near_threshold=0.6))
    moved = sum(after[row] != side for row, side in before.items())
    assert moved <= 15


def test_groups_and_near_duplicates_stay_together():
    rows = many(200)
    rows += [make(1000 + n, f"{' '.join(WORDS[n : n + 9])} thing", group="one") for n in range(8)]
    text = " ".join(random.Random(5).choices(WORDS, k=30))
    rows += [make(2000 + n, f"{text} {word}") for n, word in enumerate(WORDS[:8])]
    split = split_rows(rows, shares=SHARES, label=None, near_threshold=0.6)
    side = sides_of(split)
    assert len({side[row.id] for row in rows[200:208]}) == 1
    assert len({side[row.id] for row in rows[208:]}) == 1
    assert prove(split.sides, near_threshold=0.6, label=None)["overlaps"] == {"exact": 0, "near": 0, "group": 0}


def test_the_proof_finds_each_kind_of_overlap():
    text = " ".join(random.Random(5).choices(WORDS, k=30))
    exact = {"train": [make(1, text)], "test": [make(2, text.upper())]}
    assert prove(exact, near_threshold=0.6, label=None)["overlaps"]["exact"] == 1
    near = {"train": [make(1, text)], "test": [make(2, text + " bidan")]}
    assert prove(near, near_threshold=0.6, label=None)["overlaps"] == {"exact": 0, "near": 1, "group": 0}
    group = {"train": [make(1, "one thing", group="g")], "val": [make(2, "some other", group="g")]}
    proof = prove(group, near_threshold=0.6, label=None)
    assert proof["overlaps"]["group"] == 1
    with pytest.raises(DataError, match="overlap"):
        refuse_overlap(proof)


def test_a_test_set_from_outside_is_kept_and_val_is_cut_from_train():
    rows = many(200, split="train") + [
        make(5000 + row.provenance.line, row.conversation.messages[0].content or "", split="test")
        for row in many(40, seed=9)
    ]
    split = split_rows(rows, shares=SHARES, label=None, near_threshold=0.6)
    assert {row.provenance.line for row in split.sides["test"]} == set(range(5001, 5041))
    assert len(split.sides["val"]) == pytest.approx(200 / 9, abs=2)
    assert split.from_outside == ["test"]


def test_a_row_near_a_held_out_one_leaves_and_the_side_from_outside_stays_as_it_was_given():
    test = [make(900, "a b c d e f g h i", split="test"), make(902, "one thing", group="g", split="test")]
    free = [
        make(901, "a b c d e f g h i"),
        make(903, "some other", group="g"),
        make(904, "a b c d e f g h i", split="val"),
    ]
    split = split_rows([*many(30), *free, *test], shares=SHARES, label=None, near_threshold=0.6)
    assert [row.id for row in split.sides["test"]] == [row.id for row in test]
    assert {leak.row.id: leak.heldout.id for leak in split.leaks} == {
        free[0].id: test[0].id,
        free[1].id: test[1].id,
        free[2].id: test[0].id,
    }
    assert "p:902" in next(leak.detail for leak in split.leaks if leak.row.id == free[1].id)
    assert sum(map(len, split.sides.values())) == 30 + 2


def test_one_cluster_never_becomes_the_whole_test_set():
    text = " ".join(random.Random(5).choices(WORDS, k=30))
    rows = many(100) + [make(2000 + n, f"{text} {word}") for n, word in enumerate(WORDS[:30])]
    split = split_rows(rows, shares=SHARES, label=None, near_threshold=0.6)
    assert sum(row.provenance.line >= 2000 for row in split.sides["train"]) == 30


def test_a_side_that_would_be_empty_is_refused():
    with pytest.raises(DataError, match="is empty"):
        split_rows(
            [make(n, "same words in all rows here", group="g") for n in range(9)],
            shares=SHARES,
            label=None,
            near_threshold=0.6,
        )


def test_the_stage_writes_sides_and_proof(run_stage, tmp_path):
    records = [
        {"prompt": row.conversation.messages[0].content, "completion": '{"k": "x"}', "license": "MIT"}
        for row in many(120)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = run_stage("ingest", {}, {"sources": [{"path": "rows.jsonl", "license": "MIT"}]}, tmp_path)
    curated = run_stage("curate", {"rows": rows}, {}, tmp_path)
    split = run_stage("split", {"rows": curated}, {"shares": {"train": 0.7, "val": 0.1, "test": 0.2}}, tmp_path)
    sizes = {side: len(read_rows(split.path / f"{side}.parquet")) for side in SHARES}
    assert sizes == split.summary["rows"] == {"train": 84, "val": 12, "test": 24}
    proof = json.loads((split.path / "split_proof.json").read_text())
    assert proof["overlaps"] == {"exact": 0, "near": 0, "group": 0}
    assert set(proof["drift"]) == {"length", "source"}
    assert all(row.split == "test" for row in read_rows(split.path / "test.parquet"))


def test_the_result_is_the_same_bytes_twice(tmp_path):
    rows = many(50)
    for name in ("a", "b"):
        split = split_rows(rows, shares=SHARES, label=None, near_threshold=0.6)
        write_rows(tmp_path / name, split.sides["train"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
