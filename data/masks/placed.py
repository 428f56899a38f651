"""Corrected masks -> the grid of the mask that they correct, however another program has laid out the file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.rtstruct import is_structure_set, read_contours
from tumorlens.data.dicom.seg_exchange import read_seg_frames, read_segments
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan, sniff
from tumorlens.data.masks.outlines import fill
from tumorlens.data.masks.read import open_mask, read_mask, read_volume_mask
from tumorlens.data.scan import Scan

_MOST_APART = 0.4  # voxels: the nearest one is certain. Headers that are rounded move corners by up to 0.2 mm
_MOST_LABELS, _FEW_LABELS = 255, 31  # values besides 0: a file with more is not a mask, one with few may be
_ROUNDING = 1e-3  # of labels that a file keeps as fractions


def read_placed_mask(path: Path, scan: Scan) -> NDArray[np.uint8]:
    """The mask of a volume from a NIfTI, NRRD or other volume file, as 0 and 1 in the array order of ``scan.voxels``.

    The file's axes may have another order or sense, and it may hold a part of the scan, as 3D Slicer writes it. Several
    layers (segments that overlap) add up.

    Raises:
        InputError: The file cannot be read, its voxels are not those of the scan, or its lesion reaches out of it.
    """
    layers = _layers(path)
    if any(layer.affine is None for layer in layers) or scan.affine is None:
        for layer in layers:
            check_labels(layer.voxels, path)
        return read_volume_mask(path, scan).reshape(scan.voxels.shape)
    mask = np.zeros(scan.voxels.shape, np.uint8)
    for layer in layers:
        check_labels(layer.voxels, path)
        _check_place(layer, scan, path)
        mask |= lay_on(layer.voxels != 0, layer.affine, scan, path)
    return mask


def read_picture_mask(path: Path, shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of a picture from a PNG, TIFF or BMP file, as 0 and 1, ``(rows, columns)``; see `read_mask`.

    Raises:
        InputError: The file cannot be read, has another size than the picture, or shows no mask.
    """
    mask = read_mask(path, Scan.from_array(np.zeros(shape_hw, np.uint8)))
    voxels = open_mask(path).voxels
    check_labels(voxels.max(axis=2) if voxels.ndim == 3 else voxels, path, smooth=True)
    return mask


def check_labels(voxels: NDArray[Any], path: Path, smooth: bool = False) -> None:
    """Check that voxels are those of a mask, not of a scan: whole labels, in areas of one value.

    Args:
        voxels: The file's values, without a channel axis.
        path: The file, for messages.
        smooth: Whether borders may be gray, as image editors draw them.

    Raises:
        InputError: They are not.
    """
    values = np.unique(voxels[voxels != 0])
    problem = ""
    if len(values) > _MOST_LABELS:
        problem = f"it has {len(values)} different values"
    elif not smooth and ((values < 0) | (np.abs(values - np.rint(values)) > _ROUNDING)).any():
        problem = "its values are not whole labels"
    elif len(values) > _FEW_LABELS and _is_gray(voxels):
        problem = "it shows shades of gray"
    if problem:
        raise InputError(f"{path}: this is not a mask, because {problem}; give the mask, not the scan")


def _is_gray(voxels: NDArray[Any]) -> bool:
    """Whether most neighbors differ. In a mask, only those at a border do."""
    pairs = [(voxels.take(range(1, n), axis), voxels.take(range(n - 1), axis)) for axis, n in enumerate(voxels.shape)]
    both = sum(int(np.count_nonzero((a != 0) & (b != 0))) for a, b in pairs)
    return sum(int(np.count_nonzero((a != b) & (a != 0) & (b != 0))) for a, b in pairs) > both / 2


def _check_place(mask: Scan, scan: Scan, path: Path) -> None:
    """Check that a file of the scan's size lies where the scan lies. Only a part of it may lie elsewhere."""
    assert mask.affine is not None and scan.affine is not None
    exact = np.linalg.solve(scan.affine, mask.affine)
    ends = np.array(np.meshgrid(*((0, n - 1) for n in mask.voxels.shape), [1])).reshape(4, -1)
    places = (exact @ ends)[:3]
    last = np.array(scan.voxels.shape)[:, None] - 1.0
    same_size = np.abs(np.ptp(places, axis=1, keepdims=True) - last).max() <= _MOST_APART
    apart = float(np.abs(places.min(axis=1)).max())
    if same_size and apart > _MOST_APART:
        raise InputError(
            f"{path}: the mask is as large as its scan, but lies up to {apart:.1f} voxels away; save it on the grid of "
            "the exported mask"
        )


def read_mask_dicom(path: Path, scan: Scan) -> NDArray[np.uint8]:
    """The mask of a volume from a DICOM Segmentation or RT Structure Set, as 0 and 1 in the order of ``scan.voxels``.

    All segments or regions add up.

    Raises:
        InputError: As `read_placed_mask`, or the scan's place in space is not known.
    """
    if scan.affine is None:
        raise InputError(f"{path}: the scan's place in space is not known, so no DICOM mask fits it")
    if is_structure_set(path):
        return _fill_contours(path, scan)
    mask = np.zeros(scan.voxels.shape, np.uint8)
    for frame, affine in read_seg_frames(path, list(scan.affine[:3, :3].T)):
        mask |= lay_on(frame, affine, scan, path)
    return mask


