"""One table that stands for several, one for each seed."""

import pytest

from tunesmith.core.recipe import parse_recipe
from tunesmith.core.store import fingerprint_of
from tunesmith.errors import RecipeError
from tunesmith.stages import load_stages

ROAD = """
fetch: {model: base}
contract: {}
ingest: {sources: [rows.jsonl]}
curate: {}
split: {}
encode: {}
"""
SEEDS = (
    ROAD + "train: {seeds: [3, 1, 2], learning_rate: 1e-4}\nevaluate: {each: train, side: val}\nseeds: {}\nbundle: {}\n"
)
WRITTEN_OUT = (
    ROAD
    + "".join(
        f"train_{n}: {{stage: train, seed: {seed}, learning_rate: 1e-4}}\n" for n, seed in enumerate((3, 1, 2), 1)
    )
    + "".join(f"evaluate_{n}: {{stage: evaluate, adapter: train_{n}, side: val}}\n" for n in (1, 2, 3))
    + "seeds: {}\nbundle: {adapter: train_1, evaluation: evaluate_1}\n"
)


def parse(text, tmp_path, *overrides):
    return parse_recipe(text, load_stages(), path=tmp_path / "r.yaml", overrides=overrides)


def test_seeds_mean_what_the_written_out_tables_mean(tmp_path):
    short, long = parse(SEEDS, tmp_path), parse(WRITTEN_OUT, tmp_path)
    assert list(short.tables) == list(long.tables)
    for name, table in short.tables.items():
        other = long.tables[name]
        assert (table.spec, table.inputs, table.stage.name) == (other.spec, other.inputs, other.stage.name)


def test_a_seed_is_the_same_artifact_however_it_was_asked_for(tmp_path):
    alone = parse(ROAD + "train: {seed: 3, learning_rate: 1e-4}\n", tmp_path).tables["train"]
    one = parse(SEEDS, tmp_path).tables["train_1"]
    inputs = dict.fromkeys(one.inputs, "the same")
    assert fingerprint_of(alone.stage, alone.spec.identity(), inputs=inputs) == fingerprint_of(
        one.stage, one.spec.identity(), inputs=inputs
    )


def test_whatever_else_takes_a_repeated_table_takes_its_first(tmp_path):
    tables = parse(SEEDS, tmp_path).tables
    assert tables["bundle"].inputs["adapter"] == "train_1"
    assert tables["bundle"].inputs["evaluation"] == "evaluate_1"
    wired = parse(SEEDS.replace("bundle: {}", "bundle: {adapter: train_2, evaluation: evaluate_2}"), tmp_path)
    assert wired.tables["bundle"].inputs["adapter"] == "train_2"


def test_an_override_reaches_every_copy_and_says_where_it_stands(tmp_path):
    recipe = parse(SEEDS, tmp_path, "train.learning_rate=2e-4", "train.seeds=[5, 6]")
    assert [recipe.tables[f"train_{n}"].spec.seed for n in (1, 2)] == [5, 6]
    assert [recipe.tables[f"train_{n}"].spec.learning_rate for n in (1, 2)] == [2e-4, 2e-4]
    assert recipe.tables["train_2"].where(("learning_rate",)) == "--set train.learning_rate=2e-4"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seeds: [3, 1, 2]", "seeds: [3]", "does not say which seeds"),
        ("seeds: [3, 1, 2]", "seeds: [3, 3]", "does not say which seeds"),
        ("seeds: [3, 1, 2]", "seeds: [1.5, 2]", "does not say which seeds"),
        ("seeds: [3, 1, 2]", "seeds: 3", "does not say which seeds"),
        ("seeds: [3, 1, 2]", "seeds: [3, 1], seed: 4", "does not say which seeds"),
        ("each: train", "each: encode", "names no table above it that is repeated"),
        ("evaluate: {each: train, side: val}", "encode_more: {stage: encode, each: train}", "is not fed by train"),
        ("encode: {}", "encode: {seeds: [1, 2]}", "encode has no seed"),
        ("seeds: {}\n", "seeds: {}\ntrain_2: {stage: train}\n", "another table has that name"),
    ],
)
def test_what_cannot_be_repeated_is_refused_at_its_line(tmp_path, before, after, said):
    assert before in SEEDS
    with pytest.raises(RecipeError, match=said) as error:
        parse(SEEDS.replace(before, after), tmp_path)
    assert "r.yaml:" in str(error.value)
