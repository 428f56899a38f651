"""Scans of one name that share an output folder over several calls: each keeps its own name and result."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from tests.pipeline.batch.results import HEALTHY_PICTURE, OTHER_PICTURE, SICK_PICTURE, digits, labels_in, time_of
from tests.scans.pictures import save, table
from tests.scans.studies import HEALTHY, SICK, series
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.run import run_batch


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


def test_results_of_others_in_every_expected_folder_are_left_alone(pipeline, pictures, tmp_path):
    job = Job(pictures / "a" / "sick.png", "x.png")
    others = {"x": "x.jpg", f"x-{digits(job.path)}": "x.tiff"}
    for folder, scan in others.items():
        save(tmp_path / folder / "mask.png", phantom_slice(7, "meningioma").mask)
        (tmp_path / folder / "result.json").write_text(json.dumps({"scan": {"name": scan}}))
    report = run_batch(pipeline, [job], tmp_path, resume=True)
    (name,) = (row["scan"] for row in report.rows)
    assert report.failed == 0 and name.startswith("x-") and Path(name).stem not in others
    for folder, scan in others.items():
        assert json.loads((tmp_path / folder / "result.json").read_text()) == {"scan": {"name": scan}}
