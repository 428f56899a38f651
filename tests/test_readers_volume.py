"""MGH, NRRD, MetaImage and NIfTI pairs: every voxel keeps its value and its place, and masks go back there."""

from __future__ import annotations

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)

from data.errors import InputError
from data.readers_metaimage import read_metaimage
from data.readers_mgh import read_mgh
from data.readers_nifti import is_analyze, read_nifti
from data.readers_nrrd import read_nrrd
from data.scan import Scan
from data.volume_files import sniff_volume
from data.writers import write_mask_nifti
from tests.test_scan import all_orientations, reoriented

VOXELS = np.random.default_rng(0).integers(0, 900, (6, 7, 5)).astype(np.int16)
VOXELS[1, 5, 3] = 999  # the marked voxel
LPS = np.diag([-1.0, -1.0, 1.0])
ITK = {"nrrd": "nrrd", "nhdr": "nrrd", "mha": "metaimage", "mhd": "metaimage"}
READERS = {"mgh": read_mgh, "nrrd": read_nrrd, "metaimage": read_metaimage}


def _oblique():
    """An affine with three spacings, a turn and an offset, in which no axis can be taken for another."""
    a, b = 0.2, -0.1
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn = turn @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1, 2, 4.0])
    affine[:3, 3] = -11, 22, 33
    return affine


def _itk_image(voxels, affine):
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((LPS @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((LPS @ affine[:3, 3]).tolist())
    return image


def _save(folder, suffix, voxels, affine):
    path = folder / f"a.{suffix}"
    if suffix in ("mgh", "mgz"):
        nib.save(nib.MGHImage(voxels, affine), path)
    else:
        sitk.WriteImage(_itk_image(voxels, affine), str(path))
    return path


def _read(path, frame=None):
    """By content, as the program does."""
    head = path.read_bytes()
    kind = sniff_volume((gzip.decompress(head) if head[:2] == b"\x1f\x8b" else head)[:560])
    assert kind
    return READERS[kind](path, frame)


def _place(affine, index):
    return (np.asarray(affine) @ [*index, 1])[:3]


def _nrrd(path, *fields, data=b""):
    path.write_bytes("\n".join(["NRRD0005", "# a comment", *fields, "", ""]).encode() + data)
    return path


def _mha(path, data=b"", last="ElementDataFile = LOCAL", **fields):
    known = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "DimSize": "5 4 3", "ElementType": "MET_SHORT"}
    lines = [f"{name} = {value}" for name, value in (known | fields).items() if value is not None]
    path.write_bytes("\n".join([*lines, last, ""]).encode() + data)
    return path


SMALL = np.arange(60, dtype="<i2")
NRRD = ("type: short", "dimension: 3", "sizes: 5 4 3", "endian: little", "encoding: raw")
DIRECTIONS = "space directions: (0,2,0) (3,0,0) (0,0,4)"  # array axis 0 along world axis 1, 1 along 0


@pytest.mark.parametrize("suffix", ["mgz", *ITK])
@pytest.mark.parametrize("code", all_orientations())
def test_places_and_masks_in_every_orientation(tmp_path, code, suffix):
    voxels, affine = reoriented(VOXELS, _oblique(), code)
    marked = np.argwhere(voxels == 999)[0]
    place = _place(_oblique(), (1, 5, 3))
    np.testing.assert_allclose(_place(affine, marked), place)  # the reference moves voxels, never the patient

    scan = _read(_save(tmp_path, suffix, voxels, affine))
    np.testing.assert_array_equal(scan.voxels, voxels)
    assert scan.voxels.dtype == np.int16
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)
    np.testing.assert_allclose(scan.spacing_mm, np.linalg.norm(affine[:3, :3], axis=0), atol=1e-5)
    assert (scan.volume, scan.source_shape, scan.frame) == (True, voxels.shape, None)

    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels == 999).astype(np.uint8), scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert np.argwhere(np.asanyarray(mask.dataobj)).tolist() == [marked.tolist()]
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (1, 1)
    assert mask.header.get_xyzt_units()[0] == "mm"
    for form in (mask.affine, mask.header.get_sform(), mask.header.get_qform()):
        np.testing.assert_allclose(_place(form, marked), place, atol=1e-3)
    seen = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert seen[marked.tolist()] == 1
    np.testing.assert_allclose(seen.TransformIndexToPhysicalPoint(marked.tolist()), LPS @ place, atol=1e-3)


