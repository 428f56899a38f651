"""`tumorlens run --ray`: the same results as without, whatever dies in between."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.conftest import REPOSITORY
from tests.pipeline.batch.results import contents
from tests.pipeline.services.cluster.workers import (
    DEATHS,
    FastWorker,
    MortalWorker,
    OnceMortalWorker,
    StoppedWorker,
    StuckLoader,
    StuckWorker,
)
from tests.scans.orthanc import needs_orthanc, running_orthanc
from tests.scans.pictures import save, save_volume, table
from tests.scans.studies import HEALTHY, SICK, series
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.options import LoadOptions, RunOptions
from tumorlens.pipeline.outputs import QUARANTINE
from tumorlens.pipeline.services.cluster import batch, crew
from tumorlens.pipeline.services.cluster.batch import MOST_TRIES, Here, Queue, run_with
from tumorlens.pipeline.services.cluster.crew import RayCrew, connected, shape_of
from tumorlens.pipeline.services.stores.mirror import mirror_inputs
from tumorlens.pipeline.services.stores.output import Output

LABELS = ("meningioma", "no_tumor", "glioma", "pituitary")
N_PICTURES = 9


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Pictures, two volumes of one study that contradict each other, a zip, a DICOM series, and a damaged file."""
    folder = tmp_path_factory.mktemp("in") / "scans"
    for n in range(N_PICTURES):
        save(folder / f"p{n % 3}" / f"{n} [{n}].png", phantom_slice(60 + n, LABELS[n % 4], 128, 1.7).image)
    (folder / "p1" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for name, label in (("t1c", "meningioma"), ("flair", "no_tumor")):
        volume = phantom_volume(7, label, (96, 112, 12), (2.0, 2.0, 10.0))
        save_volume(folder / "vol" / f"s_{name}.nii.gz", volume)
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        archive.write(folder / "p0" / "0 [0].png", "inside/0.png")
    (folder / "dicom").mkdir()
    for path in series(folder / "tmp", SICK):
        path.rename(folder / "dicom" / path.name)
    (folder / "tmp").rmdir()
    return folder


@pytest.fixture(scope="module")
def plain(scans, tmp_path_factory):
    """The results of the scans without Ray."""
    root = tmp_path_factory.mktemp("plain")
    work = collect([str(scans)], root / "out", root)
    run_batch(FastWorker(LoadOptions(), RunOptions(), root).load_pipeline(), work.jobs, root / "out")
    return root / "out"


@pytest.fixture(scope="module")
def ray(s3, tmp_path_factory):
    """A local cluster of two cores, whose workers know the store and count their deaths in a file."""
    if find_spec("ray") is None:  # it reads its environment when it is imported, so `connected` has to do that
        pytest.skip("Ray is not installed: pip install 'tumorlens[cluster]'")
    os.environ[DEATHS] = str(tmp_path_factory.mktemp("ray") / "deaths")
    with connected("local", 2) as ray:
        yield ray


@pytest.fixture
def deaths(ray):
    """The processes that have died."""
    file = Path(os.environ[DEATHS])
    file.write_text("")
    return lambda: file.read_text().splitlines()


@pytest.fixture(scope="module")
def s3(scans):
    """A server that speaks S3, and the scans in it; the URL of a bucket."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.mkdir("archive")
        files = [file for file in scans.rglob("*") if file.is_file()]
        store.put([str(f) for f in files], [f"archive/scans/{f.relative_to(scans)}" for f in files])
        yield store
    server.stop()


def run_in(crew_of, source, out, scratch, resume=False):
    """Run the scans of a folder or URL; returns the report, and the crew's own errors and kept results."""
    place = Output.at(str(out), scratch)
    inputs = mirror_inputs([str(source)], scratch / "urls", str(out))
    place.pull(content=resume)
    work = collect(inputs.paths, place.folder, scratch, (), inputs.origins)
    crew = crew_of(place.store or place.folder.absolute())
    try:
        return run_with(crew, [*work.jobs, *inputs.problems], inputs.remote, place, resume)
    finally:
        if isinstance(crew, RayCrew):
            crew.end()


def on_ray(ray, worker=FastWorker, n=2, seconds=math.inf):
    return lambda place: RayCrew(
        ray, lambda load: worker(load, RunOptions(), place, 2, seconds), LoadOptions(threads=1), n_workers=n
    )


def here(place):
    return Here(FastWorker(LoadOptions(), RunOptions(), place, 2))


def without_places(files, place):
    return files | {"results.csv": files["results.csv"].replace(str(place).encode(), b"")}


@pytest.mark.slow
def test_results_are_the_same_with_ray_and_without(ray, scans, plain, tmp_path):
    report = run_in(on_ray(ray), scans, tmp_path / "out", tmp_path)
    assert report.failed == 1 and len(report.rows) == N_PICTURES + 5
    assert contents(tmp_path / "out") == contents(plain)
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "out" / "results.parquet").to_pylist()
    for row, typed in zip(table(plain), parquet, strict=True):
        assert list(row) == list(typed) and row["scan"] == typed["scan"]
        assert typed["confidence"] == (float(row["confidence"]) if row["confidence"] else None)
        assert typed["tumor_area_px"] == (int(row["tumor_area_px"]) if row["tumor_area_px"] else None)
        assert typed["prediction_set"] == (row["prediction_set"].split("|") if row["prediction_set"] else None)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("result.json")}
    again = run_in(on_ray(ray), scans, tmp_path / "out", tmp_path / "2", resume=True)
    assert again.kept == N_PICTURES + 4
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("result.json")}


