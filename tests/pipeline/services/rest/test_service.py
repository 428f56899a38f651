"""The REST service: from a file to its results, what it refuses, who may use it, and what it must not say."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import re
import shutil
import threading
import time
import zipfile

import httpx
import numpy as np
import pydicom
import pytest

from tests.pipeline.services.rest.conftest import client_of, serving
from tests.scans.pictures import save, save_volume
from tests.scans.studies import SICK, series
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.outputs.write import write_result
from tumorlens.pipeline.services.downloads import zip_pieces
from tumorlens.pipeline.services.rest import service as rest_service

PICTURE = phantom_slice(2, "meningioma", size=128, pixel_mm=1.7).image


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    path = tmp_path_factory.mktemp("png") / "Doe_Jane.png"
    save(path, PICTURE)
    return path


def post(client, *files, **query):
    """The answer to a request that sends files, given as (name, bytes)."""
    return client.post("/scans", files=[("file", file) for file in files], params=query)


def submit(client, *files, **query):
    answer = post(client, *files, **query)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def end(client, id):
    for _ in range(4):  # a busy machine
        answer = client.get(f"/scans/{id}", params={"wait": 60}).json()
        if answer["ended"]:
            break
    assert answer["state"] in ("done", "failed", "cancelled"), answer
    return answer


def test_a_picture_has_the_files_of_a_run(client, pipeline, png, tmp_path):
    id = submit(client, (png.name, png.read_bytes()))
    job = end(client, id)
    (scan,) = job["scans"]
    assert (job["state"], job["error"], scan["error"], scan["name"]) == ("done", None, None, "scan.png")
    written = write_result(pipeline.run(png), tmp_path, "scan.png")
    assert scan["files"] == [*written["files"], "result.json"]
    for file in written["files"]:
        answer = client.get(f"/scans/{id}/files/{file}")
        assert answer.content == (tmp_path / file).read_bytes() and answer.headers["content-type"] == "image/png"
    content = client.get(f"/scans/{id}/files/result.json").json()
    assert content["label"] == scan["label"] == written["label"] == "meningioma"
    assert content["probabilities"] == written["probabilities"] and content["confidence"] == scan["confidence"]


def test_a_volume_has_a_montage(client, tmp_path):
    path = tmp_path / "volume.nii.gz"
    save_volume(path, phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0)))
    job = end(client, submit(client, (path.name, path.read_bytes())))
    assert {"montage.png", "mask.nii.gz"} <= set(job["scans"][0]["files"])


def test_all_files_of_a_job_come_as_one_zip(client, service_and_app, tmp_path):
    service = service_and_app[0]
    path = tmp_path / "volume.nii.gz"
    save_volume(path, phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0)))
    save(tmp_path / "a.png", PICTURE)
    files = [(name, (tmp_path / name).read_bytes()) for name in ("a.png", "volume.nii.gz")]
    id = submit(client, *files, ("broken.png", b"no picture"))
    job = end(client, id)
    assert job["state"] == "done" and [bool(scan["files"]) for scan in job["scans"]].count(True) == 2
    answer = client.get(f"/scans/{id}/results.zip")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert answer.headers["content-disposition"] == f'attachment; filename="{id}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{scan['number']}/{file}" for scan in job["scans"] for file in scan["files"]]
        for entry in archive.infolist():
            number, _, file = entry.filename.partition("/")
            alone = client.get(f"/scans/{id}/files/{file}", params={"scan": number}).content
            assert hashlib.sha256(archive.read(entry)).digest() == hashlib.sha256(alone).digest()
            is_packed = entry.filename.endswith((".png", ".gz"))
            assert entry.compress_type == (zipfile.ZIP_STORED if is_packed else zipfile.ZIP_DEFLATED)
    (service.spool.job(id).results / "1" / "mask.png").unlink()
    for name in ("results.zip", "files/mask.png"):
        answer = client.get(f"/scans/{id}/{name}")
        assert (answer.status_code, answer.json()["detail"]) == (
            404,
            "1/mask.png is gone from the server's disk; send the scan again",
        )
    failed = submit(client, ("broken.png", b"no picture"))
    assert end(client, failed)["state"] == "failed"
    for unknown in (failed, "0" * 32):
        assert client.get(f"/scans/{unknown}/results.zip").status_code == 404


def test_a_zip_is_sent_while_it_is_made(tmp_path):
    for name in ("a.dcm", "b.png"):
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(3_000_000))
    opened = []

    def files():
        for name in ("a.dcm", "b.png"):
            opened.append(name)
            yield name, tmp_path / name

    pieces = zip_pieces(files())
    next(pieces)
    assert opened == ["a.dcm"]
    sizes = [len(piece) for piece in pieces]
    assert len(sizes) > 20 and max(sizes) < 300_000 and sum(sizes) > 5_700_000


def test_options_are_those_of_a_run(client):
    noise = np.random.default_rng(0).integers(0, 255, (200, 300), dtype=np.uint8)
    buffer = io.BytesIO()
    from PIL import Image

    Image.fromarray(noise).save(buffer, "png")
    plain = end(client, submit(client, ("a.png", buffer.getvalue())))
    forced = end(client, submit(client, ("a.png", buffer.getvalue()), force=True, explain=True))
    assert plain["scans"][0]["label"] == "refused" and plain["scans"][0]["confidence"] is None
    assert forced["scans"][0]["label"] != "refused" and "explanation.png" in forced["scans"][0]["files"]


def test_bad_requests_have_one_sentence_each_and_good_ones_between_them_succeed(client, png):
    good = (png.name, png.read_bytes())
    ids = []
    for status, sentence, send in (
        (422, "no file", lambda: client.post("/scans", files={"other": good})),
        (422, "no file", lambda: post(client, ("empty.png", b""))),
        (415, "multipart form", lambda: client.post("/scans", content=b"x")),
        (400, "damaged", lambda: client.post("/scans", content=b"x", headers={"content-type": "multipart/form-data"})),
        (422, "query frame", lambda: post(client, good, frame=-1)),
        (422, "query plane", lambda: post(client, good, plane="oblique")),
        (422, "keep_identifiers", lambda: post(client, good, keep_identifiers=True)),
        (422, "dicomweb", lambda: client.post("/scans", json={})),
        (403, "URL of a study", lambda: client.post("/scans", json={"dicomweb": "file:///etc/passwd"})),
        (403, "not among", lambda: client.post("/scans", json={"dicomweb": "http://169.254.169.254/studies/1"})),
        (413, "JSON is larger", lambda: client.post("/scans", json={"dicomweb": "x" * 1_100_000})),
        (413, "3 MB are more than the 2 MB", lambda: post(client, ("large.nii", bytes(3_000_000)))),
        (413, "31 files are more than the 30", lambda: post(client, *[good] * 31)),
        (404, "no such job", lambda: client.get("/scans/" + "0" * 32)),
        (404, "Not Found", lambda: client.get("/scans/..%2f..%2fetc")),
        (422, "path id", lambda: client.get("/scans/etc")),
        (405, "Not Allowed", lambda: client.put("/scans")),
        (404, "Not Found", lambda: client.get("/nowhere")),
    ):
        answer = send()
        assert (answer.status_code, sentence in answer.json()["detail"]) == (status, True), answer.text
        assert "\n" not in answer.json()["detail"]
        ids.append(submit(client, good))
    bad = submit(client, ("scan.png", b"no picture"))
    assert [end(client, id)["state"] for id in ids] == ["done"] * len(ids)
    job = end(client, bad)
    assert job["state"] == "failed" and job["error"].startswith("scan.png: ")
    answer = client.get(f"/scans/{ids[0]}/files/mask.dcm")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "this scan has no mask.dcm; it has overlay.png, mask.png, result.json"
    assert client.get(f"/scans/{ids[0]}/files/result.json", params={"scan": 2}).status_code == 404
    assert client.get(f"/scans/{ids[0]}/files/passwd").status_code == 422


def test_an_address_names_the_methods_that_it_knows(client):
    assert client.put("/scans").headers["allow"] == "GET, POST"
    assert client.put("/scans/" + "0" * 32).headers["allow"] == "DELETE, GET"
    assert client.post("/models").headers["allow"] == "GET"


def test_refused_uploads_leave_nothing(client, service_and_app):
    before = len(list((service_and_app[0].spool.folder / "jobs").iterdir()))
    post(client, ("large.nii", bytes(3_000_000)))

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(50):
            yield bytes(100_000)

    answer = client.post("/scans", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413 and answer.headers["connection"] == "close"
    assert len(list((service_and_app[0].spool.folder / "jobs").iterdir())) == before


def test_a_study_has_seg_and_report_and_no_name_and_no_path_comes_out(client, service_and_app, tmp_path, caplog):
    caplog.set_level(0)
    files = series(tmp_path / "series", SICK, PatientName="Doe^Jane", PatientID="DOE-77", PatientComments="Jane is ill")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in files:
            archive.write(file, f"DOE_JANE/{file.name}")
        archive.writestr("DOE_JANE/jane.png", b"\x89PNG\r\n\x1a\n broken")
        archive.writestr("DOE_JANE/jane.nii", b"\x5c\x01\x00\x00 broken")
    outside = io.BytesIO()
    with zipfile.ZipFile(outside, "w") as archive:
        archive.writestr("../DOE_JANE/jane.png", b"x")
    jobs = [
        end(client, submit(client, *sent))
        for sent in (
            [("DOE_JANE.zip", packed.getvalue())],
            [("jane.zip", outside.getvalue())],
            [("Doe^Jane.nii.gz", b"broken")],
            [("jane-a.png", b"\x89PNG\r\n\x1a\n broken"), ("jane-b.png", b"broken")],
        )
    ]
    assert [job["state"] for job in jobs] == ["done", "failed", "failed", "failed"]
    (study,) = [scan for scan in jobs[0]["scans"] if not scan["error"]]
    assert {"mask.dcm", "measurements.dcm"} <= set(study["files"]) and study["name"].startswith("MR series 5")
    seg = client.get(f"/scans/{jobs[0]['id']}/files/mask.dcm", params={"scan": study["number"]})
    assert pydicom.dcmread(io.BytesIO(seg.content)).Modality == "SEG"
    said = [json.dumps(jobs), client.get("/scans").text, caplog.text]
    for job in jobs:
        for scan in job["scans"]:
            for file in scan["files"]:
                answer = client.get(f"/scans/{job['id']}/files/{file}", params={"scan": scan["number"]})
                assert answer.status_code == 200
                if not file.endswith(".dcm"):  # SEG and SR belong to the patient's study, and must say so
                    said.append(str(answer.headers) + answer.content.decode("latin-1"))
    root = str(service_and_app[0].spool.folder)
    for text in said:
        assert not {word for word in ("jane", "doe", root) if word in text.lower()}, text


def test_a_token_is_needed_and_other_origins_are_refused(pipeline, tmp_path, png):
    with serving(tmp_path, pipeline, token="open-sesame", start=False) as (_, guard):
        stranger, friend = client_of(guard), client_of(guard, authorization="Bearer open-sesame")
        for method, path in (("GET", "/scans"), ("POST", "/scans"), ("GET", "/models"), ("GET", "/openapi.json")):
            answer = stranger.request(method, path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["detail"].startswith("this server needs a token")
        assert client_of(guard, authorization="Bearer wrong").get("/scans").status_code == 401
        assert stranger.get("/health").json() == {"status": "ok"}
        assert friend.get("/scans").json() == {"jobs": []}
        assert submit(friend, (png.name, png.read_bytes()))
        foreign = friend.get("/scans", headers={"origin": "http://evil.example"})
        assert foreign.status_code == 403 and "access-control-allow-origin" not in foreign.headers
    with serving(tmp_path / "open", pipeline, start=False) as (_, guard):
        assert client_of(guard).get("/scans", headers={"host": "evil.example"}).status_code == 403
        answer = client_of(guard).options("/scans", headers={"origin": "http://localhost"})
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_full_queue_says_when_to_come_back(pipeline, tmp_path, png):
    good = (png.name, png.read_bytes())
    with serving(tmp_path, pipeline, most_waiting=3, start=False) as (service, guard):
        client = client_of(guard)
        ids = [submit(client, good) for _ in range(3)]
        assert [client.get(f"/scans/{id}").json()["position"] for id in ids] == [0, 1, 2]
        answer = post(client, good)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["detail"] == "3 jobs are waiting, and 3 may; try again later"
        for name in ("files/result.json", "results.zip"):
            answer = client.get(f"/scans/{ids[0]}/{name}")
            assert (answer.status_code, answer.json()["detail"]) == (
                409,
                "the job is waiting; its results come later",
            )
        assert client.post(f"/scans/{ids[0]}/cancel").json()["state"] == "cancelled"
        assert client.delete(f"/scans/{ids[1]}").status_code == 204
        assert client.get(f"/scans/{ids[1]}").status_code == 404
        assert client.get("/ready").status_code == 503 and client.get("/models").status_code == 503
        assert submit(client, good)
        listed = client.get("/scans", params={"state": "waiting", "limit": 1}).json()["jobs"]
        assert [job["state"] for job in listed] == ["waiting"]
        service.is_stopping = lambda: True
        answer = post(client, good)
        assert (answer.status_code, answer.json()["detail"]) == (
            503,
            "the server is about to stop; send the scan again in a minute",
        )


def test_so_many_may_wait_for_a_job_and_look_seldom(pipeline, tmp_path, png, monkeypatch):
    with serving(tmp_path, pipeline, start=False) as (service, guard):
        client = client_of(guard)
        id = submit(client, (png.name, png.read_bytes()))
        looks = []
        job = service.job
        monkeypatch.setattr(service, "job", lambda id: looks.append(id) or job(id))
        begun = time.monotonic()
        assert client.get(f"/scans/{id}", params={"wait": 3}).json()["state"] == "waiting"
        assert time.monotonic() - begun >= 3
        assert len(looks) < 7
        assert not service._waiters
        service._waiters.update({asyncio.Event(): ("another", None) for _ in range(200)})
        answer = client.get(f"/scans/{id}", params={"wait": 3})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
        assert client.get(f"/scans/{id}").status_code == 200
        service.spool.cancel(id)
        assert client.get(f"/scans/{id}", params={"wait": 3}).json()["state"] == "cancelled"


def test_a_request_hears_at_once_of_the_end_that_it_waits_for(pipeline, tmp_path, png, monkeypatch):
    monkeypatch.setattr("tumorlens.pipeline.services.rest.service._LOOK_S", 600)
    with serving(tmp_path, pipeline) as (_, guard):
        client = client_of(guard)
        id = submit(client, (png.name, png.read_bytes()))
        begun = time.monotonic()
        assert client.get(f"/scans/{id}", params={"wait": 60}).json()["state"] == "done"
        assert time.monotonic() - begun < 50


def test_an_end_between_the_first_look_and_the_wait_is_heard(pipeline, tmp_path, png, monkeypatch):
    monkeypatch.setattr("tumorlens.pipeline.services.rest.service._LOOK_S", 600)
    with serving(tmp_path, pipeline, start=False) as (service, guard):
        client = client_of(guard)
        id = submit(client, (png.name, png.read_bytes()))
        look = service.job

        def look_and_end(id):
            job = look(id)
            if job.state == "waiting":
                service.spool.cancel(id)
                service.note_end(id)
            return job

        monkeypatch.setattr(service, "job", look_and_end)
        begun = time.monotonic()
        assert client.get(f"/scans/{id}", params={"wait": 30}).json()["state"] == "cancelled"
        assert time.monotonic() - begun < 20


def test_a_request_that_breaks_off_while_its_job_is_accepted_loses_no_files(pipeline, tmp_path, png, monkeypatch):
    with serving(tmp_path, pipeline, start=False) as (service, guard):
        entered, let_go = threading.Event(), threading.Event()
        accept = service.spool.accept

        def slow(*args):
            entered.set()
            assert let_go.wait(30)
            return accept(*args)

        monkeypatch.setattr(service.spool, "accept", slow)

        async def break_off():
            transport = httpx.ASGITransport(guard)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1") as client:
                files = {"file": (png.name, png.read_bytes())}
                request = asyncio.create_task(client.post("/scans", files=files))
                await asyncio.to_thread(entered.wait, 30)
                request.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await request
                await asyncio.sleep(0.5)  # in which the files must not be deleted
                let_go.set()

        asyncio.run(break_off())
        (job,) = service.spool.jobs()
        assert (job.files / "scan.png").read_bytes() == png.read_bytes()


def test_a_request_that_breaks_off_just_when_its_job_is_accepted_loses_no_files(pipeline, tmp_path, png, monkeypatch):
    create_task, receive, handlers = asyncio.create_task, rest_service._receive, []

    def create_and_cancel(coroutine, **options):
        task = create_task(coroutine, **options)
        if coroutine.__name__ == "to_thread":  # it accepts the job
            task.add_done_callback(lambda _: handlers[0].cancel())
        return task

    def note(*args):
        handlers.append(asyncio.current_task())
        return receive(*args)

    async def send(guard):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://localhost/v1") as client:
            monkeypatch.setattr(asyncio, "create_task", create_and_cancel)
            await client.post("/scans", files={"file": (png.name, png.read_bytes())})

    monkeypatch.setattr(rest_service, "_receive", note)
    with serving(tmp_path, pipeline, start=False) as (service, guard):
        asyncio.run(send(guard))
        (job,) = service.spool.jobs()
        assert (job.files / "scan.png").read_bytes() == png.read_bytes()


def test_what_goes_wrong_in_the_server_is_one_sentence(pipeline, tmp_path, png, monkeypatch, caplog):
    def fail(error):
        def call(*args):
            raise error

        return call

    broken, stale = InputError("the file of jobs is broken"), OSError(errno.ESTALE, "Stale file handle", str(tmp_path))
    with serving(tmp_path, pipeline, start=False) as (service, guard):
        client = client_of(guard)
        for place, name, error, path, status, sentence in (
            (service.spool, "jobs", KeyError(" ".join(("Jane", "Doe"))), "/scans", 500, "internal error, .*KeyError"),
            (service.spool, "counts", broken, "http://localhost/metrics", 503, "the file of jobs is broken"),
            (shutil, "disk_usage", stale, "/scans", 503, "the server's file of jobs .*Stale file handle"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(place, name, fail(error))
                answer = post(client, (png.name, png.read_bytes())) if place is shutil else client.get(path)
            assert answer.status_code == status and re.match(sentence, answer.json()["detail"]), answer.text
        assert 'route="/scans",status="500"' in client.get("http://localhost/metrics").text
    assert "Jane Doe" not in caplog.text and "Traceback" not in caplog.text


def test_concurrent_clients_get_their_own_results(client, tmp_path):
    labels = ("meningioma", "no_tumor", "glioma", "pituitary")
    answers = {}

    def one(n):
        path = tmp_path / f"{n}.png"
        save(path, phantom_slice(60 + n, labels[n % 4], size=96 + 8 * n, pixel_mm=1.7).image)
        id = submit(client, (path.name, path.read_bytes()))
        until = time.monotonic() + 120
        while client.get(f"/scans/{id}").json()["state"] not in ("done", "failed") and time.monotonic() < until:
            time.sleep(0.2)
        answers[n] = client.get(f"/scans/{id}/files/result.json").json()

    threads = [threading.Thread(target=one, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: content["scan"]["shape"] for n, content in answers.items()} == {
        n: [96 + 8 * n, 96 + 8 * n] for n in range(8)
    }


def test_models_readiness_and_figures(client, pipeline, service_and_app):
    service = service_and_app[0]
    assert client.get("/ready").json() == {"status": "ok"}
    models = client.get("/models").json()
    assert models["classification"]["sha256"] == pipeline.classifier.card["sha256"]
    assert models["segmentation"]["sha256"] == pipeline.segmenter.card["sha256"]
    client.get("/scans/" + "1" * 32)
    text = service.metrics.text(service.spool.counts(), service.queue.ready).decode()
    assert 'tumorlens_requests_total{method="GET",route="/scans/{id}",status="404"}' in text
    assert "tumorlens_ready 1.0" in text and "1" * 32 not in text


def test_the_description_has_examples_that_fit_it(client):
    from tumorlens.pipeline.services.rest.models import JobAnswer, ModelsAnswer

    schema = client.get("/openapi.json").json()
    assert schema["servers"] == [{"url": "/v1"}] and {"token": []} in schema["security"]
    assert set(schema["paths"]) == {
        *("/scans", "/scans/{id}", "/scans/{id}/cancel", "/scans/{id}/files/{file}", "/scans/{id}/results.zip"),
        *("/models", "/health", "/ready"),
    }
    for model in (JobAnswer, ModelsAnswer):
        (example,) = schema["components"]["schemas"][model.__name__]["examples"]
        model.model_validate(example)
