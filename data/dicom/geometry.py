"""Where the images of a series lie in space: sorted, checked, and put on one regular grid.

Images are sorted by their positions along the normal of the image plane, because neither file names nor instance
numbers say where an image lies. Every departure from a regular grid is reported in words, with what was done about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.grouping.stacks import apart_by_rounding, doubts_of, rounding_of, volumes_of
from tumorlens.data.dicom.grouping.volumes import AT_ONE_PLACE, Volume, is_repeat
from tumorlens.data.dicom.headers import frame_items, items, number, numbers
from tumorlens.data.dicom.source import affine_of_frames
from tumorlens.data.errors import InputError
from tumorlens.data.scan import checked_affine

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_VOXELS = 2_000_000_000
_MAX_FRAMES = 20_000
_SAME_DIRECTION = 5e-3  # of a direction cosine, about 0.3 degrees; scanners round theirs to 1e-4 or better
_SAME_PLACE = 0.025  # of a pixel's side, not in mm: a header may give all lengths in another unit
_REGULAR = 0.05  # an image may lie off the grid by this share of the slice distance and count as on it
_MAX_OFF_GRID = 0.75  # beyond this share the slice of an image is not known
_TILT_DEG = 0.2  # less is rounding, also of cosines with three decimals
_NOT_UNIT = 0.02  # of the length of a direction, or of the product of two; rounding to two decimals gives up to 0.017
_LARGEST_GAP = 2.0  # distance of slices divided by their thickness; more is hardly ever acquired


@dataclass(frozen=True)
class ImagePlane:
    """One image of a series and its place in space (Image Plane Module, PS3.3 C.7.6.2).

    Attributes:
        place: Index of its file, and of the frame in the file.
        shape: Rows, columns.
        orientation: ``(6,)`` Image Orientation (Patient), or none.
        position: ``(3,)`` Image Position (Patient), LPS mm, or none.
        spacing: Pixel Spacing: distance of rows, of columns, mm; or none.
        thickness: Slice Thickness in mm, or none.
        between: Spacing Between Slices in mm, or none.
        items: All that describes it, the nearest first (see `data.dicom.headers.frame_items`). It tells the volumes of
            a series apart that holds several at one place.
    """

    place: tuple[int, int]
    shape: tuple[int, int]
    orientation: NDArray[np.float64] | None
    position: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    thickness: float | None = None
    between: float | None = None
    items: tuple[Dataset, ...] = field(default=(), repr=False)

    @property
    def normal(self) -> NDArray[np.float64]:
        """``(3,)`` unit vector across the image, LPS."""
        assert self.orientation is not None  # callers check it
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)


@dataclass(frozen=True)
class VolumeGeometry:
    """The images of one volume along its third axis, and the volume's place in space.

    Attributes:
        planes: The image of each slice; none for a slice that the series lacks.
        affine: ``(4, 4)`` from `data.dicom.source.volume_from_frames` indices to RAS mm.
        frame: Number of the volume among several, from 0; none if there is only one.
        thickness_known: Whether the distance of slices, or a single slice's thickness, is known. If not, the affine has
            1 mm for it.
        notes: Choices that were made.
        warnings: Flaws of the series, and what was done about them.
    """

    planes: tuple[ImagePlane | None, ...]
    affine: NDArray[np.float64]
    frame: int | None
    thickness_known: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def planes_of(ds: Dataset, index: int) -> list[ImagePlane]:
    """The images in one file.

    Args:
        ds: Its header.
        index: Number of the file in the series.

    Raises:
        InputError: The header gives an impossible size, or does not describe all of its frames.
    """
    shape = (int(number(ds, "Rows") or 0), int(number(ds, "Columns") or 0))
    n_frames = int(number(ds, "NumberOfFrames") or 1)
    if min(shape) < 1 or not 1 <= n_frames <= _MAX_FRAMES or float(shape[0]) * shape[1] * n_frames > _MAX_VOXELS:
        raise InputError(f"the header gives an impossible size of {shape[0]} x {shape[1]} x {n_frames}")
    per_frame = items(ds, "PerFrameFunctionalGroupsSequence")
    if not per_frame and n_frames == 1:
        return [_plane((index, 0), shape, [ds])]
    if not per_frame:  # a multi-frame file that does not describe its frames
        return [ImagePlane((index, f), shape, None, None, None) for f in range(n_frames)]
    if len(per_frame) != n_frames:
        raise InputError(f"the header describes {len(per_frame)} of {n_frames} frames")
    return [_plane((index, f), shape, frame_items(ds, f)) for f in range(n_frames)]


def _plane(place: tuple[int, int], shape: tuple[int, int], items: list[Dataset]) -> ImagePlane:
    def element(name: str, count: int) -> NDArray[np.float64] | None:
        for item in items:
            values = numbers(item, name)
            if values is not None and len(values) == count:
                return np.array(values)
        return None

    spacing = element("PixelSpacing", 2)
    return ImagePlane(
        place,
        shape,
        orientation=element("ImageOrientationPatient", 6),
        position=element("ImagePositionPatient", 3),
        spacing=None if spacing is None or spacing.min() <= 0 else (float(spacing[0]), float(spacing[1])),
        thickness=_positive(element("SliceThickness", 1)),
        between=_positive(element("SpacingBetweenSlices", 1)),
        items=tuple(items),
    )


def _positive(values: NDArray[np.float64] | None) -> float | None:
    return float(values[0]) if values is not None and values[0] > 0 else None


def missing_elements(plane: ImagePlane) -> list[str]:
    """Names of the header's elements that an image lacks for a place in space."""
    elements = {
        "Image Position": plane.position,
        "Image Orientation": plane.orientation,
        "Pixel Spacing": plane.spacing,
    }
    return [name for name, value in elements.items() if value is None]


