"""What a user can ask of a run besides the models."""

from __future__ import annotations

from dataclasses import dataclass

from tumorlens.data.scan import ACQUISITION


@dataclass(frozen=True)
class RunOptions:
    """Settings of a run.

    Attributes:
        frame: Which frame of 4-D files and of series that hold several volumes, or none.
        channel: Which channel of colour pictures is the scan, 0 to 2; none takes their brightness.
        plane: ``acquisition``, ``axial``, ``coronal`` or ``sagittal``: how volumes are cut into slices.
        secondary_capture: Whether the overlay of a DICOM scan is written as DICOM, too.
        force: Whether a scan that is no MRI of the brain is judged all the same.
        explain: Whether a picture of where the classifier looked is written.
        keep_identifiers: Whether patient's name, ID and free text may appear in ``result.json``.
    """

    frame: int | None = None
    plane: str = ACQUISITION
    secondary_capture: bool = False
    force: bool = False
    explain: bool = False
    channel: int | None = None
    keep_identifiers: bool = False
