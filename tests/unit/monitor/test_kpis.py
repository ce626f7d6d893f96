import json

import pytest

from tunesmith.monitor.alerts import Rule, check_rules
from tunesmith.monitor.intervals import Figure
from tunesmith.monitor.kpis import KPI_NAMES, Prices, View, answer_fields, kpis, over_time, segments, totals
from tunesmith.monitor.report import Reference, build_report, label_fields
from tunesmith.monitor.view import monitor_page
from tunesmith.types import Feedback, Trace


def trace(number, **changes):
    values = dict(
        id=f"t{number}",
        time=1_000_000.0 + 60 * number,
        model="tuned",
        contract_sha256="c",
        adapter_sha256="a",
        status=200,
        messages=({"role": "user", "content": f"message {number}"},),
        completion='{"intent":"refund","urgent":true}',
        prompt_tokens=10,
        completion_tokens=5,
        finish_reason="stop",
        parse_ok=True,
        schema_ok=True,
        latency_ms=100.0 + number,
        ttft_ms=10.0,
    )
    return Trace(**{**values, **changes})


def rate(number, rating=None, **changes):
    return Feedback(trace_id=f"t{number}", time=changes.pop("time", 0.0), rating=rating, **changes)


def test_quality_counts_answers_alone_and_errors_count_all_requests():
    view = View.of(
        [
            trace(0),
            trace(1, schema_ok=False),
            trace(2, status=400, schema_ok=None),
            trace(3, status=504, schema_ok=None),
        ],
        [],
    )
    found = kpis(view)
    assert (found["schema_adherence"].value, found["schema_adherence"].n) == (0.5, 2)
    assert (found["client_error_rate"].value, found["server_error_rate"].value) == (0.25, 0.25)
    assert found["latency_p50_ms"].n == 2


def test_what_was_not_measured_is_not_counted_as_bad():
    found = kpis(View.of([trace(0, schema_ok=None), trace(1)], []))
    assert (found["schema_adherence"].value, found["schema_adherence"].n) == (1.0, 1)
    assert found["feedback_win_rate"].value is None


def test_the_last_rating_counts_and_neutral_ones_are_no_loss():
    feedback = [rate(0, -1, time=1.0), rate(0, 1, time=2.0), rate(1, 0), rate(2, -1), rate(3, None, correction="x")]
    found = kpis(View.of([trace(n) for n in range(4)], feedback))
    assert (found["feedback_win_rate"].value, found["feedback_win_rate"].n) == (0.5, 2)
    assert found["correction_rate"].value == 0.25


def test_flags_are_told_apart_by_side():
    traces = [
        trace(0, guard_flags=("input:injection.override",)),
        trace(1, guard_flags=("output:schema",)),
        trace(2, guard_flags=("input:pii",)),
        trace(3),
    ]
    found = {name: figure.value for name, figure in kpis(View.of(traces, [])).items()}
    assert (found["flagged_rate"], found["input_flagged_rate"], found["output_flagged_rate"], found["pii_rate"]) == (
        0.75,
        0.25,
        0.25,
        0.25,
    )


def test_a_retry_of_our_own_is_no_deviation_of_the_client():
    traces = [
        trace(0, deviation={"retry": "constrained"}, attempts=2),
        trace(1, deviation={"seed": {}}),
        trace(2),
        trace(3),
    ]
    found = kpis(View.of(traces, []))
    assert (found["deviation_rate"].value, found["retry_rate"].value) == (0.25, 0.25)


def test_cost_is_tokens_times_price_and_absent_without_prices():
    view = View.of([trace(0), trace(1)], [])
    assert totals(view, Prices(prompt=1.0, completion=2.0))["cost"] == pytest.approx((20 * 1 + 10 * 2) / 1e6)
    assert "cost" not in totals(view, None)


def test_segments_cover_every_answer_once_in_each_dimension():
    traces = [trace(n, tags={"team": "ab"[n % 2]}, streamed=n % 3 == 0) for n in range(10)]
    found = segments(View.of(traces, []), fields=["intent"])
    assert set(found) == {"model", "streamed", "prompt_length", "tag.team", "answer.intent"}
    for values in found.values():
        assert sum(entry["n"] for entry in values.values()) == 10


