"""Initial weights of both networks: loaded by name, reported, and refused where nothing fits."""

from __future__ import annotations

import pytest
import torch

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import _of_encoder, build_classifier, initialize
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.errors import InputError
from tumorlens.segmentation.model import build_segmenter, initialize_segmenter

RESNET = find_architecture("resnet50")


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
    save_weights(segmenter.state_dict(), tmp_path / "s.safetensors", {"stage": "segmentation"})
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
