"""What MGH, NRRD and MetaImage share: voxels keep value and place, masks fit them, bad files get one sentence."""

from __future__ import annotations

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own habit)

from tests.data.test_scan import all_orientations, reoriented
from tests.scans.volumes import (
    ITK,
    LPS,
    NRRD,
    READERS,
    SMALL,
    VOXELS,
    itk_image,
    oblique_affine,
    place_of,
    read_volume,
    save_as,
    save_mha,
    save_nrrd,
)
from tumorlens.data.errors import InputError
from tumorlens.data.formats.metaimage import is_metaimage
from tumorlens.data.formats.mgh import is_mgh
from tumorlens.data.formats.nrrd import is_nrrd
from tumorlens.data.masks.write import write_mask_nifti


@pytest.mark.parametrize("suffix", ["mgz", *ITK])
@pytest.mark.parametrize("code", all_orientations())
def test_places_and_masks_in_every_orientation(tmp_path, code, suffix):
    voxels, affine = reoriented(VOXELS, oblique_affine(), code)
    marked = np.argwhere(voxels == 999)[0]
    place = place_of(oblique_affine(), (1, 5, 3))
    np.testing.assert_allclose(place_of(affine, marked), place)  # the reference moves voxels, never the patient

    scan = read_volume(save_as(tmp_path, suffix, voxels, affine))
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
        np.testing.assert_allclose(place_of(form, marked), place, atol=1e-3)
    by_itk = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert by_itk[marked.tolist()] == 1
    np.testing.assert_allclose(by_itk.TransformIndexToPhysicalPoint(marked.tolist()), LPS @ place, atol=1e-3)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
@pytest.mark.parametrize("suffix", ITK)
@pytest.mark.parametrize("compressed", [False, True])
def test_itk_storage_types(tmp_path, dtype, suffix, compressed):
    dtype = np.dtype(dtype)
    voxels = np.arange(60).astype(dtype).reshape(3, 4, 5)
    voxels[0, 0, 0] = np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max
    sitk.WriteImage(sitk.GetImageFromArray(voxels.T), str(tmp_path / f"a.{suffix}"), compressed)
    scan = read_volume(tmp_path / f"a.{suffix}")
    assert scan.voxels.dtype == dtype
    np.testing.assert_array_equal(scan.voxels, voxels)
    assert scan.voxels.flags.writeable


