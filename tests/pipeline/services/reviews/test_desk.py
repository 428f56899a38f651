"""The review desk on a batch that was really run."""

from __future__ import annotations

import json

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tumorlens.data.errors import InputError
from tumorlens.pipeline.batch.memory import remember_inputs
from tumorlens.pipeline.batch.sources import find_sources, open_stored
from tumorlens.pipeline.batch.stored import read_results
from tumorlens.pipeline.services.reviews.corrections import write_correction
from tumorlens.pipeline.services.reviews.desk import FAILED, OPEN, Desk, describe_progress
from tumorlens.pipeline.services.reviews.state import current_mask
from tumorlens.pipeline.services.reviews.store import ConflictError


def _draw(case, tool="brush"):
    """Add a square in the shown slice."""
    view = case.view
    axis, index = view.axes[0], view.start
    drawn = view.mask_slice(axis, index).copy()
    drawn[5:15, 5:15] = 1
    case.editor.draw(tool, index, drawn)
    return index, drawn


def test_the_worklist_begins_with_the_neediest(desk):
    items = desk.worklist()
    assert [item.name for item in items[:2]] == ["broken.png", "noise.png"]
    assert items[0].reasons[0].startswith("failed: ") and items[1].reasons[0].startswith("refused: ")
    assert [item.state for item in items] == [FAILED, *[OPEN] * 5]
    assert [item.need for item in items] == sorted((item.need for item in items), reverse=True)
    assert describe_progress(items) == "0 of 5 scans decided; 1 failed"


def test_a_decision_changes_state_label_and_the_way_on(desk):
    first = desk.next_open("", "Ann")
    assert first == "noise.png", "a scan that failed has nothing to decide on"
    case = desk.open("meningioma.png", "Ann")
    desk.decide(case, "Ann", "relabel", "glioma", "looks infiltrative")
    (item,) = [item for item in desk.worklist() if item.name == "meningioma.png"]
    assert (item.state, item.label, item.reviewers) == ("relabeled", "glioma", ("Ann",))
    assert "meningioma.png" not in [desk.next_open(name, "Ann") for name in ("noise.png", "dicom", "volume.nii.gz")]
    assert json.loads((case.result.folder / "result.json").read_text())["label"] == "meningioma", "the result stays"


def test_a_claimed_scan_is_passed_over(desk):
    desk.store.claim("noise.png", "Bob", "w")
    assert desk.next_open("", "Ann") != "noise.png"
    assert desk.next_open("", "Bob") == "noise.png"


def test_a_corrected_volume_lies_where_the_original_lies(desk):
    case = desk.open("volume.nii.gz", "Ann")
    index, drawn = _draw(case)
    assert desk.decide(case, "Ann", "correct") == []
    original, reviewed = (nib.load(case.result.folder / f"mask{part}.nii.gz") for part in ("", ".reviewed"))
    assert original.shape == reviewed.shape and original.header.binaryblock == reviewed.header.binaryblock
    changed = np.argwhere(np.asarray(original.dataobj) != np.asarray(reviewed.dataobj))
    scan = case.scan
    assert {scan.place_in_view(place) for place in changed} <= {(r, c) for r in range(5, 15) for c in range(5, 15)}
    np.testing.assert_array_equal(scan.view(np.asarray(reviewed.dataobj), index), drawn)
    again = desk.open("volume.nii.gz", "Bob")
    np.testing.assert_array_equal(again.view.mask, case.view.mask)
    assert not again.editor.changed


def test_a_corrected_picture_is_a_picture(desk):
    case = desk.open("meningioma.png", "Ann")
    _, drawn = _draw(case)
    desk.decide(case, "Ann", "correct")
    reviewed = np.asarray(Image.open(case.result.folder / "mask.reviewed.png"))
    np.testing.assert_array_equal(reviewed, drawn * 255)


def test_a_corrected_series_is_a_segmentation_by_the_reviewer(desk):
    case = desk.open("dicom", "Doe^Jane")
    _draw(case)
    assert desk.decide(case, "Doe^Jane", "correct") == []
    seg = hd.seg.segread(case.result.folder / "mask.reviewed.dcm")
    original = hd.seg.segread(case.result.folder / "mask.dcm")
    assert str(seg.ContentCreatorName) == "Doe^Jane" and not original.get("ContentCreatorName")
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert seg.StudyInstanceUID == original.StudyInstanceUID and seg.SOPInstanceUID != original.SOPInstanceUID
    assert len(seg.SegmentSequence) == len(original.SegmentSequence) + 1, "the square is a lesion of its own"
    nifti = np.asarray(nib.load(case.result.folder / "mask.reviewed.nii.gz").dataobj)
    assert int(seg.pixel_array.sum()) == int(nifti.sum())


