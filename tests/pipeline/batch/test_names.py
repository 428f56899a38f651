"""The one rule for names: the path below the input, and digits of the place's hash where another scan has it."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.pipeline.batch.results import HEALTHY_PICTURE, digits
from tests.scans.pictures import save, table
from tests.scans.studies import series
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.batch.job import Job, folder_of
from tumorlens.pipeline.batch.names import name_jobs


def names_of(*jobs):
    return [job.name for job in name_jobs(jobs)]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("a/1.png", "a/1"),
        ("a/t1.nii.gz", "a/t1"),
        ("z.zip/x/1.PNG", "z.zip/x/1"),
        ("z.zip", "z"),
        ("study.v2#5", "study.v2#5"),
        ("IM0001", "IM0001"),
        (".png", ".png"),
        ("/etc/passwd.png", "etc/passwd"),
        ("../../x.png", "x"),
    ],
)
def test_the_output_folder_is_the_name_without_its_extension_and_inside_the_output(name, folder):
    assert folder_of(name) == folder


def test_a_scan_keeps_its_path_below_the_input_as_its_name():
    assert names_of(Job(Path("/p/a/1.png"), "a/1.png"), Job(Path("/p/a/2.png"), "a/2.png")) == ["a/1.png", "a/2.png"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("/p1/t1.nii.gz", "/p2/t1.nii.gz", "t1-{}.nii.gz"),
        ("/p/twin.bmp", "/p/twin.png", "twin-{}.png"),
        ("/p/P1.png", "/p/p1.png", "p1-{}.png"),
        ("/p/a", "/p/a.png", "a-{}.png"),
    ],
)
def test_of_two_scans_with_one_folder_the_later_gets_digits_of_its_place(first, second, expected):
    jobs = [Job(Path(path), Path(path).name) for path in (first, second)]
    assert names_of(*jobs) == [Path(first).name, expected.format(digits(second))]
    assert names_of(*jobs[::-1]) == names_of(*jobs)[::-1]
    assert len({job.folder.casefold() for job in name_jobs(jobs)}) == 2


def test_the_digits_are_those_of_the_place_in_the_result(pipeline, tmp_path):
    """So that a person can tell whose result `1-3f2a91` is."""
    from tumorlens.pipeline.batch.run import run_batch

    for patient in ("p1", "p2"):
        save(tmp_path / patient / "1.png", HEALTHY_PICTURE)
    work = collect([str(tmp_path / "p1"), str(tmp_path / "p2")], tmp_path / "out", tmp_path)
    run_batch(pipeline, work.jobs, tmp_path / "out")
    (folder,) = (tmp_path / "out").glob("1-*")
    assert json.loads((folder / "result.json").read_text())["place_sha256"][:6] == folder.name[2:]


def test_names_do_not_depend_on_the_order_of_the_inputs(tmp_path):
    inputs = [str(save(tmp_path / patient / "1.png", HEALTHY_PICTURE)) for patient in ("p1", "p2", "p3")]
    inputs += [str(tmp_path / "p3"), str(tmp_path), str(tmp_path / "gone" / "1.png")]
    names = []
    for order in itertools.permutations(inputs):
        jobs = collect(order, tmp_path / "out", tmp_path / "scratch").jobs
        names.append({job.place: job.name for job in jobs})
    assert all(each == names[0] for each in names)
    assert sorted(names[0].values())[1:] == ["p1/1.png", "p2/1.png", "p3/1.png"]  # the missing one has its whole path


def test_scans_come_in_the_order_of_the_inputs(tmp_path):
    inputs = [str(save(tmp_path / path, HEALTHY_PICTURE)) for path in ("b/c/2.png", "1.png", "a/3.png")]
    assert [job.name for job in collect(inputs, tmp_path / "out", tmp_path).jobs] == ["2.png", "1.png", "3.png"]


def test_the_table_keeps_its_name():
    one, two = Path("/p/results.csv.png"), Path("/p/Results.CSV/1.png")
    assert names_of(Job(one, "results.csv.png")) == [f"results.csv-{digits(one)}.png"]
    assert names_of(Job(two, "Results.CSV/1.png")) == [f"Results.CSV-{digits(two)}/1.png"]
    for name in ("/results.csv/1.png", "../results.csv/1.png"):  # inputs that are missing have the path that you typed
        (job,) = name_jobs([Job(Path(name), name, error="no such file")])
        assert job.folder == f"results.csv-{digits(name)}/1"


def test_an_input_that_cannot_be_run_takes_no_name_from_a_scan():
    scan, missing = Job(Path("/z/a.png"), "a.png"), Job(Path("/b/a.png"), "a.png", error="no such file")
    assert names_of(missing, scan) == [f"a-{digits(missing.path)}.png", "a.png"]


def test_digits_that_are_taken_are_followed_by_others():
    """Two scans that lie in one place cannot come from the command, but must not share a folder either."""
    jobs = [Job(Path("/p/1.png"), "1.png") for _ in range(4)]
    names = names_of(*jobs)
    assert len(set(names)) == 4 and names[:2] == ["1.png", f"1-{digits('/p/1.png')}.png"]


def test_names_are_printable():
    (job,) = name_jobs([Job(Path("/p/M\udcfcller.png"), "M\udcfcller.png")])
    assert (job.name, job.folder) == ("M\\udcfcller.png", "M\\udcfcller")
    twin = Job(Path("/p/M\\udcfcller.jpg"), "M\\udcfcller.jpg")  # prints the same
    assert len({job.folder for job in name_jobs([job, twin])}) == 2


def test_series_of_one_folder_have_numbers_and_single_files_their_names(tmp_path):
    for number, slices in ((4, 16), (5, 16), (None, 16), (7, 1)):
        for k, path in enumerate(series(tmp_path / "tmp", SeriesNumber=number, series=f"1.9.{number or 1}")):
            (tmp_path / "in" / "s").mkdir(parents=True, exist_ok=True)
            if k < slices:
                path.rename(tmp_path / "in" / "s" / f"{number}_{k}")
    work = collect([str(tmp_path / "in")], tmp_path / "out", tmp_path, ["all", "4", "5", "7", "1.9.1"])
    assert [job.name for job in work.jobs] == ["s#4", "s#5", "s/7_0", "s"]
    assert [name for name, _ in work.candidates] == [job.name for job in work.jobs]


def test_series_of_one_number_have_the_same_names_whichever_is_chosen(tmp_path):
    for uid in ("1.9.1", "1.9.2"):
        for path in series(tmp_path / "tmp", series=uid, SeriesNumber=4, StudyInstanceUID="1.9"):
            (tmp_path / "in").mkdir(exist_ok=True)
            path.rename(tmp_path / "in" / f"{uid}_{path.name}")
    names = {}
    for uid in ("1.9.1", "1.9.2", "all"):
        for job in collect([str(tmp_path / "in")], tmp_path / "out", tmp_path, [uid]).jobs:
            assert names.setdefault(job.uid, job.name) == job.name
    first, second = names["1.9.1"], names["1.9.2"]
    assert first == "in#4" and second.startswith("in#4-") and len(second) == len("in#4-3f2a91")


def test_the_command_says_which_scan_a_changed_name_stands_for(tumorlens, tmp_path, caplog):
    paths = [save(tmp_path / patient / "1.png", HEALTHY_PICTURE) for patient in ("p1", "p2")]
    assert tumorlens("run", *paths, "-o", tmp_path / "out").exit_code == 0
    name = f"1-{digits(paths[1])}.png"
    assert [row["scan"] for row in table(tmp_path / "out")] == ["1.png", name]
    assert f"{name}: the name of {paths[1]}, because another scan has the folder 1" in caplog.messages
    assert f"*  {name}  {paths[1]}" in tumorlens("run", *paths, "--list").stdout.splitlines()
    listed = json.loads(tumorlens("run", *paths, "--list", "--json").stdout)["scans"]
    assert [scan["path"] for scan in listed] == [str(path) for path in paths]


def test_no_output_folder_leaves_the_output(tmp_path):
    for name in ("p", "q"):
        series(tmp_path / name / "same" / "s", StudyInstanceUID=f"2.{ord(name)}")
    inputs = [str(tmp_path / "p" / "same"), str(tmp_path / "q" / "same"), str(tmp_path / "gone.png")]
    jobs = collect(inputs, tmp_path / "out", tmp_path / "scratch").jobs
    assert len({job.folder for job in jobs}) == 3
    assert not any(PurePosixPath(job.folder).is_absolute() or ".." in PurePosixPath(job.folder).parts for job in jobs)


def test_line_ends_in_names_leave_each_scan_its_one_line(tumorlens, tmp_path):
    folder = tmp_path / "in\n"
    for name in ("a\nb.png", "a\\nb.png", "fo\rld\ner/\x1bc.png"):
        save(folder / name, HEALTHY_PICTURE)
    (folder / "cut\n.png").write_bytes((folder / "a\nb.png").read_bytes()[:300])
    (folder / "bad\n.zip").write_bytes(b"PK\x03\x04")
    with zipfile.ZipFile(folder / "good\n.zip", "w") as archive:
        archive.write(folder / "a\nb.png", "in\n.png")
        archive.write(folder / "cut\n.png", "cut\n.png")
    (folder / "notes\n.txt").touch()
    (folder / "no\nwhere.png").symlink_to("no\nfile")
    series(folder / "dic\nom")
    done = tumorlens("run", folder, "-o", tmp_path / "out", "--report")
    lines = (tmp_path / "out" / "results.csv").read_text(encoding="utf-8").splitlines()
    rows = table(tmp_path / "out")
    assert done.exit_code == 1 and len(lines) == len(rows) + 1 == 10
    names = {row["scan"] for row in rows}
    assert {"cut\\n.png", "good\\n.zip/in\\n.png", "fo\\rld\\ner/\\x1bc.png", "dic\\nom"} < names
    assert len([name for name in names if name.startswith("a\\nb")]) == 2
    errors = {row["scan"]: row["error"] for row in rows if row["error"]}
    assert set(errors) == {"cut\\n.png", "bad\\n.zip", "good\\n.zip/cut\\n.png", "no\\nwhere.png"}
    shown = str(folder).replace("\n", "\\n")
    assert all(error.count(shown) == 1 and error.startswith(f"{shown}/{name}: ") for name, error in errors.items())
    assert "left alone (1): notes\\n.txt\n" in done.output
    assert all(line.startswith("tumorlens: ") for line in done.stderr.splitlines() if "error" in line)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "good\\n.zip/in\\n.png</a></th>" in page