@pytest.mark.parametrize("suffix", ["mgz", "mgh", *ITK])
def test_the_name_does_not_matter(tmp_path, suffix):
    path = save_as(tmp_path, suffix, VOXELS, oblique_affine())
    path.rename(tmp_path / "export.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "export.png").voxels, VOXELS)


def _four(folder, suffix):
    data = np.random.default_rng(1).normal(size=(4, 5, 6, 3)).astype(np.float32)
    path = folder / f"a.{suffix}"
    if suffix == "mgz":
        nib.save(nib.MGHImage(data, oblique_affine()), path)
    elif suffix == "list.nrrd":  # as 3D Slicer writes a sequence
        directions = " ".join(
            f"({','.join(str(float(v)) for v in column)})" for column in (LPS @ oblique_affine()[:3, :3]).T
        )
        save_nrrd(path, "type: float", "dimension: 4", "space: left-posterior-superior", "sizes: 3 4 5 6",
                  f"space directions: none {directions}", "kinds: list domain domain domain", "endian: little",
                  "encoding: gzip", f"space origin: ({','.join(str(v) for v in LPS @ oblique_affine()[:3, 3])})",
                  data=gzip.compress(np.moveaxis(data, -1, 0).tobytes(order="F")))  # fmt: skip
    else:
        frames = [itk_image(data[..., t], oblique_affine()) for t in range(3)]
        sitk.WriteImage(sitk.JoinSeries(frames), str(path))
    return path, data


@pytest.mark.parametrize("suffix", ["mgz", "mha", "list.nrrd"])
def test_frames(tmp_path, suffix):
    path, data = _four(tmp_path, suffix)
    name = {"mgz": "MGH", "mha": "MetaImage", "list.nrrd": "NRRD"}[suffix]
    for frame in range(3):
        scan = read_volume(path, frame)
        np.testing.assert_array_equal(scan.voxels, data[..., frame])
        assert (scan.frame, scan.source_shape) == (frame, (4, 5, 6))
        np.testing.assert_allclose(scan.affine, oblique_affine(), atol=1e-5)
    with pytest.raises(InputError, match=f"the {name} is 4-D with 3 frames; choose one with --frame 0 to 2"):
        read_volume(path)
    for frame in (3, -1):
        with pytest.raises(InputError, match=f"frame {frame} does not exist, the {name} has frames 0 to 2"):
            read_volume(path, frame)
    single = save_as(tmp_path, suffix.split(".")[-1], VOXELS, oblique_affine())
    assert read_volume(single, 2).frame is None  # nothing to choose


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_pictures_are_flat_volumes(tmp_path, suffix):
    picture = sitk.GetImageFromArray(VOXELS[:, :, 0].T)
    picture.SetSpacing((0.5, 0.75))
    sitk.WriteImage(picture, str(tmp_path / f"a.{suffix}"))
    if suffix == "nrrd":  # SimpleITK would write a 2-D space, of which nobody can say where it is
        fields = ("type: short", "dimension: 2", "sizes: 6 7", "spacings: 0.5 0.75", "endian: little", "encoding: raw")
        save_nrrd(tmp_path / "a.nrrd", *fields, data=VOXELS[:, :, 0].tobytes(order="F"))
    scan = read_volume(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(scan.voxels, VOXELS[:, :, :1])
    assert scan.slice_spacing_mm == pytest.approx((0.75, 0.5))
    assert (scan.affine, scan.source_shape) == (None, (6, 7))
    write_mask_nifti(tmp_path / "mask.nii.gz", np.ones((6, 7, 1), np.uint8), scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == (6, 7)
    assert mask.header.get_zooms() == pytest.approx((0.5, 0.75))


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_a_picture_is_shown_as_itk_shows_it(tmp_path, suffix):
    """SimpleITK writes arrays of rows and columns; what says nothing of the patient must not be turned."""
    picture = np.random.default_rng(1).integers(0, 900, (12, 20)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(tmp_path / f"a.{suffix}"))
    scan = read_volume(tmp_path / f"a.{suffix}")
    assert scan.affine is None
    assert np.array_equal(scan.slice(0), picture)
    mask = (picture > 400).astype(np.uint8)
    assert np.array_equal(scan.mask_from_slices(mask[None]), mask.T[..., None])


def _formats(head):
    recognize = {"nrrd": is_nrrd, "mgh": is_mgh, "metaimage": is_metaimage}
    return [name for name, matches in recognize.items() if matches(head)]


def test_the_content_shows_the_format(tmp_path):
    for suffix in ITK:
        assert _formats(save_as(tmp_path, suffix, VOXELS, np.eye(4)).read_bytes()[:560]) == [ITK[suffix]]
    assert _formats(save_as(tmp_path, "mgh", VOXELS, np.eye(4)).read_bytes()[:560]) == ["mgh"]
    assert _formats(b"NDims = 3\nDimSize = 1 2 3\n") == ["metaimage"]  # the type of the object is optional
    nifti = nib.Nifti1Image(VOXELS, np.eye(4)).to_bytes()[:560]
    for head in (b"", b"NRRD", b"NRRDxyz1", b"\0" * 560, nifti, b"ObjectType = Mesh\nNDims = 3\n", b"NDims are nice",
                 b"\0\0\0\1" + b"\xff" * 60, b"\x89PNG\r\n\x1a\n", b"\0\0\1\0\1\0\x20\x20" * 9):  # fmt: skip
        assert _formats(head) == []


def _bad_mgh(path, **fields):
    header = nib.MGHImage(VOXELS, np.eye(4)).to_bytes()
    values = np.frombuffer(header[:24], ">i4").copy()
    for place, value in fields.items():
        values[int(place[1:])] = value
    path.write_bytes(values.tobytes() + header[24:])


def _bad_files(folder):
    for suffix in ITK:
        save_as(folder, suffix, VOXELS, np.eye(4)).rename(folder / f"good.{suffix}")
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

    save_nrrd(folder / "cut.nrrd", *NRRD, data=SMALL.tobytes()[:80])
    save_nrrd(folder / "cutgz.nrrd", *NRRD[:4], "encoding: gzip", data=gzip.compress(SMALL.tobytes())[:60])
    save_nrrd(folder / "bzip2.nrrd", *NRRD[:4], "encoding: bzip2", data=SMALL.tobytes())
    save_nrrd(folder / "damaged.nrrd", "hello")
    save_nrrd(folder / "notype.nrrd", *NRRD[1:], data=SMALL.tobytes())
    save_nrrd(folder / "huge.nrrd", *NRRD[:2], "sizes: 50000 50000 50000", *NRRD[3:], data=SMALL.tobytes())
    save_nrrd(folder / "promises.nrrd", *NRRD[:2], "sizes: 1000 1000 1000", *NRRD[3:], data=SMALL.tobytes())
    save_nrrd(folder / "zero.nrrd", *NRRD[:2], "sizes: 0 4 3", *NRRD[3:])
    save_nrrd(folder / "five.nrrd", NRRD[0], "dimension: 5", "sizes: 5 4 1 3 2", *NRRD[3:], data=SMALL.tobytes())
    save_nrrd(folder / "missing.nhdr", *NRRD, "data file: gone.raw")
    save_nrrd(folder / "list.nhdr", *NRRD, "data file: LIST\na.raw\ngone.raw")
    save_nrrd(folder / "outside.nhdr", *NRRD, "data file: ../../../etc/passwd")
    save_nrrd(folder / "absolute.nhdr", *NRRD, "datafile: /etc/passwd")
    space = ("type: short", "dimension: 3", "space: LPS", "sizes: 5 4 3", *NRRD[3:])
    save_nrrd(folder / "singular.nrrd", *space, "space directions: (1,0,0) (1,0,0) (0,0,1)", data=SMALL.tobytes())
    lead = ("type: short", "dimension: 4", "space: LPS", "sizes: 3 5 4 1", *NRRD[3:],
            "space directions: none (1,0,0) (0,1,0) (0,0,1)")  # fmt: skip
    save_nrrd(folder / "rgb.nrrd", *lead, "kinds: RGB-color domain domain domain", data=SMALL.tobytes())
    save_nrrd(folder / "axis.nrrd", *lead, data=SMALL.tobytes())
    (folder / "whole.nrrd").write_bytes(gzip.compress((folder / "good.nrrd").read_bytes()))

    save_mha(folder / "cut.mha", SMALL.tobytes()[:80])
    save_mha(folder / "cutz.mha", zlib.compress(SMALL.tobytes())[:40], CompressedData="True")
    save_mha(folder / "badz.mha", b"\x78\x9cnonsense", CompressedData="True")
    torn = bytearray(zlib.compress(np.random.default_rng(0).bytes(120)))
    torn[40] ^= 255  # stored, not deflated: only the checksum shows it
    save_mha(folder / "torn.mha", bytes(torn), CompressedData="True")
    save_mha(folder / "longer.mha", zlib.compress(SMALL.tobytes() * 2), CompressedData="True")
    save_mha(folder / "missing.mhd", last="ElementDataFile = gone.raw")
    save_mha(folder / "short.mhd", last="ElementDataFile = a.raw", DimSize="5 4 9")
    save_mha(folder / "tail.mhd", last="ElementDataFile = a.raw", DimSize="5 4 9", HeaderSize="-1")
    save_mha(folder / "outside.mhd", last="ElementDataFile = ../../../../etc/passwd")
    save_mha(folder / "absolute.mhd", last="ElementDataFile = /etc/passwd")
    save_mha(folder / "list.mhd", b"a.raw\n", last="ElementDataFile = LIST")
    save_mha(folder / "pattern.mhd", last="ElementDataFile = s%d.raw 0 2 1")
    save_mha(folder / "text.mha", b"1 2 3", BinaryData="False")
    save_mha(folder / "noshape.mha", SMALL.tobytes(), DimSize=None)
    save_mha(folder / "words.mha", SMALL.tobytes(), DimSize="five four three")
    save_mha(folder / "few.mha", SMALL.tobytes(), DimSize="5 12")
    save_mha(folder / "type.mha", SMALL.tobytes(), ElementType="MET_STRING")
    save_mha(folder / "noend.mha", last="")
    save_mha(folder / "huge.mha", SMALL.tobytes(), DimSize="50000 50000 50000")
    save_mha(folder / "promises.mha", SMALL.tobytes(), DimSize="1000 1000 1000")
    save_mha(folder / "bomb.mha", zlib.compress(SMALL.tobytes()), DimSize="1000 1000 1000", CompressedData="True")
    save_mha(folder / "negative.mha", SMALL.tobytes(), DimSize="-5 4 3")
    save_mha(folder / "spacing.mha", SMALL.tobytes(), ElementSpacing="0 1 1")
    save_mha(folder / "nan.mha", SMALL.tobytes(), ElementSpacing="nan 1 1")
    save_mha(folder / "rgb.mha", SMALL.tobytes(), DimSize="5 4 1", ElementNumberOfChannels="3")
    save_mha(folder / "singular.mha", SMALL.tobytes(), ElementSpacing="1 1 1", TransformMatrix="1 0 0 1 0 0 0 0 1")
    save_mha(folder / "vector.mha", SMALL.tobytes(), ElementSpacing="1 1 1", TransformMatrix="1 0 0 1")


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
    "bzip2.nrrd": "the NRRD data are damaged or cut off",
    "damaged.nrrd": "the NRRD header is damaged",
    "notype.nrrd": "the NRRD header is damaged",
    "huge.nrrd": "the NRRD header gives an impossible shape",
    "promises.nrrd": "the NRRD data are damaged or cut off$",
    "zero.nrrd": "the NRRD header gives an impossible shape",
    "five.nrrd": "the NRRD has 5 axes",
    "missing.nhdr": r"the NRRD header's data file gone\.raw is missing",
    "list.nhdr": r"the NRRD header's data file gone\.raw is missing",
    "outside.nhdr": "outside its own folder",
    "absolute.nhdr": "outside its own folder",
    "singular.nrrd": "affine is singular",
    "rgb.nrrd": "the NRRD holds RGB-color voxels; a scan has one number a voxel",
    "axis.nrrd": "the NRRD has 4 axes of the image and a space of 3 dimensions",
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


def test_every_bad_file_has_its_message(tmp_path):
    _bad_files(tmp_path)
    made = {path.name for path in tmp_path.iterdir() if not path.name.startswith("good") and path.suffix != ".raw"}
    assert made == set(BAD)
