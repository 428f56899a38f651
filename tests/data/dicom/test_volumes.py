"""Series that hold several volumes at the same places: what tells them apart, and where nothing does."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.scans.dicom import edit, save_enhanced, save_series
from tumorlens.data.dicom.reader import check_series
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan

AFFINE = np.diag([1.0, 1, 4, 1])
SHARED = {"series": "1.2.3", "FrameOfReferenceUID": "1.2.9"}
STEP = 1000  # gray levels from a volume to the next


def save_volumes(folder, n_volumes, n_slices, **tags):
    """Several volumes at one place in one series. Names of files, UIDs and instance numbers say nothing.

    The voxels of slice `k` of volume `v` lie between ``v * STEP`` and ``v * STEP + 100``.

    Args:
        folder: Where to.
        n_volumes: How many.
        n_slices: Of each volume, or a list with a number for each.
        tags: Elements to set in each file; a function gets the number of the volume and of the slice.
    """
    random = np.random.default_rng(n_volumes)
    counts = n_slices if isinstance(n_slices, list) else [n_slices] * n_volumes
    frame = random.integers(1, 100, (10, 8, max(counts))).astype(np.int16)
    paths, order = [], iter(random.permutation(sum(counts)).tolist())
    for v, count in enumerate(counts):
        made = save_series(folder / "tmp", frame[..., :count] + v * STEP, AFFINE, **SHARED, shuffle=v)
        edit(made, **{"InstanceNumber": lambda k: k % 3 + 1, **{n: given(tag, v) for n, tag in tags.items()}})
        for path in made:
            paths.append(path.rename(folder / f"{next(order):03d}"))
    (folder / "tmp").rmdir()
    return paths


def given(tag, volume):
    return (lambda k: tag(volume, k)) if callable(tag) else tag


def check_apart(folder, n_volumes, *names):
    """Every volume has its own voxels and no others, and the error that asks for one names them."""
    with pytest.raises(InputError, match=f"--frame 0 to {n_volumes - 1}") as error:
        open_scan(folder)
    with pytest.raises(InputError, match=f"holds {n_volumes} volumes at the same place"):
        check_series(sorted(folder.iterdir()))
    for index, name in enumerate(names):
        assert f"{index}: {name}" in str(error.value)
    for v in range(n_volumes):
        scan = open_scan(folder, frame=v)
        assert np.unique(scan.voxels // STEP).tolist() == [v], v
        assert scan.frame == v


def check_refused(folder, n_volumes):
    for frame in (None, 0, n_volumes - 1):
        with pytest.raises(InputError, match=f"{n_volumes} volumes at the same place .*nothing tells which") as error:
            open_scan(folder, frame=frame)
        assert "folder of its own" in str(error.value) and "--frame" not in str(error.value)


@pytest.mark.parametrize(
    ("tag", "values", "names"),
    [
        ("EchoNumbers", (2, 10), ("echo 2", "echo 10")),
        ("FlipAngle", ("4", "18.5"), ("flip angle 4", "flip angle 18.5")),
        ("InversionTime", ("90", "1100"), ("inversion time 90", "inversion time 1100")),
        ("ContentTime", ("093000", "101512.5"), ("content time 09:30:00", "content time 10:15:12")),
        (
            "AcquisitionTime",
            ("101500.25", "101500.75"),
            ("acquisition time 10:15:00.25", "acquisition time 10:15:00.75"),
        ),
        (
            "AcquisitionDateTime",
            ("20240102235958", "20240103000005"),
            ("acquisition time 23:59:58", "acquisition time"),
        ),
        ("SeriesTime", ("1015", "1120"), ("series time 10:15:00", "series time 11:20:00")),
        (
            "ImageType",
            (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
            ("image type ORIGINAL", "image type"),
        ),
        ("ContrastBolusAgent", (None, "gadobutrol"), ("no contrast agent", "contrast agent given")),
        ("NumberOfAverages", ("2", "11"), ("number of averages 2", "number of averages 11")),
        ("InPlanePhaseEncodingDirection", ("COL", "ROW"), ("in-plane phase encoding direction COL",)),
        ("ReceiveCoilName", ("Doe head 1", "Doe head 2"), ("receive coil name 1 of 2", "receive coil name 2 of 2")),
        ("TemporalPositionIdentifier", (9, 10), ("time point 9", "time point 10")),
    ],
)
def test_one_element_parts_two_volumes(tmp_path, tag, values, names):
    save_volumes(tmp_path, 2, 7, **{tag: lambda v, k: values[v]})
    check_apart(tmp_path, 2, *names)


def test_a_missing_element_parts_as_well(tmp_path):
    save_volumes(tmp_path, 2, 7, ScanningSequence=lambda v, k: "IR" if v else None)
    check_apart(tmp_path, 2, "no scanning sequence", "scanning sequence IR")


def test_two_elements_part_four_volumes(tmp_path):
    save_volumes(
        tmp_path, 4, 7, EchoTime=lambda v, k: "9" if v < 2 else "80", FlipAngle=lambda v, k: "5" if v % 2 else "15"
    )
    with pytest.raises(InputError, match="1: echo time 9, flip angle 15; 2: echo time 80, flip angle 5"):
        open_scan(tmp_path)
    for frame, volume in enumerate((1, 0, 3, 2)):
        assert np.unique(open_scan(tmp_path, frame=frame).voxels // STEP).tolist() == [volume]


def test_an_element_and_an_order_part_four_volumes(tmp_path):
    save_volumes(
        tmp_path,
        4,
        7,
        EchoTime=lambda v, k: str(9 + 70 * (v // 2)),
        AcquisitionTime=lambda v, k: f"10{15 + v % 2:02}{k:02}",
    )
    check_apart(
        tmp_path, 4, "echo time 9, acquisition time 10:15:00 to 10:15:06", "echo time 9, acquisition time 10:16"
    )


def clock(seconds):
    seconds %= 86400
    return f"{int(seconds) // 3600:02}{int(seconds) // 60 % 60:02}{seconds % 60:05.2f}"


@pytest.mark.parametrize("dates", [True, False, "one"])
@pytest.mark.parametrize("element", ["Acquisition", "Content"])
def test_times_past_midnight(tmp_path, dates, element):
    """The first volume begins at 23:59:51 and each slice takes 0.4 s."""

    def moment(v, k):
        return 86391 + 7 * v + 0.4 * ((3 * k) % 11)  # not in the order of the places

    tags = {f"{element}Time": lambda v, k: clock(moment(v, k)), f"{element}Date": None}
    if dates:
        tags[f"{element}Date"] = lambda v, k: "20240228" if dates == "one" or moment(v, k) < 86400 else "20240229"
    else:
        del tags[f"{element}Date"]
    save_volumes(tmp_path, 3, 11, **tags)
    check_apart(
        tmp_path, 3, f"{element.lower()} time 23:59:51 to 23:59:55", f"{element.lower()} time 23:59:58 to 00:00:02"
    )


def test_the_day_counts_if_the_times_of_day_are_the_same(tmp_path):
    save_volumes(
        tmp_path, 2, 7, AcquisitionTime=lambda v, k: f"1200{k:02}", AcquisitionDate=lambda v, k: f"2024010{v + 1}"
    )
    check_apart(tmp_path, 2)


@pytest.mark.parametrize(
    "moment",
    [
        lambda v, k: 40000 + 2 * k + 0.8 * v,  # echoes of one slice after the other
        lambda v, k: 40000 + 100 * v + 3 * k,  # one volume after the other
        lambda v, k: 40000 + 30 * (k % 2) + 9 * v + 1.1 * (k // 2),  # even slices of all volumes, then odd ones
    ],
)
@pytest.mark.parametrize("n_slices", [7, 24])
def test_times_that_grow_from_slice_to_slice(tmp_path, moment, n_slices):
    save_volumes(tmp_path, 2, n_slices, AcquisitionTime=lambda v, k: clock(moment(v, k)))
    check_apart(tmp_path, 2)


@pytest.mark.parametrize(
    "number",
    [
        lambda v, k, n: 1 + k + n * v,
        lambda v, k, n: 5 * n - k - n * (3 - v),  # slices counted downward
        lambda v, k, n: 1 + v + 3 * k,
        lambda v, k, n: 1 + (k % 2) * 100 + v * 30 + k // 2,
    ],
)
@pytest.mark.parametrize("n_slices", [7, 24])
def test_instance_numbers_of_a_usual_pattern(tmp_path, number, n_slices):
    save_volumes(tmp_path, 3, n_slices, InstanceNumber=lambda v, k: number(v, k, n_slices))
    check_apart(tmp_path, 3)
    assert "order by instance number tells the volumes apart" in " ".join(open_scan(tmp_path, frame=1).notes)


def test_instance_numbers_without_a_pattern_are_refused(tmp_path):
    numbers = np.random.default_rng(4).permutation(2 * 24).tolist()
    save_volumes(tmp_path, 2, 24, InstanceNumber=lambda v, k: numbers[24 * v + k])
    check_refused(tmp_path, 2)


@pytest.mark.parametrize("n_slices", [13, 31])
def test_uids_are_compared_as_numbers(tmp_path, n_slices):
    """As text, 1.2.9 comes after 1.2.10, and both volumes were mixed."""
    save_volumes(tmp_path, 2, n_slices, SOPInstanceUID=lambda v, k: f"1.2.{5 + k + n_slices * v}")
    check_apart(tmp_path, 2, "1 of 2 by SOP Instance UID")


@pytest.mark.parametrize("n_slices", [7, 24])
def test_random_uids_tell_nothing(tmp_path, n_slices):
    save_volumes(tmp_path, 2, n_slices)
    check_refused(tmp_path, 2)
    save_volumes(tmp_path / "three", 3, n_slices)
    check_refused(tmp_path / "three", 3)


def test_uids_that_are_in_order_by_chance_tell_nothing(tmp_path):
    save_volumes(tmp_path, 2, 4, SOPInstanceUID=lambda v, k: f"1.2.{5 + k + 4 * v}")
    check_refused(tmp_path, 2)


def test_volumes_of_unequal_numbers_of_slices(tmp_path):
    save_volumes(tmp_path, 3, [31, 24, 12], FlipAngle=lambda v, k: str(10 + v))
    check_apart(tmp_path, 3)
    assert open_scan(tmp_path, frame=2).n_slices == 12
    assert "frame 1 lacks 7 of the 31 places" in " ".join(open_scan(tmp_path, frame=1).warnings)


def test_unequal_volumes_are_parted_by_the_pause_between_them(tmp_path):
    save_volumes(tmp_path, 2, [24, 17], AcquisitionTime=lambda v, k: clock(86370 + k + 60 * v))
    check_apart(tmp_path, 2, "acquisition time 23:59:30 to 23:59:53", "acquisition time 00:00:30 to 00:00:46")
    save_volumes(tmp_path / "no_pause", 2, [24, 17], AcquisitionTime=lambda v, k: clock(86370 + k + 24 * v))
    check_refused(tmp_path / "no_pause", 2)


def test_a_few_repeated_slices_do_not_mix_into_the_volume(tmp_path):
    """The repeats come first by their echo time and by their numbers."""
    save_volumes(
        tmp_path, 2, [24, 4], EchoTime=lambda v, k: "80" if v == 0 else "9", InstanceNumber=lambda v, k: 50 - 40 * v
    )
    scan = open_scan(tmp_path)
    assert np.unique(scan.voxels // STEP).tolist() == [0] and scan.frame is None
    assert "4 images at a place where another one lies already: left out (echo time 9)" in scan.warnings


def test_a_stray_image_beside_two_volumes(tmp_path):
    paths = save_volumes(tmp_path, 2, 9, EchoTime=lambda v, k: str(9 + v))
    stray = pydicom.dcmread(paths[3])
    stray.SOPInstanceUID, stray.InstanceNumber = "1.2.99", 777
    stray.save_as(tmp_path / "stray")
    check_apart(tmp_path, 2, "echo time 9", "echo time 10")
    assert "the first of each was used" in " ".join(open_scan(tmp_path, frame=0).warnings)
    assert not open_scan(tmp_path, frame=1).warnings


def test_what_parts_a_stack_into_halves_parts_no_volumes(tmp_path):
    """Packages: acquisition 1 has the even slices and acquisition 2 the odd ones; one even slice was repeated."""
    paths = save_volumes(tmp_path, 1, 24, AcquisitionNumber=lambda v, k: 1 + k % 2)
    again = pydicom.dcmread(paths[6])
    again.SOPInstanceUID, again.InstanceNumber, again.AcquisitionNumber = "1.2.99", 777, 2
    again.save_as(tmp_path / "again")
    scan = open_scan(tmp_path)
    assert scan.n_slices == 24 and not [w for w in scan.warnings if "missing" in w]
    assert "1 image at a place where another one lies already: the first of each was used" in scan.warnings


def test_files_of_two_volumes_that_share_their_uids_are_not_copies(tmp_path):
    save_volumes(tmp_path, 2, 7, SOPInstanceUID=lambda v, k: f"1.2.{k}", EchoTime=lambda v, k: str(5 + v))
    check_apart(tmp_path, 2, "echo time 5", "echo time 6")


def test_patients_in_free_text_are_not_quoted(tmp_path):
    save_volumes(tmp_path, 2, 7, SequenceName=lambda v, k: f"seq of Doe {v}")
    with pytest.raises(InputError) as error:
        open_scan(tmp_path)
    assert "sequence name 2 of 2" in str(error.value) and "Doe" not in str(error.value)


def save_enhanced_volumes(path, n_slices, place_of, describe):
    """An enhanced file of two volumes at the same places.

    Args:
        path: Where to.
        n_slices: Of each volume.
        place_of: Number of a frame in the file -> its volume and slice.
        describe: Is called with a frame's group, its volume and its slice.
    """
    save_enhanced(path, np.zeros((8, 8, 2 * n_slices), np.int16), AFFINE)
    ds = pydicom.dcmread(path)
    frames = ds.pixel_array.copy()
    for f, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        v, k = place_of(f)
        frames[f] = STEP * v + k
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 4 * k]
        describe(group, v, k)
    ds.PixelData = frames.tobytes()
    ds.save_as(path)


@pytest.mark.parametrize("element", ["flip angle", "moment", "frame number", "none"])
def test_volumes_of_an_enhanced_file(tmp_path, element):
    order = np.random.default_rng(3).permutation(22).tolist() if element != "frame number" else list(range(22))

    def describe(group, v, k):
        if element == "flip angle":
            group.MRTimingAndRelatedParametersSequence = [Dataset()]
            group.MRTimingAndRelatedParametersSequence[0].FlipAngle = 8.0 + 10 * v
        elif element == "moment":
            clock_of = clock(86395 + 20 * v + k)
            day = "20231231" if clock_of > "2" else "20240101"
            group.FrameContentSequence[0].FrameAcquisitionDateTime = day + clock_of

    save_enhanced_volumes(tmp_path / "e.dcm", 11, lambda f: divmod(order[f], 11), describe)
    if element == "none":
        check_refused(tmp_path, 2)
    else:
        check_apart(tmp_path, 2)


def test_each_enhanced_file_may_be_a_volume(tmp_path):
    for v in range(2):
        path = save_enhanced(tmp_path / f"{v}.dcm", np.full((8, 8, 7), v * STEP + 5, np.int16), AFFINE, **SHARED)
        ds = pydicom.dcmread(path)
        frames = ds.pixel_array + np.arange(7, dtype=np.int16)[:, None, None]
        ds.PixelData = frames.astype("<i2").tobytes()
        ds.save_as(path)
    check_apart(tmp_path, 2, "file 1 of 2", "file 2 of 2")
