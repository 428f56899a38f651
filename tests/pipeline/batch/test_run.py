"""Many scans in one call: shared batches, faults that cost one scan only, and rows for all that is written."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace

import pytest

from tests.pipeline.batch.conftest import NAMES
from tests.scans.pictures import save, table
from tumorlens.data.errors import InputError
from tumorlens.data.locks import sole_writer
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline import read_ahead
from tumorlens.pipeline.batch import run as module
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_jobs import open_job
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.table import read_table
from tumorlens.pipeline.pipeline import Pipeline


class CountingNetwork:
    """Stage one's network, which writes down how many slices it sees at once."""

    def __init__(self, network):
        self.network, self.batches = network, []

    def __call__(self, images_nhw):
        self.batches.append(len(images_nhw))
        return self.network(images_nhw)

    def __getattr__(self, name):
        return getattr(self.network, name)


def check_batch_against_single_runs(pipeline, jobs, out):
    """Run the jobs in one call, and compare the result of each with its result alone."""
    network = CountingNetwork(pipeline.classifier.network)
    counting = replace(pipeline, classifier=replace(pipeline.classifier, network=network))
    contents = {}
    report = run_batch(counting, jobs, out, done=lambda job, row, content: contents.update({job.name: content}))
    assert [row["scan"] for row in report.rows] == NAMES
    errors = {row["scan"]: row["error"] for row in report.rows if row["error"]}
    assert report.failed == 1 and "broken.png" in errors["broken.png"]
    assert contents.pop("broken.png") == {}
    for job in jobs:
        if job.name not in contents:
            continue
        alone, together = pipeline.run(job.path).to_dict(), contents[job.name]
        assert together["label"] == alone["label"]
        if alone["tumor_area_px"]:
            assert together["tumor_area_px"] == pytest.approx(alone["tumor_area_px"], abs=2)
        for name, p in (alone["probabilities"] or {}).items():
            assert together["probabilities"][name] == pytest.approx(p, abs=1e-4)
        steps = {"read", "preprocess", "classify", "segment", "postprocess", "write"}
        assert set(together["timings_s"]) >= steps - ({"segment"} if alone["label"] == "refused" else set())
    slices = [open_job(job, 192, RunOptions(), {}).n_slices for job in jobs if job.name in contents]
    assert sum(network.batches) == sum(slices)
    return {name: content["label"] for name, content in contents.items()}


def test_a_batch_gives_each_scan_the_result_that_it_has_alone(pipeline, jobs, tmp_path):
    labels = check_batch_against_single_runs(pipeline, jobs, tmp_path / "out")
    assert {labels["0.png"], labels["5.png"], labels["volume.nii.gz"]} == {"meningioma"}
    assert {labels["1.png"], labels["4.png"]} == {"no_tumor"}


@pytest.mark.slow
def test_a_batch_of_the_shipped_networks_gives_each_scan_the_result_that_it_has_alone(shipped, jobs, tmp_path):
    assert check_batch_against_single_runs(shipped, jobs, tmp_path / "out")["noise.png"] == "refused"


def test_a_fault_in_a_batch_costs_one_scan(pipeline, jobs, tmp_path, monkeypatch):
    """Whatever the networks stumble over, the other scans have results."""
    real = type(pipeline).decide

    def decide(self, cases, *options):
        if any(case.scan.path is not None and case.scan.path.name == "3.png" for case in cases):
            raise RuntimeError("no such kernel")
        return real(self, cases, *options)

    monkeypatch.setattr(type(pipeline), "decide", decide)
    report = run_batch(pipeline, jobs, tmp_path / "out")
    errors = {row["scan"]: row["error"] for row in report.rows if row["error"]}
    assert set(errors) == {"3.png", "broken.png"}
    assert "internal error" in errors["3.png"] and "RuntimeError" in errors["3.png"]


def test_a_file_that_vanishes_has_a_row_with_its_error(pipeline, jobs, folder, tmp_path):
    report = run_batch(pipeline, [*jobs, Job(folder / "gone.png", "gone.png")], tmp_path / "out")
    assert "gone.png" in next(row["error"] for row in report.rows if row["scan"] == "gone.png")


def test_an_explanation_in_a_batch(pipeline, jobs, tmp_path):
    report = run_batch(pipeline, [jobs[0], jobs[2], jobs[1]], tmp_path / "out", options=RunOptions(explain=True))
    assert [bool(row["error"]) for row in report.rows] == [False, True, False]
    assert (tmp_path / "out" / "0" / "explanation.png").is_file()


