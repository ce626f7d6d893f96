"""What is said of a row's origin is checked: licences, kinds, dates, opt-outs."""

import json

import pytest

import tunesmith.api as api
from tunesmith.data.licenses import PERMISSIVE, license_allowed, normal_license, spdx_expression
from tunesmith.data.lineage import Ledger
from tunesmith.data.policy import OptOut, drop_opted_out, drop_unlicensed, unmatched
from tunesmith.data.read import Origin, rows_of
from tunesmith.data.records import Record
from tunesmith.data.write import Reject
from tunesmith.errors import DataError, RecipeError
from tunesmith.stages.curating import CurateSpec
from tunesmith.stages.ingest import IngestSpec

PAIR = {"prompt": "hi", "completion": "ok"}
LOG = {
    "request": {"messages": [{"role": "user", "content": "hi"}]},
    "response": {"choices": [{"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}]},
}


def only(record, **origin):
    (item,) = rows_of(iter([Record(line=1, value=record)]), Origin(name="s", **origin), name="a.jsonl")[1]
    return item


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("Apache 2.0", "Apache-2.0"),
        ("mit or (gpl-3.0-only and isc)", "MIT OR (GPL-3.0-only AND ISC)"),
        ("LicenseRef-House", "LicenseRef-House"),
        ("unknown", None),
        (" ", None),
        ("our terms", "our terms"),
    ],
)
def test_licences_are_spdx_expressions(said, expected):
    assert normal_license(said) == expected


def test_a_licence_that_is_none_names_the_nearest():
    with pytest.raises(ValueError, match=r"nearest: Apache-2\.0"):
        spdx_expression("Apache2")
    with pytest.raises(ValueError, match=r"Apache-2\.0.*is no SPDX|is no SPDX.*Apache-2\.0"):
        IngestSpec.model_validate({"sources": [{"path": "a.jsonl", "license": "Apache-2"[:-2] + "_2"}]})
    with pytest.raises(ValueError, match="nearest: MIT"):
        CurateSpec.model_validate({"licenses": ["MTI"]})


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ("MIT", True),
        ("MIT OR CC-BY-NC-4.0", True),
        ("MIT AND CC-BY-NC-4.0", False),
        ("(MIT OR GPL-3.0-only) AND CC-BY-NC-4.0", False),
        ("CC-BY-NC-4.0 AND (MIT OR GPL-3.0-only)", False),
        ("MIT AND (ISC OR CC-BY-NC-4.0)", True),
        ("MIT OR ISC AND CC-BY-NC-4.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("our terms", False),
        ("CC-BY-NC-4.0", False),
    ],
)
def test_and_binds_closer_than_or_and_brackets_hold(said, allowed):
    assert license_allowed(said, PERMISSIVE) is allowed


def test_a_row_of_no_known_licence_is_refused_with_the_nearest():
    ledger = Ledger("curate")
    row = only(PAIR, license="Apache2")
    assert drop_unlicensed([row], ledger, allowed=["MIT"]) == []
    assert "no SPDX expression; nearest: Apache-2.0" in ledger.rejects[0].detail


def test_request_logs_are_logs_unless_something_else_is_said():
    assert only(LOG).provenance.kind == "log"
    assert only(PAIR).provenance.kind == "human"
    assert only({**PAIR, "how": "synthetic"}, columns={"kind": "how"}).provenance.kind == "synthetic"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2026-01-31", "2026-01-31"),
        (1767225600, "2026-01-01T00:00:00+00:00"),
        (1767225600000, "2026-01-01T00:00:00+00:00"),
        ("31.1.26", None),
        (True, None),
        (1e300, None),
    ],
)
def test_dates_are_iso_8601_or_the_row_is_refused(value, expected):
    item = only({**PAIR, "day": value}, columns={"collected_at": "day"})
    if expected is None:
        assert isinstance(item, Reject)
        assert item.reason == "bad_date"
        assert "'day'" in item.detail
    else:
        assert item.provenance.collected_at == expected


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused_where_they_would_be_kept(number):
    call = {"function": {"name": "f", "arguments": {"x": number}}}
    item = only({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]})
    assert item.reason == "not_json"


