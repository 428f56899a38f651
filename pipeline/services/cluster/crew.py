"""`RayCrew`: workers on one machine or many, which Ray starts and whose death it reports.

We use Ray's actors, not Ray Data: its pools try a task whose worker dies again and again, for ever, and a file that
kills each worker must not stop the others.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tumorlens.data.devices import usable_cores
from tumorlens.data.errors import InputError, needs, reason_of
from tumorlens.data.labels import ClassList
from tumorlens.data.masks.regions import Regions
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.options import LoadOptions
from tumorlens.pipeline.services.cluster.batch import MOST_TRIES, START_SECONDS, GiveUp, Outcome, Queue, Worker
from tumorlens.pipeline.services.stores.parcel import Parcel

_CORES = 4  # of a worker; more make one scan faster, not the batch
_OBJECTS = 80 * 2**20  # bytes of Ray's store: what we send is small
_STARTS = 3  # workers in a row that may die while they load the models
_PATIENCE = 30.0  # seconds between two looks at those who are silent
_GRACE = 60.0  # seconds for all that a worker's own alarm does not count
_ANSWER_S = 10.0
_SETTINGS = bytes((4, 0, 0, 0, 0, 0))  # of a frame's head, after its length: type, flags, stream
_log = logging.getLogger(__name__)


class RayCrew:
    """Workers that Ray starts, and starts again where they die.

    Args:
        ray: The package, connected to a cluster.
        make: Makes a worker, whose number of threads is given.
        load: The models, with device and threads.
        n_workers: By default one for each GPU or, without any, for every 4 cores.
    """

    def __init__(
        self, ray: Any, make: Callable[[LoadOptions], Worker], load: LoadOptions, n_workers: int | None = None
    ) -> None:
        self.ray = ray
        self.n_workers, cores, gpus = shape_of(ray.cluster_resources(), load, n_workers)
        worker = make(load if gpus or cores >= usable_cores() else replace(load, threads=cores))
        arguments = worker.load, worker.options, worker.out, worker.readers, worker.seconds
        self.seconds = worker.seconds
        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_restarts=0, max_task_retries=0)(type(worker))
        self._hire = lambda: remote.remote(*arguments)
        self.settings: dict[str, Any] | None = None
        # Reference to an answer -> worker, parcels, and when the answer must be there.
        self.busy: dict[Any, tuple[Any, list[Parcel], float]] = {}
        self.idle: list[Any] = []
        self.dead_starts = 0

    def start(self) -> tuple[ClassList, Regions, dict[str, Any]]:
        for _ in range(self.n_workers):
            self._add_worker()
        while True:
            actor, _, answer, _ = self._next()
            if answer is not None:
                self.idle.append(actor)
                return answer

    def run(self, parcels: Sequence[Parcel], resume: bool, give_up: GiveUp) -> Iterator[Outcome]:
        queue, tries = Queue(parcels, self.n_workers, resume), Counter[str]()
        while True:
            while self.idle and not queue.empty:
                actor = self.idle.pop()
                some, may_be_there = queue.take()
                until = time.monotonic() + self.seconds * len(some) + _GRACE
                self.busy[actor.run.remote(some, may_be_there)] = actor, some, until
            if queue.empty and not any(some for _, some, _ in self.busy.values()):
                return
            actor, some, answer, is_late = self._next()
            if answer is not None:
                self.idle.append(actor)
                yield from answer if some else ()
                continue
            if len(some) == 1:  # nobody else can be blamed
                tries[some[0].job.name] += 1
            if len(some) == 1 and tries[some[0].job.name] >= MOST_TRIES:
                yield give_up(some[0], self.seconds if is_late else None)
            else:
                queue.alone.extend(some)

    def _add_worker(self) -> None:
        actor = self._hire()
        self.busy[actor.start.remote(str(Path.cwd()))] = actor, [], math.inf  # it may have to wait for free cores

    def _next(self) -> tuple[Any, list[Parcel], Any, bool]:
        """A worker, what it had to do (nothing: to start), its answer, and whether its time was over.

        The answer is None if it has died, and has a successor.
        """
        ready: list[Any] = []
        begun, has_warned = time.monotonic(), False
        while not ready:
            ready, _ = self.ray.wait([*self.busy], num_returns=1, timeout=_PATIENCE)
            if ready:  # perhaps others, too: this process was busy, or stopped, and nobody is late
                break
            if self.settings is None:
                _log.warning("no worker has started yet; the cluster has no free cores, or is still starting machines")
            ready, silent = self.ray.wait([*self.busy], num_returns=len(self.busy), timeout=0)
            n_waiting = 0
            for actor, some, until in (self.busy[answer] for answer in silent):
                if time.monotonic() > until:  # its own alarm did not end it: it was stopped (SIGSTOP), or its machine
                    self.ray.kill(actor)
                elif some:
                    n_waiting += 1
            seconds = time.monotonic() - begun
            if n_waiting and not ready and seconds > self.seconds and not has_warned:
                _log.warning("workers that have not answered for %.0f seconds: %d", seconds, n_waiting)
                has_warned = True
        actor, some, until = self.busy.pop(ready[0])
        is_late = time.monotonic() > until - _GRACE  # so its alarm has ended it, or we have
        try:
            answer = self.ray.get(ready[0])
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, InputError):
                raise cause from None
            _log.warning("a worker has died, or took too long and was ended; another takes its place")
            self.dead_starts += not some
            if self.dead_starts >= _STARTS:
                raise InputError(
                    f"the workers die while they load the models, or take more than {START_SECONDS:g} seconds for it "
                    f"({reason_of(error)}); give them more memory, or have fewer of them with --workers"
                ) from None
            self.ray.kill(actor)
            self._add_worker()
            return actor, some, None, is_late
        if not some:
            self.dead_starts = 0
            self._check_settings(answer[1])
        return actor, some, answer, is_late

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Check that all workers compute alike, so that it makes no difference which one gets a scan."""
        if self.settings is None:
            self.settings = settings
        elif self.settings != settings:
            different = [name for name in settings if settings[name] != self.settings.get(name)]
            raise InputError(
                f"the machines of the cluster do not compute alike ({', '.join(different)}); give --device, --engine "
                "and --precision that all of them have, and install one version of tumorlens"
            )

    def end(self) -> None:
        """End all workers."""
        for actor in (*self.idle, *(actor for actor, _, _ in self.busy.values())):
            self.ray.kill(actor)


