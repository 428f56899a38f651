"""Every architecture by name: built, trained a step, saved, loaded again, with its own input size and normalisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import tumorlens.segmentation.model
import tumorlens.segmentation.train
from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.model import build_classifier, initialise
from tumorlens.classification.module import check_size, freeze_backbone
from tumorlens.classification.predict import Classifier
from tumorlens.classification.train import train_classifier
from tumorlens.data.augmentation.blank import blank_head
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.normalization import IMAGENET
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.loaders import SliceDataset
from tumorlens.data.training.partition import load_partition
from tumorlens.pipeline.cli.app import app
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.model import build_segmenter, encoder_normalization, initialise_encoder
from tumorlens.segmentation.module import check_size as check_segmenter_size
from tumorlens.segmentation.predict import Segmenter
from tumorlens.segmentation.train import train_segmenter

QUICK = {"epochs": 1, "batch_size": 8, "init": "none", "device": "cpu", "precision": "fp32"}
HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "size", "mean", "millions"),
    [
        ("resnet50", 224, IMAGENET.mean, 23.5),
        ("resnet101", 224, IMAGENET.mean, 42.5),
        ("alexnet", 224, IMAGENET.mean, 57.0),
        ("vgg16", 224, IMAGENET.mean, 134.3),
        ("inception_v3", 299, HALF, 21.8),
        ("cnn", 224, HALF, 4.65),
        ("mlp", 64, HALF, 2.16),
        ("timm/efficientnet_b0", 224, IMAGENET.mean, 4.0),
        ("tf_efficientnet_lite0", 224, HALF, 3.4),
    ],
)
def test_architectures_have_their_size_and_normalisation(name, size, mean, millions):
    architecture = find_architecture(name)
    assert (architecture.input_size, architecture.normalization.mean) == (size, mean)
    model = build_classifier(architecture)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    with torch.inference_mode():
        assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, len(CLASSES))


def test_a_name_that_nobody_knows():
    with pytest.raises(InputError, match="'resnet5O' is none of cnn, mlp, none of torchvision's and none of timm's"):
        find_architecture("resnet5O")


def test_a_size_that_an_architecture_does_not_take():
    for name in ("vit_b_16", "inception_v3"):
        architecture = find_architecture(name)
        with pytest.raises(InputError, match=f"{name} does not take inputs of 64 pixels"):
            check_size(build_classifier(architecture, 64), architecture, 64)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/efficientvit_b0", 256),  # a convolutional network in spite of its name
        ("timm/vit_tiny_patch16_224", 96),
        ("timm/levit_128", 64),  # a transformer in spite of its name
        ("timm/resnet10t", 64),
    ],
)
def test_a_size_that_is_not_the_networks_own(name, size):
    architecture = find_architecture(name)
    assert architecture.input_size != size
    model = build_classifier(architecture, size)
    check_size(model, architecture, size)
    assert model.training


class Raising(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, batch):
        raise self.error


@pytest.mark.parametrize("error", [AssertionError(), AssertionError("\n"), IndexError("of range\nmore"), KeyError()])
def test_a_network_that_fails_without_a_reason(error):
    with pytest.raises(InputError, match=r"^mlp does not take inputs of 64 pixels \((\w+Error|of range)\)$"):
        check_size(Raising(error), find_architecture("mlp"), 64)
    with pytest.raises(InputError, match=r"^unet with encoder x does not take inputs of 64 pixels \(\S.*\)$"):
        check_segmenter_size(Raising(error), "unet", "x", 64)


def test_a_network_that_answers_in_another_shape():
    with pytest.raises(InputError, match=r"gives shape \(1, 3, 64, 64\), not shape \(1, 4\)"):
        check_size(nn.Identity(), find_architecture("mlp"), 64)


def test_a_segmenter_that_cannot_be_built_without_a_reason(monkeypatch):
    def fail(**_):
        raise AssertionError

    monkeypatch.setitem(tumorlens.segmentation.model.ARCHITECTURES, "unet", fail)
    with pytest.raises(InputError, match=r"does not go with unet \(AssertionError\)"):
        build_segmenter("unet")


def test_a_segmenter_that_fails_on_its_size_costs_no_reading(tmp_path, monkeypatch):
    """An encoder for one input size, another asked for: told before a single slice is read."""
    monkeypatch.setattr(
        tumorlens.segmentation.train, "load_partition", lambda *_, **__: pytest.fail("the data were read")
    )
    encoder = "tu-swin_tiny_patch4_window7_224"
    config = SegmenterConfig(data=(str(tmp_path),), encoder=encoder, size=64, **QUICK)
    with pytest.raises(InputError, match=f"unet with encoder {encoder} does not take inputs of 64 pixels"):
        train_segmenter(config, tmp_path / "run", progress=False, say=lambda _: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mlp", "cnn", "squeezenet1_1", "timm/resnet10t"])
def test_a_trained_architecture_serves_by_its_card(name, phantom_set, tmp_path):
    config = ClassifierConfig(data=(str(phantom_set),), arch=name, size=64, **QUICK)
    card = train_classifier(config, tmp_path, progress=False, say=lambda _: None)
    assert (card["architecture"], card["input_size"]) == (name, 64)
    model = Classifier.load(tmp_path / "classifier.safetensors", "cpu")
    probabilities = model.predict(np.zeros((3, 64, 64), np.uint8))
    assert probabilities.shape == (3, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_normalisation_reaches_the_network(phantom_set, tmp_path):
    """The same weights under another normalisation answer differently: it is not only written on the card."""
    config = ClassifierConfig(data=(str(phantom_set),), arch="mlp", size=64, **QUICK)
    train_classifier(config, tmp_path, progress=False, say=lambda _: None)
    model = Classifier.load(tmp_path / "classifier.safetensors", "cpu")
    image = np.full((1, 64, 64), 200, np.uint8)
    grey = torch.full((1, 3, 64, 64), (200 / 255 - 0.5) / 0.5)
    with torch.inference_mode():
        expected = model.model(grey).numpy()
    np.testing.assert_allclose(model.logits(image), expected, rtol=1e-4)


def test_a_frozen_backbone_stays(phantom_set, tmp_path):
    config = ClassifierConfig(data=(str(phantom_set),), arch="squeezenet1_1", size=64, frozen=True, **QUICK)
    with pytest.raises(InputError, match="ends in no linear layer"):
        train_classifier(config, tmp_path / "a", progress=False, say=lambda _: None)
    torch.manual_seed(0)
    start = build_classifier(find_architecture("timm/resnet10t"), 64)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    config = replace(config, arch="timm/resnet10t", init=str(tmp_path / "start.pth"))
    train_classifier(config, tmp_path / "b", progress=False, say=lambda _: None)
    kept = torch.load(tmp_path / "b" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for key, tensor in start.state_dict().items():
        assert torch.equal(kept[f"model.{key}"], tensor) != key.startswith("fc."), key


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


def test_an_architecture_without_imagenet_weights_starts_from_chance():
    architecture = find_architecture("mlp")
    report = initialise(build_classifier(architecture), architecture, "imagenet")
    assert report.loaded == 0
    assert "no ImageNet weights" in str(report)


def test_shared_layers_of_a_deeper_resnet_are_taken(tmp_path):
    """ResNet-101 begins as ResNet-50 does: what has the same name and shape is of use."""
    small, large = (find_architecture(n) for n in ("resnet50", "resnet101"))
    torch.save(build_classifier(small).state_dict(), tmp_path / "r50.pth")
    model = build_classifier(large)
    report = initialise(model, large, str(tmp_path / "r50.pth"))
    assert 250 < report.loaded < report.total


@pytest.mark.parametrize("arch", ["unet++", "unet-scse", "plain-unet"])
def test_segmenters_by_name(arch, phantom_set, tmp_path):
    config = SegmenterConfig(data=(str(phantom_set),), arch=arch, encoder="resnet18", size=64, **QUICK)
    card = train_segmenter(config, tmp_path, progress=False, say=lambda _: None)
    assert card["architecture"] == arch
    model = Segmenter.load(tmp_path / "segmenter.safetensors", "cpu")
    assert model.predict(np.zeros((2, 64, 64), np.uint8)).shape == (2, 64, 64)


def test_segmenters_that_cannot_be_built():
    for arch, encoder, reason in (
        ("vnet", "resnet50", "architecture 'vnet' is none of unet"),
        ("unet", "resnet5", "encoder 'resnet5' is none of"),
        ("unet++", "mit_b0", "does not go with"),
        ("unet", "tu-nothing", "does not go with"),
    ):
        with pytest.raises(InputError, match=reason):
            build_segmenter(arch, encoder)
    with pytest.raises(InputError, match="a plain U-Net has no encoder"):
        initialise_encoder(build_segmenter("plain-unet"), init="some.pth")


@pytest.mark.parametrize(
    ("stage", "options", "reason"),
    [
        ("classification", ["--arch", "resnet5O"], "architecture 'resnet5O' is none of cnn, mlp"),
        ("classification", ["--arch", "vit_b_16", "--size", "64"], "vit_b_16 does not take inputs of 64 pixels"),
        ("classification", ["--arch", "squeezenet1_1", "--frozen"], "ends in no linear layer"),
        ("classification", ["--not-brain", "nowhere", "--arch", "mlp"], "nowhere: no such folder of pictures"),
        ("segmentation", ["--arch", "vnet"], "architecture 'vnet' is none of unet"),
        ("segmentation", ["--size", "50"], "--size 50 is not divisible by 32"),
    ],
)
def test_wrong_names_on_the_command_line(stage, options, reason, phantom_set, tmp_path):
    arguments = ["--data", str(phantom_set), "--out", str(tmp_path / "run"), "--init", "none", "--epochs", "1", "-q"]
    done = CliRunner().invoke(app, ["train", stage, *arguments, *options])
    assert done.exit_code == 2, done.output
    assert reason in done.stderr
    assert not (tmp_path / "run").exists()


def test_encoders_have_their_normalisation():
    assert encoder_normalization("unet", "resnet50") == IMAGENET
    assert encoder_normalization("unet", "inceptionv4").mean == HALF
    assert encoder_normalization("unet", "tu-tf_efficientnet_lite0").mean == HALF
    assert encoder_normalization("plain-unet", "inceptionv4") == IMAGENET


def test_a_blanked_head_keeps_its_outline_and_nothing_else():
    image = Preprocess(224)(phantom_slice(7, "glioma").image).image
    inner = np.zeros((224, 224), bool)
    inner[90:130, 90:130] = True
    flat = [blank_head(image, seed) for seed in range(30)]
    assert all(((b == 0) == (flat[0] == 0))[~inner].mean() > 0.9 for b in flat)
    for blank in flat:
        correlation = np.corrcoef(blank[inner], image[inner])[0, 1] if blank[inner].std() else 0.0
        assert abs(correlation) < 0.5
    assert len({b[110, 110] for b in flat}) > 10
    assert np.array_equal(flat[3], blank_head(image, 3))


def test_the_share_of_blanked_slices(phantom_set):
    parts = load_partition(ClassifierConfig(data=(str(phantom_set),), size=64))
    for share, low, high in ((0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)):
        dataset = SliceDataset(parts.train, seed=1, blank=share)
        told = np.mean([bool(dataset[(epoch, i)]["blank"]) for epoch in range(10) for i in range(len(dataset))])
        assert low <= told <= high


def test_blanked_slices_teach_no_class(phantom_set):
    """Their loss is least where all classes are equally likely."""
    from tumorlens.classification.module import build_module

    config = ClassifierConfig(data=(str(phantom_set),), arch="mlp", size=64, **QUICK)
    module = build_module(config, load_partition(config))
    module.log = lambda *_, **__: None
    batch = {
        "image": torch.zeros(4, 64, 64, dtype=torch.uint8),
        "label": torch.zeros(4, dtype=torch.long),
        "blank": torch.ones(4, dtype=torch.bool),
    }
    losses = {}
    for name, logits in (("even", [0.0, 0, 0, 0]), ("sure", [9.0, 0, 0, 0])):
        module.model = Fixed(logits)
        losses[name] = float(module.training_step(batch, 0))
    assert losses["even"] == pytest.approx(np.log(4), abs=1e-5)
    assert losses["sure"] > 2


class Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, batch):
        return self.logits.expand(len(batch), -1)
