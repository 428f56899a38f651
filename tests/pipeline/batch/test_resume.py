"""The command line, a second time over the same output: what is kept, what is replaced, what is no scan."""

from __future__ import annotations

import json
import zipfile
from pathlib import PurePosixPath

import nibabel as nib
import numpy as np
import pytest

from tests.scans.pictures import save, save_volume, table
from tests.scans.studies import HEALTHY, SICK, series
from tests.scans.volumes import save_nrrd
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch import resume as beside
from tumorlens.pipeline.batch import run as batch
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.names import output_folders
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.options import RunOptions


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
    """Another picture in the same place, another threshold: an earlier result is not theirs."""
    path, out = tmp_path / "1.png", tmp_path / "out"
    sick, healthy = phantom_slice(7, "meningioma").image, phantom_slice(1, "no_tumor").image
    labels = []
    for image, options in ((sick, []), (healthy, []), (sick, ["--threshold", "1"]), (sick, [])):
        save(path, image)
        assert tumorlens("run", path, "-o", out, *options, *(["--continue"] if labels else [])).exit_code == 0
        (row,) = table(out)
        labels.append(row["label"])
    assert labels == ["meningioma", "no_tumor", "no_tumor", "meningioma"]


def test_continue_keeps_another_patients_result_of_the_same_name(tumorlens, tmp_path):
    out = tmp_path / "out"
    sick = save(tmp_path / "p1" / "1.png", phantom_slice(7, "meningioma").image)
    healthy = save(tmp_path / "p2" / "1.png", phantom_slice(1, "no_tumor").image)
    other = save(tmp_path / "x" / "p2" / "1.png", phantom_slice(2, "no_tumor").image)
    assert tumorlens("run", sick, "-o", out).exit_code == 0
    done = tumorlens("run", healthy, "-o", out, "--continue")
    assert f"overlay: {out / 'p2' / '1' / 'overlay.png'}" in done.stdout
    assert tumorlens("run", other, "-o", out, "--continue").exit_code == 0
    rows = {"1.png": "meningioma", "p2/1.png": "no_tumor", "x/p2/1.png": "no_tumor"}
    before = {name: (out / name[:-4] / "result.json").stat().st_mtime_ns for name in rows}
    for path in (healthy, other, sick):
        assert tumorlens("run", path, "-o", out, "--continue").exit_code == 0
        assert {row["scan"]: row["label"] for row in table(out)} == rows
    assert {name: (out / name[:-4] / "result.json").stat().st_mtime_ns for name in rows} == before
    assert str(tmp_path) not in (out / "1" / "result.json").read_text()

    healthy.write_text("broken now")
    assert tumorlens("run", healthy, "-o", out, "--continue").exit_code == 1
    assert {row["scan"]: row["label"] for row in table(out)} == {**rows, "p2/1.png": ""}
    assert not (out / "p2" / "1" / "result.json").exists() and (out / "1" / "result.json").exists()
    sick.rename(tmp_path / "moved.png").rename(save(tmp_path / "p3" / "1.png", phantom_slice(1).image))
    assert tumorlens("run", tmp_path / "p3" / "1.png", "-o", out, "--continue").exit_code == 0
    assert len(table(out)) == 3  # moved, it is the same scan
    assert tumorlens("run", other, "-o", out, "--overwrite").exit_code == 0
    assert [path.parent.name for path in out.rglob("result.json")] == ["1"]


def test_a_missing_scan_does_not_cost_a_row_of_the_same_name(tumorlens, tmp_path, monkeypatch):
    save(tmp_path / "p1" / "1.png", phantom_slice(7, "meningioma").image)
    save(tmp_path / "p2" / "2.png", phantom_slice(1, "no_tumor").image)
    for patient, scans, exit_code in (("p1", ["1.png"], 0), ("p2", ["1.png", "2.png"], 1)):
        monkeypatch.chdir(tmp_path / patient)
        assert tumorlens("run", *scans, "-o", tmp_path / "out", "--continue").exit_code == exit_code
    rows = {row["scan"]: row["label"] for row in table(tmp_path / "out")}
    assert rows == {"1.png": "meningioma", "2.png": "no_tumor", "p2/1.png": ""}


