"""`init` looks at the user's data and writes a recipe that plans, with a reason for each choice."""

import json
import random

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunesmith.api as api
from tunesmith.api.data_look import MIN_JSON_SHARE, infer_schema, look
from tunesmith.errors import DataError, PlanError, RecipeError

INTENTS = ("refund", "login", "bug")


def chat_rows(count, *, system="Label it.", seed=0):
    rng = random.Random(seed)
    for number in range(count):
        answer = json.dumps({"intent": rng.choice(INTENTS), "urgent": rng.random() < 0.5, "note": f"n{number}"})
        messages = [{"role": "user", "content": f"message {number}"}, {"role": "assistant", "content": answer}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        yield {"messages": messages}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chosen(made):
    return {choice.key: choice.value for choice in made.choices}


def test_json_answers_give_a_schema_labels_and_slices(tmp_path):
    write(tmp_path / "tickets.jsonl", chat_rows(300))
    made = api.init(tmp_path, base="org/name", license="Apache-2.0")
    recipe = api.open_recipe(made.recipe)
    schema = json.loads((tmp_path / "schema.json").read_text())
    assert schema["properties"]["intent"] == {"type": "string", "enum": sorted(INTENTS)}
    assert schema["properties"]["urgent"] == {"type": "boolean"}
    assert schema["properties"]["note"] == {"type": "string"}
    assert recipe.tables["contract"].spec.system == "Label it."
    assert recipe.tables["ingest"].spec.sources[0].license == "Apache-2.0"
    assert recipe.tables["ingest"].spec.sources[0].labels == {"intent": "answer.intent"}
    assert recipe.tables["evaluate"].spec.slices == ("intent", "length", "source")
    assert recipe.tables["split"].spec.stratify_by == "intent"
    assert not made.warnings


def test_every_choice_says_why_and_stands_in_the_recipe(tmp_path):
    write(tmp_path / "tickets.jsonl", chat_rows(300))
    made = api.init(tmp_path, base="org/name")
    text = made.recipe.read_text()
    for choice in made.choices:
        assert choice.why
        if choice.value is not None and not isinstance(choice.value, dict):
            assert str(choice.value) in text, choice.key


def test_free_text_gives_no_schema_and_says_so(tmp_path):
    rows = [{"instruction": f"Say {i}", "input": "", "output": f"It is {i}."} for i in range(60)]
    write(tmp_path / "data" / "qa.jsonl", rows)
    made = api.init(tmp_path, base="org/name")
    assert chosen(made)["contract.output_schema"] is None
    assert not (tmp_path / "schema.json").exists()
    assert made.look.files[0].report.shape == "alpaca"
    words = " ".join(made.warnings)
    assert "no licence" in words
    assert "60 rows are few" in words
    assert api.open_recipe(made.recipe).tables["curate"].spec.allow_unknown is True


def test_files_that_name_their_side_keep_it(tmp_path):
    write(tmp_path / "x.train.jsonl", chat_rows(100))
    write(tmp_path / "x_test.jsonl", chat_rows(50, seed=1))
    made = api.init(tmp_path, base="org/name")
    sources = api.open_recipe(made.recipe).tables["ingest"].spec.sources
    assert {source.name: source.split for source in sources} == {"x.train": None, "x_test": "test"}
    assert chosen(made)["split.shares"] == {"train": 0.9, "val": 0.1, "test": 0.0}


def test_few_rows_give_a_larger_test_side(tmp_path):
    shares = []
    for count in (300, 5000):
        folder = tmp_path / str(count)
        write(folder / "x.jsonl", chat_rows(count))
        shares.append(chosen(api.init(folder, base="org/name"))["split.shares"]["test"])
    assert shares == [0.3, 0.1]


def test_broken_records_are_reported_with_the_first_place(tmp_path):
    path = write(tmp_path / "x.jsonl", chat_rows(300))
    path.write_text(path.read_text() + '{"messages": [{"role"\n')
    made = api.init(tmp_path, base="org/name", license="Apache-2.0")
    (warning,) = made.warnings
    assert "1 records are no rows" in warning
    assert "x.jsonl:301" in warning


def test_data_and_base_outside_of_the_folder_are_written_as_seen_from_it(tmp_path, monkeypatch):
    write(tmp_path / "raw" / "x.jsonl", chat_rows(60))
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    made = api.init("task", data=["raw/x.jsonl"], base="model")
    recipe = api.open_recipe(made.recipe)
    assert recipe.tables["ingest"].spec.sources[0].path == str(tmp_path / "raw" / "x.jsonl")
    assert recipe.tables["fetch"].spec.model == str(tmp_path / "model")
    assert str(tmp_path) not in made.recipe.read_text()


def test_what_cannot_be_used_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no data was found"):
        api.init(tmp_path / "empty", base="org/name")
    with pytest.raises(DataError, match="does not exist"):
        api.init(tmp_path, data=[tmp_path / "none.jsonl"], base="org/name")
    (tmp_path / "bad.jsonl").write_text("{half\n")
    with pytest.raises(DataError):
        api.init(tmp_path, base="org/name")
    write(tmp_path / "bad.jsonl", chat_rows(60))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlanError, match="no base model"):
        api.init(tmp_path)
    assert not (tmp_path / "recipe.yaml").exists()
    assert not (tmp_path / "schema.json").exists()


def test_a_recipe_that_stands_there_is_never_overwritten(tmp_path):
    write(tmp_path / "x.jsonl", chat_rows(60))
    api.init(tmp_path, base="org/name")
    before = (tmp_path / "recipe.yaml").read_text()
    with pytest.raises(RecipeError, match="there is a recipe already"):
        api.init(tmp_path, base="org/other")
    assert (tmp_path / "recipe.yaml").read_text() == before


def test_several_system_prompts_stay_with_their_rows(tmp_path):
    rows = [*chat_rows(40, system="A"), *chat_rows(40, system="B", seed=1)]
    assert look([write(tmp_path / "x.jsonl", rows)]).num_systems == 2
    made = api.init(tmp_path, base="org/name")
    assert chosen(made)["contract.system"] is None


answers = st.dictionaries(
    st.sampled_from("abc"), st.none() | st.booleans() | st.integers(0, 3) | st.floats(0, 1) | st.sampled_from("xyz")
)


@given(st.lists(answers, min_size=1, max_size=60))
def test_an_inferred_schema_is_valid_and_a_typical_answer_keeps_it(values):
    schema = infer_schema([json.dumps(value) for value in values])
    jsonschema.Draft202012Validator.check_schema(schema)
    typical = [value for value in values if value == max(values, key=values.count)]
    if len(typical) == len(values):
        jsonschema.validate(typical[0], schema)


def test_a_few_broken_answers_do_not_hide_the_schema_and_many_do():
    good, bad = ['{"a": "x"}'] * 95 + ['{"a": "y"}'] * 95, ["oops"] * 10
    assert infer_schema(good + bad)["properties"]["a"]["enum"] == ["x", "y"]
    assert infer_schema(good + bad * 2) is None
    assert MIN_JSON_SHARE == 0.95
    assert infer_schema(["[1]"] * 50) is None
    assert infer_schema([]) is None
