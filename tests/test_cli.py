"""The command line, in-process: what it writes, how it ends, how it goes on."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data.phantom import phantom_slice, phantom_volume
from pipeline.cli import app
from pipeline.export import COLUMNS


@pytest.fixture
def tumorlens(pipeline, monkeypatch):
    """Calls the command with the shipped models, which are loaded once for all tests."""
    from pipeline.pipeline import Pipeline

    def load(classifier=None, segmenter=None, device="auto", threshold=None):
        from dataclasses import replace

        return pipeline if threshold is None else replace(pipeline, threshold=threshold)

    monkeypatch.setattr(Pipeline, "load", load)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_volume(path, phantom):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), path)
    return path


def table(out):
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def study(tmp_path):
    """A folder as users have it: pictures in folders, a volume, equal stems, and things that are no scans."""
    folder = tmp_path / "study"
    sick, healthy = phantom_slice(7, "meningioma").image, phantom_slice(1, "no_tumor").image
    save(folder / "a" / "sick.png", sick)
    save(folder / "b" / "healthy.jpg", healthy)
    save(folder / "b" / "twin.png", healthy)
    save(folder / "b" / "twin.bmp", healthy)
    save_volume(folder / "volume.nii.gz", phantom_volume(7, "meningioma"))
    (folder / "notes.txt").write_text("no scan")
    save(folder / ".hidden.png", sick)
    return folder


def test_run_on_a_folder(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    done = tumorlens("run", study, "-o", out)
    assert done.exit_code == 0, done.output
    rows = {row["scan"]: row for row in table(out)}
    assert list(table(out)[0]) == list(COLUMNS)
    assert set(rows) == {"a/sick.png", "b/healthy.jpg", "b/twin.bmp", "b/twin.png", "volume.nii.gz"}
    expected = {
        "a/sick": {"result.json", "overlay.png", "mask.png"},
        "b/healthy": {"result.json", "overlay.png", "mask.png"},
        "b/twin.png": {"result.json", "overlay.png", "mask.png"},
        "b/twin.bmp": {"result.json", "overlay.png", "mask.png"},
        "volume": {"result.json", "overlay.png", "mask.nii.gz"},
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
    assert np.array(Image.open(out / "a" / "sick" / "overlay.png")).shape == (256, 256, 3)

    healthy = rows["b/healthy.jpg"]
    assert (healthy["label"], healthy["tumor_area_px"]) == ("no_tumor", "0")
    assert not np.array(Image.open(out / "b" / "healthy" / "mask.png")).any()  # an empty mask is written, too

    volume = rows["volume.nii.gz"]
    assert float(volume["tumor_volume_mm3"]) > 1000
    nifti = nib.load(out / "volume" / "mask.nii.gz")
    assert nifti.shape == (192, 224, 24)
    assert float(volume["tumor_volume_mm3"]) == pytest.approx(np.asanyarray(nifti.dataobj).sum() * 5.0, rel=1e-3)


def test_the_masks_lie_on_the_lesions(tumorlens, tmp_path):
    for seed in range(3):
        phantom = phantom_slice(seed, "meningioma")
        save(tmp_path / "in" / f"{seed}.png", phantom.image)
    volume = phantom_volume(7, "meningioma")
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
    assert content["schema_version"] == 1
    assert content["scan"]["name"] == "one.png"
    assert sum(content["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert content["confidence"] == content["probabilities"][content["label"]]
    assert "no histological grade" in content["malignancy_note"]
    lesion = content["lesions"][0]
    assert lesion["area_px"] == content["tumor_area_px"]
    assert lesion["longest_diameter_px"] > 10
    assert lesion["longest_diameter_mm"] is None
    assert re.fullmatch(r"[0-9a-f]{64}", content["models"]["classification"]["sha256"])
    assert {"read", "preprocess", "classify", "segment", "measure"} <= set(content["timings_s"])
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
    assert [row["scan"] for row in table(tmp_path / "out")] == ["x/1.png", "y/1.png"]
    assert (tmp_path / "out" / "x" / "1" / "mask.png").is_file()


def test_results_inside_the_input_folder_are_not_scans(tumorlens, tmp_path):
    save(tmp_path / "1.png", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out").exit_code == 0
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out", "--overwrite").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["1.png"]


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


def bad_batch(folder):
    """One good scan among everything that users get wrong."""
    save(folder / "good.png", phantom_slice(7, "meningioma").image)
    (folder / "text.png").write_text("a text file named .png")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:3000])
    save(folder / "flat.png", np.full((60, 60), 9, np.uint8))
    nan = phantom_volume(1, shape=(20, 20, 6), spacing_mm=(8, 8, 20)).image.astype(np.float32)
    nan[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(nan, np.eye(4)), folder / "nan.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 2, 2)), np.eye(4)), folder / "five.nii.gz")
    singular = nib.Nifti1Image(np.arange(64.0).reshape(4, 4, 4), np.eye(4))
    singular.header.set_sform(np.diag([1, 1, 0, 1.0]), 1)
    singular.header.set_qform(None, 0)
    nib.save(nib.Nifti1Image(singular.dataobj, None, singular.header), folder / "singular.nii")
    return folder


def test_bad_input_does_not_stop_the_batch(tumorlens, tmp_path):
    out = tmp_path / "out"
    done = tumorlens("run", bad_batch(tmp_path / "in"), tmp_path / "nowhere.png", "-o", out)
    assert done.exit_code == 1
    rows = {row["scan"]: row for row in table(out)}
    assert len(rows) == 9
    assert rows.pop("good.png")["label"] == "meningioma"
    for name, row in rows.items():
        assert row["label"] == ""
        assert Path(name).name in row["error"]
        assert "\n" not in row["error"]
        assert row["error"] in done.stderr
    assert "Traceback" not in done.output
    assert {p.name for p in out.iterdir()} == {"results.csv", "good"}
    assert {p.name for p in (out / "good").iterdir()} == {"result.json", "overlay.png", "mask.png"}


def test_continue_keeps_what_is_done(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", study / "a", "-o", out).exit_code == 0
    assert tumorlens("run", study / "a", "-o", out).exit_code == 2  # neither --continue nor --overwrite
    before = (out / "sick" / "result.json").stat().st_mtime_ns
    (study / "a" / "new.png").write_bytes((study / "b" / "twin.png").read_bytes())
    assert tumorlens("run", study / "a", "-o", out, "--continue").exit_code == 0
    assert [row["scan"] for row in table(out)] == ["new.png", "sick.png"]
    assert (out / "sick" / "result.json").stat().st_mtime_ns == before
    (out / "sick" / "mask.png").unlink()  # an incomplete scan is run again
    assert tumorlens("run", study / "a", "-o", out, "--continue").exit_code == 0
    assert (out / "sick" / "mask.png").is_file()
    assert tumorlens("run", study / "a" / "new.png", "-o", out, "--continue").exit_code == 0
    assert {row["scan"] for row in table(out)} == {"new.png", "sick.png"}  # earlier rows stay
    assert tumorlens("run", study / "a", "-o", out, "--overwrite").exit_code == 0
    assert (out / "sick" / "result.json").stat().st_mtime_ns > before


def test_continue_runs_again_what_came_of_something_else(tumorlens, tmp_path):
    """Another patient's scan of the same name, another threshold: an earlier result is not theirs."""
    sick = save(tmp_path / "a" / "1.png", phantom_slice(7, "meningioma").image)
    healthy = save(tmp_path / "b" / "1.png", phantom_slice(1, "no_tumor").image)
    out = tmp_path / "out"
    assert tumorlens("run", sick, "-o", out).exit_code == 0
    assert table(out)[0]["label"] == "meningioma"
    assert tumorlens("run", healthy, "-o", out, "--continue").exit_code == 0
    assert table(out)[0]["label"] == "no_tumor"
    assert tumorlens("run", sick, "-o", out, "--continue", "--threshold", "1").exit_code == 0
    assert table(out)[0]["label"] == "no_tumor"
    assert tumorlens("run", sick, "-o", out, "--continue").exit_code == 0
    assert table(out)[0]["label"] == "meningioma"


