"""The files that a run writes, and their names."""

from __future__ import annotations

TABLE = "results.csv"

RESULT_FILES = (
    *("result.json", "overlay.png", "explanation.png", "montage.png", "mask.png", "mask.nii.gz"),
    *("mask.dcm", "measurements.dcm", "overlay.dcm"),
)
