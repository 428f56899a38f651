"""Where a classifier looked: Grad-CAM, how well it agrees with the true masks, and its picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from monai.visualize import GradCAM, ModelWithHooks
from numpy.typing import NDArray
from torch import nn

from data.bootstrap import Patients, weighted_mean
from data.errors import InputError
from data.labels import CLASSES

# Zhang et al. forgive 15 px on photographs of about 500 px.
TOLERANCE = 0.03
_OPACITY = 0.6  # of the hottest spot
_CONTOUR = (0, 255, 255)


def grad_cam(
    model: nn.Module, batch_nchw: torch.Tensor, class_indices: Sequence[int] | NDArray[Any], layer: str | None = None
) -> NDArray[np.float32]:
    """Grad-CAM (R. Selvaraju et al., ICCV 2017) by MONAI: what in each slice speaks for a class.

    The network runs in eval mode; its modes and parameters are as before when this returns.

    Args:
        model: Any convolutional network that gives logits ``(n, c)``.
        batch_nchw: From `data.loaders.to_batch`.
        class_indices: ``(n,)`` the class to explain in each slice.
        layer: Dotted name of the module whose output is weighed; by default that of `target_layer`.

    Returns:
        ``(n, h, w)`` on the batch's own grid, 0 .. 1: each map divided by its maximum, all 0 where nothing speaks for
        the class.

    Raises:
        InputError: The network has no feature maps to weigh, or no such layer.
    """
    if not len(batch_nchw):
        return np.zeros((0, *batch_nchw.shape[2:]), np.float32)
    if layer is not None and layer not in dict(model.named_modules()):
        raise InputError(f"{type(model).__name__} has no layer {layer!r}")
    where = next(model.parameters()).device
    with _eval_mode(model), torch.inference_mode(False), torch.enable_grad():
        batch = batch_nchw.to(where)
        chosen = torch.as_tensor(np.asarray(class_indices), device=where).long()
        with _Watched(model, layer or target_layer(model, tuple(batch.shape[1:]))) as watched:
            maps = GradCAM(watched, watched.target_layers, postprocessing=_share_of_maximum)(batch, class_idx=chosen)
    return maps[:, 0].detach().float().cpu().numpy()


class _Watched(ModelWithHooks):
    """MONAI's wrapper, but with a class for each slice, gradients down to the layer only (which halves the time, and
    lets later layers work in place), and no hook left behind."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__(model, layer)
        self.register_forward = self.register_backward = True
        self._handle = model.get_submodule(layer).register_forward_hook(self._watch)

    def _watch(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        (name,) = self.target_layers
        features = output.detach().requires_grad_()
        features.register_hook(lambda gradient: self.gradients.__setitem__(name, gradient))
        self.activations[name] = features
        return features.clone()

    def class_score(self, logits: torch.Tensor, class_idx: Any) -> torch.Tensor:
        return logits.gather(1, class_idx[:, None])[:, 0]

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _share_of_maximum(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients of the parameters, until the block ends."""
    training = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, requires, gradient in wanted:
            parameter.requires_grad_(requires)
            parameter.grad = gradient


def target_layer(model: nn.Module, input_chw: tuple[int, ...] = (3, 224, 224)) -> str:
    """Name of the module that ends the last convolution's block: the last output on the last convolution's grid.

    ``layer4`` in torchvision's ResNets, the last ReLU before pooling in VGG and AlexNet. Found by one pass of zeros.

    Args:
        model: In eval mode on return as on entry.
        input_chw: Shape of one network input.

    Raises:
        InputError: There is no convolution, or tokens follow the last one (a transformer, an MLP-Mixer): what tells the
            classes apart is then in no feature map.
    """
    name = type(model).__name__
    outputs = _outputs(model, input_chw)
    last = max((i for i, (_, module, shape) in enumerate(outputs) if _convolves(module, shape)), default=None)
    if last is None:
        raise InputError(f"{name} has no convolution, so Grad-CAM cannot explain it")
    grid = outputs[last][2][2:]
    target = max(i for i, (_, _, shape) in enumerate(outputs) if len(shape) == 4 and shape[2:] == grid)
    if any(_makes_tokens(module, shape) for _, module, shape in outputs[target:]):
        raise InputError(f"{name} turns its feature maps into tokens, so Grad-CAM cannot explain it")
    return outputs[target][0]


def _convolves(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """A 2-D convolution over more than one pixel; what works on pooled features has no place in the picture."""
    return isinstance(module, nn.Conv2d) and max(shape[2:]) > 1


def _makes_tokens(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Tokens x channels, or the rows x columns x channels of a Swin transformer."""
    return len(shape) == 3 or (len(shape) == 4 and isinstance(module, nn.Linear))


def _outputs(model: nn.Module, input_chw: tuple[int, ...]) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Name, module and output shape in the order in which the modules finish; without the model itself."""
    seen: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                seen.append((name, module, tuple(output.shape)))

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name]
    try:
        with _eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *input_chw, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def pointing_game(cam_hw: NDArray[Any], mask_hw: NDArray[Any], tolerance_px: float | None = None) -> bool | None:
    """Whether the hottest pixel lies in the mask or at most a tolerance from it (J. Zhang et al., IJCV 2018).

    Args:
        cam_hw: Map, 0 or above; all 0 points nowhere and misses.
        mask_hw: Truth on the same grid, non-zero inside.
        tolerance_px: `TOLERANCE` of the longer side by default: 7 px of 224.

    Returns:
        None where the mask is empty.
    """
    if not np.any(mask_hw):
        return None
    if not np.any(cam_hw):
        return False
    row, column = np.unravel_index(int(np.argmax(cam_hw)), cam_hw.shape)
    return bool(within(mask_hw, tolerance_px)[row, column])


def within(mask_hw: NDArray[Any], tolerance_px: float | None = None) -> NDArray[np.bool_]:
    """The mask and all that is at most a tolerance (default: as in `pointing_game`) away from it."""
    if not np.any(mask_hw):
        return np.zeros(mask_hw.shape, bool)
    allowed = TOLERANCE * max(mask_hw.shape) if tolerance_px is None else tolerance_px
    distance = cv2.distanceTransform((np.asarray(mask_hw) == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= allowed


def energy_inside(cam_hw: NDArray[Any], mask_hw: NDArray[Any]) -> float | None:
    """Share of the map's sum that lies inside the mask (H. Wang et al., Score-CAM, CVPRW 2020).

    Args:
        cam_hw: Map, 0 or above; all 0 has nothing inside.
        mask_hw: Truth on the same grid, non-zero inside.

    Returns:
        0 .. 1; None where the mask is empty.
    """
    inside = np.asarray(mask_hw) != 0
    if not inside.any():
        return None
    total = float(np.sum(cam_hw, dtype=float))
    return float(np.sum(cam_hw[inside], dtype=float)) / total if total > 0 else 0.0


def explanation_report(
    cams_nhw: NDArray[Any],
    masks_nhw: NDArray[Any],
    labels_n: NDArray[np.int64],
    patients: Patients,
    regions_nhw: NDArray[Any] | None = None,
    tolerance_px: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How well maps agree with the true masks, over all slices that have one and per class.

    Beside each score stands its chance: what a pixel drawn at random (or a uniform map) reaches in the region, and for
    the pointing game also what the middle of the region reaches, which lies in many a tumor of the pituitary.

    Args:
        cams_nhw: ``(n, h, w)`` from `grad_cam`.
        masks_nhw: ``(n, h, w)``, non-zero inside.
        labels_n: ``(n,)`` index into `data.labels.CLASSES`.
        patients: ``(n,)``.
        regions_nhw: ``(n, h, w)`` non-zero where chance may point, such as the head; the whole picture by default.
        tolerance_px: See `pointing_game`.
        seed: Of the intervals' draws.

    Returns:
        ``{"n_without_mask", "tolerance_px", "all", "by_class": {name: ...}}``; each part has ``n``, and
        ``pointing_game``, ``pointing_chance``, ``pointing_center``, ``energy_inside`` and ``energy_chance`` as
        ``{"value", "low", "high"}``, or None where no slice has a mask.
    """
    regions = np.ones(masks_nhw.shape, bool) if regions_nhw is None else np.asarray(regions_nhw) != 0
    scores = [_scores(*slices, tolerance_px) for slices in zip(cams_nhw, masks_nhw, regions, strict=True)]
    drawn = np.array([np.any(mask) for mask in masks_nhw], bool)
    labels_n = np.asarray(labels_n)

    def part(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        def mean(name: str) -> dict[str, Any] | None:
            return weighted_mean([s.get(name, np.nan) for s in scores], chosen, patients, seed)

        return {"n": int(chosen.sum()), **{name: mean(name) for name in _SCORES}}

    return {
        "n_without_mask": int((~drawn).sum()),
        "tolerance_px": TOLERANCE * max(masks_nhw.shape[1:]) if tolerance_px is None else tolerance_px,
        "all": part(drawn),
        "by_class": {name: part(drawn & (labels_n == c)) for c, name in enumerate(CLASSES) if (labels_n == c).any()},
    }


_SCORES = ("pointing_game", "pointing_chance", "pointing_center", "energy_inside", "energy_chance")


def _scores(
    cam_hw: NDArray[Any], mask_hw: NDArray[Any], region_hw: NDArray[np.bool_], tolerance_px: float | None
) -> dict[str, float]:
    pointing, energy = pointing_game(cam_hw, mask_hw, tolerance_px), energy_inside(cam_hw, mask_hw)
    if pointing is None or energy is None:
        return {}
    region = region_hw if region_hw.any() else np.ones_like(region_hw)
    near, inside = within(mask_hw, tolerance_px), np.asarray(mask_hw) != 0
    rows, columns = np.nonzero(region)
    center = round(float(rows.mean())), round(float(columns.mean()))
    found = (pointing, near[region].mean(), near[center], energy, inside[region].mean())
    return {name: float(value) for name, value in zip(_SCORES, found, strict=True)}


def draw_explanation(
    image_hw: NDArray[np.uint8], cam_hw: NDArray[Any], mask_hw: NDArray[Any] | None = None
) -> NDArray[np.uint8]:
    """The slice under its heat, as RGB ``(h, w, 3)``: matplotlib's perceptually uniform *inferno*, transparent at 0.

    Args:
        image_hw: Grey slice.
        cam_hw: Map on the same grid, 0 .. 1.
        mask_hw: The true or the drawn mask; its contour is cyan.
    """
    from matplotlib import colormaps

    heat = np.clip(np.asarray(cam_hw, float), 0, 1)
    color = colormaps["inferno"](heat)[..., :3] * 255
    opacity = (_OPACITY * heat)[..., None]
    picture = np.round((1 - opacity) * image_hw[..., None] + opacity * color).astype(np.uint8)
    if mask_hw is not None:
        inside = (np.asarray(mask_hw) != 0).astype(np.uint8)
        contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, _CONTOUR, 1)
    return picture
