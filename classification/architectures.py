"""The classifiers by name: two small networks and all of torchvision's and timm's, with size and normalization.

ResNet-50 is the default. The others are for comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.normalization import IMAGENET, Normalization

_HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Architecture:
    """A network by name.

    Attributes:
        name: Its name for ``--arch`` and on the card.
        input_size: Side in pixels of the square that it was designed for.
        normalization: The normalization of pixels that its (pretrained) weights expect.
        build: Input side in pixels and number of classes -> a network with random weights and a logit per class.
        pretrained: Downloads its ImageNet weights; None if there are none.
    """

    name: str
    input_size: int
    normalization: Normalization
    build: Callable[[int, int], nn.Module]
    pretrained: Callable[[], dict[str, torch.Tensor]] | None = None


def find_architecture(name: str) -> Architecture:
    """The architecture of a name: ``cnn``, ``mlp``, any classification network of torchvision, else any of timm
    (``timm/NAME`` where both have the name).

    Raises:
        InputError: The name is unknown.
    """
    if name in _OWN:
        return _OWN[name]
    from torchvision.models import list_models

    if name in _torchvision_names(list_models):
        return _from_torchvision(name)
    return _from_timm(name)


class Cnn(nn.Module):
    """A small CNN: four 5x5 convolutions of stride 2 (64-128-128-256 channels), dense layers of 64 and 32 units."""

    def __init__(self, size: int, n_classes: int) -> None:
        super().__init__()
        widths = (3, 64, 128, 128, 256)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        side = -(-size // 16)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(256 * side * side, 64),
            nn.ReLU(inplace=True),
            nn.Dropout(0.4),
            nn.Linear(64, 32),
            nn.ReLU(inplace=True),
            nn.Linear(32, n_classes),
        )

    def forward(self, batch_nchw: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(batch_nchw))


class Mlp(nn.Module):
    """A multi-layer perceptron with two hidden layers on the gray pixels. It cannot tell which pixels are neighbors."""

    def __init__(self, size: int, n_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size * size, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(0.4),
            nn.Linear(512, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(0.4),
            nn.Linear(128, n_classes),
        )

    def forward(self, batch_nchw: torch.Tensor) -> torch.Tensor:
        return self.layers(batch_nchw[:, :1])  # the three channels are equal


_OWN = {
    "cnn": Architecture("cnn", 224, _HALF, Cnn),
    "mlp": Architecture("mlp", 64, _HALF, Mlp),
}


def _torchvision_names(list_models: Callable[..., list[str]]) -> set[str]:
    import torchvision

    return set(list_models(module=torchvision.models))


def _from_torchvision(name: str) -> Architecture:
    from torchvision.models import get_model, get_model_weights

    weights = next(iter(get_model_weights(name))) if len(get_model_weights(name)) else None
    best: Any = getattr(get_model_weights(name), "DEFAULT", weights)
    recipe = best.transforms() if best is not None else None
    size = int(recipe.crop_size[0]) if recipe is not None else 224
    shown = Normalization(tuple(recipe.mean), tuple(recipe.std)) if recipe is not None else IMAGENET
    # Weights ported from TensorFlow expect -1 to 1; torchvision converts inside the network when it loads them.
    if name in ("inception_v3", "googlenet"):
        shown = _HALF
    # The auxiliary heads of 2015 are left out: batch normalization made them unnecessary.
    extra = {"aux_logits": False, "init_weights": True} if name in ("inception_v3", "googlenet") else {}

    def build(side: int, n_classes: int) -> nn.Module:
        return get_model(name, weights=None, num_classes=n_classes, **extra)

    def pretrained() -> dict[str, torch.Tensor]:
        return dict(best.get_state_dict(progress=False, check_hash=True))

    return Architecture(name, size, shown, build, pretrained if best is not None else None)


def _from_timm(name: str) -> Architecture:
    import timm

    bare = name.removeprefix("timm/")
    if not timm.is_model(bare):
        raise InputError(f"architecture {name!r} is not one of {', '.join(_OWN)}, nor one of torchvision's or timm's")
    settings = timm.get_pretrained_cfg(bare)
    size = 224 if settings is None else int(settings.input_size[-1])
    shown = IMAGENET if settings is None else Normalization(tuple(settings.mean), tuple(settings.std))
    has_weights = settings is not None and settings.has_weights

    def build(side: int, n_classes: int) -> nn.Module:
        create = partial(timm.create_model, bare, pretrained=False, num_classes=n_classes)
        try:
            if side == size:
                return create()
            try:  # most transformers are built for one input side
                return create(img_size=side)
            except TypeError:  # most convolutional networks take any side, and do not have this argument
                return create()
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise InputError(f"architecture {name!r} cannot be built for {side} pixels ({reason_of(error)})") from None

    def pretrained() -> dict[str, torch.Tensor]:
        return dict(timm.create_model(bare, pretrained=True, num_classes=len(CLASSES)).state_dict())

    return Architecture(name, size, shown, build, pretrained if has_weights else None)
