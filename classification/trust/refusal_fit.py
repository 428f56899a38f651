"""Teaches the refusal (`classification.refusal`) what is not an MRI of the brain, at the end of a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.refusal import CLIP, Refusal
from tumorlens.data.augmentation.augment import Augment
from tumorlens.data.augmentation.not_brain import in_outline, not_brains
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import SCAN_SUFFIXES, open_scan
from tumorlens.data.labels import CLASSES
from tumorlens.data.padding import without_padding
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import PreparedSet

if TYPE_CHECKING:
    from torch import nn

_MOST_BRAINS, _MOST_DRAWN, _MOST_PHANTOMS = 600, 640, 60
_STRENGTH = 0.03  # of the regression (scikit-learn's C), chosen on pictures that the shipped weights were not tested on
_COARSEST = 18  # a feature map has at least an 18th of the input's side; coarser ones hold little but classes
_TURNED = 0.2  # of the augmented brains, because a careless export turns a brain
_STRENGTH_OF_AUGMENTATION = 0.5  # brains that look like nothing any scanner makes would open the door to other pictures


def feature_layer(model: nn.Module, size: int) -> str | None:
    """The last module whose feature map has about a sixteenth of the input's side, such as a ResNet's ``layer3``.

    None for networks without feature maps.
    """
    import torch
    from torch import nn

    sides: dict[str, int] = {}  # in the order in which the modules finish

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3]:
                sides[name] = int(output.shape[2])

        return note

    modules = {name: module for name, module in model.named_modules() if name}
    hooks = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    training, device = model.training, next(model.parameters()).device
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    fine = [name for name, side in sides.items() if side >= size // _COARSEST]

    def within_coarser(name: str) -> bool:
        """Whether a module is part of a block that goes on to coarser maps, so that its output is not a level."""
        parts = name.split(".")
        above = (".".join(parts[:n]) for n in range(1, len(parts)))
        return any(not isinstance(modules[p], nn.Sequential) and p in sides and p not in fine for p in above)

    levels = [name for name in fine if not within_coarser(name)]
    return levels[-1] if levels else None


def training_pictures(
    brains: PreparedSet, size: int, others: Sequence[NDArray[np.uint8]] = (), seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Prepared pictures ``(n, size, size)``, and whether each is not a brain ``(n,)``.

    Brains are training slices, once as they are and twice augmented (other scanners blur, strip and shade in other
    ways), and a few phantoms, which the demonstration shows. The rest is drawn (`data.augmentation.not_brain`), or
    `others`: as they are, augmented like the brains, and cut to a head's outline, so that neither tells them apart.

    Args:
        brains: Training slices.
        size: Side of the network's input in pixels.
        others: More prepared pictures that are not brains, from `read_others`.
        seed: Of everything that is drawn at random.
    """
    rng = np.random.default_rng(seed)
    chosen = [brains.images[i] for i in np.sort(rng.permutation(len(brains))[:_MOST_BRAINS])]
    augment, no_mask = Augment(_STRENGTH_OF_AUGMENTATION, _TURNED), np.zeros((size, size), np.uint8)
    augmented = [augment(image, no_mask, int(rng.integers(2**31)))[0] for _ in range(2) for image in chosen]
    preprocess = Preprocess(size)
    phantoms = [
        phantom_slice(10_000 + k, CLASSES[k % len(CLASSES)], *((256, 0.9), (96, 2.4))[k % 3 == 0])
        for k in range(min(_MOST_PHANTOMS, len(brains)))
    ]
    inside = [*chosen, *augmented, *(preprocess(phantom.image).image for phantom in phantoms)]
    careless = Augment(turn=_TURNED)
    outside = [
        *_prepared(not_brains(chosen, min(_MOST_DRAWN, 6 * len(brains)), seed), preprocess),
        *others,
        *(careless(other, no_mask, number)[0] for number, other in enumerate(others)),
        *_prepared((in_outline(other, number) for number, other in enumerate(others)), preprocess),
    ]
    return np.stack([*inside, *outside]), np.array([False] * len(inside) + [True] * len(outside))


def _prepared(pictures: Iterable[NDArray[np.generic]], preprocess: Preprocess) -> Iterable[NDArray[np.uint8]]:
    for picture in pictures:
        try:
            yield preprocess(picture).image
        except InputError:  # one gray value everywhere teaches nothing
            continue


def read_others(folder: str | Path, size: int) -> list[NDArray[np.uint8]]:
    """The pictures in a folder and its subfolders, prepared to ``(size, size)``; of a volume, the middle slice.

    A picture of one gray value is left out.

    Raises:
        InputError: The folder is missing or without pictures, or a picture cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures that are not brains")
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name.lower().endswith(SCAN_SUFFIXES)]
    scans = (without_padding(open_scan(file, constant=True)) for file in files)
    pictures = list(_prepared((scan.slice(scan.n_slices // 2) for scan in scans), Preprocess(size)))
    if not pictures:
        raise InputError(f"{folder}: no pictures there")
    return pictures


def fit_refusal(layer: str, features_nd: NDArray[np.float32], strange: NDArray[np.bool_]) -> Refusal:
    """The refusal that a logistic regression learns. Its limit is even odds, see `Refusal.limited`.

    Args:
        layer: The layer of the features.
        features_nd: ``(n, d)`` of the training pictures.
        strange: ``(n,)`` bool: pictures that are not brains.
    """
    from sklearn.linear_model import LogisticRegression

    mean = features_nd[~strange].mean(axis=0)
    std = features_nd[~strange].std(axis=0).clip(1e-4)
    standard = ((features_nd - mean) / std).clip(-CLIP, CLIP)
    regression = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=1000).fit(standard, strange)
    return Refusal(layer, mean, std, regression.coef_[0].astype(np.float32), float(regression.intercept_[0]), 0.0)
