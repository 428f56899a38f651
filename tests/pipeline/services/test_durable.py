"""Jobs of a spool on the queue that holds the models: results, faults, cancelling, stopping, being killed."""

from __future__ import annotations

import errno
import io
import json
import re
import shutil
import threading
import time
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from tests.scans.dicom import edit
from tests.scans.pictures import save, save_volume
from tests.scans.studies import SICK, series
from tests.waiting import until
from tumorlens.data.errors import InputError
from tumorlens.data.formats import archives
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import write
from tumorlens.pipeline.outputs.write import write_result
from tumorlens.pipeline.services import durable
from tumorlens.pipeline.services.durable import JobLimits, Worker
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING, JobQueue
from tumorlens.pipeline.services.spool import MOST_RUNS, REST, Spool

LABELS = ("meningioma", "no_tumor", "glioma", "pituitary")


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.close()


@contextmanager
def running(spool, pipeline, **settings):
    queue = JobQueue(lambda: pipeline)
    worker = Worker(spool, queue, **settings)
    queue.start()
    worker.start()
    try:
        yield worker
    finally:
        worker.close()
        queue.close()


def submit(spool, *files, **options):
    """The id of a job with files, given as (name, writer or bytes)."""
    arrival = spool.receive(REST)
    for name, content in files:
        if isinstance(content, bytes):
            (arrival.folder / name).write_bytes(content)
        elif content.ndim == 2:
            save(arrival.folder / name, content)
    return spool.accept(arrival, options).id


def slices(n, size=128):
    return [phantom_slice(60 + k, LABELS[k % 4], size=size, pixel_mm=1.7).image for k in range(n)]


def until_ended(spool, *ids, seconds=120):
    def jobs():
        return [spool.job(id) for id in ids]

    def ended():
        return [each for each in [jobs()] if all(job is None or job.state in (DONE, FAILED, CANCELLED) for job in each)]

    return until(ended, seconds, jobs)[0]


def watched(pipeline, seen):
    """The pipeline, whose classifier calls `seen(images)` first."""
    network = pipeline.classifier.network

    def watch(images):
        seen(images)
        return network(images)

    return replace(pipeline, classifier=replace(pipeline.classifier, network=watch))


def lasting(content):
    return {key: value for key, value in content.items() if key not in ("timings_s", "scan", "made_of")}


