"""A volume in three planes: which volumes are cut in all of them, and how the answers of the planes become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.preprocessing.preprocess import Placement, PreparedSlice, Preprocess
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.lesions import lesion_boxes

# Slices of thin-sliced volumes go on to the segmenter at about this distance, in every plane. Those between them are
# interpolated: a lesion of 2 ml is 16 mm across.
STEP_MM = 3.0

# Other planes are cut where the first one suspects a lesion, and so far beyond.
_REACH_MM = 6.0

# Coarser spacing than this, as a multiple of the finest, is not near isotropic: slices in the other planes would look
# like no slice of the training.
_MOST_UNEVEN = 1.5

# Headers often say 1 mm where the true spacing was lost. A head, and a brain without its skull, has this extent along
# each axis.
_HEAD_MM = (90.0, 320.0)

# Tissue is brighter than air by this share of the range, as in `data.preprocessing.head.tissue_shares`.
_AIR = 0.1
_LEAST_TISSUE = 0.05  # of the fullest plane's: the rest is noise, a neck or a cable

_NEPERS = 15.0  # steps for each factor of e in which probabilities add up: three planes fit into one byte

# Slice -> lesion map ``(size, size)`` uint8 on the segmenter's grid, 255 is certain, and the way back.
LesionMaps = dict[int, tuple[NDArray[np.uint8], Placement]]


@dataclass(frozen=True)
class PlaneAnswer:
    """What the networks say in one plane.

    Attributes:
        scan: The volume, cut in this plane.
        maps: The segmenter's lesion maps of the slices that it saw.
        probabilities: ``(n_slices, c)`` of the classifier; NaN for slices that it did not see.
        step: How many slices neighboring maps are apart. Slices between two maps are interpolated.
        regions: Of the slices that have a map, those of the lesion's regions, ``(c, size, size)``.
    """

    scan: Scan
    maps: LesionMaps
    probabilities: NDArray[np.float32]
    step: int = 1
    regions: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    @classmethod
    def of_slices(
        cls,
        scan: Scan,
        slices: Mapping[int, PreparedSlice],
        maps: Iterable[NDArray[np.uint8]],
        regions: Iterable[NDArray[np.uint8]],
        probabilities: NDArray[np.float32],
        step: int,
    ) -> PlaneAnswer:
        """The answer whose maps and regions are those of some prepared slices, in their order."""
        placed = {k: (drawn, p.placement) for (k, p), drawn in zip(slices.items(), maps, strict=True)}
        return cls(scan, placed, probabilities, step, dict(zip(slices, regions, strict=True)))

    def of_region(self, region: int) -> PlaneAnswer:
        """The answer with the maps of one region in the place of those of the whole lesion."""
        return replace(self, maps={k: (self.regions[k][region], placement) for k, (_, placement) in self.maps.items()})


def is_isotropic(scan: Scan) -> bool:
    """Whether slices of a volume look like slices of a head in every plane.

    True where orientation and spacing are known, the spacing is nearly even, and the tissue is as large as a head.
    """
    if not scan.volume or scan.affine is None or scan.spacing_mm is None:
        return False
    spacing = np.array(scan.spacing_mm[:3])
    if spacing.max() > _MOST_UNEVEN * spacing.min():
        return False
    strides = np.maximum(1, np.array(scan.voxels.shape) // 64)
    few = scan.voxels[:: strides[0], :: strides[1], :: strides[2]]
    low, high = (float(v) for v in np.percentile(few, (1, 99)))
    tissue = few > low + _AIR * (high - low)
    extents = []
    for axis in range(3):
        share = tissue.mean(axis=tuple(a for a in range(3) if a != axis))
        filled = np.flatnonzero(share >= max(_LEAST_TISSUE * share.max(), 1e-9))
        extents.append((np.ptp(filled) + 1) * strides[axis] * spacing[axis] if len(filled) else 0.0)
    return bool(min(extents) >= _HEAD_MM[0] and max(extents) <= _HEAD_MM[1])


def step_of(scan: Scan) -> int:
    """Every how many slices of a near isotropic volume go on to the segmenter: those are about `STEP_MM` apart."""
    return 1 if scan.spacing_mm is None else max(1, round(STEP_MM / scan.spacing_mm[scan.slice_axis]))


def on_grid(wanted: NDArray[np.bool_], step: int) -> NDArray[np.int_]:
    """Indices of the wanted slices that go on to the segmenter, one in each step, whatever the first one is."""
    indices = np.flatnonzero(wanted)
    return indices[indices % step == 0]


def slices_across(
    axis: int, answers: Sequence[PlaneAnswer], size: int, threshold: int, least_mm3: float
) -> NDArray[np.int_]:
    """Indices of the slices across an axis that show what other planes suspect together, at steps of `STEP_MM`.

    Args:
        axis: The array axis across which the slices lie.
        answers: Of the other planes so far.
        size: Side of the maps in pixels.
        threshold: The lowest byte of a lesion's voxel.
        least_mm3: Smaller suspicions are left out.
    """
    across = answers[0].scan.in_plane(axis)
    reach = 0 if across.spacing_mm is None else round(_REACH_MM / across.spacing_mm[axis])
    wanted = np.zeros(across.n_slices, bool)
    for box in lesion_boxes(fuse(answers, size) >= threshold, across, least_mm3):
        wanted[max(0, box[axis].start - reach) : box[axis].stop + reach] = True
    return on_grid(wanted, step_of(across))


def fuse(answers: Sequence[PlaneAnswer], size: int) -> NDArray[np.uint8]:
    """Lesion probability of each voxel in the scan's array order; 255 is certain.

    Of several planes it is the geometric mean over those that saw the voxel (a product of experts: G. Hinton, ICANN
    1999), and 0 where fewer than two did: a plane that sees nothing ends the stripes of another one. In a single plane
    neighboring slices are smoothed along the normal, with weights 1, 2 and 1.

    Args:
        answers: One for each plane.
        size: Side of the maps in pixels.
    """
    if len(answers) == 1:
        stack, _ = _stack(answers[0], size)
        return answers[0].scan.mask_from_slices(stack if len(stack) == 1 else _smoothed(stack))
    shape = answers[0].scan.voxels.shape
    loss = np.zeros(shape, np.uint8)  # one byte a voxel: a CT has a hundred million
    of_byte = np.rint(-_NEPERS * np.log(np.maximum(np.arange(256), 1) / 255)).astype(np.uint8)
    seen = [np.zeros(n, np.uint8) for n in shape]
    for answer in answers:
        stack, seen[answer.scan.slice_axis] = _stack(answer, size)
        for k in np.flatnonzero(seen[answer.scan.slice_axis]):
            np.take(of_byte, stack[k], out=stack[k])
        loss += answer.scan.mask_from_slices(stack)
    back = np.zeros((len(answers) + 1, 256), np.uint8)
    for n in range(2, len(back)):
        back[n] = np.rint(255 * np.exp(-np.arange(256) / (_NEPERS * n)))
    for i, plane in enumerate(loss):
        plane[:] = back[seen[0][i] + seen[1][:, None] + seen[2][None], plane]
    return loss


def _stack(answer: PlaneAnswer, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """``(n_slices, rows, columns)`` maps on the grid of the scan's slices, and ``(n_slices,)`` 1 where there is one.

    Slices between two that are one step apart are interpolated.
    """
    scan, grid = answer.scan, Preprocess(size)
    stack = np.zeros((scan.n_slices, *scan.slice(0).shape[:2]), np.uint8)
    seen = np.zeros(scan.n_slices, np.uint8)
    before = None
    for k in sorted(answer.maps):
        stack[k], seen[k] = grid.map_to_source(*answer.maps[k]), 1
        if before is not None and k - before <= answer.step:
            for between in range(before + 1, k):
                share = (between - before) / (k - before)
                stack[between] = np.rint((1 - share) * stack[before] + share * stack[k])
                seen[between] = 1
        before = k
    return stack, seen


def _smoothed(stack: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A stack in which each slice is averaged with its neighbors; beyond the ends lies nothing."""
    smooth = np.zeros_like(stack)
    filled = np.flatnonzero(stack.any(axis=(1, 2)))
    for k in range(max(0, filled[0] - 1), min(len(stack), filled[-1] + 2)) if len(filled) else ():
        total = 2 * stack[k].astype(np.uint16)
        for neighbor in (k - 1, k + 1):
            if 0 <= neighbor < len(stack):
                total += stack[neighbor]
        smooth[k] = (total + 2) // 4
    return smooth
