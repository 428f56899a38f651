"""Both stages resume exactly, and leave a run folder that others can read."""

from __future__ import annotations

import csv
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file

from tests.data.training.runs import (
    STAGES,
    classifier_config,
    segmenter_config,
    stage_of,
    stopped_by,
    train,
    train_until_the_power_fails,
)
from tumorlens.classification.predict import Classifier
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.training import run as run_module
from tumorlens.pipeline.cli.app import app
from tumorlens.segmentation.predict import Segmenter


@pytest.fixture(scope="module")
def whole_runs(phantom_set, tmp_path_factory):
    """A run of two epochs of each stage that was never stopped: stage, folder, card."""
    out = tmp_path_factory.mktemp("whole")
    runs = {}
    for name in STAGES:
        stage = stage_of(name, phantom_set, epoch_slices=16)
        runs[name] = stage, out / name, train(stage.config, out / name, plots=True, command="tumorlens train ...")
    return runs


def same_state(one, other):
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("classification", 0),
        ("segmentation", 0),
        ("classification", 1),
        pytest.param("segmentation", 1, marks=pytest.mark.slow),
    ],
)
def test_resume_continues_exactly(name, workers, whole_runs, tmp_path):
    """Also with processes that augment ahead, which change nothing in a whole run."""
    stage, whole, card = whole_runs[name]
    config = replace(stage.config, workers=workers)
    train_until_the_power_fails(config, tmp_path)
    resumed = train(config, tmp_path, resume=True)

    last = [torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (whole, tmp_path)]
    assert same_state(last[0]["state_dict"], last[1]["state_dict"])
    assert resumed["metrics"] == card["metrics"]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_a_resumed_run_draws_the_same_dropout(phantom_set, tmp_path):
    config = classifier_config(phantom_set, arch="mlp", epoch_slices=16)
    train(config, tmp_path / "whole")
    train_until_the_power_fails(config, tmp_path / "cut")
    train(config, tmp_path / "cut", resume=True)
    whole, cut = (load_file(tmp_path / name / "classifier.safetensors") for name in ("whole", "cut"))
    assert same_state(whole, cut)


def test_a_run_that_validates_once_can_be_stopped_before_and_ends_with_its_last_epoch(phantom_set, tmp_path):
    config = classifier_config(phantom_set, arch="mlp", validate_every=2)
    train_until_the_power_fails(config, tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    card = train(config, tmp_path, resume=True)
    assert card["best_epoch"] == 1
    assert card["metrics"]["validation"]["slice"]["accuracy"] is not None  # measured once, after training
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], bool(row["train_loss"])) for row in rows] == [("0", True), ("1", True)]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_stopped_command_says_how_to_continue(phantom_set, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "make_trainer", stopped_by(KeyboardInterrupt(), run_module.make_trainer))
    handler = signal.getsignal(signal.SIGINT)
    arguments = ["--data", phantom_set, "--out", tmp_path / "run", "--init", "none", "--epochs", 2, "--size", 64]
    done = CliRunner().invoke(app, ["train", "classification", "--arch", "mlp", *(str(a) for a in arguments)])
    signal.signal(signal.SIGINT, handler)  # Lightning turns it off on its way out
    assert done.exit_code == 130
    assert done.stderr.strip().endswith("tumorlens: stopped; go on with --resume")
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("name", STAGES)
def test_the_run_folder_is_complete_and_its_weights_load(name, whole_runs):
    stage, out, card = whole_runs[name]
    files = {p.name for p in out.iterdir()}
    weights = stage.weights
    assert {"config.yaml", "metrics.csv", "curves.png", f"{weights}.safetensors", f"{weights}.json"} <= files
    picture = {"classification": "confusion_test.png", "segmentation": "dice_test.png"}[name]
    assert picture in files
    with Image.open(out / picture) as drawn, Image.open(out / "curves.png") as curves:
        assert min(*drawn.size, *curves.size) > 300
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 2
    assert json.loads((out / f"{weights}.json").read_text()) == card
    assert card["n_slices"] == {"train": 24, "validation": 8, "test": 8}
    assert card["command"] == "tumorlens train ..."
    loader = Classifier if name == "classification" else Segmenter
    model = loader.load(out / f"{weights}.safetensors", "cpu")
    assert len(model.predict(np.zeros((2, 64, 64), np.uint8))) == 2


def test_patients_that_the_initial_weights_know_are_reported(phantom_set, whole_runs, tmp_path):
    """Fold 0 was tested there and fold 1 validated; folds 2 to 4 were learned from."""
    _, out, _ = whole_runs["classification"]
    init = str(out / "classifier.safetensors")
    lines = []
    config = classifier_config(phantom_set, init=init, fold=4, epochs=1, epoch_slices=8)
    train(config, tmp_path, say=lines.append)
    assert "initial weights: 77 of 77 tensors from classifier.safetensors; input of 64 pixels, as they learned" in lines
    (warning,) = [line for line in lines if line.startswith("warning: the initial")]
    assert warning.startswith("warning: the initial weights have learned from 4 of the 4 test patients")


