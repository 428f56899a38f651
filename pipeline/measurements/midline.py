"""The head's mid-sagittal plane, and on which side of it a lesion lies.

The scanner's x = 0 is not the middle of the patient: heads lie off the isocentre and are turned in the coil. The plane
comes from the head instead: first halfway between the outermost tissue on the right and on the left, then turned and
moved to where the head is most like its mirror image (as B. Ardekani et al., IEEE Trans. Med. Imaging 1997, find it).
The outline alone would not do: a turned oval has its middles on a plane that is turned less than half as far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.scan import Scan

SIDE_SHARE = 0.75  # of a lesion's voxels
_MIN_WIDTH_MM = 60.0  # fewer sagittal slices show too little of both halves
_GRID_MM = 3.0  # the head's surface is looked for on a grid of about this step

_AIR = (
    0.1  # tissue is brighter than air by this share of the range, as in tumorlens.data.preprocessing.head.tissue_shares
)

_MIN_LINE_MM = 30.0  # shorter lines run through an ear's tip or the rim of the vertex
_MIN_LINES = 20
_MIN_SHARE_FREE = 0.2
_MIN_SHARE_SEEN = 0.3
_POINTS = 6000  # of the head, compared with their mirror images
_TRIED_TURN = 0.2  # tangent; the search starts from the best of a grid that reaches so far
_MAX_TURN = 0.36
_MAX_SHIFT_MM = 12.0


@dataclass(frozen=True)
class Midline:
    """A plane between the patient's halves.

    Attributes:
        steps: ``(3,)`` mm that one voxel along each array axis leads to the patient's right.
        offset: Distance of voxel (0, 0, 0) to the right of the plane, in mm.
    """

    steps: NDArray[np.float64]
    offset: float

    def distance_mm(self, indices: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far voxels ``(..., 3)`` lie to the right of the plane, in mm; negative on the left."""
        return indices @ self.steps + self.offset

    def side(self, member: NDArray[np.bool_], start: NDArray[np.int_]) -> str:
        """The patient's side that holds at least `SIDE_SHARE` of a lesion.

        Args:
            member: ``(i, j, k)`` the lesion's voxels in a box.
            start: ``(3,)`` where the box begins.

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


def find_midline(scan: Scan) -> Midline | None:
    """The mid-sagittal plane of the head in a volume.

    Returns:
        None for a picture, an affine or a spacing that is not known, less than 60 mm from left to right, and where too
        little of the head's surface is seen on both sides, as in a volume of one half of the head.
    """
    if not scan.volume or scan.affine is None or scan.spacing_mm is None:
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
    normal, offset = _most_alike(coarse, tissue, step, middle)
    # The array's frame and not the scanner's: slices are laid along the patient, whatever way he lies.
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
    # The dark fissure between the halves must not look like the head's surface where a volume ends there.
    return np.stack([ndimage.binary_fill_holes(plane) for plane in tissue])


def _middle(tissue: NDArray[np.bool_], step_mm: float) -> float | None:
    """Median over the lines along axis 0 of the middle between their first and last tissue, in mm; or none.

    Lines that leave the volume inside the head (an ear is cut off) have no middle.
    """
    first, last = tissue.argmax(axis=0), len(tissue) - 1 - tissue[::-1].argmax(axis=0)
    lines = tissue.any(axis=0) & ((last - first) * step_mm >= _MIN_LINE_MM)
    free = lines & (first > 0) & (last < len(tissue) - 1)
    if free.sum() < max(_MIN_LINES, _MIN_SHARE_FREE * lines.sum()):
        return None
    return float(np.median((first + last)[free])) / 2 * step_mm


def _most_alike(
    coarse: NDArray[np.float32], tissue: NDArray[np.bool_], step: NDArray[np.float64], middle: float
) -> tuple[NDArray[np.float64], float]:
    """Unit normal and offset (mm) of the plane across which the head is most like its mirror image, near to `middle`.

    Likeness is the correlation between the head's voxels and those across the plane, as far as the volume reaches.
    """
    from scipy import ndimage, optimize

    levels = ndimage.gaussian_filter(np.minimum(coarse, np.percentile(coarse[tissue], 99)), _GRID_MM / step)
    inside = np.argwhere(tissue)
    inside = inside[:: max(1, len(inside) // _POINTS)]
    values = levels[tuple(inside.T)]
    points = inside * step
    center = points.mean(axis=0)
    center[0] = middle

    def unlike(guess: NDArray[np.float64]) -> float:
        normal, offset = _plane(guess, center)
        mirrored = (points - 2 * (points @ normal + offset)[:, None] * normal) / step
        seen = ((mirrored >= 0) & (mirrored <= np.array(coarse.shape) - 1)).all(axis=1)
        if seen.mean() < _MIN_SHARE_SEEN:
            return 1.0
        there = ndimage.map_coordinates(levels, mirrored[seen].T, order=1)
        here = values[seen]
        flat = np.ptp(here) == 0 or np.ptp(there) == 0
        return 1.0 if flat else 1 - float(np.corrcoef(here, there)[0, 1])

    turns = np.linspace(-_TRIED_TURN, _TRIED_TURN, 5)
    start = min((np.array([a, b, 0.0]) for a in turns for b in turns), key=unlike)
    found = optimize.minimize(
        unlike,
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
    return _plane(found.x, center)


def _plane(guess: NDArray[np.float64], center: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Normal and offset for the tangents of both turns and a shift in units of 100 mm, at which they weigh alike."""
    normal = np.array([1.0, guess[0], guess[1]])
    normal /= np.linalg.norm(normal)
    return normal, float(-normal @ center - guess[2] * 100)