def test_an_archive_that_was_damaged_since_has_one_row(tumorlens, tmp_path):
    """And one of that name that lies elsewhere has its own."""
    image = save(tmp_path / "x.png", phantom_slice(1, "no_tumor").image)
    good = save(tmp_path / "good.png", phantom_slice(1, "no_tumor").image)
    for patient in ("p1", "p2"):
        (tmp_path / patient).mkdir()
        with zipfile.ZipFile(tmp_path / patient / "s.zip", "w") as archive:
            for path in series(tmp_path / "tmp" / patient, HEALTHY, StudyInstanceUID=f"1.{patient[1]}"):
                archive.write(path, path.name)
    scans = (tmp_path / "p1" / "s.zip", image)
    assert tumorlens("run", *scans, "-o", tmp_path / "out").exit_code == 0
    for patient, rows in (("p2", {"s.zip": "no_tumor", "p2/s.zip": ""}), ("p1", {"s.zip": "", "p2/s.zip": ""})):
        (tmp_path / patient / "s.zip").write_bytes(b"PK\x03\x04 broken")
        assert tumorlens("run", tmp_path / patient / "s.zip", good, "-o", tmp_path / "out", "--continue").exit_code == 1
        found = {row["scan"]: row["label"] for row in table(tmp_path / "out") if "s.zip" in row["scan"]}
        assert found == rows


def test_continue_keeps_another_patients_series_in_a_folder_of_the_same_name(tumorlens, tmp_path):
    out = tmp_path / "out"
    for patient, phantom in (("p1", SICK), ("p2", HEALTHY)):
        series(tmp_path / patient / "DICOM", phantom, StudyInstanceUID=f"1.{patient[1]}")
    with zipfile.ZipFile(tmp_path / "DICOM", "w") as archive:  # a zip is known by its content
        for path in series(tmp_path / "tmp", HEALTHY, StudyInstanceUID="1.3", SeriesNumber=9):
            archive.write(path, path.name)
    for _ in range(2):
        for place in (tmp_path / "p1" / "DICOM", tmp_path / "p2" / "DICOM", tmp_path / "DICOM"):
            assert tumorlens("run", place, "-o", out, "--continue").exit_code == 0
        assert [(row["scan"], row["label"]) for row in table(out)] == [
            ("DICOM", "meningioma"),
            ("p2/DICOM", "no_tumor"),
            (f"{tmp_path.name}/DICOM", "no_tumor"),
        ]


def test_overwrite_leaves_nothing_of_the_run_before(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", study / "b", "-o", out).exit_code == 0
    (out / "healthy" / "remark.txt").write_text("the user's own")
    assert tumorlens("run", study / "a", "-o", out, "--overwrite").exit_code == 0
    assert {p.name for p in out.iterdir()} == {"results.csv", "sick", "healthy"}
    assert [p.name for p in (out / "healthy").iterdir()] == ["remark.txt"]


def test_results_are_not_replaced_where_their_table_was_moved_away(tumorlens, tmp_path):
    path, out = save(tmp_path / "x.png", phantom_slice(7, "meningioma").image), tmp_path / "out"
    assert tumorlens("run", path, "-o", out).exit_code == 0
    (out / "results.csv").rename(tmp_path / "mine.csv")
    before = (out / "x" / "result.json").stat().st_mtime_ns
    done = tumorlens("run", path, "-o", out)
    assert done.exit_code == 2 and f"{out / 'x'}: a result is here already; use --continue" in done.stderr
    assert (out / "x" / "result.json").stat().st_mtime_ns == before
    assert tumorlens("run", path, "-o", out, "--continue").exit_code == 0
    assert (out / "x" / "result.json").stat().st_mtime_ns == before and table(out)[0]["label"] == "meningioma"


def test_results_of_other_runs_are_not_scans(tumorlens, tmp_path):
    save(tmp_path / "in" / "1.png", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "in" / "first").exit_code == 0
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "second").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "second")] == ["1.png"]
    assert tumorlens("run", f"{tmp_path}/in/**/*.png", "-o", tmp_path / "third").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "third")] == ["1.png"]


