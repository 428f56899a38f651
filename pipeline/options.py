"""What a user can ask of a run besides the models."""

from __future__ import annotations

from dataclasses import dataclass

ACQUISITION = "acquisition"


@dataclass(frozen=True)
class RunOptions:
    """Settings of a run.

    Attributes:
        frame: Which frame of 4-D files and of series that hold several volumes, or none.
        plane: ``acquisition``, ``axial``, ``coronal`` or ``sagittal``: how volumes are cut into slices.
        secondary_capture: Whether the overlay of a DICOM scan is written as DICOM, too.
        keep_identifiers: Whether patient's name, ID and free text may appear in ``result.json``.
    """

    frame: int | None = None
    plane: str = ACQUISITION
    secondary_capture: bool = False
    keep_identifiers: bool = False