def test_overwrite_leaves_nothing_of_the_run_before(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", study / "b", "-o", out).exit_code == 0
    (out / "healthy" / "remark.txt").write_text("the user's own")
    assert tumorlens("run", study / "a", "-o", out, "--overwrite").exit_code == 0
    assert {p.name for p in out.iterdir()} == {"results.csv", "sick", "healthy"}
    assert [p.name for p in (out / "healthy").iterdir()] == ["remark.txt"]


def test_results_of_other_runs_are_not_scans(tumorlens, tmp_path):
    save(tmp_path / "in" / "1.png", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "in" / "first").exit_code == 0
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "second").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "second")] == ["1.png"]
    assert tumorlens("run", f"{tmp_path}/in/**/*.png", "-o", tmp_path / "third").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "third")] == ["1.png"]


def test_names_that_are_no_unicode(tumorlens, tmp_path):
    (tmp_path / "in").mkdir()
    source = save(tmp_path / "x.png", phantom_slice(1, "no_tumor").image)
    strange = os.fsencode(tmp_path / "in") + b"/M\xfcller"
    try:
        Path(os.fsdecode(strange + b".png")).write_bytes(source.read_bytes())
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    Path(os.fsdecode(strange + b"2.png")).write_text("broken")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 1
    first, second = table(tmp_path / "out")
    assert (first["scan"], first["label"]) == ("M\\udcfcller.png", "no_tumor")
    assert "no PNG" in second["error"]


