"""`tumorlens run --list`: which series are found, what they are called, which would be run."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path, PurePosixPath

import cv2
import pydicom
import pytest
from pydicom.fileset import FileSet

from tests.scans.dicom import IDENTIFIERS, PATIENT
from tests.scans.pictures import save, table
from tests.scans.studies import HEALTHY, SICK, STUDY, series
from tumorlens.data.phantom import phantom_slice, phantom_volume


def test_a_study_is_listed(tumorlens, hospital):
    result = tumorlens("run", hospital, "--list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    (taken,) = [line for line in lines if line.startswith("*")]
    assert "#5" in taken and "T1 after contrast agent" in taken and "t1 tra km" in taken
    assert "it is a localizer" in result.stdout and "its modality is CT, not MR" in result.stdout
    assert lines[-1] == "1 scan would be run (*)"
    listed = json.loads(tumorlens("run", hospital, "--list", "--json").stdout)
    assert [(s["number"], s["taken"]) for s in listed["series"]] == [(1, False), (3, False), (5, True), (9, False)]
    assert "description" not in listed["series"][0]
    assert not list(hospital.parent.glob("out*"))


@pytest.mark.parametrize("wanted", ["3", "#3", "uid"])
def test_a_series_is_chosen(tumorlens, hospital, tmp_path, wanted):
    if wanted == "uid":
        listed = json.loads(tumorlens("run", hospital, "--list", "--json").stdout)
        wanted = next(s["uid"] for s in listed["series"] if s["number"] == 3)
    assert tumorlens("run", hospital, "-o", tmp_path / "out", "--series", wanted).exit_code == 0
    (row,) = table(tmp_path / "out")
    assert row["scan"] == "study/IMAGES#3"
    assert "names no contrast agent" in row["review"]


def test_all_series_and_what_is_no_series(tumorlens, hospital):
    save(hospital / "study" / "x.png", phantom_slice(1, "no_tumor").image)
    for wanted, scans in (("all", ["study/IMAGES#3", "study/IMAGES#5", "study/x.png"]), ("5", ["study/IMAGES#5"])):
        listed = json.loads(tumorlens("run", hospital, "--list", "--json", "--series", wanted).stdout)
        assert sorted(scan["name"] for scan in listed["scans"]) == scans
    alone = tumorlens("run", hospital / "study" / "x.png", "--list", "--json", "--series", "all")
    assert [scan["name"] for scan in json.loads(alone.stdout)["scans"]] == ["x.png"]


def test_the_list_has_the_names_of_the_table(tumorlens, tmp_path):
    for patient in ("p1", "p2"):
        series(tmp_path / patient / "s", StudyInstanceUID=f"1.{patient[1]}")
    inputs = (tmp_path / "p1", tmp_path / "p2")
    listed = json.loads(tumorlens("run", *inputs, "--list", "--json").stdout)
    text = tumorlens("run", *inputs, "--list").stdout
    assert [s["name"] for s in listed["series"]] == [s["name"] for s in listed["scans"]] == ["p1/s", "p2/s"]
    assert text.count("p1/s") == 1 and text.splitlines()[-1] == "2 scans would be run (*)"
    assert tumorlens("run", *inputs, "-o", tmp_path / "out", "--jobs", 2, "-v").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["p1/s", "p2/s"]


def test_no_two_scans_share_a_name_or_a_folder(tumorlens, tmp_path, monkeypatch):
    for part in ("a", "b", "c"):
        series(tmp_path / "dup" / part, SICK if part == "a" else HEALTHY, StudyInstanceUID="1.4", series="1.4.1")
    places = [tmp_path / "dup", *(tmp_path / "dup" / part for part in ("a", "b", "c"))]
    listed = json.loads(tumorlens("run", *places, "--list", "--json", "--frame", 0).stdout)["scans"]
    assert len({scan["name"] for scan in listed}) == len(listed) == 1  # one has all files of the others
    series(tmp_path / "two", StudyInstanceUID="1.5", SeriesNumber=1)
    for path in series(tmp_path / "tmp", StudyInstanceUID="1.6", SeriesNumber=1):
        path.rename(tmp_path / "two" / f"x{path.name}")
    listed = json.loads(tumorlens("run", tmp_path / "two", "--list", "--json").stdout)["scans"]
    assert sorted(scan["name"] for scan in listed) == ["two#1.1", "two#1.2"]
    monkeypatch.chdir(tmp_path)
    mixed = [tmp_path / "dup" / "a" / "IM0000", "dup/a/IM0001"]
    assert tumorlens("run", *mixed, "--list").exit_code == 0


def test_results_beside_their_source_hide_nothing(tumorlens, tmp_path):
    series(tmp_path / "study" / "s")
    assert tumorlens("run", tmp_path / "study", "-o", tmp_path / "study").exit_code == 0
    assert (tmp_path / "study" / "s" / "mask.dcm").is_file()
    listed = json.loads(tumorlens("run", tmp_path / "study", "--list", "--json").stdout)
    assert [(s["modality"], s["n_images"], s["taken"]) for s in listed["series"]] == [("MR", 16, True)]
    assert [scan["name"] for scan in listed["scans"]] == ["s"]


def test_the_list_says_what_the_headers_rule_out(tumorlens, tmp_path):
    series(tmp_path / "in" / "good", StudyInstanceUID="1.1")
    series(tmp_path / "in" / "nowhere", StudyInstanceUID="1.2", ImagePositionPatient=None)
    for echo in ("10", "80"):
        series(tmp_path / "in" / "echoes" / echo, series="1.3.1", StudyInstanceUID="1.3", EchoTime=echo)
    result = tumorlens("run", tmp_path / "in", "--list")
    assert result.exit_code == 1
    marks = {line.split()[0]: line for line in result.stdout.splitlines()[1:] if line[0] in "*!"}
    assert set(marks) == {"*", "!"} and result.stdout.splitlines()[-1] == "1 scan would be run (*)"
    assert "no Image Position), so they make no volume" in result.stdout
    assert "--frame 0 to 1 (0: echo time 10; 1: echo time 80)" in result.stdout
    assert tumorlens("run", tmp_path / "in" / "echoes", "--list", "--frame", 1).exit_code == 0


def test_files_of_several_studies_in_one_folder_keep_their_names(tumorlens, tmp_path):
    for name in ("one", "two"):
        (path,) = series(
            tmp_path / "tmp", phantom_volume(1, shape=(96, 112, 1)), StudyInstanceUID="1.1" if name == "one" else "1.2"
        )
        path.rename(tmp_path / f"{name}.dcm")
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"{name}.dcm").rename(tmp_path / "in" / f"{name}.dcm")
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)
    assert [scan["name"] for scan in listed["scans"]] == ["one.dcm", "two.dcm"]


def test_equally_fitting_series_are_told(tumorlens, tmp_path):
    for number in (5, 6):
        series(tmp_path / "in" / str(number), SeriesNumber=number)
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)
    assert [s["why"] for s in listed["series"] if s["taken"]] == [
        "#5 was chosen from 2 series: T1 after contrast agent, by the header (#6 fit as well)"
    ]


def test_a_zip_that_is_reached_twice_is_run_once_and_inside_the_output(tumorlens, tmp_path):
    for number in (1, 2):
        for path in series(tmp_path / "tmp", SeriesNumber=1, StudyInstanceUID=f"1.{number}"):
            with zipfile.ZipFile(tmp_path / "two.zip", "a") as archive:
                archive.write(path, f"{number}/{path.name}")
    listed = json.loads(tumorlens("run", tmp_path / "two.zip", tmp_path / "two.zip", "--list", "--json").stdout)
    assert sorted(scan["name"] for scan in listed["scans"]) == ["two.zip#1.1", "two.zip#1.2"]
    from tumorlens.pipeline.batch.inputs import collect

    for name in ("p", "q"):
        series(tmp_path / name / "same" / "s", StudyInstanceUID=f"2.{ord(name)}")
    inputs = [str(tmp_path / "p" / "same"), str(tmp_path / "q" / "same"), str(tmp_path / "two.zip")]
    jobs = collect(inputs, tmp_path / "out", tmp_path / "scratch").jobs
    assert len({job.folder for job in jobs}) == 4
    assert not any(PurePosixPath(job.folder).is_absolute() for job in jobs)


def test_what_may_not_be_read_is_told(tumorlens, tmp_path, monkeypatch):
    paths = series(tmp_path / "in" / "a")
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != paths[3] and real(p, mode))
    listed = tumorlens("run", tmp_path / "in", "--list", "--json")
    assert listed.exit_code == 1
    (error,) = json.loads(listed.stdout)["errors"]
    assert error["name"] == f"a/{paths[3].name}" and "Permission denied" in error["error"]


def test_linked_folders_are_searched_but_not_in_circles(tumorlens, tmp_path):
    series(tmp_path / "real")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)
    assert [(s["name"], s["n_images"]) for s in listed["series"]] == [("link", 16)]


def test_links_that_lead_nowhere_are_told(tumorlens, tmp_path):
    series(tmp_path / "in")
    for name in ("lost.nii.gz", "round"):
        (tmp_path / "in" / name).symlink_to("round")
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    named = [str(tmp_path / "in" / "round"), str(tmp_path / "lost.png")]
    for pattern in (f"{tmp_path}/l*.png", named[1]):
        listed = tumorlens("run", tmp_path / "in", named[0], pattern, "--list", "--json")
        assert listed.exit_code == 1 and len(json.loads(listed.stdout)["scans"]) == 1
        errors = {error["name"]: error["error"] for error in json.loads(listed.stdout)["errors"]}
        assert set(errors) == {"lost.nii.gz", "round", *named}
        assert all("the link leads nowhere" in error for error in errors.values())
    assert tumorlens("run", tmp_path / "in", *named, "-o", tmp_path / "out", "--continue").exit_code == 1
    assert {row["scan"] for row in table(tmp_path / "out") if row["error"]} == set(errors)


def test_a_broken_gzip_in_a_folder_is_no_scan(tumorlens, tmp_path):
    series(tmp_path / "in")
    (tmp_path / "in" / "backup.gz").write_bytes(b"\x1f\x8b\x08\x00" + bytes(30) + b"\xff" * 50)
    listed = tumorlens("run", tmp_path / "in", "--list", "--json")
    assert listed.exit_code == 0 and len(json.loads(listed.stdout)["scans"]) == 1


def test_series_are_named_by_their_folders_and_zips(tumorlens, tmp_path):
    series(tmp_path / "in" / "a", SeriesNumber=2, StudyInstanceUID="1.1")
    series(tmp_path / "in" / "b" / "c", SeriesNumber=2, StudyInstanceUID="1.2")
    for path in series(tmp_path / "tmp", SeriesNumber=4, StudyInstanceUID="1.3"):
        with zipfile.ZipFile(tmp_path / "in" / "z.zip", "a") as archive:
            archive.write(path, f"x/y/{path.name}")
    names = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)["scans"]
    assert [scan["name"] for scan in names] == ["a", "b/c", "z.zip"]
    names = json.loads(tumorlens("run", tmp_path / "in" / "a", "--list", "--json").stdout)["scans"]
    assert [scan["name"] for scan in names] == ["a"]


def test_files_named_one_by_one_are_one_series(tumorlens, tmp_path):
    paths = series(tmp_path / "ser")
    listed = json.loads(tumorlens("run", *paths, "--list", "--json").stdout)
    assert [scan["name"] for scan in listed["scans"]] == ["ser"]
    listed = json.loads(tumorlens("run", paths[3], "--list", "--json").stdout)
    assert [scan["name"] for scan in listed["scans"]] == [paths[3].name]


def test_two_series_of_one_number_have_names_of_their_own(tumorlens, tmp_path):
    series(tmp_path / "in", series="1.9.1", SeriesNumber=4)
    for path in series(tmp_path / "tmp", series="1.9.2", SeriesNumber=4):
        path.rename(tmp_path / "in" / f"x{path.name}")
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json", "--series", "all").stdout)
    assert [scan["name"] for scan in listed["scans"]] == ["in#4.1", "in#4.2"]


def test_a_dicomdir_is_run(tumorlens, tmp_path):
    directory = FileSet()
    for path in series(tmp_path / "in"):
        directory.add(path)
    directory.write(tmp_path / "disk")
    for place in (tmp_path / "disk" / "DICOMDIR", tmp_path / "disk"):
        listed = json.loads(tumorlens("run", place, "--list", "--json").stdout)
        assert [s["n_images"] for s in listed["series"]] == [16]


def test_no_identifier_leaves_the_dicom_files(tumorlens, tmp_path, monkeypatch):
    drawn = []
    real = cv2.putText
    monkeypatch.setattr(cv2, "putText", lambda *a, **k: (drawn.append(a[1]), real(*a, **k))[1])
    series(tmp_path / "in", SeriesDescription="t1 +c of Doe Jane", BodyPartExamined="KNEE")
    (tmp_path / "in" / "broken.dcm").write_bytes((tmp_path / "in" / "IM0000").read_bytes()[:900])
    out = tmp_path / "out"
    listed = tumorlens("run", tmp_path / "in", "--list")
    result = tumorlens("run", tmp_path / "in", "-o", out, "-v", "--secondary-capture")
    told = [listed.output, result.output, " ".join(p.name for p in out.rglob("*"))]
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            told.append(raw.decode("latin-1"))
    assert len(told) >= 7 and len(drawn) > 5
    told.append(" ".join(drawn))
    for word in IDENTIFIERS:
        assert not any(word in text for text in told), word
    for name in ("mask.dcm", "measurements.dcm", "overlay.dcm"):
        made = pydicom.dcmread(out / "in" / name)
        assert made.PatientID == PATIENT["PatientID"] and str(made.PatientName) == PATIENT["PatientName"]
        assert made.StudyInstanceUID == STUDY
        assert "PatientComments" not in made and "ImageComments" not in made


def test_results_among_the_inputs_are_left_out(tumorlens, tmp_path):
    series(tmp_path / "in")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "in" / "out").exit_code == 0
    listed = json.loads(tumorlens("run", tmp_path / "in", "--list", "--json").stdout)
    assert [s["modality"] for s in listed["series"]] == ["MR"]