@pytest.mark.slow
@pytest.mark.parametrize("with_ray", [False, True], ids=["here", "ray"])
def test_scans_and_results_may_lie_in_s3(with_ray, request, s3, scans, plain, tmp_path):
    """With and without Ray; a second call runs nothing, and the store then has nothing half-written."""
    crew = on_ray(request.getfixturevalue("ray")) if with_ray else here
    out = f"s3://archive/out{with_ray}"
    report = run_in(crew, "s3://archive/scans", out, tmp_path / "1")
    assert report.failed == 1
    s3.get(out, str(tmp_path / "out"), recursive=True)
    assert without_places(contents(tmp_path / "out"), "s3://archive/scans") == without_places(contents(plain), scans)
    before = {path: about["LastModified"] for path, about in s3.find(out, detail=True).items()}
    again = run_in(crew, "s3://archive/scans", out, tmp_path / "2", resume=True)
    assert again.kept == N_PICTURES + 4 and again.rows == report.rows
    after = {path: about["LastModified"] for path, about in s3.find(out, detail=True).items()}
    assert {path for path in before if "/results." not in path and before[path] != after[path]} == set()
    assert set(before) == set(after)


@pytest.mark.slow
@needs_orthanc
@pytest.mark.parametrize("with_ray", [False, True], ids=["here", "ray"])
def test_scans_may_lie_on_a_dicomweb_server(with_ray, request, tmp_path):
    crew = on_ray(request.getfixturevalue("ray")) if with_ray else here
    for study, phantom in (("1.2.8", SICK), ("1.2.9", HEALTHY)):
        uid = f"{study}.1"
        for path in series(tmp_path / "tmp", phantom, StudyInstanceUID=study, SeriesInstanceUID=uid):
            file = tmp_path / "in" / study / uid / f"{pydicom.dcmread(path).SOPInstanceUID}.dcm"
            file.parent.mkdir(parents=True, exist_ok=True)
            path.rename(file)
    run_in(here, tmp_path / "in", tmp_path / "plain", tmp_path / "0")
    with running_orthanc(tmp_path / "orthanc", HttpThreadsCount=4) as server:
        server.upload(sorted((tmp_path / "in").rglob("*.dcm")))
        query = f"dicomweb+{server.url}/dicom-web?PatientID=PID-77881Q"
        report = run_in(crew, query, tmp_path / "out", tmp_path / "1")
        assert report.failed == 0 and len(report.rows) == 2
        assert contents(tmp_path / "out") == contents(tmp_path / "plain")
        again = run_in(crew, query, tmp_path / "out", tmp_path / "2", resume=True)
        assert again.kept == 2 and again.rows == report.rows


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_scan(ray, deaths, scans, s3, plain, tmp_path):
    save(tmp_path / "in" / "deadly.png", np.random.default_rng(0).integers(100, 255, (128, 128), np.uint8))
    for n in range(6):
        save(tmp_path / "in" / f"{n}.png", phantom_slice(60 + n, LABELS[n % 4], 128, 1.7).image)
    report = run_in(on_ray(ray, OnceMortalWorker), tmp_path / "in", "s3://archive/killed", tmp_path / "s")
    assert len(deaths()) == 1
    assert report.failed == 0 and [row["scan"] for row in report.rows] == [
        *(f"{n}.png" for n in range(6)),
        "deadly.png",
    ]
    assert len(s3.glob("archive/killed/*/result.json")) == 7