def has_geometry(plane: ImagePlane) -> bool:
    """Whether an image has a place in space."""
    return plane.orientation is not None and plane.position is not None and plane.spacing is not None


def stack_planes(planes: Sequence[ImagePlane], frame: int | None = None) -> VolumeGeometry:
    """Put images with geometry into the order of a volume.

    Args:
        planes: In any order; images without geometry are left out with a warning.
        frame: The volume, from 0, if every position holds several (echoes, time points, diffusion directions).

    Raises:
        InputError: The images do not form a volume. The message says why.
    """
    warnings: list[str] = []
    placed = _one_orientation([p for p in planes if has_geometry(p)], warnings)
    lost = sum(not has_geometry(p) for p in planes)
    if lost:
        warnings.append(f"{lost} of {len(planes)} images have no place in space and were left out")
    positions, frame, notes = _one_volume(by_position(placed), frame, warnings)
    chosen = [at_one_place[0] for at_one_place in positions]
    indices = _grid_indices(chosen, warnings)
    slices: list[ImagePlane | None] = [None] * (indices[-1] + 1)
    for index, plane in zip(indices, chosen, strict=True):
        slices[index] = plane
    thickness_known = len(chosen) > 1 or (chosen[0].between or chosen[0].thickness) is not None
    if not thickness_known:
        warnings.append("the slice thickness is not known, so there are no volumes")
    affine = _affine(chosen, indices, warnings)
    return VolumeGeometry(tuple(slices), affine, frame, thickness_known, tuple(notes), tuple(warnings))


def _one_orientation(planes: Sequence[ImagePlane], warnings: list[str]) -> list[ImagePlane]:
    """The largest group of images that have one orientation, size and pixel spacing."""
    groups: list[list[ImagePlane]] = []
    for plane in planes:
        for group in groups:
            if are_alike(group[0], plane):
                group.append(plane)
                break
        else:
            groups.append([plane])
    largest = max(groups, key=len)
    if len(groups) > 1:
        others = len(planes) - len(largest)
        warnings.append(
            f"the series mixes {len(groups)} orientations or sizes: the largest group of {len(largest)} images was "
            f"used, {others} were left out"
        )
    cosines = largest[0].orientation
    assert cosines is not None
    lengths = np.linalg.norm(cosines.reshape(2, 3), axis=1)
    if np.abs(lengths - 1).max() > _NOT_UNIT or abs(float(cosines[:3] @ cosines[3:])) > _NOT_UNIT:
        raise InputError("the image orientation is not a pair of perpendicular directions")
    return largest


