"""Many scans in one call: shared batches, faults that cost one scan only, and rows for all that is written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.pipeline.batch.conftest import NAMES
from tests.scans.pictures import table
from tumorlens.pipeline.batch import read_ahead
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_ahead import open_job
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.options import RunOptions


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