@pytest.mark.slow
@pytest.mark.parametrize("in_s3", [False, True], ids=["folder", "s3"])
def test_a_file_that_kills_every_worker_is_quarantined(ray, deaths, in_s3, s3, tmp_path):
    save(tmp_path / "in" / "deadly.png", np.random.default_rng(0).integers(100, 255, (128, 128), np.uint8))
    for n in range(3):
        save(tmp_path / "in" / f"{n}.png", phantom_slice(60 + n, LABELS[n % 4], 128, 1.7).image)
    source, out = tmp_path / "in", tmp_path / "out"
    if in_s3:
        source, out = "s3://archive/deadly", "s3://archive/out_deadly"
        s3.put(str(tmp_path / "in"), "archive/deadly", recursive=True)
    report = run_in(on_ray(ray, MortalWorker), source, out, tmp_path / "1")
    n_deaths = len(deaths())
    assert MOST_TRIES <= n_deaths <= MOST_TRIES + 1  # once perhaps in company
    errors = {row["scan"]: row["error"] for row in report.rows}
    assert [name for name, error in errors.items() if error] == ["deadly.png"]
    assert f"ended its process {MOST_TRIES} times, so" in errors["deadly.png"] and QUARANTINE in errors["deadly.png"]
    again = run_in(on_ray(ray, MortalWorker), source, out, tmp_path / "2", resume=True)
    assert len(deaths()) == n_deaths and again.kept == 3  # nobody has tried
    assert {row["scan"]: row["error"] for row in again.rows} == errors
    if not in_s3:
        (out / "deadly" / QUARANTINE).unlink()  # as the message says
        fresh = run_in(on_ray(ray, OnceMortalWorker), source, out, tmp_path / "3", resume=True)
        assert fresh.failed == 0 and (out / "deadly" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("worker", [StuckWorker, StoppedWorker])
def test_a_scan_that_takes_too_long_is_tried_three_times_and_quarantined(ray, deaths, worker, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "_PATIENCE", 1.0)
    monkeypatch.setattr(crew, "_GRACE", 1.0)
    save(tmp_path / "in" / "deadly.png", np.random.default_rng(0).integers(100, 255, (128, 128), np.uint8))
    for n in range(3):
        save(tmp_path / "in" / f"{n}.png", phantom_slice(60 + n, LABELS[n % 4], 128, 1.7).image)
    report = run_in(on_ray(ray, worker, n=1, seconds=5.0), tmp_path / "in", tmp_path / "out", tmp_path / "1")
    assert MOST_TRIES <= len(deaths()) <= MOST_TRIES + 1
    assert {row["scan"]: bool(row["error"]) for row in report.rows} == {
        **dict.fromkeys(("0.png", "1.png", "2.png"), False),
        "deadly.png": True,
    }
    error = report.rows[-1]["error"]
    assert "took longer than --job-seconds allows (5)" in error and "raise --job-seconds, or delete" in error
    assert (tmp_path / "out" / "deadly" / QUARANTINE).is_file()
    same = run_in(on_ray(ray, worker, n=1, seconds=5.0), tmp_path / "in", tmp_path / "out", tmp_path / "2", resume=True)
    assert same.rows[-1]["error"] == error
    more = on_ray(ray, FastWorker, n=1, seconds=6.0)
    assert run_in(more, tmp_path / "in", tmp_path / "out", tmp_path / "3", resume=True).failed == 0
    assert not (tmp_path / "out" / "deadly" / QUARANTINE).is_file()


@pytest.mark.slow
def test_models_that_take_too_long_end_the_run(ray, scans, tmp_path):
    with pytest.raises(InputError, match="or take more than 600 seconds"):
        run_in(on_ray(ray, StuckLoader, n=1, seconds=5.0), scans, tmp_path / "out", tmp_path)


def test_the_alarm_of_a_worker_starts_again_with_each_scan(tmp_path, monkeypatch):
    calls = []

    class Timer:
        dump_traceback_later = staticmethod(lambda seconds, exit: calls.append((seconds, exit)))
        cancel_dump_traceback_later = staticmethod(lambda: calls.append("cancelled"))

    monkeypatch.setattr(batch, "faulthandler", Timer)
    monkeypatch.chdir(tmp_path)
    for n in range(3):
        save(tmp_path / "in" / f"{n}.png", phantom_slice(60 + n, LABELS[n], 128, 1.7).image)
    run_in(lambda place: Here(FastWorker(LoadOptions(), RunOptions(), place, 1, 9.0)), "in", tmp_path / "out", tmp_path)
    loaded, all_at_once = [(batch.START_SECONDS, True), "cancelled"], [(9.0, True)] * 2 + ["cancelled"]
    assert calls == [*loaded, *3 * all_at_once]
    calls.clear()
    run_in(here, "in", tmp_path / "out", tmp_path, resume=True)
    assert calls == [], "the process of the user has no alarm"


def test_the_alarm_ends_native_code():
    script = (
        "import time\n"
        "from tests.pipeline.services.cluster.workers import never_return\n"
        "from tumorlens.pipeline.services.cluster.batch import _alarm\n"
        "with _alarm(5.0) as again:\n"
        "    for _ in range(3):\n"
        "        time.sleep(2.0)\n"
        "        again()\n"
        "print('alive', flush=True)\n"
        "with _alarm(1.0):\n"
        "    never_return()\n"
        "print('returned')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "alive\n") and "in never_return" in done.stderr


class HalfCrew(Here):
    """Gives up the first scan, runs the others, and then does something else."""

    def run(self, parcels, resume, give_up):
        yield give_up(parcels[0], 9.0)
        yield from self.worker.run(parcels[1:], resume)
        self.then()


def half_run(tmp_path, then):
    """Run two pictures with a `HalfCrew`."""
    for n in range(2):
        save(tmp_path / "in" / f"{n}.png", phantom_slice(60 + n, LABELS[n], 128, 1.7).image)
    half = HalfCrew(FastWorker(LoadOptions(), RunOptions(), tmp_path / "out"))
    half.then = then
    return run_in(lambda place: half, tmp_path / "in", tmp_path / "out", tmp_path / "scratch")


def test_no_scan_waits_for_the_hash_of_one_in_quarantine(tmp_path, monkeypatch):
    others_are_done = threading.Event()
    monkeypatch.setattr(batch, "_hash_of", lambda parcel: "hash" if others_are_done.wait(20) else "too early")
    report = half_run(tmp_path, others_are_done.set)
    assert [bool(row["error"]) for row in report.rows] == [True, False]
    record = json.loads((tmp_path / "out" / "0" / QUARANTINE).read_text())
    assert (record["made_of"]["source_sha256"], record["job_seconds"]) == ("hash", 9.0)
    assert record["error"] in report.rows[0]["error"]


def test_a_run_that_is_stopped_does_not_wait_for_a_hash(tmp_path, monkeypatch):
    let_go = threading.Event()
    monkeypatch.setattr(batch, "_hash_of", lambda parcel: let_go.wait(60))

    def stop():
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        half_run(tmp_path, stop)
    assert time.monotonic() - begun < 30
    assert [bool(row["error"]) for row in table(tmp_path / "out")] == [True, False]
    assert json.loads((tmp_path / "out" / "0" / QUARANTINE).read_text())["made_of"]["source_sha256"] is None
    let_go.set()


def test_a_scan_that_nobody_can_read_has_no_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_HASH_SECONDS", 0.2)
    let_go = threading.Event()

    class Endless:
        def fetch(self, place):
            let_go.wait(60)
            raise InputError("the store has answered at last")

    begun = time.monotonic()
    assert batch._hash_of(Endless()) is None and time.monotonic() - begun < 5
    let_go.set()


def test_a_scan_that_cannot_be_written_has_no_hash(monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    class Unwritable:
        def fetch(self, place):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert batch._hash_of(Unwritable()) is None and not raised


def test_workers_are_late_only_if_nobody_has_answered():
    """This process may have been busy, or stopped, for longer than a scan may take."""
    killed, waits = [], []

    class Ray:
        def wait(self, answers, num_returns, timeout):
            ready = waits.pop(0)
            return ready, [answer for answer in answers if answer not in ready]

        kill = staticmethod(killed.append)
        get = staticmethod(lambda answer: [answer])

    mates = RayCrew.__new__(RayCrew)
    mates.ray, mates.settings, mates.seconds = Ray(), {}, 600.0
    mates.busy = {n: (f"worker {n}", [f"parcel {n}"], 0.0) for n in range(3)}
    waits[:] = [[0]]
    assert mates._next() == ("worker 0", ["parcel 0"], [0], True) and not killed
    mates.busy[1] = "worker 1", ["parcel 1"], math.inf
    waits[:] = [[], [1]]
    assert mates._next() == ("worker 1", ["parcel 1"], [1], False) and killed == ["worker 2"]


@pytest.mark.parametrize(("seconds", "n_warnings"), [(0.0, 1), (600.0, 0)])
def test_a_run_says_once_that_it_waits_for_silent_workers(seconds, n_warnings, caplog):
    waits = [[], [], [], [], [1]]

    class Ray:
        get = staticmethod(lambda answer: [answer])

        def wait(self, answers, num_returns, timeout):
            ready = waits.pop(0)
            return ready, [answer for answer in answers if answer not in ready]

    mates = RayCrew.__new__(RayCrew)
    mates.ray, mates.settings, mates.seconds = Ray(), {}, seconds
    mates.busy = {n: (f"worker {n}", ["parcel"] * n, math.inf) for n in range(3)}  # worker 0 loads its models
    mates._next()
    assert [record.message for record in caplog.records] == n_warnings * [
        "workers that have not answered for 0 seconds: 2"
    ]


def test_a_cluster_does_not_show_the_command_line(ray):
    from ray._private.state import jobs

    assert [job["Entrypoint"] for job in jobs()] == ["tumorlens"]


@pytest.mark.slow
def test_models_that_kill_their_workers_end_the_run(ray, scans, tmp_path):
    with pytest.raises(InputError, match="die while they load the models"):
        run_in(on_ray(ray, StillbornWorker, n=1), scans, tmp_path / "out", tmp_path)
    with pytest.raises(InputError, match=r"no\.safetensors"):
        run_in(on_ray(ray, WeightlessWorker, n=1), scans, tmp_path / "out2", tmp_path / "2")


class StillbornWorker(FastWorker):
    def load_pipeline(self):
        os.kill(os.getpid(), 9)


class WeightlessWorker(FastWorker):
    def load_pipeline(self):
        raise InputError("no.safetensors: no such file")


def test_a_worker_takes_a_gpu_or_some_cores():
    auto = LoadOptions()
    assert shape_of({"CPU": 64}, auto, None) == (16, 4, 0)
    assert shape_of({"CPU": 2}, auto, None) == (1, 2, 0)
    assert shape_of({"CPU": 2}, auto, 2) == (2, 1, 0)
    assert shape_of({"CPU": 64}, LoadOptions(threads=8), None) == (8, 8, 0)
    assert shape_of({"CPU": 32, "GPU": 8}, auto, None) == (8, 4, 1)
    assert shape_of({"CPU": 32, "GPU": 1}, auto, 2) == (2, 4, 0.5)
    assert shape_of({"CPU": 32, "GPU": 8}, LoadOptions(device="cpu"), None) == (8, 4, 0)


def test_workers_get_less_at_once_towards_the_end():
    class Small:
        n_bytes = 1

    queue, sizes = Queue([Small()] * 100, 2, False), []
    while not queue.empty:
        sizes.append(len(queue.take()[0]))
    assert sum(sizes) == 100 and sizes[0] == 16 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--ray", "scans"], "not HOST:PORT or auto"),
        (["--workers", "2"], "--workers is about --ray"),
        (["--job-seconds", "9"], "--job-seconds is about --ray"),
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_sentence(words, reason, command, scans, tmp_path):
    if "127" in words[-1] and find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'tumorlens[cluster]'")
    done = command("run", scans / "p0", "-o", tmp_path / "out", *words)
    assert done.exit_code == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
    ("greeting", "reason"), [(b"SSH-2.0-other\r\n", "another program answers there"), (b"", "timed out")]
)
def test_another_program_at_the_address_is_found_out(greeting, reason, command, scans, tmp_path, monkeypatch):
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'tumorlens[cluster]'")
    monkeypatch.setattr(crew, "_ANSWER_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        connections = []

        def greet():
            connections.append(listening.accept()[0])
            connections[0].sendall(greeting)

        other = threading.Thread(target=greet, daemon=True)
        other.start()
        begun = time.monotonic()
        done = command("run", scans / "p0", "-o", tmp_path / "out", "--ray", f"127.0.0.1:{port}")
        assert time.monotonic() - begun < 20
        other.join(10)
        connections[0].close()
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"no Ray cluster answers at 127.0.0.1:{port} ({reason})" in done.stderr


def test_without_ray_the_message_names_the_extra(command, scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = command("run", scans / "p0", "-o", tmp_path / "out", "--ray")
    assert done.exit_code == 2 and "pip install 'tumorlens[cluster]'" in done.stderr


@pytest.mark.parametrize(
    ("source", "out", "reason"),
    [
        ("s3://none/scans", "out", "s3://none/scans: there is no such bucket, folder or file"),
        ("s3://archive/none", "out", "s3://archive/none: no such file or folder"),
        ("s3://archive/scans/p0", "s3://none/out", "s3://none/out: there is no such bucket, folder or file"),
        ("s3://archive/scans/p0", "s3://archive/scans", "results are here already"),
        ("nothing://archive/scans", "out", "Protocol not known"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_sentence(source, out, reason, command, s3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if reason.startswith("results"):
        s3.pipe_file("archive/scans/results.csv", b"")
    done = command("run", source, "-o", out, "-q")
    assert done.exit_code == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
