"""The names of what a run writes."""

from __future__ import annotations

TABLE = "results.csv"

RESULT_FILES = (
    *("result.json", "overlay.png", "explanation.png", "montage.png", "mask.png", "mask.nii.gz"),
    *("mask.dcm", "measurements.dcm", "overlay.dcm"),
)
