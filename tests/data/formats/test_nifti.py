"""NIfTI: volumes, frames, units and scaled values; pairs of header and image, and Analyze, which looks like one."""

from __future__ import annotations

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)

from tests.scans.volumes import VOXELS, oblique_affine
from tumorlens.data.errors import InputError
from tumorlens.data.formats.nifti import is_analyze, read_nifti
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.write import write_mask_nifti

PAIRS = [(kind, end) for kind in (nib.Nifti1Pair, nib.Nifti2Pair) for end in ("", ".gz")]


def _pair(folder, kind=nib.Nifti1Pair, end=""):
    source = kind(VOXELS, oblique_affine())
    turned = oblique_affine() @ np.diag([1, 1, 1, 1.0])
    turned[:3, 3] = 1, 2, 3
    source.header.set_sform(oblique_affine(), 2)
    source.header.set_qform(turned, 3)
    source.header.set_xyzt_units("mm", "sec")
    nib.save(source, folder / f"a.img{end}")
    return source


@pytest.mark.parametrize(("kind", "end"), PAIRS)
@pytest.mark.parametrize("named", ["a.hdr", "a.img"])
def test_pairs_are_read_by_either_name_and_masks_are_single_files(tmp_path, kind, end, named):
    source = _pair(tmp_path, kind, end)
    scan = read_nifti(tmp_path / f"{named}{end}")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    assert scan.voxels.dtype == np.int16
    np.testing.assert_allclose(scan.affine, oblique_affine(), atol=1e-5)
    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels == 999).astype(np.uint8), scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert type(mask) is {nib.Nifti1Pair: nib.Nifti1Image, nib.Nifti2Pair: nib.Nifti2Image}[kind]
    assert np.argwhere(np.asanyarray(mask.dataobj)).tolist() == [[1, 5, 3]]
    assert mask.shape == VOXELS.shape
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (2, 3)
    np.testing.assert_array_equal(mask.header.get_sform(), source.header.get_sform())
    np.testing.assert_array_equal(mask.header.get_qform(), source.header.get_qform())
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    if kind is nib.Nifti1Pair:  # ITK 5.4 reads no NIfTI-2 at all
        assert sitk.ReadImage(str(tmp_path / "mask.nii.gz"))[1, 5, 3] == 1


def test_a_pair_may_be_half_compressed_and_in_capitals(tmp_path):
    _pair(tmp_path)
    (tmp_path / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
    (tmp_path / "a.img").unlink()
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.hdr").voxels, VOXELS)
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.img.gz").voxels, VOXELS)
    _pair(tmp_path)
    for name in ("hdr", "img"):
        (tmp_path / f"a.{name}").rename(tmp_path / f"B.{name.upper()}")
    np.testing.assert_array_equal(read_nifti(tmp_path / "B.IMG").voxels, VOXELS)


def test_pairs_have_frames(tmp_path):
    data = np.random.default_rng(1).normal(size=(4, 5, 6, 3)).astype(np.float32)
    nib.save(nib.Nifti1Pair(data, oblique_affine()), tmp_path / "a.img")
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.hdr", 2).voxels, data[..., 2])
    with pytest.raises(InputError, match="the NIfTI is 4-D with 3 frames"):
        read_nifti(tmp_path / "a.img")


def test_half_a_pair_names_the_other_half(tmp_path):
    for named, missing in (("a.hdr", "a.img"), ("a.img", "a.hdr")):
        _pair(tmp_path)
        (tmp_path / missing).unlink()
        with pytest.raises(InputError, match=rf"^{missing} is missing, the other file of this \.hdr/\.img pair$"):
            read_nifti(tmp_path / named)


def test_damaged_pairs(tmp_path):
    _pair(tmp_path)
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:99])
    with pytest.raises(InputError, match="the NIfTI data are damaged or cut off") as caught:
        read_nifti(tmp_path / "a.hdr")
    assert "0x" not in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "a.hdr").write_bytes(b"x" * 348)
    with pytest.raises(InputError, match=r"a\.hdr next to it is not a NIfTI header"):
        read_nifti(tmp_path / "a.img")
    (tmp_path / "scan.bin").write_bytes(nib.nifti1.Nifti1PairHeader().binaryblock)
    with pytest.raises(InputError, match="header, but not called"):
        read_nifti(tmp_path / "scan.bin")


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage])
@pytest.mark.parametrize("order", "<>")
def test_analyze_is_refused_because_its_sides_are_unknown(tmp_path, kind, order):
    image = kind(VOXELS, np.diag([-1, 1, 1, 1]), kind.header_class(endianness=order))
    nib.save(image, tmp_path / "a.img")
    assert is_analyze((tmp_path / "a.hdr").read_bytes()[:560])
    for name in ("a.hdr", "a.img"):
        with pytest.raises(InputError, match=r"Analyze 7\.5, which does not say which side is left; convert it to NIf"):
            read_nifti(tmp_path / name)


