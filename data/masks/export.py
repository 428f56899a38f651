"""The table of formats in which masks go to other programs and come back. To add one, add a row to `FORMATS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.rtstruct import write_structure_set
from tumorlens.data.dicom.seg_exchange import Rgb, copy_segmentation
from tumorlens.data.masks.geojson import write_geojson
from tumorlens.data.masks.label_maps import (
    write_nifti_labels,
    write_nrrd_labels,
    write_palette_png,
    write_slicer_segmentation,
    write_snap_labels,
)
from tumorlens.data.masks.labeling import MaskLabel
from tumorlens.data.masks.labelme import write_labelme
from tumorlens.data.masks.outlines import outlines_of, single_ring
from tumorlens.data.scan import Scan

VolumeWriter = Callable[[Path, NDArray[np.uint8], Scan, Sequence[MaskLabel]], None]
SliceWriter = Callable[[Path, NDArray[np.uint8], Sequence[MaskLabel]], None]
DicomWriter = Callable[[Path, Path, Mapping[int, Rgb], tuple[str, Rgb] | None], None]

# How a program that reads PNG with ITK lays a picture (columns, rows, 1) in space: a pixel is 1 mm.
_PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class MaskFormat:
    """One row of the table of formats.

    Attributes:
        name: The name on the command line.
        suffix: End of the names of its files.
        kind: What its files are to the import: ``"volume"``, ``"picture"``, ``"dicom"``, or the format itself.
        write_volume: Writes one file a scan.
        write_slice: Writes one file a slice.
        write_dicom: Writes one file a scan, from the DICOM Segmentation of its mask.
        also: Ends of the names of further files of a scan.
        shows_pictures: Whether its files name the pictures on which they lie.
    """

    name: str
    suffix: str
    kind: str
    write_volume: VolumeWriter | None = None
    write_slice: SliceWriter | None = None
    write_dicom: DicomWriter | None = None
    also: tuple[str, ...] = ()
    shows_pictures: bool = False


def _write_contours(source: Path, target: Path, colors: Mapping[int, Rgb], merged: tuple[str, Rgb] | None) -> None:
    write_structure_set(
        source, target, colors, merged, lambda mask_hw: [single_ring(outline) for outline in outlines_of(mask_hw)]
    )


FORMATS = {
    row.name: row
    for row in (
        MaskFormat("png", ".png", "picture", write_slice=write_palette_png),
        MaskFormat("nifti", ".nii.gz", "volume", write_nifti_labels),
        MaskFormat("nrrd", ".nrrd", "volume", write_nrrd_labels),
        MaskFormat("dicomseg", ".dcm", "dicom", write_dicom=copy_segmentation),
        MaskFormat("rtstruct", ".dcm", "dicom", write_dicom=_write_contours),
        MaskFormat("coco", ".json", "coco", shows_pictures=True),
        MaskFormat("labelme", ".json", "labelme", write_slice=write_labelme, shows_pictures=True),
        MaskFormat("geojson", ".geojson", "geojson", write_slice=write_geojson, shows_pictures=True),
        MaskFormat("itksnap", ".nii.gz", "volume", write_snap_labels, also=(".labels.txt",)),
        MaskFormat("slicer", ".seg.nrrd", "volume", write_slicer_segmentation),
    )
}


def slices_of(values: NDArray[np.uint8], scan: Scan, folder: str) -> list[tuple[str, NDArray[np.uint8]]]:
    """The slices of a mask in the view of `Scan.slice`, each with its name; a picture has the name of its folder."""
    if not scan.volume:
        return [(folder, values)]
    views = [np.ascontiguousarray(scan.view(values, k)) for k in range(scan.n_slices)]
    return list(zip(slice_names(folder, len(views)), views, strict=True))


def slice_names(folder: str, n_slices: int) -> list[str]:
    """The names of a volume's slices: ``<folder>/slice_012``."""
    return [f"{folder}/slice_{k:03d}" for k in range(n_slices)]


def as_volume(values: NDArray[np.uint8], scan: Scan) -> tuple[NDArray[np.uint8], Scan]:
    """A mask and its scan as a volume: a picture lies in space as ITK reads the PNG."""
    if scan.volume:
        return values, scan
    volume = np.ascontiguousarray(values.T[..., None])
    return volume, Scan.from_array(volume, _PICTURE_AFFINE)


def as_picture(volume: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture ``(rows, columns)`` of a volume from `as_volume`."""
    return np.ascontiguousarray(volume[..., 0].T)