def are_alike(a: ImagePlane, b: ImagePlane) -> bool:
    """Whether two images with geometry have one orientation, size and pixel spacing."""
    assert a.orientation is not None and b.orientation is not None and a.spacing and b.spacing
    return (
        a.shape == b.shape
        and float(np.abs(a.orientation - b.orientation).max()) < _SAME_DIRECTION
        and bool(np.allclose(a.spacing, b.spacing, rtol=1e-3))
    )


def by_position(planes: Sequence[ImagePlane]) -> list[list[ImagePlane]]:
    """Images by position along the normal, ascending. Each entry holds the images at one place."""
    normal = planes[0].normal
    along = [depth_of(plane, normal) for plane in planes]
    ordered = sorted(zip(along, planes, strict=True), key=lambda pair: pair[0])
    groups: list[tuple[float, list[ImagePlane]]] = []
    for depth, plane in ordered:
        if groups and depth - groups[-1][0] < same_place(planes[0]):
            groups[-1][1].append(plane)
        else:
            groups.append((depth, [plane]))
    return [group for _, group in groups]


def _one_volume(
    places: list[list[ImagePlane]], frame: int | None, warnings: list[str]
) -> tuple[list[list[ImagePlane]], int | None, list[str]]:
    """One image for each place: that of the chosen volume, or the first where only some places hold several."""
    volumes, lie, hows = volumes_of(places)
    largest = max(volumes, key=lambda volume: len(volume.places))
    repeats = [v for v in volumes if v is not largest and is_repeat(v, largest)]
    notes: list[str] = []
    if len(volumes) == len(repeats) + 1:
        volume, frame = largest, None
    else:
        volume = _chosen(volumes, lie, frame)
        shown = f" ({volume.name})" if volume.name else ""
        notes = [f"frame {frame} of {len(volumes)} volumes {lie}{shown}", *hows]
    if repeats and volume is largest:
        n_images = sum(len(group) for v in repeats for group in v.places)
        names = "; ".join(v.name for v in repeats[:3])
        warnings.append(f"{_images(n_images)} at a place where another one lies already: left out ({names})")
    doubled = sum(len(group) - 1 for group in volume.places)
    if doubled:
        warnings.append(f"{_images(doubled)} at a place where another one lies already: the first of each was used")
    warnings += doubts_of([group[0] for group in volume.places])
    lost = len(places) - len(volume.places)
    if lost and lie == AT_ONE_PLACE:
        which = "the volume that was used" if frame is None else f"frame {frame}"
        warnings.append(f"{which} lacks {lost} of the {len(places)} places that other frames have")
    return volume.places, frame, notes


def _chosen(volumes: list[Volume[ImagePlane]], lie: str, frame: int | None) -> Volume[ImagePlane]:
    several = len(volumes)
    if frame is None:
        names = "; ".join(f"{index}: {volume.name}" for index, volume in enumerate(volumes[:6]) if volume.name)
        raise InputError(
            f"the series holds {several} volumes {lie} (echoes, time points ...); choose one with "
            f"--frame 0 to {several - 1}{f' ({names})' if names else ''}"
        )
    if not 0 <= frame < several:
        raise InputError(f"frame {frame} does not exist, the series has frames 0 to {several - 1}")
    return volumes[frame]


