"""Series of two stacks whose slices lie between each other: parted, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.scans.dicom import edit, save_series
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan

STEP = 1000  # gray levels from a stack to the next
N = 8  # slices of a stack


def save_stacks(folder, shift_mm, n_stacks=2, distance_mm=5.0, **tags):
    """Stacks of one series, each moved against the last; functions of a tag get the number of stack and slice."""
    frame = np.random.default_rng(0).integers(1, 100, (8, 10, N)).astype(np.int16)
    paths = []
    for s in range(n_stacks):
        affine = np.diag([1.0, 1, distance_mm, 1])
        affine[2, 3] = s * shift_mm
        shared = {"series": "1.2.3", "FrameOfReferenceUID": "1.2.9"}
        made = save_series(folder / "tmp", frame + s * STEP, affine, shuffle=s, **shared)
        given = {n: (lambda k, t=t, s=s: t(s, k)) if callable(t) else t for n, t in tags.items()}
        edit(made, **{"InstanceNumber": lambda k: k % 3 + 1, **given})
        order = np.random.default_rng(s).permutation(N)
        paths += [path.rename(folder / f"{order[k]}{s}") for k, path in enumerate(made)]
    (folder / "tmp").rmdir()
    return paths


def check_apart(folder, n_stacks=2, *names):
    with pytest.raises(
        InputError, match=f"{n_stacks} volumes whose slices lie between each other .*--frame 0"
    ) as error:
        open_scan(folder)
    for index, name in enumerate(names):
        assert f"{index}: {name}" in str(error.value)
    for s in range(n_stacks):
        scan = open_scan(folder, frame=s)
        assert np.unique(scan.voxels // STEP).tolist() == [s] and scan.n_slices == N
        assert scan.spacing_mm[2] == pytest.approx(5) and not scan.warnings


def check_refused(folder):
    with pytest.raises(
        InputError, match=r"2 volumes whose slices lie between each other .*nothing tells which"
    ) as error:
        open_scan(folder)
    assert "instance numbers" in str(error.value) and "folder of its own" in str(error.value)


@pytest.mark.parametrize("shift_mm", [2.5, 1.2, 4.7])
@pytest.mark.parametrize(
    ("tags", "names"),
    [
        ({"EchoTime": lambda s, k: str(10 + 80 * s)}, ("echo time 10", "echo time 90")),
        ({"EchoNumbers": lambda s, k: s + 2}, ("echo 2", "echo 3")),
        ({"ContrastBolusAgent": lambda s, k: "gadobutrol" if s else None}, ("no contrast agent",)),
        ({"AcquisitionNumber": lambda s, k: s + 9}, ("acquisition 9", "acquisition 10")),
        ({"AcquisitionTime": lambda s, k: f"10{15 + s}{k:02}"}, ("acquisition time 10:15:00 to 10:15:07",)),
        ({"InstanceNumber": lambda s, k: 1 + k + N * s}, ("instance number 1 to 8", "instance number 9 to 16")),
        ({"NumberOfAverages": lambda s, k: str(s + 1)}, ("number of averages 1", "number of averages 2")),
    ],
)
def test_stacks_are_parted_by_what_tells_them_apart(tmp_path, shift_mm, tags, names):
    save_stacks(tmp_path, shift_mm, SpacingBetweenSlices="5", **tags)
    check_apart(tmp_path, 2, *names)


def test_settings_and_gaps_show_stacks_without_a_distance_in_the_header(tmp_path):
    save_stacks(tmp_path / "a", 2.5, SliceThickness=None, EchoTime=lambda s, k: str(10 + 80 * s))
    check_apart(tmp_path / "a")
    save_stacks(tmp_path / "b", 1.2, SliceThickness=None, AcquisitionNumber=lambda s, k: s + 1)
    check_apart(tmp_path / "b")
    save_stacks(tmp_path / "c", 2.5, AcquisitionNumber=lambda s, k: s + 1)  # slices of 5 mm, 2.5 mm apart
    check_apart(tmp_path / "c")


def test_three_stacks(tmp_path):
    save_stacks(tmp_path, 5 / 3, 3, SpacingBetweenSlices="5", AcquisitionNumber=lambda s, k: s + 1)
    check_apart(tmp_path, 3)


def test_a_stack_that_lacks_slices(tmp_path):
    paths = save_stacks(tmp_path, 2.5, SpacingBetweenSlices="5", EchoTime=lambda s, k: str(10 + 80 * s))
    paths[3].unlink()
    assert np.unique(open_scan(tmp_path, frame=1).voxels // STEP).tolist() == [1]
    assert "1 of 8 slices missing" in open_scan(tmp_path, frame=0).warnings[0]


@pytest.mark.parametrize(
    ("shift_mm", "between"), [(2.5, "5"), (1.2, "5"), (1.2, None)], ids=["half", "header", "gaps alone"]
)
@pytest.mark.parametrize("number", ["by place", "none", "random"])
def test_stacks_that_nothing_tells_apart_are_refused(tmp_path, shift_mm, between, number):
    numbers = {
        "by place": lambda s, k: 1 + 2 * k + s,  # which every volume has
        "none": lambda s, k: 1,
        "random": lambda s, k: int(np.random.default_rng(4).permutation(2 * N)[N * s + k]),
    }
    save_stacks(tmp_path, shift_mm, SpacingBetweenSlices=between or "", InstanceNumber=numbers[number])
    check_refused(tmp_path)


def test_stacks_that_overlap_in_part(tmp_path):
    save_stacks(tmp_path, 12.5, AcquisitionNumber=lambda s, k: s + 1)
    for s in range(2):
        assert np.unique(open_scan(tmp_path, frame=s).voxels // STEP).tolist() == [s]


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("RepetitionTime", ("4000", "4001")),
        ("InversionTime", ("2500", "2501")),
        ("ImageType", (["ORIGINAL", "PRIMARY", "ND"], ["ORIGINAL", "PRIMARY", "NORM"])),
    ],
)
def test_settings_that_change_between_slices_of_one_volume(tmp_path, tag, values):
    stated = {"SpacingBetweenSlices": "5", "SliceThickness": "5"}
    save_stacks(tmp_path, 5.0, distance_mm=10.0, **stated, **{tag: lambda s, k: values[s]})
    assert open_scan(tmp_path).n_slices == 2 * N


def test_a_wrong_distance_in_the_header_of_a_3d_series_is_reported(tmp_path):
    numbers = {"InstanceNumber": lambda s, k: 1 + 2 * k + s}
    save_stacks(tmp_path, 2.5, SpacingBetweenSlices="5", MRAcquisitionType="3D", **numbers)
    scan = open_scan(tmp_path)
    assert scan.n_slices == 2 * N and "the images are 2.5 mm apart, the header says 5" in scan.warnings[0]


@pytest.mark.parametrize("apart_mm", [0.004, 0.009])
def test_echoes_whose_positions_differ_by_rounding(tmp_path, apart_mm):
    paths = save_stacks(tmp_path, apart_mm, EchoTime=lambda s, k: str(10 + 80 * s))
    edit(paths, PixelSpacing=lambda k: ["0.4", "0.4"])
    for s in range(2):
        assert np.unique(open_scan(tmp_path, frame=s).voxels // STEP).tolist() == [s]


def test_stacks_of_other_settings_and_distances_are_refused(tmp_path):
    save_stacks(tmp_path, 0.7, EchoTime=lambda s, k: str(10 + 80 * s))
    edit(sorted(tmp_path.glob("?1")), ImagePositionPatient=lambda k: [0, 0, 0.7 + 3 * k])
    with pytest.raises(InputError, match="2 volumes whose slices lie between each other, of other settings"):
        open_scan(tmp_path)


def volume(folder, n=16, **tags):
    """One volume with slices 2.5 mm apart, acquired even ones first."""
    affine = np.diag([1.0, 1, 2.5, 1])
    voxels = np.random.default_rng(1).integers(0, 900, (8, 10, n)).astype(np.int16)
    edit(save_series(folder, voxels, affine), AcquisitionTime=lambda k: f"10{15 + k % 2}{k:02}", **tags)
    return open_scan(folder)


@pytest.mark.parametrize(
    ("tags", "warning"),
    [
        ({}, ""),
        ({"SpacingBetweenSlices": "2.5"}, ""),
        ({"SpacingBetweenSlices": "2.5", "SliceThickness": "5"}, ""),
        ({"SliceThickness": "5", "MRAcquisitionType": "3D"}, ""),  # interpolated
        ({"SliceThickness": "3.2"}, ""),
        ({"SpacingBetweenSlices": "4"}, "the header says 4: two volumes may be mixed"),  # no two stacks lie so
        ({"AcquisitionNumber": lambda k: k % 2 + 1}, ""),  # packages
        ({"EchoTime": lambda k: str(10 + (k > 7))}, "the slices differ in echo time (10 and 11)"),
    ],
)
def test_one_volume_stays_one(tmp_path, tags, warning):
    scan = volume(tmp_path, **tags)
    assert scan.n_slices == 16 and scan.frame is None
    assert [warning in w for w in scan.warnings] == [True] * bool(warning)


@pytest.mark.parametrize("distance_mm", [1.5, 2.25, 0.75])
@pytest.mark.parametrize("decimals", [0, 1])
def test_rounded_positions_are_no_stacks(tmp_path, distance_mm, decimals):
    affine = np.diag([1.0, 1, distance_mm, 1])
    voxels = np.random.default_rng(1).integers(0, 900, (8, 10, 16)).astype(np.int16)
    edit(
        save_series(tmp_path, voxels, affine),
        ImagePositionPatient=lambda k: [0, 0, round(k * distance_mm + 0.01, decimals)],
        SliceThickness=str(distance_mm),
    )
    try:
        assert open_scan(tmp_path).frame is None
    except InputError as error:  # whole mm in slices of 0.75 mm put two at one place
        assert (distance_mm, decimals) == (0.75, 0) and "between each other" not in str(error)