@pytest.mark.parametrize("name", STAGES)
def test_a_run_of_one_epoch_has_nothing_to_choose(name, phantom_set, tmp_path):
    train(stage_of(name, phantom_set, epochs=1, epoch_slices=8).config, tmp_path)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt"}


@pytest.mark.parametrize("name", STAGES)
def test_a_run_is_not_overwritten(name, phantom_set, tmp_path):
    config = stage_of(name, phantom_set).config
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match="use --resume"):
        train(config, tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"epochs": 99}))
    with pytest.raises(InputError, match="began with epochs = 99, not 2"):
        train(config, tmp_path, resume=True)
    with pytest.raises(InputError, match="nothing to resume"):
        train(config, tmp_path / "new", resume=True)


def test_a_damaged_checkpoint_is_named(phantom_set, tmp_path):
    config = classifier_config(phantom_set, arch="mlp", epochs=1, epoch_slices=8)
    train(config, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"last\.ckpt: the checkpoint is damaged .*; put a whole copy there, or train"):
        train(replace(config, epochs=2), tmp_path, resume=True)


def test_a_set_without_masks_trains_no_segmenter(phantom_set, tmp_path):
    lines = [line.split(",") for line in (phantom_set / "index.csv").read_text().splitlines()]
    (tmp_path / "index.csv").write_text("\n".join(",".join([c[0], *c[2:]]) for c in lines))
    config = segmenter_config(f"{tmp_path / 'index.csv'}@{phantom_set}", size=32, duplicates="drop")
    lines = []
    with pytest.raises(InputError, match="no training slice has a tumor mask"):
        train(config, tmp_path / "run", say=lines.append)
    assert "left out 30 slices without a label or mask" in lines[-1]


def test_a_missing_class_is_reported(phantom_set, tmp_path):
    rows = [r for r in (phantom_set / "index.csv").read_text().splitlines() if "no_tumor" not in r]
    (tmp_path / "index.csv").write_text("\n".join(rows))
    data = f"{tmp_path / 'index.csv'}@{phantom_set}"
    named = ",".join(CLASSES)
    config = classifier_config(data, arch="mlp", size=32, epochs=1, duplicates="drop", classes=named)
    lines = []
    card = train(config, tmp_path / "run", say=lines.append)
    assert any("no training slice shows no_tumor" in line for line in lines)
    assert card["classes_in_training"] == ["glioma", "meningioma", "pituitary"]
    assert card["classes"] == list(CLASSES)


@pytest.mark.parametrize(
    ("stage", "options", "reason"),
    [
        ("classification", ["--device", "cuda:99"], "device 'cuda:99' is not there"),
        ("classification", ["--precision", "fp8"], "precision 'fp8' is not one of auto, bf16, fp32"),
        (
            "classification",
            ["--frozen", "--arch", "cnn"],
            "--frozen keeps the initial weights of cnn; give it some with --init FILE",
        ),
        (
            "classification",
            ["--arch", "cnn", "--small-share", "0.5", "--small-size", "96"],
            "cnn does not take inputs of 96 pixels",
        ),
        (
            "classification",
            ["--arch", "mlp", "--freeze-stem", "--init", "imagenet"],
            "layer 'layer1' cannot be frozen: this network has layers.1, layers.4, and layers.7 has to learn",
        ),
        ("classification", ["--logger", "wandb"], "--logger wandb needs the package wandb, which is not installed"),
        (
            "classification",
            ["--best-by", "auc"],
            "'auc' is not one of 'macro_f1', 'accuracy', 'balanced_accuracy', 'loss'",
        ),
        ("classification", ["--out-of-fold", "/nowhere/cv"], "/nowhere/cv: neither folds of a cross-validation"),
        (
            "classification",
            ["--epochs", "5", "--validate-every", "2"],
            "--epochs 5 is not a multiple of --validate-every 2",
        ),
        (
            "classification",
            ["--freeze-stem"],
            "--freeze-stem keeps the first weights of these layers; give it some with --init FILE",
        ),
        (
            "classification",
            ["--split", "official", "--out-of-fold", "cv"],
            "--out-of-fold trains on all patients; leave --split official out",
        ),
        ("classification", ["--split", "all"], "needs runs on held-out patients (--out-of-fold)"),
        ("classification", ["--out", "/proc/nowhere/run"], "/proc/nowhere/run: --out cannot be written"),
        (
            "segmentation",
            ["--arch", "plain-unet", "--label-weight", "0.3"],
            "--label-weight needs a segmenter with an encoder",
        ),
    ],
)
def test_wrong_settings_are_reported_before_the_data_are_read(stage, options, reason, tmp_path):
    arguments = ["--data", "/nowhere", "--out", str(tmp_path / "run"), "--init", "none", *options]
    done = CliRunner().invoke(app, ["train", stage, *arguments])
    assert done.exit_code == 2
    assert reason in done.stderr
    assert not (tmp_path / "run").exists()
