"""Many scans in one call: common batches, threads that read ahead, faults that stay with their scan."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.scans.pictures import save_volume
from tumorlens.data.errors import InputError
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch import read_ahead as module
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.options import RunOptions


@pytest.fixture
def folder(tmp_path):
    """Pictures of all kinds, a volume, a file that is no picture."""
    for n, label in enumerate(("meningioma", "no_tumor", "glioma", "pituitary", "no_tumor", "meningioma")):
        write_png(tmp_path / f"{n}.png", phantom_slice(n, label).image)
    save_volume(tmp_path / "volume.nii.gz", phantom_volume(7, "meningioma"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    write_png(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 255, (128, 128)).astype(np.uint8))
    return tmp_path


def jobs_of(folder):
    names = ["0.png", "1.png", "broken.png", "2.png", "3.png", "volume.nii.gz", "4.png", "noise.png", "5.png"]
    return [Job(folder / name, name.split(".")[0], name.split(".")[0]) for name in names]


class Counted:
    """A network that tells how many slices it saw at once."""

    def __init__(self, network):
        self.network, self.batches = network, []

    def __call__(self, images_nhw):
        self.batches.append(len(images_nhw))
        return self.network(images_nhw)

    def __getattr__(self, name):
        return getattr(self.network, name)


def test_a_batch_says_what_each_scan_alone_says(pipeline, folder, tmp_path):
    counted = Counted(pipeline.classifier.network)
    busy = replace(pipeline, classifier=replace(pipeline.classifier, network=counted))
    contents = {}
    report = run_batch(
        busy, jobs_of(folder), tmp_path / "out", done=lambda job, row, said: contents.update({job.name: said})
    )
    assert [row["scan"] for row in report.rows] == [job.name for job in jobs_of(folder)]
    assert report.failed == 1 and "broken.png" in next(row["error"] for row in report.rows if row["scan"] == "broken")
    for job in jobs_of(folder):
        if job.name == "broken":
            assert contents[job.name] == {}
            continue
        alone = pipeline.run(job.path).to_dict()
        together = contents[job.name]
        assert together["label"] == alone["label"]
        assert (
            together["tumor_area_px"] == pytest.approx(alone["tumor_area_px"], abs=2)
            if alone["tumor_area_px"]
            else True
        )
        for name, p in (alone["probabilities"] or {}).items():
            assert together["probabilities"][name] == pytest.approx(p, abs=1e-4)
        assert set(together["timings_s"]) >= {"read", "preprocess", "classify", "segment", "postprocess", "write"} - (
            {"segment"} if alone["label"] == "refused" else set()
        )
    assert sum(counted.batches) == sum(
        int(pipeline_case(job).used.sum()) for job in jobs_of(folder) if job.name != "broken"
    )


def pipeline_case(job):
    return module._open(job, 192, RunOptions(), {}).case


def test_pictures_that_are_ready_share_a_batch(pipeline, folder):
    """The first is waited for; what was read in the meantime comes with it."""
    groups = module.read_ahead(jobs_of(folder), 192, RunOptions(), {})
    first = next(groups)
    deadline = time.monotonic() + 60
    while threading.active_count() and time.monotonic() < deadline and not _all_read(groups):
        time.sleep(0.05)
    second = next(groups)
    assert len(first) >= 1 and len(second) >= 2
    rest = [reading for group in groups for reading in group]
    assert [job.name for job, _ in (*first, *second, *rest)] == [job.name for job in jobs_of(folder)]


def _all_read(groups):
    return all(reading.done() for _, reading in groups.gi_frame.f_locals["waiting"])


def test_a_common_batch_holds_no_more_slices_than_it_may(folder, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)
    for group in module.read_ahead(jobs_of(folder), 192, RunOptions(), {}):
        time.sleep(0.05)
        slices = [int(r.result().case.used.sum()) for _, r in group if r.exception() is None]
        assert sum(slices) <= 2 or len(slices) == 1  # a volume comes alone, whatever its size


def test_reading_ahead_stops_where_memory_would_grow(folder, monkeypatch):
    monkeypatch.setattr(module, "_BUDGET", 1)
    seen = []
    real = module._open
    monkeypatch.setattr(module, "_open", lambda job, *rest: seen.append(job.name) or real(job, *rest))
    groups = module.read_ahead(jobs_of(folder), 192, RunOptions(), {})
    taken = len(next(groups))
    time.sleep(0.5)
    assert len(seen) <= taken + 3  # one more than two a reader, whatever there would be time for
    groups.close()


def test_a_fault_in_a_common_batch_costs_one_scan(pipeline, folder, tmp_path, monkeypatch):
    """Whatever the networks stumble over, the others are judged."""
    real = type(pipeline).decide

    def decide(self, cases, *options):
        if any(case.scan.path is not None and case.scan.path.name == "3.png" for case in cases):
            raise RuntimeError("no such kernel")
        return real(self, cases, *options)

    monkeypatch.setattr(type(pipeline), "decide", decide)
    report = run_batch(pipeline, jobs_of(folder), tmp_path / "out")
    errors = {row["scan"]: row["error"] for row in report.rows if row["error"]}
    assert set(errors) == {"3", "broken"}
    assert "internal error" in errors["3"] and "RuntimeError" in errors["3"]


def test_a_file_that_vanishes_is_told(pipeline, folder, tmp_path):
    jobs = [*jobs_of(folder), Job(folder / "gone.png", "gone", "gone")]
    report = run_batch(pipeline, jobs, tmp_path / "out")
    assert "gone.png" in next(row["error"] for row in report.rows if row["scan"] == "gone")


def test_an_explanation_in_a_batch(pipeline, folder, tmp_path):
    run_batch(pipeline, jobs_of(folder)[:2], tmp_path / "out", options=RunOptions(explain=True))
    assert (tmp_path / "out" / "0" / "explanation.png").is_file()


def test_a_job_with_an_error_of_its_own_is_not_read(tmp_path):
    with pytest.raises(InputError, match="two series"):
        module._open(Job(tmp_path, "a", "a", error="two series"), 192, RunOptions(), {})
