"""The routes of the REST service: an application of its own, which `pipeline.web.app` mounts at ``/v1``."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from tumorlens.data.errors import InputError
from tumorlens.pipeline.options import PLANES, UploadLimits
from tumorlens.pipeline.outputs import RESULT_FILES
from tumorlens.pipeline.services.downloads import zip_pieces
from tumorlens.pipeline.services.durable import Worker
from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, JobQueue, internal_error
from tumorlens.pipeline.services.rest.dicomweb import DicomwebServers
from tumorlens.pipeline.services.rest.metrics import Metrics
from tumorlens.pipeline.services.rest.models import (
    EXAMPLE_ID,
    STATES,
    WAITING_JOB,
    DicomwebReference,
    HealthAnswer,
    JobAnswer,
    JobsAnswer,
    ModelsAnswer,
    Problem,
    answer_of,
    models_of,
)
from tumorlens.pipeline.services.rest.receive import read_json, receive_files
from tumorlens.pipeline.services.spool import REST, FullError, Spool, StoredJob

_LOOK_S = 1.0  # between two looks at a job that somebody waits for, unless its end is told before
_MOST_WAITERS = 200
_LONGEST_WAIT_S = 60
_ENDED = (DONE, FAILED, CANCELLED)
_DESCRIPTION = """
Scans go in, labels and masks come out: for research only, not a medical device.

