"""Jobs whose files are elsewhere: they are fetched beside those that run, and keep nobody waiting."""

from __future__ import annotations

import threading
import time

from tests.pipeline.services.durable.conftest import elsewhere, running, slices, submit, until_ended
from tests.scans.pictures import save
from tumorlens.pipeline.services import durable
from tumorlens.pipeline.services.durable import JobLimits
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, WAITING


def test_slow_fetches_keep_nobody_waiting(spool, pipeline):
    """Neither other jobs, nor whoever cancels or deletes one, nor the end of the server."""
    let_go, wanted = threading.Event(), {}

    def fetch(job, is_wanted):
        wanted[job.id] = is_wanted
        assert let_go.wait(60)

    slow = [elsewhere(spool) for _ in range(30)]
    try:
        with running(spool, pipeline, fetch=fetch):
            quick = submit(spool, ("scan.png", slices(1)[0]))
            (job,) = until_ended(spool, quick)
            assert job.state == DONE
            assert sorted(wanted) == sorted(slow[:4]) and all(is_wanted() for is_wanted in wanted.values())
            spool.cancel(slow[0])
            spool.delete(slow[1])
            first, second = until_ended(spool, *slow[:2], seconds=30)
            assert first.state == CANCELLED and second is None
            assert not wanted[slow[0]]() and wanted[slow[2]]()
            begun = time.monotonic()
        assert time.monotonic() - begun < 20
        assert not wanted[slow[2]]()
        assert {spool.job(id).state for id in slow[2:]} == {WAITING} and spool.job(slow[2]).runs == 0
    finally:
        let_go.set()


def test_fetches_that_take_too_long_fail_and_keep_no_other_waiting(spool, pipeline):
    late = [elsewhere(spool) for _ in range(durable._MOST_FETCHING)]
    let_go = threading.Event()
    (picture,) = slices(1)

    def fetch(job, is_wanted):
        if job.id in late:
            assert let_go.wait(60)
        else:
            save(job.files / "scan.png", picture)

    try:
        with running(spool, pipeline, fetch=fetch, limits=JobLimits(most_seconds=0.5)) as worker:
            jobs = until_ended(spool, *late)
            worker.limits = JobLimits()
            (good,) = until_ended(spool, elsewhere(spool))
    finally:
        let_go.set()
    assert {job.error for job in jobs} == {"fetching the study took longer than the 0.5 seconds that are allowed"}
    assert (good.state, good.runs) == (DONE, 1)
