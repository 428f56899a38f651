"""The MATLAB files of the figshare set, version 5 and 7.3, and copies that write them in other ways."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from tumorlens.data.errors import InputError
from tumorlens.data.formats.matlab import _CLASS_NUMBERS, has_cjdata
from tumorlens.data.formats.open import is_scan, open_scan
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
        ("zebra", "A7", ("zebra", "A7")),
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


@pytest.mark.parametrize("do_compression", [False, True])
def test_a_struct_without_values_is_refused(tmp_path, do_compression):
    """As MATLAB's ``struct('image', {})`` writes it, and a struct array."""
    for name, shape in (("empty", (0, 0)), ("three", (1, 3))):
        path = tmp_path / f"{name}.mat"
        cjdata = np.zeros(shape, [("image", object), ("label", object)])
        savemat(path, {"cjdata": cjdata}, do_compression=do_compression)
        count = int(np.prod(shape))
        with pytest.raises(InputError, match=rf"{name}\.mat: cjdata .* is not one structure, but {count} of them"):
            open_scan(path)


def test_other_variables_are_named(tmp_path):
    savemat(tmp_path / "1.mat", {"weights": np.ones(3), "bias": 1.0})
    with pytest.raises(InputError, match=r"1\.mat: the MATLAB file has no cjdata structure \(it holds bias, weights\)"):
        open_scan(tmp_path / "1.mat")


@pytest.mark.parametrize("names", [("image", "mask"), tuple(f"layer{n}" for n in range(9)), ()])
def test_hdf5_of_another_program_is_called_so(tmp_path, names):
    path = tmp_path / "slice.h5"
    with h5py.File(path, "w") as file:
        for name in names:
            file[name] = RAMP
    there = f" (it holds {', '.join(names[:5])}{' ...' if len(names) > 5 else ''})" if names else ""
    message = f"{path}: the file has no cjdata structure{there}, so another program wrote it"
    with pytest.raises(InputError) as error:
        open_scan(path)
    assert str(error.value) == message


@pytest.mark.parametrize("where", ["struct", "image", "external", "virtual", "soft"])
def test_values_in_other_files_are_not_read(tmp_path, where):
    """A link in an HDF5 file can lead to any file of the machine."""
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["cjdata/image"] = RAMP
    RAMP.tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "1.mat", "w") as file:
        if where == "struct":
            file["cjdata"] = h5py.ExternalLink("other.h5", "cjdata")
        elif where == "image":
            file.create_group("cjdata")["image"] = h5py.ExternalLink("other.h5", "cjdata/image")
        elif where == "soft":
            file.create_group("cjdata")["image"] = h5py.SoftLink("/elsewhere")
        elif where == "external":
            raw = [(str(tmp_path / "raw"), 0, RAMP.size)]
            file.create_dataset("cjdata/image", RAMP.shape, RAMP.dtype, external=raw)
        else:
            layout = h5py.VirtualLayout(RAMP.shape, RAMP.dtype)
            layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "cjdata/image", RAMP.shape)
            file.create_virtual_dataset("cjdata/image", layout)
    with pytest.raises(InputError, match=r"1\.mat: .*no (cjdata structure|2-D cjdata\.image)"):
        open_scan(tmp_path / "1.mat")


def test_references_and_other_types_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file["cjdata/image"] = RAMP
        file["cjdata/label"] = np.array([file["cjdata/image"].ref], h5py.ref_dtype)
        file["cjdata/PID"] = np.zeros(2, [("a", "i4"), ("b", "f8")])
    annotation = open_scan(tmp_path / "1.mat").annotation
    assert (annotation.label, annotation.patient, annotation.mask) == (None, None, None)


def test_text_as_other_programs_write_it(tmp_path):
    with h5py.File(tmp_path / "1.mat", "w") as file:
        file["cjdata/image"], file["cjdata/label"], file["cjdata/PID"] = RAMP, "pituitary", np.bytes_("A-7")
    annotation = open_scan(tmp_path / "1.mat").annotation
    assert (annotation.label, annotation.patient) == ("pituitary", "A-7")


@pytest.mark.parametrize("mask", [RAMP * 1j, np.array([["a"]], object), RAMP[:5]])
def test_a_mask_that_does_not_fit_is_refused(tmp_path, mask):
    savemat(tmp_path / "1.mat", {"cjdata": {"image": RAMP, "tumorMask": mask}})
    with pytest.raises(InputError, match=r"1\.mat: cjdata\.tumorMask (is not a full array|has shape)"):
        open_scan(tmp_path / "1.mat")


@pytest.mark.parametrize("do_compression", [False, True])
@pytest.mark.parametrize("variables", [["cjdata"], ["a", "b", "cjdata"], ["a", "notes"]])
def test_cjdata_is_found_among_the_variables(tmp_path, variables, do_compression):
    path = tmp_path / "1.mat"
    savemat(path, {name: {"image": RAMP, "n": 3} for name in variables}, do_compression=do_compression)
    assert has_cjdata(path) == ("cjdata" in variables)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert has_cjdata(path)  # or cut off, which reading reports
    for length in (140, 127, 100):
        path.write_bytes(content[:length])
        assert is_scan(path) and has_cjdata(path)


def test_a_file_of_hdf5_that_is_cut_off_is_a_scan_by_its_matlab_name(tmp_path):
    for name, head in (("1.mat", 0), ("2.mat", 512)):
        with h5py.File(tmp_path / name, "w", userblock_size=head) as file:
            file["cjdata/image"] = RAMP
        content = (tmp_path / name).read_bytes()
        content = b"MATLAB 7.3 MAT-file".ljust(head)[:head] + content[head:]
        for damaged in (content[: head + 100], content[: head + 600], content[: head + 90] + bytes(5000)):
            (tmp_path / name).write_bytes(damaged)
            (tmp_path / "other.h5").write_bytes(damaged)
            assert is_scan(tmp_path / name) and not is_scan(tmp_path / "other.h5")
            with pytest.raises(InputError, match=r"\.mat: the MATLAB 7.3 file is damaged or cut off"):
                open_scan(tmp_path / name)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_matlab_files_of_anything_else_are_no_scans(tmp_path, libver):
    with h5py.File(tmp_path / "1.mat", "w", libver=libver) as file:
        file["weights"] = RAMP
    savemat(tmp_path / "2.mat", {})
    (tmp_path / "3.mat").write_bytes(b"function y = f(x)\n")
    (tmp_path / "4.mat").write_bytes(bytes(500))
    assert not [path.name for path in tmp_path.iterdir() if is_scan(path)]
