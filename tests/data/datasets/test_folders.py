"""What the names of folders and files say: class, split, patient, and whose mask a file is."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.scans.phantoms import small_slice
from tests.scans.pictures import save
from tumorlens.data.datasets.folders import place_of
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import read_sample
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.check import check_set
from tumorlens.data.inspection.divide import divide
from tumorlens.data.spellings import canonical_label


@pytest.mark.parametrize("name", ["PI_00", "GL12", "me07", "NO-1", "no 3"])
def test_initials_with_a_number_are_not_a_class(name):
    with pytest.raises(InputError, match="looks like the name of a patient"):
        canonical_label(name)
    assert canonical_label(name, {name: "glioma"}) == "glioma"
    assert canonical_label("glioma_01") == "glioma"
    assert canonical_label("gl") == "glioma"


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("glioma/PI_00", ("glioma", "", "PI_00")),
        ("Training/no_tumor/ME07/T1", ("no_tumor", "train", "ME07")),
        ("glioma/test/100360", ("glioma", "test", "100360")),
        ("meningioma/T1/axial/healthy03", ("meningioma", "", "healthy03")),
        ("Training/glioma/7", ("glioma", "train", "Training/glioma/7")),  # others than Testing's
        ("glioma/512x512", ("glioma", "", "")),
        ("GL/gl_3", ("glioma", "", "gl_3")),
        ("pituitary/pituitary_tumor", ("pituitary", "", "")),
        ("glioma/p1/series_a", ("glioma", "", "p1")),
        ("PI_00/meningioma", ("meningioma", "", "")),
        ("PI_00", ("", "", "")),
    ],
)
def test_the_class_folder_nearest_the_root_decides(tmp_path, folder, expected):
    place = place_of(tmp_path / folder, tmp_path)
    assert (place.label, place.split, place.patient) == expected


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("glioma/no_tumor", "the folder no_tumor in glioma says no_tumor, the outer one glioma"),
        ("glioma/p1/meningioma", "the folder meningioma in glioma says meningioma"),
        ("glioma/masks", "masks of class folders lie next to their pictures"),
        ("glioma/Smith", "Smith is not one of train, .* whose name in glioma has a number"),
    ],
)
def test_folders_that_say_two_things_or_nothing_are_named(tmp_path, folder, reason):
    save(tmp_path / folder / "1.png", small_slice(0).image)
    save(tmp_path / "meningioma" / "1.png", small_slice(1).image)
    with pytest.raises(InputError, match=reason):
        load_samples(tmp_path)
    report = check_set(tmp_path)
    assert len(report.of("unknown_label")) == report.problems == 1
    assert re.match(f"{folder}: {reason}", report.of("unknown_label")[0])


def test_folders_of_patients_below_class_folders_stay_together(tmp_path):
    for number, patient in enumerate(("PI_00", "GL_01", "NO_02", "ME_03")):
        for k in range(2):
            save(tmp_path / "glioma" / patient / f"{k}.png", small_slice(2 * number + k, "glioma").image)
    samples = load_samples(tmp_path)
    assert {s.label for s in samples} == {"glioma"}
    assert {s.patient for s in samples} == {"PI_00", "GL_01", "NO_02", "ME_03"}
    assert check_set(tmp_path).patients == 4
    division = divide(tmp_path, shares=(0.5, 0.25, 0.25))
    assert all(len({s.split for s in division.samples if s.patient == p}) == 1 for p in {s.patient for s in samples})


@pytest.mark.parametrize("name", ["7_mask.png", "7-seg.png", "7_label.tif", "7_MASK.bmp"])
def test_a_mask_beside_a_picture_is_its_mask_and_not_a_scan(tmp_path, name):
    phantom = small_slice(0, "glioma")
    save(tmp_path / "glioma" / "7.png", phantom.image)
    save(tmp_path / "glioma" / name, phantom.mask * np.uint8(255))
    save(tmp_path / "notumor" / "8.png", small_slice(1, "no_tumor").image)
    sick, healthy = load_samples(tmp_path)
    np.testing.assert_array_equal(read_sample(sick).mask, phantom.mask)
    assert healthy.mask is None
    report = check_set(tmp_path)
    assert (report.files, report.problems) == (2, 0)


def test_masks_that_belong_to_no_picture_or_to_two_are_named(tmp_path):
    image, mask = small_slice(0, "glioma").image, small_slice(0, "glioma").mask
    save(tmp_path / "glioma" / "7.png", image)
    save(tmp_path / "glioma" / "8_mask.png", mask)
    with pytest.raises(InputError, match=r"8_mask\.png: the mask has no image of its name"):
        load_samples(tmp_path)
    assert check_set(tmp_path).of("missing_file") == ["glioma/8_mask.png: the mask has no image of its name"]
    (tmp_path / "glioma" / "8_mask.png").rename(tmp_path / "glioma" / "7_mask.png")
    save(tmp_path / "glioma" / "7.jpg", image)
    with pytest.raises(InputError, match=r"7_mask\.png: the mask could be that of 7\.jpg and of 7\.png"):
        load_samples(tmp_path)
    assert check_set(tmp_path).of("ambiguous_mask") == [
        "glioma/7_mask.png: the mask could be that of 7.jpg and of 7.png"
    ]
    (tmp_path / "glioma" / "7.jpg").unlink()
    save(tmp_path / "glioma" / "7_seg.png", mask)
    with pytest.raises(InputError, match=r"7\.png: there are two masks of it, 7_mask\.png and 7_seg\.png"):
        load_samples(tmp_path)
    assert check_set(tmp_path).of("ambiguous_mask") == [
        "glioma/7.png: there are two masks of it, 7_mask.png and 7_seg.png"
    ]
