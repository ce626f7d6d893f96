"""An adapter that was trained on a base in 4 bits goes the whole road on that base: evaluated, bundled, served, exported."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from tunesmith.api import export
from tunesmith.cli.main import make_app
from tunesmith.errors import ServeError
from tunesmith.model.quantised import Quantisation, write_record
from tunesmith.serve.bundle import load_bundle

NF4 = Quantisation(kind="nf4", double=True)


@pytest.fixture(scope="module")
def quantised_world(run, world, tmp_path_factory):
    """The same adapter, which says that it belongs to the base in NF4."""
    from shutil import copytree

    folder = tmp_path_factory.mktemp("nf4")
    adapter = adapter_of(folder / "adapter", world)
    copytree(world.adapter.path / "adapter", adapter.path / "adapter")
    write_record(NF4, adapter.path / "adapter")
    inputs = {name: getattr(world, name) for name in ("base", "contract", "splits")} | {"adapter": adapter}
    evaluation = run("evaluate", inputs, {"dtype": "float32"}, folder)
    return dataclasses.replace(world, folder=folder, adapter=adapter, evaluation=evaluation)


def adapter_of(root, world):
    (root / "data").mkdir(parents=True)
    manifest = dataclasses.replace(world.adapter.manifest, fingerprint="nf4" * 8)
    return dataclasses.replace(world.adapter, root=root, manifest=manifest)


@pytest.fixture(scope="module")
def quantised_bundle(run, quantised_world):
    return run("bundle", quantised_world.bundle_inputs(), {"name": "desk-nf4"}, quantised_world.folder)


def test_the_card_says_on_which_base_the_adapter_belongs(quantised_bundle, bundle):
    assert "base stored in nf4, scales in 8 bits" in (quantised_bundle.path / "README.md").read_text()
    assert "base stored in" not in (bundle.path / "README.md").read_text()


def test_golden_probabilities_are_those_of_the_quantised_base(quantised_bundle, bundle):
    def recorded(made):
        return [value for golden in load_bundle(made.path).golden for value in golden.base_logprobs]

    assert recorded(quantised_bundle) != recorded(bundle)


def test_a_bundle_whose_record_is_taken_away_is_refused(quantised_bundle, tmp_path):
    from shutil import copytree

    copytree(quantised_bundle.path, tmp_path / "bundle")
    (tmp_path / "bundle" / "adapter" / "base_quantization.json").unlink()
    with pytest.raises(ServeError, match="base_quantization"):
        load_bundle(tmp_path / "bundle")


def test_the_server_answers_on_it_and_proves_it_first(run, quantised_world, quantised_bundle):
    inputs = {"bundle": quantised_bundle, "base": quantised_world.base, "splits": quantised_world.splits}
    made = run("rehearse", inputs, {"requests": 6}, quantised_world.folder)
    assert made.summary


@pytest.mark.parametrize("to", ["merged", "gguf"])
def test_an_export_is_merged_into_what_the_base_computed_with(quantised_world, quantised_bundle, tmp_path, to):
    base = quantised_world.base.path / "model"
    made = export(
        quantised_bundle.path, tmp_path / "out", to=to, base=base, dtype="float32" if to == "merged" else "F32"
    )
    agreement, elsewhere = made.manifest["agreement"], made.manifest["agreement_on_unquantised_base"]
    assert agreement["mean_kl"] < 1e-6 < 1e-4 < elsewhere["mean_kl"]
    assert made.manifest["trained_on_base_in"] == "nf4, scales in 8 bits"


def test_the_command_line_says_both_figures(quantised_world, quantised_bundle, tmp_path):
    base = quantised_world.base.path / "model"
    arguments = ["export", str(quantised_bundle.path), str(tmp_path / "out"), "--base", str(base)]
    done = CliRunner().invoke(make_app(), arguments)
    assert done.exit_code == 0, done.output
    elsewhere = json.loads((tmp_path / "out" / "export.json").read_text())["agreement_on_unquantised_base"]
    assert f"on the plain base the adapter is {elsewhere['mean_kl']:.2g} nats off" in done.output
