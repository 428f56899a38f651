"""`python -m tests.benchmarks.cluster`: what scheduling costs a scan, with 1, 8 and 64 workers that sleep.

A worker sleeps instead of computing, so that many of them share two cores: up to eight in one process, as threads. What
remains of the time, beside the sleep, is the price of Ray and of our queue. The tables are written as in a real run;
files of scans are not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from tumorlens.data.labels import SHIPPED_CLASSES, ClassList
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.options import LoadOptions, RunOptions
from tumorlens.pipeline.outputs.table import COLUMNS
from tumorlens.pipeline.services.cluster.batch import Outcome, Worker, run_with
from tumorlens.pipeline.services.cluster.crew import RayCrew, connected
from tumorlens.pipeline.services.stores.output import Output
from tumorlens.pipeline.services.stores.parcel import Parcel

SECONDS = 0.5  # a scan
_THREADS = 8


class SleepingWorker(Worker):
    """Sleeps for each scan, and says that it is healthy."""

    def start(self, folder: str = "") -> tuple[ClassList, Regions, dict[str, Any]]:
        return SHIPPED_CLASSES, NO_REGIONS, {}

    def run(self, parcels: Sequence[Parcel], resume: bool) -> list[Outcome]:
        time.sleep(SECONDS * len(parcels))
        row = dict.fromkeys(COLUMNS, "") | {"label": "no_tumor", "confidence": "1.0000"}
        return [Outcome(p.job.name, row | {"scan": p.job.name}, {}, False) for p in parcels]


def overhead(n_workers: int, n_scans: int) -> tuple[float, float]:
    """Seconds until all scans are done, and of a worker's time a scan beside the sleep; workers have started before."""
    with tempfile.TemporaryDirectory() as folder, connected("local") as ray:
        place, load = Path(folder), LoadOptions(threads=1, device="cpu")
        crew = RayCrew(ray, lambda load: SleepingWorker(load, RunOptions(), place), load, n_workers)
        remote = ray.remote(num_cpus=0, max_concurrency=_THREADS)(SleepingWorker)
        n_processes = -(-n_workers // _THREADS)
        processes = cycle([remote.remote(load, RunOptions(), place) for _ in range(n_processes)])
        crew._hire = lambda: next(processes)
        started = crew.start()
        while len(crew.idle) < n_workers:
            crew.idle.append(crew._next()[0])
        crew.start = lambda: started  # type: ignore[method-assign]
        jobs = [Job(place / f"{n}.png", f"{n}.png") for n in range(n_scans)]
        ends: list[float] = []
        begun = time.perf_counter()
        report = run_with(
            crew, jobs, [], Output(place), done=lambda job, row, content: ends.append(time.perf_counter())
        )
        taken = ends[-1] - begun  # the table at the end is paid once
        crew.end()
    assert len(report.rows) == n_scans
    return taken, taken * n_workers / n_scans - SECONDS


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.cluster", description=main.__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--scans", type=int, default=20, help="scans for each worker")
    options = parser.parse_args()
    print("workers  scans  seconds  overhead a scan, of one worker's time")
    for n in options.workers:
        taken, cost = overhead(n, n * options.scans)
        print(f"{n:7}  {n * options.scans:5}  {taken:7.1f}  {1000 * cost:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