@pytest.mark.parametrize(
    ("action", "label", "words"),
    [
        ("accept", "glioma", "another label"),
        ("correct", "", "nothing has changed"),
        ("relabel", "cat", "is not one of"),
    ],
)
def test_contradictions_are_named(desk, action, label, words):
    case = desk.open("meningioma.png", "Ann")
    with pytest.raises(InputError, match=words):
        desk.decide(case, "Ann", action, label)
    assert desk.store.decisions() == []


def test_drawn_changes_are_not_lost_by_accepting(desk):
    case = desk.open("meningioma.png", "Ann")
    _draw(case)
    with pytest.raises(InputError, match="changed the mask"):
        desk.decide(case, "Ann", "accept")


def test_two_reviewers_never_overwrite_each_other(desk):
    ann, bob = desk.open("volume.nii.gz", "Ann"), desk.open("volume.nii.gz", "Bob")
    _draw(ann)
    desk.decide(ann, "Ann", "correct")
    _draw(bob, "fill")
    with pytest.raises(ConflictError):
        desk.decide(bob, "Bob", "correct")
    bob = desk.open("volume.nii.gz", "Bob")  # sees Ann's mask, with his own stroke on it
    assert len(desk.store.decisions("volume.nii.gz")) == 1
    bob.editor.clear()
    desk.decide(bob, "Bob", "correct", "no_tumor")
    masks = [desk.store.mask(d.number) for d in desk.store.decisions("volume.nii.gz")]
    assert [int(mask.any()) for mask in masks] == [1, 0], "both are kept"


def test_files_that_a_crash_has_prevented_are_written_later(desk, monkeypatch):
    case = desk.open("volume.nii.gz", "Ann")
    _draw(case)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tumorlens.pipeline.services.reviews.desk.write_correction", die)
        desk.decide(case, "Ann", "correct")
    assert not (case.result.folder / "mask.reviewed.nii.gz").exists()
    again = desk.open("volume.nii.gz", "Bob")
    np.testing.assert_array_equal(again.view.mask, case.view.mask)
    assert (case.result.folder / "mask.reviewed.nii.gz").exists()


def test_a_refused_scan_can_be_accepted_or_named(desk):
    case = desk.open("noise.png", "Ann")
    desk.decide(case, "Ann", "accept")
    assert desk.store.decisions()[0].label == "refused"


def test_a_mask_can_be_drawn_where_there_was_none(desk):
    case = desk.open("noise.png", "Ann")
    _, drawn = _draw(case)
    assert desk.decide(case, "Ann", "correct", "glioma") == []
    np.testing.assert_array_equal(np.asarray(Image.open(case.result.folder / "mask.reviewed.png")), drawn * 255)


def test_without_the_scans_pictures_are_left(out, tmp_path):
    desk = Desk(out)
    case = desk.open("volume.nii.gz", "Ann")
    assert case.view is None and "--scans" in case.problem
    desk.decide(case, "Ann", "accept")
    desk.close()


def test_a_scan_that_has_changed_is_not_shown_under_its_mask(out, scans, tmp_path):
    moved = tmp_path / "scans"
    moved.mkdir()
    Image.open(scans / "healthy.png").save(moved / "meningioma.png")
    desk = Desk(out, [str(moved)])
    case = desk.open("meningioma.png", "Ann")
    assert case.view is None and "has changed" in case.problem
    desk.close()


@pytest.mark.parametrize(("key", "value"), [("source_sha256", "another"), ("frame", 1), ("plane", "coronal")])
def test_nothing_said_about_another_scan_frame_or_plane_of_the_same_name_counts(desk, key, value):
    case = desk.open("meningioma.png", "Ann")
    _draw(case)
    desk.decide(case, "Ann", "correct")
    case = desk.open("meningioma.png", "Ann")
    _draw(case, "eraser")  # and is not saved
    path = case.result.folder / "result.json"
    content = json.loads(path.read_text())
    content["made_of"][key] = value
    path.write_text(json.dumps(content))
    again = Desk(desk.out)
    (item,) = [item for item in again.worklist() if item.name == "meningioma.png"]
    assert item.state == OPEN and item.reviewers == ()
    mask = current_mask(item.result, again.store)
    np.testing.assert_array_equal(mask, item.result.mask(reviewed=False).voxels)
    assert again.store.strokes("meningioma.png", "Ann", item.result.identity) == ([], 0)
    with pytest.raises(InputError, match="was run again since"):
        again.decide(case, "Ann", "accept")
    again.close()


