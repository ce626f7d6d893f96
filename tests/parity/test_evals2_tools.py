"""The BFCL gold is accepted in every reading it allows, and every kind of damage to it is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tunesmith.evals.tools import CallError, Strings, acceptable_from_gold, match_calls, read_acceptable
from tunesmith.types import ToolCall

DATA = Path(__file__).parents[2] / "../shared/data"


def _rows(name):
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not here")
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def _plain(value, pick):
    """Choose a value: dictionaries list acceptable values for each key."""
    if isinstance(value, dict):
        return {
            key: _plain(options[pick % len(options)], 0)
            for key, options in value.items()
            if options[pick % len(options)] != ""
        }
    if isinstance(value, list):
        return [_plain(item, pick) if isinstance(item, dict) else item for item in value]
    return value


def _gold(row, pick):
    """Build a call from the row's acceptable values, the `pick`-th of each; -1 leaves out what may be."""
    calls = []
    for call in row["acceptable_calls"]:
        for name, arguments in call.items():
            function = next(t["function"] for t in row["tools"] if t["function"]["name"] == name)
            required = function["parameters"].get("required", [])
            chosen = {}
            for key, values in arguments.items():
                filled = [value for value in values if value != ""]
                if "" in values and key not in required and (pick < 0 or not filled):
                    continue
                none = "" if values else []
                chosen[key] = _plain(filled[max(pick, 0) % len(filled)], max(pick, 0)) if filled else none
            calls.append(ToolCall(name=name, arguments=chosen))
    return calls


def test_the_gold_is_accepted_with_every_choice_and_without_what_is_optional():
    rows = _rows("tools_bfcl.jsonl")
    assert len(rows) == 1098
    refused = []
    for row in rows:
        wanted = read_acceptable(row["acceptable_calls"])
        for pick in (-1, 0, 1, 2):
            for strings in Strings:
                verdict = match_calls(_gold(row, pick), wanted, tools=row["tools"], strings=strings)
                if not (verdict.matches and verdict.names_match):
                    refused.append((row["id"], pick, verdict))
        as_text = [ToolCall(name=c.name, arguments=json.dumps(c.arguments)) for c in _gold(row, 0)]
        assert match_calls(as_text, wanted, tools=row["tools"]).matches
    assert refused == []


def test_every_kind_of_damage_is_refused_and_named():
    seen = dict.fromkeys(CallError, 0)
    for row in _rows("tools_bfcl.jsonl"):
        wanted = read_acceptable(row["acceptable_calls"])

        def refuse(calls, *errors, row=row, wanted=wanted):
            verdict = match_calls(calls, wanted, tools=row["tools"])
            assert verdict.error in errors, (row["id"], calls, verdict, errors)
            seen[verdict.error] += 1

        if not row["acceptable_calls"]:
            refuse([ToolCall(name="x", arguments={})], CallError.CALL_NOT_WANTED)
            continue
        (call,) = _gold(row, 0)
        refuse([], CallError.NO_CALL)
        refuse([call, call], CallError.WRONG_COUNT)
        refuse([ToolCall(name=call.name + "x", arguments=call.arguments)], CallError.WRONG_NAME)
        refuse([ToolCall(name=call.name, arguments="{" + json.dumps(call.arguments))], CallError.UNREADABLE_ARGUMENTS)
        refuse([ToolCall(name=call.name, arguments={**call.arguments, "zzz": 1})], CallError.UNEXPECTED_ARGUMENT)
        (arguments,) = row["acceptable_calls"][0].values()
        for key, value in call.arguments.items():
            less = {k: v for k, v in call.arguments.items() if k != key}
            if arguments[key] and "" not in arguments[key]:
                refuse([ToolCall(name=call.name, arguments=less)], CallError.MISSING_ARGUMENT)
            other = _damaged(value)
            damage = {**less, key: other}
            refuse([ToolCall(name=call.name, arguments=damage)], CallError.WRONG_VALUE, CallError.WRONG_TYPE)
            if not isinstance(value, dict):
                odd = {**less, key: {"a": 1}}
                refuse([ToolCall(name=call.name, arguments=odd)], CallError.WRONG_TYPE, CallError.WRONG_VALUE)
    assert all(seen.values()), seen


def _damaged(value):
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value + 7919
    if isinstance(value, float):
        return value + 0.015625
    if isinstance(value, str):
        return value + "zz"
    if isinstance(value, list):
        return [*value, "zz"]
    if isinstance(value, dict):
        return {**value, "zz": 1}
    return "zz"


def test_the_gold_calls_of_conversations_match_themselves_exactly_and_not_each_other():
    calls = []
    for row in _rows("tools_glaive.jsonl"):
        for message in row["messages"]:
            made = [
                ToolCall(name=c["function"]["name"], arguments=c["function"]["arguments"])
                for c in message.get("tool_calls", ())
            ]
            if made:
                verdict = match_calls(made, acceptable_from_gold(made), tools=row["tools"], strings=Strings.EXACT)
                assert verdict.matches, (row["id"], verdict)
                calls.append((made, row["tools"]))
    assert len(calls) > 100
    for (made, tools), (other, _) in itertools.pairwise(calls):
        same = [(c.name, c.arguments) for c in made] == [(c.name, c.arguments) for c in other]
        assert match_calls(other, acceptable_from_gold(made), tools=tools, strings=Strings.EXACT).matches == same