def _grid_indices(planes: list[ImagePlane], warnings: list[str]) -> list[int]:
    """The index of each image on the grid of the usual distance; missing slices leave indices out."""
    if len(planes) == 1:
        return [0]
    normal = planes[0].normal
    depth = np.array([depth_of(plane, normal) for plane in planes])
    gaps = np.diff(depth)
    usual = float(np.median(gaps[gaps <= 1.5 * gaps.min()]))
    expected = planes[0].between or _LARGEST_GAP * (planes[0].thickness or np.inf)
    if usual > 1.5 * expected:
        warnings.append(f"the images are {usual:.4g} mm apart, much more than the header says: slices may be missing")
    whole = np.maximum(np.rint(gaps / usual), 1)
    missing = int(whole.sum()) - len(gaps)
    if not missing or np.abs(gaps - whole * usual).max() > 0.15 * usual:
        return list(range(len(planes)))  # even, or uneven in a way that missing slices do not explain: see `_affine`
    if missing > len(planes) // 2:
        raise InputError(
            f"the images are {usual:.4g} mm apart at their closest and leave gaps for {missing} more: "
            f"{_images(len(planes))} of {len(planes) + missing} make no volume"
        )
    largest = int(whole.max()) - 1
    warnings.append(
        f"{missing} of {len(planes) + missing} slices missing (up to {largest} in a row): their places stay empty, "
        "and a lesion there cannot be seen"
    )
    return [0, *(int(n) for n in np.cumsum(whole))]


def _affine(planes: list[ImagePlane], indices: list[int], warnings: list[str]) -> NDArray[np.float64]:
    """The affine of the images: with axes at right angles, unless the slices are sheared by more than the rounding of
    the header explains."""
    first = planes[0]
    assert first.orientation is not None and first.spacing is not None and first.position is not None
    if len(planes) == 1:
        step = first.normal * (first.between or first.thickness or 1.0)
        return checked_affine(affine_of_frames(first.orientation, first.position, step, first.spacing, first.shape[0]))
    positions = np.array([plane.position for plane in planes])
    step = (positions[-1] - positions[0]) / indices[-1]
    apart = apart_by_rounding(positions)
    _check_even(positions, indices, step, first.normal, apart, warnings)
    distance = float(np.linalg.norm(step))
    stated = (mm for mm in (first.between, first.thickness) if mm and abs(mm - distance) <= apart / indices[-1])
    step *= next(stated, distance) / distance
    tilt = np.degrees(np.arccos(np.clip(float(first.normal @ step) / np.linalg.norm(step), -1, 1)))
    unsure = np.degrees(np.arctan(apart / (distance * indices[-1]) + 2.5 * rounding_of(first.orientation, whole=2)))
    if tilt > max(unsure, _TILT_DEG):
        warnings.append(
            f"the slices are sheared by {tilt:.1f} degrees (gantry tilt); the mask's affine follows the shear"
        )
    else:
        step = first.normal * np.linalg.norm(step)
    start = (positions[0] + positions[-1] - step * indices[-1]) / 2
    return checked_affine(affine_of_frames(first.orientation, start, step, first.spacing, first.shape[0]))


def _check_even(
    positions: NDArray[np.float64],
    indices: list[int],
    step: NDArray[np.float64],
    normal: NDArray[np.float64],
    apart: float,
    warnings: list[str],
) -> None:
    """Warn of images that lie off the even grid by more than `apart`, the mm that rounding explains.

    Raises:
        InputError: They lie so far off that there is no grid.
    """
    off = np.linalg.norm(positions - positions[0] - np.outer(indices, step), axis=1)
    distance = float(np.linalg.norm(step))
    gaps = np.diff(positions @ normal) / np.diff(indices)
    if off.max() <= max(_REGULAR * distance, apart):
        return
    if off.max() > _MAX_OFF_GRID * distance:
        raise InputError(
            f"the slice distances run from {gaps.min():.4g} to {gaps.max():.4g} mm, too uneven for one volume; give "
            "only the images that belong together"
        )
    warnings.append(
        f"the slice distances run from {gaps.min():.4g} to {gaps.max():.4g} mm: the mean of {distance:.4g} mm was "
        f"used, and slices lie up to {off.max():.2g} mm off their place in mask.nii.gz"
    )


def depth_of(plane: ImagePlane, normal: NDArray[np.float64]) -> float:
    """Position along the normal, mm."""
    assert plane.position is not None
    return float(normal @ plane.position)


def same_place(plane: ImagePlane) -> float:
    """How close images like this one lie at most, along the normal, to be at one place, mm."""
    assert plane.spacing is not None  # callers check it
    return _SAME_PLACE * min(plane.spacing)


def _images(count: int) -> str:
    return f"{count} image{'s' if count != 1 else ''}"