def test_inputs_that_are_not_there_are_an_error_at_once(out, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Desk(out, [str(tmp_path / "gone")])


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(InputError, match="tumorlens run"):
        Desk(tmp_path)


def test_all_sources_are_found_again_by_memory_and_after_a_move(out, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("tumorlens.pipeline.batch.memory.user_state_path", lambda *_, **__: tmp_path / "state")
    remember_inputs(out, [str(scans)])
    (note,) = (tmp_path / "state").rglob("*.json")
    assert note.stat().st_mode & 0o077 == 0, "the paths are for this user only"
    results = [result for result in read_results(out) if not result.failed]
    found = find_sources(results, out, [], tmp_path / "scratch")
    assert sorted(found) == sorted(result.name for result in results)
    for result in results:
        mask = result.mask_on(open_stored(result, found[result.name]))
        assert (mask is None) == (result.label == "refused")
    assert str(scans) not in "".join(path.read_text() for path in out.rglob("*.json")), (
        "OUT does not say where scans lie"
    )


def test_a_crash_between_two_files_of_a_correction_is_mended(desk, monkeypatch):
    case = desk.open("dicom", "Ann")
    _draw(case)
    desk.decide(case, "Ann", "correct")
    first = (case.result.folder / "mask.reviewed.dcm").read_bytes()
    case = desk.open("dicom", "Ann")
    case.editor.clear()

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tumorlens.pipeline.services.reviews.corrections._write_dicom", die)
        desk.decide(case, "Ann", "correct", "no_tumor")
    assert not np.asarray(nib.load(case.result.folder / "mask.reviewed.nii.gz").dataobj).any()
    assert (case.result.folder / "mask.reviewed.dcm").read_bytes() == first, "the crash has left them at odds"
    desk.open("dicom", "Ann")
    assert not hd.seg.segread(case.result.folder / "mask.reviewed.dcm").pixel_array.any()


def test_a_damaged_copy_of_a_correction_is_written_again(desk):
    case = desk.open("meningioma.png", "Ann")
    _, drawn = _draw(case)
    desk.decide(case, "Ann", "correct")
    path = case.result.folder / "mask.reviewed.png"
    path.write_bytes(path.read_bytes()[:60])
    assert desk.open("meningioma.png", "Ann").problem == ""
    np.testing.assert_array_equal(np.asarray(Image.open(path)), drawn * 255)


def test_a_segmentation_of_an_earlier_correction_does_not_contradict_a_later_one(desk):
    case = desk.open("dicom", "Ann")
    _draw(case)
    desk.decide(case, "Ann", "correct")
    empty = np.zeros_like(case.view.mask)
    _, problems = write_correction(case.result, empty, None, "Bob")
    assert problems and not (case.result.folder / "mask.reviewed.dcm").exists()


def test_a_scan_without_tumor_has_no_mask(desk):
    case = desk.open("meningioma.png", "Ann")
    with pytest.raises(InputError, match="clear it"):
        desk.decide(case, "Ann", "correct", "no_tumor")
    case.editor.clear()
    desk.decide(case, "Ann", "correct", "no_tumor")
    assert not np.asarray(Image.open(case.result.folder / "mask.reviewed.png")).any()


@pytest.mark.parametrize(
    "break_it",
    [
        lambda content: content.pop("review"),
        lambda content: content.update(lesions=None),
        lambda content: content["lesions"][0].update(number="<img src=x onerror=alert(1)>"),
        lambda content: content.update(scan=[]),
        lambda content: content.update(made_of=3),
    ],
)
def test_a_damaged_result_is_one_failed_line(out, break_it):
    path = out / "meningioma" / "result.json"
    content = json.loads(path.read_text())
    break_it(content)
    path.write_text(json.dumps(content))
    desk = Desk(out)
    items = {item.name: item for item in desk.worklist()}
    assert items["meningioma.png"].state == FAILED and "damaged" in items["meningioma.png"].reasons[0]
    assert items["healthy.png"].state == OPEN
    desk.close()


def test_a_folder_that_has_gone_is_said_so_every_time(desk):
    desk.out.rename(desk.out.with_name("moved"))
    for _ in range(2):
        with pytest.raises(InputError, match="no results"):
            desk.worklist()


@pytest.mark.parametrize(("name", "written"), [("Ann", "Ann^"), ("Doe^Jane", "Doe^Jane"), ("R\\e=x", "R e x^")])
def test_names_of_reviewers_are_one_value(desk, name, written):
    case = desk.open("dicom", name)
    _draw(case)
    desk.decide(case, name, "correct")
    assert str(hd.seg.segread(case.result.folder / "mask.reviewed.dcm").ContentCreatorName) == written
