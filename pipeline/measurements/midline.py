"""The head's mid-sagittal plane, and the side of it on which a lesion lies.

The scanner's x = 0 is not the middle of the patient: heads lie off the isocenter and are turned in the coil. The plane
therefore comes from the head itself. It starts halfway between the outermost tissue on the right and on the left.
Then it is turned and moved to where the head is most like its mirror image (B. Ardekani et al., IEEE Trans. Med.
Imaging 1997). The outline alone is not enough: the middles of a turned oval lie on a plane that is turned less than
half as far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import absent_packages
from tumorlens.data.scan import Scan

SIDE_SHARE = 0.75  # share of a lesion's voxels that makes a side
_MIN_WIDTH_MM = 60.0  # narrower volumes show too little of both halves
_GRID_MM = 3.0  # approximate step of the grid on which the head's surface is searched

# Tissue is brighter than air by this share of the range, as in `data.preprocessing.head.tissue_shares`.
_AIR = 0.1

_MIN_LINE_MM = 30.0  # shorter lines run through the tip of an ear or the rim of the vertex
_MIN_LINES = 20
_MIN_SHARE_FREE = 0.2
_MIN_SHARE_SEEN = 0.3
_POINTS = 6000  # points of the head that are compared with their mirror images
_TRIED_TURN = 0.2  # tangent of the largest turn on the grid of starting points
_MAX_TURN = 0.36
_MAX_SHIFT_MM = 12.0


@dataclass(frozen=True)
class Midline:
    """A plane between the patient's halves. A voxel lies ``index @ steps + offset`` mm to the right of it.

    Attributes:
        steps: ``(3,)`` mm to the patient's right for one voxel along each array axis.
        offset: Distance of voxel (0, 0, 0) to the right of the plane, in mm.
    """

    steps: NDArray[np.float64]
    offset: float

    def side(self, member: NDArray[np.bool_], start: NDArray[np.int_]) -> str:
        """The patient's side that holds at least `SIDE_SHARE` of a lesion.

        Args:
            member: ``(i, j, k)`` bool, the lesion's voxels in a box.
            start: ``(3,)`` index of the box's first voxel.

        Returns:
            ``"left"``, ``"right"`` or ``"midline"``.
        """
        i, j, k = (
            step * (first + np.arange(n)) for step, first, n in zip(self.steps, start, member.shape, strict=True)
        )
        distance = (i[:, None, None] + j[:, None] + k + self.offset)[member]
        if (distance > 0).mean() >= SIDE_SHARE:
            return "right"
        return "left" if (distance < 0).mean() >= SIDE_SHARE else "midline"


def no_sides() -> str | None:
    """Why no side is known of any lesion; None where SciPy is installed, which the extra ``volumes`` brings."""
    return (
        "no side of a lesion is known, for tumorlens[volumes] is not installed" if absent_packages(["scipy"]) else None
    )


def find_midline(scan: Scan) -> Midline | None:
    """The mid-sagittal plane of the head in a volume.

    Returns:
        None for a picture, for an unknown affine or spacing, for less than 60 mm from left to right, where too little
        of the head's surface is visible on both sides, as in a volume of one half of the head, and where `no_sides`
        says why.
    """
    if not scan.volume or scan.affine is None or scan.spacing_mm is None or no_sides():
        return None
    axis = scan.axis_nearest(0)
    spacing = np.array(scan.spacing_mm[:3])
    if scan.voxels.shape[axis] * spacing[axis] < _MIN_WIDTH_MM:
        return None
    order = [axis, *(a for a in range(3) if a != axis)]
    stride = [max(1, round(_GRID_MM / s)) for s in spacing[order]]
    coarse = scan.voxels.transpose(order)[:: stride[0], :: stride[1], :: stride[2]].astype(np.float32)
    step = spacing[order] * stride
    tissue = _head_tissue(coarse)
    middle = _middle(tissue, step[0])
    if middle is None:
        return None
    normal, offset = _plane_of_symmetry(coarse, tissue, step, middle)
    # The frame of the array and not of the scanner: slices are aligned with the patient, however the patient lies.
    to_right = 1.0 if scan.affine[0, axis] > 0 else -1.0
    steps = np.zeros(3)
    steps[order] = to_right * normal * spacing[order]
    return Midline(steps, to_right * offset)


def _head_tissue(volume: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The largest piece of tissue, filled in each plane across axis 0."""
    from scipy import ndimage

    low, high = (float(v) for v in np.percentile(volume, (1, 99)))
    labels, count = ndimage.label(volume > low + _AIR * (high - low))
    if count == 0:
        return labels > 0
    tissue = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    # Where a volume ends at the dark fissure between the halves, that must not look like the head's surface.
    return np.stack([ndimage.binary_fill_holes(plane) for plane in tissue])


