"""A judge over HTTP: verdicts are read strictly, failures are counted apart, refusals of the endpoint stop the run."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import DataError, GateError, ServeError
from tunesmith.evals.judge import (
    ATTEMPTS,
    ChatJudge,
    FailureKind,
    JudgeFailure,
    Pair,
    Structure,
    corrected_win_rate,
    judge_pairs,
    pair_prompt,
    read_pair_prompt,
    require_few_failures,
)
from tunesmith.evals.judge_controls import always_first, endpoint, prefers_longer
from tunesmith.evals.preference import Choice, preference

PAIRS = [Pair(item=f"q{i}", prompt=f"p{i}", candidate="c" * (i + 2), baseline="b") for i in range(6)]


def judge(transport, **settings):
    waits = settings.setdefault("waits", [])
    return ChatJudge(
        client=httpx.Client(transport=transport), url="http://judge/v1/", model="m", sleep=waits.append,
        api_key=settings.get("api_key"), structure=settings.get("structure", Structure.JSON_SCHEMA),
    )  # fmt: skip


def reply(content, *, finish="stop", **message):
    body = {"choices": [{"message": {"content": content, **message}, "finish_reason": finish}]}
    return httpx.MockTransport(lambda request: httpx.Response(200, json=body))


def test_verdicts_come_back_over_http_in_both_orders():
    judged = judge_pairs(PAIRS, judge(endpoint(prefers_longer())).choose, rater="j", workers=3)
    assert (judged.num_asked, judged.num_failed) == (12, 0)
    assert [vote.item for vote in judged.votes[:4]] == ["q0", "q0", "q1", "q1"]
    assert preference(judged.votes).win_rate.value == 1
    biased = judge_pairs(PAIRS, judge(endpoint(always_first())).choose, rater="j")
    assert preference(biased.votes).win_rate.value == 0.5


def test_the_request_is_what_openai_compatible_servers_take():
    seen = []

    def record(request):
        seen.append((request, json.loads(request.content)))
        return httpx.Response(200, json={"choices": [{"message": {"content": '{"reason": "", "verdict": "tie"}'}}]})

    asked = judge(httpx.MockTransport(record), api_key="k")
    assert asked.choose("p", "a", "b") is Choice.TIE
    request, body = seen[0]
    assert str(request.url) == "http://judge/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer k"
    assert body["temperature"] == 0
    assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == [
        "first",
        "second",
        "tie",
    ]
    judge(httpx.MockTransport(record), structure=Structure.PROMPT).choose("p", "a", "b")
    assert "response_format" not in seen[1][1]
    assert body["seed"] == seen[1][1]["seed"]


@pytest.mark.parametrize(
    ("content", "finish", "kind"),
    [
        ("The first answer is better.", "stop", FailureKind.NO_VERDICT),
        ('I say {"verdict": "first"}', "stop", FailureKind.NO_VERDICT),
        ('{"verdict": "First"}', "stop", FailureKind.NO_VERDICT),
        ('{"verdict": "not first"}', "stop", FailureKind.NO_VERDICT),
        ('{"verdict": ["first"]}', "stop", FailureKind.NO_VERDICT),
        ('{"verdict": "first", "verdict": "second"}', "stop", FailureKind.NO_VERDICT),
        ('{"reason": "first"}', "stop", FailureKind.NO_VERDICT),
        ("[1]", "stop", FailureKind.NO_VERDICT),
        (None, "stop", FailureKind.NO_VERDICT),
        ("", "stop", FailureKind.NO_VERDICT),
        ('{"verdict": "first"}', "length", FailureKind.TRUNCATED),
        ("", "content_filter", FailureKind.REFUSED),
    ],
)
def test_a_reply_that_is_no_verdict_is_a_failure_and_never_a_tie(content, finish, kind):
    found = judge(reply(content, finish=finish)).choose("p", "a", "b")
    assert isinstance(found, JudgeFailure)
    assert found.kind is kind


def test_a_declared_refusal_and_a_body_that_is_no_completion_are_failures():
    assert judge(reply(None, refusal="I will not")).choose("p", "a", "b").kind is FailureKind.REFUSED
    for body in ({"choices": []}, {"error": "x"}, [1]):
        transport = httpx.MockTransport(lambda request, body=body: httpx.Response(200, json=body))
        assert judge(transport).choose("p", "a", "b").kind is FailureKind.NO_VERDICT
    html = httpx.MockTransport(lambda request: httpx.Response(200, text="<html>"))
    assert judge(html).choose("p", "a", "b").kind is FailureKind.NO_VERDICT


def test_passing_troubles_are_tried_again_and_lasting_ones_are_failures():
    waits = []
    spoiled = [httpx.Response(503), httpx.Response(429, headers={"retry-after": "7"}), None]
    asked = judge(endpoint(always_first(), spoil=lambda n: spoiled[min(n, 2)]), waits=waits)
    assert asked.choose("p", "a", "b") is Choice.FIRST
    assert waits[1] == 7
    down = judge(endpoint(always_first(), spoil=lambda n: httpx.Response(500)), waits=waits)
    found = down.choose("p", "a", "b")
    assert found.kind is FailureKind.UNREACHABLE
    assert str(ATTEMPTS) in found.detail

    def unplugged(request):
        raise httpx.ConnectError("no route", request=request)

    assert judge(httpx.MockTransport(unplugged)).choose("p", "a", "b").kind is FailureKind.UNREACHABLE


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_an_endpoint_that_refuses_the_request_stops_the_run(status):
    asked = judge(endpoint(always_first(), spoil=lambda n: httpx.Response(status, text="bad model")))
    with pytest.raises(ServeError, match="bad model"):
        judge_pairs(PAIRS, asked.choose, rater="j")


def test_failures_are_counted_apart_and_too_many_close_the_gate():
    asked = judge(endpoint(prefers_longer(), spoil=lambda n: httpx.Response(200, json={}) if n % 4 == 0 else None))
    judged = judge_pairs(PAIRS, asked.choose, rater="j")
    assert (judged.num_failed, len(judged.votes)) == (3, 9)
    assert {failure.item for failure in judged.failures} == {"q0", "q2", "q4"}
    assert preference(judged.votes).win_rate.value == 1
    with pytest.raises(GateError, match=r"3 failed \(25.0%\): 3 no_verdict; such as ") as caught:
        require_few_failures(judged.failures, judged.num_asked)
    assert "turn on structured output" in str(caught.value)
    require_few_failures(judged.failures[:2], 100)
    with pytest.raises(GateError, match="nothing"):
        require_few_failures([], 0)


def test_equal_answers_are_a_tie_and_the_judge_is_not_asked():
    def never(prompt, first, second):
        raise AssertionError("asked")

    judged = judge_pairs([Pair(item="i", prompt="p", candidate="x", baseline="x")], never, rater="j")
    assert [vote.choice for vote in judged.votes] == [Choice.TIE, Choice.TIE]


@given(st.text(), st.text(), st.text())
def test_no_answer_can_break_out_of_its_quotation(prompt, first, second):
    assert read_pair_prompt(pair_prompt(prompt, first, second)) == (prompt, first, second)


def test_only_pair_prompts_are_read_as_such():
    with pytest.raises(DataError, match="no prompt about a pair"):
        read_pair_prompt("hello")


def test_a_judge_corrected_by_people_covers_the_true_win_rate():
    source = np.random.default_rng(2)
    covered, raw = 0, []
    for _ in range(300):
        truth = source.random(400) < 0.7
        says = np.where(truth, source.random(400) < 0.9, source.random(400) < 0.35)
        scores = {str(i): float(said) for i, said in enumerate(says)}
        people = {str(i): float(t) for i, t in enumerate(truth[:120])}
        found = corrected_win_rate(scores, people)
        covered += found.low <= 0.7 <= found.high
        raw.append(says.mean())
    assert abs(np.mean(raw) - 0.735) < 0.01
    assert 0.92 <= covered / 300 <= 0.99


def test_a_judge_without_people_to_check_it_or_worse_than_chance_cannot_be_corrected():
    with pytest.raises(DataError, match="both ways"):
        corrected_win_rate({"a": 1.0, "b": 0.0}, {"a": 1.0})
    people = {str(i): float(i % 2) for i in range(20)}
    with pytest.raises(DataError, match="better than chance"):
        corrected_win_rate({item: 1 - score for item, score in people.items()}, people)
