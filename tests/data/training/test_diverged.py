"""Runs that cannot learn end with a sentence, and leave no weights: steps of one slice, rates that blow up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from tests.data.training.test_training import QUICK, quiet
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.module import build_module
from tumorlens.classification.train import train_classifier
from tumorlens.data.errors import InputError
from tumorlens.data.training.module import check_steps
from tumorlens.data.training.partition import load_partition
from tumorlens.pipeline.cli.app import app
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.train import train_segmenter

STAGES = ["classification", "segmentation"]


def start(stage, data, out, **rest):
    if stage == "classification":
        config = ClassifierConfig(data=(str(data),), arch="resnet18", **(QUICK | rest))
        return train_classifier(config, out, progress=False, say=quiet)
    config = SegmenterConfig(data=(str(data),), encoder="resnet18", **(QUICK | rest))
    return train_segmenter(config, out, progress=False, say=quiet)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"learning_rate": float("inf"), "epochs": 1}, "weights"),
        ({"learning_rate": 1e30, "epoch_slices": 8}, "weights"),  # finite until the next step, which there is not
        ({"learning_rate": 1e3, "epochs": 1, "epoch_slices": 8}, "answers"),
    ],
)
def test_a_run_that_diverges_says_so_and_keeps_nothing(stage, settings, what, phantom_set, tmp_path):
    message = f"^training diverged: after epoch 0 its {what} are not finite; lower --lr$"
    with pytest.raises(InputError, match=message):
        start(stage, phantom_set, tmp_path, **settings)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_command_says_it_in_one_line(phantom_set, tmp_path):
    arguments = f"train segmentation --data {phantom_set} --out {tmp_path / 'run'} --init none --encoder resnet18"
    arguments += " --size 64 --epochs 1 --batch-size 8 --device cpu --lr inf"
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("tumorlens: error: training diverged: after epoch 0")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("settings", "remedy"),
    [({"batch_size": 1}, "raise --batch-size"), ({"epoch_slices": 1}, "raise --batch-size and --epoch-slices")],
)
def test_steps_of_one_slice_that_teach_nothing_are_told_before_anything_is_written(
    stage, settings, remedy, phantom_set, tmp_path
):
    message = f"^steps of one slice are too few for this network at 32 pixels; {remedy}$"
    with pytest.raises(InputError, match=message):
        start(stage, phantom_set, tmp_path / "run", **settings, size=32, duplicates="drop")
    assert not (tmp_path / "run").exists()


def test_steps_of_one_slice_that_teach_something_are_taken(phantom_set, tmp_path):
    """Larger inputs have more than one value per channel everywhere; a frozen network normalizes by what it knows."""
    card = start("classification", phantom_set, tmp_path / "run", batch_size=1, epoch_slices=2, epochs=1)
    assert card["best_epoch"] == 0
    config = ClassifierConfig(
        data=(str(phantom_set),), arch="resnet18", **(QUICK | {"size": 32, "batch_size": 1, "duplicates": "drop"})
    )
    module = build_module(config, load_partition(config))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(InputError, match="at 32 pixels"):
        check_steps(module, config, 24)
    assert all((before[name] == tensor).all() for name, tensor in module.state_dict().items())
    frozen = replace(config, frozen=True)
    check_steps(build_module(frozen, load_partition(frozen)), frozen, 24)
