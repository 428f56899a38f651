"""The brain region of a volume: lesions count only inside it, not in the tongue, the eyes, the sinus or the neck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import EXTRAS, absent_packages
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.atlas import Fit, as_image, load_atlas, register

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813 (its own habit)

# The region reaches so far beyond the brain: lesions of the meninges lie on it, and no affine map fits exactly.
MARGIN_MM = 5.0

# A fit outside of these is not used. The template is larger than the average brain; a child's may be 0.75 as large.
MIN_SIMILARITY = 0.6  # nats; 0.65 and more in heads, even with thick slices after an operation
MIN_SEEN = 0.5
SIZES = (0.68, 1.25)
MAX_STRETCH = 1.3  # the longest principal axis of the map divided by the shortest
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


def find_brain(scan: Scan) -> BrainRegion | str:
    """The brain region of a volume, or why there is none.

    A skull-stripped brain is its own region. To a head, the MNI152 brain is registered (see `atlas.register`), whatever
    its contrast, its orientation and how much of face and neck it shows. A fit that no human head can have is reported
    and not used. The same volume always gives the same region.

    Returns:
        The region, or a reason in words: the scan is a picture, its orientation or its lengths are not known, it shows
        too little of a brain, the fit failed, or the extra ``volumes`` is not installed.
    """
    if not scan.volume:
        return "a picture has no brain region"
    if scan.affine is None:
        return "the volume's orientation is not known, so no atlas can be laid on it"
    if scan.spacing_mm is None:
        return "the volume's lengths are not known, so no atlas can be laid on it"
    if absent_packages(EXTRAS["volumes"]):
        return "the brain region is not known, for tumorlens[volumes] is not installed"
    import SimpleITK as sitk  # noqa: N813 (its own habit)

    image = as_image(scan.voxels.astype(np.float32), scan.affine)
    # Axes to the right, to anterior and to superior. In RAS positions, ITK's letters have the opposite meaning.
    whole = sitk.DICOMOrient(image, "LPS")
    size, spacing_mm = np.array(whole.GetSize()), np.array(whole.GetSpacing())
    block = np.maximum(np.maximum(1, np.rint(_GRID_MM / spacing_mm)), np.ceil(size / _MOST_VOXELS))
    small = sitk.BinShrink(whole, np.minimum(block, size).astype(int).tolist())
    if min(small.GetSize()) < 4:
        return "the volume is too thin for an atlas"
    voxels = sitk.GetArrayFromImage(small)
    tissue = _tissue(voxels)
    if not tissue.any():
        return "nothing stands out from the background"
    stripped = _stripped_brain(voxels, np.array(small.GetSpacing())[::-1])
    fit = None
    if stripped is not None:
        distance, scale = sitk.SignedMaurerDistanceMap(_like(small, stripped), False, False, True), 1.0
        to_distance = sitk.Transform()
    else:
        fit = register(sitk.Minimum(small, float(np.quantile(voxels[tissue], _BRIGHT))), tissue)
        reason = "no part of the volume can hold a brain" if fit is None else _flaw(fit, _like(small, tissue))
        if fit is None or reason is not None:
            return f"the atlas does not fit this volume: {reason}"
        distance, scale = load_atlas().distance, float(np.cbrt(np.prod(fit.sizes)))
        to_distance = fit.transform.GetInverse()
    # Beyond the edge of the map, its last voxels count.
    distance = sitk.Resample(distance, whole, to_distance, useNearestNeighborExtrapolator=True)
    name = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    mask = sitk.GetArrayFromImage(sitk.DICOMOrient(distance * scale <= MARGIN_MM, name)).T.astype(bool)
    return BrainRegion(mask, "atlas" if fit else "stripped", fit)


def _like(image: sitk.Image, mask: NDArray[np.bool_]) -> sitk.Image:
    """A mask ``(k, j, i)`` as uint8 at the place of an image."""
    import SimpleITK as sitk  # noqa: N813 (its own habit)

    made = sitk.GetImageFromArray(mask.astype(np.uint8))
    made.CopyInformation(image)
    return made


def _tissue(voxels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest piece that is brighter than air."""
    low, high = (float(v) for v in np.percentile(voxels, (1, 98)))
    return _largest(voxels > low + _AIR * (high - low))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1 if count else mask