def test_jobs_share_batches_and_have_the_results_of_single_runs(spool, pipeline, tmp_path):
    images = slices(9)
    ids = [submit(spool, ("scan.png", image)) for image in images]
    bad = submit(spool, ("scan.png", b"no picture"))
    ids.insert(4, submit(spool, ("scan.png", images[0])))
    batches = []
    with running(spool, watched(pipeline, lambda images: batches.append(len(images)))):
        jobs = until_ended(spool, *ids, bad)
    assert [job.state for job in jobs] == [DONE] * 10 + [FAILED]
    assert jobs[-1].error.startswith("scan.png: ") and str(tmp_path) not in jobs[-1].error
    assert max(batches) > 1, "they shared batches"
    assert max(batches) <= 8
    for job in jobs[:10]:
        (scan,) = job.scans
        content = json.loads((job.results / scan["folder"] / "result.json").read_text())
        expected = pipeline.run(job.files / "scan.png")
        alone = write_result(expected, tmp_path / "alone", "scan.png")
        assert lasting(content) == json.loads(json.dumps(lasting(alone | {"place_sha256": None})))
        for file in alone["files"]:
            assert (job.results / "1" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
        assert scan["files"] == [*alone["files"], "result.json"] and scan["label"] == expected.label
        assert len(scan["source_sha256"]) == 64


def test_a_scan_that_the_networks_fail_on_costs_no_other(spool, pipeline):
    images = slices(6)
    ids = [submit(spool, ("scan.png", image)) for image in images]
    poison = pipeline.run(images[2]).scan  # the same slice, as the network sees it
    assert poison.n_slices == 1
    from tumorlens.pipeline.case import prepare

    bad = prepare(poison, pipeline.classifier.input_size).chosen[0].image

    def fail(batch):
        if any(np.array_equal(image, bad) for image in batch):
            raise MemoryError

    with running(spool, watched(pipeline, fail)):
        jobs = until_ended(spool, *ids)
    assert [job.state for job in jobs] == [DONE, DONE, FAILED, DONE, DONE, DONE]
    assert jobs[2].error == "scan.png: internal error, please report it (MemoryError)"


def test_a_zip_of_a_study_is_one_job_and_no_name_of_it_comes_out(spool, pipeline, tmp_path):
    files = series(tmp_path / "series", SICK)
    arrival = spool.receive(REST)
    with zipfile.ZipFile(arrival.folder / "scan.zip", "w") as archive:
        for file in files:
            archive.write(file, f"DOE_JANE/MR_DOE/{file.name}")
        archive.writestr("DOE_JANE/picture_of_jane.png", b"\x89PNG\r\n\x1a\n broken")
    job = spool.accept(arrival)
    with running(spool, pipeline):
        (job,) = until_ended(spool, job.id)
    assert job.state == DONE
    assert [scan["name"] for scan in job.scans if not scan["error"]] == ["MR series 5-2"]
    assert {"mask.dcm", "measurements.dcm"} <= {name for scan in job.scans for name in scan["files"]}
    texts = json.dumps(job.scans).lower() + job.error.lower()
    texts += "".join(path.read_text().lower() for path in job.results.rglob("*.json"))
    assert "jane" not in texts and "doe" not in texts and str(tmp_path) not in texts
    assert any("picture" not in scan["error"] and scan["error"] for scan in job.scans)
    assert not (job.folder / "unpacked").exists()


def test_stopping_leaves_the_running_job_for_the_next_start(spool, pipeline):
    reached, let_go = threading.Event(), threading.Event()
    warm = []

    def hold(images):
        if warm:
            reached.set()
            assert let_go.wait(30)
        warm.append(1)

    path_ids = [submit(spool, ("scan.png", image)) for image in slices(2)]
    with running(spool, watched(pipeline, hold)) as worker:
        assert reached.wait(60)
        threading.Thread(target=lambda: until(lambda: worker.queue._closed) and let_go.set()).start()
    assert {spool.job(id).state for id in path_ids} <= {WAITING, DONE}
    assert all(spool.job(id).runs == 0 for id in path_ids if spool.job(id).state == WAITING)
    assert WAITING in {spool.job(id).state for id in path_ids}
    with running(spool, pipeline):
        assert [job.state for job in until_ended(spool, *path_ids)] == [DONE, DONE]


def test_one_of_a_batch_is_cancelled_and_another_deleted(spool, pipeline):
    reached, let_go = threading.Event(), threading.Event()
    sizes = []

    def hold(images):
        sizes.append(len(images))
        if len(sizes) == 2:
            reached.set()
            assert let_go.wait(30)

    ids = [submit(spool, ("scan.png", image)) for image in slices(5)]
    with running(spool, watched(pipeline, hold)) as worker:
        assert reached.wait(60)
        ends = time.monotonic() + 20
        while not all(spool.job(id).state == RUNNING for id in ids) and time.monotonic() < ends:
            time.sleep(0.05)
        spool.cancel(ids[0])
        spool.delete(ids[3])
        while not all(scan._stop for id in (ids[0], ids[3]) for scan in worker.scans_of(id)):
            assert time.monotonic() < ends
            time.sleep(0.05)
        let_go.set()
        jobs = until_ended(spool, *ids)
    assert [job and job.state for job in jobs] == [CANCELLED, DONE, DONE, None, DONE]
    assert not (jobs[0].results / "1").exists()


def test_limits_of_time_and_size(spool, pipeline, tmp_path):
    (picture,) = slices(1)
    small = submit(spool, ("scan.png", picture))
    path = tmp_path / "volume.nii.gz"
    save_volume(path, phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0)))
    large = submit(spool, ("scan.nii.gz", path.read_bytes()))
    with running(spool, pipeline, limits=JobLimits(most_voxels=100_000)):
        jobs = until_ended(spool, small, large)
    assert [job.state for job in jobs] == [DONE, FAILED]
    assert jobs[1].error == "scan.nii.gz: 0.129 million voxels are more than the 0.1 million that are allowed"
    slow = submit(spool, ("scan.png", picture))
    warm = []

    def wait(images):
        time.sleep(0.5 if warm else 0)
        warm.append(1)

    with running(spool, watched(pipeline, wait), limits=JobLimits(most_seconds=0.4)):
        (job,) = until_ended(spool, slow)
    assert (job.state, job.error) == (FAILED, "scan.png: the scan took longer than the 0.4 seconds that are allowed")


def test_options_hold_for_their_job(spool, pipeline):
    noise = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
    plain = submit(spool, ("scan.png", noise))
    forced = submit(spool, ("scan.png", noise), force=True, explain=True)
    with running(spool, pipeline):
        jobs = until_ended(spool, plain, forced)
    assert jobs[0].scans[0]["label"] == "refused"
    assert jobs[1].scans[0]["label"] == pipeline.run(noise, RunOptions(force=True)).label != "refused"
    assert "explanation.png" in jobs[1].scans[0]["files"]


def test_the_source_hears_of_every_end(spool, pipeline):
    heard = []
    ids = [submit(spool, ("scan.png", image)) for image in slices(2)] + [submit(spool, ("scan.png", b"x"))]
    with running(spool, pipeline, on_end=heard.append):
        until_ended(spool, *ids)
        ends = time.monotonic() + 5
        while len(heard) < 3 and time.monotonic() < ends:
            time.sleep(0.02)
    assert sorted(heard) == sorted(ids)


