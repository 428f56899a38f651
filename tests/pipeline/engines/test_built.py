"""The networks that are built without PyTorch give PyTorch's answers, and Grad-CAM's."""

from __future__ import annotations

import json

import numpy as np
import openvino
import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.engines.networks import OPENVINO_FP32, save_classifier, save_segmenter, slices
from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.config import SHIPPED as CLASSIFIER
from tumorlens.classification.model import build_classifier
from tumorlens.classification.predict import Classifier
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.masks.regions import Regions
from tumorlens.pipeline.engines.built import build_model
from tumorlens.pipeline.engines.graphs import load_graph, to_openvino
from tumorlens.pipeline.engines.opening import open_classifier
from tumorlens.segmentation.config import SHIPPED as SEGMENTER
from tumorlens.segmentation.model import build_segmenter


def with_statistics(model):
    """Random statistics for batch normalization, and a louder last layer: a new network hardly tells slices apart."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.startswith(("fc.weight", "segmentation_head.0.weight")):
            parameter.data = 30 * (
                parameter.data - parameter.data.mean(dim=(1, *range(2, parameter.dim())), keepdim=True)
            )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.3, 0.9)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return model


def classifier_of(path, name, layer=None, classes=CLASSES):
    model = with_statistics(build_classifier(find_architecture(name), 64, len(classes)))
    model.fc.weight.data.abs_()  # a class against which all speaks would have no heat
    card = {"stage": "classification", "architecture": name, "classes": list(classes), "input_size": 64}
    state = model.state_dict()
    if layer is not None:
        width = 2 * len(state[f"{layer}.1.bn2.weight"])
        state |= {f"refusal.{part}": torch.ones(width) for part in ("mean", "std", "weight")}
        card["refusal"] = {"layer": layer, "bias": 0.0, "limit": 1.0}
    save_weights(state, path, card | {"operating_point": {"tumor_threshold": 0.5}})
    return path


def segmenter_of(path, encoder, outlines):
    channels = (24, 16, 16, 8, 8)
    model = with_statistics(build_segmenter("unet", encoder, channels, outlines))
    card = {"stage": "segmentation", "architecture": "unet", "encoder": encoder, "decoder_channels": list(channels)}
    card |= {"outlines": ["enhancing", "extent"][:outlines]} if outlines > 1 else {}
    point = {"mask_threshold": 0.5, "min_lesion_px": 0}
    save_weights(model.state_dict(), path, card | {"input_size": 64, "operating_point": point})
    return path


def outputs_of(model, images):
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = compiled([images])
    return {output.get_any_name(): np.array(answers[output]) for output in compiled.outputs}


def compare(path, stage, size):
    """The outputs of the built model, after they were compared with those of PyTorch and of the converted model."""
    images = slices(size)
    built = outputs_of(build_model(path, stage), images)
    graph, own_size = load_graph(path, stage)
    assert own_size == size
    converted = outputs_of(to_openvino(graph, size, stage), images)
    with torch.inference_mode():
        answer = graph(torch.from_numpy(images))
    expected = dict(zip(converted, answer if isinstance(answer, tuple) else [answer], strict=True))
    for name, tensor in expected.items():
        most = 1 if stage == "segmentation" else 2e-5 * max(1, float(tensor.abs().max()))  # a map has 255 levels
        for other in (built[name], converted[name]):
            assert other.dtype == tensor.numpy().dtype
            np.testing.assert_allclose(other.astype(float), tensor.numpy().astype(float), rtol=0, atol=most)
    return built


@pytest.mark.parametrize(("name", "layer"), [("resnet18", None), ("resnet34", "layer3")])
def test_a_built_classifier_answers_as_pytorch(tmp_path, name, layer):
    built = compare(classifier_of(tmp_path / "one.safetensors", name, layer), "classification", 64)
    assert list(built) == ["logits", *(["features"] if layer else []), "class_maps"]
    assert np.ptp(built["logits"], axis=0).min() > 1e-3  # slices differ
    maps = built["class_maps"]
    bias = load_file(tmp_path / "one.safetensors")["fc.bias"].float().numpy()
    np.testing.assert_allclose(maps.mean(axis=(2, 3)) + bias, built["logits"], atol=1e-5 * np.abs(maps).max())


@pytest.mark.parametrize(("encoder", "outlines"), [("resnet18", 1), ("resnet34", 2)])
def test_a_built_segmenter_answers_as_pytorch(tmp_path, encoder, outlines):
    built = compare(segmenter_of(tmp_path / "two.safetensors", encoder, outlines), "segmentation", 64)
    assert built["map"].shape == (3, outlines, 64, 64)
    assert np.ptp(built["map"].astype(int)) > 40  # not one level everywhere


@pytest.mark.slow
@pytest.mark.parametrize(("path", "stage"), [(CLASSIFIER, "classification"), (SEGMENTER, "segmentation")])
def test_the_shipped_networks_are_built(path, stage):
    built = compare(path, stage, 192)
    if stage == "segmentation":
        assert built["map"].max() > 200


def test_class_maps_are_grad_cam(tmp_path, cache_folder):
    path = classifier_of(tmp_path / "one.safetensors", "resnet18", classes=("no_tumor", "cyst", "glioma"))
    images, shown = slices(), [1, 2, 0]
    built = Classifier.load(path, network=lambda file: open_classifier(file, OPENVINO_FP32))
    heat = built.explain(images, shown)
    assert "model" not in vars(built)  # PyTorch has not opened the weights
    expected = Classifier.load(path, "cpu").explain(images, shown)
    assert expected.max(axis=(1, 2)).tolist() == [1, 1, 1]
    np.testing.assert_allclose(heat, expected, rtol=0, atol=1e-4)
    assert built.explain(images[:0], []).shape == (0, 64, 64)


def test_other_networks_are_left_to_pytorch(tmp_path):
    assert build_model(save_classifier(tmp_path / "cnn.safetensors"), "classification") is None
    path = classifier_of(tmp_path / "one.safetensors", "resnet18", "layer3")
    card = json.loads(path.with_suffix(".json").read_text())
    card["refusal"]["layer"] = "layer3.1.bn1"
    path.with_suffix(".json").write_text(json.dumps(card))
    assert build_model(path, "classification") is None
    path = save_segmenter(tmp_path / "two.safetensors")
    card = json.loads(path.with_suffix(".json").read_text()) | {"architecture": "unet++"}
    path.with_suffix(".json").write_text(json.dumps(card))
    assert build_model(path, "segmentation") is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s.pop("layer2.1.conv2.weight"), "no layer2.1.conv2.weight"),
        (lambda s: s.update({"layer9.weight": torch.ones(3)}), "such as layer9.weight"),
        (lambda s: s.update({"fc.weight": torch.ones(5, 512), "fc.bias": torch.ones(5)}), "5 classes, the card 4"),
        (lambda s: s.update({"layer1.0.conv1.weight": torch.ones(64, 32, 3, 3)}), "do not go together"),
    ],
)
def test_weights_of_another_network_are_an_error(tmp_path, change, word):
    path = classifier_of(tmp_path / "one.safetensors", "resnet18")
    state, card = load_file(path), json.loads(path.with_suffix(".json").read_text())
    change(state)
    save_weights(state, path, card)
    with pytest.raises(InputError, match=word):
        build_model(path, "classification")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_card_of_other_channels_is_an_error(tmp_path, channels):
    regions = ("whole=1,2,4", "core=1,4", "enhancing=4")
    path = save_segmenter(tmp_path / "two.safetensors", regions=Regions.parse(regions[:2]))
    card = json.loads(path.with_suffix(".json").read_text()) | Regions.parse(regions[:channels]).to_card()
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=rf"segmentation_head\.0\.weight has 2 channels, the card {channels}"):
        build_model(path, "segmentation")
