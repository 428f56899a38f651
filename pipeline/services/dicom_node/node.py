"""`Node`: what comes in becomes jobs, the models run them, and the results go out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.dicom_node.delivery import Delivery
from tumorlens.pipeline.services.dicom_node.destinations import Destination
from tumorlens.pipeline.services.dicom_node.intake import Intake
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits
from tumorlens.pipeline.services.durable import JobLimits, Worker
from tumorlens.pipeline.services.jobs import JobQueue
from tumorlens.pipeline.services.spool import Spool

if TYPE_CHECKING:
    from tumorlens.pipeline.pipeline import Pipeline
    from tumorlens.pipeline.services.dicom_node.puller import Puller
    from tumorlens.pipeline.services.dicom_node.receiver import Receiver

_LOOK_S = 0.2
_PAUSE_S = 5.0
_TIDY_S = 600.0
_log = logging.getLogger(__name__)


class Node:
    """The models and the threads around the spool. Use it as a context."""

    def __init__(
        self,
        spool: Spool,
        load: Callable[[], Pipeline],
        limits: NodeLimits,
        destination: Destination | None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        spool: Jobs, and the files that belong to them.
        load: Loads the models.
        limits: Of what comes in, and how long it is kept.
        destination: Where results go, or None.
        options: Fields of `pipeline.options.RunOptions` that differ from the defaults.
        """
        self.intake = Intake(spool, limits, options or {})
        self._queue = JobQueue(load)
        # Jobs are deleted once their results have arrived.
        self._worker = Worker(spool, self._queue, JobLimits(keep_hours=None))
        self._delivery = Delivery(spool, destination, limits)

    def __enter__(self) -> Node:
        with ExitStack() as stack:
            for part in (self._delivery, self._queue, self._worker):  # they close the other way round
                stack.callback(part.close)
            self._queue.start()
            self._worker.start()
            self._delivery.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def serve(self, receiver: Receiver, host: str, port: int, announce: Callable[[int], None]) -> None:
        """Receive studies until somebody stops it.

        Args:
            receiver: Fills `intake`.
            host: Name or address to listen on.
            port: Port to listen on; 0 takes any that is free.
            announce: Called with the port once it listens.

        Raises:
            InputError: The port cannot be used, or the models cannot be loaded.
        """
        try:
            announce(receiver.start(host, port))
            self._look_after(lambda: None, 0)
        finally:
            receiver.stop()

    def poll(self, puller: Puller, seconds: float) -> None:
        """Fetch studies, looking for new ones every so many seconds, until somebody stops it.

        Raises:
            InputError: The models cannot be loaded.
        """
        self._look_after(puller.poll, seconds)

    def _look_after(self, poll: Callable[[], None], seconds: float) -> None:
        next_poll = next_tidy = 0.0
        while not self._queue.problem:
            now = time.monotonic()
            try:
                if now >= next_tidy:
                    self.intake.tidy()
                    next_tidy = now + _TIDY_S
                if now >= next_poll:
                    poll()
                    next_poll = time.monotonic() + seconds
                self.intake.close_complete()
            except (InputError, OSError) as error:  # the disk is full; it may have room again
                _log.error("%s", error if isinstance(error, InputError) else f"the spool: {error.strerror}")
                time.sleep(_PAUSE_S)
            time.sleep(_LOOK_S)
        raise InputError(self._queue.problem)
