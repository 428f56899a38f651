"""Optimizers, schedules, frozen layers and layer-wise rates by name; a run that is resumed with more epochs."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import yaml
from torch import nn

from tests.data.training.runs import STAGES, classifier_config, stage_of, train, train_until_the_power_fails
from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier
from tumorlens.data.config import OPTIMIZERS, SCHEDULERS
from tumorlens.data.errors import InputError
from tumorlens.data.training.module import optimizer_and_schedule
from tumorlens.data.training.networks import freeze, layer_rates, layers_of
from tumorlens.segmentation.config import LOSSES
from tumorlens.segmentation.model import build_segmenter


def rates_of(steps=100, lengthened=0, **settings):
    """The learning rate of each step."""
    config = classifier_config("x", learning_rate=1.0, **settings)
    made = optimizer_and_schedule([(1.0, [nn.Parameter(torch.zeros(1))])], config, steps, lengthened)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_the_default_is_torch_s_one_cycle():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], 1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=100, pct_start=0.2)
    for rate in rates_of():
        assert rate == optimizer.param_groups[0]["lr"]
        optimizer.step()
        if schedule.last_epoch < 99:
            schedule.step()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_rises_to_the_peak_and_then_never_again(name):
    rates = rates_of(scheduler=name)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[0] < 0.1
    assert all(a <= b + 1e-12 for a, b in pairwise(rates[:20]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[21:]))
    assert rates[-1] == pytest.approx({"constant": 1.0, "step": 0.01}.get(name, 0.0), abs=0.02)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_and_resumes_exactly(name, phantom_set, tmp_path):
    config = classifier_config(phantom_set, arch="mlp", epoch_slices=16, optimizer=name, scheduler="cosine")
    train(config, tmp_path / "whole")
    train_until_the_power_fails(config, tmp_path / "cut")
    card = train(config, tmp_path / "cut", resume=True)
    assert (card["training"]["optimizer"], card["training"]["scheduler"]) == (name, "cosine")
    whole, cut = (state_of(tmp_path / run) for run in ("whole", "cut"))
    assert all(torch.equal(whole["state_dict"][key], tensor) for key, tensor in cut["state_dict"].items())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_segmenter_has_a_gradient_in_healthy_slices_too(name):
    from tumorlens.segmentation.loss import LOSSES as MADE

    assert tuple(MADE) == LOSSES
    truth = torch.zeros(3, 1, 16, 16)
    truth[0, :, 4:9, 4:9] = 1
    logits = 4 * truth - 2
    logits[0, 0, 6, 6], logits[1, 0, 5:8, 5:8] = -1, 1  # a missed pixel, and false ones in a healthy slice
    loss = MADE[name]()(logits.requires_grad_(), truth)
    assert loss.ndim == 0
    loss.backward()
    assert logits.grad[0, 0, 6, 6] < 0 < logits.grad[1, 0, 6, 6]


@pytest.mark.parametrize(("stage", "loss"), [("segmentation", "tversky"), ("classification", "focal")])
def test_a_loss_by_name_is_on_the_card(stage, loss, phantom_set, tmp_path):
    card = train(stage_of(stage, phantom_set, loss=loss, epochs=1, epoch_slices=8).config, tmp_path)
    assert card["training"]["loss"] == loss


def test_an_unknown_name_lists_the_names(phantom_set, tmp_path):
    with pytest.raises(InputError, match=r"^optimizer 'lion' is not one of adamw, adam, nadam, radam, sgd, rmsprop$"):
        train(classifier_config(phantom_set, optimizer="lion"), tmp_path / "run")


@pytest.mark.parametrize(
    ("network", "last", "learning"),
    [
        (lambda: build_classifier(find_architecture("resnet18")), "layer3", {"layer4", "fc"}),
        (lambda: build_segmenter(encoder="resnet18"), "layer4", {"decoder", "segmentation_head"}),
        (lambda: build_segmenter(encoder="tu-test_resnet"), "layer1", {"encoder", "decoder", "segmentation_head"}),
        (
            lambda: build_classifier(find_architecture("timm/test_vit")),
            "blocks.2",
            {"blocks", "norm", "fc_norm", "head"},
        ),
    ],
)
def test_layers_are_frozen_up_to_a_name(network, last, learning):
    model = network()
    freeze(model, last)
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} <= learning
    assert all(
        not p.requires_grad for name, layer in layers_of(model).items() if name == last for p in layer.parameters()
    )
    assert not any(p.requires_grad for p in model.parameters(recurse=False))


def test_a_layer_that_is_not_there_lists_the_layers():
    model = build_classifier(find_architecture("resnet18"))
    names = "conv1, bn1, layer1, layer2, layer3, layer4, and fc has to learn"
    for name in ("layer9", "fc"):
        with pytest.raises(InputError, match=f"^layer '{name}' cannot be frozen: this network has {names}$"):
            freeze(model, name)


@pytest.mark.parametrize("name", STAGES)
def test_frozen_layers_keep_weights_and_statistics(name, phantom_set, tmp_path):
    stage = stage_of(name, phantom_set)
    train(replace(stage.config, epochs=1, epoch_slices=8), tmp_path / "start")
    start = state_of(tmp_path / "start")["state_dict"]
    init = str(tmp_path / "start" / "checkpoints" / "last.ckpt")
    config = replace(stage.config, init=init, freeze_until="layer2", epochs=1, epoch_slices=16, learning_rate=0.01)
    train(config, tmp_path / "run")
    end = state_of(tmp_path / "run")["state_dict"]
    same = {key for key in end if torch.equal(start[key], end[key])}
    parts = ("encoder.", "conv1", "bn1", "layer1", "layer2")
    later = ("layer3", "layer4", "decoder", "head", "fc", "tracked")
    frozen = {key for key in end if any(p in key for p in parts) and not any(p in key for p in later)}
    assert len(frozen) > 20 and frozen <= same
    assert not any("layer3" in key and key.endswith("conv1.weight") for key in same)


def test_layers_learn_slower_the_deeper_they_are():
    model = build_classifier(find_architecture("resnet18"))
    groups = layer_rates(model, 1.0, 0.5)
    rates = {id(p): rate for rate, group in groups for p in group}
    assert {n: rates[id(p)] for n, p in model.named_parameters() if n in ("fc.bias", "layer4.0.conv1.weight")} == {
        "fc.bias": 1.0,
        "layer4.0.conv1.weight": 0.5,
    }
    assert rates[id(model.conv1.weight)] == rates[id(model.bn1.weight)] == 0.5**5
    assert len(rates) == len(list(model.parameters())) == sum(len(group) for _, group in groups)
    vit = build_classifier(find_architecture("timm/test_vit"))
    rates = {id(p): rate for rate, group in layer_rates(vit, 1.0, 0.5) for p in group}
    assert rates[id(vit.pos_embed)] == min(rates.values()) < rates[id(vit.blocks[0].attn.qkv.weight)]
    freeze(model, "layer3")
    assert [rate for rate, _ in layer_rates(model, 1.0, 0.5)] == [1.0, 0.5]


def test_layer_wise_rates_train_and_resume_exactly(phantom_set, tmp_path):
    config = classifier_config(phantom_set, epoch_slices=16, layer_decay=0.5)
    train(config, tmp_path / "whole")
    train_until_the_power_fails(config, tmp_path / "cut")
    train(config, tmp_path / "cut", resume=True)
    whole, cut = (state_of(tmp_path / run) for run in ("whole", "cut"))
    assert all(torch.equal(whole["state_dict"][key], tensor) for key, tensor in cut["state_dict"].items())


def state_of(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def rows_of(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", STAGES)
def test_a_finished_run_is_lengthened(name, phantom_set, tmp_path):
    """The added epochs fall along a cosine from a tenth of the peak to zero, also if they are stopped once."""
    config = stage_of(name, phantom_set, epoch_slices=16).config
    train(config, tmp_path / "run")
    longer = replace(config, epochs=4)
    lines = []
    card = train(longer, tmp_path / "run", resume=True, progress=True, say=lines.append)
    assert (card["training"]["epochs"], card["training"]["lengthened"]) == (4, [2])
    rows = rows_of(tmp_path / "run")
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    steps = 4  # two epochs of two
    peak = config.learning_rate / 10
    state = state_of(tmp_path / "run")
    assert state["lengthened"] == 2
    (schedule,) = state["lr_schedulers"]
    assert schedule["last_epoch"] == steps
    assert schedule["base_lrs"] == [pytest.approx(peak)]
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)
    rates = [line.partition("learning rate ")[2].partition(";")[0] for line in lines if line.startswith("epoch ")]
    falls = [0.5 + 0.5 * math.cos(math.pi * done) for done in (1 / 4, 3 / 4)]
    assert rates == [f"{peak * fall:.1e}" for fall in falls]  # of the last step of each


def test_a_lengthened_run_resumes_exactly_and_can_be_lengthened_again(phantom_set, tmp_path):
    config = classifier_config(phantom_set, arch="mlp", epoch_slices=16, epochs=1)
    longer = replace(config, epochs=3)
    for run in ("whole", "cut"):
        train(config, tmp_path / run)
    train(longer, tmp_path / "whole", resume=True)
    with pytest.MonkeyPatch.context() as patch:  # stops after the first of the added epochs
        from tests.data.training.runs import _Stop
        from tumorlens.data.training import run as run_module

        patch.setattr(_Stop, "on_train_batch_start", _stop_in_third_epoch)
        made = run_module.make_trainer
        patch.setattr(run_module, "make_trainer", lambda *a, **k: _with(made(*a, **k), _Stop(RuntimeError("cut"))))
        with pytest.raises(RuntimeError, match="cut"):
            train(longer, tmp_path / "cut", resume=True)
    train(longer, tmp_path / "cut", resume=True)
    whole, cut = (state_of(tmp_path / run) for run in ("whole", "cut"))
    assert all(torch.equal(whole["state_dict"][key], tensor) for key, tensor in cut["state_dict"].items())
    card = train(replace(config, epochs=4), tmp_path / "cut", resume=True)
    assert card["training"]["lengthened"] == [1, 3]


def _stop_in_third_epoch(self, trainer, module, batch, index):
    if trainer.current_epoch == 2:
        raise self.reason


def _with(trainer, callback):
    trainer.callbacks.append(callback)
    return trainer


def test_a_run_that_stopped_early_goes_on_with_more_epochs(phantom_set, tmp_path):
    lines = []
    config = classifier_config(phantom_set, arch="mlp", learning_rate=0.0, epochs=6, patience=2, epoch_slices=8)
    train(config, tmp_path)
    assert len(rows_of(tmp_path)) == 3
    train(replace(config, epochs=8), tmp_path, resume=True, say=lines.append)
    assert len(rows_of(tmp_path)) == 5
    assert any(line.startswith("stopped after epoch 5 of 8") for line in lines)


def test_two_batches_a_step_are_one_batch_of_twice_the_size(phantom_set, tmp_path):
    """Where batch normalization keeps its statistics and the loss is a mean over slices."""
    same = {"freeze_until": "layer4", "balance": False, "blank": 0.0, "transplant": 0.0}
    for name, settings in (("whole", {"batch_size": 8}), ("parts", {"batch_size": 4, "accumulate": 2})):
        train(classifier_config(phantom_set, **same, **settings), tmp_path / name)
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert parts["global_step"] == whole["global_step"] == 6
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], value, rtol=0, atol=1e-5)
    assert yaml.safe_load((tmp_path / "parts" / "config.yaml").read_text())["accumulate"] == 2
