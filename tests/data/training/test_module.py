"""Training steps of both stages: they lower the loss, clip gradients, and need more than one slice."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import pytest
import torch

from tests.data.training.runs import STAGES, classifier_config, quiet, stage_of, train
from tumorlens.classification.module import build_module
from tumorlens.data.errors import InputError
from tumorlens.data.training.module import check_steps
from tumorlens.data.training.partition import load_partition


@pytest.fixture(params=STAGES)
def stage(request, phantom_set):
    return stage_of(request.param, phantom_set)


def test_training_steps_lower_the_loss(stage):
    L.seed_everything(0, verbose=False)
    parts = load_partition(stage.config)
    module = stage.module.build_module(replace(stage.config, learning_rate=1e-3, warmup=0.3), parts)
    batch = {
        "image": torch.from_numpy(parts.train.images[:8]),
        "mask": torch.from_numpy(parts.train.masks[:8]),
        "label": torch.from_numpy(parts.train.labels[:8]),
        "blank": torch.zeros(8, dtype=torch.bool),
        "source": torch.zeros(8, dtype=torch.int64),
        "sequence": torch.full((8,), -1),
    }
    module.log = quiet
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    module.train()
    losses = []
    for _ in range(6):
        loss = module.training_step(batch, 0)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_large_gradients_are_clipped(stage):
    module = stage.module.build_module(stage.config, load_partition(stage.config))
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    module.configure_gradient_clipping(module.configure_optimizers()["optimizer"], 1.0, None)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in module.parameters()]))
    assert float(norm) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [({"batch_size": 1}, "raise --batch-size"), ({"epoch_slices": 1}, "raise --batch-size and --epoch-slices")],
)
def test_steps_of_one_slice_that_teach_nothing_are_refused_before_anything_is_written(
    stage, settings, remedy, tmp_path
):
    message = f"^steps of one slice are too few for this network at 32 pixels; {remedy}$"
    with pytest.raises(InputError, match=message):
        train(replace(stage.config, **settings, size=32, duplicates="drop"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_steps_of_one_slice_that_teach_something_are_accepted(phantom_set, tmp_path):
    """Larger inputs have more than one value per channel everywhere; a frozen network uses its stored statistics."""
    config = classifier_config(phantom_set, batch_size=1, epoch_slices=2, epochs=1)
    assert train(config, tmp_path / "run")["best_epoch"] == 0
    config = classifier_config(phantom_set, size=32, batch_size=1, duplicates="drop")
    parts = load_partition(config)
    module = build_module(config, parts)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(InputError, match="at 32 pixels"):
        check_steps(module, config, 24)
    assert all((before[name] == tensor).all() for name, tensor in module.state_dict().items())
    frozen = replace(config, frozen=True)
    check_steps(build_module(frozen, parts), frozen, 24)
