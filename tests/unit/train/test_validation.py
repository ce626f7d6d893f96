"""When a figure is measured, and what its values decide."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.train.checkpoint import Counters
from tunesmith.train.validation import Figure, judged, measure_due


def figure(name="val_loss", *, better="lower", every=4, value=1.0):
    return Figure(name=name, better=better, every=every, measure=lambda: value)


def due_at(figures, step, *, last=10, last_evaluated=-1):
    return set(measure_due(figures, Counters(step=step, last_evaluated=last_evaluated), last_step=last))


def test_a_figure_is_due_before_the_first_step_at_its_interval_and_after_the_last():
    loss, metric = figure(every=4), figure("exact_match", every=8)
    assert [step for step in range(11) if due_at([loss, metric], step)] == [0, 4, 8, 10]
    assert [step for step in range(11) if "exact_match" in due_at([loss, metric], step)] == [0, 8, 10]


def test_nothing_is_measured_twice_after_one_step():
    assert due_at([figure()], 4, last_evaluated=4) == set()


def test_a_run_that_resumes_between_two_validations_measures_nothing_there():
    assert due_at([figure()], 5) == set()


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.sampled_from(["lower", "higher"]))
def test_the_best_step_is_the_first_with_the_best_value_after_training_began(values, better):
    deciding = figure(better=better)
    counters, kept = Counters(), []
    counters, improved = judged(counters, {"val_loss": 0.0}, by=deciding)
    assert not improved
    for step, value in enumerate(values, start=1):
        counters, improved = judged(replace(counters, step=step), {"val_loss": value}, by=deciding)
        kept += [step] if improved else []
    best = (min if better == "lower" else max)(values)
    assert counters.best == {"val_loss": best}
    assert counters.best_step == kept[-1] == values.index(best) + 1
    assert counters.evals_since_best == len(values) - counters.best_step
    assert counters.first == {"val_loss": 0.0}


def test_patience_counts_measurements_of_what_decides_alone():
    metric = figure("exact_match", better="higher")
    counters, _ = judged(Counters(step=1), {"val_loss": 1.0, "exact_match": 0.5}, by=metric)
    counters, improved = judged(replace(counters, step=2), {"val_loss": 0.1}, by=metric)
    assert not improved
    assert counters.evals_since_best == 0
    counters, improved = judged(replace(counters, step=3), {"val_loss": 0.1, "exact_match": 0.5}, by=metric)
    assert not improved
    assert counters.evals_since_best == 1
    assert counters.best == {"val_loss": 1.0, "exact_match": 0.5}


def test_without_anything_that_decides_nothing_is_best():
    counters, improved = judged(Counters(step=3), {"general_loss": 2.0}, by=None)
    assert not improved
    assert counters.best == {}
    assert counters.last_evaluated == 3


@pytest.mark.parametrize(("better", "value", "other", "beats"), [("lower", 1, 2, True), ("higher", 1, 2, False)])
def test_better_is_what_the_figure_says(better, value, other, beats):
    assert figure(better=better).beats(value, other) is beats
    assert not figure(better=better).beats(value, value)


def test_something_is_gained_once_the_best_value_beats_the_bases():
    loss, metric = figure(), figure("exact_match", better="higher")
    base = {"val_loss": 2.0, "exact_match": 0.5}
    assert not loss.gained({}, over=base)
    assert not loss.gained({"val_loss": 2.0}, over=base)
    assert loss.gained({"val_loss": 1.9, "exact_match": 0.5}, over=base)
    assert not metric.gained({"val_loss": 1.9, "exact_match": 0.5}, over=base)
    assert metric.gained({"val_loss": 2.5, "exact_match": 0.6}, over=base)