@pytest.mark.parametrize(
    ("space", "to_ras"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
    ],
)
def test_nrrd_spaces_of_the_patient(tmp_path, space, to_ras):
    fields = (*NRRD[:2], f"space: {space}", *NRRD[2:], DIRECTIONS, "space origin: (10,20,30)")
    scan = _read(_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()))
    # By hand: voxel (1, 2, 1) lies at (10 + 2*3, 20 + 1*2, 30 + 4) of the header's own space.
    np.testing.assert_allclose(_place(scan.affine, (1, 2, 1)), np.multiply(to_ras, (16, 22, 34)))
    assert scan.spacing_mm == pytest.approx((2, 3, 4))
    assert scan.voxels[1, 2, 1] == 1 + 2 * 5 + 1 * 20


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-left-handed", "3D-right-handed", None])
def test_nrrd_spaces_that_are_not_the_patients_give_no_affine(tmp_path, space):
    named = f"space: {space}" if space else "space dimension: 3"
    fields = (*NRRD[:2], named, *NRRD[2:], DIRECTIONS, "space origin: (10,20,30)")
    scan = _read(_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()))
    assert scan.affine is None
    assert scan.spacing_mm == pytest.approx((2, 3, 4))
    assert scan.volume


@pytest.mark.parametrize(("space", "to_ras"), [("right", (1, 1, 1)), ("left", (-1, 1, 1))])
def test_nrrd_space_with_time(tmp_path, space, to_ras):
    fields = ("type: short", "dimension: 4", f"space: {space}-anterior-superior-time", "sizes: 5 4 1 3",
              "endian: little", "encoding: raw", "space directions: (0,2,0,0) (3,0,0,0) (0,0,4,0) (0,0,0,9)",
              "space origin: (10,20,30,0)")  # fmt: skip
    scan = read_nrrd(_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()), frame=2)
    np.testing.assert_allclose(_place(scan.affine, (1, 2, 0)), np.multiply(to_ras, (16, 22, 30)))
    assert scan.voxels[1, 2, 0] == 1 + 2 * 5 + 2 * 20


@pytest.mark.parametrize(
    ("fields", "spacing"),
    [
        ((), None),
        (("space: LPS", "space origin: (1,2,3)"), None),
        (("spacings: 2 3 nan",), None),
        (("spacings: 2 3 4",), (2, 3, 4)),
        (("spacings: 2 3 4", 'units: "cm" "cm" "cm"'), (20, 30, 40)),
        (("spacings: 2 3 4", 'units: "mm" "mm" "slice"'), None),
        (("space: LPS", "space directions: (0,2,0) (3,0,0) none"), None),
    ],
)
def test_nrrd_without_a_place_has_the_spacing_it_gives(tmp_path, fields, spacing):
    ordered = (*NRRD[:2], *fields[:1], *NRRD[2:], *fields[1:])
    scan = _read(_nrrd(tmp_path / "a.nrrd", *ordered, data=SMALL.tobytes()))
    assert scan.affine is None
    assert scan.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    np.testing.assert_array_equal(scan.voxels.ravel(order="F"), SMALL)


