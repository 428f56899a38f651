"""The REST service behind its guard, in this process, on a queue with the shipped models."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tumorlens.pipeline.options import UploadLimits
from tumorlens.pipeline.services.durable import JobLimits, Worker
from tumorlens.pipeline.services.guard import Guard
from tumorlens.pipeline.services.jobs import JobQueue
from tumorlens.pipeline.services.rest.dicomweb import DicomwebServers
from tumorlens.pipeline.services.rest.service import Service, build_api, figures_of
from tumorlens.pipeline.services.spool import Spool

LIMITS = UploadLimits(upload_mb=2, upload_files=30)


@contextmanager
def serving(folder, pipeline, token="", servers=(), most_waiting=1000, start=True, **limits):
    """A service and its application; `start=False` lets jobs wait."""
    spool = Spool(folder, most_waiting)
    queue = JobQueue(lambda: pipeline)
    fetch = DicomwebServers(tuple(servers), LIMITS)
    worker = Worker(spool, queue, JobLimits(**limits), fetch.fetch, on_end=lambda id: service.note_end(id))
    service = Service(spool, queue, worker, LIMITS, fetch)
    application = FastAPI(openapi_url=None)
    application.mount("/v1", build_api(service, "0.0.0"))
    application.include_router(figures_of(service))
    if start:
        queue.start()
        service.worker.start()
    try:
        yield service, Guard(application, token)
    finally:
        service.worker.close()
        queue.close()
        spool.close()


def client_of(guard, **headers):
    return TestClient(guard, base_url="http://localhost/v1", headers=headers, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def service_and_app(pipeline, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("spool"), pipeline) as both:
        yield both


@pytest.fixture(scope="module")
def client(service_and_app):
    return client_of(service_and_app[1])


def form(content, name="scan.png"):
    """Body and headers of a multipart form with a file."""
    head = f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}
