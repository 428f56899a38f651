"""Studies on a DICOMweb server: a real Orthanc gives them, and no other server is asked."""

from __future__ import annotations

import base64
import http.server
import threading
from contextlib import contextmanager

import numpy as np
import pydicom
import pytest

from tests.scans.dicom import save_series
from tests.scans.orthanc import needs_orthanc, running_orthanc
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.phantom import phantom_volume
from tumorlens.pipeline.options import UploadLimits
from tumorlens.pipeline.services.rest.dicomweb import DicomwebServers
from tumorlens.pipeline.services.spool import REST, Spool

SICK = phantom_volume(7, "meningioma", shape=(48, 56, 8), spacing_mm=(4.0, 4.0, 14.0))


@pytest.fixture
def job_for(tmp_path):
    """`job_for(url)`: a job that refers to a study."""
    spool = Spool(tmp_path / "spool")
    yield lambda url: spool.accept(spool.receive(REST), details={"dicomweb": url})
    spool.close()


@pytest.mark.slow
@needs_orthanc
def test_orthanc_gives_a_series_and_refuses_what_it_does_not_have(tmp_path, job_for):
    files = save_series(tmp_path / "series", SICK.image, SICK.affine, "sagittal")
    header = pydicom.dcmread(files[0])
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        orthanc.upload(files)
        base = f"{orthanc.url}/dicom-web"
        servers = DicomwebServers((f"{base}/",), UploadLimits())
        study = f"{base}/studies/{header.StudyInstanceUID}"
        for url in (study, f"{study}/series/{header.SeriesInstanceUID}"):
            servers.check(url)
            job = job_for(url)
            for _ in range(2):  # again after a kill
                servers.fetch(job)
                assert np.array_equal(open_scan(job.files / "study").voxels, open_scan(tmp_path / "series").voxels)
        with pytest.raises(InputError, match=r"does not give the study: it answers with HTTP 404$"):
            servers.fetch(job_for(f"{base}/studies/1.2.3"))
        with pytest.raises(InputError, match="more than the 0 MB"):
            DicomwebServers((base,), UploadLimits(upload_mb=0)).fetch(job_for(study))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/other/studies/1.2",
        "http://127.0.0.1:90/dicom-web/studies/1.2",
        "https://127.0.0.1:9/dicom-web/studies/1.2",
        "http://me:secret@127.0.0.1:9/dicom-web/studies/1.2",
        "http://127.0.0.1:9/dicom-web/../studies/1.2",
        "http://127.0.0.1:9/dicom-web/studies/1.2/../../x",
        "http://127.0.0.1:9/dicom-web/studies/..",
        "http://127.0.0.1:9/dicom-web/studies/1.2/series/..",
        "http://127.0.0.1:9/dicom-web/studies/1..2",
        "http://127.0.0.1:9/dicom-web/studies/" + "1" * 65,
        "http://127.0.0.1:9/dicom-web/studies/1.2?x=http://evil.example",
        "http://127.0.0.1:9/dicom-web@evil.example/studies/1.2",
        "file:///dicom-web/studies/1.2",
    ],
)
def test_only_studies_of_allowed_servers(url):
    servers = DicomwebServers(("http://me:secret@127.0.0.1:9/dicom-web",), UploadLimits())
    servers.check("http://127.0.0.1:9/dicom-web/studies/1.2")
    with pytest.raises(InputError, match=r"not the URL of a study|not among") as error:
        servers.check(url)
    assert "secret" not in str(error.value)
    with pytest.raises(InputError, match="not among"):
        DicomwebServers((), UploadLimits()).check("http://127.0.0.1:9/dicom-web/studies/1.2")


def test_redirects_are_not_followed_and_a_silent_server_is_one_sentence(job_for):
    asked = []

    class Redirects(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Redirects) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/dicom-web"
        servers = DicomwebServers((base,), UploadLimits())
        with pytest.raises(InputError, match=r"does not give the study: it answers with HTTP 302$"):
            servers.fetch(job_for(f"{base}/studies/1.2"))
        server.shutdown()
    assert asked == ["/dicom-web/studies/1.2"]
    with pytest.raises(InputError, match="cannot be reached"):
        servers.fetch(job_for(f"{base}/studies/1.2"))


@contextmanager
def answering(content, kind):
    """A server that answers everything so; gives its address and the Authorization headers that it got."""
    headers = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            headers.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/dicom-web", headers
        server.shutdown()


@pytest.mark.parametrize("kind", ["text/html", "multipart/related; type=application/dicom; boundary=x"])
def test_an_answer_that_is_not_dicom_is_one_sentence(job_for, kind):
    with answering(b"<html>--x\r\n\r\nPlease sign in\r\n--x--", kind) as (place, _):
        servers = DicomwebServers((f"http://{place}",), UploadLimits())
        with pytest.raises(
            InputError, match=r"^the DICOMweb server does not give the study: its answer cannot be read"
        ):
            servers.fetch(job_for(f"http://{place}/studies/1.2"))


def test_passwords_come_from_the_address_or_the_environment(job_for, monkeypatch):
    monkeypatch.setenv("TUMORLENS_DICOMWEB_AUTH", "us:other")
    with answering(b"", "text/html") as (place, headers):
        bases = (f"http://me:p%40ss@{place}",), (f"http://{place}",), (f"http://{place}", "http://b.example")
        for each in bases:
            with pytest.raises(InputError, match="cannot be read"):
                DicomwebServers(each, UploadLimits()).fetch(job_for(f"http://{place}/studies/1.2"))
    basic = [f"Basic {base64.b64encode(pair).decode()}" for pair in (b"me:p@ss", b"us:other")]
    assert headers == [*basic, None]


def test_a_study_that_nobody_wants_any_more_is_not_fetched_to_its_end(tmp_path, job_for):
    parts = b""
    for file in save_series(tmp_path / "series", SICK.image, SICK.affine, "sagittal")[:3]:
        parts += b"--x\r\nContent-Type: application/dicom\r\n\r\n" + file.read_bytes() + b"\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    with answering(parts + b"--x--", kind) as (place, _):
        servers, job = DicomwebServers((f"http://{place}",), UploadLimits()), job_for(f"http://{place}/studies/1.2")
        servers.fetch(job)
        assert len(list((job.files / "study").iterdir())) == 3
        with pytest.raises(InputError, match="not wanted any more"):
            servers.fetch(job, lambda: False)
        assert not list((job.files / "study").iterdir())


def test_an_address_that_is_none_is_refused_at_the_start():
    with pytest.raises(InputError, match="--dicomweb host:8042: this is not an address"):
        DicomwebServers(("host:8042",), UploadLimits())
