"""A spool, a worker that runs its jobs, and jobs to run."""

from __future__ import annotations

import io
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.scans.pictures import save
from tests.waiting import until
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.services.durable import Worker
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, JobQueue
from tumorlens.pipeline.services.spool import REST, Spool

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


def zipped(*files):
    """The bytes of a zip of files."""
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            for file in files:
                archive.write(file, file.name)
        return buffer.getvalue()


def elsewhere(spool):
    return spool.accept(spool.receive(REST), details={"dicomweb": "http://a.example/studies/1"}).id
