import json

import pytest

from tunesmith.serve.traces import open_closed_span


def read(artifact):
    return json.loads((artifact.path / "monitor.json").read_text())


@pytest.fixture(scope="module")
def report(run, world, traces):
    return run("monitor", inputs(world, traces), {}, world.folder)


def inputs(world, traces):
    return {"traces": traces, "evaluation": world.evaluation, "splits": world.splits}


def test_figures_are_those_of_the_traces(traces, report):
    found, feedback = open_closed_span(traces.path / "traces.sqlite")
    body = read(report)
    answers = [trace for trace in found if trace.status == 200]
    assert body["totals"]["requests"] == len(found)
    assert body["totals"]["answers"] == len(answers)
    assert body["kpis"]["schema_adherence"]["value"] == sum(bool(t.schema_ok) for t in answers) / len(answers)
    assert body["totals"]["ratings"] == len(feedback)
    assert body["totals"]["errors"]["model_not_found"] == 1
    assert {alert["name"]: alert["status"] for alert in body["alerts"]}["schema_adherence at least 0.95"] == "firing"


def test_drift_says_what_so_few_requests_cannot_tell(report):
    verdicts = {test["name"]: test["verdict"] for test in read(report)["drift"]}
    assert verdicts["prompt_chars"] in ("not_resolvable", "drift")
    assert read(report)["reference"]["prompts"] == 18


def test_the_page_is_self_contained(report):
    html = (report.path / "monitor.html").read_text()
    assert "<link" not in html
    assert "<script" not in html
    assert "src=" not in html
    assert "Monitor" in html


def test_prices_and_rules_change_the_report(run, world, traces):
    settings = {
        "prices": {"prompt": 1.0, "completion": 2.0},
        "alerts": [{"kpi": "latency_p95_ms", "at_most": 0.001}],
        "fields": ["intent"],
    }
    body = read(run("monitor", inputs(world, traces), settings, world.folder))
    assert body["totals"]["cost"] > 0
    assert [alert["status"] for alert in body["alerts"] if alert["name"].startswith("latency")] == ["firing"]
    assert "answer.intent" in {test["name"] for test in body["drift"]}


@pytest.mark.parametrize(
    "alert",
    [
        {"kpi": "schema_adherance", "at_least": 1},
        {"kpi": "parse_rate"},
        {"kpi": "parse_rate", "at_least": 0, "at_most": 1},
    ],
)
def test_a_rule_that_means_nothing_is_refused(run, world, traces, alert):
    with pytest.raises(ValueError, match=r"schema_adherence|either"):
        run("monitor", inputs(world, traces), {"alerts": [alert]}, world.folder)
