"""NRRD: encodings, the spaces of the patient, the spacing of files without a place, the axis of the frames."""

from __future__ import annotations

import bz2
import gzip
import time

import nrrd
import numpy as np
import pytest

from tests.scans.volumes import NRRD, SMALL, place_of, read_volume, save_nrrd
from tumorlens.data.errors import InputError
from tumorlens.data.formats.nrrd import _names_of, nrrd_files, read_nrrd

DIRECTIONS = "space directions: (0,2,0) (3,0,0) (0,0,4)"  # array axis 0 along world axis 1, 1 along 0


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
    scan = read_volume(save_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()))
    # By hand: voxel (1, 2, 1) lies at (10 + 2*3, 20 + 1*2, 30 + 4) of the header's own space.
    np.testing.assert_allclose(place_of(scan.affine, (1, 2, 1)), np.multiply(to_ras, (16, 22, 34)))
    assert scan.spacing_mm == pytest.approx((2, 3, 4))
    assert scan.voxels[1, 2, 1] == 1 + 2 * 5 + 1 * 20


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-left-handed", "3D-right-handed", None])
def test_nrrd_spaces_that_are_not_the_patients_give_no_affine(tmp_path, space):
    named = f"space: {space}" if space else "space dimension: 3"
    fields = (*NRRD[:2], named, *NRRD[2:], DIRECTIONS, "space origin: (10,20,30)")
    scan = read_volume(save_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()))
    assert scan.affine is None
    assert scan.spacing_mm == pytest.approx((2, 3, 4))
    assert scan.volume


@pytest.mark.parametrize(("space", "to_ras"), [("right", (1, 1, 1)), ("left", (-1, 1, 1))])
def test_nrrd_space_with_time(tmp_path, space, to_ras):
    fields = ("type: short", "dimension: 4", f"space: {space}-anterior-superior-time", "sizes: 5 4 1 3",
              "endian: little", "encoding: raw", "space directions: (0,2,0,0) (3,0,0,0) (0,0,4,0) (0,0,0,9)",
              "space origin: (10,20,30,0)")  # fmt: skip
    scan = read_nrrd(save_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()), frame=2)
    np.testing.assert_allclose(place_of(scan.affine, (1, 2, 0)), np.multiply(to_ras, (16, 22, 30)))
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
    scan = read_volume(save_nrrd(tmp_path / "a.nrrd", *ordered, data=SMALL.tobytes()))
    assert scan.affine is None
    assert scan.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    np.testing.assert_array_equal(scan.voxels.ravel(order="F"), SMALL)


def test_nrrd_frames_of_a_plain_fourth_axis(tmp_path):
    fields = ("type: short", "dimension: 4", "sizes: 5 4 1 3", "endian: little", "encoding: raw", "spacings: 2 3 4 nan")
    scan = read_volume(save_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()), 1)
    np.testing.assert_array_equal(scan.voxels.ravel("F"), SMALL[20:40])
    assert scan.spacing_mm == pytest.approx((2, 3, 4))


def test_a_list_of_one_frame_is_a_volume(tmp_path):
    fields = ("type: short", "dimension: 4", "space: RAS", "sizes: 1 5 4 3", "kinds: list domain domain domain",
              "space directions: none (1,0,0) (0,1,0) (0,0,1)", "endian: little", "encoding: raw")  # fmt: skip
    scan = read_volume(save_nrrd(tmp_path / "a.nrrd", *fields, data=SMALL.tobytes()))
    np.testing.assert_array_equal(scan.voxels.ravel("F"), SMALL)
    assert (scan.voxels.shape, scan.frame) == ((5, 4, 3), None)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s%03d.raw 1 3 1", ["s001.raw", "s002.raw", "s003.raw"]),
        ("s%d.raw 3 -1 -2 2", ["s3.raw", "s1.raw", "s-1.raw"]),
        ("10%.raw", ["10%.raw"]),
    ],
)
def test_data_in_several_files(tmp_path, pattern, names):
    fields = (*NRRD, "spacings: 1 1 1", f"data file: {pattern}")
    for part, name in zip(np.split(SMALL, len(names)), names, strict=True):
        (tmp_path / name).write_bytes(part.tobytes())
    path = save_nrrd(tmp_path / "a.nhdr", *fields)
    assert nrrd_files(path) == [path, *(tmp_path / name for name in names)]
    np.testing.assert_array_equal(read_volume(path).voxels.ravel("F"), SMALL)
    (tmp_path / names[-1]).unlink()
    with pytest.raises(InputError, match=f"the NRRD header's data file {names[-1]} is missing"):
        read_volume(path)