def read_segments_dicom(path: Path, scan: Scan) -> dict[str, NDArray[np.uint8]]:
    """The masks of a DICOM Segmentation by the labels of its segments, each as `read_mask_dicom` gives it. Empty
    segments are left out.

    Raises:
        InputError: As `read_mask_dicom`, or the file is a RT Structure Set.
    """
    if scan.affine is None:
        raise InputError(f"{path}: the scan's place in space is not known, so no DICOM mask fits it")
    if is_structure_set(path):
        raise InputError(f"{path}: a RT Structure Set cannot hold regions here; give a DICOM Segmentation or a NIfTI")
    masks: dict[str, NDArray[np.uint8]] = {}
    for label, frame, affine in read_segments(path, list(scan.affine[:3, :3].T)):
        masks.setdefault(label, np.zeros(scan.voxels.shape, np.uint8))
        masks[label] |= lay_on(frame, affine, scan, path)
    return masks


def lay_on(mask: NDArray[np.bool_], affine: Any, scan: Scan, path: Path) -> NDArray[np.uint8]:
    """A mask with an affine of its own, as 0 and 1 in the array order of ``scan.voxels``.

    Args:
        mask: ``(i, j, k)`` in its own order.
        affine: ``(4, 4)`` from its indices to RAS mm.
        scan: The grid.
        path: The file, for messages.

    Raises:
        InputError: Its voxels lie nearly half a voxel or more from those of the scan, or its lesion reaches out of it.
    """
    assert scan.affine is not None
    exact = np.linalg.solve(scan.affine, np.asarray(affine, float))
    whole = np.rint(exact[:3])
    corners = np.array(np.meshgrid(*((0, n - 1) for n in mask.shape), [1])).reshape(4, -1)
    apart = float(np.abs((exact[:3] - whole) @ corners).max())
    turn = np.abs(whole[:, :3])
    if apart > _MOST_APART or not ((turn.sum(axis=0) == 1).all() and (turn.sum(axis=1) == 1).all()):
        raise InputError(
            f"{path}: the mask is not on the grid of its scan (shape {mask.shape}, up to {apart:.1f} voxels away); "
            "save it on the grid of the exported mask"
        )
    places = np.argwhere(mask) @ whole[:, :3].T.astype(int) + whole[:, 3].astype(int)
    if not ((places >= 0) & (places < scan.voxels.shape)).all():
        raise InputError(f"{path}: the lesion reaches out of its scan; save it on the grid of the exported mask")
    laid = np.zeros(scan.voxels.shape, np.uint8)
    laid[tuple(places.T)] = 1
    return laid


def _fill_contours(path: Path, scan: Scan) -> NDArray[np.uint8]:
    """The voxels whose centers lie in an odd number of a region's contours, each contour on the nearest slice."""
    to_index = np.linalg.inv(np.asarray(scan.affine, float))
    # Rounded, so that contours through the centers of voxels are filled alike everywhere.
    regions = [
        [(points @ to_index[:3, :3].T + to_index[:3, 3]).round(3) for points in contours]
        for contours in read_contours(path)
    ]
    mask = np.zeros(scan.voxels.shape, np.uint8)
    extents = [np.ptp(points, axis=0) for contours in regions for points in contours]
    if not extents:
        return mask
    extent = np.max(extents, axis=0)
    axis = int(np.argmin(extent))
    if not extent[axis] <= 0.5:  # true for NaN, too
        raise InputError(f"{path}: the contours are not parallel to the slices of their scan")
    slices: NDArray[np.uint8] = np.moveaxis(mask, axis, 0)
    columns, rows = (int(n) for n in slices.shape[1:])
    for contours in regions:
        planes = defaultdict(list)
        for points in contours:
            planes[round(float(points[:, axis].mean()), 2)].append(np.delete(points, axis, axis=1))
        for depth, rings in planes.items():
            if not 0 <= round(depth) < len(slices):
                raise InputError(
                    f"{path}: a contour lies on no slice of its scan, but at {depth:.1f} where the slices are 0 to "
                    f"{len(slices) - 1}"
                )
            if any((ring < -1).any() or (ring > (columns, rows)).any() for ring in rings):
                raise InputError(f"{path}: a contour reaches out of its scan")
            slices[round(depth)] |= fill([ring + 0.5 for ring in rings], (rows, columns)).T
    return mask


def _layers(path: Path) -> list[Scan]:
    """The mask file as one scan, or as one for each layer of a segmentation of 3D Slicer."""
    count = _count_layers(path)
    try:
        return [open_scan(path, frame, constant=True) for frame in range(count)] if count else [open_mask(path)]
    except InputError as error:
        if "frame" in str(error).removeprefix(str(path)):
            raise InputError(f"{path}: the file holds several volumes, and a mask is one; save one volume") from None
        raise


def _count_layers(path: Path) -> int:
    """The number of layers of a NRRD with four axes; 0 for other files, and for those that cannot be read."""
    import nrrd

    try:
        if sniff(path) != "nrrd":
            return 0
        header = nrrd.read_header(str(path))
        return int(header["sizes"][0]) if len(header["sizes"]) == 4 else 0
    except Exception:  # reading reports the problem
        return 0
