"""The DICOM source of a `data.scan.Scan`, and the one place where frames become a volume and back.

A DICOM frame has rows from top to bottom. The volume has ``i`` along a row, ``j`` from the bottom row to the top row
and ``k`` along the normal of the image plane. This is the order of dcm2niix, but for what the header calls a 3-D
acquisition (MRAcquisitionType): that dcm2niix turns to right, anterior, superior, as ``nibabel.as_closest_canonical``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class DicomSource:
    """The source instances of a scan.

    Attributes:
        datasets: The header of every file in use, without its pixels, in the order of the slices.
        places: For each slice along the volume's third axis the index into `datasets` and the frame in that file, from
            0; none for a slice that the series lacks, which is empty in the volume.
        facts: The entries about the series in ``result.json``. They do not identify the patient.
        identifiers: Name, ID and texts of the patient. Results contain them only with ``--keep-identifiers``.
    """

    datasets: tuple[Dataset, ...]
    places: tuple[tuple[int, int] | None, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    identifiers: dict[str, str] = field(default_factory=dict, repr=False)


def volume_from_frames(frames_nrc: NDArray[Any]) -> NDArray[Any]:
    """A view ``(i, j, k)`` of frames ``(slices, rows, columns)``."""
    return frames_nrc.transpose(2, 1, 0)[:, ::-1, :]


def frames_from_volume(volume_ijk: NDArray[Any]) -> NDArray[Any]:
    """A view ``(slices, rows, columns)`` of a volume ``(i, j, k)``: the inverse of `volume_from_frames`."""
    return volume_ijk[:, ::-1, :].transpose(2, 1, 0)


def affine_of_frames(
    orientation: NDArray[np.float64],
    first_position: NDArray[np.float64],
    step: NDArray[np.float64],
    pixel_spacing: tuple[float, float],
    rows: int,
) -> NDArray[np.float64]:
    """``(4, 4)`` affine from `volume_from_frames` indices to RAS mm (DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1).

    Args:
        orientation: ``(6,)`` Image Orientation (Patient): cosines of a row's and of a column's direction, LPS. Both
            turn by as much to be perpendicular, and get length 1, from which headers depart by rounding.
        first_position: ``(3,)`` Image Position (Patient) of the first slice, LPS mm.
        step: ``(3,)`` from a slice to the next, LPS mm.
        pixel_spacing: Pixel Spacing: distance of rows, distance of columns, mm.
        rows: Number of rows of a frame.
    """
    row, column = (cosines / np.linalg.norm(cosines) for cosines in (orientation[:3], orientation[3:]))
    middle, across = (sum_ / np.linalg.norm(sum_) for sum_ in (row + column, row - column))  # always perpendicular
    along_row = (middle + across) / np.sqrt(2) * pixel_spacing[1]
    down = (middle - across) / np.sqrt(2) * pixel_spacing[0]
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1], lps[:3, 2] = along_row, -down, step
    lps[:3, 3] = first_position + (rows - 1) * down
    return _LPS_TO_RAS @ lps