@pytest.mark.parametrize("pattern", ["s%03d.raw", "s%d.raw 1 3 0", "s%d%d.raw 1 3 1", "s%9999d.raw 1 3 1"])
def test_patterns_that_name_no_files(tmp_path, pattern):
    path = save_nrrd(tmp_path / "a.nhdr", *NRRD, f"data file: {pattern}")
    with pytest.raises(InputError, match="are not a pattern with a first number"):
        read_volume(path)


def test_patterns_stay_in_the_headers_own_folder(tmp_path):
    path = save_nrrd(tmp_path / "a.nhdr", *NRRD, "data file: ../s%d.raw 1 3 1")
    with pytest.raises(InputError, match="outside its own folder"):
        read_volume(path)


DATA = SMALL.tobytes()
NUMBERS = " ".join(str(number) for number in SMALL).encode()


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("raw", DATA),
        ("gzip", gzip.compress(DATA, mtime=0)),
        ("gz", gzip.compress(DATA[:40], mtime=0) + gzip.compress(DATA[40:], mtime=0)),
        ("bzip2", bz2.compress(DATA)),
        ("bz2", bz2.compress(DATA)),
        ("text", NUMBERS),
        ("ascii", NUMBERS.replace(b" ", b",\n")),
        ("hex", DATA.hex().encode()),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
def test_encodings(tmp_path, encoding, data):
    fields = (*NRRD[:4], f"encoding: {encoding}")
    attached = save_nrrd(tmp_path / "a.nrrd", *fields, data=data)
    (tmp_path / "b.raw").write_bytes(data)
    detached = save_nrrd(tmp_path / "b.nhdr", *fields, "data file: b.raw")
    for path in (attached, detached):
        np.testing.assert_array_equal(read_volume(path).voxels.ravel("F"), SMALL)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [("text", b"1 2 three"), ("text", b"1 2 3"), ("text", NUMBERS + b" 99999"), ("hex", b"0102xx"), ("hex", b"\xff")],
)
def test_numbers_that_are_not_numbers(tmp_path, encoding, data):
    path = save_nrrd(tmp_path / "a.nrrd", *NRRD[:4], f"encoding: {encoding}", data=data.ljust(300))
    with pytest.raises(InputError, match="the NRRD data are damaged or cut off"):
        read_volume(path)


def test_an_unknown_encoding_is_named(tmp_path):
    path = save_nrrd(tmp_path / "a.nrrd", *NRRD[:4], "encoding: zstd", data=DATA)
    with pytest.raises(InputError, match="the NRRD encoding zstd cannot be read; save it as raw or gzip"):
        read_volume(path)


@pytest.mark.parametrize(
    ("encoding", "skips", "data"),
    [
        ("raw", ("byte skip: 3",), b"abc" + DATA),
        ("raw", ("byteskip: -1",), b"whatever precedes it" + DATA),
        ("raw", ("line skip: 2",), b"one\ntwo\n" + DATA),
        ("raw", ("lineskip: 1", "byte skip: 2"), b"one\nab" + DATA),
        ("gzip", ("byte skip: 3",), gzip.compress(b"abc" + DATA, mtime=0)),
    ],
    ids=lambda value: "data" if isinstance(value, bytes) else "-".join([value] if isinstance(value, str) else value),
)
def test_bytes_before_the_data_are_skipped(tmp_path, encoding, skips, data):
    path = save_nrrd(tmp_path / "a.nrrd", *NRRD[:4], f"encoding: {encoding}", *skips, data=data)
    np.testing.assert_array_equal(read_volume(path).voxels.ravel("F"), SMALL)


@pytest.mark.parametrize("skip", ["byte skip: -2", "line skip: -1"])
def test_skips_that_are_not_possible(tmp_path, skip):
    path = save_nrrd(tmp_path / "a.nrrd", *NRRD, skip, data=DATA)
    with pytest.raises(InputError, match="is not possible with raw data"):
        read_volume(path)


