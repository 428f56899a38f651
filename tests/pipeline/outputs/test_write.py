"""The files of a result: whole, complete, and never in place of a file that tumorlens did not write."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import tumorlens.pipeline.outputs.write as module
from tests.pipeline.fixed import fixed_pipeline
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.write import remove_leftovers, remove_result, write_result


@pytest.fixture(scope="module")
def picture():
    return fixed_pipeline().run(phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image)


@pytest.fixture(scope="module")
def volume():
    return fixed_pipeline().run(phantom_volume(7, "meningioma", shape=(64, 75, 8), spacing_mm=(3, 3, 14)).scan)


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_picture_and_a_volume_have_their_files(picture, volume, tmp_path):
    content = write_result(picture, tmp_path / "a", "a.png")
    assert names_in(tmp_path / "a") == ["mask.png", "overlay.png", "result.json"]
    assert json.loads(json.dumps(content)) == json.loads((tmp_path / "a" / "result.json").read_text())
    assert (content["scan"]["name"], content["label"]) == ("a.png", "meningioma")
    write_result(volume, tmp_path / "a", "a.nii.gz")  # a volume replaces the picture
    assert names_in(tmp_path / "a") == ["lesions.nii.gz", "mask.nii.gz", "montage.png", "overlay.png", "result.json"]


def test_an_explanation_and_a_refusal_change_the_files(picture, tmp_path):
    write_result(replace(picture, heat=np.ones(picture.scan.voxels.shape, np.float32)), tmp_path / "a", "a")
    assert names_in(tmp_path / "a") == ["explanation.png", "mask.png", "overlay.png", "result.json"]
    write_result(replace(picture, label="refused", probabilities={}), tmp_path / "a", "a")
    assert names_in(tmp_path / "a") == ["overlay.png", "result.json"]


def test_pictures_of_results_may_be_left_out(picture, volume, tmp_path):
    for result, files in ((picture, ["mask.png"]), (volume, ["lesions.nii.gz", "mask.nii.gz"])):
        content = write_result(result, tmp_path / "a", "a", options=RunOptions(overlay=False))
        assert names_in(tmp_path / "a") == [*files, "result.json"] and sorted(content["files"]) == files
    refused = replace(picture, label="refused", probabilities={})
    assert write_result(refused, tmp_path / "a", "a", options=RunOptions(overlay=False))["files"] == []
    assert names_in(tmp_path / "a") == ["result.json"]


def test_reports_need_the_overlay():
    with pytest.raises(InputError, match="a report shows the overlay; leave out --no-overlay"):
        RunOptions(overlay=False, report=True)


def test_a_result_has_a_line_for_each_field(volume, tmp_path):
    content = write_result(volume, tmp_path, "a")
    assert len((tmp_path / "result.json").read_text().splitlines()) == len(content) + 2


def test_lesions_have_their_numbers(volume, tmp_path):
    content = write_result(volume, tmp_path, "a")
    lesions, mask = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("lesions", "mask"))
    np.testing.assert_array_equal(lesions.affine, mask.affine)
    numbers = np.asarray(lesions.dataobj)
    assert numbers.dtype == np.uint8
    np.testing.assert_array_equal(numbers > 0, np.asarray(mask.dataobj) > 0)
    for lesion in content["lesions"]:
        assert np.count_nonzero(numbers == lesion["number"]) == lesion["voxels"]


def test_the_map_is_a_probability_on_the_grid_of_the_source(tmp_path):
    drawn = phantom_volume(7, "meningioma", shape=(64, 75, 8), spacing_mm=(3, 3, 14)).scan
    result = fixed_pipeline(tumor=lambda image: 0.98 if image.mean() > 20 else 0.02).run(drawn, RunOptions(maps=True))
    content = write_result(result, tmp_path, "a")
    assert content["files"][-1] == "probability.nii.gz"
    stored = nib.load(tmp_path / "probability.nii.gz")
    assert stored.get_data_dtype() == np.uint8
    values = stored.get_fdata()
    assert values.shape == drawn.voxels.shape and values.max() == pytest.approx(1) and values.min() == 0
    inside = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj) > 0
    assert values[inside].min() > 0.4
    asked = [row["index"] for row in content["slices"] if row["segmented"]]
    beyond = [k for k in range(drawn.n_slices) if min(abs(k - a) for a in asked) > 1]  # neighbors are smoothed in
    assert all(values[:, :, k].max() == 0 for k in beyond)


@pytest.mark.parametrize(("tumor", "brightest"), [(0.98, 255), (0.02, 0)])
def test_the_map_of_a_picture(tmp_path, tumor, brightest):
    image = phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image
    write_result(fixed_pipeline(tumor).run(image, RunOptions(maps=True)), tmp_path, "a")
    drawn = np.asarray(Image.open(tmp_path / "probability.png"))
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and drawn.max() == brightest


def test_without_a_request_there_is_no_map(picture):
    assert picture.lesion_map is None


def test_files_of_yours_are_left_alone(picture, tmp_path):
    (tmp_path / "mask.png").write_text("drawn by hand")
    for action in (lambda: write_result(picture, tmp_path, "a"), lambda: remove_result(tmp_path)):
        with pytest.raises(InputError, match=r"mask\.png: tumorlens did not write this file and leaves it alone"):
            action()
    assert (tmp_path / "mask.png").read_text() == "drawn by hand"
    assert names_in(tmp_path) == ["mask.png"]


def test_leftovers_of_a_killed_run_are_replaced(picture, tmp_path):
    (tmp_path / ".part-x").mkdir()
    (tmp_path / "mask.png").write_text("half a mask")
    write_result(picture, tmp_path, "a")
    assert names_in(tmp_path) == ["mask.png", "overlay.png", "result.json"]
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")


def test_a_write_that_fails_leaves_no_half_of_a_result(picture, tmp_path, monkeypatch):
    moved = []

    def move(source, target):
        if len(moved) == 1:
            raise OSError("disk full")
        moved.append(source.replace(target))

    monkeypatch.setattr(module.shutil, "move", move)
    with pytest.raises(OSError, match="disk full"):
        write_result(picture, tmp_path, "a")
    assert names_in(tmp_path) == []


def test_a_result_is_removed_and_other_files_stay(picture, tmp_path):
    (tmp_path / "notes.txt").write_text("yours")
    write_result(picture, tmp_path, "a", {"source_sha256": "ab"}, place_sha256="cd")
    content = json.loads((tmp_path / "result.json").read_text())
    assert (content["made_of"], content["place_sha256"]) == ({"source_sha256": "ab"}, "cd")
    assert content["files"] == ["overlay.png", "mask.png"]
    remove_result(tmp_path)
    assert names_in(tmp_path) == ["notes.txt"]


class Killed(BaseException):
    """Stands for the end of the process: nothing is cleaned up after it."""


@pytest.fixture
def killed_after(monkeypatch):
    """Let the process end after so many moves and deletions of files in an output folder."""

    def arm(n):
        left = [n]

        def counted(real):
            def call(*args, **rest):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*args, **rest)

            return call

        monkeypatch.setattr(module.shutil, "move", counted(module.shutil.move))
        monkeypatch.setattr(module.Path, "unlink", counted(module.Path.unlink))
        # Neither `finally` nor `__exit__` runs in a process that is killed.
        monkeypatch.setattr(module.tempfile.TemporaryDirectory, "__exit__", lambda *_: None)
        monkeypatch.setattr(module.tempfile.TemporaryDirectory, "_cleanup", lambda *_, **__: None)

    return arm


def age(folder):
    """Make what was left half-written older than this process."""
    for part in folder.glob(".part-*"):
        os.utime(part, (1, 1))


@pytest.mark.parametrize("n", range(9))
@pytest.mark.parametrize("action", ["write", "remove"])
def test_whenever_a_run_is_killed_its_files_are_known_as_ours(picture, tmp_path, monkeypatch, killed_after, action, n):
    """So that the next run may replace them, and the leftovers can go."""
    write_result(picture, tmp_path, "a.png")
    with monkeypatch.context() as patch, suppress(Killed):
        killed_after(n)
        if action == "write":
            write_result(picture, tmp_path, "a.png")
        else:
            remove_result(tmp_path)
        patch.undo()
    monkeypatch.undo()
    age(tmp_path)
    files = {"mask.png", "overlay.png", "result.json"}
    is_whole = files <= set(names_in(tmp_path))
    assert is_whole or not (tmp_path / "result.json").exists()
    remove_leftovers(tmp_path)
    assert set(names_in(tmp_path)) == (files if is_whole else set())
    write_result(picture, tmp_path, "a.png")
    assert set(names_in(tmp_path)) == files


def test_leftovers_are_removed_and_nothing_else(picture, tmp_path):
    write_result(picture, tmp_path, "a.png")
    kept = [".part-of-mine", ".part-abcdefgh2", ".part-ABCDEFGH.csv", "notes.txt", ".part-inuse00.png"]
    gone = [".part-abcdefg0", ".part-x7_a0b1c.csv", ".part-00000000.nii.gz"]
    for name in (*kept, *gone):
        (tmp_path / name).write_text("x")
        if name != ".part-inuse00.png":
            os.utime(tmp_path / name, (1, 1))
    (tmp_path / ".part-folder00").mkdir()
    (tmp_path / ".part-folder00" / "mask.png").write_text("x")
    os.utime(tmp_path / ".part-folder00", (1, 1))
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == sorted([*kept, "mask.png", "overlay.png", "result.json"])
    remove_leftovers(tmp_path / "nowhere")


def test_a_mask_of_yours_is_not_a_leftover(tmp_path):
    """A file that is being written, such as a table, says nothing about a mask."""
    (tmp_path / "mask.png").write_text("drawn by hand")
    (tmp_path / ".part-abcdefg0.csv").write_text("x")
    os.utime(tmp_path / ".part-abcdefg0.csv", (1, 1))
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == ["mask.png"]
