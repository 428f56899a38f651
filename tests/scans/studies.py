"""Studies as hospitals have them, made of a sick and a healthy phantom."""

from __future__ import annotations

from tests.scans.dicom import save_series
from tumorlens.data.phantom import phantom_volume

STUDY = "1.2.840.77"
SICK = phantom_volume(7, "meningioma", shape=(96, 112, 16), spacing_mm=(2.0, 2.0, 7.0))
HEALTHY = phantom_volume(1, "no_tumor", shape=(96, 112, 16), spacing_mm=(2.0, 2.0, 7.0))


def series(folder, phantom=SICK, plane="axial", **tags):
    return save_series(folder, phantom.image, phantom.affine, plane, **{"StudyInstanceUID": STUDY, **tags})
