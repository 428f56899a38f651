"""`tumorlens run --list`: the series in the inputs, their names, and which of them would be run."""

from __future__ import annotations

import gzip
import re
import zipfile

import pydicom
import pytest

import tumorlens.pipeline.outputs.text as letters
from tests.pipeline.batch.conftest import names_in
from tests.scans.dicom import IDENTIFIERS, PATIENT
from tests.scans.pictures import save, table
from tests.scans.studies import STUDY, series
from tumorlens.data.phantom import phantom_slice, phantom_volume


def test_a_study_is_listed(tumorlens, listed, hospital):
    result = tumorlens("run", hospital, "--list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    (chosen,) = [line for line in lines if line.startswith("*")]
    assert "#5" in chosen and "T1 after contrast agent" in chosen and "t1 tra km" in chosen
    assert "it is a localizer" in result.stdout and "its modality is CT, not MR" in result.stdout
    assert lines[-1] == "1 scan would be run (*)"
    all_series = listed(hospital)["series"]
    assert [(s["number"], s["taken"]) for s in all_series] == [(1, False), (3, False), (5, True), (9, False)]
    assert "description" not in all_series[0]
    assert not list(hospital.parent.glob("out*"))


@pytest.mark.parametrize("name", ["3", "#3", "uid"])
def test_a_series_is_chosen(tumorlens, listed, hospital, tmp_path, name):
    if name == "uid":
        name = next(s["uid"] for s in listed(hospital)["series"] if s["number"] == 3)
    assert tumorlens("run", hospital, "-o", tmp_path / "out", "--series", name).exit_code == 0
    (row,) = table(tmp_path / "out")
    assert row["scan"] == "study/IMAGES#3"
    assert "names no contrast agent" in row["review"]


def test_all_series_and_scans_that_are_not_series(listed, hospital):
    save(hospital / "study" / "x.png", phantom_slice(1, "no_tumor").image)
    for name, scans in (("all", ["study/IMAGES#3", "study/IMAGES#5", "study/x.png"]), ("5", ["study/IMAGES#5"])):
        assert sorted(names_in(listed(hospital, "--series", name))) == scans
    assert names_in(listed(hospital / "study" / "x.png", "--series", "all")) == ["x.png"]


def test_the_list_has_the_names_of_the_table(tumorlens, listed, tmp_path):
    for patient in ("p1", "p2"):
        series(tmp_path / patient / "s", StudyInstanceUID=f"1.{patient[1]}")
    inputs = (tmp_path / "p1", tmp_path / "p2")
    names = names_in(listed(*inputs))
    assert names[0] == "s" and re.fullmatch("s-[0-9a-f]{6}", names[1])
    assert [s["name"] for s in listed(*inputs)["series"]] == names
    text = tumorlens("run", *inputs, "--list").stdout
    assert text.count(names[1]) == 1 and text.splitlines()[-1] == "2 scans would be run (*)"
    assert tumorlens("run", *inputs, "-o", tmp_path / "out", "--jobs", 2, "-v").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == names


def test_series_of_one_number_in_one_folder_have_names_of_their_own(listed, tmp_path):
    series(tmp_path / "two", StudyInstanceUID="1.5", SeriesNumber=1)
    for path in series(tmp_path / "tmp", StudyInstanceUID="1.6", SeriesNumber=1):
        path.rename(tmp_path / "two" / f"x{path.name}")
    first, second = sorted(names_in(listed(tmp_path / "two")))
    assert first == "two#1" and re.fullmatch("two#1-[0-9a-f]{6}", second)


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


def test_files_of_several_studies_in_one_folder_keep_their_names(listed, tmp_path):
    for name in ("one", "two"):
        (path,) = series(
            tmp_path / "tmp", phantom_volume(1, shape=(96, 112, 1)), StudyInstanceUID="1.1" if name == "one" else "1.2"
        )
        path.rename(tmp_path / f"{name}.dcm")
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"{name}.dcm").rename(tmp_path / "in" / f"{name}.dcm")
    assert names_in(listed(tmp_path / "in")) == ["one.dcm", "two.dcm"]


def test_series_that_fit_equally_well_are_reported(listed, tmp_path):
    for number in (5, 6):
        series(tmp_path / "in" / str(number), SeriesNumber=number)
    assert [s["why"] for s in listed(tmp_path / "in")["series"] if s["taken"]] == [
        "#5 was chosen from 2 series: T1 after contrast agent, by the header (#6 fit as well)"
    ]


def test_series_are_named_by_their_folders_and_zips(listed, tmp_path):
    series(tmp_path / "in" / "a", SeriesNumber=2, StudyInstanceUID="1.1")
    series(tmp_path / "in" / "b" / "c", SeriesNumber=2, StudyInstanceUID="1.2")
    for path in series(tmp_path / "tmp", SeriesNumber=4, StudyInstanceUID="1.3"):
        with zipfile.ZipFile(tmp_path / "in" / "z.zip", "a") as archive:
            archive.write(path, f"x/y/{path.name}")
    assert names_in(listed(tmp_path / "in")) == ["a", "b/c", "z.zip"]
    assert names_in(listed(tmp_path / "in" / "a")) == ["a"]


def test_no_identifier_leaves_the_dicom_files(tumorlens, tmp_path, monkeypatch):
    drawn = []
    real = letters._letters
    monkeypatch.setattr(letters, "_letters", lambda line, *rest: (drawn.append(line), real(line, *rest))[1])
    series(tmp_path / "in", SeriesDescription="t1 +c of Doe Jane", BodyPartExamined="KNEE")
    (tmp_path / "in" / "broken.dcm").write_bytes((tmp_path / "in" / "IM0000").read_bytes()[:900])
    out = tmp_path / "out"
    listing = tumorlens("run", tmp_path / "in", "--list")
    result = tumorlens("run", tmp_path / "in", "-o", out, "-v", "--secondary-capture", "--report")
    texts = [listing.output, result.output, " ".join(p.name for p in out.rglob("*"))]
    for path in out.rglob("*"):
        if path.is_file() and path.suffix != ".dcm":
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            # Three letters in a row mean nothing in a picture as base64.
            texts.append(re.sub(r"base64,[^\"]*", "", raw.decode("latin-1")))
    assert len(texts) >= 9 and (out / "in" / "report.html").is_file() and len(drawn) > 5
    texts.append(" ".join(drawn))
    for word in IDENTIFIERS:
        assert not any(word in text for text in texts), word
    for name in ("mask.dcm", "measurements.dcm", "overlay.dcm"):
        made = pydicom.dcmread(out / "in" / name)
        assert made.PatientID == PATIENT["PatientID"] and str(made.PatientName) == PATIENT["PatientName"]
        assert made.StudyInstanceUID == STUDY
        assert "PatientComments" not in made and "ImageComments" not in made
