"""A run that diverges ends with a sentence and leaves no weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from tests.data.training.runs import ENCODER, STAGES, stage_of, train
from tumorlens.data.errors import InputError
from tumorlens.pipeline.cli.app import app


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"learning_rate": float("inf"), "epochs": 1}, "weights"),
        ({"learning_rate": 1e30, "epoch_slices": 8}, "weights"),  # finite until the next step, which there is not
        ({"learning_rate": 1e3, "epochs": 1, "epoch_slices": 8}, "answers"),
    ],
)
def test_a_run_that_diverges_is_reported_and_keeps_nothing(name, settings, what, phantom_set, tmp_path):
    if (name, what) == ("classification", "answers"):
        settings = settings | {"arch": "resnet18"}  # the activations of a small network stay finite
    message = f"^training diverged: after epoch 0 its {what} are not finite; lower --lr$"
    with pytest.raises(InputError, match=message):
        train(replace(stage_of(name, phantom_set).config, **settings), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_command_reports_it_in_one_line(phantom_set, tmp_path):
    arguments = f"train segmentation --data {phantom_set} --out {tmp_path / 'run'} --init none --encoder {ENCODER}"
    arguments += " --size 64 --epochs 1 --batch-size 8 --device cpu --lr inf"
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("tumorlens: error: training diverged: after epoch 0")
