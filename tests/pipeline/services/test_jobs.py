"""The job queue: results, failures, cancelling, limits."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.scans.pictures import save, save_volume
from tests.waiting import until
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.services import jobs as services_jobs
from tumorlens.pipeline.services.jobs import (
    CANCELLED,
    DONE,
    FAILED,
    RUNNING,
    WAITING,
    JobQueue,
    QueuedJob,
    _WatchedNetwork,
)


@pytest.fixture
def queues():
    """`queues(load, ...)`: queues that have started; they end with the test."""
    made: list[JobQueue] = []

    def make(load, **rest):
        made.append(JobQueue(load, **rest))
        made[-1].start()
        return made[-1]

    yield make
    for queue in made:
        queue.close()


@pytest.fixture
def sick(tmp_path) -> Job:
    path = tmp_path / "sick.png"
    save(path, phantom_slice(2, "meningioma").image)
    return Job(path, path.name)


class Gate:
    """A pipeline that waits in its classifier until it is opened."""

    def __init__(self, pipeline) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        network = pipeline.classifier.network
        self.warm = False

        def wait(images):
            if self.warm:
                self.reached.set()
                assert self.open.wait(30)
            return network(images)

        self.pipeline = replace(pipeline, classifier=replace(pipeline.classifier, network=wait))

    def load(self):
        return self.pipeline

    def close(self, queue) -> None:
        """From now on, scans wait."""
        deadline = time.monotonic() + 60
        while not queue.ready and time.monotonic() < deadline:
            time.sleep(0.05)
        self.warm = True


def test_a_job_has_the_result_that_the_pipeline_has(queues, pipeline, sick, tmp_path):
    queue = queues(lambda: pipeline)
    (job,) = queue.submit([sick], tmp_path, RunOptions(explain=True))
    assert job.ended.wait(60)
    assert (job.state, job.error) == (DONE, "")
    expected = pipeline.run(sick.path, RunOptions(explain=True))
    assert job.content["label"] == expected.label == "meningioma"
    assert job.content["probabilities"] == expected.to_dict()["probabilities"]
    np.testing.assert_array_equal(job.result.mask, expected.mask)
    np.testing.assert_array_equal(job.result.heat, expected.heat)
    assert job.content["scan"]["name"] == "sick.png"
    assert len(job.made_of["source_sha256"]) == 64
    assert isinstance(job.result.mask, np.memmap) and isinstance(job.result.scan.voxels, np.memmap)
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match=r"sick.png: there is no result"):
        job.result  # noqa: B018


def test_the_models_are_loaded_once(queues, pipeline, sick, tmp_path):
    loaded = []
    queue = queues(lambda: loaded.append(1) or pipeline)
    jobs = [job for _ in range(3) for job in queue.submit([sick], tmp_path)]
    assert all(job.ended.wait(60) for job in jobs)
    assert loaded == [1]


def test_a_scan_that_cannot_be_read_costs_no_other(queues, pipeline, sick, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    queue = queues(lambda: pipeline)
    scans = [Job(bad, bad.name), Job(tmp_path / "x", "x", error=f"{tmp_path}/x: no such file"), sick]
    first, second, third = queue.submit(scans, tmp_path)
    assert second.state == FAILED and second.ended.is_set(), "it need not wait for the models"
    assert second.error == "x: no such file"
    assert third.ended.wait(60) and third.state == DONE
    assert first.state == FAILED
    assert first.error.startswith("bad.png: ") and str(tmp_path) not in first.error
    with pytest.raises(InputError, match="no result"):
        first.result  # noqa: B018


def test_a_fault_of_ours_is_one_sentence_and_logged_without_contents(
    queues, pipeline, sick, tmp_path, caplog, monkeypatch
):
    queue = queues(lambda: pipeline)
    monkeypatch.setattr("tumorlens.pipeline.batch.read_jobs.open_scan", _fail_with_a_name)
    (job,) = queue.submit([sick], tmp_path)
    assert job.ended.wait(60)
    assert (job.state, job.error) == (FAILED, "sick.png: internal error, please report it (KeyError)")
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("tumorlens")]
    assert messages == ["tumorlens: a scan: internal error, please report it (KeyError)"]
    assert "Jane Doe" not in caplog.text


def test_a_fault_of_whoever_hears_of_the_end_costs_no_other(queues, pipeline, sick, tmp_path, caplog):
    queue = queues(lambda: pipeline)
    jobs = [QueuedJob(sick, RunOptions(), tmp_path, on_end=_fail_with_a_name) for _ in range(7)]
    queue.add(jobs)
    assert all(job.ended.wait(60) for job in jobs) and {job.state for job in jobs} == {DONE}
    until(lambda: caplog.text.count("internal error, please report it (KeyError)") == len(jobs))
    assert "Jane Doe" not in caplog.text


def _fail_with_a_name(*_):
    raise KeyError(" ".join(("Jane", "Doe")))  # traces show the line itself


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_the_next_step(queues, pipeline, sick, tmp_path):
    gate = Gate(pipeline)
    queue = queues(gate.load)
    gate.close(queue)
    running, waiting, last = (job for _ in range(3) for job in queue.submit([sick], tmp_path))
    assert gate.reached.wait(60)
    assert (running.state, waiting.state, last.state) == (RUNNING, WAITING, WAITING)
    assert [queue.position(job) for job in (running, waiting, last)] == [0, 1, 2]
    queue.cancel(waiting)
    assert waiting.state == CANCELLED and waiting.ended.is_set()
    assert queue.position(last) == 1
    queue.cancel(running)
    assert running.state == RUNNING
    gate.open.set()
    assert running.ended.wait(60) and last.ended.wait(60)
    assert (running.state, last.state) == (CANCELLED, DONE)
    assert running.content == {}


def test_closing_cancels_everything(queues, pipeline, sick, tmp_path):
    gate = Gate(pipeline)
    queue = queues(gate.load)
    gate.close(queue)
    jobs = [job for _ in range(2) for job in queue.submit([sick], tmp_path)]
    assert gate.reached.wait(60)
    threading.Thread(target=lambda: until(lambda: all(job._stop for job in jobs)) and gate.open.set()).start()
    queue.close()
    assert [job.state for job in jobs] == [CANCELLED, CANCELLED]
    with pytest.raises(InputError, match="about to stop"):
        queue.submit([sick], tmp_path)


def test_the_process_does_not_end_while_the_models_are_loading():
    """Native code of a thread that is left behind aborts it."""
    script = """
