"""What counts as a scan in files, folders, links, zips and DICOMDIRs, and that each scan is run once."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
from pydicom.fileset import FileSet

from tests.pipeline.batch.conftest import names_in
from tests.scans.dicom import edit
from tests.scans.pictures import save, table
from tests.scans.studies import HEALTHY, SICK, series
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.batch.sources import find_sources
from tumorlens.pipeline.batch.stored import read_results


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


def test_a_zip_that_finds_the_disk_full_costs_no_other_scan(tumorlens, tmp_path, monkeypatch):
    save(tmp_path / "small.png", phantom_slice(1, "meningioma").image)
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as archive:
        archive.write(tmp_path / "small.png", "a.png")
    monkeypatch.setattr(shutil, "copyfileobj", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    result = tumorlens("run", tmp_path, "--list", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    (error,) = content["errors"]
    assert error["name"] == "large.zip" and "cannot be unpacked (No space left on device)" in error["error"]
    assert "small.png" in json.dumps(content["scans"])


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


def zipped(paths, archive):
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            file.write(path, f"export/{path.name}")
    return archive


def copied(paths, folder, link=shutil.copy):
    """The files under other names, in another order."""
    folder.mkdir(parents=True)
    for n, path in enumerate(reversed(paths)):
        link(path, folder / f"{n:03d}.dcm")
    return folder


@pytest.mark.parametrize("kind", ["zip", "copy", "hard links", "symbolic links", "DICOMDIR", "both in one folder"])
def test_a_series_that_lies_in_two_places_is_run_once_and_the_other_place_is_named(tumorlens, listed, tmp_path, kind):
    paths = series(tmp_path / "in" / "study", StudyInstanceUID="1.8")
    save(tmp_path / "in" / "x.png", phantom_slice(1, "no_tumor").image)
    inputs, name = [tmp_path / "in"], "export"
    if kind == "zip":
        inputs.append(zipped(paths, tmp_path / "out of the PACS" / "export.zip"))
        name = "export.zip"
    elif kind == "both in one folder":
        zipped(paths, tmp_path / "in" / "zips" / "export.zip")
        name = "zips/export.zip"
    elif kind == "DICOMDIR":
        disk = FileSet()
        for path in paths:
            disk.add(path)
        disk.write(tmp_path / "export")
        inputs.append(tmp_path / "export" / "DICOMDIR")
        name = None  # whatever comes first by its place
    else:
        link = {"copy": shutil.copy, "hard links": os.link, "symbolic links": os.symlink}[kind]
        inputs.append(copied(paths, tmp_path / "export", link))
        name = None
    for order in (inputs, inputs[::-1]):
        listing = listed(*order)
        (scan,) = (scan for scan in listing["scans"] if scan["name"] != "x.png")
        assert name is None or scan["name"] == "study"
        if kind != "symbolic links":  # those are the very same files
            (copy,) = (s for s in listing["series"] if not s["taken"])
            assert copy["why"] == f"the same as {scan['name']}" and copy["name"] == (name or copy["name"])
            assert scan["notes"] == [f"also in {copy['name']}, which is not run twice"]
    if kind == "zip":
        done = tumorlens("run", *inputs, "-o", tmp_path / "out")
        assert done.exit_code == 0 and "study: also in export.zip, which is not run twice" in done.stderr
        assert [row["scan"] for row in table(tmp_path / "out")] == ["x.png", "study"]
        content = json.loads((tmp_path / "out" / "study" / "result.json").read_text())
        assert "also in export.zip, which is not run twice" in content["scan"]["notes"]
        assert str(tmp_path) not in json.dumps(content)


def test_three_copies_are_run_once(listed, tmp_path):
    paths = series(tmp_path / "a" / "s")
    inputs = [tmp_path / "a", copied(paths, tmp_path / "b" / "t"), zipped(paths, tmp_path / "c.zip")]
    (scan,) = listed(*inputs)["scans"]
    assert scan["name"] == "s" and len(scan["notes"]) == 2
    assert scan["notes"] == ["also in t, which is not run twice", "also in c.zip, which is not run twice"]


@pytest.mark.parametrize("change", ["slice", "pixels", "header", "uid", "extra"])
def test_a_series_that_differs_in_anything_is_run(listed, tmp_path, change):
    paths = series(tmp_path / "a", series="1.8.1", StudyInstanceUID="1.8")
    copied(paths, tmp_path / "b")
    files = sorted((tmp_path / "b").iterdir())
    if change == "slice":
        files[4].unlink()
    elif change == "pixels":
        pixels = bytearray(pydicom.dcmread(files[7]).PixelData)
        pixels[2000] ^= 1
        edit(files[7:8], PixelData=bytes(pixels))
    elif change == "header":
        edit(files[2:3], SliceThickness="3.5")
    elif change == "uid":
        edit(files, SeriesInstanceUID="1.8.2")
    else:
        shutil.copy(files[0], tmp_path / "b" / "again.dcm")
    for archive in ([], [zipped((tmp_path / "b").iterdir(), tmp_path / "b.zip")]):
        listing = listed(tmp_path / "a", *(archive or [tmp_path / "b"]))
        assert len(listing["scans"]) == 2 and not any("not run twice" in str(s["notes"]) for s in listing["scans"])


def test_the_same_picture_in_two_places_is_two_scans(tumorlens, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "in" / name / "1.png", phantom_slice(1, "no_tumor").image)
    assert tumorlens("run", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "out")] == ["a/1.png", "b/1.png"]


def test_the_copy_that_was_run_first_has_its_scan_still(tumorlens, tmp_path):
    """A zip was run, later also its folder: reviewers see the slices of both results."""
    paths = series(tmp_path / "in")
    inputs = [zipped(paths, tmp_path / "z.zip"), tmp_path / "in"]
    for place in inputs:
        assert tumorlens("run", place, "-o", tmp_path / "out", "--continue").exit_code == 0
    results = read_results(tmp_path / "out")
    found = find_sources(results, tmp_path / "out", [str(place) for place in inputs], tmp_path / "scratch")
    assert {name: Path(job.shown_path()) for name, job in found.items()} == {
        "z.zip": tmp_path / "z.zip",
        "in": tmp_path / "in",
    }


def test_files_that_are_not_scans_are_left_alone_and_scans_that_cannot_be_read_have_their_rows(tumorlens, tmp_path):
    folder = tmp_path / "in"
    good = save(folder / "good.png", phantom_slice(1, "no_tumor").image)
    for name, content in {
        "README": b"read me",
        "notes.txt": b"NDims of nothing\nBM is no picture",
        "patients.csv": b"scan,age\n1.png,50\n",
        "letter.pdf": b"%PDF-1.7 ...",
        "dataset.json": b'{"labels": {}}',
        "Thumbs.db": bytes(range(256)) * 8,
    }.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "letter.docx", "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    for name in ("weights.h5", "features"):
        with h5py.File(folder / name, "w") as file:
            file["conv1"] = np.zeros((3, 3))
    os.mkfifo(folder / "pipe.png")
    assert tumorlens("run", folder, "-o", tmp_path / "a").exit_code == 0
    assert [row["scan"] for row in table(tmp_path / "a")] == ["good.png"]
    cut = good.read_bytes()[:200]
    (folder / "cut").write_bytes(cut)  # a picture by its content
    (folder / "empty.jpg").touch()  # one by its name
    (folder / "animation.gif").write_bytes(b"GIF89a")
    (folder / "void.zip").touch()
    (folder / "half.mat").write_bytes(b"MATLAB 5.0 MAT-file, Platform: GLNXA64")
    result = tumorlens("run", folder, "-o", tmp_path / "b")
    rows = {row["scan"]: row["error"] for row in table(tmp_path / "b")}
    assert result.exit_code == 1 and set(rows) == {
        *("good.png", "cut", "empty.jpg", "animation.gif", "void.zip", "half.mat")
    }
    assert not rows.pop("good.png") and all(str(folder / name) in error for name, error in rows.items())


def test_files_that_are_left_alone_are_named(tumorlens, tmp_path):
    save(tmp_path / "in" / "a.png", phantom_slice(3, "glioma").image)
    for name in ("notes.txt", "cut.dcm.gz", "IM0001"):
        (tmp_path / "in" / name).write_bytes(b"\0" * 100)
    done = tumorlens("run", tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0
    assert "files that look like no scan were left alone (3): IM0001, cut.dcm.gz, notes.txt" in done.stderr
    assert "left alone" not in tumorlens("run", tmp_path / "in", "-o", tmp_path / "out", "--overwrite", "-q").stderr
