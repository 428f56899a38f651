"""The classifier's module: class weights, blanked slices, frozen backbones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.data.training.runs import BACKBONE, classifier_config, quiet, train
from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier
from tumorlens.classification.module import LabelLoss, build_module, freeze_backbone
from tumorlens.data.errors import InputError
from tumorlens.data.labels import SHIPPED_CLASSES, ClassList
from tumorlens.data.training.partition import load_partition


def test_a_class_that_training_lacks_weighs_no_more_than_another(phantom_set):
    config = classifier_config(phantom_set)
    parts = load_partition(config)
    few = replace(parts, train=parts.train.subset(np.flatnonzero(parts.train.labels < 2)))
    weights = build_module(config, few).loss.typed.weight
    assert weights[2] == weights[3] <= weights[:2].min()


class Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, batch):
        return self.logits.expand(len(batch), -1)


def test_blanked_slices_teach_no_class(phantom_set):
    """Their loss is lowest where all classes are equally likely."""
    config = classifier_config(phantom_set, arch="mlp")
    module = build_module(config, load_partition(config))
    module.log = quiet
    batch = {
        "image": torch.zeros(4, 64, 64, dtype=torch.uint8),
        "label": torch.zeros(4, dtype=torch.long),
        "blank": torch.ones(4, dtype=torch.bool),
    }
    losses = {}
    for name, logits in (("even", [0.0, 0, 0, 0]), ("sure", [9.0, 0, 0, 0])):
        module.model = Fixed(logits)
        losses[name] = float(module.training_step(batch, 0).detach())
    assert losses["even"] == pytest.approx(np.log(4), abs=1e-5)
    assert losses["sure"] > 2


def test_a_tumor_of_unknown_type_teaches_presence_and_no_type():
    loss = LabelLoss(torch.ones(4), 0.0)
    untyped = torch.tensor([SHIPPED_CLASSES.untyped, SHIPPED_CLASSES.untyped])
    even, sure = torch.tensor([[0.0, 2, 2, 2]] * 2), torch.tensor([[0.0, 2 + np.log(3), -50, -50]] * 2)
    assert float(loss(even, untyped)) == pytest.approx(float(loss(sure, untyped)), abs=1e-5)  # the sum counts
    logits = even.clone().requires_grad_()
    loss(logits, untyped).backward()
    assert logits.grad[0, 0] > 0 > logits.grad[0, 1]
    assert logits.grad[0, 1] == logits.grad[0, 2] == logits.grad[0, 3]
    mixed = torch.tensor([SHIPPED_CLASSES.untyped, 0])
    halves = (loss(even[:1], mixed[:1]) + loss(even[1:], mixed[1:])) / 2
    assert float(loss(even, mixed)) == pytest.approx(float(halves))


def test_a_batch_of_tumors_of_unknown_type_teaches_nothing_without_a_gate():
    """They say nothing of the types, and an optimizer step has to be possible."""
    classes = ClassList.of_labels(["glioma", "meningioma"])
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = LabelLoss(torch.ones(2), 0.0, classes=classes)(logits, torch.full((2,), classes.untyped))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_a_frozen_backbone_stays(phantom_set, tmp_path):
    config = classifier_config(phantom_set, arch="squeezenet1_1", frozen=True, epochs=1)
    with pytest.raises(InputError, match="does not end in a linear layer"):
        train(config, tmp_path / "a")
    torch.manual_seed(0)
    start = build_classifier(find_architecture(BACKBONE), 64)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    train(replace(config, arch=BACKBONE, init=str(tmp_path / "start.pth")), tmp_path / "b")
    state = torch.load(tmp_path / "b" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for key, tensor in start.state_dict().items():
        assert torch.equal(state[f"model.{key}"], tensor) != key.startswith("fc."), key


def test_only_the_last_layer_learns_when_frozen():
    model = build_classifier(find_architecture("resnet50"))
    freeze_backbone(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}


def test_a_head_of_two_layers_learns_when_frozen():
    model = build_classifier(find_architecture("timm/levit_128"))
    freeze_backbone(model)
    learning = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {"head", "head_dist"}
    assert all(p.requires_grad for n, p in model.named_parameters() if n.startswith("head"))
