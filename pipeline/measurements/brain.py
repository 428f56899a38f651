"""The brain region of a volume: lesions count only inside it, not in the tongue, the eyes, the sinus or the neck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.atlas import Fit, load_atlas, register

# The region reaches so far beyond the brain: lesions of the meninges lie on it, and no affine map fits exactly.
MARGIN_MM = 5.0

# A fit outside of these is not used. The template is larger than the average brain; a child's may be 0.75 as large.
MIN_SIMILARITY = 0.55
MIN_SEEN = 0.5
SIZES = (0.68, 1.25)
MAX_STRETCH = 1.4  # the longest principal axis of the map divided by the shortest
MAX_TURN_DEGREES = 50.0
MIN_TISSUE = 0.85  # the share of the atlas' brain, as far as it is seen, that lies in the head
MAX_ABOVE = 0.1  # the head that lies above and far from the brain, divided by the brain: a skull is thin
_FAR_MM = 32.0

_GRID_MM = 3.0  # the fit is made on voxels of about this size
_MOST_VOXELS = 100  # along an axis: bounds the time on volumes that are larger than a head
_BRIGHT = 0.95  # brighter tissue (fat, vessels, lesions) is clipped, or it would dominate the comparison
_AIR = 0.12  # of the range of gray values

# A skull-stripped brain lies in zeros, has the volume of a brain, and no dark layer (a skull) below its surface.
_MIN_BLANK = 0.2
_BRAIN_ML = (500.0, 2300.0)
_MIN_WIDTH_MM = 70.0  # along each axis; in a head whose slice distance is wrong, the skull is too thin to be seen
_RINGS_MM = (0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 20.0)  # borders of the layers, from the surface
_MAX_DIP = 0.8  # the darkest layer divided by the brightest above it


@dataclass(frozen=True)
class BrainRegion:
    """Where lesions of the brain can lie in a volume.

    Attributes:
        mask: bool, in the shape and order of the scan's `voxels`: the brain and `MARGIN_MM` around it.
        method: ``"stripped"`` for a brain without a skull, ``"atlas"`` for a head to which the atlas was registered.
        fit: Where the atlas lies; none for ``"stripped"``.
    """

    mask: NDArray[np.bool_]
    method: str
    fit: Fit | None = None


@dataclass(frozen=True)
class _Copy:
    """A small copy of a volume, whose axes run to the right, to anterior and to superior as nearly as they can.

    Attributes:
        voxels: ``(i, j, k)`` float32, means of blocks.
        affine: ``(4, 4)``, its voxel indices to RAS mm.
        block: ``(3,)`` voxels of the volume in one of the copy.
        shape: ``(3,)`` of the volume in the copy's order.
        orientation: ``(3, 2)`` of the scan's array, as nibabel writes it.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    block: NDArray[np.int_]
    shape: tuple[int, ...]
    orientation: NDArray[np.float64]

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def places(self, index: NDArray[np.float64]) -> NDArray[np.float64]:
        """RAS mm of voxel indices ``(..., 3)``."""
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]


def find_brain(scan: Scan) -> BrainRegion | str:
    """The brain region of a volume, or why there is none.

    A skull-stripped brain is its own region. To a head, the MNI152 brain is registered (see `atlas.register`), whatever
    its contrast, its orientation and how much of face and neck it shows. A fit that no human head can have is reported
    and not used. The same volume always gives the same region.

    Returns:
        The region, or a reason in words: the scan is a picture, its orientation is not known, it shows too little of
        a brain, or the fit failed.

    Raises:
        InputError: The atlas is not installed.
    """
    if not scan.volume:
        return "a picture has no brain region"
    if scan.affine is None:
        return "the volume's orientation is not known, so no atlas can be laid on it"
    copy = _small_copy(scan)
    if min(copy.voxels.shape) < 2:
        return "the volume is too thin for an atlas"
    tissue = _tissue(copy.voxels)
    if not tissue.any():
        return "nothing stands out from the background"
    stripped = _stripped_brain(copy)
    if stripped is not None:
        return BrainRegion(_in_scan(copy, _distance_mm(stripped, copy.spacing_mm), scan), "stripped")
    top = float(np.quantile(copy.voxels[tissue], _BRIGHT))
    fit = register(np.minimum(copy.voxels, top), copy.affine, tissue)
    reason = "no part of the volume can hold a brain" if fit is None else _flaw(fit, copy, tissue)
    if fit is None or reason is not None:
        return f"the atlas does not fit this volume: {reason}"
    # The distance to the brain's surface is smooth: computed on the small copy, it is exact enough between its voxels.
    grid = np.moveaxis(np.indices(copy.voxels.shape), 0, -1).astype(np.float64)
    distance = load_atlas().distance_at(fit.to_atlas(copy.places(grid))) * float(np.cbrt(np.prod(fit.sizes)))
    return BrainRegion(_in_scan(copy, distance, scan), "atlas", fit)