@pytest.mark.parametrize(
    ("fields", "spacing", "place"),
    [
        ({}, None, None),
        ({"TransformMatrix": "0 1 0 1 0 0 0 0 1"}, None, None),
        ({"ElementSpacing": "2 3 4"}, (2, 3, 4), None),
        ({"ElementSize": "2 3 4"}, (2, 3, 4), None),
        ({"ElementSize": "9 9 9", "ElementSpacing": "2 3 4"}, (2, 3, 4), None),
        ({"ElementSpacing": "2 3 4", "AnatomicalOrientation": "RAI"}, (2, 3, 4), None),
        # By hand: voxel (1, 2, 1) lies at LPS (10 + 2*3, 20 + 1*2, 30 + 4).
        ({"ElementSpacing": "2 3 4", "TransformMatrix": "0 1 0 1 0 0 0 0 1", "Offset": "10 20 30"}, (2, 3, 4),
         (-16, -22, 34)),
        ({"ElementSpacing": "2 3 4", "Orientation": "0 1 0 1 0 0 0 0 1", "Position": "10 20 30"}, (2, 3, 4),
         (-16, -22, 34)),
        ({"ElementSpacing": "2 3 4", "Rotation": "0 1 0 1 0 0 0 0 1"}, (2, 3, 4), (-6, -2, 4)),
        ({"ElementSpacing": "2 3 4", "TransformMatrix": "0 1 0 0 0 1 1 0 0"}, (2, 3, 4), (-4, -2, 6)),
        ({"ElementSpacing": ".2 .3 .4", "TransformMatrix": "0 1 0 1 0 0 0 0 1", "Offset": "1 2 3",
          "DistanceUnits": "cm"}, (2, 3, 4), (-16, -22, 34)),
    ],
)  # fmt: skip
def test_metaimage_places(tmp_path, fields, spacing, place):
    path = _mha(tmp_path / "a.mha", SMALL.tobytes(), **fields)
    scan = _read(path)
    assert scan.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    assert (scan.affine is None) == (place is None)
    if place is not None:
        np.testing.assert_allclose(_place(scan.affine, (1, 2, 1)), place)
    if place is not None and "DistanceUnits" not in fields:  # which ITK leaves to its user
        np.testing.assert_allclose(LPS @ sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((1, 2, 1)), place)
    np.testing.assert_array_equal(scan.voxels.ravel(order="F"), SMALL)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("suffix", ITK)
@pytest.mark.parametrize("compressed", [False, True])
def test_itk_storage_types(tmp_path, dtype, suffix, compressed):
    dtype = np.dtype(dtype)
    voxels = np.arange(60).astype(dtype).reshape(3, 4, 5)
    voxels[0, 0, 0] = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
    sitk.WriteImage(sitk.GetImageFromArray(voxels.T), str(tmp_path / f"a.{suffix}"), compressed)
    scan = _read(tmp_path / f"a.{suffix}")
    assert scan.voxels.dtype == dtype
    np.testing.assert_array_equal(scan.voxels, voxels)
    assert scan.voxels.flags.writeable


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4"])
@pytest.mark.parametrize("suffix", ["mgh", "mgz"])
def test_mgh_storage_types(tmp_path, dtype, suffix):
    voxels = np.arange(60).astype(dtype).reshape(3, 4, 5)
    nib.save(nib.MGHImage(voxels, np.eye(4)), tmp_path / f"a.{suffix}")
    scan = _read(tmp_path / f"a.{suffix}")
    assert (scan.format, scan.voxels.dtype) == ("mgh", np.dtype(dtype))  # and not the file's big-endian order
    np.testing.assert_array_equal(scan.voxels, voxels)


@pytest.mark.parametrize("order", ["True", "False"])
def test_metaimage_byte_orders(tmp_path, order):
    data = SMALL.astype(">i2" if order == "True" else "<i2").tobytes()
    for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        np.testing.assert_array_equal(_read(_mha(tmp_path / "a.mha", data, **{name: order})).voxels.ravel("F"), SMALL)


@pytest.mark.parametrize(("skip", "before"), [("0", b""), ("7", b"1234567"), ("-1", b"any header")])
def test_metaimage_header_size(tmp_path, skip, before):
    (tmp_path / "a.raw").write_bytes(before + SMALL.tobytes())
    scan = _read(_mha(tmp_path / "a.mhd", last="ElementDataFile = a.raw", HeaderSize=skip))
    np.testing.assert_array_equal(scan.voxels.ravel("F"), SMALL)


@pytest.mark.parametrize("suffix", ["mgz", "mgh", *ITK])
def test_the_name_does_not_matter(tmp_path, suffix):
    path = _save(tmp_path, suffix, VOXELS, _oblique())
    path.rename(tmp_path / "export.png")
    np.testing.assert_array_equal(_read(tmp_path / "export.png").voxels, VOXELS)


