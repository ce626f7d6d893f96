"""A recipe says what is wrong with it: file, line, expected, found, nearest."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.core import stage as stage_module
from tunesmith.core.marked import read_marked
from tunesmith.core.plan import make_plan
from tunesmith.core.recipe import check_content_exists, load_recipe, parse_recipe
from tunesmith.core.store import fingerprint_of
from tunesmith.errors import RecipeError


def parse(text, toys, tmp_path, *overrides):
    return parse_recipe(text, toys, path=tmp_path / "r.yaml", overrides=overrides)


def refusal(text, toys, tmp_path, *overrides):
    with pytest.raises(RecipeError) as caught:
        parse(text, toys, tmp_path, *overrides)
    error = caught.value
    assert len(str(error).splitlines()) <= 5, str(error)
    return error


# ------------------------------------------------------------------------------------------------------ the dialect


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1E3", 1000.0), ("-.5", -0.5), ("5.", 5.0), ("3", 3), ("1_000", 1000), ("010", 10), ("0x1f", 31),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("true", True), ("False", False), ("null", None), ("~", None),
        ("2024-01-01", "2024-01-01"), ("12:30:00", "12:30:00"), ("'1e-4'", "1e-4"), ('"3"', "3"), ("1.2.3", "1.2.3"),
        ("e5", "e5"), ("_1", "_1"), ("1_", "1_"), ("v1", "v1"), (".", "."), ("-", [None]),
    ],
)  # fmt: skip
def test_a_scalar_is_what_it_looks_like(text, value):
    read = read_marked(f"k: {text}" if text != "-" else "k:\n-", name="r").values["k"]
    assert read == value
    assert type(read) is type(value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029\ufeff\ufffe\uffff")), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3), max_leaves=8))  # fmt: skip
def test_any_json_is_read_as_itself(value):
    assert read_marked(json.dumps({"k": value}, ensure_ascii=False), name="r").values == {"k": value}


def test_every_value_knows_its_line():
    marks = read_marked("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", name="r.yaml").marks
    assert marks[("a", "b")] == "r.yaml:2"
    assert marks[("a", "c", 0)] == "r.yaml:4"
    assert marks[("a", "c", 1, "d")] == "r.yaml:5"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3", 3, "stands twice"),
        ("a:\n  x: 1\n  x: 1", 3, "stands twice"),
        ("a: [", 1, "not YAML"),
        ("a: b: c", 1, "not YAML"),
        ("a:\n\t- 1", 2, "not YAML"),
        ("a: 1\nb: .nan", 2, "finite"),
        ("a: -.inf", 1, "finite"),
        ("a: 1e999", 1, "finite"),
        ("a: !!python/object:os.system x", 1, "tags"),
        ("? [1]\n: 2", 1, "plain text"),
        ("a: &x\n  - *x", 1, "too deep"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(text, line, words):
    with pytest.raises(RecipeError, match=words) as caught:
        read_marked(text, name="r.yaml")
    assert caught.value.where == f"r.yaml:{line}"


def test_merge_keys_and_anchors_work_and_the_own_key_wins():
    values = read_marked("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n", name="r").values
    assert values["b"] == {"x": 1, "y": 3}


# ----------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_key_names_the_nearest_with_its_line(toys, tmp_path):
    error = refusal("number:\n  value: 1\ndouble:\n  rat: 1e-3\n", toys, tmp_path)
    assert error.what == "unknown key double.rat"
    assert error.where == f"{tmp_path}/r.yaml:4"
    assert "rate" in error.hint


def test_an_unknown_key_of_a_union_names_the_nearest_of_its_member(toys, tmp_path):
    error = refusal("number:\ndouble:\n  how:\n    kind: slow\n    facter: 3\n", toys, tmp_path)
    assert error.where.endswith(":5")
    assert "factor" in error.hint
    assert "shift" not in error.hint


def test_a_misspelt_role_is_an_unknown_key_too(toys, tmp_path):
    error = refusal("number:\nadd:\n  lefft: number\n", toys, tmp_path)
    assert "left" in error.hint


def test_an_unknown_table_names_the_nearest_stage(toys, tmp_path):
    error = refusal("numbr:\n  value: 1\n", toys, tmp_path)
    assert "number" in error.hint
    assert error.where.endswith(":1")


def test_an_unknown_stage_of_a_named_table_stands_at_its_line(toys, tmp_path):
    error = refusal("mine:\n  stage: dubble\n", toys, tmp_path)
    assert error.where.endswith(":2")
    assert "double" in error.hint


@pytest.mark.parametrize(
    ("line", "expected", "found"),
    [
        ("rate: fast", "number > 0", "'fast' (text)"),
        ('rate: "1e-4"', "number > 0", "'1e-4' (text)"),
        ("rate: true", "number > 0", "True (true or false)"),
        ("rate: -1", "number > 0", "-1 (whole number)"),
        ("rate: [1]", "number > 0", "[1] (list)"),
        ("rate: ", "number > 0", "nothing (null)"),
        ("verbose: 'yes'", "true or false", "'yes' (text)"),
        ("note: 3", "text", "3 (whole number)"),
        ("ranks: [1, x]", "list of (whole number)", "'x' (text)"),
        ("ranks: [1, '2']", "list of (whole number)", "'2' (text)"),
        ("ranks: 3", "list of (whole number)", "3 (whole number)"),
        ("names: {a: b}", "mapping of text to whole number", "'b' (text)"),
        ("names: {a: '1'}", "mapping of text to whole number", "'1' (text)"),
        ("fail: maybe", "one of no, error, kill, interrupt, full, term", "'maybe' (text)"),
    ],
)
def test_a_wrong_type_says_expected_and_found(line, expected, found, toys, tmp_path):
    error = refusal(f"number:\ndouble:\n  {line}\n", toys, tmp_path)
    assert error.expected == expected
    assert error.found == found
    assert error.where == f"{tmp_path}/r.yaml:3"
    assert error.what.startswith("double.")


def test_a_union_without_its_tag_says_which_tags_there_are(toys, tmp_path):
    for how in ("{factor: 3}", "{kind: slw}"):
        error = refusal(f"number:\ndouble:\n  how: {how}\n", toys, tmp_path)
        assert error.expected == "`kind:` as one of quick, slow"


def test_a_table_that_is_no_mapping_is_refused(toys, tmp_path):
    assert "not a table" in refusal("number: 3\n", toys, tmp_path).what


@pytest.mark.parametrize("text", ["", "# only a comment\n", "[]", "just text"])
def test_a_recipe_without_tables_is_refused(text, toys, tmp_path):
    assert "holds no tables" in refusal(text, toys, tmp_path).what


def test_an_unreadable_recipe_is_a_recipe_error(toys, tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(RecipeError):
            load_recipe(path, toys)


# ------------------------------------------------------------------------------------------------------------ wires


def test_an_unwired_role_takes_its_table_and_an_optional_one_may_stay_empty(toys, tmp_path):
    recipe = parse("number:\nadd:\n", toys, tmp_path)
    assert recipe.tables["add"].inputs == {"left": "number", "right": None}


def test_a_wire_names_another_table_and_null_cuts_an_optional_one(toys, tmp_path):
    text = "number:\nother: {stage: number, value: 2}\ndouble: {number: other}\nadd: {left: other, right: null}\n"
    recipe = parse(text, toys, tmp_path)
    assert recipe.tables["double"].inputs == {"number": "other"}
    assert recipe.tables["add"].inputs == {"left": "other", "right": None}


def test_a_missing_table_is_refused_with_what_to_add(toys, tmp_path):
    error = refusal("double:\n", toys, tmp_path)
    assert "add a table `number:`" in error.hint


def test_a_stage_under_another_name_is_never_left_out_silently(toys, tmp_path):
    text = "number:\ntwice: {stage: double}\nadd:\n"
    error = refusal(text, toys, tmp_path)
    assert "nothing feeds add.right" in error.what
    assert "right: twice" in error.hint
    for wire, table in (("twice", "twice"), ("null", None)):
        assert parse(text + f"  right: {wire}\n", toys, tmp_path).tables["add"].inputs["right"] == table


def test_a_wire_to_no_table_names_the_nearest(toys, tmp_path):
    error = refusal("number:\ndouble:\n  number: numbr\n", toys, tmp_path)
    assert "number" in error.hint
    assert error.where.endswith(":3")


def test_a_wire_to_the_wrong_kind_names_tables_that_fit(toys, tmp_path):
    error = refusal("number:\nadd:\ndouble:\n  number: add\n", toys, tmp_path)
    assert (error.expected, error.found) == ("number", "sum")
    assert error.hint == "tables that fit: number, double"


def test_a_circle_is_refused_and_drawn(toys, tmp_path, store):
    recipe = parse("a: {stage: double, number: b}\nb: {stage: double, number: a}\n", toys, tmp_path)
    with pytest.raises(RecipeError, match="circle") as caught:
        make_plan(recipe, store)
    assert caught.value.found == "a <- b <- a"


# -------------------------------------------------------------------------------------------------------- overrides

BASE = "name: base\nnumber:\ndouble:\n  how: {kind: quick, shift: 2}\n  ranks: [1, 2]\nadd:\n"


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("double.rate=1e-4", lambda spec: spec.rate, 1e-4),
        ("double.note=a=b", lambda spec: spec.note, "a=b"),
        ("double.note='3'", lambda spec: spec.note, "3"),
        ("double.ranks=[4, 5, 6]", lambda spec: spec.ranks, (4, 5, 6)),
        ("double.ranks.1=9", lambda spec: spec.ranks, (1, 9)),
        ("double.how.shift=7", lambda spec: spec.how.shift, 7),
        ("double.how={kind: slow, factor: 5}", lambda spec: spec.how.factor, 5),
        ("double.names.a=1", lambda spec: spec.names, {"a": 1}),
        ("double.verbose=true", lambda spec: spec.verbose, True),
    ],
)
def test_an_override_sets_any_value(override, read, value, toys, tmp_path):
    assert read(parse(BASE, toys, tmp_path, override).tables["double"].spec) == value


def test_an_override_below_a_key_that_the_recipe_leaves_out_starts_from_the_default(toys, tmp_path):
    recipe = parse("number:\ndouble:\n", toys, tmp_path, "double.how.factor=5")
    assert recipe.tables["double"].spec.how.factor == 5
    recipe = parse("number:\ndouble:\n", toys, tmp_path, "double.how.kind=quick")
    assert recipe.tables["double"].spec.how.kind == "quick"


def test_an_override_rewires_and_renames(toys, tmp_path):
    recipe = parse(BASE, toys, tmp_path, "add.left=double", "name=other")
    assert recipe.tables["add"].inputs["left"] == "double"
    assert recipe.name == "other"


def test_the_last_override_of_a_key_wins(toys, tmp_path):
    recipe = parse(BASE, toys, tmp_path, "double.rate=1", "double.rate=2")
    assert recipe.tables["double"].spec.rate == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("double.rat=1", "rate"),
        ("dubble.rate=1", "double"),
        ("double.rate", "KEY=VALUE"),
        ("double.rate=x", "number > 0"),
        ("double=3", "double.KEY"),
        ("double..rate=3", "KEY=VALUE"),
        ("double.ranks.7=3", "0 to 1"),
        ("double.note.x=3", "text"),
        ("double.how.shift.x=3", "mapping or list"),
        ("double.rate=[", "YAML"),
        ("double.how.facter=3", "shift"),
    ],
)
def test_a_wrong_override_names_itself_and_the_way_out(override, words, toys, tmp_path):
    error = refusal(BASE, toys, tmp_path, override)
    assert error.where.startswith(f"--set {override}")
    assert words in str(error)


# ------------------------------------------------------------------------------------------------------------ paths


def test_paths_count_from_the_recipe_and_those_of_overrides_from_here(toys, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "n.txt").write_text("5")
    monkeypatch.chdir(here)
    text = "number:\n  file: n.txt\n  files: [n.txt]\n"
    recipe = parse_recipe(text, toys, path=there / "r.yaml", overrides=["number.files.0=n.txt"])
    assert recipe.tables["number"].spec.file == str(there / "n.txt")
    assert recipe.tables["number"].spec.files == (str(here / "n.txt"),)


def test_the_spelling_of_the_user_is_kept_and_absolute_paths_stay_out_of_settings(toys, tmp_path):
    (tmp_path / "n.txt").write_text("5")
    table = parse("number:\n  file: ./n.txt\n", toys, tmp_path).tables["number"]
    assert table.settings()["file"] == "./n.txt"
    assert str(tmp_path) not in json.dumps(table.spec.identity())


def test_a_missing_file_is_refused_with_line_and_key(toys, tmp_path):
    table = parse("number:\n  files:\n    - gone.txt\n", toys, tmp_path).tables["number"]
    with pytest.raises(RecipeError, match=r"number.files\[0\]") as caught:
        check_content_exists(table)
    assert caught.value.where.endswith(":3")


def test_identity_is_what_a_file_holds_and_its_name_never_its_folder(toys, tmp_path):
    found = {}
    for folder, name, content in [("a", "x", "1"), ("b", "x", "1"), ("c", "x", "2"), ("d", "y", "1")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
        table = parse(f"number: {{file: {folder}/{name}}}\n", toys, tmp_path).tables["number"]
        found[folder] = fingerprint_of(table.stage, table.spec.identity(), inputs={})
    assert found["a"] == found["b"]
    assert len(set(found.values())) == 3


# --------------------------------------------------------------------------------------------------------- identity


def fingerprints(text, toys, tmp_path):
    recipe = parse(text, toys, tmp_path)
    return {name: fingerprint_of(t.stage, t.spec.identity(), inputs={}) for name, t in sorted(recipe.tables.items())}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_the_order_of_keys_never_changes_a_fingerprint(toys, rng):
    tables = {
        "name": "x",
        "number": {"value": 2},
        "double": {"rate": 1e-3, "note": "n", "names": {"a": 1, "b": 2}, "how": {"kind": "quick", "shift": 3}},
        "add": {"left": "number"},
    }

    def shuffled(value):
        if not isinstance(value, dict):
            return value
        items = [(key, shuffled(item)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)

    folder = Path("/nowhere")
    mixed = fingerprints(yaml.safe_dump(shuffled(tables), sort_keys=False), toys, folder)
    assert mixed == fingerprints(yaml.safe_dump(tables), toys, folder)


def test_writing_out_a_default_changes_no_fingerprint(toys, tmp_path):
    short = fingerprints("number:\ndouble:\n", toys, tmp_path)
    long = fingerprints(
        "number: {value: 1}\ndouble: {rate: 2e-4, how: {kind: slow, factor: 2}, ranks: []}\n", toys, tmp_path
    )
    assert short == long


def test_two_members_of_a_union_never_share_a_fingerprint(toys, tmp_path):
    slow = fingerprints("number:\ndouble: {how: {kind: slow}}\n", toys, tmp_path)
    quick = fingerprints("number:\ndouble: {how: {kind: quick}}\n", toys, tmp_path)
    assert slow["double"] != quick["double"]


GOLDEN = {
    "add": "668dac9b23fbeda4f3798e525a3a92e2053ed395e7dbd6dd9442fd8a1fc321b5",
    "double": "8de75f0a47585939986afa8d16adf922f92ab316f3f971e22f59590b93ce2a29",
    "number": "184d7913134d119d75c3f4a50cb8267eac2809f4e02b5644b62b55de3fff75c8",
}


def test_fingerprints_of_a_fixture_are_the_golden_ones(toys, tmp_path):
    """A change here makes every artifact of every user stale: it needs a reason and a line in the CHANGELOG."""
    (tmp_path / "n.txt").write_text("5\n")
    text = "number: {file: n.txt}\ndouble: {rate: 1e-3, how: {kind: quick}, ranks: [1, 2], names: {b: 1, a: 2}}\nadd:\n"
    assert fingerprints(text, toys, tmp_path) == GOLDEN


def test_the_registry_of_the_toys_is_apart_from_the_real_one(toys):
    assert set(stage_module.registered()) == {"number", "double", "add"}
