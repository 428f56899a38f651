"""Grad-CAM against maps computed by hand, its scores on drawn cases, and its picture."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

from tumorlens.classification.evaluation.explanation import energy_inside, explanation_report, pointing_game, within
from tumorlens.classification.gradcam import draw_explanation, grad_cam, target_layer
from tumorlens.data.errors import InputError


class TinyNet(nn.Module):
    """Convolution, ReLU, mean over the picture, linear: for it Grad-CAM is the class activation map."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, classes)

    def forward(self, batch):
        return self.head(self.features(batch).mean(dim=(2, 3)))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def batch():
    return torch.randn(5, 3, 32, 24, generator=torch.Generator().manual_seed(1))


def class_activation_map(model, batch, classes):
    """B. Zhou et al., CVPR 2016: features weighed by the class's row of the linear layer, on the input's grid."""
    model.eval()
    with torch.no_grad():
        features = model.features(batch)
        maps = torch.einsum("nkhw,nk->nhw", features, model.head.weight[list(classes)]).clamp(min=0)
        maps = functional.interpolate(maps[:, None], batch.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    peak = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, maps / peak.clamp(min=1e-30), 0).numpy()


def test_is_the_class_activation_map_where_that_exists(tiny, batch):
    classes = [0, 3, 1, 2, 2]
    found = grad_cam(tiny, batch, classes)
    assert found.shape == (5, 32, 24) and found.dtype == np.float32
    assert np.abs(found - class_activation_map(tiny, batch, classes)).max() < 1e-5
    assert found.max(axis=(1, 2)) == pytest.approx(np.ones(5)) and found.min() >= 0


def test_a_slice_has_the_same_map_alone_and_for_its_own_class(tiny, batch):
    together = grad_cam(tiny, batch, [0, 3, 1, 2, 2])
    assert np.abs(grad_cam(tiny, batch[1:2], np.array([3]))[0] - together[1]).max() < 1e-6
    assert np.abs(grad_cam(tiny, batch[1:2], [1])[0] - together[1]).max() > 0.1


def test_nothing_that_speaks_for_a_class_is_a_map_of_zeros(tiny, batch):
    with torch.no_grad():
        tiny.head.weight[2] = -1
    maps = grad_cam(tiny, batch[:2], [2, 0])
    assert not maps[0].any() and maps[1].any()
    assert grad_cam(tiny, batch[:0], []).shape == (0, 32, 24)


def test_finds_the_quadrant_that_decides():
    """A network that sums the brightness: its map is the bright corner."""
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0)
        net[0].weight[0] = net[4].weight[1, 0] = 1
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., :8, 8:] = 1
    expected = np.zeros((16, 16))
    expected[:8, 8:] = 1
    assert np.array_equal(grad_cam(net, picture, [1])[0], expected)


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_leaves_the_network_as_it_was(tiny, batch, outer):
    tiny.train()
    tiny.features[1].eval()  # frozen statistics in a network that trains
    tiny.features[0].weight.requires_grad_(False)
    tiny.head.bias.grad = torch.ones(4)
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    with outer():
        grad_cam(tiny, batch, [0] * 5)
    assert tiny.training and tiny.features[2].training and not tiny.features[1].training
    assert [p.requires_grad for p in tiny.parameters()] == [False, True, True, True, True, True]
    assert torch.equal(tiny.head.bias.grad, torch.ones(4)) and tiny.head.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in tiny.modules())
    assert tiny.features[2].inplace


def test_a_failing_network_is_left_as_it_was_too(tiny):
    tiny.train()
    with pytest.raises(RuntimeError):
        grad_cam(tiny, torch.zeros(1, 5, 32, 32), [0], layer="features")
    assert tiny.training and all(p.requires_grad for p in tiny.parameters())
    assert not any(m._forward_hooks for m in tiny.modules())


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: torchvision.models.resnet50(), "layer4"),
        (lambda: torchvision.models.alexnet(), "features.11"),
        (lambda: torchvision.models.vgg11(), "features.19"),
        (lambda: torchvision.models.densenet121(), "features"),  # followed by a ReLU that works in place
        (lambda: timm.create_model("mobilenetv3_small_050"), "blocks"),  # its last convolution comes after pooling
        (lambda: timm.create_model("efficientnet_lite0"), "bn2"),
    ],
)
def test_the_last_convolution_of_known_networks(build, layer):
    model = build()
    assert target_layer(model) == layer
    assert grad_cam(model, torch.randn(1, 3, 96, 96), [0], layer).shape == (1, 96, 96)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 224**2, 4)), "Sequential has no convolution"),
        (lambda: timm.create_model("vit_tiny_patch16_224"), "VisionTransformer turns its feature maps into tokens"),
        (lambda: timm.create_model("mixer_s32_224"), "MlpMixer turns"),
        (lambda: torchvision.models.swin_t(), "SwinTransformer turns"),
    ],
)
def test_networks_without_feature_maps_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        grad_cam(build(), torch.zeros(1, 3, 224, 224), [0])


