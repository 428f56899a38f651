"""A second call with the same output folder: the results that are kept, replaced, or left out of the inputs."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.scans.pictures import save, save_volume, table
from tests.scans.studies import HEALTHY, SICK, series
from tests.scans.volumes import save_nrrd
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch import run
from tumorlens.pipeline.batch.job import Job, place_of
from tumorlens.pipeline.batch.run import run_batch

SICK_PICTURE = phantom_slice(7, "meningioma").image
HEALTHY_PICTURE = phantom_slice(1, "no_tumor").image
OTHER_PICTURE = phantom_slice(2, "no_tumor").image
VOLUME = phantom_volume(7, "meningioma", shape=(96, 112, 12), spacing_mm=(2, 2, 10))


@pytest.fixture
def study(tmp_path):
    """Pictures in two folders."""
    save(tmp_path / "study" / "a" / "sick.png", SICK_PICTURE)
    save(tmp_path / "study" / "b" / "healthy.jpg", HEALTHY_PICTURE)
    save(tmp_path / "study" / "b" / "twin.png", HEALTHY_PICTURE)
    return tmp_path / "study"


def labels_in(out):
    return {row["scan"]: row["label"] for row in table(out)}


def digits(path):
    return place_of(Job(path, ""))[:6]


def time_of(result):
    return (result / "result.json").stat().st_mtime_ns


def test_continue_keeps_finished_results(tumorlens, study, tmp_path):
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


def test_continue_runs_a_scan_again_if_its_content_or_the_settings_changed(tumorlens, tmp_path):
    path, out = tmp_path / "1.png", tmp_path / "out"
    labels = []
    for image, options in (
        (SICK_PICTURE, []),
        (HEALTHY_PICTURE, []),
        (SICK_PICTURE, ["--threshold", "1"]),
        (SICK_PICTURE, []),
    ):
        save(path, image)
        assert tumorlens("run", path, "-o", out, *options, *(["--continue"] if labels else [])).exit_code == 0
        (row,) = table(out)
        labels.append(row["label"])
    assert labels == ["meningioma", "no_tumor", "no_tumor", "meningioma"]


def test_continue_keeps_another_patients_result_of_the_same_name(tumorlens, tmp_path):
    out = tmp_path / "out"
    sick = save(tmp_path / "p1" / "1.png", SICK_PICTURE)
    healthy = save(tmp_path / "p2" / "1.png", HEALTHY_PICTURE)
    other = save(tmp_path / "x" / "p2" / "1.png", OTHER_PICTURE)
    second, third = f"1-{digits(healthy)}", f"1-{digits(other)}"
    assert tumorlens("run", sick, "-o", out).exit_code == 0
    done = tumorlens("run", healthy, "-o", out, "--continue")
    assert f"overlay: {out / second / 'overlay.png'}" in done.stdout
    assert tumorlens("run", other, "-o", out, "--continue").exit_code == 0
    labels = {"1.png": "meningioma", f"{second}.png": "no_tumor", f"{third}.png": "no_tumor"}
    times = {name: time_of(out / name[:-4]) for name in labels}
    for path in (healthy, other, sick):
        assert tumorlens("run", path, "-o", out, "--continue").exit_code == 0
        assert labels_in(out) == labels
    assert tumorlens("run", other, sick, healthy, "-o", out, "--continue").exit_code == 0
    assert labels_in(out) == labels
    assert {name: time_of(out / name[:-4]) for name in labels} == times
    assert str(tmp_path) not in (out / "1" / "result.json").read_text()

    healthy.write_text("broken now")
    assert tumorlens("run", healthy, "-o", out, "--continue").exit_code == 1
    assert labels_in(out) == {**labels, f"{second}.png": ""}
    assert not (out / second / "result.json").exists() and (out / "1" / "result.json").exists()
    (tmp_path / "p3").mkdir()
    moved = sick.rename(tmp_path / "p3" / "1.png")
    assert tumorlens("run", moved, "-o", out, "--continue").exit_code == 0
    assert len(table(out)) == 3  # it is the same scan after it was moved
    assert tumorlens("run", other, "-o", out, "--overwrite").exit_code == 0
    assert [path.parent.name for path in out.rglob("result.json")] == ["1"]


def test_a_scan_keeps_its_name_where_an_earlier_one_failed(tumorlens, tmp_path):
    """The first of two scans of one name is broken, so that it has no result, only its name."""
    out = tmp_path / "out"
    broken, healthy = tmp_path / "p1" / "1.png", save(tmp_path / "p2" / "1.png", HEALTHY_PICTURE)
    broken.parent.mkdir()
    broken.write_text("broken")
    assert tumorlens("run", broken, healthy, "-o", out).exit_code == 1
    name = f"1-{digits(healthy)}"
    before = time_of(out / name)
    assert tumorlens("run", healthy, "-o", out, "--continue").exit_code == 0
    assert labels_in(out) == {"1.png": "", f"{name}.png": "no_tumor"} and time_of(out / name) == before


def test_a_missing_scan_does_not_cost_a_row_of_the_same_name(tumorlens, tmp_path, monkeypatch):
    save(tmp_path / "p1" / "1.png", SICK_PICTURE)
    save(tmp_path / "p2" / "2.png", HEALTHY_PICTURE)
    for patient, scans, exit_code in (("p1", ["1.png"], 0), ("p2", ["1.png", "2.png"], 1)):
        monkeypatch.chdir(tmp_path / patient)
        assert tumorlens("run", *scans, "-o", tmp_path / "out", "--continue").exit_code == exit_code
    missing = f"1-{digits(tmp_path / 'p2' / '1.png')}.png"
    assert labels_in(tmp_path / "out") == {"1.png": "meningioma", "2.png": "no_tumor", missing: ""}


def test_an_archive_that_was_damaged_since_has_one_row(tumorlens, tmp_path):
    """And an archive of that name that lies elsewhere has its own."""
    image = save(tmp_path / "x.png", HEALTHY_PICTURE)
    good = save(tmp_path / "good.png", HEALTHY_PICTURE)
    for patient in ("p1", "p2"):
        (tmp_path / patient).mkdir()
        with zipfile.ZipFile(tmp_path / patient / "s.zip", "w") as archive:
            for path in series(tmp_path / "tmp" / patient, HEALTHY, StudyInstanceUID=f"1.{patient[1]}"):
                archive.write(path, path.name)
    assert tumorlens("run", tmp_path / "p1" / "s.zip", image, "-o", tmp_path / "out").exit_code == 0
    other = f"s-{digits(tmp_path / 'p2' / 's.zip')}.zip"
    for patient, labels in (("p2", {"s.zip": "no_tumor", other: ""}), ("p1", {"s.zip": "", other: ""})):
        (tmp_path / patient / "s.zip").write_bytes(b"PK\x03\x04 broken")
        assert tumorlens("run", tmp_path / patient / "s.zip", good, "-o", tmp_path / "out", "--continue").exit_code == 1
        assert {name: label for name, label in labels_in(tmp_path / "out").items() if ".zip" in name} == labels


def test_continue_keeps_another_patients_series_in_a_folder_of_the_same_name(tumorlens, tmp_path):
    out = tmp_path / "out"
    for patient, phantom in (("p1", SICK), ("p2", HEALTHY)):
        series(tmp_path / patient / "DICOM", phantom, StudyInstanceUID=f"1.{patient[1]}")
    with zipfile.ZipFile(tmp_path / "DICOM", "w") as archive:  # a zip is known by its content
        for path in series(tmp_path / "tmp", HEALTHY, StudyInstanceUID="1.3", SeriesNumber=9):
            archive.write(path, path.name)
    tables = []
    for _ in range(2):
        for place in (tmp_path / "p1" / "DICOM", tmp_path / "p2" / "DICOM", tmp_path / "DICOM"):
            assert tumorlens("run", place, "-o", out, "--continue").exit_code == 0
        tables.append(labels_in(out))
    assert list(tables[0].values()) == ["meningioma", "no_tumor", "no_tumor"]
    assert next(iter(tables[0])) == "DICOM" and tables[0] == tables[1]


def test_continue_keeps_the_result_of_another_series_with_the_same_number(tumorlens, tmp_path):
    """Series are found in the order of their UIDs: one that is added later may come first."""
    out = tmp_path / "out"
    series(tmp_path / "in", SICK, series="1.9.5", SeriesNumber=4, StudyInstanceUID="1.9")
    assert tumorlens("run", tmp_path / "in", "-o", out, "--series", "1.9.5").exit_code == 0
    for path in series(tmp_path / "tmp", HEALTHY, series="1.9.1", SeriesNumber=4, StudyInstanceUID="1.9"):
        path.rename(tmp_path / "in" / f"x{path.name}")
    for uid in ("1.9.5", "1.9.1", "1.9.5"):
        assert tumorlens("run", tmp_path / "in", "-o", out, "--continue", "--series", uid).exit_code == 0
    assert sorted(labels_in(out).values()) == ["meningioma", "meningioma", "no_tumor"]
    assert {path.parent.name[:5] for path in out.rglob("result.json")} == {"in", "in#4", "in#4-"}


def test_a_scan_whose_name_differs_in_letter_case_has_a_folder_of_its_own(tumorlens, tmp_path):
    """Many disks take P1 for p1."""
    first, second = save(tmp_path / "a" / "P1.png", SICK_PICTURE), save(tmp_path / "b" / "p1.png", HEALTHY_PICTURE)
    for path in (first, second, second):
        assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert labels_in(tmp_path / "out") == {"P1.png": "meningioma", f"p1-{digits(second)}.png": "no_tumor"}


def test_overwrite_leaves_nothing_of_the_run_before(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", study / "b", "-o", out).exit_code == 0
    (out / "healthy" / "remark.txt").write_text("a remark of mine")
    assert tumorlens("run", study / "a", "-o", out, "--overwrite").exit_code == 0
    assert {p.name for p in out.iterdir()} == {"results.csv", "sick", "healthy"}
    assert [p.name for p in (out / "healthy").iterdir()] == ["remark.txt"]


def test_results_are_not_replaced_where_their_table_was_moved_away(tumorlens, tmp_path):
    path, out = save(tmp_path / "x.png", SICK_PICTURE), tmp_path / "out"
    assert tumorlens("run", path, "-o", out).exit_code == 0
    (out / "results.csv").rename(tmp_path / "mine.csv")
    before = (out / "x" / "result.json").stat().st_mtime_ns
    done = tumorlens("run", path, "-o", out)
    assert done.exit_code == 2 and f"{out / 'x'}: results are here already; use --continue" in done.stderr
    assert (out / "x" / "result.json").stat().st_mtime_ns == before
    assert tumorlens("run", path, "-o", out, "--continue").exit_code == 0
    assert (out / "x" / "result.json").stat().st_mtime_ns == before and table(out)[0]["label"] == "meningioma"


def test_results_of_other_runs_are_not_scans(tumorlens, tmp_path):
    save(tmp_path / "in" / "1.png", HEALTHY_PICTURE)
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "in" / "first").exit_code == 0
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "second").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "second")] == ["1.png"]
    assert tumorlens("run", f"{tmp_path}/in/**/*.png", "-o", tmp_path / "third").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "third")] == ["1.png"]


def test_results_inside_the_input_folder_are_not_scans(tumorlens, tmp_path):
    save(tmp_path / "1.png", HEALTHY_PICTURE)
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out").exit_code == 0
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out", "--overwrite").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["1.png"]


def test_a_failure_leaves_no_result_of_an_earlier_run(tumorlens, tmp_path):
    path = save(tmp_path / "x.png", SICK_PICTURE)
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    path.write_text("broken now")
    assert tumorlens("run", path, "-o", tmp_path / "out", "--overwrite").exit_code == 1
    assert not (tmp_path / "out" / "x" / "mask.png").exists()


def test_continue_sees_a_change_in_each_file_of_a_volume(tumorlens, tmp_path):
    for k in range(12):
        (tmp_path / f"s{k:02d}.raw").write_bytes(VOLUME.image[..., k].astype("<i2").tobytes("F"))
    fields = ("type: short", "dimension: 3", "sizes: 96 112 12", "endian: little", "encoding: raw", "spacings: 2 2 10")
    path = save_nrrd(tmp_path / "a.nhdr", *fields, "data file: s%02d.raw 0 11 1")
    times = []
    for change in (False, False, True):
        if change:
            (tmp_path / "s05.raw").write_bytes((tmp_path / "s06.raw").read_bytes())
        assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
        times.append(time_of(tmp_path / "out" / "a"))
    assert times[0] == times[1] < times[2]


def test_a_frame_matters_to_four_dimensions_only(tumorlens, tmp_path):
    save_volume(tmp_path / "in" / "three.nii.gz", VOLUME)
    frames = np.stack([VOLUME.image, VOLUME.image], axis=3)
    nib.save(nib.Nifti1Image(frames, VOLUME.affine), tmp_path / "in" / "four.nii.gz")
    out = tmp_path / "out"
    assert tumorlens("run", tmp_path / "in", "-o", out).exit_code == 1
    before = time_of(out / "three")
    assert tumorlens("run", tmp_path / "in", "-o", out, "--continue", "--frame", "1").exit_code == 0
    assert time_of(out / "three") == before


def test_continue_runs_again_with_another_operating_point(tumorlens, pipeline, tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", SICK_PICTURE)
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
def test_continue_runs_again_with_another_card_of_the_same_weights(
    tumorlens, pipeline, tmp_path, monkeypatch, stage, key, value
):
    path, result = save(tmp_path / "x.png", HEALTHY_PICTURE), tmp_path / "out" / "x" / "result.json"
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    before = result.stat().st_mtime_ns
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert result.stat().st_mtime_ns == before
    monkeypatch.setitem(getattr(pipeline, stage).card, key, value)
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue").exit_code == 0
    assert result.stat().st_mtime_ns > before


def test_continue_keeps_a_result_that_holds_more_than_is_asked_for(tumorlens, tmp_path):
    path, result = save(tmp_path / "x.png", SICK_PICTURE), tmp_path / "out" / "x"
    extras = ["--explain", "--maps", "--secondary-capture"]
    assert tumorlens("run", path, "-o", tmp_path / "out", *extras[:2]).exit_code == 0
    before = time_of(result)
    for fewer in ([], ["--report"], ["--explain"], ["--maps"]):
        assert tumorlens("run", path, "-o", tmp_path / "out", "--continue", *fewer).exit_code == 0
        assert time_of(result) == before
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue", "--no-overlay").exit_code == 0
    assert time_of(result) == before
    assert (result / "explanation.png").is_file() and (result / "probability.png").is_file()
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue", *extras).exit_code == 0
    assert time_of(result) > before  # there was no secondary capture
    before = time_of(result)
    assert tumorlens("run", path, "-o", tmp_path / "out", "--continue", "--keep-identifiers").exit_code == 0
    assert time_of(result) > before


def test_continue_adds_overlays_that_were_left_out(tumorlens, tmp_path):
    path, result = save(tmp_path / "x.png", SICK_PICTURE), tmp_path / "out" / "x"
    done = tumorlens("run", path, "-o", tmp_path / "out", "--no-overlay")
    assert done.exit_code == 0 and "overlay:" not in done.stdout
    assert sorted(p.name for p in result.iterdir()) == ["mask.png", "result.json"]
    assert tumorlens("run", tmp_path, "-o", tmp_path / "out", "--continue").exit_code == 0  # its files are no scans
    assert sorted(p.name for p in result.iterdir()) == ["mask.png", "overlay.png", "result.json"]
    assert [row["scan"] for row in table(tmp_path / "out")] == ["x.png"]


@pytest.mark.parametrize("option", ["--continue", "--overwrite"])
def test_a_table_that_a_spreadsheet_has_saved(tumorlens, tmp_path, option):
    path = save(tmp_path / "x.png", HEALTHY_PICTURE)
    (tmp_path / "out").mkdir()
    text = "scan;label\nmine;glioma\n"
    for content in (text.encode("utf-16"), text.encode()):
        (tmp_path / "out" / "results.csv").write_bytes(content)
        done = tumorlens("run", path, "-o", tmp_path / "out", option)
        assert done.exit_code == 2
        assert "not the table as tumorlens writes it" in done.stderr
        assert (tmp_path / "out" / "results.csv").read_bytes() == content


def test_your_own_files_are_never_replaced(tumorlens, tmp_path):
    """Where results go beside their sources, a mask that you drew has the name of ours."""
    scan = save(tmp_path / "7.png", SICK_PICTURE)
    drawn = save(tmp_path / "7" / "mask.png", phantom_slice(7, "meningioma").mask)
    before = drawn.read_bytes()
    assert tumorlens("run", scan, "-o", tmp_path).exit_code == 1
    assert "mask.png: tumorlens did not write this file" in table(tmp_path)[0]["error"]
    scan.write_text("broken now")
    assert tumorlens("run", scan, "-o", tmp_path, "--overwrite").exit_code == 1
    assert drawn.read_bytes() == before
    assert [p.name for p in drawn.parent.iterdir()] == ["mask.png"]


def test_the_leftovers_of_a_killed_run_are_ours(tumorlens, tmp_path):
    scan = save(tmp_path / "7.png", SICK_PICTURE)
    left = tmp_path / "out" / "7"
    save(left / "mask.png", phantom_slice(7, "meningioma").mask)
    (left / ".part-abc").mkdir()
    assert tumorlens("run", scan, "-o", tmp_path / "out").exit_code == 0
    assert not (left / ".part-abc").exists() and (left / "result.json").is_file()


def test_a_scan_whose_name_differs_in_the_extension_has_a_folder_of_its_own(tumorlens, tmp_path):
    out = tmp_path / "out"
    sick, healthy = save(tmp_path / "x.png", SICK_PICTURE), save(tmp_path / "x.jpg", HEALTHY_PICTURE)
    assert tumorlens("run", sick, "-o", out).exit_code == 0
    name = f"x-{digits(healthy)}"
    for _ in range(2):
        assert tumorlens("run", healthy, "-o", out, "--continue").exit_code == 0
        assert labels_in(out) == {"x.png": "meningioma", f"{name}.jpg": "no_tumor"}
        assert (out / "x" / "mask.png").is_file() and (out / name / "mask.png").is_file()
    assert tumorlens("run", sick, "-o", out, "--overwrite").exit_code == 0
    assert {p.name for p in out.iterdir()} == {"results.csv", "x"}


def test_results_of_others_in_every_expected_folder_are_left_alone(pipeline, study, tmp_path):
    job = Job(study / "a" / "sick.png", "x.png")
    others = {"x": "x.jpg", f"x-{digits(job.path)}": "x.tiff"}
    for folder, scan in others.items():
        save(tmp_path / folder / "mask.png", phantom_slice(7, "meningioma").mask)
        (tmp_path / folder / "result.json").write_text(json.dumps({"scan": {"name": scan}}))
    report = run_batch(pipeline, [job], tmp_path, resume=True)
    (name,) = (row["scan"] for row in report.rows)
    assert report.failed == 0 and name.startswith("x-") and Path(name).stem not in others
    for folder, scan in others.items():
        assert json.loads((tmp_path / folder / "result.json").read_text()) == {"scan": {"name": scan}}


def test_overwrite_clears_halves_of_results_too(tumorlens, study, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", study / "b", "-o", out).exit_code == 0
    (out / "healthy" / "mask.png").unlink()
    assert tumorlens("run", study / "a", "-o", out, "--overwrite").exit_code == 0
    assert {p.name for p in out.iterdir()} == {"results.csv", "sick"}


def test_a_run_that_is_killed_leaves_no_rows_without_results(tumorlens, study, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert tumorlens("run", study / "b", "-o", out).exit_code == 0
    table_exists, real = [], run.read_jobs
    monkeypatch.setattr(run, "read_jobs", lambda *a: table_exists.append((out / "results.csv").exists()) or real(*a))
    assert tumorlens("run", study / "a", "-o", out, "--overwrite").exit_code == 0
    assert table_exists == [False]


def test_the_output_folder_is_not_a_scan_that_failed(tumorlens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "1.png", HEALTHY_PICTURE)
    assert tumorlens("run", "1.png", "-o", "out").exit_code == 0
    assert tumorlens("run", "1.png", "out", "-o", "out", "--continue").exit_code == 0  # as a shell expands *
    assert [row["scan"] for row in table(tmp_path / "out")] == ["1.png"]


@pytest.mark.parametrize("file", ["mask.png", "overlay.png", "result.json"])
def test_a_file_that_a_power_failure_has_emptied_is_made_again(tumorlens, tmp_path, file):
    path, out = save(tmp_path / "x.png", SICK_PICTURE), tmp_path / "out"
    assert tumorlens("run", path, "-o", out).exit_code == 0
    (out / "x" / file).write_bytes(b"")
    assert tumorlens("run", path, "-o", out, "--continue").exit_code == 0
    assert (out / "x" / file).stat().st_size > 100


def test_continue_after_an_overwrite_that_was_killed_while_it_deleted(tumorlens, study, tmp_path):
    """The files of a result that were not yet deleted are not taken for the user's own."""
    out = tmp_path / "out"
    assert tumorlens("run", study, "-o", out).exit_code == 0
    (out / "a" / "sick" / "result.json").unlink()
    (out / "a" / "sick" / ".part-abcdefgh").mkdir()
    os.utime(out / "a" / "sick" / ".part-abcdefgh", (1, 1))
    for option in ("--continue", "--overwrite"):
        done = tumorlens("run", study, "-o", out, option)
        assert done.exit_code == 0, done.output
        assert len(table(out)) == 3 and not list(out.rglob(".*"))


DAMAGES = {
    "no label": lambda content: content.pop("label"),
    "a text for a number": lambda content: content.update(confidence="0.9"),
    "a list of lists": lambda content: content.update(review=[["a"], ["b"]]),
    "a text for a table": lambda content: content.update(probabilities="high"),
    "no volume": lambda content: content.pop("tumor_volume_mm3"),
    "files that are numbers": lambda content: content.update(files=[1, 2]),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "nested too deep"])
def test_a_result_that_somebody_has_edited_is_made_again(tumorlens, tmp_path, damage):
    save(tmp_path / "sick.png", SICK_PICTURE)
    out, path = tmp_path / "out", tmp_path / "out" / "sick" / "result.json"
    assert tumorlens("run", tmp_path / "sick.png", "-o", out).exit_code == 0
    expected = table(out)
    if damage in DAMAGES:
        content = json.loads(path.read_text())
        DAMAGES[damage](content)
        path.write_text(json.dumps(content))
    else:
        path.write_text("[" * 100_000)
    done = tumorlens("run", tmp_path / "sick.png", "-o", out, "--continue")
    assert (done.exit_code, table(out)) == (0, expected), done.output
    assert json.loads(path.read_text())["label"] == "meningioma"
