"""`python -m tests.benchmarks.service`: the REST service under load on loopback, beside runs of the command.

Each client sends a picture and waits for its result before it sends the next. Every tenth upload is broken: it has to
fail with its sentence, and costs no other.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tumorlens.data.files import write_text
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice

_COMMAND = [sys.executable, "-m", "tumorlens.pipeline.cli.app"]
_BROKEN_EVERY = 10
_START_S, _LONGEST_S = 600, 600


@dataclass(frozen=True)
class Load:
    """What one way of running scans took.

    Attributes:
        way: Its name.
        scans: Number of good scans.
        per_second: Good scans in a second.
        p50_s: Median time from sending a scan to its result.
        p95_s: 95th percentile of the same.
        processor_s: Processor time of a good scan; it suffers less from other work on the machine. None where the
            system does not say.
        errors: Scans with another outcome than they should have.
    """

    way: str
    scans: int
    per_second: float
    p50_s: float
    p95_s: float
    processor_s: float | None
    errors: int


def measure_service(scans: int, clients: int, single: int, batches: bool = True, threads: int | None = None) -> Load:
    """Send pictures to a server of its own.

    Args:
        scans: Number of pictures.
        clients: So many send at the same time.
        single: Of these pictures, the number of the first that is not measured: the server is warm then.
        batches: Whether scans of several requests share batches.
        threads: Threads that compute.
    """
    with TemporaryDirectory(prefix="tumorlens-load-") as scratch, _Server(Path(scratch), batches, threads) as server:
        pictures = _pictures(Path(scratch))
        for picture in pictures[:single]:
            server.run(picture)
        times: list[float] = []
        errors: list[str] = []
        numbers = iter(range(scans))
        lock = threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    n = next(numbers, None)
                if n is None:
                    return
                is_broken = n % _BROKEN_EVERY == _BROKEN_EVERY - 1
                begun = time.perf_counter()
                try:
                    state = server.run(b"no picture" if is_broken else pictures[n % len(pictures)])
                except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                    state = type(error).__name__
                with lock:
                    if state != ("failed" if is_broken else "done"):
                        errors.append(state)
                    elif not is_broken:
                        times.append(time.perf_counter() - begun)

        begun, used = time.perf_counter(), server.processor_s()
        workers = [threading.Thread(target=client) for _ in range(clients)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        wall, used = time.perf_counter() - begun, server.processor_s() - used
    way = f"service, {clients} clients" + ("" if batches else ", batches of one scan")
    return _load(way, times, wall, used, len(errors))


def measure_command(scans: int, threads: int | None = None) -> Load:
    """Run the command for each picture, one after the other."""
    with TemporaryDirectory(prefix="tumorlens-load-") as scratch:
        folder = Path(scratch)
        pictures = _pictures(folder)
        times, errors, begun, before = [], 0, time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        for n in range(scans):
            source = folder / f"{n}.png"
            source.write_bytes(pictures[n % len(pictures)])
            limit = [] if threads is None else ["--threads", str(threads)]
            run = [*_COMMAND, "run", str(source), "-o", str(folder / f"out-{n}"), "-q", "--device", "cpu", *limit]
            started = time.perf_counter()
            errors += subprocess.run(run, stdout=subprocess.DEVNULL).returncode != 0
            times.append(time.perf_counter() - started)
        wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return _load("`tumorlens run`, one by one", times, wall, used, errors)


def _load(way: str, times: list[float], wall: float, used: float, errors: int) -> Load:
    each = None if math.isnan(used) or not times else round(used / len(times), 3)
    p50, p95 = np.percentile(times, [50, 95]) if times else (float("nan"),) * 2
    return Load(way, len(times), round(len(times) / wall, 3), round(float(p50), 3), round(float(p95), 3), each, errors)


def _pictures(folder: Path) -> list[bytes]:
    made = []
    for n in range(16):
        label = CLASSES[0] if n % 2 == 0 else CLASSES[1 + n % (len(CLASSES) - 1)]
        path = folder / f"picture-{n}.png"
        write_png(path, phantom_slice(n, label, size=512, pixel_mm=0.45).image)
        made.append(path.read_bytes())
    return made


class _Server:
    """A `tumorlens serve` of its own."""

    def __init__(self, folder: Path, batches: bool, threads: int | None) -> None:
        limit = [] if threads is None else ["--threads", str(threads)]
        self._process = subprocess.Popen(
            [
                *(*_COMMAND, "serve", "--port", "0", "--no-browser", "--device", "cpu", *limit),
                *("--spool", str(folder / "spool"), "--batches" if batches else "--no-batches"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "TUMORLENS_TOKEN"},
        )

    def __enter__(self) -> _Server:
        assert self._process.stdout is not None
        found = re.search(r"http://([\d.]+):(\d+)", self._process.stdout.readline())
        if found is None:
            raise RuntimeError("the server did not start")
        self._place = found[1], int(found[2])
        until = time.monotonic() + _START_S
        while self._ask("GET", "/v1/ready")[0] != 200:
            if time.monotonic() > until:
                raise RuntimeError("the models were not loaded")
            time.sleep(0.2)
        return self

    def run(self, content: bytes) -> str:
        """Send a picture, wait for its end, fetch its result; returns its state."""
        edge = secrets.token_hex(16)
        head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
        status, job = self._ask("POST", "/v1/scans", body, {"Content-Type": f"multipart/form-data; boundary={edge}"})
        if status != 202:
            return str(status)
        until = time.monotonic() + _LONGEST_S
        while job["state"] in ("waiting", "running") and time.monotonic() < until:
            job = self._ask("GET", f"/v1/scans/{job['id']}?wait=30")[1]
        if job["state"] == "done":
            self._ask("GET", f"/v1/scans/{job['id']}/files/result.json")
        return str(job["state"])

    def processor_s(self) -> float:
        """Processor time that the server has used so far."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return math.nan
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None):
        connection = http.client.HTTPConnection(*self._place, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)


def main() -> None:
    """Measure all ways, and print a table."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.service",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--scans", type=int, default=100, help="scans that the clients send together")
    parser.add_argument("--clients", type=int, default=8, help="clients at the same time")
    parser.add_argument("--single", type=int, default=5, help="scans that the command runs one by one")
    parser.add_argument("--threads", type=int, help="threads that compute; all cores if you leave it out")
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    loads = [
        measure_command(options.single, options.threads),
        measure_service(options.scans, options.clients, 3, False, options.threads),
        measure_service(options.scans, options.clients, 3, True, options.threads),
    ]
    if options.out is not None:
        write_text(options.out, json.dumps([asdict(load) for load in loads], indent=2) + "\n")
    heads = ("", "scans", "scans a second", "median, s", "95th percentile, s", "processor time of a scan, s", "errors")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for load in loads:
        print(f"| {' | '.join(str(value) for value in asdict(load).values())} |")
    print(f"batches: {loads[2].per_second / loads[1].per_second:.2f} times the scans a second of batches of one scan,")
    print(f"{loads[2].per_second / loads[0].per_second:.2f} times those of the command")


if __name__ == "__main__":
    main()
