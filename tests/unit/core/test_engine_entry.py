"""The recipe's `engine` entry: three spellings, errors with their line, and no place in any fingerprint."""

from pathlib import Path

import pytest

from tunesmith.core.engine import parse_engine
from tunesmith.core.events import Silent
from tunesmith.core.plan import make_plan
from tunesmith.core.recipe import parse_recipe
from tunesmith.core.run import Machine, execute
from tunesmith.core.runs import artifact_of
from tunesmith.errors import RecipeError
from tunesmith.types import EngineChoice

TOY = "number: {}\n"


def engine_of(text, toys, *overrides):
    return parse_recipe(f"engine: {text}\n{TOY}", toys, path=Path("r.yaml"), overrides=overrides).engine


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("local", EngineChoice()),
        ("ray", EngineChoice(kind="ray")),
        ("ray://127.0.0.1:6379", EngineChoice(kind="ray", address="127.0.0.1:6379")),
        (
            '{kind: ray, address: "127.0.0.1:6379", num_workers: 2}',
            EngineChoice(kind="ray", address="127.0.0.1:6379", num_workers=2),
        ),
        ("{kind: ray}", EngineChoice(kind="ray")),
    ],
)
def test_each_spelling_is_one_choice(text, choice, toys):
    assert engine_of(text, toys) == choice
    assert engine_of(text, toys).where == "r.yaml:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[ray]", "engine names no engine"),
        ("null", "engine names no engine"),
        ("'ray://'", "engine names no engine"),
        ("{address: a}", "engine does not say its kind"),
        ("{kind: ray, adress: a}", "nearest: address"),
        ("{kind: ray, address: 6379}", "engine.address is no text"),
        ("{kind: ray, num_workers: 0}", "at least 1"),
        ("{kind: ray, num_workers: true}", "at least 1"),
    ],
)
def test_what_is_no_engine_is_refused_with_its_line(text, words, toys):
    with pytest.raises(RecipeError) as caught:
        engine_of(text, toys)
    assert words in str(caught.value)
    assert "r.yaml:1" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_recipe_without_the_entry_chooses_none_and_an_override_chooses_one(toys):
    assert parse_recipe(TOY, toys, path=Path("r.yaml")).engine is None
    assert parse_recipe(TOY, toys, path=Path("r.yaml"), overrides=["engine=ray"]).engine == EngineChoice(kind="ray")
    assert engine_of("ray", toys, "engine={kind: ray, num_workers: 3}") == EngineChoice(kind="ray", num_workers=3)
    assert engine_of("{kind: ray}", toys, "engine.num_workers=3") == EngineChoice(kind="ray", num_workers=3)
    assert parse_engine("ray", where="--engine ray").where == "--engine ray"


def test_the_engine_is_in_no_fingerprint_but_in_the_manifest(toys, store):
    plain = make_plan(parse_recipe(TOY, toys, path=Path("r.yaml")), store)
    on_ray = make_plan(parse_recipe(f"engine: ray\n{TOY}", toys, path=Path("r.yaml")), store)
    assert [stage.fingerprint for stage in plain.stages] == [stage.fingerprint for stage in on_ray.stages]
    machine = Machine(device="cpu", workers=1, engine=EngineChoice(kind="ray", address="127.0.0.1:6379"))
    record = execute(on_ray, store, listener=Silent(), machine=machine)
    artifact = artifact_of(store, record.stages["number"])
    assert artifact.manifest.provenance["engine"] == "ray://127.0.0.1:6379"