def test_an_opt_out_that_no_row_meets_is_named():
    rows = [only({**PAIR, "prompt": f"q{n}", "who": f"p{n}"}, subject_field="who") for n in range(3)]
    digest = api.content_hash({"prompt": "q2", "completion": "ok"})
    opt_out = OptOut(
        sources=frozenset({"elsewhere"}), subjects=frozenset({"p1", "p9"}), content_hashes=frozenset({digest})
    )
    ledger = Ledger("curate")
    assert drop_opted_out(rows, ledger, opt_out) == [rows[0]]
    assert [reject.reason for reject in ledger.rejects] == ["opt_out", "opt_out"]
    assert unmatched(rows, opt_out) == ["source elsewhere", "subject p9"]


def test_a_content_hash_that_is_none_is_refused_with_the_recipe():
    with pytest.raises(ValueError, match="64 hex digits"):
        CurateSpec.model_validate({"opt_out": {"content_hashes": ["beef"]}})


def test_the_hash_of_a_record_is_that_of_its_row_whatever_its_shape():
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]}
    assert api.content_hash(PAIR) == api.content_hash(chat) == api.content_hash(json.loads(json.dumps(chat)))
    with pytest.raises(DataError, match="no known shape"):
        api.content_hash({"a": 1})


def test_init_refuses_a_licence_that_is_none_and_follows_a_field_of_sides(tmp_path):
    rows = [{**PAIR, "prompt": f"q{n}", "split": ("train", "test")[n % 5 == 0], "user_id": n} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecipeError, match=r"nearest: Apache-2\.0"):
        api.init(tmp_path, base="org/name", license="Apache2")
    made = api.init(tmp_path, base="org/name", license="apache 2.0")
    (source,) = api.open_recipe(made.recipe).tables["ingest"].spec.sources
    assert (source.license, source.columns, source.subject_field) == ("Apache-2.0", {"split": "split"}, "user_id")
    shares = next(choice for choice in made.choices if choice.key == "split.shares")
    assert shares.value == {"train": 0.9, "val": 0.1, "test": 0.0}


def test_init_does_not_leave_a_lone_test_file_without_training_rows(tmp_path):
    (tmp_path / "x.test.jsonl").write_text("".join(json.dumps({**PAIR, "prompt": f"q{n}"}) + "\n" for n in range(60)))
    made = api.init(tmp_path, base="org/name", license="MIT")
    (source,) = api.open_recipe(made.recipe).tables["ingest"].spec.sources
    assert source.split is None
    assert any("nothing to train on" in warning for warning in made.warnings)


def test_init_reads_another_encoding_and_writes_it_down(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        "".join(json.dumps({**PAIR, "prompt": f"Größe {n}"}, ensure_ascii=False) + "\n" for n in range(60)).encode(
            "latin-1"
        )
    )
    made = api.init(tmp_path, base="org/name", license="MIT", encoding="latin-1")
    (source,) = api.open_recipe(made.recipe).tables["ingest"].spec.sources
    assert source.encoding == "latin-1"


def test_a_field_that_no_record_has_is_misspelt(tmp_path):
    records = [Record(line=n, value={**PAIR, "user": n, "extra": n} if n % 2 else PAIR) for n in range(1, 5)]
    _, items = rows_of(iter(records), Origin(name="s", subject_field="user"), name="a.jsonl")
    assert [item.provenance.subject for item in items] == ["1", None, "3", None]
    for settings in ({"subject_field": "usr"}, {"group_field": "usr"}, {"columns": {"collected_at": "usr"}}):
        with pytest.raises(DataError, match="user"):
            list(rows_of(iter(records), Origin(name="s", **settings), name="a.jsonl")[1])
    with pytest.raises(DataError, match="near it there is prompt"):
        rows_of(iter(records), Origin(name="s", columns={"prompt": "promt"}), name="a.jsonl")