def zip_of_bad_pictures(spool, n, folder="DOE/"):
    arrival = spool.receive(REST)
    with zipfile.ZipFile(arrival.folder / "scan.zip", "w") as archive:
        archive.mkdir(folder)
        for k in range(n):
            archive.writestr(f"{folder}jane{k}.png", b"\x89PNG\r\n\x1a\n broken")
    return spool.accept(arrival).id


def test_sentences_about_a_zip_with_folders_are_whole_and_its_names_are_read_once(spool, pipeline, monkeypatch):
    calls = []
    names_in = durable._names_in
    monkeypatch.setattr(durable, "_names_in", lambda folder: calls.append(folder) or names_in(folder))
    id = zip_of_bad_pictures(spool, 30)
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    assert len(calls) == 1
    assert (job.state, len(job.scans)) == (FAILED, 30)
    (plain,) = {scan["error"].replace(scan["name"], "NAME") for scan in job.scans}
    assert plain.startswith("NAME: ") and plain.count("NAME") == 1 and "jane" not in plain and "DOE" not in plain


def test_a_folder_called_like_a_word_of_a_sentence_leaves_the_word(spool, pipeline, tmp_path):
    file = series(tmp_path / "ct", SICK)[0]
    edit([file], Modality="CT")
    arrival = spool.receive(REST)
    with zipfile.ZipFile(arrival.folder / "scan.zip", "w") as archive:
        archive.write(file, "JANE/modality/series/1.dcm")
    id = spool.accept(arrival).id
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    sentence = " ".join([job.error, *(scan["error"] for scan in job.scans)])
    assert "its modality is CT" in sentence and "JANE" not in sentence, sentence


def test_a_damaged_object_is_named_by_its_uid(spool, pipeline):
    arrival, patient = spool.receive(REST), "20481234"
    file = series(arrival.folder / patient, SICK)[3]
    file.write_bytes(file.read_bytes()[:-3000])
    uid = "1.2.826.0.1.3680043.8.498.7.dcm"
    file.rename(file.with_name(uid))
    id = spool.accept(arrival).id
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    assert job.scans[0]["error"] == (
        f"MR series 5: {uid}: the pixel data are damaged or cut off; delete or replace this file"
    )


def zip_of(spool, **files):
    arrival = spool.receive(REST)
    with zipfile.ZipFile(arrival.folder / "scan.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return spool.accept(arrival).id


MHD = "ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = {}\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\nencoding: raw\ndata file: {}\n"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"19610203/77881234.png": b"\x89PNG\r\n\x1a\n broken"}, "scan.png: the png file is damaged"),
        ({"Kim/Lee": b"\x89PNG\r\n\x1a\n broken"}, ""),
        ({"../Kim/Lee.png": b"x"}, "leads out of it (scan.zip)"),
        ({"../../19610203/a.png": b"x"}, "leads out of it (scan.zip)"),
        ({"a.mhd": MHD.format("Doe Jane.raw")}, "data file scan.mhd is missing"),
        ({"a.nhdr": NRRD.format("/srv/mri/Doe_Jane/a.raw")}, "outside its own folder, in scan.nhdr; put both"),
    ],
)
def test_no_sentence_holds_a_short_name_a_number_or_a_name_of_a_header(spool, pipeline, files, sentence):
    id = zip_of(spool, **files)
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    text = " ".join([job.error, *(scan["error"] for scan in job.scans)])
    assert sentence in text and job.state == FAILED, text
    assert not re.search("Kim|Lee|Doe|Jane|srv|19610203|77881234", text), text


def test_a_job_may_have_so_many_scans(spool, pipeline):
    id = zip_of_bad_pictures(spool, 501)
    with running(spool, pipeline):
        (job,) = until_ended(spool, id)
    assert job.error == "501 scans are more than the 500 of one job; send several jobs"


def test_what_replaces_a_name_is_not_replaced_again(spool):
    job = spool.accept(spool.receive(REST))
    sentence = f"{job.folder}/unpacked/JANE/a b.png: JANE is like series 5 of picture"
    names = {"JANE", "series", "picture", f"{job.folder}/unpacked/JANE/a b.png"}
    assert durable._neutral(sentence, job, "MR series 5", names) == (
        "MR series 5: MR series 5 is like MR series 5 5 of MR series 5"
    )
    assert durable._neutral(f"{job.folder}/unpacked/x/y: bad", job, "scan.png", {"series"}) == "scan.png: bad"


def zipped(*files):
    """The bytes of a zip of files."""
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            for file in files:
                archive.write(file, file.name)
        return buffer.getvalue()


def elsewhere(spool):
    return spool.accept(spool.receive(REST), details={"dicomweb": "http://a.example/studies/1"}).id


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