def test_other_heads_are_not_analyze(tmp_path):
    _pair(tmp_path)
    for head in ((tmp_path / "a.hdr").read_bytes(), nib.Nifti1Image(VOXELS, None).to_bytes()[:560], b"", b"x" * 560):
        assert not is_analyze(head)


def test_an_unknown_unit_counts_as_none(tmp_path):
    image = nib.Nifti1Image(VOXELS, oblique_affine())
    image.header["xyzt_units"] = 6
    nib.save(image, tmp_path / "a.nii")
    scan = read_nifti(tmp_path / "a.nii")
    assert scan.spacing_mm == pytest.approx((1, 2, 4))
    write_mask_nifti(tmp_path / "mask.nii.gz", np.ones(VOXELS.shape, np.uint8), scan)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, oblique_affine(), atol=1e-5)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    ("stored", "slope", "inter", "expected"),
    [
        (np.int16, 0.25, -3, np.float32),
        (np.uint16, 3, 100, np.float32),
        (np.uint8, 1, 7, np.float32),
        (np.int32, 0.25, -3, np.float64),
        (np.int16, 1e-6, 1e6, np.float64),  # float32 would round the values to one
        (np.int16, 1, 0, np.int16),
        (np.float32, 1, 0, np.float32),
    ],
)
def test_scaled_nifti(tmp_path, kind, stored, slope, inter, expected):
    raw = (np.arange(210).reshape(6, 7, 5) * 311 % 251).astype(stored)
    image = kind(raw, np.eye(4))
    image.header.set_data_dtype(stored)
    path = tmp_path / "a.nii"
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    field = kind.header_class.template_dtype.fields
    for name, value in (("scl_slope", slope), ("scl_inter", inter)):
        dtype, offset = field[name][:2]
        content[offset : offset + dtype.itemsize] = np.array(value, dtype).tobytes()
    path.write_bytes(content)
    voxels = read_nifti(path).voxels
    assert voxels.dtype == expected
    truth = nib.load(path).get_fdata()
    np.testing.assert_allclose(voxels, truth, rtol=1e-6, atol=1e-4)
    assert len(np.unique(voxels)) == len(np.unique(raw))


def test_a_scaled_frame_is_float32_too(tmp_path):
    raw = np.arange(4 * 5 * 6 * 3, dtype=np.int16).reshape(4, 5, 6, 3)
    image = nib.Nifti1Image(raw, np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, tmp_path / "a.nii.gz")
    voxels = read_nifti(tmp_path / "a.nii.gz", 1).voxels
    assert voxels.dtype == np.float32
    np.testing.assert_allclose(voxels, nib.load(tmp_path / "a.nii.gz").get_fdata()[..., 1], rtol=1e-6)


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


def test_spacing_without_forms_and_unit_is_unknown(tmp_path):
    image = nib.Nifti1Image(np.arange(60.0).reshape(3, 4, 5), np.eye(4))
    image.header.set_sform(None, 0)
    image.header.set_qform(None, 0)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "a.nii")
    assert open_scan(tmp_path / "a.nii").spacing_mm is None
    image.header.set_xyzt_units("mm")
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "b.nii")
    assert open_scan(tmp_path / "b.nii").spacing_mm == (1, 1, 1)


def test_a_unit_does_not_give_an_orientation(tmp_path):
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


def _set(path, kind, **fields):
    """Write header fields as they are, without nibabel's checks."""
    content = path.read_bytes()
    header = kind.header_class(content[: kind.header_class.sizeof_hdr], check=False)
    for name, value in fields.items():
        header.structarr[name] = value
    path.write_bytes(header.binaryblock + content[len(header.binaryblock) :])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("excess", [1e-6, 3e-5, 4e-3])
@pytest.mark.parametrize("turn", [(0.6, -0.64, 0.48), (0, 1, 0), (-0.8, 0, 0.6)])  # half turns: b, c and d are all
def test_a_quaternion_longer_than_1_is_rounded(tmp_path, kind, excess, turn):
    image = kind(VOXELS, None)
    image.header.set_zooms((1, 2, 4))
    image.header["qform_code"] = 1
    nib.save(image, tmp_path / "a.nii")
    named = dict(zip(("quatern_b", "quatern_c", "quatern_d"), np.array(turn) * (1 + excess), strict=True))
    _set(tmp_path / "a.nii", kind, **named, qoffset_x=3)
    with pytest.raises(ValueError, match="w2 should be positive"):
        _ = nib.load(tmp_path / "a.nii").affine
    scan = read_nifti(tmp_path / "a.nii")
    exact = np.eye(4)  # about an axis by 180 degrees
    exact[:3, :3] = (2 * np.outer(turn, turn) - np.eye(3)) * (1, 2, 4)
    exact[0, 3] = 3
    np.testing.assert_allclose(scan.affine, exact, atol=1e-4)
    assert scan.spacing_mm == pytest.approx((1, 2, 4), rel=1e-6)
    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels == 999).astype(np.uint8), scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, exact, atol=1e-4)
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (0, 1)
    if kind is nib.Nifti1Image:  # ITK reads the flawed source, too, at the same place
        for name in ("a.nii", "mask.nii.gz"):
            place = sitk.ReadImage(str(tmp_path / name)).TransformIndexToPhysicalPoint((1, 5, 3))
            np.testing.assert_allclose(place, (exact @ [1, 5, 3, 1])[:3] * (-1, -1, 1), atol=1e-3)