def _four(folder, suffix):
    data = np.random.default_rng(1).normal(size=(4, 5, 6, 3)).astype(np.float32)
    path = folder / f"a.{suffix}"
    if suffix == "mgz":
        nib.save(nib.MGHImage(data, _oblique()), path)
    elif suffix == "list.nrrd":  # as 3D Slicer writes a sequence
        directions = " ".join(f"({','.join(str(float(v)) for v in column)})" for column in (LPS @ _oblique()[:3, :3]).T)
        _nrrd(path, "type: float", "dimension: 4", "space: left-posterior-superior", "sizes: 3 4 5 6",
              f"space directions: none {directions}", "kinds: list domain domain domain", "endian: little",
              "encoding: gzip", f"space origin: ({','.join(str(v) for v in LPS @ _oblique()[:3, 3])})",
              data=gzip.compress(np.moveaxis(data, -1, 0).tobytes(order="F")))  # fmt: skip
    else:
        frames = [_itk_image(data[..., t], _oblique()) for t in range(3)]
        sitk.WriteImage(sitk.JoinSeries(frames), str(path))
    return path, data


@pytest.mark.parametrize("suffix", ["mgz", "mha", "list.nrrd"])
def test_frames(tmp_path, suffix):
    path, data = _four(tmp_path, suffix)
    name = {"mgz": "MGH", "mha": "MetaImage", "list.nrrd": "NRRD"}[suffix]
    for frame in range(3):
        scan = _read(path, frame)
        np.testing.assert_array_equal(scan.voxels, data[..., frame])
        assert (scan.frame, scan.source_shape) == (frame, (4, 5, 6))
        np.testing.assert_allclose(scan.affine, _oblique(), atol=1e-5)
    with pytest.raises(InputError, match=f"the {name} is 4-D with 3 frames; choose one with --frame 0 to 2"):
        _read(path)
    for frame in (3, -1):
        with pytest.raises(InputError, match=f"frame {frame} does not exist, the {name} has frames 0 to 2"):
            _read(path, frame)
    single = _save(tmp_path, suffix.split(".")[-1], VOXELS, _oblique())
    assert _read(single, 2).frame is None  # nothing to choose


def test_nrrd_frames_of_a_plain_fourth_axis(tmp_path):
    fields = ("type: short", "dimension: 4", "sizes: 5 4 1 3", "endian: little", "encoding: raw", "spacings: 2 3 4 nan")
    scan = _read(_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()), 1)
    np.testing.assert_array_equal(scan.voxels.ravel("F"), SMALL[20:40])
    assert scan.spacing_mm == pytest.approx((2, 3, 4))


