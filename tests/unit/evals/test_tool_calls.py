"""What counts as the same tool call, case by case."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.evals.tools import CallError, Strings, acceptable_from_gold, match_calls, read_acceptable, read_arguments
from tunesmith.types import ToolCall

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "geo.find",
            "parameters": {
                "type": "dict",
                "properties": {
                    "city": {"type": "string"},
                    "limit": {"type": "integer"},
                    "radius": {"type": "float"},
                    "open": {"type": "boolean"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "box": {"type": "array", "items": {"type": "float"}},
                    "filter": {"type": "dict"},
                },
                "required": ["city"],
            },
        },
    }
]
WANTED = read_acceptable(
    [
        {
            "geo.find": {
                "city": ["New York", "NYC"],
                "limit": [5, ""],
                "radius": [2.0, ""],
                "open": [True, ""],
                "tags": [["a", "b"], ""],
                "box": [[1.0, 2.5], ""],
                "filter": [{"kind": ["bar", "pub"], "stars": [4, ""]}, ""],
            }
        }
    ]
)


def verdict(_strings: Strings = Strings.BFCL, **arguments):
    return match_calls([ToolCall(name="geo.find", arguments=arguments)], WANTED, tools=TOOLS, strings=_strings)


@pytest.mark.parametrize(
    "arguments",
    [
        {"city": "NYC"},
        {"city": "new-york."},
        {"city": "NYC", "limit": 5, "open": True},
        {"city": "NYC", "radius": 2},
        {"city": "NYC", "radius": 2.0},
        {"city": "NYC", "tags": ["A", "b"]},
        {"city": "NYC", "box": [1, 2.5]},
        {"city": "NYC", "filter": {"kind": "Pub"}},
        {"city": "NYC", "filter": {"stars": 4, "kind": "bar"}},
    ],
)
def test_an_acceptable_call_matches(arguments):
    assert verdict(**arguments).matches


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, CallError.MISSING_ARGUMENT),
        ({"city": "Boston"}, CallError.WRONG_VALUE),
        ({"city": 5}, CallError.WRONG_TYPE),
        ({"city": None}, CallError.WRONG_TYPE),
        ({"city": "NYC", "zip": "1"}, CallError.UNEXPECTED_ARGUMENT),
        ({"city": "NYC", "limit": 6}, CallError.WRONG_VALUE),
        ({"city": "NYC", "limit": 5.0}, CallError.WRONG_TYPE),
        ({"city": "NYC", "limit": "5"}, CallError.WRONG_VALUE),
        ({"city": "NYC", "limit": True}, CallError.WRONG_TYPE),
        ({"city": "NYC", "open": 1}, CallError.WRONG_TYPE),
        ({"city": "NYC", "radius": True}, CallError.WRONG_TYPE),
        ({"city": "NYC", "tags": ["b", "a"]}, CallError.WRONG_VALUE),
        ({"city": "NYC", "tags": ["a"]}, CallError.WRONG_VALUE),
        ({"city": "NYC", "box": [True, 2.5]}, CallError.WRONG_VALUE),
        ({"city": "NYC", "filter": {}}, CallError.WRONG_VALUE),
        ({"city": "NYC", "filter": {"kind": "cafe"}}, CallError.WRONG_VALUE),
        ({"city": "NYC", "filter": {"kind": "bar", "new": 1}}, CallError.WRONG_VALUE),
    ],
)
def test_a_call_with_one_thing_wrong_says_which(arguments, error):
    found = verdict(**arguments)
    assert found.error is error
    assert found.names_match


def test_exact_strings_are_compared_character_by_character():
    assert verdict(Strings.EXACT, city="NYC").matches
    assert verdict(Strings.EXACT, city="nyc").error is CallError.WRONG_VALUE


def test_a_dot_in_a_name_may_be_served_as_an_underscore():
    call = ToolCall(name="geo_find", arguments='{"city": "NYC"}')
    assert match_calls([call], WANTED, tools=TOOLS).matches
    assert (
        match_calls([ToolCall(name="geofind", arguments={"city": "NYC"})], WANTED, tools=TOOLS).error
        is CallError.WRONG_NAME
    )


def test_where_no_call_was_wanted_none_is_right_and_any_is_wrong():
    assert match_calls([], (), tools=TOOLS).matches
    assert match_calls([ToolCall(name="geo.find", arguments={})], (), tools=TOOLS).error is CallError.CALL_NOT_WANTED
    assert match_calls([], WANTED, tools=TOOLS).error is CallError.NO_CALL


PARALLEL = read_acceptable([{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}, {"g": {}}])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_parallel_calls_match_in_any_order_even_where_greedy_pairing_fails(order):
    calls = [
        ToolCall(name="f", arguments={"x": 1}),
        ToolCall(name="f", arguments={"x": 2}),
        ToolCall(name="g", arguments=""),
    ]
    assert match_calls([calls[i] for i in order], PARALLEL, tools=[]).matches


def test_parallel_calls_with_one_wrong_are_wrong_though_the_names_agree():
    calls = [
        ToolCall(name="f", arguments={"x": 2}),
        ToolCall(name="f", arguments={"x": 2}),
        ToolCall(name="g", arguments={}),
    ]
    found = match_calls(calls, PARALLEL, tools=[])
    assert (found.error, found.names_match) == (CallError.WRONG_VALUE, True)
    fewer = match_calls(calls[:2], PARALLEL, tools=[])
    assert (fewer.error, fewer.names_match) == (CallError.WRONG_COUNT, False)
    other = match_calls([*calls[1:], ToolCall(name="h", arguments={})], PARALLEL, tools=[])
    assert (other.error, other.names_match) == (CallError.WRONG_NAME, False)


@pytest.mark.parametrize("text", ["[1]", "{", "null", '"x"', "[" * 5000])
def test_arguments_that_are_no_object_are_unreadable(text):
    assert read_arguments(ToolCall(name="f", arguments=text)) is None
    with pytest.raises(DataError, match="no JSON object"):
        acceptable_from_gold([ToolCall(name="f", arguments=text)])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3), max_size=4), st.randoms())
def test_any_calls_match_themselves_shuffled(arguments, random):
    calls = [ToolCall(name=f"f{i % 2}", arguments=item) for i, item in enumerate(arguments)]
    shuffled = random.sample(calls, len(calls))
    assert match_calls(shuffled, acceptable_from_gold(calls), tools=[], strings=Strings.EXACT).matches


@pytest.mark.parametrize("shape", [{}, "x", [{}], [{"f": {}, "g": {}}], [{"f": []}], [{"f": {"x": 1}}]])
def test_acceptable_calls_of_another_shape_are_refused(shape):
    with pytest.raises(DataError):
        read_acceptable(shape)