def test_a_run_that_is_stopped_has_a_row_for_every_result_that_is_written(pipeline, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(read_ahead, "AT_ONCE", 1)
    real, calls = type(pipeline).decide, []

    def decide(self, cases, *options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, cases, *options)

    monkeypatch.setattr(type(pipeline), "decide", decide)
    for options in (RunOptions(), RunOptions(explain=True)):
        calls.clear()
        out = tmp_path / f"explain_{options.explain}"
        with pytest.raises(KeyboardInterrupt):
            run_batch(pipeline, jobs, out, options=options)
        written = {p.parent.name for p in out.glob("*/result.json")}
        assert {row["scan"].split(".")[0] for row in table(out) if not row["error"]} == written != set()


def test_a_second_run_that_is_stopped_keeps_the_rows_of_the_first(pipeline, jobs, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    run_batch(pipeline, jobs, tmp_path)
    rows = table(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_batch(pipeline, jobs, tmp_path, resume=True, done=stop)
    assert sorted(table(tmp_path), key=lambda row: row["scan"]) == sorted(rows, key=lambda row: row["scan"])


def test_every_row_is_on_the_disk_at_once(pipeline, jobs, tmp_path):
    """Also one that replaces the row of an earlier call, and after a row that a killed run left half-written."""
    out, seen = tmp_path / "out", []

    def done(job, row, content):
        seen.append(row in table(out))

    run_batch(pipeline, jobs, out, done=done)
    text = (out / "results.csv").read_bytes()
    (out / "results.csv").write_bytes(text[: len(text) - 9])
    run_batch(pipeline, jobs[::-1], out, resume=True, done=done, options=RunOptions(explain=True))
    assert seen == [True] * 2 * len(jobs)
    assert [row["scan"] for row in table(out)] == NAMES[::-1]


def test_a_run_that_goes_on_lists_no_kept_scan_twice(pipeline, jobs, tmp_path):
    """Also while it runs, for it may be killed."""
    run_batch(pipeline, jobs, tmp_path)
    counts = []
    run_batch(pipeline, jobs, tmp_path, resume=True, done=lambda *_: counts.append(len(table(tmp_path))))
    assert counts == [len(jobs)] * len(jobs)


def test_half_a_first_row_of_a_killed_run_goes(pipeline, jobs, tmp_path):
    run_batch(pipeline, jobs[:1], tmp_path)
    text = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv").write_bytes(text[: len(text) - 9])
    tables = []
    run_batch(pipeline, jobs[1:2], tmp_path, resume=True, done=lambda *_: tables.append(table(tmp_path)))
    assert [[row["scan"] for row in rows] for rows in tables] == [["1.png"]]


def test_leftovers_of_a_killed_run_go_at_the_start(pipeline, jobs, tmp_path):
    """Also those of a scan that is in the table, and not among the inputs now."""
    run_batch(pipeline, jobs[:2], tmp_path)
    left = [tmp_path / ".part-abcdefg0.csv", tmp_path / "0" / ".part-abcdefg1.json", tmp_path / "1" / ".part-abcdefg2"]
    for path in left[:2]:
        path.write_text("half")
    left[2].mkdir()
    (left[2] / "mask.png").write_text("half")
    (tmp_path / "1" / "result.json").unlink()
    yours = tmp_path / "2" / "deep" / ".part-abcdefg4.csv"  # not in a folder of a result
    yours.parent.mkdir(parents=True)
    yours.write_text("yours")
    for path in (*left, yours):
        os.utime(path, (1, 1))
    run_batch(pipeline, jobs[:1], tmp_path, resume=True)
    assert not any(path.exists() for path in left) and yours.exists()
    assert not list((tmp_path / "1").iterdir())
    assert run_batch(pipeline, jobs[:2], tmp_path, resume=True).failed == 0


def test_a_run_into_a_folder_that_another_run_writes_to_changes_nothing(pipeline, jobs, tmp_path):
    from threading import Thread

    errors = []

    def second():
        for resume in (False, True):
            try:
                run_batch(pipeline, jobs[1:2], tmp_path, resume=resume)
            except InputError as error:
                errors.append(str(error))

    run_batch(pipeline, jobs[:1], tmp_path)
    before = (tmp_path / "results.csv").read_bytes(), (tmp_path / "0" / "result.json").stat().st_mtime_ns
    with sole_writer(tmp_path):
        thread = Thread(target=second)
        thread.start()
        thread.join()
        assert len(errors) == 2 and all(f"{tmp_path}: another run (process {os.getpid()})" in text for text in errors)
        assert before == ((tmp_path / "results.csv").read_bytes(), (tmp_path / "0" / "result.json").stat().st_mtime_ns)
        run_batch(pipeline, jobs[:1], tmp_path, resume=True)  # it is this thread's own
    assert {path.name for path in tmp_path.iterdir()} == {"0", "results.csv"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_table_that_cannot_grow_stops_the_run(pipeline, jobs, tmp_path, monkeypatch, number):
    real, rows = module.append_row, []

    def append(path, row):
        rows.append(row)
        if len(rows) == 3:
            raise OSError(number, os.strerror(number))
        real(path, row)

    def write(*_):
        raise OSError(number, os.strerror(number))

    def done(job, *_):
        if job.name == "0.png":  # the first row makes the table
            monkeypatch.setattr(module, "write_table", write)

    monkeypatch.setattr(module, "append_row", append)
    with pytest.raises(InputError, match=f"^{tmp_path}: {os.strerror(number)}; stopped at 2.png, go on"):
        run_batch(pipeline, jobs, tmp_path, done=done)
    assert [row["scan"] for row in table(tmp_path)][:3] == NAMES[:3]
    monkeypatch.undo()
    report = run_batch(pipeline, jobs, tmp_path, resume=True)
    assert [row["scan"] for row in report.rows] == NAMES and report.kept >= 3


def test_a_row_is_there_before_the_next_scan_is_decided(pipeline, tmp_path, monkeypatch):
    pictures = [save(tmp_path / f"{n}.png", phantom_slice(n, "glioma").image) for n in range(3)]
    seen, decide = [], Pipeline.decide

    def slow(self, cases, *rest):
        deadline = time.monotonic() + 20
        while len(seen) > len(read_table(tmp_path / "out" / "results.csv")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(read_table(tmp_path / "out" / "results.csv")) == len(seen)
        seen.extend(cases)
        return decide(self, cases, *rest)

    monkeypatch.setattr(Pipeline, "decide", slow)
    monkeypatch.setattr("tumorlens.pipeline.read_ahead.AT_ONCE", 1)
    report = run_batch(pipeline, [Job(path, path.name) for path in pictures], tmp_path / "out")
    assert (len(report.rows), report.failed) == (3, 0)
