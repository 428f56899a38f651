"""The classifier's network: torchvision's ResNet-50 with four outputs, and where its weights start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torchvision.models import ResNet50_Weights, resnet50

from data.cards import read_state
from data.errors import InputError
from data.labels import CLASSES

ARCHITECTURE = "resnet50"


@dataclass(frozen=True)
class InitReport:
    """What an initialisation gave: how many tensors fitted, and which parts of the network start from chance."""

    source: str
    loaded: int
    total: int
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        rest = f"; from chance: {', '.join(self.fresh)}" if self.fresh else ""
        return f"{self.loaded} of {self.total} tensors from {self.source}{rest}"


def build_classifier() -> nn.Module:
    """ResNet-50 (He et al., CVPR 2016) with one logit per class of `data.labels.CLASSES`, from chance.

    Input ``(n, 3, h, w)`` as `data.loaders.to_batch` gives it; output logits ``(n, 4)``.
    """
    return resnet50(weights=None, num_classes=len(CLASSES))


def initialise(model: nn.Module, init: str = "imagenet") -> InitReport:
    """Give a fresh classifier its first weights.

    Args:
        model: From `build_classifier`.
        init: ``"imagenet"`` (torchvision's weights, downloaded), ``"none"``, or a ``.safetensors`` or ``.pth`` file
            with torchvision's names; what the file lacks stays as it is.

    Raises:
        InputError: No download possible, no such file, or nothing in it fits.
    """
    if init == "none":
        return _report(model, set(), "nothing")
    if init == "imagenet":
        try:
            state = ResNet50_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # a proxy's error page fails the hash check, a RuntimeError
            raise InputError(
                f"torchvision's ImageNet weights cannot be downloaded ({error}); give a file with --init FILE, "
                "or --init none"
            ) from None
        source = "torchvision ImageNet1K V2"
    else:
        state, source = read_state(Path(init)), Path(init).name
    own = model.state_dict()
    fitting = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name in own and own[name].shape == tensor.shape
    }
    if not fitting:
        raise InputError(f"{init}: none of its {len(state)} tensors fits ResNet-50")
    model.load_state_dict(fitting, strict=False)
    return _report(model, set(fitting), source)


def _report(model: nn.Module, loaded: set[str], source: str) -> InitReport:
    names = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    missing = [n for n in names if n not in loaded]
    parts: dict[str, tuple[int, int]] = {}
    for name in names:
        part = name.split(".")[0]
        lost, total = parts.get(part, (0, 0))
        parts[part] = (lost + (name in missing), total + 1)
    fresh = tuple(p if lost == total else f"{p} ({lost} of {total})" for p, (lost, total) in parts.items() if lost)
    return InitReport(source, len(names) - len(missing), len(names), fresh)
