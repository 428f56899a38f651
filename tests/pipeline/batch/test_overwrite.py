"""What a second call with the same output folder replaces, and what it leaves alone because it is yours."""

from __future__ import annotations

import os

import pytest

from tests.pipeline.batch.results import HEALTHY_PICTURE, SICK_PICTURE
from tests.scans.pictures import save, table
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.batch import run


def test_overwrite_leaves_nothing_of_the_run_before(tumorlens, pictures, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", pictures / "b", "-o", out).exit_code == 0
    (out / "healthy" / "remark.txt").write_text("a remark of mine")
    assert tumorlens("run", pictures / "a", "-o", out, "--overwrite").exit_code == 0
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


def test_a_failure_leaves_no_result_of_an_earlier_run(tumorlens, tmp_path):
    path = save(tmp_path / "x.png", SICK_PICTURE)
    assert tumorlens("run", path, "-o", tmp_path / "out").exit_code == 0
    path.write_text("broken now")
    assert tumorlens("run", path, "-o", tmp_path / "out", "--overwrite").exit_code == 1
    assert not (tmp_path / "out" / "x" / "mask.png").exists()


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


def test_overwrite_clears_halves_of_results_too(tumorlens, pictures, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", pictures / "b", "-o", out).exit_code == 0
    (out / "healthy" / "mask.png").unlink()
    assert tumorlens("run", pictures / "a", "-o", out, "--overwrite").exit_code == 0
    assert {p.name for p in out.iterdir()} == {"results.csv", "sick"}


def test_a_run_that_is_killed_leaves_no_rows_without_results(tumorlens, pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert tumorlens("run", pictures / "b", "-o", out).exit_code == 0
    table_exists, real = [], run.read_jobs
    monkeypatch.setattr(run, "read_jobs", lambda *a: table_exists.append((out / "results.csv").exists()) or real(*a))
    assert tumorlens("run", pictures / "a", "-o", out, "--overwrite").exit_code == 0
    assert table_exists == [False]


def test_continue_after_an_overwrite_that_was_killed_while_it_deleted(tumorlens, pictures, tmp_path):
    """The files of a result that were not yet deleted are not taken for the user's own."""
    out = tmp_path / "out"
    assert tumorlens("run", pictures, "-o", out).exit_code == 0
    (out / "a" / "sick" / "result.json").unlink()
    (out / "a" / "sick" / ".part-abcdefgh").mkdir()
    os.utime(out / "a" / "sick" / ".part-abcdefgh", (1, 1))
    for option in ("--continue", "--overwrite"):
        done = tumorlens("run", pictures, "-o", out, option)
        assert done.exit_code == 0, done.output
        assert len(table(out)) == 3 and not list(out.rglob(".*"))
