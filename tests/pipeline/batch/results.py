"""What an output folder holds, for tests of several calls with one folder; and the pictures that they run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.scans.pictures import table
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.batch.job import Job, place_of

SICK_PICTURE = phantom_slice(7, "meningioma").image
HEALTHY_PICTURE = phantom_slice(1, "no_tumor").image
OTHER_PICTURE = phantom_slice(2, "no_tumor").image


def labels_in(out):
    return {row["scan"]: row["label"] for row in table(out)}


def contents(out):
    """Name -> bytes of each file, without what differs from run to run: times, UIDs and dates of DICOM, the place."""
    found = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file() and path.suffix not in (".dcm", ".parquet")):
        data = file.read_bytes()
        if file.name == "result.json":
            data = {k: v for k, v in json.loads(data).items() if k not in ("timings_s", "place_sha256")}
        found[str(file.relative_to(out))] = data
    return found


def digits(path):
    """What stands behind a name that another scan has."""
    return place_of(Job(Path(path), ""))[:6]


def time_of(result):
    return (result / "result.json").stat().st_mtime_ns