def test_many_values_of_a_segment_end_in_other_and_none_is_lost():
    traces = [trace(n, tags={"customer": str(n)}) for n in range(40)]
    found = segments(View.of(traces, []), fields=[])["tag.customer"]
    assert found["(other)"]["n"] == 28
    assert sum(entry["n"] for entry in found.values()) == 40


@pytest.mark.parametrize("spread", [0.0, 30.0, 5_000.0, 1e6, 1e8, 1e10])
def test_windows_hold_every_request_and_stay_few(spread):
    traces = [trace(n, time=1e9 + spread * n / 50) for n in range(50)]
    windows = over_time(View.of(traces, []))
    assert sum(window["n"] for window in windows) == 50
    assert len(windows) <= 24


def test_answer_fields_reads_flat_values_and_nothing_else():
    assert answer_fields('{"a": "x", "b": true, "c": [1], "d": null, "e": 2}') == {"a": "x", "b": "true", "e": "2"}
    for text in (None, "", "x", "[1]", "[" * 100_000):
        assert answer_fields(text) == {}


def test_label_fields_are_those_with_few_values():
    answers = [json.dumps({"intent": "ab"[n % 2], "id": n, "text": f"words {n}"}) for n in range(40)]
    assert label_fields(answers) == ["intent"]


@pytest.mark.parametrize(
    ("figure", "status"),
    [
        (Figure(value=0.99, low=0.96, high=1.0, n=300), "ok"),
        (Figure(value=0.97, low=0.90, high=0.99, n=50), "watch"),
        (Figure(value=0.94, low=0.90, high=0.96, n=50), "watch"),
        (Figure(value=0.80, low=0.70, high=0.90, n=50), "firing"),
        (Figure(value=None, low=None, high=None, n=0), "unknown"),
    ],
)
def test_an_alert_fires_only_where_the_whole_interval_misses(figure, status):
    (alert,) = check_rules([Rule(kpi="x", at_least=0.95)], {"x": figure})
    assert alert.status == status


def test_an_unbounded_interval_cannot_be_ok():
    open_end = Figure(value=100.0, low=80.0, high=None, n=20)
    assert check_rules([Rule(kpi="x", at_most=500.0)], {"x": open_end})[0].status == "watch"
    assert check_rules([Rule(kpi="x", at_most=50.0)], {"x": open_end})[0].status == "firing"


def make_report(traces, feedback=()):
    answers = tuple(json.dumps({"intent": "refund" if n % 3 else "login", "urgent": n % 2 == 0}) for n in range(60))
    reference = Reference(name="test", prompts=tuple(f"message {n}" for n in range(60)), answers=answers)
    return build_report(traces, feedback, reference=reference)


def test_the_report_and_its_page_hold_for_no_traces_one_trace_and_many():
    for traces in (
        [],
        [trace(0)],
        [trace(n, completion=None if n == 3 else '{"intent":"refund","urgent":false}') for n in range(80)],
    ):
        report = make_report(traces)
        json.dumps(report, allow_nan=False)
        assert set(report["kpis"]) == set(KPI_NAMES)
        assert report["totals"]["requests"] == len(traces)
        html = monitor_page(report)
        assert html.startswith("<!doctype html>")
        assert 'href="http' not in html
        assert "src=" not in html
        assert "<script" not in html


def test_page_escapes_what_users_sent():
    html = monitor_page(make_report([trace(0, tags={"x": "<script>alert(1)</script>"})]))
    assert "<script>alert" not in html


def test_answers_of_one_kind_alone_are_drift_against_a_mixed_reference():
    report = make_report([trace(n) for n in range(80)])
    verdicts = {test["name"]: test["verdict"] for test in report["drift"]}
    assert verdicts["answer.urgent"] == "drift"
    assert any(alert["status"] == "firing" and "answer.urgent" in alert["name"] for alert in report["alerts"])
