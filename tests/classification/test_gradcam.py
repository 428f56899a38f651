"""Grad-CAM against maps computed by hand, on known networks, and on networks that it cannot explain."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional

from tumorlens.classification.gradcam import grad_cam, target_layer
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
    """B. Zhou et al., CVPR 2016: features weighted by the class's row of the linear layer, on the input's grid."""
    model.eval()
    with torch.no_grad():
        features = model.features(batch)
        maps = torch.einsum("nkhw,nk->nhw", features, model.head.weight[list(classes)]).clamp(min=0)
        maps = functional.interpolate(maps[:, None], batch.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    peak = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, maps / peak.clamp(min=1e-30), 0).numpy()


def test_is_the_class_activation_map_where_that_exists(tiny, batch):
    classes = [0, 3, 1, 2, 2]
    cams = grad_cam(tiny, batch, classes)
    assert cams.shape == (5, 32, 24) and cams.dtype == np.float32
    assert np.abs(cams - class_activation_map(tiny, batch, classes)).max() < 1e-5
    assert cams.max(axis=(1, 2)) == pytest.approx(np.ones(5)) and cams.min() >= 0


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
    with pytest.raises(RuntimeError):  # the network fails
        grad_cam(tiny, torch.zeros(1, 5, 32, 32), [0])
    with pytest.raises(RuntimeError):  # the network answers, and the class does not exist
        grad_cam(tiny, torch.zeros(1, 3, 32, 32), [9])
    assert tiny.training and all(p.requires_grad for p in tiny.parameters())
    assert not any(m._forward_hooks for m in tiny.modules())


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: torchvision.models.resnet50(), "layer4"),
        (lambda: torchvision.models.alexnet(), "features.11"),
        pytest.param(lambda: torchvision.models.vgg11(), "features.19", marks=pytest.mark.slow),
        (lambda: torchvision.models.densenet121(), "features"),  # followed by a ReLU that works in place
        (lambda: timm.create_model("mobilenetv3_small_050"), "blocks"),  # its last convolution comes after pooling
        (lambda: timm.create_model("efficientnet_lite0"), "bn2"),
    ],
)
def test_the_last_convolution_of_known_networks(build, layer):
    model = build()
    assert target_layer(model) == layer
    assert grad_cam(model, torch.randn(1, 3, 96, 96), [0]).shape == (1, 96, 96)


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