@pytest.mark.parametrize(
    "fields",
    [
        ("type: short", "dimension: 4", *NRRD[2:]),
        ("type: strange", *NRRD[1:]),
        ("type: block", *NRRD[1:]),
        (*NRRD[:3], "encoding: raw"),  # no endian
        (*NRRD, "kinds: domain domain"),
        (*NRRD, "spacings: 1 1"),
        (*NRRD[:2], "space: LPS", *NRRD[2:], "space directions: (1,0) (0,1) (1,1)"),
        (*NRRD[:2], "space: LPS", *NRRD[2:], "space directions: (1,0,0) (0,1,0)"),
        (*NRRD[:2], "space: LPS", *NRRD[2:], "space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (1,2)"),
    ],
)
def test_headers_that_contradict_themselves(tmp_path, fields):
    path = save_nrrd(tmp_path / "a.nrrd", *fields, data=DATA)
    with pytest.raises(InputError, match="the NRRD header is damaged"):
        read_volume(path)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_files_of_pynrrd_are_read(tmp_path, encoding):
    voxels = np.random.default_rng(0).integers(0, 999, (5, 4, 3)).astype(np.int16)
    header = {"space": "RAS", "space directions": np.diag([2.0, 3, 4]), "space origin": [10, 20, 30]}
    nrrd.write(str(tmp_path / "a.nrrd"), voxels, header | {"encoding": encoding})
    scan = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(scan.voxels, voxels)
    np.testing.assert_allclose(scan.affine, [[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    "files",
    [
        ["data file: %d.raw 0 20000 1"],
        ["data file: LIST", *["0.raw"] * 11_000],
        ["data file: %d.raw 0 2 1"] * 4000,
        ["data file: %d.raw 0 999999999 1"],
    ],
    ids=["pattern", "list", "patterns", "large"],
)
def test_a_header_names_no_more_files_than_a_volume_has(tmp_path, files):
    for k in range(3):
        (tmp_path / f"{k}.raw").write_bytes(DATA[40 * k :][:40])
    assert read_volume(save_nrrd(tmp_path / "a.nhdr", *NRRD, "data file: %d.raw 0 2 1")).voxels.shape == (5, 4, 3)
    with pytest.raises(InputError, match="more than 10000 data files"):
        read_volume(save_nrrd(tmp_path / "a.nhdr", *NRRD, *files))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s%03d.raw 9 11 1", ["s009.raw", "s010.raw", "s011.raw"]),
        ("%d.raw 3 1 -1", ["3.raw", "2.raw", "1.raw"]),
        ("my  scan %d.raw 1 2 1 2", ["my  scan 1.raw", "my  scan 2.raw"]),
        ("plain 1 2 1.raw", ["plain 1 2 1.raw"]),
    ],
)
def test_patterns_of_data_files(pattern, names):
    assert _names_of(pattern) == names


@pytest.mark.parametrize(
    "value",
    [
        "%d.raw",
        "%d.raw 1 2",
        "%d.raw 1 2 0",
        "%d.raw 1 9 one",
        "%s%d.raw 1 2 1",
        "%d.raw 1 2 " + "1" * 5000,
    ],
)
def test_patterns_without_a_sense(tmp_path, value):
    with pytest.raises(InputError, match="are not a pattern with a first number, a last number and a step"):
        read_volume(save_nrrd(tmp_path / "a.nhdr", *NRRD, f"data file: {value}"))


@pytest.mark.parametrize(
    "field",
    [
        "space origin: (1,2" + " " * 400_000 + "x)",
        "space directions: (1,0,0" + " " * 400_000 + "x) (0,1,0) (0,0,1)",
        "data file: %d.raw" + " " * 400_000 + "x",
    ],
    ids=["origin", "directions", "files"],
)
def test_long_lines_take_no_time(tmp_path, field):
    path = save_nrrd(tmp_path / "a.nrrd", *NRRD[:2], "space: LPS", *NRRD[2:], field, data=DATA)
    begun = time.process_time()
    with pytest.raises(InputError):
        read_volume(path)
    assert time.process_time() - begun < 5


def test_vectors_with_blanks(tmp_path):
    fields = ("space: RAS", *NRRD[2:], "space directions: ( 2 , 0,0 )  (0 ,3,\t0) (0,0, 4)", "space origin: ( 1,2 ,3 )")
    scan = read_volume(save_nrrd(tmp_path / "a.nrrd", *NRRD[:2], *fields, data=DATA))
    np.testing.assert_allclose(scan.affine, [[2, 0, 0, 1], [0, 3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]])
