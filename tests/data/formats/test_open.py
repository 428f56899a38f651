"""`open_scan`: the content tells the format, and files that cannot be read are refused in one sentence."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import FORMATS, SCAN_SUFFIXES, is_scan, open_scan, sniff

RAMP = (np.arange(30 * 40).reshape(30, 40) % 251).astype(np.uint8)


def test_nifti_under_a_wrong_name(tmp_path):
    data = np.arange(60.0).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    shutil.move(tmp_path / "a.nii.gz", tmp_path / "export.bin")
    np.testing.assert_array_equal(open_scan(tmp_path / "export.bin").voxels, data)


def test_png_under_a_wrong_name(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    shutil.move(tmp_path / "a.png", tmp_path / "a.nii")
    assert open_scan(tmp_path / "a.nii").format == "png"


def _bad_files(folder):
    good = folder / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(good)
    volume = folder / "good.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(9, 9, 9)), np.eye(4)), volume)
    (folder / "text.png").write_text("this is a text file named .png\n")
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(good.read_bytes()[:900])
    (folder / "cut.nii.gz").write_bytes(volume.read_bytes()[:400])
    (folder / "cut.nii").write_bytes(gzip.decompress(volume.read_bytes())[:2000])
    Image.fromarray(RAMP).save(folder / "cut0.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut0.jpg").read_bytes()[:500])
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(folder / "flat.png")
    pages = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1])]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    nan = np.ones((4, 4, 4))
    nan[0, 0, 0], nan[1, 1, 1] = np.nan, np.inf
    nib.save(nib.Nifti1Image(nan, np.eye(4)), folder / "nan.nii")
    singular = nib.Nifti1Image(np.arange(64.0).reshape(4, 4, 4), np.eye(4))
    singular.header.set_sform(np.diag([1, 1, 0, 1.0]), 1)
    singular.header.set_qform(None, 0)
    nib.save(nib.Nifti1Image(singular.dataobj, None, singular.header), folder / "singular.nii")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 2, 2)), np.eye(4)), folder / "five.nii")
    savemat(folder / "other.mat", {"x": np.ones(3)})
    (folder / "broken.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\x00" * 200)
    (folder / "dicom.dcm").write_bytes(b"\x00" * 128 + b"DICM" + b"\x00" * 50)


BAD = {
    "missing.png": "no such file",
    "text.png": "this is not a DICOM, PNG, JPEG, TIFF, BMP, WebP, GIF, MATLAB, NIfTI, NRRD, MGH or MetaImage file",
    "empty.png": "empty",
    "cut.png": "damaged or cut off",
    "cut.jpg": "damaged or cut off",
    "cut.nii.gz": "damaged or cut off|cannot be read",
    "cut.nii": "damaged or cut off",
    "flat.png": "same value",
    "pages.tif": "2 pages",
    "nan.nii": "2 of 64 voxels are NaN or infinite",
    "singular.nii": "affine is singular",
    "five.nii": "5 axes",
    "other.mat": "no cjdata",
    "broken.mat": "damaged|no cjdata",
    "dicom.dcm": "cut off before its image begins",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_in_one_sentence(tmp_path, name):
    _bad_files(tmp_path)
    with pytest.raises(InputError, match=BAD[name]) as caught:
        open_scan(tmp_path / name)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message


def test_a_folder_without_dicom_is_refused(tmp_path):
    with pytest.raises(InputError, match="folder"):
        open_scan(tmp_path)


def test_sniff_reads_content_only(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "x.webp")
    assert sniff(tmp_path / "x.webp") == "webp"


def test_a_picture_loads_no_package_of_another_format(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "from tumorlens.data.formats.open import open_scan\n"
        "open_scan(sys.argv[1])\n"
        "print(sorted({'nibabel', 'pydicom', 'h5py', 'scipy', 'nrrd'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_each_suffix_belongs_to_one_format():
    assert len(set(SCAN_SUFFIXES)) == len(SCAN_SUFFIXES)
    assert len({row.name for row in FORMATS}) == len(FORMATS)


def _write_hdf5(path, name, matlab):
    with h5py.File(path, "w", userblock_size=512 if matlab else 0) as file:
        for n in range(20):
            file[f"weights_{n}"] = np.zeros(50)
        file.create_group(name)["image"] = RAMP
    if matlab:
        with path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


@pytest.mark.parametrize("name", ["1.mat", "1.h5", "1"])
@pytest.mark.parametrize("struct", ["cjdata", "patients"])
@pytest.mark.parametrize("kind", ["v5", "v5 packed", "v7.3", "HDF5"])
def test_in_a_folder_matlab_files_are_scans_if_they_hold_cjdata(tmp_path, name, struct, kind):
    path = tmp_path / name
    if kind.startswith("v5"):
        savemat(tmp_path / "a.mat", {"other": np.ones(900), struct: {"image": RAMP}}, do_compression="packed" in kind)
        shutil.move(tmp_path / "a.mat", path)
    else:
        _write_hdf5(path, struct, matlab=kind == "v7.3")
    assert is_scan(path) == (struct == "cjdata")
    if struct != "cjdata":
        with pytest.raises(InputError, match="no cjdata"):
            open_scan(path)


TEXTS = {
    "README.mat": b"These are the MATLAB files of the study.\n",
    "about.txt": b"MATLAB 5.0 files are read with loadmat, version 7.3 ones with h5py.\n",
    "about": b"MATLAB 5.0 MAT-file is the name of a format, which this text explains at some length. " * 4,
    "old.txt": b"MATLAB 7.3 MAT-file: what it is, and why it is HDF5 within. " * 12,
    "format.txt": b"NRRD0004 is the magic of the fourth version.\n",
    "notes.md": b"NRRD files: see teem.sourceforge.net\n",
    "page.html": b"<html><img src='a.gif'></html>",
    "table.csv": b"GIF,89a\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_in_a_folder_texts_about_formats_are_no_scans(tmp_path, name):
    (tmp_path / name).write_bytes(TEXTS[name])
    assert not is_scan(tmp_path / name)
    with pytest.raises(InputError, match="this is not a DICOM, PNG"):
        open_scan(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.heic", "a.gif", "a.mat"])
def test_in_a_folder_an_empty_file_with_the_name_of_a_scan_is_reported(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert is_scan(tmp_path / name)
    with pytest.raises(InputError, match="the file is empty"):
        open_scan(tmp_path / name)


@pytest.mark.parametrize("place", [180, 300])
def test_in_a_folder_a_damaged_matlab_file_is_reported(tmp_path, place):
    savemat(tmp_path / "a.mat", {"cjdata": {"image": RAMP}}, do_compression=True)
    (tmp_path / "a.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:place] + b"\xff" * 9)
    assert is_scan(tmp_path / "a.mat")
    with pytest.raises(InputError, match=r"a\.mat: "):
        open_scan(tmp_path / "a.mat")


def test_the_voxels_of_a_pair_come_with_their_header(tmp_path):
    nib.save(nib.Nifti1Pair(np.arange(60.0).reshape(3, 4, 5), np.eye(4)), tmp_path / "a.img")
    assert [is_scan(tmp_path / name) for name in ("a.img", "a.hdr")] == [False, True]
