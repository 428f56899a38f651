"""Studies as hospitals have them: of a sick and a healthy phantom, and small ones of random voxels."""

from __future__ import annotations

import numpy as np

from tests.scans.dicom import save_series
from tumorlens.data.phantom import phantom_volume

STUDY = "1.2.840.77"
SICK = phantom_volume(7, "meningioma", shape=(96, 112, 16), spacing_mm=(2.0, 2.0, 7.0))
HEALTHY = phantom_volume(1, "no_tumor", shape=(96, 112, 16), spacing_mm=(2.0, 2.0, 7.0))


def series(folder, phantom=SICK, plane="axial", **tags):
    return save_series(folder, phantom.image, phantom.affine, plane, **{"StudyInstanceUID": STUDY, **tags})


# Series of one small study, by their headers.
SMALL_STUDY = "1.2.840.1"
VOLUME = np.random.default_rng(2).integers(0, 900, (12, 14, 9)).astype(np.int16)
AFFINE = np.diag([1.0, 1, 5, 1])
T1C = {"SeriesDescription": "t1 se tra +c", "SeriesNumber": 8}
T1 = {"SeriesDescription": "t1 se tra", "SeriesNumber": 3, "ContrastBolusAgent": None}
T2 = {"SeriesDescription": "t2 tse tra", "SeriesNumber": 4, "ContrastBolusAgent": None}
LOCALIZER = {"SeriesDescription": "localizer", "SeriesNumber": 1, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
CT = {"Modality": "CT", "SeriesNumber": 20}


def save_study(folder, *kinds, volume=VOLUME):
    """Write all series into one folder, files mixed."""
    for index, kind in enumerate(kinds):
        for path in save_series(folder / "tmp", volume + index, AFFINE, StudyInstanceUID=SMALL_STUDY, **kind):
            path.rename(folder / f"{index}-{path.name}")
    (folder / "tmp").rmdir()
    return sorted(folder.iterdir())