def test_a_list_of_one_frame_is_a_volume(tmp_path):
    fields = ("type: short", "dimension: 4", "space: RAS", "sizes: 1 5 4 3", "kinds: list domain domain domain",
              "space directions: none (1,0,0) (0,1,0) (0,0,1)", "endian: little", "encoding: raw")  # fmt: skip
    scan = _read(_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()))
    np.testing.assert_array_equal(scan.voxels.ravel("F"), SMALL)
    assert (scan.voxels.shape, scan.frame) == ((5, 4, 3), None)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_pictures_are_flat_volumes(tmp_path, suffix):
    picture = sitk.GetImageFromArray(VOXELS[:, :, 0].T)
    picture.SetSpacing((0.5, 0.75))
    sitk.WriteImage(picture, str(tmp_path / f"a.{suffix}"))
    if suffix == "nrrd":  # SimpleITK would write a 2-D space, of which nobody can say where it is
        fields = ("type: short", "dimension: 2", "sizes: 6 7", "spacings: 0.5 0.75", "endian: little", "encoding: raw")
        _nrrd(tmp_path / "a.nrrd", *fields, data=VOXELS[:, :, 0].tobytes(order="F"))
    scan = _read(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(scan.voxels, VOXELS[:, :, :1])
    assert scan.slice_spacing_mm == pytest.approx((0.75, 0.5))
    assert (scan.affine, scan.source_shape) == (None, (6, 7))
    write_mask_nifti(tmp_path / "mask.nii.gz", np.ones((6, 7, 1), np.uint8), scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == (6, 7)
    assert mask.header.get_zooms() == pytest.approx((0.5, 0.75))


def test_mgh_without_geometry(tmp_path):
    path = _save(tmp_path, "mgh", VOXELS, _oblique())
    raw = bytearray(path.read_bytes())
    raw[28:30] = b"\0\0"  # goodRASFlag
    path.write_bytes(raw)
    scan = _read(path)
    assert (scan.affine, scan.spacing_mm) == (None, None)
    np.testing.assert_array_equal(scan.voxels, VOXELS)


PAIRS = [(kind, end) for kind in (nib.Nifti1Pair, nib.Nifti2Pair) for end in ("", ".gz")]


def _pair(folder, kind=nib.Nifti1Pair, end=""):
    source = kind(VOXELS, _oblique())
    turned = _oblique() @ np.diag([1, 1, 1, 1.0])
    turned[:3, 3] = 1, 2, 3
    source.header.set_sform(_oblique(), 2)
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
    np.testing.assert_allclose(scan.affine, _oblique(), atol=1e-5)
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
    nib.save(nib.Nifti1Pair(data, _oblique()), tmp_path / "a.img")
    np.testing.assert_array_equal(read_nifti(tmp_path / "a.hdr", 2).voxels, data[..., 2])
    with pytest.raises(InputError, match="the NIfTI is 4-D with 3 frames"):
        read_nifti(tmp_path / "a.img")


def test_a_unit_that_does_not_exist_is_none(tmp_path):
    image = nib.Nifti1Image(VOXELS, _oblique())
    image.header["xyzt_units"] = 6
    nib.save(image, tmp_path / "a.nii")
    scan = read_nifti(tmp_path / "a.nii")
    assert scan.spacing_mm == pytest.approx((1, 2, 4))
    write_mask_nifti(tmp_path / "mask.nii.gz", np.ones(VOXELS.shape, np.uint8), scan)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, _oblique(), atol=1e-5)


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
    with pytest.raises(InputError, match=r"a\.hdr beside it is no NIfTI header"):
        read_nifti(tmp_path / "a.img")
    (tmp_path / "scan.bin").write_bytes(nib.nifti1.Nifti1PairHeader().binaryblock)
    with pytest.raises(InputError, match="header, but not called"):
        read_nifti(tmp_path / "scan.bin")


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage])
@pytest.mark.parametrize("order", "<>")
def test_analyze_is_refused_because_it_does_not_know_left_from_right(tmp_path, kind, order):
    image = kind(VOXELS, np.diag([-1, 1, 1, 1]), kind.header_class(endianness=order))
    nib.save(image, tmp_path / "a.img")
    assert is_analyze((tmp_path / "a.hdr").read_bytes()[:560])
    for name in ("a.hdr", "a.img"):
        with pytest.raises(InputError, match=r"Analyze 7\.5, which does not say which side is left; convert it to NIf"):
            read_nifti(tmp_path / name)


def test_what_is_no_analyze(tmp_path):
    _pair(tmp_path)
    for head in ((tmp_path / "a.hdr").read_bytes(), nib.Nifti1Image(VOXELS, None).to_bytes()[:560], b"", b"x" * 560):
        assert not is_analyze(head)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_masks_carry_no_words_of_the_source(tmp_path, kind):
    source = kind(VOXELS, _oblique())
    header = source.header
    words = {"descrip", "aux_file", "intent_name", "db_name", "data_type", "unused_str"} & set(header.keys())
    for field in words:
        header[field] = b"DOE^JANE"
    header["intent_code"], header["intent_p1"] = 5, 7
    for code in (2, 4, 6):  # DICOM, AFNI, comment
        header.extensions.append(nib.nifti1.Nifti1Extension(code, b"DOE^JANE"))
    nib.save(source, tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes().count(b"DOE^JANE") == len(words) + 3
    scan = read_nifti(tmp_path / "a.nii")
    write_mask_nifti(tmp_path / "mask.nii.gz", (scan.voxels == 999).astype(np.uint8), scan)
    written = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert b"DOE" not in written
    assert b"JANE" not in written
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert len(mask.header.extensions) == 0
    assert len(written) == mask.header.single_vox_offset + VOXELS.size
    assert mask.header.get_intent()[0] == "none"
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), VOXELS == 999)
    assert len(scan.header.extensions) == 3  # the source's own header stays as it was


