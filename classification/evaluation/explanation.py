"""Where a classifier looked: Grad-CAM, how well it agrees with the true masks, and its picture."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import Patients, weighted_mean
from tumorlens.data.labels import CLASSES

# Zhang et al. forgive 15 px on photographs of about 500 px.
TOLERANCE = 0.03


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
