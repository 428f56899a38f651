"""DICOM series of every kind, lesions and results for the tests of DICOM results, and dciodvfy as their judge."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from pydicom.uid import generate_uid

from tests.scans.dicom import save_enhanced, save_series
from tumorlens.data.dicom.derived import Algorithm
from tumorlens.data.dicom.seg import write_mask_dicom
from tumorlens.data.labels import SHIPPED_CLASSES
from tumorlens.data.masks.regions import NO_REGIONS
from tumorlens.pipeline.measurements.lesions import Lesion
from tumorlens.pipeline.outputs.dicom_overlay import write_overlay_dicom
from tumorlens.pipeline.outputs.dicom_report import segmenter_of, write_report_dicom
from tumorlens.pipeline.result import Result

SHAPE = (22, 26, 14)
AFFINE = np.array([[1.1, 0, 0, -12], [0, 0.9, 0, -20.5], [0, 0, 3.0, 7.25], [0, 0, 0, 1]])
ALGORITHM = Algorithm("tumorlens Res-U-Net (resnet50)", "0.1.0", "ab" * 32, {"threshold": "0.5"})


def turned(affine):
    """The affine of a head that lies oblique in the scanner."""
    a, b = np.radians([14.0, -9.0])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    askew = affine.copy()
    askew[:3, :3] = x @ z @ affine[:3, :3]
    return askew


def pixels(shape=SHAPE):
    return np.random.default_rng(5).integers(1, 900, shape).astype(np.int16)


def saved(folder, kind, **tags):
    """Paths of a series of one of the kinds that scanners send."""
    if kind == "enhanced":
        return [save_enhanced(folder / "enhanced.dcm", pixels(), AFFINE, **tags)]
    if kind == "two enhanced":
        tags |= {n: generate_uid() for n in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
        below, above = AFFINE.copy(), AFFINE.copy()
        above[:3, 3] += 7 * AFFINE[:3, 2]
        return [
            save_enhanced(folder / "below.dcm", pixels()[..., :7], below, **tags),
            save_enhanced(folder / "above.dcm", pixels()[..., 7:], above, **tags),
        ]
    if kind == "single":
        return save_series(folder / kind, pixels()[..., :1], AFFINE, **tags)
    if kind == "oblique":
        return save_series(folder / kind, pixels(), turned(AFFINE), **tags)
    if kind == "gaps":
        paths = save_series(folder / kind, pixels(), AFFINE, **tags)
        return [path for k, path in enumerate(paths) if k not in (5, 9)]
    return save_series(folder / kind, pixels(), AFFINE, kind, **tags)


def with_lesions(scan):
    """A numbered mask with two lesions that share slices, one with a hole, and none in missing slices."""
    numbers = np.zeros(scan.voxels.shape, np.uint16)
    a, b, c = (max(n // 2, 1) for n in scan.voxels.shape)
    numbers[2:a, 3:b, : c + 1] = 1
    numbers[4, 5] = 0
    numbers[a + 2 : a + 5, b + 1 : b + 4, c - 1 : c + 2] = 2
    for k, place in enumerate(scan.dicom.places):
        if place is None:
            numbers[:, :, k] = 0
    return numbers


def lesion(number, **known):
    """A lesion with measurements that depend on its number."""
    fields = dict.fromkeys(Lesion.__dataclass_fields__)
    fields |= {"number": number, "voxels": 100 // number, "slice_index": 1}
    fields |= {"volume_mm3": 123.456 / number, "volume_ml": 0.123456 / number}
    fields |= {"axial_longest_mm": 31.5 / number, "axial_perpendicular_mm": 12.25 / number}
    fields |= {"centroid_ras_mm": (10.5 * number, -20.25, 30.0), "side": "left" if number == 1 else "right"}
    return Lesion(**{**fields, **known})


def result_of(scan, label="meningioma", lesions=(), review=()):
    positive = label != "no_tumor"
    probabilities = {
        "no_tumor": 0.0625 if positive else 0.875,
        "glioma": 0.0625,
        "meningioma": 0.03,
        "pituitary": 0.0325,
    }
    if positive:
        probabilities[label] = 0.8125
    fields = dict.fromkeys(Result.__dataclass_fields__)
    known = {
        "scan": scan,
        "label": label,
        "probabilities": probabilities,
        "mask": np.zeros(scan.voxels.shape, np.uint8),
        "lesions": list(lesions),
        "slices": [],
        "review": list(review),
        "threshold": 0.35,
        "models": {
            "classification": {"architecture": "resnet50", "sha256": "cd" * 32},
            "segmentation": {"architecture": "resunet", "encoder": "resnet50", "sha256": "ab" * 32},
        },
        "versions": {"tumorlens": "0.1.0"},
        "timings_s": {},
        "tumor_area_px": 0,
        "shown_slice": 1 if scan.n_slices > 1 else 0,
        "classes": SHIPPED_CLASSES,
        "regions": NO_REGIONS,
        "region_sizes": [],
    }
    return Result(**{**fields, **known})


def written(folder, scan, label="meningioma", numbers=None):
    """All three objects of a scan, with made-up measurements for each lesion of the mask."""
    numbers = with_lesions(scan) if numbers is None else numbers
    result = result_of(scan, label, [lesion(n) for n in range(1, int(numbers.max()) + 1)])
    segmentation = write_mask_dicom(folder / "seg.dcm", numbers, scan, label, segmenter_of(result))
    write_report_dicom(folder / "sr.dcm", result, segmentation)
    write_overlay_dicom(folder / "sc.dcm", np.full((40, 50, 3), 90, np.uint8), result)
    return folder / "seg.dcm", folder / "sr.dcm", folder / "sc.dcm"


def errors_in(path):
    """The errors that dciodvfy reports."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line.startswith("Error") or "Abort" in line]


def value_of(group, name):
    """The value of the evaluation or measurement of a group by its name."""
    (item,) = [i for i in (*group.get_measurements(), *group.get_qualitative_evaluations()) if i.name == name]
    return item.value
