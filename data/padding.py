"""Background: a scan whose air holds another value than the darkest gets dark air."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.components import label_pieces
from tumorlens.data.scan import Scan

_RIM_SLICES, _REST_SLICES = 32, 12  # of a volume, at most: enough to see what its background is
_REST_PX = 128  # rows and columns of a slice, at least
_MOST_BACKGROUNDS = 4
_AS_BRIGHT = "the background is as bright as the brightest tissue, so that what touches it may be lost"
_NOTE = "the background of"

# The share of the slices' rims that a value fills in runs. Only padding fills them below all tissue. Fat of the neck
# that is clipped to the highest value fills a few percent.
_FEW, _MANY = 0.01, 0.1
_IN_RUNS = 0.5  # of the pixels that hold the value: noise of a few levels has short runs only

# Distances as shares of the range of tissue, from its 0.1st to its 99th percentile.
_ABOVE = 0.1  # a background may lie so far above the 0.1st percentile
_BELOW = 0.002  # or so far below the lowest value; 0.004 has changed a label, and volumes by 4 %
_ZERO_BELOW = 2.0  # 0 is the air of most scans, and the networks have learned from it
_MIXED = 0.25  # what lies so far below the 0.1st percentile, or above the highest value, holds background, not tissue
_LIKE = 0.01  # so near to the value of a background lie the ripples that splines have left in it
_NEXT, _NEAR, _FAR = (np.ones((n, n), np.uint8) for n in (3, 7, 11))  # pixels around a background, mixed by resampling
_POCKET_PX = 16  # a patch of so many equal pixels inside a slice is background, too
_NEARER, _MOST_RIMS = 0.85, 16  # mixed pixels are so much nearer to a background than those behind them
_MIN_AROUND = 0.05  # of the box around a picture's content; less is a frame, which preprocessing trims


@dataclass(frozen=True)
class _Tissue:
    """Levels of what is not background: low and high are its 0.1st and 99th percentile."""

    low: float
    high: float
    highest: float

    @property
    def range(self) -> float:
        return self.high - self.low


def without_padding(scan: Scan) -> Scan:
    """The scan with a dark background. A scan that has one is returned as it is.

    Where nothing was measured, skull-stripped, resampled and normalized scans often hold -1024, -32768, 65535, or 0
    amid z-scores. That would be taken for tissue, or would leave no contrast to the brain. A value is a background if
    it fills the rims of the slices in runs, and lies amid the values of the rest, above or far below them. It becomes
    0 where that lies a little below the rest, as the air of most scans does, and else the lowest value of the rest: the
    answer must not depend on the value. Amid them, only what hangs together with the rim is background, because tissue
    may hold the same value. Above or below them, pixels that resampling has mixed with the background are replaced as
    well.

    Color pictures and frames around pictures stay.

    Returns:
        The scan, with a note if voxels were changed, and a warning where bright tissue may have been taken for
        background. The array of `scan` is never changed.
    """
    if scan.voxels.dtype.kind not in "uif" or (not scan.volume and scan.voxels.ndim != 2):
        return scan
    if any(note.startswith(_NOTE) for note in scan.notes):  # the next to lowest value is no better
        return scan
    slices = _slices(scan, scan.voxels)
    shares, step = _rim_values(slices)
    tissue = _tissue(slices, list(shares), step) if shares else None
    if tissue is None:
        return scan
    wrong = [value for value, share in shares.items() if _may_be_wrong(value, share, tissue)]
    lowest = _lowest(slices, wrong, tissue, step) if wrong else 0.0
    wrong = [value for value in wrong if value > tissue.low or _is_far_below(value, lowest, tissue)]
    if not wrong:
        return scan
    dark = 0.0 if -_LIKE <= tissue.low / tissue.range <= _ZERO_BELOW else lowest
    air = [value for value in shares if value not in wrong]
    dark, lowest = min([dark, *air]), min([lowest, *air])
    tolerance = max(step, 1e-4 * tissue.range) if slices.dtype.kind == "f" else 0.0
    masks = slices < lowest
    for value in wrong:
        if value > lowest:
            masks |= _with_mixed(slices, _background(slices, value, tissue, tolerance), value)
        if _is_above(value, tissue):
            masks |= slices > (tissue.highest + value) / 2
    masks |= _dilated(masks, _NEAR) & ((slices < dark) | (slices > tissue.highest + _MIXED * tissue.range))
    if not scan.volume and _is_frame(masks[0]):
        return scan
    voxels = scan.voxels.copy(order="K")
    _slices(scan, voxels)[masks] = dark
    values = " and ".join(f"{value:g}" for value in wrong)
    note = f"{_NOTE} {values} ({masks.mean():.0%} of the scan) was set to {dark:g}"
    scan = replace(scan, voxels=voxels, notes=(*scan.notes, note))
    if not any(tissue.high <= value <= tissue.highest + _MIXED * tissue.range for value in wrong):
        return scan
    return replace(scan, warnings=(*scan.warnings, _AS_BRIGHT))


def solid_patches(mask_hw: NDArray[np.bool_], pocket_px: int | None = _POCKET_PX) -> NDArray[np.bool_]:
    """The pixels of a mask that hang together with its rim, or with many others.

    Args:
        mask_hw: ``(rows, columns)``, the pixels that hold the value of a background.
        pocket_px: Pixels of a patch inside the slice that is background, too; None if no such patch is.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask_hw.astype(np.uint8), connectivity=4)
    solid = np.zeros(len(stats), bool) if pocket_px is None else stats[:, cv2.CC_STAT_AREA] >= pocket_px
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        solid[line] = True
    solid[0] = False
    return np.asarray(solid[labels])


