"""`tumorlens run` and `demo`: files and output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.scans.pictures import save, save_volume, table
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.outputs.table import COLUMNS


def test_run_on_a_folder(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    done = tumorlens("run", study, "-o", out)
    assert done.exit_code == 0, done.output
    rows = {row["scan"]: row for row in table(out)}
    assert list(table(out)[0]) == list(COLUMNS)
    twin = next(name for name in rows if re.fullmatch("b/twin-[0-9a-f]{6}.png", name))  # twin.bmp has the folder b/twin
    assert set(rows) == {"a/sick.png", "b/healthy.jpg", "b/twin.bmp", twin, "volume.nii.gz"}
    expected = {
        "a/sick": {"result.json", "overlay.png", "mask.png"},
        "b/healthy": {"result.json", "overlay.png", "mask.png"},
        twin.removesuffix(".png"): {"result.json", "overlay.png", "mask.png"},
        "b/twin": {"result.json", "overlay.png", "mask.png"},
        "volume": {"result.json", "overlay.png", "montage.png", "mask.nii.gz", "lesions.nii.gz"},
    }
    for name, files in expected.items():
        assert {p.name for p in (out / name).iterdir()} == files

    sick = rows["a/sick.png"]
    assert sick["label"] == "meningioma"
    assert sick["malignancy"] == "usually benign"
    assert sick["error"] == ""
    assert (sick["tumor_area_mm2"], sick["tumor_volume_mm3"]) == ("", "")  # a PNG has no spacing, and none is guessed
    mask = np.array(Image.open(out / "a" / "sick" / "mask.png"))
    assert mask.shape == (256, 256)
    assert set(np.unique(mask)) == {0, 255}
    assert int(sick["tumor_area_px"]) == (mask > 0).sum()
    assert np.array(Image.open(out / "a" / "sick" / "overlay.png")).shape == (640, 640, 3)

    healthy = rows["b/healthy.jpg"]
    assert (healthy["label"], healthy["tumor_area_px"]) == ("no_tumor", "0")
    assert not np.array(Image.open(out / "b" / "healthy" / "mask.png")).any()  # an empty mask is written, too

    volume = rows["volume.nii.gz"]
    assert float(volume["tumor_volume_mm3"]) > 1000
    nifti = nib.load(out / "volume" / "mask.nii.gz")
    assert nifti.shape == (96, 112, 12)
    assert float(volume["tumor_volume_mm3"]) == pytest.approx(np.asanyarray(nifti.dataobj).sum() * 40.0, rel=1e-3)


def test_the_masks_lie_on_the_lesions(tumorlens, tmp_path):
    for seed in range(3):
        phantom = phantom_slice(seed, "meningioma")
        save(tmp_path / "in" / f"{seed}.png", phantom.image)
    volume = phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0))
    save_volume(tmp_path / "in" / "v.nii.gz", volume)
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out", "-q").exit_code == 0
    scores = []
    for seed in range(3):
        mask = np.array(Image.open(tmp_path / "out" / str(seed) / "mask.png")) > 0
        truth = phantom_slice(seed, "meningioma").mask > 0
        scores.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    mask = np.asanyarray(nib.load(tmp_path / "out" / "v" / "mask.nii.gz").dataobj) > 0
    scores.append(2 * (mask & (volume.mask > 0)).sum() / (mask.sum() + volume.mask.sum()))
    assert min(scores) > 0.6, scores


def test_result_json(tumorlens, tmp_path):
    path = save(tmp_path / "one.png", phantom_slice(7, "meningioma").image)
    done = tumorlens("run", path, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    content = json.loads((tmp_path / "out" / "one" / "result.json").read_text())
    assert printed == content
    assert content["schema_version"] == 2
    assert content["scan"]["name"] == "one.png"
    assert sum(content["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert content["confidence"] == content["probabilities"][content["label"]]
    assert "not a histological grade" in content["malignancy_note"]
    lesion = content["lesions"][0]
    assert lesion["area_px"] == content["tumor_area_px"]
    assert lesion["longest_diameter_px"] > 10
    assert lesion["longest_diameter_mm"] is None
    assert re.fullmatch(r"[0-9a-f]{64}", content["models"]["classification"]["sha256"])
    assert {"read", "preprocess", "classify", "segment", "postprocess"} <= set(content["timings_s"])
    assert str(tmp_path) not in json.dumps(content)


def test_globs_and_threads(tumorlens, study, tmp_path):
    done = tumorlens("run", f"{study}/**/*.png", "-o", tmp_path / "out", "--jobs", "3", "-q")
    assert done.exit_code == 0
    assert done.output == ""
    assert [row["scan"] for row in table(tmp_path / "out")] == ["sick.png", "twin.png"]


def test_two_folders_with_equal_names(tumorlens, tmp_path):
    image = phantom_slice(1, "no_tumor").image
    save(tmp_path / "x" / "1.png", image)
    save(tmp_path / "y" / "1.png", image)
    assert tumorlens("run", tmp_path / "x", tmp_path / "y", "-o", tmp_path / "out").exit_code == 0
    first, second = (row["scan"] for row in table(tmp_path / "out"))
    assert first == "1.png" and re.fullmatch("1-[0-9a-f]{6}.png", second)
    assert (tmp_path / "out" / "1" / "mask.png").is_file()
    assert (tmp_path / "out" / second.removesuffix(".png") / "mask.png").is_file()


def test_a_file_without_suffix_is_found_by_its_content(tumorlens, tmp_path):
    save(tmp_path / "in" / "1.png", phantom_slice(1, "no_tumor").image).rename(tmp_path / "in" / "IM0001")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert table(tmp_path / "out")[0]["label"] == "no_tumor"


def test_one_frame_of_a_series(tumorlens, tmp_path):
    phantom = phantom_volume(7, "meningioma", shape=(96, 112, 12), spacing_mm=(2, 2, 10))
    series = np.stack([phantom.image, phantom.image // 2], axis=3)
    nib.save(nib.Nifti1Image(series, phantom.affine), tmp_path / "s.nii.gz")
    refused = tumorlens("run", tmp_path / "s.nii.gz", "-o", tmp_path / "a")
    assert refused.exit_code == 1
    assert "--frame 0 to 1" in table(tmp_path / "a")[0]["error"]
    assert tumorlens("run", tmp_path / "s.nii.gz", "-o", tmp_path / "b", "--frame", "1").exit_code == 0
    assert nib.load(tmp_path / "b" / "s" / "mask.nii.gz").shape == (96, 112, 12)


def test_flat_nifti_gets_both_masks(tumorlens, tmp_path):
    image = phantom_slice(7, "meningioma").image
    nib.save(nib.Nifti1Image(image.T[::-1, ::-1].astype(np.int16), np.diag([0.9, 0.9, 1, 1])), tmp_path / "f.nii")
    assert tumorlens("run", tmp_path / "f.nii", "-o", tmp_path / "out").exit_code == 0
    assert nib.load(tmp_path / "out" / "f" / "mask.nii.gz").shape == (256, 256)
    assert np.array(Image.open(tmp_path / "out" / "f" / "mask.png")).shape == (256, 256)
    row = table(tmp_path / "out")[0]
    assert float(row["tumor_area_mm2"]) == pytest.approx(int(row["tumor_area_px"]) * 0.81, rel=1e-3)
    assert row["tumor_volume_mm3"] == ""  # two dimensions have no thickness


def test_threshold_opens_and_closes_the_gate(tumorlens, tmp_path):
    path = save(tmp_path / "x.png", phantom_slice(7, "meningioma").image)
    assert tumorlens("run", path, "-o", tmp_path / "a", "--threshold", "1.0").exit_code == 0
    assert tumorlens("run", path, "-o", tmp_path / "b", "--threshold", "0").exit_code == 0
    assert table(tmp_path / "a")[0]["label"] == "no_tumor"
    assert table(tmp_path / "b")[0]["label"] != "no_tumor"


def test_demo(tumorlens, tmp_path):
    done = tumorlens("demo", "--out", tmp_path / "demo")
    assert done.exit_code == 0, done.output
    assert "label:   meningioma" in done.stdout
    overlay = Path(re.search(r"overlay: (.*)", done.stdout)[1])
    assert overlay.is_file()
    assert tumorlens("demo", "--out", tmp_path / "demo", "--scan", tmp_path / "none.png").exit_code == 2
    mine = save(tmp_path / "mine.png", phantom_slice(1, "no_tumor").image)
    again = tumorlens("demo", "--out", tmp_path / "demo", "--scan", mine)
    assert "label:   no_tumor" in again.stdout


def test_a_demo_replaces_nothing_of_the_users(tumorlens, tmp_path):
    mine = save(tmp_path / "phantom.png", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", mine, "-o", tmp_path / "results").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder in ("results-2", "results-3"):
        done = tumorlens("demo", "--out", tmp_path)
        assert done.exit_code == 0 and f"overlay: {tmp_path / folder / 'phantom' / 'overlay.png'}" in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "results-2" / "phantom.png").is_file()