`POST /v1/scans` accepts files and answers at once with a job; `GET /v1/scans/{id}?wait=60` says when it is done; its
files are those of `tumorlens run`. A job that was accepted is not lost when the server is killed. If the server has a
token, send it as `Authorization: Bearer TOKEN`.
"""
_TYPES = {"json": "application/json", "png": "image/png", "gz": "application/gzip", "dcm": "application/dicom"}
_FILES = tuple(name for name in RESULT_FILES if name.rpartition(".")[2] in _TYPES)


def _one_of(words: Sequence[str]) -> dict[str, Any]:
    """Arguments of a parameter that takes one of some words."""
    return {"pattern": f"^({'|'.join(map(re.escape, words))})$", "json_schema_extra": {"enum": list(words)}}


JobId = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$", examples=[EXAMPLE_ID], description="The job's id.")]


@dataclass
class Service:
    """All that the routes need.

    Attributes:
        spool: Where jobs wait.
        queue: It holds the models.
        worker: It runs the jobs.
        uploads: How much one request may send.
        servers: DICOMweb servers from which studies may be fetched.
        metrics: Figures for Prometheus.
        is_stopping: Whether the server takes no more jobs.
    """

    spool: Spool
    queue: JobQueue
    worker: Worker
    uploads: UploadLimits
    servers: DicomwebServers
    metrics: Metrics = field(default_factory=Metrics)
    is_stopping: Callable[[], bool] = lambda: False
    _waiters: dict[asyncio.Event, tuple[str, asyncio.AbstractEventLoop]] = field(default_factory=dict)

    def note_end(self, id: str) -> None:
        """Count a job that has ended, and wake the requests that wait for it. Any thread may call it."""
        self.metrics.count_job(self.spool.job(id))
        for event, (awaited, loop) in list(self._waiters.items()):
            if awaited == id:
                loop.call_soon_threadsafe(event.set)

    async def wait_for(self, id: str, seconds: float) -> StoredJob:
        """The job, once it has ended or the seconds are over.

        Raises:
            HTTPException: There is no such job, or too many requests wait.
        """
        until, told = time.monotonic() + seconds, asyncio.Event()
        job = await asyncio.to_thread(self.job, id)
        if job.state in _ENDED or not seconds:
            return job
        if len(self._waiters) >= _MOST_WAITERS:
            raise HTTPException(429, _WAITERS, {"Retry-After": "5"})
        self._waiters[told] = id, asyncio.get_running_loop()
        try:
            while True:
                told.clear()  # before the look, so that no end is missed
                job = await asyncio.to_thread(self.job, id)
                rest = until - time.monotonic()
                if job.state in _ENDED or rest <= 0 or self.is_stopping():
                    return job
                with suppress(TimeoutError):
                    await asyncio.wait_for(told.wait(), min(rest, _LOOK_S))
        finally:
            del self._waiters[told]

    def job(self, id: str) -> StoredJob:
        """Raises:
        HTTPException: There is no such job.
        """
        job = self.spool.job(id)
        if job is None or job.source != REST:
            raise HTTPException(404, "there is no such job; it was deleted, or its time is over")
        return job

    def ended_job(self, id: str) -> StoredJob:
        """Raises:
        HTTPException: There is no such job, or it has not ended.
        """
        job = self.job(id)
        if job.state not in _ENDED:
            raise HTTPException(409, f"the job is {job.state}; its results come later")
        return job

    def answer(self, job: StoredJob) -> JobAnswer:
        """A job as clients see it."""
        return answer_of(job, self.spool.position(job.id), self.worker.scans_of(job.id))


def _problems(**examples: str) -> dict[int | str, dict[str, Any]]:
    """The answers to what is wrong, for OpenAPI: status as ``_404`` -> an example of the sentence."""
    return {
        int(status[1:]): {
            "model": Problem,
            "content": {"application/json": {"example": {"detail": sentence}}},
        }
        for status, sentence in examples.items()
    }


_WAITERS = f"{_MOST_WAITERS} requests wait already; ask without wait"
_UNKNOWN = "there is no such job; it was deleted, or its time is over"
_EVERYWHERE = _problems(
    _401="this server needs a token: send it as a bearer, or open the address that it printed, with ?token=",
    _403="pages of other origins may not use this server",
    _422="query wait: Input should be less than or equal to 60",
    _500="internal error, please report it (KeyError)",
    _503="the server's file of jobs cannot be read or written (disk I/O error)",
)
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "minLength": 1, "contentMediaType": "application/octet-stream"},
                        "description": "A picture, a NIfTI, a zip of a study; or the files of one series.",
                    }
                },
            },
            "encoding": {"file": {"contentType": "application/octet-stream"}},
        },
        "application/json": {"schema": DicomwebReference.model_json_schema()},
    },
}


class _Treatment(BaseModel):
    """How the scans of a job are treated: `pipeline.options.RunOptions` as a query."""

    model_config = ConfigDict(extra="forbid")

    frame: int | None = Field(None, ge=0, le=100_000, description="Volume of a 4-D file, from 0.")
    plane: Annotated[str, Query(description="How volumes are cut into slices.", **_one_of(PLANES))] = PLANES[0]
    channel: int | None = Field(None, ge=0, le=2, description="Channel of color pictures that is the scan.")
    force: bool = Field(False, description="Judge what does not look like a brain MRI, too.")
    explain: bool = Field(False, description="Add explanation.png: where the classifier looked.")
    maps: bool = Field(False, description="Add the segmenter's probability map.")
    secondary_capture: bool = Field(False, description="Add overlay.dcm to the results of DICOM scans.")


def figures_of(service: Service) -> APIRouter:
    """The route ``/metrics``."""
    router = APIRouter()

    @router.get("/metrics")
    def get_figures() -> Response:
        try:
            counts = service.spool.counts()
        except InputError as error:
            raise HTTPException(503, str(error)) from None
        return Response(service.metrics.text(counts, service.queue.ready), media_type=service.metrics.content_type)

    return router


def build_api(service: Service, version: str) -> FastAPI:
    """The application with all routes. It is mounted at ``/v1``."""
    api = FastAPI(
        title="tumorlens",
        version=version,
        description=_DESCRIPTION,
        docs_url=None,  # its page comes from another host
        redoc_url=None,
        openapi_url="/openapi.json",
        servers=[{"url": "/v1"}],
        root_path_in_servers=False,
        responses=_EVERYWHERE,
    )
    routers = _scans(service), _server(service)
    for router in routers:
        api.include_router(router)

    @api.middleware("http")
    async def count(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            response = await answer(request)
        except Exception as error:  # a fault of ours
            response = JSONResponse({"detail": internal_error(error, "a request")}, 500)
        route = getattr(request.scope.get("route"), "path", "unknown")  # never a path that a client made up
        service.metrics.count_request(request.method, route, response.status_code)
        response.headers.setdefault("cache-control", "no-store")
        return response

    @api.exception_handler(RequestValidationError)
    async def explain(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _sentence(error.errors())}, 422)

    @api.exception_handler(AnyHTTPException)
    async def refuse(request: Request, error: AnyHTTPException) -> JSONResponse:
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        if error.status_code == 405:  # Starlette names only the first route of the address
            routes = (route for router in routers for route in router.routes)  # FastAPI's own list holds routers
            found = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
            headers["allow"] = ", ".join(sorted({m for route in found for m in getattr(route, "methods", None) or ()}))
        return JSONResponse({"detail": error.detail}, error.status_code, headers)

    @api.exception_handler(InputError)
    async def fail(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)

    _describe_security(api)
    return api


def _scans(service: Service) -> APIRouter:
    router = APIRouter(tags=["scans"])

    @router.post(
        "/scans",
        status_code=202,
        openapi_extra={"requestBody": _BODY},
        responses={
            202: {"content": {"application/json": {"example": WAITING_JOB}}},
            **_problems(
                _400="the multipart form is damaged; send each file as a part named `file`",
                _413="600 MB are more than the 500 MB that are allowed; use `tumorlens run`",
                _415="send a multipart form with files, or JSON with a DICOMweb reference",
                _429="1000 jobs are waiting, and 1000 may; try again later",
                _503="the server is about to stop; send the scan again in a minute",
            ),
        },
    )
    async def submit_scan(request: Request, response: Response, treatment: Annotated[_Treatment, Query()]) -> JobAnswer:
        """Submit a scan.

        It answers before the scan is run; the job is safe by then. Several files in one request are one study.
        """
        if service.is_stopping():
            raise HTTPException(503, "the server is about to stop; send the scan again in a minute")
        if service.spool.free_bytes() < service.uploads.n_bytes:
            raise HTTPException(503, "the server's disk is nearly full; try again later", {"Retry-After": "600"})
        try:
            arrival = await asyncio.to_thread(service.spool.receive, REST)
        except FullError as error:
            later = math.ceil(min(max(service.metrics.seconds_a_job(), 1), 3600))
            raise HTTPException(429, str(error), headers={"Retry-After": str(later), "Connection": "close"}) from None
        options = treatment.model_dump(mode="json", exclude_defaults=True)
        accepting: asyncio.Task[StoredJob] | None = None
        try:
            details = await _receive(request, arrival, service)
            # It goes on when the client is gone: its thread cannot be stopped, and the files belong to the job then.
            accepting = asyncio.create_task(asyncio.to_thread(service.spool.accept, arrival, options, details))
            job = await asyncio.shield(accepting)
        except BaseException as error:
            if accepting is not None and not _has_failed(accepting):  # the job has its files, or will have them
                raise
            await asyncio.shield(asyncio.to_thread(service.spool.discard, arrival))
            if isinstance(error, OSError):
                raise HTTPException(503, f"the server cannot store the scan ({error.strerror})") from None
            if isinstance(error, ClientDisconnect):  # nobody reads the answer
                raise HTTPException(400, "the connection broke off") from None
            raise
        response.headers["Location"] = f"/v1/scans/{job.id}"
        return await asyncio.to_thread(service.answer, job)

    @router.get("/scans")
    def list_scans(
        state: Annotated[str | None, Query(description="Only jobs in this state.", **_one_of(STATES))] = None,
        limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
    ) -> JobsAnswer:
        """List jobs, the newest first."""
        jobs = service.spool.jobs(REST, state, limit)
        return JobsAnswer(jobs=[service.answer(job) for job in jobs])

    @router.get("/scans/{id}", responses=_problems(_404=_UNKNOWN, _429=_WAITERS))
    async def get_scan(
        id: JobId,
        wait: Annotated[
            float, Query(ge=0, le=_LONGEST_WAIT_S, description="Answer when it ends, or after so long.")
        ] = 0,
    ) -> JobAnswer:
        """Get the state of a job."""
        return await asyncio.to_thread(service.answer, await service.wait_for(id, wait))

    @router.post("/scans/{id}/cancel", responses=_problems(_404=_UNKNOWN))
    def cancel_scan(id: JobId) -> JobAnswer:
        """Cancel a job. One that has ended stays as it is; one that runs ends after the next few slices."""
        service.spool.cancel(service.job(id).id)
        return service.answer(service.job(id))

    @router.delete("/scans/{id}", status_code=204, responses=_problems(_404=_UNKNOWN))
    def delete_scan(id: JobId) -> None:
        """Delete a job with its files and results, and cancel it before if need be."""
        service.spool.delete(service.job(id).id)

    @router.get(
        "/scans/{id}/files/{file}",
        response_class=FileResponse,
        responses={
            200: {
                "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _TYPES.values()},
                "description": "The file.",
            },
            **_problems(
                _404="this scan has no mask.dcm; it has overlay.png, mask.png, result.json",
                _409="the job is running; its results come later",
            ),
        },
    )
    def get_file(
        id: JobId,
        file: Annotated[str, PathParameter(description="One of those that the job names.", **_one_of(_FILES))],
        scan: Annotated[int, Query(ge=1, description="Number of the scan in the job.")] = 1,
    ) -> FileResponse:
        """Get a file of a result, as `tumorlens run` writes it: result.json, overlay, mask, SEG, SR, montage."""
        job = service.ended_job(id)
        if scan > len(job.scans):
            raise HTTPException(404, f"the job has {len(job.scans)} scans with results")
        chosen = job.scans[scan - 1]
        if file not in chosen["files"]:
            raise HTTPException(404, f"this scan has no {file}; it has {', '.join(chosen['files']) or 'no files'}")
        path = _existing(job, f"{chosen['folder']}/{file}")
        return FileResponse(path, media_type=_TYPES[path.suffix[1:]], filename=file)

    @router.get(
        "/scans/{id}/results.zip",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "A zip with a folder for each scan that has a result, named by its number: "
                "1/overlay.png, 1/mask.png, 1/result.json, 2/overlay.png and so on.",
                "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
                "headers": {
                    "Content-Disposition": {
                        "description": "The name under which to save it.",
                        "schema": {"type": "string"},
                        "example": f'attachment; filename="{EXAMPLE_ID}.zip"',
                    }
                },
            },
            **_problems(
                _404="the job has no results; it says why each scan has none",
                _409="the job is running; its results come later",
            ),
        },
    )
    def get_results(id: JobId) -> StreamingResponse:
        """Get all files of all results of a job as one zip."""
        job = service.ended_job(id)
        names = [f"{scan['folder']}/{file}" for scan in job.scans for file in scan["files"]]
        if not names:
            raise HTTPException(404, "the job has no results; it says why each scan has none")
        return StreamingResponse(
            zip_pieces([(name, _existing(job, name)) for name in names]),
            media_type="application/zip",
            headers={"Content-Disposition": f'attachment; filename="{job.id}.zip"'},
        )

    return router


def _server(service: Service) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/models", responses=_problems(_503="the models are loading; ask again in a few seconds"))
    def list_models() -> ModelsAnswer:
        """Say which networks judge the scans."""
        if service.queue.pipeline is None:
            raise HTTPException(503, "the models are loading; ask again in a few seconds", {"Retry-After": "5"})
        return models_of(service.queue.pipeline)

    @router.get("/health")
    async def get_health() -> HealthAnswer:
        """Say that the server answers. It needs no token."""
        return HealthAnswer(status="ok")

    @router.get("/ready", responses=_problems(_503="the models are loading; ask again in a few seconds"))
    async def get_readiness() -> HealthAnswer:
        """Say whether scans are run: the models are loaded, and the server does not stop. It needs no token."""
        if service.is_stopping():
            raise HTTPException(503, "the server is about to stop")
        if not service.queue.ready:
            raise HTTPException(503, "the models are loading; ask again in a few seconds", {"Retry-After": "5"})
        return HealthAnswer(status="ok")

    return router


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def _existing(job: StoredJob, name: str) -> Path:
    """Raises:
    HTTPException: A file of the results is gone.
    """
    file = job.results / name
    if not file.is_file():
        raise HTTPException(404, f"{name} is gone from the server's disk; send the scan again")
    return file


async def _receive(request: Request, arrival: Any, service: Service) -> dict[str, Any]:
    """Write the files of a request into the job's folder, or return the DICOMweb reference in it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        await receive_files(request, arrival, service.uploads)
        return {}
    if kind != "application/json":
        raise HTTPException(415, "send a multipart form with files, or JSON with a DICOMweb reference")
    try:
        reference = DicomwebReference.model_validate_json(await read_json(request))
        service.servers.check(reference.dicomweb)
    except ValidationError as error:
        raise HTTPException(422, _sentence(error.errors())) from None
    except InputError as error:
        raise HTTPException(403, str(error)) from None
    return {"dicomweb": reference.dicomweb}


def _sentence(errors: Any) -> str:
    """The first of pydantic's errors, without the value, which may name a patient."""
    first = errors[0]
    where = " ".join(str(part) for part in first["loc"]) or "the body"
    return f"{where}: {first['msg']}"


def _describe_security(api: FastAPI) -> None:
    """Say in the OpenAPI description that a bearer token may be needed; `pipeline.services.guard` checks it."""
    schema = api.openapi()
    schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"token": []}, {}]
