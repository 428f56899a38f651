"""Many scans in one call: shared batches, threads that read ahead, and faults that cost one scan only."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from tests.scans.pictures import save_volume, table
from tumorlens.data.errors import InputError
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch import read_ahead
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_ahead import open_job
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.options import RunOptions

VOLUME = phantom_volume(7, "meningioma", shape=(96, 112, 12), spacing_mm=(2.0, 2.0, 10.0))


@pytest.fixture
def folder(tmp_path):
    """Pictures of all kinds, a volume, and a file that is not a picture."""
    for n, label in enumerate(("meningioma", "no_tumor", "glioma", "pituitary", "no_tumor", "meningioma")):
        write_png(tmp_path / f"{n}.png", phantom_slice(n, label).image)
    save_volume(tmp_path / "volume.nii.gz", VOLUME)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    write_png(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 255, (128, 128)).astype(np.uint8))
    return tmp_path


NAMES = ["0.png", "1.png", "broken.png", "2.png", "3.png", "volume.nii.gz", "4.png", "noise.png", "5.png"]


@pytest.fixture
def jobs(folder):
    return [Job(folder / name, name) for name in NAMES]


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


def test_pictures_that_are_ready_share_a_batch(jobs):
    """The first is waited for; those that were read in the meantime come with it."""
    groups = read_ahead.read_ahead(jobs, 192, RunOptions(), {})
    first = next(groups)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _all_are_read(groups):
        time.sleep(0.01)
    second = next(groups)
    assert len(first) >= 1 and len(second) >= 2
    rest = [reading for group in groups for reading in group]
    assert [reading.job.name for reading in (*first, *second, *rest)] == NAMES


def _all_are_read(groups):
    return all(future.done() for _, future in groups.gi_frame.f_locals["waiting"])


def test_a_batch_holds_no_more_slices_than_it_may(jobs, monkeypatch):
    monkeypatch.setattr(read_ahead, "AT_ONCE", 2)
    for group in read_ahead.read_ahead(jobs, 192, RunOptions(), {}):
        time.sleep(0.05)
        slices = [reading.n_slices for reading in group if reading.error is None]
        assert sum(slices) <= 2 or len(slices) == 1  # a volume comes alone, whatever its size


def test_reading_ahead_stops_where_memory_would_grow(jobs, monkeypatch):
    monkeypatch.setattr(read_ahead, "_BYTES_AHEAD", 1)
    names = []
    real = read_ahead.open_job
    monkeypatch.setattr(read_ahead, "open_job", lambda job, *rest: names.append(job.name) or real(job, *rest))
    groups = read_ahead.read_ahead(jobs, 192, RunOptions(), {})
    taken = len(next(groups))
    time.sleep(0.5)
    assert len(names) <= taken + 3  # one more than two a reader, whatever there would be time for
    groups.close()


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


def test_a_job_with_an_error_of_its_own_is_not_read(tmp_path):
    with pytest.raises(InputError, match="two series"):
        open_job(Job(tmp_path, "a", error="two series"), 192, RunOptions(), {})