def test_an_unknown_layer_is_refused(tiny, batch):
    with pytest.raises(InputError, match="TinyNet has no layer 'layer4'"):
        grad_cam(tiny, batch, [0] * 5, layer="layer4")


def square(top, left, side=10, size=100):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def spot(row, column, size=100):
    cam = np.zeros((size, size), np.float32)
    cam[row, column] = 1
    return cam


def test_pointing_game_forgives_its_tolerance():
    mask = square(40, 40)  # rows and columns 40 .. 49
    assert pointing_game(spot(45, 45), mask) is True
    assert pointing_game(spot(45, 52), mask) is True  # 3 px of 100 by default
    assert pointing_game(spot(45, 53), mask) is False
    assert pointing_game(spot(52, 52), mask) is False  # 4.2 px along the diagonal
    assert pointing_game(spot(45, 50), mask, tolerance_px=0) is False
    assert pointing_game(spot(0, 0), mask, tolerance_px=100) is True
    assert pointing_game(np.zeros((100, 100)), mask) is False
    assert pointing_game(spot(1, 1), np.zeros((100, 100))) is None
    assert within(mask, 0).sum() == 100 and not within(np.zeros((5, 5))).any()


def test_energy_is_the_share_inside():
    mask = square(0, 0, side=50)
    cam = np.ones((100, 100), np.float32)
    assert energy_inside(cam, mask) == pytest.approx(0.25)
    cam[:50, :50] = 3
    assert energy_inside(cam, mask * 255) == pytest.approx(0.5)
    assert energy_inside(np.zeros((100, 100)), mask) == 0
    assert energy_inside(cam, np.zeros((100, 100))) is None


def test_report_counts_by_class_and_knows_chance():
    """Glioma hit twice, meningioma once of two; a slice without mask says nothing."""
    masks = np.stack([square(40, 40), square(10, 10), square(60, 60), square(60, 60), np.zeros((100, 100), np.uint8)])
    cams = np.stack([spot(44, 44), spot(12, 12), spot(65, 65), spot(5, 5), spot(5, 5)])
    labels = np.array([1, 1, 2, 2, 0])
    report = explanation_report(cams, masks, labels, ["a", "b", "c", "d", "e"], tolerance_px=0)
    assert report["n_without_mask"] == 1 and report["tolerance_px"] == 0
    every = report["all"]
    assert every["n"] == 4
    assert every["pointing_game"]["value"] == every["energy_inside"]["value"] == 0.75
    assert every["pointing_chance"]["value"] == every["energy_chance"]["value"] == pytest.approx(0.01)
    assert report["by_class"]["glioma"]["pointing_game"] == {"value": 1, "low": 1, "high": 1}
    assert report["by_class"]["meningioma"]["energy_inside"] == {"value": 0.5, "low": 0, "high": 1}
    assert report["by_class"]["no_tumor"] == {"n": 0} | dict.fromkeys(set(every) - {"n"})
    assert "pituitary" not in report["by_class"]


def test_chance_and_center_are_those_of_the_region():
    masks, regions = square(20, 20)[None], square(10, 10, side=30)[None]
    cams = spot(0, 0)[None]
    found = explanation_report(cams, masks, np.array([3]), ["a"], regions, tolerance_px=0)["all"]
    assert found["energy_chance"]["value"] == found["pointing_chance"]["value"] == pytest.approx(100 / 900)
    assert found["pointing_center"]["value"] == 1
    picture = explanation_report(cams, masks, np.array([3]), ["a"], tolerance_px=0)["all"]
    assert picture["pointing_center"]["value"] == 0
    nowhere = explanation_report(cams, masks, np.array([3]), ["a"], np.zeros((1, 100, 100)), tolerance_px=0)["all"]
    assert nowhere == picture


def test_picture_is_the_slice_where_nothing_is_hot():
    image = np.random.default_rng(0).integers(0, 256, (100, 100)).astype(np.uint8)
    cold = draw_explanation(image, np.zeros((100, 100)))
    assert cold.dtype == np.uint8 and np.array_equal(cold, np.repeat(image[..., None], 3, axis=2))
    cam = np.zeros((100, 100))
    cam[:50] = np.linspace(0, 1, 100)
    hot = draw_explanation(np.full((100, 100), 90, np.uint8), cam, square(70, 70))
    assert (hot[60, :60] == 90).all()
    red_less_blue = hot[10].astype(int) @ [1, 0, -1]
    assert red_less_blue[0] == 0 and red_less_blue[99] > 50
    assert (hot[70, 70] == (0, 255, 255)).all() and (hot[75, 75] == 90).all()
