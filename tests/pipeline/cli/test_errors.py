"""Mistakes of users: one sentence, nothing half-written, the rest of the batch done."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.scans.pictures import save, table
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.outputs.table import error_row, read_table, write_table


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


def test_names_that_are_not_unicode(tumorlens, tmp_path):
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
    assert "not a DICOM, PNG" in second["error"]


def test_a_table_takes_any_text(tmp_path):
    write_table(tmp_path / "results.csv", [error_row("a", "M\udcfcller")])
    assert read_table(tmp_path / "results.csv")[0]["error"] == "M\\udcfcller"


def test_a_result_folder_that_cannot_be_made_costs_one_scan(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sick").write_text("in the way")
    done = tumorlens("run", study / "a" / "sick.png", study / "b" / "twin.png", "-o", out)
    assert done.exit_code == 1
    assert [bool(row["error"]) for row in table(out)] == [True, False]
    assert (out / "sick").read_text() == "in the way"


def test_a_fault_of_ours_costs_one_scan_only(tumorlens, study, tmp_path, monkeypatch):
    import tumorlens.pipeline.measure as module

    real = module.measure_lesions

    def faulty(mask, scan, *rest):
        if scan.path.name == "sick.png":
            raise ZeroDivisionError("secret")
        return real(mask, scan, *rest)

    monkeypatch.setattr(module, "measure_lesions", faulty)
    done = tumorlens("run", study, "-o", tmp_path / "out")
    assert done.exit_code == 1
    rows = {row["scan"]: row for row in table(tmp_path / "out")}
    assert "internal error, please report it (ZeroDivisionError)" in rows["a/sick.png"]["error"]
    assert "secret" not in done.output  # an exception's text may quote a header
    assert rows["volume.nii.gz"]["error"] == ""


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
        ["run", "", "-o", "OUT"],
        ["train", "classification", "--data", "EMPTY", "--out", "OUT", "--init", "nowhere.safetensors"],
        ["train", "segmentation", "--data", "EMPTY", "--out", "OUT", "--encoder", "zebra", "--init", "none"],
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
    ("words", "sentence"),
    [
        ("sing", "no such command 'sing'; see `tumorlens --help`"),
        ("train sing", "no such command 'sing'; see `tumorlens train --help`"),
        ("run", "INPUT is missing; see `tumorlens run --help`"),
        ("run x.png", "-o OUT is missing: the folder for the results"),
        (
            "run --ray x.nii.gz -o out",
            "INPUT is missing; see `tumorlens run --help`, and give --ray last if x.nii.gz is your input",
        ),
        ("run -o out --ray", "INPUT is missing; see `tumorlens run --help`"),
        ("run x.png -o", "option '-o' requires an argument"),
        ("run x.png -o out --xyzzy", "no such option '--xyzzy'; see `tumorlens run --help`"),
        ("run x.png -o out --continu", "no such option '--continu'; did you mean --continue?"),
        ("run x.png -o out --overwrite --continue", "give --overwrite or --continue, not both"),
        (
            "run x.png -o out --no-overlay --pdf",
            "a report shows the overlay; leave out --no-overlay, or --report and --pdf",
        ),
        ("run x.png -o out --jobs many", "--jobs: 'many' is not a whole number; see `tumorlens run --help`"),
        ("run x.png -o out --jobs 0", "--jobs: 0 is not allowed; give at least 1; see `tumorlens run --help`"),
        (
            "run x.png -o out --threshold 7",
            "--threshold: 7 is not allowed; give 0 to 1; see `tumorlens run --help`",
        ),
        (
            "run x.png -o out --threshold nan",
            "--threshold: nan is not allowed; give 0 to 1; see `tumorlens run --help`",
        ),
        (
            "run x.png -o out --plane oblique",
            "--plane: 'oblique' is not one of 'acquisition', 'axial', 'coronal', 'sagittal'; "
            "see `tumorlens run --help`",
        ),
        ("train segmentation -o out", "--data is missing; see `tumorlens train segmentation --help`"),
        (
            "train segmentation --data x -o out --map glioma",
            "--map: 'glioma' is not NAME=CLASS; see `tumorlens train segmentation --help`",
        ),
        (
            "train segmentation --data x -o out --epochs 5 --validate-every 2",
            "--epochs 5 is not a multiple of --validate-every 2",
        ),
        (
            "train classification --data x -o out --split official --out-of-fold cv",
            "--out-of-fold trains on all patients; leave --split official out",
        ),
        (
            "train classification --data x -o out --freeze-stem --init none",
            "--freeze-stem keeps the first weights of these layers; give it some with --init FILE",
        ),
        ("train segmentation --data x -o out --size 100", "--size 100 is not divisible by 32, as the networks need it"),
        (
            "crossval pipeline --data x -o out --folds first",
            "--folds: 'first' is neither all nor numbers such as 0,1; see `tumorlens crossval pipeline --help`",
        ),
        ("data split . --shares 1 2", "option '--shares' requires 3 arguments"),
    ],
)
def test_a_mistake_in_the_command_is_one_sentence(command, words, sentence):
    done = command(*words.split())
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"tumorlens: error: {sentence}\n")


@pytest.mark.parametrize("words", ["", "train", "data"])
def test_a_group_without_a_command_shows_its_help(command, words):
    done = command(*words.split())
    assert done.exit_code == 2
    assert "Commands:" in done.stderr


@pytest.mark.parametrize("name", ["train segmentation", "crossval pipeline", "evaluate classification"])
def test_a_seed_that_no_generator_takes(command, name, tmp_path):
    done = command(*name.split(), "--data", tmp_path, "--out", tmp_path / "out", "--seed", "4294967296")
    assert done.exit_code == 2
    assert done.stderr.startswith("tumorlens: error: --seed: 4294967296 is not allowed; give 0 to 4294967295")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--device", "cuda:77"], "is not there"),
        (["--device", "toaster"], "is not one of"),
        (["--classifier", "nowhere.safetensors"], "no such file"),
    ],
)
def test_models_that_cannot_be_loaded(command, tmp_path, options, reason):
    good = save(tmp_path / "good.png", phantom_slice(1).image)
    done = command("run", good, "-o", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_that_would_take_the_tables_place(tumorlens, tmp_path):
    save(tmp_path / "in" / "results.csv.png", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    name = table(tmp_path / "out")[0]["scan"]
    assert name.startswith("results.csv-") and name.endswith(".png")
    assert (tmp_path / "out" / name.removesuffix(".png") / "mask.png").is_file()
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out", "--overwrite").exit_code == 0


def test_a_missing_file_does_not_get_the_result_of_its_namesake(tumorlens, tmp_path, monkeypatch):
    save(tmp_path / "in" / "a.png", phantom_slice(1, "no_tumor").image)
    monkeypatch.chdir(tmp_path)
    done = tumorlens("run", "in", "a.png", "-o", "out", "--json")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["label"], first["scan"]["name"]) == ("no_tumor", "a.png")
    assert "no such file" in second["error"]
    assert len({row["scan"] for row in table(tmp_path / "out")}) == 2


def test_a_full_disk_stops_the_batch_and_names_the_output(tumorlens, study, tmp_path, monkeypatch):
    import tumorlens.pipeline.outputs.write as module

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_png", full)
    done = tumorlens("run", study, "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert (
        f"{tmp_path / 'out'}: No space left on device; stopped at volume.nii.gz, go on with --continue" in done.stderr
    )


def test_doubtful_pictures_are_flagged_for_review(tumorlens, tmp_path):
    save(tmp_path / "in" / "mask.png", phantom_slice(7, "meningioma").mask * np.uint8(255))
    save(tmp_path / "in" / "tiny.png", np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    mask, tiny = table(tmp_path / "out")
    assert "only two gray levels, perhaps a mask" in mask["review"]
    assert "slices of 2 x 3 pixels are too small to judge" in tiny["review"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tumorlens, tmp_path):
    save(tmp_path / "in" / "a.png", phantom_slice(1, "no_tumor").image)
    os.mkfifo(tmp_path / "in" / "pipe")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    os.mkfifo(tmp_path / "pipe.png")
    done = tumorlens("run", tmp_path / "pipe.png", "-o", tmp_path / "other")
    assert done.exit_code == 1
    assert "pipe.png: this is a pipe, a socket or a device" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["export", "segmentation"], "-o"),
        (["train", "classification", "--data", "x"], "-o"),
        (["crossval", "pipeline", "--data", "x"], "-o"),
        (["evaluate", "pipeline", "--data", "x"], "-o"),
        (["train", "classification", "-o", "x"], "--data"),
        (["run", "x.png", "-o", ""], "the path is empty"),
        (["run", "", "-o", "x"], "an input is empty; name a file or a folder"),
        (["export", "segmentation", "-o", "."], "this is a folder; -o takes the name of a file"),
        (["demo", "--seed", "-1"], "--seed"),
        (
            ["train", "classification", "--data", "x", "-o", "y", "--map", "a=7"],
            "label 'a' is a number, which says nothing of a class",
        ),
        (
            ["train", "classification", "--data", "x", "-o", "y", "--size", "64", "--small-share", "0.5"],
            "--small-size 160 is larger than --size 64; give a smaller one",
        ),
        (["train", "classification", "--data", "nowhere", "-o", "y"], "nowhere: no such data folder"),
        (["train", "segmentation", "--data", "nowhere", "-o", "y"], "nowhere: no such data folder"),
    ],
)
def test_wrong_use_is_one_sentence(command, arguments, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("tumorlens: error: ")
    assert reason in line
    assert not list(tmp_path.iterdir())
