"""Explanations of a classifier: how well Grad-CAM agrees with the true masks, and its picture."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import Patients, weighted_mean
from tumorlens.data.labels import SHIPPED_CLASSES, ClassList

TOLERANCE = 0.03  # of the longer side: Zhang et al. forgive 15 px on photographs of about 500 px
_OPACITY = 0.6  # of the hottest spot
_CONTOUR = (0, 255, 255)
_SCORES = ("pointing_game", "pointing_chance", "pointing_center", "energy_inside", "energy_chance")


def pointing_game(cam_hw: NDArray[Any], mask_hw: NDArray[Any], tolerance_px: float | None = None) -> bool | None:
    """Whether the hottest pixel lies in the mask or within a tolerance of it (J. Zhang et al., IJCV 2018).

    Args:
        cam_hw: Map, 0 or above. A map of zeros misses.
        mask_hw: Truth on the same grid, non-zero inside.
        tolerance_px: `TOLERANCE` of the longer side by default: 7 px of 224.

    Returns:
        None for an empty mask.
    """
    if not np.any(mask_hw):
        return None
    if not np.any(cam_hw):
        return False
    row, column = np.unravel_index(int(np.argmax(cam_hw)), cam_hw.shape)
    return bool(within(mask_hw, tolerance_px)[row, column])


def within(mask_hw: NDArray[Any], tolerance_px: float | None = None) -> NDArray[np.bool_]:
    """The mask, grown by a tolerance (default: as in `pointing_game`)."""
    if not np.any(mask_hw):
        return np.zeros(mask_hw.shape, bool)
    allowed = TOLERANCE * max(mask_hw.shape) if tolerance_px is None else tolerance_px
    distance = cv2.distanceTransform((np.asarray(mask_hw) == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= allowed


def energy_inside(cam_hw: NDArray[Any], mask_hw: NDArray[Any]) -> float | None:
    """Share of the map's sum that lies inside the mask (H. Wang et al., Score-CAM, CVPRW 2020).

    Args:
        cam_hw: Map, 0 or above. A map of zeros has nothing inside.
        mask_hw: Truth on the same grid, non-zero inside.

    Returns:
        0 .. 1; None for an empty mask.
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
    classes: ClassList = SHIPPED_CLASSES,
) -> dict[str, Any]:
    """Agreement of Grad-CAM maps with the true masks, over all slices with a mask and per class.

    Each score comes with its chance level: the score of a pixel drawn at random (or of a uniform map) in the region.
    The pointing game also has the score of the region's center, which lies in many a tumor of the pituitary.

    Args:
        cams_nhw: ``(n, h, w)`` from `classification.gradcam.grad_cam`.
        masks_nhw: ``(n, h, w)``, non-zero inside.
        labels_n: ``(n,)`` number of each label.
        patients: ``(n,)``.
        regions_nhw: ``(n, h, w)`` non-zero where chance may point, such as the head; the whole picture by default.
        tolerance_px: See `pointing_game`.
        seed: Of the intervals' draws.
        classes: The classes of the labels.

    Returns:
        ``{"n_without_mask", "tolerance_px", "all", "by_class": {name: ...}}``; each part has ``n``, and
        ``pointing_game``, ``pointing_chance``, ``pointing_center``, ``energy_inside`` and ``energy_chance`` as
        ``{"value", "low", "high"}``, or None if no slice has a mask.
    """
    regions = np.ones(masks_nhw.shape, bool) if regions_nhw is None else np.asarray(regions_nhw) != 0
    scores = [_scores(*slices, tolerance_px) for slices in zip(cams_nhw, masks_nhw, regions, strict=True)]
    has_mask = np.array([np.any(mask) for mask in masks_nhw], bool)
    labels_n = np.asarray(labels_n)

    def part(chosen: NDArray[np.bool_]) -> dict[str, Any]:
        def mean(name: str) -> dict[str, Any] | None:
            return weighted_mean([s.get(name, np.nan) for s in scores], chosen, patients, seed)

        return {"n": int(chosen.sum()), **{name: mean(name) for name in _SCORES}}

    return {
        "n_without_mask": int((~has_mask).sum()),
        "tolerance_px": TOLERANCE * max(masks_nhw.shape[1:]) if tolerance_px is None else tolerance_px,
        "all": part(has_mask),
        "by_class": {
            name: part(has_mask & (labels_n == c)) for c, name in enumerate(classes.names) if (labels_n == c).any()
        },
    }


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
    scores = (pointing, near[region].mean(), near[center], energy, inside[region].mean())
    return {name: float(value) for name, value in zip(_SCORES, scores, strict=True)}


def draw_explanation(
    image_hw: NDArray[np.uint8], cam_hw: NDArray[Any], mask_hw: NDArray[Any] | None = None
) -> NDArray[np.uint8]:
    """The slice with its heat map over it, RGB ``(h, w, 3)``: the perceptually uniform *inferno*.

    Args:
        image_hw: Gray slice.
        cam_hw: Map on the same grid, 0 .. 1; transparent at 0.
        mask_hw: A mask. Its contour is cyan.
    """
    heat = np.rint(255 * np.clip(cam_hw, 0, 1)).astype(np.uint8)
    opacity = (_OPACITY / 255 * np.arange(256, dtype=np.float32))[:, None]
    color = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO).reshape(256, 3)[:, ::-1]
    picture = np.rint((1 - opacity)[heat] * image_hw[..., None] + (opacity * color)[heat]).astype(np.uint8)
    if mask_hw is not None:
        inside = (np.asarray(mask_hw) != 0).astype(np.uint8)
        contours, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, _CONTOUR, 1)
    return picture
