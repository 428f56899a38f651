"""Initial weights of both networks: loaded by name, reported, and refused where nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.data.training.runs import SEGMENTER_CARD
from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.config import SHIPPED, ClassifierConfig
from tumorlens.classification.model import _of_encoder, build_classifier, initialize
from tumorlens.classification.train import initial_weights
from tumorlens.data.cards.weights import read_state, save_weights
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.networks import mix_in_start
from tumorlens.segmentation.model import build_segmenter, initialize_segmenter

RESNET, RESNET18 = find_architecture("resnet50"), find_architecture("resnet18")


def test_initialization_reports_the_loaded_layers(tmp_path):
    source = build_classifier(RESNET).state_dict()
    partial = {n: t for n, t in source.items() if not n.startswith(("layer4", "fc"))}
    torch.save(partial | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "partial.pth")
    report = initialize(build_classifier(RESNET), RESNET, str(tmp_path / "partial.pth"))
    assert "layer4" in report.fresh
    assert "fc" in report.fresh
    assert report.loaded < report.total
    text = initialize_segmenter(build_segmenter(), init=str(tmp_path / "partial.pth"))
    assert "from chance: layer4" in text


def test_a_segmenters_encoder_starts_a_classifier(tmp_path):
    segmenter = build_segmenter("unet", "resnet18")
    save_weights(segmenter.state_dict(), tmp_path / "s.safetensors", SEGMENTER_CARD)
    architecture = find_architecture("resnet18")
    model = build_classifier(architecture, 64)
    report = initialize(model, architecture, str(tmp_path / "s.safetensors"))
    assert report.fresh == ("fc",)
    own = segmenter.encoder.state_dict()["layer3.0.conv1.weight"]
    torch.testing.assert_close(model.state_dict()["layer3.0.conv1.weight"], own.half().float())


def test_a_network_with_an_encoder_of_its_own_keeps_its_names():
    state = {"encoder.layer1.weight": 1, "encoder.conv1.weight": 2, "fc.weight": 3}
    own = {"encoder.layer1.weight": 0, "conv1.weight": 0, "fc.weight": 0}
    assert _of_encoder(state, own) == {"encoder.layer1.weight": 1, "conv1.weight": 2, "fc.weight": 3}


def test_an_initialization_that_does_not_fit(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="none of its 1 tensors fits"):
        initialize(build_classifier(RESNET), RESNET, str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="none of its 1 tensors fits the encoder"):
        initialize_segmenter(build_segmenter(), init=str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="no such weight file"):
        initialize(build_classifier(RESNET), RESNET, "nowhere.pth")


def test_the_shipped_classifier_is_a_start_for_these_and_for_other_classes():
    trained = read_state(SHIPPED)
    same = build_classifier(RESNET)
    report = initialize(same, RESNET, "shipped")
    assert str(report) == "267 of 267 tensors from the shipped classifier"
    torch.testing.assert_close(same.fc.weight, trained["fc.weight"].float())

    wanted = ["pituitary", "abscess", "no_tumor", "cyst"]  # as many classes, in another order
    other = build_classifier(RESNET)
    before = other.fc.weight.detach().clone()
    report = initialize(other, RESNET, "shipped", wanted)
    assert report.fresh == ("the outputs of abscess, cyst",)
    torch.testing.assert_close(other.fc.weight[[0, 2]], trained["fc.weight"].float()[[3, 0]])
    assert torch.equal(other.fc.weight[[1, 3]], before[[1, 3]])
    torch.testing.assert_close(other.layer4[2].conv3.weight, trained["layer4.2.conv3.weight"].float())


def test_a_network_with_fewer_outputs_takes_the_rows_of_its_classes(tmp_path):
    trained, two = build_classifier(RESNET18), build_classifier(RESNET18)
    two.fc = nn.Linear(512, 2)
    card = {"stage": "classification", "architecture": "resnet18", "classes": list(CLASSES)}
    card |= {"input_size": 64, "operating_point": {"tumor_threshold": 0.5}}
    save_weights(trained.state_dict(), tmp_path / "c.safetensors", card)
    report = initialize(two, RESNET18, str(tmp_path / "c.safetensors"), ["glioma", "tumor"])
    assert report.fresh == ("the output of tumor",)
    torch.testing.assert_close(two.fc.bias[0], trained.fc.bias[1].half().float())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"classes": ["glioma", "meningioma"]},
            "c.safetensors: its card names 2 classes, its last layer has 4",
        ),
        ({"classes": 4}, "c.json: its classes 4 are not a list of names"),
        ({"classes": None}, "c.json: the card lacks classes"),
    ],
)
def test_a_damaged_card_of_a_start_is_named(tmp_path, change, sentence):
    card = {"stage": "classification", "architecture": "cnn", "classes": list(CLASSES), "input_size": 64}
    card |= {"operating_point": {"tumor_threshold": 0.5}, **change}
    architecture = find_architecture("cnn")
    model = build_classifier(architecture, 64)
    whole = {name: value for name, value in card.items() if value is not None}
    save_weights(model.state_dict(), tmp_path / "c.safetensors", whole)
    with pytest.raises(InputError, match=sentence):
        initialize(model, architecture, str(tmp_path / "c.safetensors"))


def test_weights_of_another_architecture_name_it(tmp_path):
    with pytest.raises(InputError, match="the shipped classifier is a resnet50, not a resnet18; give --arch resnet50"):
        initialize(build_classifier(RESNET18), RESNET18, "shipped")
    mlp = find_architecture("mlp")
    with pytest.raises(InputError, match="fits mlp; it is a resnet50, give --arch resnet50"):
        initialize(build_classifier(mlp), mlp, str(SHIPPED))


@pytest.mark.parametrize("init", ["segmentation", "classification"])
def test_without_internet_the_shipped_weights_are_offered(init, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("segmentation_models_pytorch.encoders.get_encoder", offline)
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(OSError.*\); give --init shipped, a file with --init FILE"
    ):
        if init == "classification":
            initialize(build_classifier(RESNET), RESNET, "imagenet")
        else:
            initialize_segmenter(build_segmenter())


def test_trained_weights_go_a_part_of_the_way_back(tmp_path):
    """Floating-point tensors only; a start that lacks a part of the network is refused."""
    config = ClassifierConfig(data=("x",), arch="cnn", size=64, start_share=0.25)
    architecture = find_architecture("cnn")
    start, model = build_classifier(architecture, 64), build_classifier(architecture, 64)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mix_in_start(model, initial_weights(replace(config, init=str(tmp_path / "start.pth")), CLASSES), 0.25)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * start.state_dict()[name])
        else:
            assert torch.equal(tensor, before[name])
    torch.save(dict(list(start.state_dict().items())[:2]), tmp_path / "part.pth")
    with pytest.raises(InputError, match="--start-share needs a whole network, and it lacks"):
        initial_weights(replace(config, init=str(tmp_path / "part.pth")), CLASSES)
