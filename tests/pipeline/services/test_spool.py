"""The spool: what is accepted survives, what has ended stays ended, and what kills the process is found out."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest

from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING
from tumorlens.pipeline.services.spool import DICOM, MOST_RUNS, REST, FullError, Spool, open_spool


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool", most_waiting=4)
    spool.recover()
    yield spool
    spool.close()


def accept(spool, source=REST, **details):
    arrival = spool.receive(source)
    (arrival.folder / "scan.png").write_bytes(b"a picture")
    return spool.accept(arrival, {"force": True}, details).id


def states(spool):
    return [job.state for job in reversed(spool.jobs())]


def reopened(spool):
    """The spool as the next process finds it after this one was killed."""
    other = Spool(spool.folder, spool.most_waiting)
    other.recover()
    return other


def test_an_accepted_job_is_there_with_all_that_was_said_of_it(spool):
    id = accept(spool, DICOM, study="1.2.3")
    job = Spool(spool.folder).job(id)
    assert (job.source, job.state, job.options, job.details) == (DICOM, WAITING, {"force": True}, {"study": "1.2.3"})
    assert (job.files / "scan.png").read_bytes() == b"a picture"
    assert job.folder.stat().st_mode & 0o077 == 0
    spool.set_details(id, {"sent": True})
    assert Spool(spool.folder).job(id).details == {"sent": True}
    assert [job.id for job in spool.jobs(source=DICOM)] == [id] and spool.jobs(source=REST) == []


def test_what_was_not_accepted_goes_with_its_process_or_is_found_by_its_source(spool):
    rest, dicom = spool.receive(REST), spool.receive(DICOM)
    (dicom.folder / "1.dcm").write_bytes(b"x")
    other = reopened(spool)
    assert not rest.folder.parent.exists()
    assert other.unaccepted(REST) == [] and other.unaccepted(DICOM) == [dicom]
    other.accept(dicom)
    assert other.unaccepted(DICOM) == []


def test_jobs_are_claimed_in_their_order_and_end_once(spool):
    ids = [accept(spool) for _ in range(3)]
    assert [spool.position(id) for id in ids] == [0, 1, 2]
    assert [job.id for job in spool.claim(2)] == ids[:2]
    assert states(spool) == [RUNNING, RUNNING, WAITING]
    spool.finish(ids[0], DONE, scans=[{"name": "scan.png"}])
    spool.finish(ids[0], FAILED, "late")
    assert spool.job(ids[0]).state == DONE and spool.job(ids[0]).scans == [{"name": "scan.png"}]
    assert spool.job(ids[0]).ended >= spool.job(ids[0]).begun >= spool.job(ids[0]).accepted
    other = reopened(spool)
    assert states(other) == [DONE, WAITING, WAITING]
    assert other.counts() == {DONE: 1, WAITING: 2}


def test_after_a_kill_suspects_run_alone_and_only_the_one_that_kills_is_given_up(spool):
    ids = [accept(spool) for _ in range(3)]
    spool.claim(10)
    for _ in range(MOST_RUNS - 1):
        spool = reopened(spool)
        (first,) = spool.claim(10)
        assert first.id == ids[0], "alone"
        assert spool.claim(10) == [], "none beside it"
    spool = reopened(spool)
    assert states(spool) == [FAILED, WAITING, WAITING]
    assert (
        spool.job(ids[0]).error == f"the server died {MOST_RUNS} times while it ran this scan, so it is not run again"
    )
    (second,) = spool.claim(10)
    spool.finish(second.id, DONE)
    fresh = [accept(spool) for _ in range(2)]
    (third,) = spool.claim(10)
    assert (second.id, third.id) == tuple(ids[1:])
    spool.finish(third.id, DONE)
    assert [job.id for job in spool.claim(10)] == fresh


def test_after_a_kill_a_slow_server_keeps_no_other_job_waiting_and_the_suspect_still_runs_alone(spool):
    far = accept(spool, dicomweb="http://a.example")
    spool.claim(5, 5)
    spool = reopened(spool)
    near = [accept(spool) for _ in range(2)]
    assert [job.id for job in spool.claim(1, 5)] == [far, near[0]]
    assert [job.id for job in spool.claim(1, 5)] == [near[1]], "while it is fetched"
    assert spool.job(far).begun is None and spool.job(far).runs == 2
    spool.put_back(far)
    accept(spool)
    assert spool.claim(5, 5, fetched={far}) == [], "others run"
    for id in near:
        spool.finish(id, DONE)
    assert [job.id for job in spool.claim(5, 5, fetched={far})] == [far]
    assert spool.claim(5, 5, fetched={far}) == [] and spool.job(far).begun


def test_a_job_that_is_fetched_is_not_blamed_for_what_another_does_to_the_process(spool):
    far, near = accept(spool, dicomweb="http://a.example"), accept(spool)
    for n in range(2 * MOST_RUNS):
        assert [job.id for job in spool.claim(5, 5)] == [far, near][: 2 if n < MOST_RUNS else 1]
        spool = reopened(spool)
        if n == MOST_RUNS - 1:
            assert (spool.job(near).state, spool.job(far).runs) == (FAILED, 0)
    assert spool.job(far).state == FAILED, "nothing else ran"


def test_the_end_of_a_process_that_stopped_in_order_counts_for_no_job(spool):
    id = accept(spool)
    for _ in range(MOST_RUNS + 1):
        spool.claim(1)
        spool.note_stop()
        spool = reopened(spool)
        assert (spool.job(id).state, spool.job(id).runs) == (WAITING, 0)
    spool.claim(1)
    assert reopened(spool).job(id).runs == 1, "this one was killed"


def test_a_job_has_ended_although_a_deleted_one_cannot_be_removed(spool, monkeypatch, caplog):
    def fail(*args):
        raise InputError("the server's file of jobs cannot be read or written (database or disk is full)")

    done, deleted = accept(spool), accept(spool)
    spool.claim(2)
    spool.delete(deleted)
    with monkeypatch.context() as patch:
        patch.setattr(spool, "_remove", fail)
        spool.finish(deleted, CANCELLED)
    assert caplog.text.count("disk is full") == 1
    spool.finish(done, DONE)
    assert spool.counts() == {DONE: 1} and len(list((spool.folder / "jobs").iterdir())) == 1


def test_a_job_that_was_put_back_was_not_begun(spool):
    id = accept(spool)
    for _ in range(MOST_RUNS + 1):
        spool.claim(1)
        spool.put_back(id)
    assert (spool.job(id).state, spool.job(id).runs) == (WAITING, 0)
    spool.claim(1)
    spool.put_back(id)
    spool.finish(id, DONE)
    assert spool.job(id).state == DONE, "it was ready before the process ended"


def test_a_job_whose_turn_has_not_come_keeps_no_other_waiting(spool):
    ids = [accept(spool) for _ in range(3)]
    spool.claim(1)
    spool.put_back(ids[0])
    assert [job.id for job in spool.claim(2, but={ids[0]})] == ids[1:]
    assert spool.position(ids[0]) == 0 and [job.id for job in spool.claim(1)] == ids[:1]


def test_a_cancelled_job_that_was_put_back_has_ended(spool):
    id = accept(spool)
    spool.claim(1)
    spool.cancel(id)
    spool.put_back(id)
    assert spool.job(id).state == CANCELLED and spool.job(id).ended
    assert spool.claim(1) == []


def test_jobs_whose_files_lie_elsewhere_have_a_number_of_their_own(spool):
    far = [accept(spool, dicomweb="http://a.example") for _ in range(2)]
    near = [accept(spool) for _ in range(2)]
    assert [job.id for job in spool.claim(1, 1)] == [far[0], near[0]]
    assert [job.id for job in spool.claim(5)] == [near[1]]
    assert [job.id for job in spool.claim(0, 5)] == [far[1]]


def test_cancelled_and_deleted_jobs(spool):
    running, waiting, gone = (accept(spool) for _ in range(3))
    spool.claim(1)
    spool.cancel(waiting)
    spool.cancel(running)
    assert spool.job(waiting).state == CANCELLED
    assert (spool.job(running).state, spool.job(running).stop) == (RUNNING, True)
    folder = spool.job(gone).folder
    spool.delete(gone)
    assert spool.job(gone) is None and not folder.exists()
    folder = spool.job(running).folder
    spool.delete(running)
    assert spool.job(running) is None and folder.exists(), "it still runs there"
    spool.finish(running, CANCELLED)
    assert not folder.exists()


def test_what_was_cancelled_or_deleted_while_it_ran_does_not_run_again(spool):
    cancelled, deleted = accept(spool), accept(spool)
    spool.claim(2)
    spool.cancel(cancelled)
    spool.delete(deleted)
    other = reopened(spool)
    assert states(other) == [CANCELLED] and other.claim(2) == []
    assert len(list((spool.folder / "jobs").iterdir())) == 1


def test_a_job_whose_files_cannot_be_deleted_is_tried_again_and_is_no_new_one(spool, monkeypatch):
    id = accept(spool, DICOM)
    folder = spool.job(id).folder
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)
        spool.delete(id)
        spool = reopened(spool)
        assert spool.job(id) is None and spool.unaccepted(DICOM) == [] and folder.exists()
    reopened(spool)
    assert not folder.exists() and spool.counts() == {}


def test_old_jobs_are_deleted_and_others_are_not(spool):
    old, waiting = accept(spool), accept(spool)
    spool.claim(1)
    spool.finish(old, DONE)
    spool.delete_ended(3600)
    assert spool.job(old) is not None
    time.sleep(0.01)
    spool.delete_ended(0)
    assert spool.job(old) is None and spool.job(waiting) is not None
    assert len(list((spool.folder / "jobs").iterdir())) == 1


def test_only_so_many_may_wait(spool):
    for _ in range(4):
        accept(spool)
    with pytest.raises(FullError, match="4 jobs are waiting, and 4 may"):
        spool.receive(REST)
    spool.claim(1)
    accept(spool)


def test_a_second_process_is_refused_with_one_sentence(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from tumorlens.pipeline.services.spool import open_spool\n"
        "with open_spool(Path(sys.argv[1]), 'rest'):\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "open\n"
    try:
        with pytest.raises(InputError, match=r"another run \(process \d+\) writes here.* choose another --spool$"):
            open_spool(tmp_path, REST).__enter__()
    finally:
        first.kill()
        first.communicate()
    with open_spool(tmp_path, REST) as spool:
        accept(spool)
    with pytest.raises(FullError, match=r"^choose another -o$"), open_spool(tmp_path, REST):
        raise FullError("choose another -o")


@pytest.mark.parametrize(
    ("own", "other", "owner"), [(REST, DICOM, "tumorlens dicom-node"), (DICOM, REST, "tumorlens serve")]
)
@pytest.mark.parametrize("is_complete", [True, False])
def test_the_jobs_of_another_source_are_refused_with_one_sentence(tmp_path, own, other, owner, is_complete):
    with open_spool(tmp_path, other) as spool:
        arrival = spool.receive(other)
        if is_complete:
            spool.accept(arrival)
    sentence = rf": `{owner}` keeps its jobs here; choose another --spool$"
    with pytest.raises(InputError, match=sentence), open_spool(tmp_path, own):
        pytest.fail("it was opened")
    with open_spool(tmp_path, other) as spool:
        assert len(spool.jobs(other)) == is_complete


def test_a_damaged_or_later_file_is_one_sentence(tmp_path):
    (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=r"the jobs cannot be read or written .*; choose another --spool"):
        Spool(tmp_path)
    spool = Spool(tmp_path / "later")
    spool._db.execute("PRAGMA user_version = 99")
    spool.close()
    with pytest.raises(InputError, match="written by a later version"):
        Spool(tmp_path / "later")


@pytest.mark.parametrize("step", ["accept", "finish"])
def test_a_file_that_does_not_reach_the_disk_is_no_success(spool, monkeypatch, step):
    arrival = spool.receive(REST)
    (arrival.folder / "scan.png").write_bytes(b"scan")
    if step == "finish":
        job = spool.accept(arrival)
        spool.claim(1)
        job.results.mkdir()
        (job.results / "mask.png").write_bytes(b"mask")

    def fail(handle):
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tumorlens.data.files.os.fsync", fail)
    with pytest.raises(
        InputError, match=r"^the server's file of jobs cannot be read or written \(Input/output error\)$"
    ):
        spool.accept(arrival) if step == "accept" else spool.finish(job.id, DONE)
    assert [job.state for job in spool.jobs(REST)] == ([] if step == "accept" else [RUNNING])