def _stripped_brain(voxels: NDArray[np.float32], spacing_mm: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """The brain of a skull-stripped volume on the small copy, filled, or None if the volume is not stripped."""
    from scipy import ndimage

    blank = voxels.min()
    member = voxels > blank
    if 1 - member.mean() < _MIN_BLANK:
        return None
    # What hangs together loosely, as the eyes' fat with the brain, belongs to a head.
    member = ndimage.binary_fill_holes(_largest(member))
    if not _BRAIN_ML[0] <= member.sum() * np.prod(spacing_mm) / 1000 <= _BRAIN_ML[1]:
        return None
    widths = np.ptp(np.argwhere(member), axis=0) * spacing_mm
    if widths.min() < _MIN_WIDTH_MM:
        return None
    # Beyond the edge of the volume nothing is known: the surface is where the blank begins.
    depth = ndimage.distance_transform_edt(member, spacing_mm)
    ring = np.searchsorted(_RINGS_MM, depth[member]) - 1
    count = np.bincount(ring, minlength=len(_RINGS_MM))[:-1]
    total = np.bincount(ring, voxels[member] - blank, len(_RINGS_MM))[:-1]
    level = (total / np.maximum(count, 1))[count > 0]  # thick slices have no voxel near the surface
    if len(level) < 3:
        return None
    # The scalp is brighter than the skull below it. A brain grows brighter from its surface, or hardly darker.
    return member if (level / np.maximum.accumulate(level)).min() > _MAX_DIP else None


def _flaw(fit: Fit, tissue: sitk.Image) -> str | None:
    """Why a fit cannot be right, or None. `tissue` is the head as a mask."""
    import SimpleITK as sitk  # noqa: N813 (its own habit)
    from scipy import ndimage

    if fit.similarity < MIN_SIMILARITY:
        return f"its mutual information with the atlas is {fit.similarity:.2f}; {MIN_SIMILARITY:.2f} are needed"
    largest, _, smallest = fit.sizes
    if not SIZES[0] <= smallest <= largest <= SIZES[1] or np.linalg.det(fit.matrix) <= 0:
        return f"the brain would have {smallest:.2f} to {largest:.2f} times the size of the template"
    if largest / smallest > MAX_STRETCH:
        return f"the brain would be stretched {largest / smallest:.2f} times along one axis"
    if fit.turn_degrees > MAX_TURN_DEGREES:
        return f"the head would be turned by {fit.turn_degrees:.0f} degrees"
    atlas = load_atlas()
    filled = [ndimage.binary_fill_holes(plane) for plane in sitk.GetArrayFromImage(tissue)]
    # On the atlas' grid: 0 outside of the volume, 1 for air, 2 for the head.
    head = sitk.Resample(_like(tissue, np.array(filled)) + 1, atlas.distance, fit.transform, sitk.sitkNearestNeighbor)
    found, distance = sitk.GetArrayFromImage(head), sitk.GetArrayFromImage(atlas.distance)
    brain = found[distance < 0]
    seen = (brain > 0).mean()
    if seen < MIN_SEEN:
        return f"the volume would show {seen:.0%} of the brain; {MIN_SEEN:.0%} are needed"
    share = (brain == 2).sum() / (brain > 0).sum()
    if share < MIN_TISSUE:
        return f"only {share:.0%} of the brain would lie in the head"
    upper = slice(round(-atlas.distance.GetOrigin()[2] / atlas.distance.GetSpacing()[2]), None)
    far = (distance[upper] > _FAR_MM) & (found[upper] == 2)
    return "the head would reach far above the brain" if far.sum() > MAX_ABOVE * brain.size else None
