"""What counts as a scan in files, folders, links, zips and DICOMDIRs, and that each scan is run once."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path

from pydicom.fileset import FileSet

from tests.pipeline.batch.conftest import names_in
from tests.scans.pictures import table
from tests.scans.studies import HEALTHY, SICK, series


def test_a_scan_that_is_named_twice_is_run_once(tumorlens, listed, tmp_path, monkeypatch):
    for part in ("a", "b", "c"):
        series(tmp_path / "dup" / part, SICK if part == "a" else HEALTHY, StudyInstanceUID="1.4", series="1.4.1")
    places = [tmp_path / "dup", *(tmp_path / "dup" / part for part in ("a", "b", "c"))]
    assert len(names_in(listed(*places, "--frame", 0))) == 1  # one has all files of the others
    monkeypatch.chdir(tmp_path)
    mixed = [tmp_path / "dup" / "a" / "IM0000", "dup/a/IM0001"]
    assert tumorlens("run", *mixed, "--list").exit_code == 0


def test_results_beside_their_source_hide_nothing(tumorlens, listed, tmp_path):
    series(tmp_path / "study" / "s")
    assert tumorlens("run", tmp_path / "study", "-o", tmp_path / "study").exit_code == 0
    assert (tmp_path / "study" / "s" / "mask.dcm").is_file()
    listing = listed(tmp_path / "study")
    assert [(s["modality"], s["n_images"], s["taken"]) for s in listing["series"]] == [("MR", 16, True)]
    assert names_in(listing) == ["s"]


def test_a_zip_that_is_reached_twice_is_run_once(listed, tmp_path):
    for number in (1, 2):
        for path in series(tmp_path / "tmp", SeriesNumber=1, StudyInstanceUID=f"1.{number}"):
            (tmp_path / "up" / "in").mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(tmp_path / "up" / "in" / "two.zip", "a") as archive:
                archive.write(path, f"{number}/{path.name}")
    archive = tmp_path / "up" / "in" / "two.zip"
    names = sorted(names_in(listed(archive, archive)))
    assert names[0] == "two.zip#1" and re.fullmatch("two.zip#1-[0-9a-f]{6}", names[1]) and len(names) == 2
    inputs = (archive, tmp_path / "up" / "in", tmp_path / "up")
    assert names_in(listed(*inputs)) == names_in(listed(*inputs[::-1]))
    assert all(name.startswith("in/two.zip#1") for name in names_in(listed(*inputs)))


def test_a_file_that_may_not_be_read_is_reported(tumorlens, tmp_path, monkeypatch):
    paths = series(tmp_path / "in" / "a")
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != paths[3] and real(p, mode))
    result = tumorlens("run", tmp_path / "in", "--list", "--json")
    assert result.exit_code == 1
    (error,) = json.loads(result.stdout)["errors"]
    assert error["name"] == f"a/{paths[3].name}" and "Permission denied" in error["error"]


def test_linked_folders_are_searched_but_not_in_circles(listed, tmp_path):
    series(tmp_path / "real")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    assert [(s["name"], s["n_images"]) for s in listed(tmp_path / "in")["series"]] == [("link", 16)]


def test_links_that_lead_nowhere_are_reported(tumorlens, tmp_path):
    series(tmp_path / "in")
    for name in ("lost.nii.gz", "round"):
        (tmp_path / "in" / name).symlink_to("round")
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    named = [str(tmp_path / "in" / "round"), str(tmp_path / "lost.png")]
    for pattern in (f"{tmp_path}/l*.png", named[1]):
        result = tumorlens("run", tmp_path / "in", named[0], pattern, "--list", "--json")
        assert result.exit_code == 1 and len(json.loads(result.stdout)["scans"]) == 1
        errors = {error["name"]: error["error"] for error in json.loads(result.stdout)["errors"]}
        assert set(errors) == {"lost.nii.gz", "round", *named}
        assert all("the link leads nowhere" in error for error in errors.values())
    assert tumorlens("run", tmp_path / "in", *named, "-o", tmp_path / "out", "--continue").exit_code == 1
    assert {row["scan"] for row in table(tmp_path / "out") if row["error"]} == set(errors)


def test_a_broken_gzip_in_a_folder_is_not_a_scan(tumorlens, tmp_path):
    series(tmp_path / "in")
    (tmp_path / "in" / "backup.gz").write_bytes(b"\x1f\x8b\x08\x00" + bytes(30) + b"\xff" * 50)
    result = tumorlens("run", tmp_path / "in", "--list", "--json")
    assert result.exit_code == 0 and len(json.loads(result.stdout)["scans"]) == 1


def test_files_named_one_by_one_are_one_series(listed, tmp_path):
    paths = series(tmp_path / "ser")
    assert names_in(listed(*paths)) == ["ser"]
    assert names_in(listed(paths[3])) == [paths[3].name]


def test_a_dicomdir_is_run(listed, tmp_path):
    directory = FileSet()
    for path in series(tmp_path / "in"):
        directory.add(path)
    directory.write(tmp_path / "disk")
    for place in (tmp_path / "disk" / "DICOMDIR", tmp_path / "disk"):
        assert [s["n_images"] for s in listed(place)["series"]] == [16]


def test_results_among_the_inputs_are_left_out(tumorlens, listed, tmp_path):
    series(tmp_path / "in")
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "in" / "out").exit_code == 0
    assert [s["modality"] for s in listed(tmp_path / "in")["series"]] == ["MR"]
