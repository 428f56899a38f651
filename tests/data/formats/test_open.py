"""Every format, told by content; what cannot be read is refused in one sentence that names the file."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.io import savemat

from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import FORMATS, SCAN_SUFFIXES, open_scan, sniff

RAMP = (np.arange(30 * 40).reshape(30, 40) % 251).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "kind", "options"),
    [
        ("png", "png", {}),
        ("bmp", "bmp", {}),
        ("tif", "tiff", {}),
        ("webp", "webp", {"lossless": True}),
        ("jpg", "jpeg", {"quality": 100}),
    ],
)
def test_pictures(tmp_path, suffix, kind, options):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RAMP).save(path, **options)
    scan = open_scan(path)
    assert scan.format == kind
    assert not scan.volume
    assert scan.spacing_mm is None
    assert scan.voxels.shape == (30, 40)  # a grey WebP comes back grey, too
    np.testing.assert_allclose(scan.voxels, RAMP, atol=3 if kind == "jpeg" else 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_colour_modes(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(RAMP).convert("RGB").convert(mode).save(path)
    scan = open_scan(path)
    assert scan.voxels.shape[:2] == (30, 40)
    assert scan.voxels.ndim == 2 or scan.voxels.shape[2] == 3


def test_alpha_is_laid_on_black(tmp_path):
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:, :4, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    voxels = open_scan(tmp_path / "a.png").voxels
    assert (voxels[:, :4] == 0).all()
    assert (voxels[:, 4:] == round(200 * 200 / 255)).all()


def test_sixteen_bits_are_kept(tmp_path):
    deep = (RAMP.astype(np.uint16) * 257) + 3
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(deep).save(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        np.testing.assert_array_equal(open_scan(tmp_path / name).voxels, deep)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_colour_keeps_its_depth(tmp_path, suffix):
    import cv2

    twelve_bit = (np.arange(RAMP.size, dtype=np.uint16) % 4096).reshape(RAMP.shape)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), np.repeat(twelve_bit[..., None], 3, axis=2))
    np.testing.assert_array_equal(open_scan(tmp_path / f"a.{suffix}").voxels, twelve_bit)
    blue, red = np.zeros_like(twelve_bit), twelve_bit
    cv2.imwrite(str(tmp_path / f"b.{suffix}"), np.stack([blue, blue, red], axis=2))
    np.testing.assert_array_equal(open_scan(tmp_path / f"b.{suffix}").voxels[..., 0], red)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    Image.fromarray(RAMP).save(tmp_path / "a.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(open_scan(tmp_path / "a.jpg").voxels, np.rot90(RAMP, -1), atol=3)


def test_a_photograph_with_a_second_view_is_a_photograph(tmp_path):
    picture, view = Image.fromarray(RAMP), Image.fromarray(RAMP[::-1, ::-1])
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[view], quality=100)
    scan = open_scan(tmp_path / "a.jpg")
    assert scan.format == "jpeg"
    np.testing.assert_allclose(scan.voxels, RAMP, atol=3)


@pytest.mark.parametrize("version", [5, 7.3])
def test_matlab(tmp_path, version):
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
def test_matlab_copies_write_labels_and_patients_as_they_like(tmp_path, label, patient, expected):
    savemat(tmp_path / "1.mat", {"cjdata": {"image": RAMP, "label": label, "PID": patient}})
    annotation = open_scan(tmp_path / "1.mat").annotation
    assert (annotation.label, annotation.patient) == expected
    assert annotation.mask is None


@pytest.mark.parametrize(
    ("said", "value", "patient"),
    [
        ("char", [[55]], "7"),
        ("uint16", [[1234]], "1234"),
        ("double", [[1234567.0]], "1234567"),
        ("empty", [0, 0], None),
    ],
)
def test_matlab_7_3_says_what_is_text(tmp_path, said, value, patient):
    with h5py.File(tmp_path / "1.mat", "w") as file:
        group = file.create_group("cjdata")
        group["image"] = RAMP
        kind = {"double": np.float64, "empty": np.uint64}.get(said, np.uint16)
        group["PID"] = np.array(value, kind)
        group["PID"].attrs["MATLAB_class"] = np.bytes_("char" if said == "empty" else said)
        if said == "empty":
            group["PID"].attrs["MATLAB_empty"] = np.uint8(1)
    assert open_scan(tmp_path / "1.mat").annotation.patient == patient


@pytest.mark.parametrize("image", [RAMP * 1j, np.array([["a", "b"]], object), RAMP[None]])
def test_matlab_images_that_are_none(tmp_path, image):
    savemat(tmp_path / "1.mat", {"cjdata": {"image": image, "label": 1}})
    with pytest.raises(InputError, match=r"1\.mat: the MATLAB file has no 2-D cjdata\.image of real numbers"):
        open_scan(tmp_path / "1.mat")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colour_is_turned_as_pillow_turns_eight_bits(orientation):
    from tumorlens.data.formats.pictures import _ORIENTATION, _UPRIGHT

    picture = Image.fromarray(RAMP)
    picture.getexif()[_ORIENTATION] = orientation
    turned = _UPRIGHT.get(orientation, lambda a: a)(RAMP)
    np.testing.assert_array_equal(turned, np.array(ImageOps.exif_transpose(picture)))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_volumes(tmp_path, kind, suffix):
    data = np.random.default_rng(0).integers(0, 999, (6, 7, 5)).astype(np.int16)
    nib.save(kind(data, np.diag([2, 3, 4, 1.0])), tmp_path / f"a{suffix}")
    scan = open_scan(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(scan.voxels, data)
    assert scan.volume
    assert scan.spacing_mm == (2, 3, 4)
    assert scan.plane == "axial"


def test_nifti_under_a_wrong_name(tmp_path):
    data = np.arange(60.0).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    shutil.move(tmp_path / "a.nii.gz", tmp_path / "export.bin")
    np.testing.assert_array_equal(open_scan(tmp_path / "export.bin").voxels, data)


def test_png_under_a_wrong_name(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    shutil.move(tmp_path / "a.png", tmp_path / "a.nii")
    assert open_scan(tmp_path / "a.nii").format == "png"


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 1, 1)])
def test_flat_nifti(tmp_path, shape):
    data = np.arange(42, dtype=np.float32).reshape(shape)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii")
    scan = open_scan(tmp_path / "a.nii")
    assert scan.n_slices == 1
    assert scan.source_shape == shape
    assert scan.slice(0).size == 42


@pytest.mark.parametrize("spacing", [(0.5, 1.9, 1), (1, 1, 1), (0.5, 0.5, 6), (0.5, 1, 0.5)])
def test_flat_nifti_is_one_slice_at_any_spacing(tmp_path, spacing):
    data = np.arange(42, dtype=np.float32).reshape(6, 7, 1)
    nib.save(nib.Nifti1Image(data, np.diag([*spacing, 1])), tmp_path / "a.nii")
    scan = open_scan(tmp_path / "a.nii")
    assert (scan.n_slices, scan.slice(0).size) == (1, 42)
    assert sorted(scan.slice_spacing_mm) == pytest.approx(sorted(spacing[:2]))


def test_spacing_that_no_header_field_speaks_of_is_unknown(tmp_path):
    image = nib.Nifti1Image(np.arange(60.0).reshape(3, 4, 5), np.eye(4))
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "a.nii")
    assert open_scan(tmp_path / "a.nii").spacing_mm is None
    image.header.set_xyzt_units("mm")
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "b.nii")
    assert open_scan(tmp_path / "b.nii").spacing_mm == (1, 1, 1)


def test_a_unit_is_no_orientation(tmp_path):
    """nibabel makes up an affine; slices are shown by it, upright as a rule, but nothing is left or right by it."""
    image = nib.Nifti1Image(np.arange(60.0).reshape(3, 4, 5), None)
    image.header.set_zooms((1, 2, 3))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii")
    scan = open_scan(tmp_path / "a.nii")
    assert (scan.affine, scan.plane, scan.spacing_mm) == (None, None, (1, 2, 3))
    np.testing.assert_array_equal(scan.slice(1), np.asarray(image.dataobj)[:, ::-1, 1].T)
    with pytest.raises(InputError, match="orientation is not known"):
        scan.with_plane("axial")
    assert open_scan(tmp_path / "a.nii").in_plane(0).slice(1).shape == (5, 4)


def test_one_frame_of_four_dimensions(tmp_path):
    data = np.random.default_rng(1).normal(size=(4, 5, 6, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(open_scan(tmp_path / "a.nii.gz", frame=2).voxels, data[..., 2])
    with pytest.raises(InputError, match=r"4-D with 3 frames; choose one with --frame 0 to 2"):
        open_scan(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="frame 3 does not exist"):
        open_scan(tmp_path / "a.nii.gz", frame=3)
    assert open_scan(tmp_path / "a.nii.gz", frame=2).frame == 2
    nib.save(nib.Nifti1Image(data[..., 0], np.eye(4)), tmp_path / "b.nii.gz")
    assert open_scan(tmp_path / "b.nii.gz", frame=2).frame is None  # nothing to choose


def test_spacing_in_other_units(tmp_path):
    image = nib.Nifti1Image(np.arange(60.0).reshape(3, 4, 5), np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert open_scan(tmp_path / "a.nii").spacing_mm == pytest.approx((1, 2, 3))


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
    (folder / "broken.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\x00" * 200)
    (folder / "dicom.dcm").write_bytes(b"\x00" * 128 + b"DICM" + b"\x00" * 50)


BAD = {
    "missing.png": "no such file",
    "text.png": "this is not a DICOM, PNG, JPEG, TIFF, BMP, WebP, MATLAB, NIfTI, NRRD, MGH or MetaImage file",
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


def test_a_folder_is_no_scan(tmp_path):
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