def _slices(scan: Scan, voxels: NDArray[Any]) -> NDArray[Any]:
    """``(slices, rows, columns)``, a view of the voxels."""
    return np.moveaxis(voxels, scan.slice_axis, 0) if scan.volume else voxels[None]


def _rim_values(slices: NDArray[Any]) -> tuple[dict[float, float], float]:
    """The most frequent values of the rims -> the share of the rims that they fill in runs of three or more; and the
    step at which values differ."""
    few = slices[_spread(len(slices), _RIM_SLICES)]
    edges = [few[:, 0], few[:, -1], few[:, :, 0], few[:, :, -1]]
    rim = np.concatenate([edge[:, 1:-1].ravel() for edge in edges])
    step = 0.0
    if slices.dtype.kind == "f":  # resampling with splines leaves a background that is constant but for the last bits
        step = max(1e-6 * float(np.ptp(_sparse(slices))), 1e-30)
        edges = [np.rint(edge.astype(np.float64) / step) for edge in edges]
    levels = np.concatenate([edge[:, 1:-1].ravel() for edge in edges])
    in_runs = np.concatenate([((e[:, 1:-1] == e[:, :-2]) & (e[:, 1:-1] == e[:, 2:])).ravel() for e in edges])
    found, counts = np.unique(levels[in_runs], return_counts=True)
    shares = {}
    for i in np.argsort(-counts, kind="stable")[:_MOST_BACKGROUNDS]:
        holds = levels == found[i]
        if counts[i] >= _FEW * len(rim) and counts[i] >= _IN_RUNS * np.count_nonzero(holds):
            shares[float(rim[holds.argmax()]) if found[i] else 0.0] = float(counts[i] / len(rim))
    return shares, step


def _tissue(slices: NDArray[Any], backgrounds: list[float], step: float) -> _Tissue | None:
    """Levels of what does not lie near any background in some slices; none if nothing does."""
    few = _sparse(slices)
    exact = _holds(few, backgrounds, step)
    if exact.all():
        return None
    like = _LIKE * float(np.subtract(*_levels(few[~exact])[::-1]))
    parts = []
    for image_hw, mask in zip(few, exact, strict=True):
        mask = mask | solid_patches(_holds(image_hw, backgrounds, like), None)
        parts.append(image_hw[cv2.dilate(mask.astype(np.uint8), _FAR) == 0])
    values = np.concatenate(parts)
    if not values.size:
        return None
    low, high = _levels(values)
    brightest = np.sort(values[values >= high])
    gaps = np.flatnonzero(np.diff(brightest) > high - low)  # above lie pockets that are mixed with background
    return _Tissue(low, high, float(brightest[gaps[0] if gaps.size else -1])) if high > low else None


