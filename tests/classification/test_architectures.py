"""Every classifier by name: built, trained a step, saved, loaded again, with its own input size and normalization."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.data.training.runs import BACKBONE, classifier_config, train
from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier, initialize
from tumorlens.classification.module import check_input_size
from tumorlens.classification.predict import Classifier
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.normalization import IMAGENET
from tumorlens.pipeline.cli.app import app

HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "size", "mean", "millions"),
    [
        ("resnet50", 224, IMAGENET.mean, 23.5),
        pytest.param("resnet101", 224, IMAGENET.mean, 42.5, marks=pytest.mark.slow),
        ("alexnet", 224, IMAGENET.mean, 57.0),
        pytest.param("vgg16", 224, IMAGENET.mean, 134.3, marks=pytest.mark.slow),
        pytest.param("inception_v3", 299, HALF, 21.8, marks=pytest.mark.slow),
        ("cnn", 224, HALF, 4.65),
        ("mlp", 64, HALF, 2.16),
        ("timm/efficientnet_b0", 224, IMAGENET.mean, 4.0),
        ("tf_efficientnet_lite0", 224, HALF, 3.4),
    ],
)
def test_architectures_have_their_size_and_normalization(name, size, mean, millions):
    architecture = find_architecture(name)
    assert (architecture.input_size, architecture.normalization.mean) == (size, mean)
    model = build_classifier(architecture)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    with torch.inference_mode():
        assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, len(CLASSES))


def test_an_unknown_name():
    with pytest.raises(InputError, match="'resnet5O' is not one of cnn, mlp, nor one of torchvision's or timm's"):
        find_architecture("resnet5O")


def test_a_size_that_an_architecture_does_not_take():
    for name in ("vit_b_16", "inception_v3"):
        architecture = find_architecture(name)
        with pytest.raises(InputError, match=f"{name} does not take inputs of 64 pixels"):
            check_input_size(build_classifier(architecture, 64), architecture, 64)


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
    check_input_size(model, architecture, size)
    assert model.training


@pytest.mark.parametrize("name", ["mlp", "cnn", "squeezenet1_1", BACKBONE])
def test_a_trained_architecture_serves_by_its_card(name, phantom_set, tmp_path):
    card = train(classifier_config(phantom_set, arch=name, epochs=1, epoch_slices=8), tmp_path)
    assert (card["architecture"], card["input_size"]) == (name, 64)
    model = Classifier.load(tmp_path / "classifier.safetensors", "cpu")
    probabilities = model.predict(np.zeros((3, 64, 64), np.uint8))
    assert probabilities.shape == (3, 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_normalization_reaches_the_network(phantom_set, tmp_path):
    """The same weights under another normalization answer differently: it is not only written on the card."""
    train(classifier_config(phantom_set, arch="mlp", epochs=1, epoch_slices=8), tmp_path)
    model = Classifier.load(tmp_path / "classifier.safetensors", "cpu")
    image = np.full((1, 64, 64), 200, np.uint8)
    gray = torch.full((1, 3, 64, 64), (200 / 255 - 0.5) / 0.5)
    with torch.inference_mode():
        expected = model.model(gray).numpy()
    np.testing.assert_allclose(model.look(image).logits, expected, rtol=1e-4)


def test_an_architecture_without_imagenet_weights_starts_from_chance():
    architecture = find_architecture("mlp")
    report = initialize(build_classifier(architecture), architecture, "imagenet")
    assert report.loaded == 0
    assert "no ImageNet weights" in str(report)


def test_shared_layers_of_a_deeper_resnet_are_taken(tmp_path):
    """ResNet-101 begins as ResNet-50 does: what has the same name and shape is of use."""
    small, large = (find_architecture(n) for n in ("resnet50", "resnet101"))
    torch.save(build_classifier(small).state_dict(), tmp_path / "r50.pth")
    model = build_classifier(large)
    report = initialize(model, large, str(tmp_path / "r50.pth"))
    assert 250 < report.loaded < report.total


@pytest.mark.parametrize(
    ("stage", "options", "reason"),
    [
        ("classification", ["--arch", "resnet5O"], "architecture 'resnet5O' is not one of cnn, mlp"),
        ("classification", ["--arch", "vit_b_16", "--size", "64"], "vit_b_16 does not take inputs of 64 pixels"),
        ("classification", ["--arch", "squeezenet1_1", "--frozen"], "does not end in a linear layer"),
        ("classification", ["--not-brain", "nowhere", "--arch", "mlp"], "nowhere: no such folder of pictures"),
        ("segmentation", ["--arch", "vnet"], "architecture 'vnet' is not one of unet"),
        ("segmentation", ["--size", "50"], "--size 50 is not divisible by 32"),
    ],
)
def test_wrong_names_on_the_command_line(stage, options, reason, phantom_set, tmp_path):
    arguments = ["--data", str(phantom_set), "--out", str(tmp_path / "run"), "--init", "none", "--epochs", "1", "-q"]
    done = CliRunner().invoke(app, ["train", stage, *arguments, *options])
    assert done.exit_code == 2, done.output
    assert reason in done.stderr
    assert not (tmp_path / "run").exists()