def _small_copy(scan: Scan) -> _Copy:
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    assert scan.affine is not None
    orientation = io_orientation(scan.affine)
    voxels = apply_orientation(scan.voxels, orientation)
    affine = scan.affine @ inv_ornt_aff(orientation, scan.voxels.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shape = np.array(voxels.shape)
    block = np.maximum(np.maximum(1, np.rint(_GRID_MM / spacing)), np.ceil(shape / _MOST_VOXELS)).astype(int)
    block = np.minimum(block, shape)
    n = shape // block
    # One axis after the other, because numpy is slow at a mean over three axes at once.
    small: NDArray[Any] = voxels[tuple(slice(int(count * size)) for count, size in zip(n, block, strict=True))]
    for axis in (2, 1, 0):
        parts = [small[(slice(None),) * axis + (slice(i, None, int(block[axis])),)] for i in range(block[axis])]
        total = parts[0].astype(np.float32)
        for part in parts[1:]:
            total += part
        small = total / np.float32(block[axis])
    affine[:3, 3] += affine[:3, :3] @ ((block - 1) / 2)
    affine[:3, :3] = affine[:3, :3] * block
    return _Copy(small, affine, block, voxels.shape, orientation)


def _tissue(voxels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest piece that is brighter than air."""
    low, high = (float(v) for v in np.percentile(voxels, (1, 98)))
    return _largest(voxels > low + _AIR * (high - low))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1 if count else mask


def _stripped_brain(copy: _Copy) -> NDArray[np.bool_] | None:
    """The brain of a skull-stripped volume on the small copy, filled, or None if the volume is not stripped."""
    from scipy import ndimage

    blank = copy.voxels.min()
    member = copy.voxels > blank
    if 1 - member.mean() < _MIN_BLANK:
        return None
    # What hangs together loosely, as the eyes' fat with the brain, belongs to a head.
    member = ndimage.binary_fill_holes(_largest(member))
    if not _BRAIN_ML[0] <= member.sum() * np.prod(copy.spacing_mm) / 1000 <= _BRAIN_ML[1]:
        return None
    widths = np.ptp(np.argwhere(member), axis=0) * copy.spacing_mm
    if widths.min() < _MIN_WIDTH_MM:
        return None
    # Beyond the edge of the volume nothing is known: the surface is where the blank begins.
    depth = ndimage.distance_transform_edt(member, copy.spacing_mm)
    ring = np.searchsorted(_RINGS_MM, depth[member]) - 1
    count = np.bincount(ring, minlength=len(_RINGS_MM))[:-1]
    total = np.bincount(ring, copy.voxels[member] - blank, len(_RINGS_MM))[:-1]
    level = (total / np.maximum(count, 1))[count > 0]  # thick slices have no voxel near the surface
    if len(level) < 3:
        return None
    # The scalp is brighter than the skull below it. A brain grows brighter from its surface, or hardly darker.
    return member if (level / np.maximum.accumulate(level)).min() > _MAX_DIP else None


def _distance_mm(member: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Mm to the nearest voxel of a mask, 0 inside."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(~member, spacing_mm).astype(np.float32)


def _flaw(fit: Fit, copy: _Copy, tissue: NDArray[np.bool_]) -> str | None:
    """Why a fit cannot be right, or None."""
    if fit.similarity < MIN_SIMILARITY:
        return f"it explains {fit.similarity:.0%} of the gray values; {MIN_SIMILARITY:.0%} are needed"
    if fit.seen < MIN_SEEN:
        return f"the volume would show {fit.seen:.0%} of the brain; {MIN_SEEN:.0%} are needed"
    largest, _, smallest = fit.sizes
    if not SIZES[0] <= smallest <= largest <= SIZES[1] or np.linalg.det(fit.matrix) <= 0:
        return f"the brain would have {smallest:.2f} to {largest:.2f} times the size of the template"
    if largest / smallest > MAX_STRETCH:
        return f"the brain would be stretched {largest / smallest:.2f} times along one axis"
    if fit.turn_degrees > MAX_TURN_DEGREES:
        return f"the head would be turned by {fit.turn_degrees:.0f} degrees"
    atlas = load_atlas()
    share = _share_in(atlas.points[atlas.brain] @ fit.matrix.T + fit.center, copy, tissue)
    if share < MIN_TISSUE:
        return f"only {share:.0%} of the brain would lie in the head"
    places = fit.to_atlas(copy.places(np.argwhere(tissue).astype(np.float64)))
    places = places[places[:, 2] > 0]
    above = int((atlas.distance_at(places) > _FAR_MM).sum()) / max(int((atlas.distance_at(places) < 0).sum()), 1)
    return "the head would reach far above the brain" if above > MAX_ABOVE else None


def _share_in(places: NDArray[np.float64], copy: _Copy, tissue: NDArray[np.bool_]) -> float:
    """Share of the points inside the volume that lie in the filled tissue."""
    from scipy import ndimage

    inverse = np.linalg.inv(copy.affine)
    index = np.rint(places @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    index = index[((index >= 0) & (index < tissue.shape)).all(axis=1)]
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(tissue, 2, 0)], axis=2)
    return float(filled[tuple(index.T)].mean()) if len(index) else 0.0


def _in_scan(copy: _Copy, distance: NDArray[np.float32], scan: Scan) -> NDArray[np.bool_]:
    """Where a distance, given on the small copy, is at most `MARGIN_MM`, in the order of the scan's array."""
    from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform

    near = np.argwhere(distance <= MARGIN_MM + np.linalg.norm(copy.spacing_mm))
    mask = np.zeros(copy.shape, bool)
    box = []
    for axis in range(3):
        block, n = int(copy.block[axis]), distance.shape[axis]
        low, high = int(near[:, axis].min()) * block, (int(near[:, axis].max()) + 1) * block
        high = copy.shape[axis] if high >= n * block else high  # what the blocks leave over at the end
        place = np.clip((np.arange(low, high) - (block - 1) / 2) / block, 0, n - 1)
        below = np.minimum(place.astype(int), max(n - 2, 0))
        above = np.minimum(below + 1, n - 1)
        weight = (place - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        first = distance.take(below, axis)
        distance = first + (distance.take(above, axis) - first) * weight
        box.append(slice(low, high))
    mask[tuple(box)] = distance <= MARGIN_MM
    back = ornt_transform(axcodes2ornt("RAS"), copy.orientation)
    return np.ascontiguousarray(apply_orientation(mask, back))