def test_results_inside_the_input_folder_are_not_scans(tumorlens, tmp_path):
    save(tmp_path / "1.png", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out").exit_code == 0
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out", "--overwrite").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["1.png"]


def test_a_failure_leaves_no_result_of_an_earlier_run(tumorlens, tmp_path):
    path = save(tmp_path / "x.png", phantom_slice(7, "meningioma").image)
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    path.write_text("broken now")
    assert tumorlens("run", path, "-o", tmp_path / "out", "--overwrite").exit_code == 1
    assert not (tmp_path / "out" / "x" / "mask.png").exists()


def test_continue_sees_a_change_in_each_file_of_a_volume(tumorlens, tmp_path):
    phantom = phantom_volume(7, "meningioma", shape=(96, 112, 12), spacing_mm=(2, 2, 10))
    for k in range(12):
        (tmp_path / f"s{k:02d}.raw").write_bytes(phantom.image[..., k].astype("<i2").tobytes("F"))
    fields = ("type: short", "dimension: 3", "sizes: 96 112 12", "endian: little", "encoding: raw", "spacings: 2 2 10")
    path = save_nrrd(tmp_path / "a.nhdr", *fields, "data file: s%02d.raw 0 11 1")
    result = tmp_path / "out" / "a" / "result.json"
    times = []
    for change in (False, False, True):
        if change:
            (tmp_path / "s05.raw").write_bytes((tmp_path / "s06.raw").read_bytes())
        assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
        times.append(result.stat().st_mtime_ns)
    assert times[0] == times[1] < times[2]


def test_a_frame_concerns_four_dimensions_only(tumorlens, tmp_path):
    phantom = phantom_volume(7, "meningioma", shape=(96, 112, 12), spacing_mm=(2, 2, 10))
    save_volume(tmp_path / "in" / "three.nii.gz", phantom)
    series = np.stack([phantom.image, phantom.image], axis=3)
    nib.save(nib.Nifti1Image(series, phantom.affine), tmp_path / "in" / "four.nii.gz")
    out = tmp_path / "out"
    assert tumorlens("run", tmp_path / "in", "-o", out).exit_code == 1
    before = (out / "three" / "result.json").stat().st_mtime_ns
    assert tumorlens("run", tmp_path / "in", "-o", out, "--continue", "--frame", "1").exit_code == 0
    assert (out / "three" / "result.json").stat().st_mtime_ns == before


def test_continue_asks_for_another_operating_point(tumorlens, pipeline, tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", phantom_slice(7, "meningioma").image)
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    before = (tmp_path / "out" / "x" / "result.json").stat().st_mtime_ns
    point = {"mask_threshold": 0.99, "min_lesion_px": 60}
    monkeypatch.setitem(pipeline.segmenter.card, "operating_point", point)
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert (tmp_path / "out" / "x" / "result.json").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("stage", "key", "value"),
    [
        ("classifier", "calibration", {"temperature": 3.0}),
        ("classifier", "conformal", {"thresholds": dict.fromkeys(CLASSES, 0.001)}),
        ("classifier", "refusal", {"layer": "layer3", "bias": 0.5, "limit": 9.0}),
        ("classifier", "operating_point", {"tumor_threshold": 0.5}),
        ("classifier", "normalization", {"mean": [0.5] * 3, "std": [0.5] * 3}),
        ("segmenter", "normalization", {"mean": [0.5] * 3, "std": [0.5] * 3}),
    ],
)
def test_continue_asks_for_another_card_of_the_same_weights(
    tumorlens, pipeline, tmp_path, monkeypatch, stage, key, value
):
    path, result = save(tmp_path / "x.png", phantom_slice(1, "no_tumor").image), tmp_path / "out" / "x" / "result.json"
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    before = result.stat().st_mtime_ns
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert result.stat().st_mtime_ns == before
    monkeypatch.setitem(getattr(pipeline, stage).card, key, value)
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert result.stat().st_mtime_ns > before


@pytest.mark.parametrize("option", ["--continue", "--overwrite"])
def test_a_table_that_a_spreadsheet_has_saved(tumorlens, tmp_path, option):
    path = save(tmp_path / "x.png", phantom_slice(1, "no_tumor").image)
    (tmp_path / "out").mkdir()
    text = "scan;label\nmine;glioma\n"
    for content in (text.encode("utf-16"), text.encode()):
        (tmp_path / "out" / "results.csv").write_bytes(content)
        done = tumorlens("run", path, "-o", tmp_path / "out", option)
        assert done.exit_code == 2
        assert "not the table as tumorlens writes it" in done.stderr
        assert (tmp_path / "out" / "results.csv").read_bytes() == content


def test_files_of_the_users_own_are_never_replaced(tumorlens, tmp_path):
    """A mask that was drawn by hand has the name that ours would have, where results go beside their sources."""
    scan = save(tmp_path / "7.png", phantom_slice(7, "meningioma").image)
    drawn = save(tmp_path / "7" / "mask.png", phantom_slice(7, "meningioma").mask)
    before = drawn.read_bytes()
    assert tumorlens("run", scan, "-o", tmp_path).exit_code == 1
    assert "mask.png: tumorlens did not write this file" in table(tmp_path)[0]["error"]
    scan.write_text("broken now")
    assert tumorlens("run", scan, "-o", tmp_path, "--overwrite").exit_code == 1
    assert drawn.read_bytes() == before
    assert [p.name for p in drawn.parent.iterdir()] == ["mask.png"]


def test_what_a_killed_run_left_is_ours(tumorlens, tmp_path):
    scan = save(tmp_path / "7.png", phantom_slice(7, "meningioma").image)
    left = tmp_path / "out" / "7"
    save(left / "mask.png", phantom_slice(7, "meningioma").mask)
    (left / ".part-abc").mkdir()
    assert tumorlens("run", scan, "-o", tmp_path / "out").exit_code == 0
    assert not (left / ".part-abc").exists() and (left / "result.json").is_file()


def test_a_scan_of_the_same_name_has_a_folder_of_its_own(tumorlens, tmp_path):
    out = tmp_path / "out"
    sick = save(tmp_path / "x.png", phantom_slice(7, "meningioma").image)
    healthy = save(tmp_path / "x.jpg", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", sick, "-o", out).exit_code == 0
    for _ in range(2):
        assert tumorlens("run", healthy, "-o", out, "--continue").exit_code == 0
        assert {row["scan"]: row["label"] for row in table(out)} == {"x.png": "meningioma", "x.jpg": "no_tumor"}
        assert (out / "x" / "mask.png").is_file() and (out / "x.jpg" / "mask.png").is_file()
    assert tumorlens("run", sick, "-o", out, "--overwrite").exit_code == 0
    assert {p.name for p in out.iterdir()} == {"results.csv", "x"}


def test_where_every_folder_is_taken_nothing_is_lost(pipeline, study, tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "possible_folders", lambda name: ["x", name])
    theirs = {"x": "x.png", "x.jpg": "x.jpg.tiff"}
    for folder, scan in theirs.items():
        save(tmp_path / folder / "mask.png", phantom_slice(7, "meningioma").mask)
        (tmp_path / folder / "result.json").write_text(json.dumps({"scan": {"name": scan}}))
    report = run_batch(pipeline, [Job(study / "a" / "sick.png", "x.jpg", "x")], tmp_path, resume=True)
    assert report.failed == 1 and "this is the result of another scan" in report.rows[0]["error"]
    assert all((tmp_path / folder / "mask.png").is_file() for folder in theirs)


def test_overwrite_clears_halves_of_results_too(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", study / "b", "-o", out).exit_code == 0
    (out / "healthy" / "mask.png").unlink()
    assert tumorlens("run", study / "a", "-o", out, "--overwrite").exit_code == 0
    assert {p.name for p in out.iterdir()} == {"results.csv", "sick"}


def test_a_run_that_is_killed_leaves_no_rows_without_results(tumorlens, study, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert tumorlens("run", study / "b", "-o", out).exit_code == 0
    seen, real = [], batch.read_ahead
    monkeypatch.setattr(batch, "read_ahead", lambda *a: seen.append((out / "results.csv").exists()) or real(*a))
    assert tumorlens("run", study / "a", "-o", out, "--overwrite").exit_code == 0
    assert seen == [False]


def test_the_output_folder_is_no_scan_that_failed(tumorlens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "1.png", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", "1.png", "-o", "out").exit_code == 0
    assert tumorlens("run", "1.png", "out", "-o", "out", "--continue").exit_code == 0  # what a shell makes of *
    assert [row["scan"] for row in table(tmp_path / "out")] == ["1.png"]


def test_who_stops_an_explained_run_keeps_what_is_written(pipeline, study, tmp_path, monkeypatch):
    jobs = [Job(study / "a" / "sick.png", name, name) for name in ("one", "two", "three")]
    real, calls = type(pipeline).conclude, []

    def conclude(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    monkeypatch.setattr(type(pipeline), "conclude", conclude)
    with pytest.raises(KeyboardInterrupt):
        run_batch(pipeline, jobs, tmp_path / "out", options=RunOptions(explain=True))
    written = {p.parent.name for p in (tmp_path / "out").glob("*/result.json")}
    assert {row["scan"] for row in table(tmp_path / "out")} == written != set()


def test_names_that_a_disk_may_take_for_one_have_folders_of_their_own():
    assert output_folders([PurePosixPath("P1.png"), PurePosixPath("p1.png")]) == ["P1.png", "p1.png.2"]
    assert output_folders([PurePosixPath("P1.png"), PurePosixPath("p1.jpg")]) == ["P1.png", "p1.jpg"]
    assert output_folders([PurePosixPath("a/1.png"), PurePosixPath("a/2.png")]) == ["a/1", "a/2"]
