"""The MATLAB files of the figshare set, version 5 and 7.3, and copies that write them in other ways."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from tumorlens.data.errors import InputError
from tumorlens.data.formats.matlab import _CLASS_NUMBERS
from tumorlens.data.formats.open import open_scan
from tumorlens.data.labels import CLASSES

RAMP = (np.arange(30 * 40).reshape(30, 40) % 251).astype(np.uint8)


def test_the_numbers_of_the_set_are_classes_of_the_project():
    assert set(_CLASS_NUMBERS.values()) == set(CLASSES) - {"no_tumor"}


@pytest.mark.parametrize("version", [5, 7.3])
def test_one_slice_with_mask_label_and_patient(tmp_path, version):
    image = (RAMP.astype(np.int16) * 7)[:, :36]
    mask = (RAMP[:, :36] > 100).astype(np.uint8)
    path = tmp_path / "1.mat"
    if version == 5:
        struct = {"image": image, "label": 2, "PID": "112233", "tumorMask": mask, "tumorBorder": np.ones((1, 4))}
        savemat(path, {"cjdata": struct})
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            group = file.create_group("cjdata")
            group["image"], group["tumorMask"] = image.T, mask.T  # MATLAB writes columns first
            group["label"] = np.array([[2.0]])
            group["PID"] = np.array([[ord(c)] for c in "112233"], np.uint16)
        with path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file".ljust(128))
    scan = open_scan(path)
    np.testing.assert_array_equal(scan.voxels, image)
    np.testing.assert_array_equal(scan.annotation.mask, mask)
    assert (scan.annotation.label, scan.annotation.patient) == ("glioma", "112233")


@pytest.mark.parametrize(
    ("label", "patient", "expected"),
    [
        ("glioma", 112233.0, ("glioma", "112233")),
        ("zebra", "A7", (None, "A7")),
        (9, "", (None, None)),
        (np.nan, "", (None, None)),
        (2, 1234567.0, ("glioma", "1234567")),
        (2, np.uint16(321), ("glioma", "321")),
        (2, 1.5, ("glioma", "1.5")),
        (2, np.nan, ("glioma", None)),
        (2, np.array([[ord(c)] for c in "A7"], np.uint16), ("glioma", "A7")),
    ],
)
def test_copies_write_labels_and_patients_in_other_ways(tmp_path, label, patient, expected):
    savemat(tmp_path / "1.mat", {"cjdata": {"image": RAMP, "label": label, "PID": patient}})
    annotation = open_scan(tmp_path / "1.mat").annotation
    assert (annotation.label, annotation.patient) == expected
    assert annotation.mask is None


@pytest.mark.parametrize(
    ("matlab_class", "value", "patient"),
    [
        ("char", [[55]], "7"),
        ("uint16", [[1234]], "1234"),
        ("double", [[1234567.0]], "1234567"),
        ("empty", [0, 0], None),
    ],
)
def test_version_7_3_marks_text(tmp_path, matlab_class, value, patient):
    with h5py.File(tmp_path / "1.mat", "w") as file:
        group = file.create_group("cjdata")
        group["image"] = RAMP
        kind = {"double": np.float64, "empty": np.uint64}.get(matlab_class, np.uint16)
        group["PID"] = np.array(value, kind)
        group["PID"].attrs["MATLAB_class"] = np.bytes_("char" if matlab_class == "empty" else matlab_class)
        if matlab_class == "empty":
            group["PID"].attrs["MATLAB_empty"] = np.uint8(1)
    assert open_scan(tmp_path / "1.mat").annotation.patient == patient


@pytest.mark.parametrize("image", [RAMP * 1j, np.array([["a", "b"]], object), RAMP[None]])
def test_arrays_that_are_not_images_are_refused(tmp_path, image):
    savemat(tmp_path / "1.mat", {"cjdata": {"image": image, "label": 1}})
    with pytest.raises(InputError, match=r"1\.mat: the MATLAB file has no 2-D cjdata\.image of real numbers"):
        open_scan(tmp_path / "1.mat")