def _middle(tissue: NDArray[np.bool_], step_mm: float) -> float | None:
    """Middle between the first and last tissue on a line along axis 0, in mm: the median over all lines, or None.

    Lines that leave the volume inside the head (an ear is cut off) have no middle.
    """
    first, last = tissue.argmax(axis=0), len(tissue) - 1 - tissue[::-1].argmax(axis=0)
    lines = tissue.any(axis=0) & ((last - first) * step_mm >= _MIN_LINE_MM)
    free = lines & (first > 0) & (last < len(tissue) - 1)
    if free.sum() < max(_MIN_LINES, _MIN_SHARE_FREE * lines.sum()):
        return None
    return float(np.median((first + last)[free])) / 2 * step_mm


def _plane_of_symmetry(
    coarse: NDArray[np.float32], tissue: NDArray[np.bool_], step: NDArray[np.float64], middle: float
) -> tuple[NDArray[np.float64], float]:
    """Unit normal and offset (mm) of the plane near `middle` across which the head is most like its mirror image.

    Similarity is the correlation between the head's voxels and their mirror images, as far as the volume reaches.
    """
    from scipy import ndimage, optimize

    levels = ndimage.gaussian_filter(np.minimum(coarse, np.percentile(coarse[tissue], 99)), _GRID_MM / step)
    inside = np.argwhere(tissue)
    inside = inside[:: max(1, len(inside) // _POINTS)]
    values = levels[tuple(inside.T)]
    points = inside * step
    center = points.mean(axis=0)
    center[0] = middle

    def dissimilarity(guess: NDArray[np.float64]) -> float:
        normal, offset = _plane(guess, center)
        mirrored = (points - 2 * (points @ normal + offset)[:, None] * normal) / step
        visible = ((mirrored >= 0) & (mirrored <= np.array(coarse.shape) - 1)).all(axis=1)
        if visible.mean() < _MIN_SHARE_SEEN:
            return 1.0
        there = ndimage.map_coordinates(levels, mirrored[visible].T, order=1)
        here = values[visible]
        flat = np.ptp(here) == 0 or np.ptp(there) == 0
        return 1.0 if flat else 1 - float(np.corrcoef(here, there)[0, 1])

    turns = np.linspace(-_TRIED_TURN, _TRIED_TURN, 5)
    start = min((np.array([a, b, 0.0]) for a in turns for b in turns), key=dissimilarity)
    optimum = optimize.minimize(
        dissimilarity,
        start,
        method="Nelder-Mead",
        bounds=[(-_MAX_TURN, _MAX_TURN), (-_MAX_TURN, _MAX_TURN), (-_MAX_SHIFT_MM / 100, _MAX_SHIFT_MM / 100)],
        options={
            "initial_simplex": start + np.vstack([np.zeros(3), np.diag([0.05, 0.05, 0.03])]),
            "xatol": 2e-3,
            "fatol": 1e-4,
            "maxfev": 80,
        },
    )
    return _plane(optimum.x, center)


def _plane(guess: NDArray[np.float64], center: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Normal and offset for the tangents of both turns and a shift in units of 100 mm: all have a similar scale."""
    normal = np.array([1.0, guess[0], guess[1]])
    normal /= np.linalg.norm(normal)
    return normal, float(-normal @ center - guess[2] * 100)
