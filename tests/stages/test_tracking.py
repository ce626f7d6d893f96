"""Experiment trackers get what a real training logs, and cannot hurt the run that they follow."""

import importlib.util
import json
import os
import shutil
import sqlite3
import struct
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.append(str(Path(__file__).parent))
from training_process import train_in
from training_world import training_inputs

from tunesmith.api import tracking
from tunesmith.api.tracking import TrackingListener, check_trackers
from tunesmith.core.events import Silent
from tunesmith.errors import PlanError

SPEC = {"num_train_epochs": 1, "batch_size": 8, "learning_rate": 5e-3, "adapter": {"kind": "lora", "rank": 4}}
SETTINGS = {"train": {"learning_rate": 5e-3, "adapter": {"kind": "lora", "rank": 4}, "max_steps": None}}


class Heard(Silent):
    """A listener that remembers what was announced."""

    def __init__(self):
        self.said = []

    def stage_event(self, table, *, name, fields):
        if name == "say":
            self.said.append(fields["text"])


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for kind, made in training_inputs(tmp_path / "world").items():
        shutil.copytree(made.root, root / kind)
    return root


def follow(root, listener):
    with listener:
        train_in(root, SPEC, log=lambda name, fields: listener.stage_event("train", name=name, fields=fields))
        listener.stage_finished("train", status="done", seconds=1.0, summary={})
    return [json.loads(line) for line in (root / "out" / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_shows_every_figure_of_every_step_and_validation(root, tmp_path):
    listener = TrackingListener(Silent(), ["tensorboard"], run="desk", settings=SETTINGS, folder=tmp_path / "tracking")
    metrics = follow(root, listener)
    read = EventAccumulator(str(tmp_path / "tracking" / "tensorboard" / "desk-train"))
    read.Reload()
    steps = [record for record in metrics if "loss" in record]
    validations = [record for record in metrics if "val_loss" in record]
    assert [event.step for event in read.Scalars("train/loss")] == [record["step"] for record in steps]
    for key in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "supervised_per_second"):
        shown = [event.value for event in read.Scalars(f"train/{key}")]
        assert shown == pytest.approx([record[key] for record in steps], rel=1e-6)
    assert [event.value for event in read.Scalars("eval/val_loss")] == pytest.approx(
        [record["val_loss"] for record in validations], rel=1e-6
    )
    (settings,) = (tmp_path / "tracking" / "tensorboard" / "desk-train").rglob("hparams.yml")
    assert "adapter.rank: 4" in settings.read_text()


def test_a_tracker_that_fails_is_said_and_the_run_goes_on(root, tmp_path, monkeypatch):
    honest = tracking._tracker

    def failing(name, **where):
        made = honest(name, **where)
        made.log = lambda figures, step: 1 / 0
        return made

    monkeypatch.setattr(tracking, "_tracker", failing)
    heard = Heard()
    listener = TrackingListener(heard, ["tensorboard"], run="desk", settings=SETTINGS, folder=tmp_path / "tracking")
    assert len([record for record in follow(root, listener) if "loss" in record]) == 5
    (said,) = heard.said
    assert "tensorboard failed and is left out from here on: ZeroDivisionError" in said


def test_without_trackers_every_call_is_passed_on(root, tmp_path):
    heard = Heard()
    listener = TrackingListener(heard, [], run="desk", settings={}, folder=tmp_path / "tracking")
    listener.stage_event("train", name="say", fields={"text": "hello"})
    follow(root, listener)
    assert heard.said == ["hello"]
    assert not (tmp_path / "tracking").exists()


@pytest.mark.parametrize(
    ("name", "said", "hint"),
    [("tensorbord", "there is no tracker", "tensorboard"), ("mlflow", "needs the package mlflow", "tunesmith[mlflow]")],
)
def test_a_tracker_that_cannot_be_had_is_refused_before_the_run(monkeypatch, name, said, hint):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    with pytest.raises(PlanError, match=said) as error:
        check_trackers([name])
    assert hint in str(error.value)


def train_with(name, root, tmp_path):
    heard = Heard()
    listener = TrackingListener(heard, [name], run="desk", settings=SETTINGS, folder=tmp_path / "tracking")
    metrics = follow(root, listener)
    assert heard.said == []
    losses = {record["step"]: record["loss"] for record in metrics if "loss" in record}
    validations = {record["step"]: record["val_loss"] for record in metrics if "val_loss" in record}
    return losses, validations


def test_mlflow_holds_every_loss_and_the_settings(root, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    losses, validations = train_with("mlflow", root, tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'tracking' / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("desk").experiment_id])
    assert run.info.run_name == "train"
    assert run.info.status == "FINISHED"
    assert {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")} == losses
    held = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "eval/val_loss")}
    assert held == validations
    assert run.data.params["adapter.rank"] == "4"


def test_trackio_holds_every_loss_and_the_settings(root, tmp_path, monkeypatch):
    if importlib.util.find_spec("trackio") is None:  # It reads TRACKIO_DIR when it is imported.
        pytest.skip("trackio is not installed")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    losses, validations = train_with("trackio", root, tmp_path)
    (database,) = (tmp_path / "tracking" / "trackio").glob("desk*.db")
    with sqlite3.connect(database) as connection:
        rows = [(step, json.loads(text)) for step, text in connection.execute("SELECT step, metrics FROM metrics")]
        (config,) = connection.execute("SELECT config FROM configs").fetchone()
    assert {step: found["train/loss"] for step, found in rows if "train/loss" in found} == losses
    assert {step: found["eval/val_loss"] for step, found in rows if "eval/val_loss" in found} == validations
    assert json.loads(config)["adapter.rank"] == 4


def wandb_records(data):
    """Read wandb's offline file: 7 bytes, then a log as LevelDB writes it, in blocks of 32 KiB from the file's start."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            yield Record.FromString(parts)
            parts = b""


def test_wandb_offline_holds_every_loss_and_the_settings(root, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    losses, validations = train_with("wandb", root, tmp_path)
    (file,) = (tmp_path / "tracking" / "wandb").rglob("*.wandb")
    history, config = {}, {}
    for record in wandb_records(file.read_bytes()):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            history.setdefault(items["_step"], {}).update(items)
        config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
    assert {step: found["train/loss"] for step, found in history.items() if "train/loss" in found} == losses
    assert {step: found["eval/val_loss"] for step, found in history.items() if "eval/val_loss" in found} == validations
    assert config["adapter.rank"] == 4
