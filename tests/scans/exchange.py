"""An output folder with results of scans of each kind, for the tests of masks that are exchanged."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
from PIL import Image

from tests.scans.dicom import save_series, small_volume
from tests.scans.results import result_of
from tests.scans.volumes import oblique_affine
from tumorlens.data.formats.open import open_scan
from tumorlens.pipeline.batch.job import folder_of
from tumorlens.pipeline.outputs.table import csv_row, error_row, write_table
from tumorlens.pipeline.outputs.write import write_result

PICTURE, VOLUME, FLAT, UNPLACED, NEGATIVE, SERIES = (
    *("pictures/7.png", "P1/t1.nii.gz", "flat.nii.gz", "unplaced.nrrd"),
    *("healthy.nii", "series"),
)
EVERYTHING = {PICTURE, VOLUME, FLAT, UNPLACED, NEGATIVE, SERIES}
REFUSED, FAILED = "knee.png", "broken.png"


def lesions(shape):
    """Lesions with a hole, at a corner and of one pixel, of which no slice is a mirror image of another."""
    mask = np.zeros(shape, np.uint8)
    mask[2:8, 3:8] = 1
    mask[4, 5] = 0
    mask[0, 0] = 1
    mask[10, 1] = 1
    if len(shape) == 3 and shape[2] > 2:
        mask[..., 0] = mask[..., -1] = 0
        mask[8, 4:6, shape[2] // 2 - 1] = 1
    return mask


def written(out, name, scan, mask, label="meningioma"):
    """Write a result as `tumorlens run` does, and return its row."""
    result = result_of(scan, mask, label)
    for row in result.slices:
        row["probabilities"] = result.probabilities
    if label == "refused":
        result = replace(result, probabilities={}, slices=[])
    return csv_row(write_result(result, out / folder_of(name), name))


def make_results(folder):
    """Write scans of each kind into ``scans`` and their results into ``out``."""
    random = np.random.default_rng(1)
    scans = folder / "scans"
    for name, shape, affine in (
        (VOLUME, (12, 10, 5), oblique_affine()),
        (FLAT, (12, 10, 1), np.diag([-1.0, 1, 5, 1])),
        (NEGATIVE, (12, 10, 4), np.diag([1.0, 1, 5, 1])),
    ):
        (scans / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(random.integers(1, 900, shape).astype(np.int16), affine), scans / name)
    voxels = random.integers(1, 900, (12, 10, 4)).astype("<i2")
    head = ("NRRD0004", "type: short", "dimension: 3", "sizes: 12 10 4", "endian: little", "encoding: raw")
    spacing = ("spacings: 1 1 6", "", "")
    (scans / UNPLACED).write_bytes("\n".join([*head, *spacing]).encode() + voxels.tobytes(order="F"))
    for name in (PICTURE, REFUSED):
        (scans / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (12, 17)).astype(np.uint8)).save(scans / name)
    save_series(scans / SERIES, *small_volume(shape=(14, 11, 6)))
    rows = []
    for name in sorted(EVERYTHING | {REFUSED}):
        scan = open_scan(scans / name)
        mask = lesions(scan.voxels.shape) if name not in (NEGATIVE, REFUSED) else np.zeros(scan.voxels.shape, np.uint8)
        label = {NEGATIVE: "no_tumor", REFUSED: "refused"}.get(name, "meningioma")
        rows.append(written(folder / "out", name, scan, mask, label))
    rows.append(error_row(FAILED, "the png file is damaged"))
    write_table(folder / "out" / "results.csv", rows)


def correct(path, change):
    """Change a NIfTI mask on disk; `change` gets its array of 0 and 1."""
    image = nib.load(path)
    mask = (np.asarray(image.dataobj) > 0).astype(np.uint8)
    change(mask)
    nib.save(nib.Nifti1Image(mask, image.affine), path)