def shape_of(resources: dict[str, float], load: LoadOptions, n_workers: int | None) -> tuple[int, int, float]:
    """The number of workers, and the cores and GPUs of each.

    Args:
        resources: What the cluster has, as Ray reports it.
        load: Device and threads.
        n_workers: What you asked for, or None.
    """
    n_cores, n_gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    if n_gpus and load.engine != "openvino" and load.device in ("auto", "cuda"):
        n = n_workers or n_gpus
        return n, load.threads or max(1, min(_CORES, n_cores // n)), min(1.0, n_gpus / n)
    cores = load.threads or max(1, min(_CORES, n_cores // (n_workers or 1)))
    return n_workers or max(1, n_cores // cores), cores, 0


@contextmanager
def connected(address: str, n_cores: int | None = None) -> Iterator[Any]:
    """The package Ray, connected to a cluster.

    Args:
        address: ``local`` starts one on this machine, which ends with the block; ``auto`` or ``HOST:PORT`` is one that
            runs.
        n_cores: Cores of the local one, by default all.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")  # a busy machine takes longer than the 20 s
    if address == "local":  # only this machine can reach it, with a token that lives as long as this process
        os.environ.setdefault("RAY_worker_niceness", "0")  # by default any other program goes before the workers
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for: listen on 127.0.0.1, on any system
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray reads it once in a process
    with needs("--ray"):
        import ray
    with suppress(AttributeError):  # Ray's lists of jobs show the command line, and so what a query or signature holds
        ray._private.utils.get_entrypoint_name = lambda: "tumorlens"
    quiet = {"log_to_driver": False, "logging_level": "CRITICAL", "namespace": "tumorlens"}
    on_termination = signal.getsignal(signal.SIGTERM)
    with ScratchFolder() as scratch:
        try:
            if address == "local":
                ray.init(
                    "local",
                    num_cpus=max(usable_cores(), n_cores or 1),
                    include_dashboard=False,
                    object_store_memory=_OBJECTS,
                    _temp_dir=scratch,
                    _plasma_directory=scratch,  # /dev/shm of a container may hold 64 MB
                    **quiet,
                )
            else:
                _check_answers(address)
                ray.init(address, **quiet)
        except Exception as error:  # Ray raises errors of many kinds
            where = "Ray cannot start on this machine" if address == "local" else f"no Ray cluster answers at {address}"
            raise InputError(f"{where} ({reason_of(error)})") from None
        # Ray prints to our standard output that a worker has died, whatever `log_to_driver` says; --json is there.
        with suppress(AttributeError):
            ray._private.worker.print_to_stdstream = lambda *_, **__: None
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, on_termination)  # Ray has put its own handler there
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise an `OSError` if no server of Ray's kind answers at an address; Ray would try for two minutes.

    Its servers speak gRPC, so HTTP/2: they begin with a frame of settings (RFC 9113, 3.4), which other programs do not.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=_ANSWER_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # the frame is encrypted
            return
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS)
        with connection.makefile("rb") as answer:
            if answer.read(9)[3:] != _SETTINGS:
                raise OSError("another program answers there")
