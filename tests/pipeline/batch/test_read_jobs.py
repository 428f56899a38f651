"""Scans are read ahead of the networks, in groups that share a batch, as far as memory allows."""

from __future__ import annotations

import time

import pytest

from tests.pipeline.batch.conftest import NAMES
from tests.waiting import until
from tumorlens.data.errors import InputError
from tumorlens.pipeline import read_ahead
from tumorlens.pipeline.batch import read_jobs
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_jobs import open_job
from tumorlens.pipeline.options import RunOptions


def test_pictures_that_are_ready_share_a_batch(jobs):
    """The first is waited for; those that were read in the meantime come with it."""
    reading = read_jobs.read_jobs(jobs, 192, RunOptions(), {})
    first = next(reading)
    until(lambda: _all_are_read(reading))
    groups = [first, *reading]
    assert max(len(group) for group in groups) >= 2  # on a slow machine the first group may be all pictures
    assert [one.job.name for group in groups for one in group] == NAMES


def _all_are_read(groups):
    return all(future.done() for _, future in groups.gi_frame.f_locals["waiting"])


def test_a_batch_holds_no_more_slices_than_it_may(jobs, monkeypatch):
    monkeypatch.setattr(read_ahead, "AT_ONCE", 2)
    for group in read_jobs.read_jobs(jobs, 192, RunOptions(), {}):
        time.sleep(0.05)
        slices = [reading.n_slices for reading in group if reading.error is None]
        assert sum(slices) <= 2 or len(slices) == 1  # a volume comes alone, whatever its size


def test_reading_ahead_stops_where_memory_would_grow(jobs, monkeypatch):
    monkeypatch.setattr(read_ahead, "_BYTES_AHEAD", 1)
    names = []
    real = read_jobs.open_job
    monkeypatch.setattr(read_jobs, "open_job", lambda job, *rest: names.append(job.name) or real(job, *rest))
    groups = read_jobs.read_jobs(jobs, 192, RunOptions(), {})
    n_first = len(next(groups))
    time.sleep(0.5)
    assert len(names) <= n_first + 3  # one more than two a reader, whatever there would be time for
    groups.close()


def test_a_job_with_an_error_of_its_own_is_not_read(tmp_path):
    with pytest.raises(InputError, match="two series"):
        open_job(Job(tmp_path, "a", error="two series"), 192, RunOptions(), {})