def test_a_quaternion_that_is_much_too_long_is_damage(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS, None), tmp_path / "a.nii")
    _set(tmp_path / "a.nii", nib.Nifti1Image, qform_code=1, quatern_b=0.9, quatern_c=-0.9)
    with pytest.raises(InputError, match="w2 should be positive"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    "dim",
    [(4, 6, 7, 5, 0, 1, 1, 1), (4, 6, 7, 5, 1, 0, 0, 0), (5, 6, 7, 5, 1, 0, 0, 0), (7, 6, 7, 5, 0, 0, 0, 0)],
)
def test_no_volumes_after_the_third_axis_is_one(tmp_path, kind, dim):
    nib.save(kind(VOXELS, oblique_affine()), tmp_path / "a.nii")
    _set(tmp_path / "a.nii", kind, dim=dim)
    scan = read_nifti(tmp_path / "a.nii")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels == 999).astype(np.uint8), scan)
    mask = np.asanyarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert np.argwhere(mask.reshape(VOXELS.shape)).tolist() == [[1, 5, 3]]


def test_pairs_are_repaired_too(tmp_path):
    _pair(tmp_path)
    _set(tmp_path / "a.hdr", nib.Nifti1Pair, dim=(4, 6, 7, 5, 0, 0, 0, 0), sform_code=0, quatern_b=1 + 2e-6,
         quatern_c=0, quatern_d=0)  # fmt: skip
    scan = read_nifti(tmp_path / "a.img")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    np.testing.assert_allclose(scan.affine[:3, :3], np.diag([1, -2, -4]), atol=1e-5)


def test_an_empty_third_axis_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(VOXELS, oblique_affine()), tmp_path / "a.nii")
    _set(tmp_path / "a.nii", nib.Nifti1Image, dim=(4, 6, 7, 0, 0, 1, 1, 1))
    with pytest.raises(InputError, match=r"impossible shape \(6, 7, 0\)"):
        read_nifti(tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.hdr"])
def test_a_header_that_promises_gigabytes_takes_no_memory(tmp_path, name):
    kind = nib.Nifti1Pair if name.endswith(".hdr") else nib.Nifti1Image
    nib.save(kind(np.zeros((20, 20, 4), np.int16), np.eye(4)), tmp_path / name)
    packed = name.endswith(".gz")
    content = bytearray(gzip.decompress((tmp_path / name).read_bytes()) if packed else (tmp_path / name).read_bytes())
    content[42:48] = np.array([1200, 1200, 1000], "<i2").tobytes()  # 2.9 GB
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    with pytest.raises(InputError, match="the NIfTI data are damaged or cut off"):
        open_scan(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_of_a_file_that_is_cut_off_the_frames_that_are_there_can_be_read(tmp_path):
    frames = np.random.default_rng(0).integers(0, 99, (9, 8, 7, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(frames, np.eye(4)), tmp_path / "scan.nii")
    (tmp_path / "scan.nii").write_bytes((tmp_path / "scan.nii").read_bytes()[: 352 + 2 * 9 * 8 * 7 * 3])
    np.testing.assert_array_equal(open_scan(tmp_path / "scan.nii", frame=2).voxels, frames[..., 2])
    with pytest.raises(InputError, match="damaged or cut off"):
        open_scan(tmp_path / "scan.nii", frame=3)


@pytest.mark.parametrize("offset", [0, 1, 100, 348])
def test_an_offset_inside_the_header_is_taken_for_its_end(tmp_path, offset):
    nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[108:112] = np.array([offset], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(content)
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(content))
    for name in ("scan.nii", "packed.nii.gz"):
        np.testing.assert_array_equal(open_scan(tmp_path / name).voxels, VOXELS)


@pytest.mark.parametrize("axes", [(1, 1), (1, 1, 1, 1)])
def test_trailing_axes_of_length_1_do_not_count(tmp_path, axes):
    nib.save(nib.Nifti1Image(VOXELS.reshape(*VOXELS.shape, *axes), np.eye(4)), tmp_path / "scan.nii.gz")
    scan = open_scan(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels > 3).astype(np.uint8), scan)
    assert nib.load(tmp_path / "mask.nii.gz").shape == (*VOXELS.shape, *axes)


def test_an_sform_of_zeros_beside_a_qform_does_not_count(tmp_path):
    affine = oblique_affine()
    image = nib.Nifti1Image(VOXELS, None)
    image.set_qform(affine, 1)
    image.header["sform_code"] = 1
    for name in ("srow_x", "srow_y", "srow_z"):
        image.header[name] = 0
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_allclose(open_scan(tmp_path / "scan.nii").affine, affine, atol=1e-4)
