"""A run without a terminal says a line an epoch; it says why it stopped early; other programs follow it offline."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from tests.data.training.runs import STAGES, classifier_config, stage_of, train
from tumorlens.data.errors import InputError
from tumorlens.data.training import curves, logs
from tumorlens.data.training.curves import plot_learning_curves
from tumorlens.data.training.logs import EpochLines, check_logger

FIGURES = {
    "classification": r"accuracy 0\.\d{4} training, 0\.\d{4} validation; macro f1 0\.\d{4} validation",
    "segmentation": r"dice 0\.\d{4} training, 0\.\d{4} validation",
}


@pytest.mark.parametrize("name", STAGES)
def test_without_a_terminal_each_epoch_is_a_line(name, phantom_set, tmp_path):
    lines = []
    stage = stage_of(name, phantom_set, epoch_slices=16)
    train(stage.config, tmp_path, progress=True, say=lines.append)
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2
    figures = rf"loss \d\.\d{{4}} training, \d\.\d{{4}} validation; {FIGURES[name]}; learning rate \d\.\de-\d\d"
    for number, line in enumerate(epochs, 1):
        assert re.fullmatch(rf"epoch {number} of 2: {figures}; \d+\.\d slices/s; 0:\d\d:\d\d left", line), line
    assert epochs[1].endswith("0:00:00 left")
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    score = {"classification": "train_accuracy", "segmentation": "train_dice"}[name]
    assert all(0 <= float(row[score]) <= 1 for row in rows)
    assert f"{float(rows[0][score]):.4f} training" in epochs[0]


def test_the_learning_rate_of_an_epoch_is_that_of_its_last_step(phantom_set, tmp_path):
    lines = []
    config = classifier_config(phantom_set, arch="mlp", epochs=1, epoch_slices=24, scheduler="linear", warmup=0.0)
    train(config, tmp_path, progress=True, say=lines.append)
    (line,) = [line for line in lines if line.startswith("epoch ")]
    assert "learning rate 2.7e-04;" in line  # two thirds of the peak are left in the last of three steps


def test_an_epoch_without_validation_says_nothing_of_it(phantom_set, tmp_path):
    lines = []
    config = classifier_config(phantom_set, arch="mlp", epochs=4, validate_every=2, epoch_slices=8)
    train(config, tmp_path, progress=True, say=lines.append)
    said = [("validation" in line) for line in lines if line.startswith("epoch ")]
    assert said == [False, True, False, True]


def test_a_run_that_stops_early_says_why(phantom_set, tmp_path):
    lines = []
    config = classifier_config(phantom_set, arch="mlp", learning_rate=0.0, epochs=9, patience=2, epoch_slices=8)
    train(config, tmp_path, say=lines.append)
    reason = "stopped after epoch 3 of 9: macro f1 on validation has not risen for 2 validations (--patience); best "
    (line,) = [line for line in lines if line.startswith("stopped")]
    assert re.fullmatch(re.escape(reason) + r"\d\.\d{4} in epoch 1", line), line


@pytest.mark.parametrize("name", STAGES)
def test_the_epoch_is_chosen_by_the_figure_that_the_user_names(name, phantom_set, tmp_path):
    """A loss is best where it is least."""
    config = stage_of(name, phantom_set, epochs=3, best_by="loss", epoch_slices=16, learning_rate=0.01).config
    card = train(config, tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    assert card["best_epoch"] == losses.index(min(losses))
    assert card["training"]["best_by"] == "loss"


def test_every_figure_that_may_choose_is_logged(phantom_set, tmp_path):
    for name in STAGES:
        stage = stage_of(name, phantom_set, epoch_slices=8)
        train(stage.config, tmp_path / name)
        with (tmp_path / name / "metrics.csv").open() as file:
            columns = next(csv.DictReader(file))
        choices = {each.name: each for each in type(stage.config).__dataclass_fields__.values()}["best_by"]
        assert {f"val_{figure}" for figure in choices.metadata["setting"].choices} <= set(columns)


def test_curves_have_whole_epochs_and_pair_training_with_validation(tmp_path, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: drawn.append(figure))
    table = [
        {"epoch": str(n), "train_loss": "1", "val_loss": "2", "train_dice": "0.5", "val_dice": "0.4", "lr-AdamW": "9"}
        for n in range(3)
    ]
    plot_learning_curves(table, tmp_path / "curves.png")
    for axes, name in zip(drawn[0].axes, ("loss", "dice"), strict=True):
        drawn[0].canvas.draw()
        ticks = [tick for tick in axes.get_xticks() if 1 <= tick <= 3]
        assert ticks == [1, 2, 3]
        assert [line.get_label() for line in axes.lines] == [f"{name}, training", f"{name}, validation"]
        assert axes.lines[0].get_color() == axes.lines[1].get_color()
        assert list(axes.lines[0].get_xdata()) == [1, 2, 3]


def test_a_missing_logger_is_one_sentence(monkeypatch):
    monkeypatch.setattr("tumorlens.data.training.logs.find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow", "wandb"):
        with pytest.raises(InputError, match=f"^--logger {name} needs the package {name}, .*: pip install {name}$"):
            check_logger(classifier_config("x", logger=name))
    check_logger(classifier_config("x"))


@pytest.mark.parametrize(
    ("logger", "files"), [("tensorboard", "events.out*"), ("mlflow", "val_loss"), ("wandb", "run-*.wandb")]
)
def test_other_programs_follow_a_run_offline(logger, files, phantom_set, tmp_path):
    pytest.importorskip(logger)
    config = classifier_config(phantom_set, arch="mlp", epoch_slices=8, logger=logger)
    train(config, tmp_path / "run")
    assert list((tmp_path / "run").rglob(files))
    assert (tmp_path / "run" / "metrics.csv").is_file()
    resumed = replace(config, epochs=3)
    train(resumed, tmp_path / "run", resume=True)


def test_the_rate_of_slices_and_the_time_left(monkeypatch):
    """Two epochs of ten seconds, of which training takes four."""
    clock = iter([0, 4, 10, 10, 14, 20])
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # no other thread asks this one
    lines = []
    line = EpochLines(lines.append, "dice")
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-5}, {"lr": 2e-4}])
    trainer = SimpleNamespace(max_epochs=8, optimizers=[optimizer], callback_metrics={}, world_size=1)
    for trainer.current_epoch in range(2):
        line.on_train_epoch_start(trainer, None)
        line.on_train_batch_start(trainer, None, None, 0)
        line.on_train_batch_end(trainer, None, None, {"image": range(8)}, 0)
        line.on_train_epoch_end(trainer, None)
    assert lines == [
        "epoch 1 of 8: learning rate 2.0e-04; 2.0 slices/s; 0:01:10 left",
        "epoch 2 of 8: learning rate 2.0e-04; 2.0 slices/s; 0:01:00 left",
    ]