import sys, time
from tumorlens.pipeline.services import jobs
jobs._CLOSE_S = 0.1
def load():
    time.sleep(1)
    print("loaded", flush=True)
queue = jobs.JobQueue(load)
queue.start()
queue.close()
sys.exit(7)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (7, "loaded\n")


def test_only_so_many_may_wait(queues, pipeline, sick, tmp_path):
    gate = Gate(pipeline)
    queue = queues(gate.load, most_waiting=2)
    gate.close(queue)
    queue.submit([sick], tmp_path)
    assert gate.reached.wait(60)
    queue.submit([sick, sick], tmp_path)
    with pytest.raises(InputError, match="2 scans are waiting, and 2 may"):
        queue.submit([sick], tmp_path)
    gate.open.set()


def test_models_that_cannot_be_loaded_fail_everything(queues, sick, tmp_path):
    gave_up = threading.Event()

    def load():
        raise InputError("weights.safetensors: no such file")

    queue = queues(load, give_up=gave_up.set)
    (before,) = queue.submit([sick], tmp_path)
    assert gave_up.wait(10) and before.ended.wait(10)
    (after,) = queue.submit([sick], tmp_path)
    assert after.ended.wait(10)
    assert [(job.state, job.error) for job in (before, after)] == [(FAILED, "weights.safetensors: no such file")] * 2
    assert queue.problem == "weights.safetensors: no such file" and not queue.ready


class _Network:
    """Answers with as many outputs as it is made with, and remembers its batches."""

    model = "its model"

    def __init__(self, outputs: int) -> None:
        self.outputs, self.batches = outputs, []

    def __call__(self, images):
        self.batches.append(len(images))
        mean = images.mean((1, 2))
        return images[:, None] if self.outputs == 1 else (mean, mean * 2) if self.outputs == 2 else (mean, None)


@pytest.mark.parametrize("outputs", [1, 2, 3], ids=["maps", "logits and features", "logits only"])
@pytest.mark.parametrize("n", [0, 1, 32, 72])
def test_a_watched_network_answers_like_the_network(outputs, n):
    images = np.random.default_rng(n).integers(0, 255, (n, 8, 8), dtype=np.uint8)
    reports: list[tuple[str, int, int]] = []
    network = _Network(outputs)
    watched = _WatchedNetwork(network, "classifying", lambda *report: reports.append(report))
    answer, batches = watched(images), list(network.batches)
    np.testing.assert_equal(answer, network(images))
    assert batches == {0: [0], 1: [1], 32: [32], 72: [32, 32, 8]}[n]
    assert reports[-1] == ("classifying", n, n)
    assert watched.model == "its model"


def test_a_volume_reports_its_steps(queues, pipeline, tmp_path: Path, monkeypatch):
    path = tmp_path / "volume.nii.gz"
    save_volume(path, phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0)))
    steps = []
    report = services_jobs._report
    monkeypatch.setattr(services_jobs, "_report", lambda job, *rest: (steps.append(rest[0]), report(job, *rest)))
    queue = queues(lambda: pipeline)
    (job,) = queue.submit([Job(path, path.name)], tmp_path)
    assert job.ended.wait(120) and job.state == DONE
    assert list(dict.fromkeys(steps)) == ["classifying", "segmenting", "measuring"]
