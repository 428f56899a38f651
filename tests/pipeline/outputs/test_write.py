"""The files of a result: whole, complete, and never in place of a file that tumorlens did not write."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tumorlens.pipeline.outputs.write as module
from tests.pipeline.fixed import fixed_pipeline
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.outputs.write import remove_result, write_result


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
    assert names_in(tmp_path / "a") == ["mask.nii.gz", "montage.png", "overlay.png", "result.json"]


def test_an_explanation_and_a_refusal_change_the_files(picture, tmp_path):
    write_result(replace(picture, heat=np.ones(picture.scan.voxels.shape, np.float32)), tmp_path / "a", "a")
    assert names_in(tmp_path / "a") == ["explanation.png", "mask.png", "overlay.png", "result.json"]
    write_result(replace(picture, label="refused", probabilities={}), tmp_path / "a", "a")
    assert names_in(tmp_path / "a") == ["overlay.png", "result.json"]


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