def _levels(values: NDArray[Any]) -> tuple[float, float]:
    """The 0.1st and the 99th percentile."""
    low, high = np.percentile(values, (0.1, 99))
    return float(low), float(high)


def _may_be_wrong(value: float, share: float, tissue: _Tissue) -> bool:
    """Whether a background may be too far from the lowest value of the rest, which is at most the low one of tissue."""
    return _is_far_below(value, tissue.low, tissue) or (value > tissue.low + _ABOVE * tissue.range and share >= _MANY)


def _is_far_below(value: float, lowest: float, tissue: _Tissue) -> bool:
    return lowest - value > (_ZERO_BELOW if value == 0 else _BELOW) * tissue.range


def _lowest(slices: NDArray[Any], backgrounds: list[float], tissue: _Tissue, step: float) -> float:
    """The lowest value of a scan that is neither one of these backgrounds nor mixed with one of them."""
    lowest = tissue.low
    for image_hw in slices:
        rest = image_hw[~_holds(image_hw, backgrounds, step)]
        rest = rest[rest >= tissue.low - _MIXED * tissue.range]
        lowest = min(lowest, float(rest.min())) if rest.size else lowest
    return lowest


def _background(slices: NDArray[Any], value: float, tissue: _Tissue, tolerance: float) -> NDArray[np.bool_]:
    """The voxels that belong to a background."""
    masks = _holds(slices, [value], tolerance)
    if _is_above(value, tissue):
        return masks
    if len(slices) == 1:  # clipped tissue may form patches as large as background, of the highest value
        return solid_patches(masks[0], None if value >= tissue.high else _POCKET_PX)[None]
    labels, count = label_pieces(masks, corners=False)
    at_rim = np.zeros(count + 1, bool)
    for face in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        at_rim[face] = True
    return masks & at_rim[labels]


def _with_mixed(slices: NDArray[Any], masks: NDArray[np.bool_], value: float) -> NDArray[np.bool_]:
    """A background and the pixels around it that resampling has mixed with it: rims of values in between, and ripples.

    They are nearer to its value than the pixels behind them.
    """
    for _ in range(_MOST_RIMS):
        rim = _dilated(masks)
        behind = _dilated(rim) & ~rim
        at_rim, at_behind = (np.abs(slices[m] - np.float64(value)) for m in (rim & ~masks, behind))
        if not at_behind.size or np.median(at_rim) > _NEARER * np.median(at_behind):
            break
        masks = rim
    return masks


def _dilated(masks: NDArray[np.bool_], kernel: NDArray[np.uint8] = _NEXT) -> NDArray[np.bool_]:
    return np.stack([cv2.dilate(mask.view(np.uint8), kernel) for mask in masks]) != 0


def _is_above(value: float, tissue: _Tissue) -> bool:
    return value > tissue.highest + _MIXED * tissue.range


def _holds(voxels: NDArray[Any], values: list[float], tolerance: float) -> NDArray[np.bool_]:
    mask = np.zeros(voxels.shape, bool)
    for value in values:
        mask |= voxels == value if tolerance == 0 else (voxels >= value - tolerance) & (voxels <= value + tolerance)
    return mask


def _is_frame(mask_hw: NDArray[np.bool_]) -> bool:
    """Whether a background lies around a picture, and hardly in the box of what it surrounds."""
    rows, columns = np.flatnonzero(~mask_hw.all(axis=1)), np.flatnonzero(~mask_hw.all(axis=0))
    return not rows.size or mask_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() < _MIN_AROUND


def _sparse(slices: NDArray[Any]) -> NDArray[Any]:
    """Some of the slices, and of each some rows and columns."""
    every = max(1, min(slices.shape[1:]) // _REST_PX)
    return slices[_spread(len(slices), _REST_SLICES), ::every, ::every]


def _spread(length: int, most: int) -> NDArray[np.int_]:
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))
