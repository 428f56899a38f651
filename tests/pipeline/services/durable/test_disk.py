"""A disk that is full, and other faults of the machine, cost no job."""

from __future__ import annotations

import errno
import re
import shutil
import threading
import time

import numpy as np
import pytest

from tests.pipeline.services.durable.conftest import elsewhere, running, slices, submit, until_ended, zipped
from tests.scans.pictures import save
from tests.scans.studies import SICK, series
from tests.waiting import until
from tumorlens.data.errors import InputError
from tumorlens.data.formats import archives
from tumorlens.pipeline.outputs import write
from tumorlens.pipeline.services import durable
from tumorlens.pipeline.services.durable import JobLimits
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING
from tumorlens.pipeline.services.spool import MOST_RUNS, REST


@pytest.mark.parametrize("fault", ["disk_usage", "fetch", "open"])
def test_a_fault_of_the_machine_ends_no_worker(fault, spool, pipeline, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(durable, "_LOOK_S", 0.05)
    (picture,) = slices(1)
    place = (shutil, "disk_usage") if fault == "disk_usage" else (threading.Thread, "start")
    original, faults = getattr(*place), []

    def fail(first):
        if len(faults) < 3 and (fault == "disk_usage" or first.name.startswith(fault)):
            faults.append(first)
            if fault == "disk_usage":
                raise OSError(errno.ESTALE, "Stale file handle", str(first))
            raise RuntimeError("can't start new thread")
        return original(first)

    with running(spool, pipeline, fetch=lambda job, is_wanted: save(job.files / "scan.png", picture)) as worker:
        until(lambda: worker.queue.ready)
        monkeypatch.setattr(*place, fail)
        begin, begun = worker._scans, []
        monkeypatch.setattr(worker, "_scans", lambda job: begun.append(job.id) or begin(job))
        jobs = until_ended(spool, elsewhere(spool), submit(spool, ("scan.png", picture)))
    assert [(job.state, job.runs) for job in jobs] == [(DONE, 1)] * 2 and len(faults) == 3
    assert sorted(begun) == sorted(job.id for job in jobs), "each once"
    sentence = r"(spool: internal error, .* \(RuntimeError\)|written \(Stale file handle\))"
    assert len(re.findall(sentence, caplog.text)) == 1 and str(tmp_path) not in caplog.text


def test_a_nearly_full_disk_keeps_jobs_waiting(spool, pipeline, monkeypatch, caplog):
    monkeypatch.setattr(durable, "_LOOK_S", 0.05)
    (picture,) = slices(1)
    id = submit(spool, ("scan.png", picture))
    with running(spool, pipeline) as worker:
        monkeypatch.setattr(durable, "_FREE_BYTES", 1e18)
        other = submit(spool, ("scan.png", picture))
        while not worker.queue.ready:
            time.sleep(0.05)
        time.sleep(0.5)
        assert spool.job(other).state == WAITING
        monkeypatch.setattr(durable, "_FREE_BYTES", 0)
        assert [job.state for job in until_ended(spool, id, other)] == [DONE, DONE]
    assert caplog.text.count("the disk is nearly full") == 1


class FullDisk:
    """A disk that has no room for results until somebody makes some."""

    def __init__(self, monkeypatch):
        self.is_full, self.times = True, []
        self.write = write.write_mask_png
        monkeypatch.setattr(write, "write_mask_png", self)
        monkeypatch.setattr(durable, "_LOOK_S", 0.05)
        monkeypatch.setattr(durable, "_FIRST_PAUSE_S", 0.2)

    def __call__(self, path, mask):
        if self.is_full:
            self.times.append(time.monotonic())
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        self.write(path, mask)

    def wait(self, times):
        ends = time.monotonic() + 60
        while len(self.times) < times:
            assert time.monotonic() < ends
            time.sleep(0.02)


def test_a_job_that_fills_the_disk_waits_in_its_place_until_there_is_room(spool, pipeline, monkeypatch, caplog):
    disk = FullDisk(monkeypatch)
    monkeypatch.setattr(durable, "_FIRST_PAUSE_S", 100)
    with running(spool, pipeline) as worker:
        first = submit(spool, ("scan.png", slices(1)[0]))
        disk.wait(1)
        (job,) = until(lambda: spool.jobs(state=WAITING))
        assert (job.runs, job.begun, job.error) == (0, None, "") and not job.results.exists()
        small = submit(spool, ("scan.png", b"no picture"))  # needs no room, and is not kept waiting
        assert until_ended(spool, small)[0].state == FAILED and spool.position(first) == 0
        with spool.changed:
            monkeypatch.setattr(durable, "_FIRST_PAUSE_S", 0.2)
            worker._pauses.clear()
        disk.wait(5)
        disk.is_full = False
        (job,) = until_ended(spool, first)
    assert (job.state, job.runs) == (DONE, 1)
    assert {"mask.png", "result.json"} <= {path.name for path in (job.results / "1").iterdir()}
    assert all(np.diff(disk.times[1:5]) >= [0.2, 0.4, 0.8])
    assert caplog.text.count("the disk is full") == len(disk.times)


def test_all_scans_of_a_job_are_run_again_once_there_is_room(spool, pipeline, monkeypatch):
    disk = FullDisk(monkeypatch)
    arrival = spool.receive(REST)
    for n, image in enumerate(slices(3)):
        save(arrival.folder / f"{n}.png", image)
    id = spool.accept(arrival).id
    with running(spool, pipeline):
        disk.wait(2)
        disk.is_full = False
        (job,) = until_ended(spool, id)
    assert job.state == DONE and [scan["error"] for scan in job.scans] == [""] * 3
    assert all((job.results / scan["folder"] / "mask.png").is_file() for scan in job.scans)


def test_a_job_that_rests_can_be_cancelled_and_deleted(spool, pipeline, monkeypatch):
    disk = FullDisk(monkeypatch)
    monkeypatch.setattr(durable, "_FIRST_PAUSE_S", 100)
    ids = [submit(spool, ("scan.png", image)) for image in slices(2)]
    with running(spool, pipeline) as worker:
        disk.wait(2)
        until(lambda: spool.counts() == {WAITING: 2})
        folder = spool.job(ids[1]).folder
        spool.cancel(ids[0])
        spool.delete(ids[1])
        assert spool.job(ids[0]).state == CANCELLED and spool.job(ids[1]) is None and not folder.exists()
        until(lambda: not worker._pauses)


@pytest.mark.parametrize("wanted", [True, False])
def test_where_the_file_of_jobs_is_full_too_its_end_is_noted_later(wanted, spool, pipeline, monkeypatch, caplog):
    FullDisk(monkeypatch).is_full = False
    tries = {"finish": 0, "put_back": 0}
    originals = {name: getattr(spool, name) for name in tries}

    def fail_first(name, times):
        def call(*args):
            tries[name] += 1
            if tries[name] <= times:
                raise InputError("the server's file of jobs cannot be read or written (database or disk is full)")
            return originals[name](*args)

        monkeypatch.setattr(spool, name, call)

    fail_first("finish", 2 if wanted else 4)
    fail_first("put_back", 3 if wanted else 1000)
    (picture,) = slices(1)
    id = submit(spool, ("scan.png", picture))
    with running(spool, pipeline):
        if wanted:
            (job,) = until_ended(spool, id)
            assert (job.state, job.runs) == (DONE, 1) and tries["put_back"] >= 4
        else:
            until(lambda: tries["put_back"])
            spool.delete(id)
            until(lambda: not spool.counts())
            assert tries["finish"] == 5 and not any((spool.folder / "jobs").iterdir())
    assert caplog.text.count("the server's file of jobs cannot be") == 1, "it is said once"


def test_a_server_stops_although_the_file_of_jobs_is_full(spool, pipeline, monkeypatch):
    disk = FullDisk(monkeypatch)

    def fail(*args):
        raise InputError("the server's file of jobs cannot be read or written (database or disk is full)")

    (picture,) = slices(1)
    id = submit(spool, ("scan.png", picture))
    for stops in range(1, MOST_RUNS + 1):
        with monkeypatch.context() as patch, running(spool, pipeline):
            patch.setattr(spool, "put_back", fail)
            disk.wait(stops)
        assert spool.job(id).state == RUNNING
    disk.is_full = False
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    assert (job.state, job.runs) == (DONE, 1)


@pytest.mark.parametrize("step", ["_remove", "finish"])
def test_a_job_that_has_ended_keeps_its_results_whatever_fails_then(step, spool, pipeline, monkeypatch):
    original, tries = getattr(spool, step), []

    def fail(*args):
        if step == "finish":
            original(*args)
        tries.append(args)
        raise InputError("the server's file of jobs cannot be read or written (database or disk is full)")

    id = submit(spool, ("scan.png", slices(1)[0]))
    with running(spool, pipeline) as worker:
        monkeypatch.setattr(spool, step, fail)
        until_ended(spool, id)
        until(lambda: tries and not worker._running)
    job = spool.job(id)
    assert job.state == DONE and (job.results / "1" / "mask.png").is_file()


@pytest.mark.parametrize("place", ["fetch", "copyfileobj", "disk_usage", "zip in a zip"])
def test_a_disk_that_is_full_before_the_scan_is_read_costs_no_job(place, spool, pipeline, monkeypatch, tmp_path):
    disk = FullDisk(monkeypatch)
    save(tmp_path / "scan.png", slices(1)[0])
    step = place if hasattr(archives.shutil, place) else "copyfileobj"
    original, left = getattr(archives.shutil, step), []

    def fetch(job, is_wanted):
        left.extend(job.files.iterdir())
        folder = job.files / "study"
        folder.mkdir()
        (folder / "scan.png").write_bytes((tmp_path / "scan.png").read_bytes())
        if disk.is_full:
            disk.times.append(0)
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def full(*args):
        where = str(args[0] if step == "disk_usage" else args[1].name)
        if disk.is_full and (str(spool.folder / "jobs") in where) is (place != "zip in a zip"):
            disk.times.append(0)
            if step == "disk_usage":
                return original(*args)._replace(free=1)
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    if place == "fetch":
        id = elsewhere(spool)
    else:
        content = zipped(tmp_path / "scan.png")
        if place == "zip in a zip":  # only one that is called a scan is read
            (tmp_path / "scan.nii").write_bytes(zipped(*series(tmp_path / "series", SICK)))
            content = zipped(tmp_path / "scan.nii")
        id = submit(spool, ("scan.zip", content))
        monkeypatch.setattr(durable, "_FREE_BYTES", 0)
        monkeypatch.setattr(archives.shutil, step, full)
    with running(spool, pipeline, fetch=fetch):
        disk.wait(2)
        disk.is_full = False
        (job,) = until_ended(spool, id)
    assert (job.state, job.runs, left) == (DONE, 1, []), job.error


def test_a_late_fetch_is_not_taken_for_the_next_of_its_job(spool, pipeline, monkeypatch):
    FullDisk(monkeypatch).is_full = False
    finish, let_go, wanted, heard = spool.finish, threading.Event(), [], []

    def fetch(job, is_wanted):
        wanted.append(is_wanted)
        if len(wanted) == 1:
            assert let_go.wait(60)
        else:
            heard.extend(is_wanted() for is_wanted in wanted)
            save(job.files / "scan.png", slices(1)[0])

    def fail(*args):
        monkeypatch.setattr(spool, "finish", finish)
        worker.limits = JobLimits()
        raise InputError("the server's file of jobs cannot be read or written (database or disk is full)")

    id = elsewhere(spool)
    monkeypatch.setattr(spool, "finish", fail)
    try:
        with running(spool, pipeline, fetch=fetch, limits=JobLimits(most_seconds=0.5)) as worker:
            (job,) = until_ended(spool, id)
    finally:
        let_go.set()
    assert heard == [False, True] and job.state == DONE