def test_a_sheared_affine_is_no_qform(tmp_path):
    sheared = _oblique()
    sheared[:3, 0] += 0.2 * sheared[:3, 1]
    scan = Scan(VOXELS, affine=sheared, volume=True, source_shape=VOXELS.shape)
    write_mask_nifti(tmp_path / "mask.nii.gz", np.ones(VOXELS.shape, np.uint8), scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(mask.affine, sheared, atol=1e-5)
    np.testing.assert_allclose(mask.header.get_zooms(), np.linalg.norm(sheared[:3, :3], axis=0), atol=1e-5)


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


def test_sniff(tmp_path):
    for suffix in ITK:
        assert sniff_volume(_save(tmp_path, suffix, VOXELS, np.eye(4)).read_bytes()[:560]) == ITK[suffix]
    assert sniff_volume(_save(tmp_path, "mgh", VOXELS, np.eye(4)).read_bytes()[:560]) == "mgh"
    assert sniff_volume(b"NDims = 3\nDimSize = 1 2 3\n") == "metaimage"  # the type of the object is optional
    nifti = nib.Nifti1Image(VOXELS, np.eye(4)).to_bytes()[:560]
    for head in (b"", b"NRRD", b"NRRDxyz1", b"\0" * 560, nifti, b"ObjectType = Mesh\nNDims = 3\n", b"NDims are nice",
                 b"\0\0\0\1" + b"\xff" * 60, b"\x89PNG\r\n\x1a\n", b"\0\0\1\0\1\0\x20\x20" * 9):  # fmt: skip
        assert sniff_volume(head) is None


def _bad_mgh(path, **fields):
    header = nib.MGHImage(VOXELS, np.eye(4)).to_bytes()
    values = np.frombuffer(header[:24], ">i4").copy()
    for place, value in fields.items():
        values[int(place[1:])] = value
    path.write_bytes(values.tobytes() + header[24:])


def _bad_files(folder):
    for suffix in ITK:
        _save(folder, suffix, VOXELS, np.eye(4)).rename(folder / f"good.{suffix}")
    (folder / "a.raw").write_bytes(SMALL.tobytes())
    good = nib.MGHImage(VOXELS, np.eye(4)).to_bytes()
    (folder / "cut.mgh").write_bytes(good[:300])
    (folder / "head.mgh").write_bytes(good[:40])
    (folder / "cut.mgz").write_bytes(gzip.compress(good)[:150])
    _bad_mgh(folder / "huge.mgh", f1=60000, f2=60000, f3=60000)
    _bad_mgh(folder / "negative.mgh", f1=-6)
    _bad_mgh(folder / "promises.mgh", f1=600)
    directions = np.array([1, 0, 0, 1, 0, 0, 0, 0, 1], ">f4").tobytes()
    (folder / "singular.mgh").write_bytes(good[:42] + directions + good[78:])
    (folder / "nan.mgh").write_bytes(good[:42] + np.full(9, np.nan, ">f4").tobytes() + good[78:])

    _nrrd(folder / "cut.nrrd", *NRRD, data=SMALL.tobytes()[:80])
    _nrrd(folder / "cutgz.nrrd", *NRRD[:4], "encoding: gzip", data=gzip.compress(SMALL.tobytes())[:60])
    _nrrd(folder / "bzip2.nrrd", *NRRD[:4], "encoding: bzip2", data=SMALL.tobytes())
    _nrrd(folder / "damaged.nrrd", "hello")
    _nrrd(folder / "notype.nrrd", *NRRD[1:], data=SMALL.tobytes())
    _nrrd(folder / "huge.nrrd", *NRRD[:2], "sizes: 50000 50000 50000", *NRRD[3:], data=SMALL.tobytes())
    _nrrd(folder / "promises.nrrd", *NRRD[:2], "sizes: 1000 1000 1000", *NRRD[3:], data=SMALL.tobytes())
    _nrrd(folder / "zero.nrrd", *NRRD[:2], "sizes: 0 4 3", *NRRD[3:])
    _nrrd(folder / "five.nrrd", NRRD[0], "dimension: 5", "sizes: 5 4 1 3 1", *NRRD[3:], data=SMALL.tobytes())
    _nrrd(folder / "missing.nhdr", *NRRD, "data file: gone.raw")
    _nrrd(folder / "list.nhdr", *NRRD, "data file: LIST\na.raw\ngone.raw")
    _nrrd(folder / "outside.nhdr", *NRRD, "data file: ../../../etc/passwd")
    _nrrd(folder / "absolute.nhdr", *NRRD, "datafile: /etc/passwd")
    space = ("type: short", "dimension: 3", "space: LPS", "sizes: 5 4 3", *NRRD[3:])
    _nrrd(folder / "singular.nrrd", *space, "space directions: (1,0,0) (1,0,0) (0,0,1)", data=SMALL.tobytes())
    lead = ("type: short", "dimension: 4", "space: LPS", "sizes: 3 5 4 1", *NRRD[3:],
            "space directions: none (1,0,0) (0,1,0) (0,0,1)")  # fmt: skip
    _nrrd(folder / "rgb.nrrd", *lead, "kinds: RGB-color domain domain domain", data=SMALL.tobytes())
    _nrrd(folder / "axis.nrrd", *lead, data=SMALL.tobytes())
    (folder / "whole.nrrd").write_bytes(gzip.compress((folder / "good.nrrd").read_bytes()))

    _mha(folder / "cut.mha", SMALL.tobytes()[:80])
    _mha(folder / "cutz.mha", zlib.compress(SMALL.tobytes())[:40], CompressedData="True")
    _mha(folder / "badz.mha", b"\x78\x9cnonsense", CompressedData="True")
    torn = bytearray(zlib.compress(np.random.default_rng(0).bytes(120)))
    torn[40] ^= 255  # stored, not deflated: only the checksum shows it
    _mha(folder / "torn.mha", bytes(torn), CompressedData="True")
    _mha(folder / "longer.mha", zlib.compress(SMALL.tobytes() * 2), CompressedData="True")
    _mha(folder / "missing.mhd", last="ElementDataFile = gone.raw")
    _mha(folder / "short.mhd", last="ElementDataFile = a.raw", DimSize="5 4 9")
    _mha(folder / "tail.mhd", last="ElementDataFile = a.raw", DimSize="5 4 9", HeaderSize="-1")
    _mha(folder / "outside.mhd", last="ElementDataFile = ../../../../etc/passwd")
    _mha(folder / "absolute.mhd", last="ElementDataFile = /etc/passwd")
    _mha(folder / "list.mhd", b"a.raw\n", last="ElementDataFile = LIST")
    _mha(folder / "pattern.mhd", last="ElementDataFile = s%d.raw 0 2 1")
    _mha(folder / "text.mha", b"1 2 3", BinaryData="False")
    _mha(folder / "noshape.mha", SMALL.tobytes(), DimSize=None)
    _mha(folder / "words.mha", SMALL.tobytes(), DimSize="five four three")
    _mha(folder / "few.mha", SMALL.tobytes(), DimSize="5 12")
    _mha(folder / "type.mha", SMALL.tobytes(), ElementType="MET_STRING")
    _mha(folder / "noend.mha", last="")
    _mha(folder / "huge.mha", SMALL.tobytes(), DimSize="50000 50000 50000")
    _mha(folder / "promises.mha", SMALL.tobytes(), DimSize="1000 1000 1000")
    _mha(folder / "bomb.mha", zlib.compress(SMALL.tobytes()), DimSize="1000 1000 1000", CompressedData="True")
    _mha(folder / "negative.mha", SMALL.tobytes(), DimSize="-5 4 3")
    _mha(folder / "spacing.mha", SMALL.tobytes(), ElementSpacing="0 1 1")
    _mha(folder / "nan.mha", SMALL.tobytes(), ElementSpacing="nan 1 1")
    _mha(folder / "rgb.mha", SMALL.tobytes(), DimSize="5 4 1", ElementNumberOfChannels="3")
    _mha(folder / "singular.mha", SMALL.tobytes(), ElementSpacing="1 1 1", TransformMatrix="1 0 0 1 0 0 0 0 1")
    _mha(folder / "vector.mha", SMALL.tobytes(), ElementSpacing="1 1 1", TransformMatrix="1 0 0 1")


BAD = {
    "cut.mgh": "the MGH data are damaged or cut off",
    "head.mgh": "the MGH data are damaged or cut off",
    "cut.mgz": "the MGH data are damaged or cut off",
    "huge.mgh": "the MGH header gives an impossible shape",
    "negative.mgh": "the MGH header gives an impossible shape",
    "promises.mgh": "the MGH data are damaged or cut off",
    "singular.mgh": "affine is singular",
    "nan.mgh": "the MGH header is damaged",
    "cut.nrrd": "the NRRD data are damaged or cut off",
    "cutgz.nrrd": "the NRRD data are damaged or cut off",
    "bzip2.nrrd": "bzip2 encoding not available",
    "damaged.nrrd": "the NRRD header is damaged",
    "notype.nrrd": "the NRRD header is damaged",
    "huge.nrrd": "the NRRD header gives an impossible shape",
    "promises.nrrd": "the NRRD data are damaged or cut off$",
    "zero.nrrd": "the NRRD header is damaged",
    "five.nrrd": "the NRRD has 5 axes",
    "missing.nhdr": r"the NRRD header's data file gone\.raw is missing",
    "list.nhdr": r"the NRRD header's data file gone\.raw is missing",
    "outside.nhdr": "outside its own folder",
    "absolute.nhdr": "outside its own folder",
    "singular.nrrd": "affine is singular",
    "rgb.nrrd": "the NRRD holds RGB-color voxels; a scan has one number a voxel",
    "axis.nrrd": "number of domain axes",
    "whole.nrrd": "compressed as a whole; unpack it with gunzip",
    "cut.mha": "the MetaImage data are damaged or cut off",
    "cutz.mha": "the MetaImage data are damaged or cut off",
    "badz.mha": "the MetaImage data are damaged or cut off",
    "torn.mha": "the MetaImage data are damaged or cut off",
    "longer.mha": "the MetaImage data are damaged or cut off",
    "missing.mhd": r"the MetaImage header's data file gone\.raw is missing",
    "short.mhd": "the MetaImage data are damaged or cut off",
    "tail.mhd": "the MetaImage data are damaged or cut off",
    "outside.mhd": "outside its own folder",
    "absolute.mhd": "outside its own folder",
    "list.mhd": "several files; save it as one",
    "pattern.mhd": "several files; save it as one",
    "text.mha": "numbers as text; save it as binary data",
    "noshape.mha": "the MetaImage header is damaged",
    "words.mha": "the MetaImage header is damaged",
    "few.mha": "the MetaImage header is damaged",
    "type.mha": "the MetaImage header is damaged",
    "noend.mha": "the MetaImage header is damaged",
    "huge.mha": "the MetaImage header gives an impossible shape",
    "promises.mha": "the MetaImage data are damaged or cut off",
    "bomb.mha": "the MetaImage data are damaged or cut off",
    "negative.mha": "the MetaImage header gives an impossible shape",
    "spacing.mha": "the MetaImage header is damaged",
    "nan.mha": "the MetaImage header is damaged",
    "rgb.mha": "the MetaImage holds 3 numbers a voxel; a scan has one",
    "singular.mha": "affine is singular",
    "vector.mha": "the MetaImage header is damaged",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_sentence_and_nothing_on_the_screen(tmp_path, capfd, name):
    _bad_files(tmp_path)
    kind = name.split(".")[1]
    read = READERS["mgh" if kind in ("mgh", "mgz") else ITK[kind]]
    capfd.readouterr()
    with pytest.raises(InputError, match=BAD[name]) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_every_bad_file_is_asked_for(tmp_path):
    _bad_files(tmp_path)
    made = {path.name for path in tmp_path.iterdir() if not path.name.startswith("good") and path.suffix != ".raw"}
    assert made == set(BAD)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_a_picture_is_shown_as_itk_shows_it(tmp_path, suffix):
    """SimpleITK writes arrays of rows and columns; what says nothing of the patient must not be turned."""
    picture = np.random.default_rng(1).integers(0, 900, (12, 20)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(tmp_path / f"a.{suffix}"))
    scan = _read(tmp_path / f"a.{suffix}")
    assert scan.affine is None
    assert np.array_equal(scan.slice(0), picture)
    mask = (picture > 400).astype(np.uint8)
    assert np.array_equal(scan.mask_from_slices(mask[None]), mask.T[..., None])
