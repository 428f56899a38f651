"""Jobs of a spool on the queue that holds the models: results, faults, cancelling, stopping."""

from __future__ import annotations

import json
import threading
import time

import numpy as np

from tests.pipeline.services.durable.conftest import running, slices, submit, until_ended, watched
from tests.scans.pictures import save_volume
from tests.waiting import until
from tumorlens.data.phantom import phantom_volume
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.write import write_result
from tumorlens.pipeline.services.durable import JobLimits
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING


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
