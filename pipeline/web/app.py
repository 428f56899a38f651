"""The server: one application with all pages and the REST service, one job queue, one guard in front."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI
from nicegui import app as pages
from nicegui import ui

from tumorlens.data.errors import InputError
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.options import ServiceOptions, UploadLimits
from tumorlens.pipeline.services.durable import JobLimits, Worker
from tumorlens.pipeline.services.guard import LOCAL_HOSTS, Guard
from tumorlens.pipeline.services.jobs import JobQueue
from tumorlens.pipeline.services.rest.dicomweb import DicomwebServers
from tumorlens.pipeline.services.rest.service import Service, build_api, figures_of
from tumorlens.pipeline.services.spool import REST, Spool, open_spool
from tumorlens.pipeline.services.uploads import Visits
from tumorlens.pipeline.versions import package_versions
from tumorlens.pipeline.web import theme, try_scan

if TYPE_CHECKING:
    from tumorlens.pipeline.pipeline import Pipeline
    from tumorlens.pipeline.services.reviews.desk import Desk

_CLOSED = ("JavaScript did not respond", "has been deleted")  # NiceGUI's errors after a page is closed
_PATIENCE_S = 2  # for open connections when the server stops


def build_app(visits: Visits, service: Service, desk: Desk | None = None, token: str = "") -> Guard:
    """The application. NiceGUI has one set of pages in a process, so call it once.

    Args:
        visits: Of the page on which scans are tried; its queue is that of the application.
        service: The REST service on the same queue.
        desk: The results to review, or None.
        token: Everybody needs it; empty lets this machine in without one.
    """
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    theme.install(theme.TRY, *([theme.REVIEW] if desk else []))
    try_scan.register(visits)
    if desk is not None:
        from tumorlens.pipeline.web.review import register as register_review
        from tumorlens.pipeline.web.worklist import register as register_worklist

        register_worklist(desk)
        register_review(desk)
    application.mount("/v1", build_api(service, package_versions()["tumorlens"]))
    application.include_router(figures_of(service))
    ui.run_with(
        application,
        title="tumorlens",
        dark=None,  # as the browser prefers
        language="en-US",
        favicon=theme.FAVICON,
        show_welcome_message=False,
    )
    return Guard(application, token)


def run_server(
    load: Callable[[], Pipeline],
    host: str,
    port: int,
    announce: Callable[[str], None],
    token: str = "",
    limits: UploadLimits | None = None,
    desk: Desk | None = None,
    options: ServiceOptions | None = None,
) -> None:
    """Serve until somebody stops it. Temporary files are gone afterwards; jobs in the spool stay.

    Args:
        load: Loads the models.
        host: Name or address to listen on.
        port: Port to listen on; 0 takes any that is free.
        announce: Called with the address once the server answers.
        token: As in `build_app`; needed for a host that other machines reach.
        limits: Of uploads; by default those of `UploadLimits`.
        desk: The results to review, or None.
        options: Of the REST service.

    Raises:
        InputError: The host or port cannot be used, a token is missing, the models cannot be loaded, or another server
            has the spool.
    """
    if host not in LOCAL_HOSTS and not token:
        raise InputError(f"other machines may reach {host}, so give a secret with --token or TUMORLENS_TOKEN")
    limits, options = limits or UploadLimits(), options or ServiceOptions()
    servers = DicomwebServers(options.dicomweb, limits)
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(host, port))
        if desk is not None:
            stack.callback(desk.close)
        spool = stack.enter_context(_open_spool(options, port))
        queue = JobQueue(load, give_up=lambda: setattr(server, "should_exit", True))
        visits = Visits(queue, limits)
        stack.callback(visits.close)
        worker = Worker(
            spool,
            queue,
            JobLimits(options.job_seconds, 1e6 * options.megavoxels, options.keep_results),
            servers.fetch,
            on_end=lambda id: service.note_end(id),
            together=options.batches,
        )
        service = Service(spool, queue, worker, limits, servers, is_stopping=lambda: server.should_exit)
        name = f"[{host}]" if ":" in host else host
        query = f"?token={quote(token, safe='')}" if token else ""
        address = f"http://{name}:{listening.getsockname()[1]}/{query}"
        pages.on_startup(lambda: announce(address))
        config = uvicorn.Config(
            build_app(visits, service, desk, token),
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_PATIENCE_S,
        )
        _shorten_logs()
        server = uvicorn.Server(config)
        stack.callback(queue.close)
        stack.callback(worker.close)
        queue.start()
        worker.start()
        server.run(sockets=[listening])
    if queue.problem:
        raise InputError(queue.problem)


@contextmanager
def _open_spool(options: ServiceOptions, port: int) -> Iterator[Spool]:
    """The spool of ``--spool``, else of the user and the port; a temporary one where any port will do."""
    if options.spool is None and port == 0:  # the next start would not find it
        scratch = ScratchFolder()
        spool = Spool(Path(scratch.name), options.queue, lasting=False)
        try:
            yield spool
        finally:
            spool.close()
            scratch.cleanup()
        return
    from platformdirs import user_state_path

    folder = options.spool or user_state_path("tumorlens", appauthor=False) / "jobs" / str(port)
    with open_spool(folder, REST, options.queue) as spool:
        yield spool


def _shorten_logs() -> None:
    """Print a line for a fault of ours, and nothing for a page that was closed too early; --verbose prints all."""
    logging.getLogger("nicegui").setLevel(logging.ERROR)  # it warns of every address that does not exist
    for name in ("nicegui", "uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info and record.exc_info[1] else record.msg
    if not isinstance(error, BaseException) or logging.getLogger().isEnabledFor(logging.INFO):
        return True
    if isinstance(error, asyncio.CancelledError):  # the server stops, and has waited for the request long enough
        return False
    if isinstance(error, TimeoutError | RuntimeError) and any(words in str(error) for words in _CLOSED):
        return False
    # Its text and its trace are left out: they may quote a header, and so a patient.
    record.msg, record.args = f"tumorlens: internal error, please report it ({type(error).__name__})", ()
    record.exc_info = record.exc_text = None
    return True


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: The host is not known, or the port cannot be used.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host {host}: this machine does not know the name ({error})") from None
    listening = socket.socket(family, kind)
    try:
        if hasattr(socket, "SO_REUSEPORT"):  # not on Windows, where the other option lets two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen()
    except OSError as error:
        listening.close()
        raise InputError(
            f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port"
        ) from None
    return listening
