"""The segmenter's module: an encoder that also classifies, and a last layer for each data set."""

from __future__ import annotations

import lightning as L
import torch
from click.testing import CliRunner

from tests.data.training.runs import quiet, segmenter_config
from tumorlens.data.training.partition import load_partition
from tumorlens.pipeline.cli.app import app
from tumorlens.segmentation.module import build_module


def test_an_encoder_learns_to_classify_beside_drawing(phantom_set):
    config = segmenter_config(phantom_set, label_weight=1.0)
    L.seed_everything(0, verbose=False)
    module = build_module(config, load_partition(config))
    module.log = quiet
    images = torch.randn(4, 3, 64, 64)
    module.eval()
    logits, class_logits = module.draw_and_classify(images, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(logits, module.model(images))  # the mask's way through the network is the usual one
    assert class_logits.shape == (4, 4)
    batch = {"image": torch.zeros(4, 64, 64, dtype=torch.uint8), "mask": torch.zeros(4, 64, 64, dtype=torch.uint8)}
    batch["source"] = torch.zeros(4, dtype=torch.int64)
    module.train()
    for labels, teaches in (([0, 1, 2, -1], True), ([-1, -1, -1, -1], False)):
        module.zero_grad()
        module.training_step(batch | {"label": torch.tensor(labels)}, 0).backward()
        assert (module.label_head[-1].weight.grad is not None) == teaches
    learning = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert learning == {id(p) for p in module.parameters()}  # the layer itself learns, and its gradients are cleared


def test_each_set_teaches_its_own_outlines(phantom_set):
    """Slices of the second set leave the first one's layer alone; the segmenter gets the mean of both."""
    config = segmenter_config(phantom_set, phantom_set, own_outlines=True, duplicates="drop")
    L.seed_everything(0, verbose=False)
    parts = load_partition(config)
    assert {sample.source for sample in parts.train.samples} == {0, 1}
    module = build_module(config, parts)
    module.log = quiet
    batch = {
        "image": torch.randint(0, 255, (4, 64, 64), dtype=torch.uint8),
        "mask": torch.ones(4, 64, 64, dtype=torch.uint8),
        "label": torch.ones(4, dtype=torch.int64),
        "source": torch.ones(4, dtype=torch.int64),
    }
    module.training_step(batch, 0).backward()
    moved = module.own.layer.weight.grad.abs().sum((1, 2, 3))
    assert moved[0] == 0 and moved[1] > 0
    with torch.no_grad():
        module.own.layer.weight.add_(torch.randn_like(module.own.layer.weight))
        module.own.layer.bias.add_(torch.tensor([1.0, 3.0]))
    module.on_train_epoch_end()
    module.eval()
    images = torch.randn(2, 3, 64, 64)
    own = [module.draw_and_classify(images, torch.full((2,), number))[0] for number in (0, 1)]
    torch.testing.assert_close(module.model(images), (own[0] + own[1]) / 2)  # both sets have as many lesions
    learning = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert {id(p) for p in module.own.parameters()} <= learning


def test_a_plain_u_net_has_no_last_layer_to_multiply(tmp_path, phantom_set):
    arguments = ["--data", str(phantom_set), "--out", str(tmp_path / "run"), "--init", "none", "--arch", "plain-unet"]
    done = CliRunner().invoke(app, ["train", "segmentation", *arguments, "--own-outlines", "--size", "64"])
    assert done.exit_code == 2
    assert "--own-outlines needs a segmenter of segmentation-models-pytorch" in done.stderr
    assert not (tmp_path / "run").exists()
