"""Figures for Prometheus."""

from __future__ import annotations

from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tumorlens.pipeline.services.jobs import CANCELLED, DONE, FAILED, RUNNING, WAITING
from tumorlens.pipeline.services.spool import StoredJob

_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600)
_REMEMBERED = 20  # jobs whose time says how long the next will take


class Metrics:
    """Counts requests and jobs. They begin at 0 with the process; `text` shows them.

    Attributes:
        content_type: Of `text`.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tumorlens_requests", "Answers of the REST service.", ["method", "route", "status"], registry=self._registry
        )
        self._ended = Counter("tumorlens_jobs_ended", "Jobs that have ended.", ["state"], registry=self._registry)
        self._seconds = Histogram(
            "tumorlens_job_seconds", "Seconds from begin to end of a job.", registry=self._registry, buckets=_SECONDS
        )
        self._waited = Histogram(
            "tumorlens_job_waited_seconds", "Seconds that a job waited.", registry=self._registry, buckets=_SECONDS
        )
        self._jobs = Gauge("tumorlens_jobs", "Jobs in the spool.", ["state"], registry=self._registry)
        self._ready = Gauge("tumorlens_ready", "1 if the models are loaded.", registry=self._registry)
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)

    def count_request(self, method: str, route: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(method, route, status).inc()

    def count_job(self, job: StoredJob | None) -> None:
        """Count a job that has ended, unless it was deleted at once."""
        if job is None:
            return
        self._ended.labels(job.state).inc()
        if job.begun is not None and job.ended is not None:
            self._recent.append(job.ended - job.begun)
            self._seconds.observe(job.ended - job.begun)
            self._waited.observe(job.begun - job.accepted)

    def seconds_a_job(self) -> float:
        """Mean time of the last jobs; 1 before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else 1.0

    def text(self, counts: dict[str, int], ready: bool) -> bytes:
        """All figures in Prometheus's format, with the number of jobs in each state."""
        for state in (WAITING, RUNNING, DONE, FAILED, CANCELLED):
            self._jobs.labels(state).set(counts.get(state, 0))
        self._ready.set(ready)
        return generate_latest(self._registry)
