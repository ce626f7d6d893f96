"""A recipe of toy stages runs, is cached, and reruns from what changed."""

from tunesmith.core.events import Silent
from tunesmith.core.plan import make_plan
from tunesmith.core.recipe import load_recipe
from tunesmith.core.run import Machine, execute

MACHINE = Machine(device="cpu", workers=1)


def run(path, toys, store, *overrides, **limits):
    return execute(
        make_plan(load_recipe(path, toys, overrides=overrides), store, **limits),
        store,
        listener=Silent(),
        machine=MACHINE,
    )


def statuses(record):
    return {name: stage.status for name, stage in record.stages.items()}


def test_an_unchanged_recipe_runs_nothing(recipe_file, toys, store):
    assert statuses(run(recipe_file, toys, store)) == {"number": "done", "double": "done", "add": "done"}
    assert statuses(run(recipe_file, toys, store)) == {"number": "cached", "double": "cached", "add": "cached"}


def test_a_changed_setting_reruns_from_there_on_and_says_why(recipe_file, toys, store):
    first = run(recipe_file, toys, store)
    plan = make_plan(load_recipe(recipe_file, toys, overrides=["double.rate=1e-4"]), store)
    assert [(p.name, p.status.value) for p in plan.stages] == [("number", "cached"), ("double", "run"), ("add", "run")]
    assert plan.stages[1].reason == f"rate 0.001 -> 0.0001 since run {first.run}"
    assert plan.stages[2].reason == f"input right (double) changed since run {first.run}"