def test_a_result_folder_that_cannot_be_made_costs_one_scan(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sick").write_text("in the way")
    done = tumorlens("run", study / "a" / "sick.png", study / "b" / "twin.png", "-o", out)
    assert done.exit_code == 1
    assert [bool(row["error"]) for row in table(out)] == [True, False]
    assert (out / "sick").read_text() == "in the way"


def test_a_failure_leaves_no_result_of_an_earlier_run(tumorlens, tmp_path):
    path = save(tmp_path / "x.png", phantom_slice(7, "meningioma").image)
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    path.write_text("broken now")
    assert tumorlens("run", path, "-o", tmp_path / "out", "--overwrite").exit_code == 1
    assert not (tmp_path / "out" / "x" / "mask.png").exists()


def test_a_fault_of_ours_costs_one_scan_only(tumorlens, study, tmp_path, monkeypatch):
    import pipeline.pipeline as module

    real = module.measure_lesions

    def faulty(mask, scan):
        if scan.path.name == "sick.png":
            raise ZeroDivisionError("oh")
        return real(mask, scan)

    monkeypatch.setattr(module, "measure_lesions", faulty)
    done = tumorlens("run", study, "-o", tmp_path / "out")
    assert done.exit_code == 1
    rows = {row["scan"]: row for row in table(tmp_path / "out")}
    assert "internal error, please report it (ZeroDivisionError: oh)" in rows["a/sick.png"]["error"]
    assert rows["volume.nii.gz"]["error"] == ""


def test_threshold_opens_and_closes_the_gate(tumorlens, tmp_path):
    path = save(tmp_path / "x.png", phantom_slice(7, "meningioma").image)
    assert tumorlens("run", path, "-o", tmp_path / "a", "--threshold", "1.0").exit_code == 0
    assert tumorlens("run", path, "-o", tmp_path / "b", "--threshold", "0").exit_code == 0
    assert table(tmp_path / "a")[0]["label"] == "no_tumor"
    assert table(tmp_path / "b")[0]["label"] != "no_tumor"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "x.png"],
        ["run", "nowhere.png", "-o", "OUT"],
        ["run", "EMPTY", "-o", "OUT"],
        ["run", "GOOD", "-o", "GOOD"],
        ["run", "GOOD", "-o", "OUT", "--threshold", "7"],
        ["run", "GOOD", "-o", "OUT", "--overwrite", "--continue"],
        ["run", "GOOD", "-o", "OUT", "-q", "-v"],
        ["run", "GOOD", "-o", "OUT", "--zebra"],
        ["sing"],
        ["train", "classification", "--data", "EMPTY", "--out", "OUT"],
        ["train", "classification", "--data", "nowhere", "--out", "OUT"],
        ["train", "segmentation", "--data", "EMPTY", "--out", "OUT", "--size", "100"],
        ["train", "segmentation", "--data", "EMPTY", "--out", "OUT", "--map", "x"],
        ["train", "classification", "--data", "EMPTY", "--out", "GOOD"],
        ["demo", "--out", "GOOD"],
    ],
)
def test_wrong_use(tumorlens, tmp_path, arguments):
    (tmp_path / "empty").mkdir()
    good = save(tmp_path / "good.png", phantom_slice(1).image)
    places = {"OUT": tmp_path / "out", "EMPTY": tmp_path / "empty", "GOOD": good}
    done = tumorlens(*(places.get(a, a) for a in arguments))
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--device", "cuda:77"], "is not there"),
        (["--device", "toaster"], "is none of"),
        (["--classifier", "nowhere.safetensors"], "no such file"),
    ],
)
def test_models_that_cannot_be_loaded(tmp_path, options, reason):
    good = save(tmp_path / "good.png", phantom_slice(1).image)
    done = CliRunner().invoke(app, ["run", str(good), "-o", str(tmp_path / "out"), *options])
    assert done.exit_code == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_info():
    done = CliRunner().invoke(app, ["info", "--json"])
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["models"]["classification"]["intact"] is facts["models"]["segmentation"]["intact"] is True
    assert "cpu" in facts["devices"]
    text = CliRunner().invoke(app, ["info"]).stdout
    assert facts["models"]["segmentation"]["sha256"] in text
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("tumorlens ")


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


def test_train_from_the_command_line(phantom_set, tmp_path):
    run = tmp_path / "run"
    done = CliRunner().invoke(
        app,
        f"train segmentation --data {phantom_set} --out {run} --init none --size 64 --encoder resnet18 "
        "--epochs 1 --batch-size 8 --device cpu -q".split(),
    )
    assert done.exit_code == 0, done.output
    assert "training 24 slices of 12 patients" in done.stdout
    good = save(tmp_path / "good.png", phantom_slice(7, "meningioma").image)
    mine = run / "segmenter.safetensors"
    done = CliRunner().invoke(
        app, ["run", str(good), "-o", str(tmp_path / "out"), "--segmenter", str(mine), "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
