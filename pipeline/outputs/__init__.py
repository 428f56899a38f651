"""The files that a run writes, and their names."""

from __future__ import annotations

TABLE = "results.csv"
PARQUET = "results.parquet"  # the same rows, typed
QUARANTINE = "quarantine.json"  # in place of the result of a scan that ends the process that reads it
REPORT, REPORT_PDF = "report.html", "report.pdf"  # beside a result; the first also in the output folder

RESULT_FILES = (
    *("result.json", "overlay.png", "explanation.png", "montage.png", "mask.png", "mask.nii.gz"),
    *("lesions.nii.gz", "regions.png", "regions.nii.gz", "probability.png", "probability.nii.gz"),
    *("mask.dcm", "regions.dcm", "measurements.dcm", "overlay.dcm"),
    *(REPORT, REPORT_PDF),
)

# Masks that a reviewer has corrected lie beside the originals. A new run leaves them alone.
REVIEWED = {
    "mask.png": "mask.reviewed.png",
    "mask.nii.gz": "mask.reviewed.nii.gz",
    "mask.dcm": "mask.reviewed.dcm",
}
REVIEWS = "reviews.sqlite"  # the decisions of reviewers, in the output folder
