"""A DICOMweb query as the input of a run: a real Orthanc answers it."""

from __future__ import annotations

import csv
import http.server
import json
import re
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pydicom
import pytest

from tests.pipeline.batch.results import contents
from tests.pipeline.services.cluster.workers import FastWorker
from tests.scans.dicom import IDENTIFIERS, edit, save_enhanced
from tests.scans.orthanc import needs_orthanc, running_orthanc
from tests.scans.studies import HEALTHY, SICK, STUDY, series
from tumorlens.data.errors import InputError
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.options import LoadOptions, RunOptions
from tumorlens.pipeline.services.cluster.batch import Here, run_with
from tumorlens.pipeline.services.dicomweb import AUTH, Server, Studies
from tumorlens.pipeline.services.stores.mirror import mirror_inputs
from tumorlens.pipeline.services.stores.output import Output
from tumorlens.pipeline.services.stores.parcel import parcel_of

ENHANCED, PIECES, LATER = "1.2.840.78", "1.2.840.79", "1.2.840.80"
PATIENT = "PID-77881Q"  # of all studies but the one in pieces


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three studies as STUDY/SERIES/OBJECT.dcm: of four series, of one file, and in pieces. One series is a CT."""
    folder = tmp_path_factory.mktemp("files")
    for number, phantom, tags in (
        (1, HEALTHY, {"SeriesDescription": "localizer", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        (3, HEALTHY, {"SeriesDescription": "T1 für Köpfe", "ContrastBolusAgent": None}),
        (5, SICK, {"SeriesDescription": "t1 tra km", "SpecificCharacterSet": "ISO_IR 100"}),
        (9, HEALTHY, {"SeriesDescription": "dose report", "Modality": "CT"}),
    ):
        latin = {"SpecificCharacterSet": "ISO_IR 100"}
        keep(folder, series(folder / "tmp", phantom, SeriesNumber=number, **latin | tags))
    path = folder / "tmp" / "enhanced"
    keep(folder, [save_enhanced(path, HEALTHY.image, HEALTHY.affine, StudyInstanceUID=ENHANCED, StudyDate="20250301")])
    paths = series(folder / "tmp", StudyInstanceUID=PIECES, PatientID="other")
    edit(paths, SeriesInstanceUID=lambda n: f"{PIECES}.{n + 1}")
    keep(folder, paths)
    return folder


def keep(folder, paths):
    for path in paths:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        place = folder / header.StudyInstanceUID / header.SeriesInstanceUID
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / f"{header.SOPInstanceUID}.dcm")


@pytest.fixture(scope="module")
def orthanc(files, tmp_path_factory):
    """A server with these studies."""
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        server.upload(sorted(files.rglob("*.dcm")))
        yield server


def of_mr(files, tmp_path):
    """The same files in a folder, without the CT."""
    for file in files.rglob("*.dcm"):
        if pydicom.dcmread(file, stop_before_pixels=True).Modality == "MR":
            place = tmp_path / "mr" / file.relative_to(files)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return tmp_path / "mr"


def url_of(server, rest=""):
    return f"dicomweb+{server.url}/dicom-web{rest}"


def shown_at(place, study, *rest):
    """The URL of a study, or of a series in it."""
    return "/".join((place, "studies", study, *(("series", *rest) if rest else ())))


def found_at(tmp_path, *urls):
    inputs = mirror_inputs(urls, tmp_path / "urls", None)
    return inputs, collect(inputs.paths, tmp_path / "out", tmp_path, (), inputs.origins)


def facts(work):
    jobs = [(job.name, job.uid, job.study, job.notes, job.error) for job in work.jobs]
    series = [(name, c.chosen, c.reason, {**vars(c.series), "files": None}) for name, c in work.candidates]
    return jobs, series


@needs_orthanc
def test_scans_of_a_query_are_those_of_a_folder_with_the_same_files(orthanc, files, tmp_path):
    """Names, series, the choice among them, and what pieces are joined, from headers that the server tells."""
    inputs, found = found_at(tmp_path, url_of(orthanc))
    folder = of_mr(files, tmp_path)
    known = collect([str(folder)], tmp_path / "out", tmp_path)
    assert facts(found) == facts(known) and len(found.jobs) == 3 and len(found.candidates) == 5
    assert [job.place for job in found.jobs] == [
        shown_at(url_of(orthanc), *Path(job.place).relative_to(folder).parts) for job in known.jobs
    ]
    sizes = {file.relative_to(inputs.paths[0]): file.stat().st_size for file in Path(inputs.paths[0]).rglob("*.dcm")}
    assert set(sizes) == {file.relative_to(folder) for file in folder.rglob("*.dcm")}
    assert all(abs(size - (folder / name).stat().st_size) < 2000 for name, size in sizes.items())


@needs_orthanc
def test_another_process_fetches_the_very_files(orthanc, files, tmp_path):
    inputs, found = found_at(tmp_path, url_of(orthanc, "/"))
    for n, job in enumerate(found.jobs):
        parcel = parcel_of(job, inputs.remote)
        parcel.fetch(tmp_path / str(n))
        moved = parcel.open_in(tmp_path / str(n))
        assert len(moved.files) == len(job.files)
        for file in moved.files:
            assert file.read_bytes() == (files / file.relative_to(tmp_path / str(n))).read_bytes()
        assert moved.place == job.place


@needs_orthanc
@pytest.mark.parametrize(
    ("rest", "studies"),
    [
        (f"/studies/{STUDY}", [STUDY]),
        (f"?StudyInstanceUID={ENHANCED}", [ENHANCED]),
        ("/studies?StudyDate=20250101-20251231", [ENHANCED]),
        ("/studies/?AccessionNumber=A1&PatientID=other", [PIECES]),
        ("?StudyDate=-20241231&PatientID=PID*", [STUDY]),
        ("?PatientID=other", [PIECES]),
        ("?ModalitiesInStudy=CT&PatientName=Doe?Jane*", [STUDY]),
        ("?AccessionNumber=A1", [STUDY, ENHANCED, PIECES]),
    ],
)
def test_a_query_selects_studies(orthanc, tmp_path, rest, studies):
    _, found = found_at(tmp_path, url_of(orthanc, rest))
    assert [job.name.partition("/")[0] for job in found.jobs] == studies


@needs_orthanc
def test_a_series_may_be_named_and_two_queries_may_find_one_scan(orthanc, files, tmp_path):
    _, all_found = found_at(tmp_path / "all", url_of(orthanc))
    uid = next(c.series.uid for _, c in all_found.candidates if c.series.number == 3)
    _, one = found_at(tmp_path / "one", url_of(orthanc, f"/studies/{STUDY}/series/{uid}"))
    assert [(job.name, job.uid) for job in one.jobs] == [(f"{STUDY}/{uid}", uid)]
    (ct,) = {file.parent.name for file in (files / STUDY).rglob("*.dcm") if pydicom.dcmread(file).Modality == "CT"}
    _, other = found_at(tmp_path / "ct", url_of(orthanc, f"/studies/{STUDY}/series/{ct}"))
    assert "its modality is CT, not MR" in other.jobs[0].error
    _, both = found_at(tmp_path / "both", url_of(orthanc, f"/studies/{ENHANCED}"), url_of(orthanc, "?StudyID=7"))
    assert facts(both) == facts(all_found)
    assert {job.place for job in both.jobs} == {job.place for job in all_found.jobs}


@needs_orthanc
def test_a_series_takes_two_requests(orthanc, tmp_path, monkeypatch):
    import requests

    asked = []
    send = requests.Session.get
    monkeypatch.setattr(requests.Session, "get", lambda *args, **kw: asked.append(kw["url"]) or send(*args, **kw))
    inputs, found = found_at(tmp_path, url_of(orthanc, f"/studies/{STUDY}"))
    (job,) = found.jobs
    study = f"{orthanc.url}/dicom-web/studies/{STUDY}"
    uids = [c.series.uid for _, c in found.candidates]
    assert sorted(url.partition("?")[0] for url in asked) == sorted(  # the second page of series is empty
        [f"{study}/series"] * 2 + [f"{study}/series/{uid}/metadata" for uid in uids]
    )
    asked.clear()
    parcel_of(job, inputs.remote).fetch(tmp_path / "there")
    assert asked == [f"{study}/series/{job.uid}"] and len(list((tmp_path / "there").rglob("*.dcm"))) == 16


def rows_of(out):
    with (out / "results.csv").open() as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
@needs_orthanc
def test_results_are_those_of_a_folder_and_are_kept(tumorlens, files, tmp_path):
    """Also where another query finds them, where a study came later, and nothing tells what was asked."""
    folder = of_mr(files, tmp_path)
    out, plain = tmp_path / "out", tmp_path / "plain"
    with running_orthanc(tmp_path / "orthanc") as server:
        server.upload(sorted(files.rglob("*.dcm")))
        query = url_of(server, f"?PatientID={PATIENT}&StudyDate=20240101-20251231")
        done = tumorlens("run", query, url_of(server, f"/studies/{PIECES}"), "-o", out, "-v")
        assert done.exit_code == 0, done.stderr
        assert tumorlens("run", folder, "-o", plain).exit_code == 0
        assert contents(out) == contents(plain)
        masks = [file.relative_to(out) for file in out.rglob("mask.dcm")]
        assert sorted(masks) == sorted(file.relative_to(plain) for file in plain.rglob("mask.dcm")) and masks
        texts = [done.stdout, done.stderr, *(f.read_text() for f in out.rglob("*") if f.suffix in (".json", ".csv"))]
        words = [PATIENT, "StudyDate=", *(word for word in IDENTIFIERS if word.isalpha())]
        assert not [word for word in words for text in texts if word in text]
        times = {file: file.stat().st_mtime_ns for file in out.rglob("*") if "results." not in file.name}
        server.upload(series(tmp_path / "new", HEALTHY, StudyInstanceUID=LATER, StudyDate="20260101"))
        again = tumorlens("run", url_of(server), "-o", out, "--continue")
        assert again.exit_code == 0 and "4 scans (3 kept from before)" in again.stdout, again.stdout
        assert times == {file: file.stat().st_mtime_ns for file in times}
        assert [name.partition("/")[0] for name in rows_of(out)] == [STUDY, ENHANCED, PIECES, LATER]


@needs_orthanc
def test_an_object_that_is_deleted_in_between_costs_its_scan_only(files, tmp_path):
    with running_orthanc(tmp_path / "orthanc") as server:
        server.upload(sorted(files.rglob("*.dcm")))
        inputs, found = found_at(tmp_path, url_of(server))
        lost = next(job for job in found.jobs if job.name.startswith(STUDY)).files[0].stem
        (id,) = server.post("tools/find", {"Level": "Instance", "Query": {"SOPInstanceUID": lost}})
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/instances/{id}", method="DELETE")).close()
        (gone,) = server.post("tools/find", {"Level": "Study", "Query": {"StudyInstanceUID": ENHANCED}})
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/studies/{gone}", method="DELETE")).close()
        crew = Here(FastWorker(LoadOptions(), RunOptions(), tmp_path / "out", 1))
        report = run_with(crew, found.jobs, inputs.remote, Output(tmp_path / "out"))
    errors = {name.partition("/")[0]: row["error"] for name, row in rows_of(tmp_path / "out").items()}
    assert report.failed == 2 and errors[PIECES] == ""
    assert f"/{lost}.dcm: the server does not have it any more (1 of 16 images of the scan)" in errors[STUDY]
    assert (
        f"{url_of(server)}/studies/{ENHANCED}/series/" in errors[ENHANCED]
        and "not fetched: it answers with HTTP 404" in errors[ENHANCED]
    )


@needs_orthanc
def test_a_server_that_wants_a_password_gets_it_from_the_environment(files, tmp_path, monkeypatch):
    users = {"AuthenticationEnabled": True, "RegisteredUsers": {"me": "p:ss"}}
    with running_orthanc(tmp_path / "orthanc", **users) as server:
        with pytest.raises(InputError, match=f"it answers with HTTP 401, it denies access; check {AUTH}"):
            found_at(tmp_path, url_of(server))
        monkeypatch.setenv(AUTH, "me:p:ss")
        with pytest.raises(InputError, match="no study matches the query"):
            found_at(tmp_path, url_of(server))


@needs_orthanc
@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("?PatientID=nobody-77881", "/dicom-web: no study matches the query"),
        ("/studies/1.2.3", "/dicom-web: there is no such study, or it has no MR series"),
        ("/studies/1.2.3/series/1.2.3", "/dicom-web/studies/1.2.3/series/1.2.3: not fetched: it answers with HTTP 404"),
        ("x?PatientID=77881", "/dicom-webx: no studies can be looked for: it answers with HTTP 404"),
    ],
)
def test_nothing_found_is_one_sentence(orthanc, command, tmp_path, rest, reason):
    done = command("run", url_of(orthanc, rest), "-o", tmp_path / "out")
    assert done.exit_code == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert "77881" not in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("dicomweb+http://127.0.0.1:9/dicom-web?PatientID=77881", "no studies can be looked for: it cannot be reached"),
        (
            "dicomweb+http://h/dicom-web?PatientAge=77881",
            "looked for by KEY=VALUE&KEY=VALUE, with the keys",
        ),
        ("dicomweb+http://h/dicom-web?77881", "looked for by KEY=VALUE&KEY=VALUE, with the keys"),
        ("dicomweb+http://h/dicom-web?PatientID=", "h/dicom-web: PatientID has no value"),
        (
            "dicomweb+http://h/d?StudyDate=2025-77881",
            "StudyDate is not a date or range such as 20250101, ",
        ),
        ("dicomweb+http://h/d?StudyDate=20251301", "StudyDate is not a date"),
        ("dicomweb+http://h/d?StudyDate=20250102-20250101", "StudyDate is not a date"),
        ("dicomweb+http://h/d?StudyDate=-", "StudyDate is not a date"),
        ("dicomweb+http://h/d/studies/1.2?PatientID=77881", "give a query, or the path of a study, not both"),
        ("dicomweb+http://h/d/studies/1.2/77881", "this is not the URL of a DICOMweb query"),
        ("dicomweb+http://me:77881@h/dicom-web", f"put USER:PASSWORD into {AUTH}"),
        ("dicomweb+http://:77881@/dicom-web", "give an address such as http://localhost:8042"),
        ("dicomweb+http://[h/dicom-web?PatientID=77881", "this is not an address such as http://localhost:8042"),
        ("dicomweb://h/dicom-web?PatientID=77881", "this is not the URL of a DICOMweb query"),
        ("dicomweb+ftp://h/dicom-web?PatientID=77881", "this is not the URL of a DICOMweb query"),
    ],
)
def test_a_query_that_cannot_be_asked_is_one_sentence(command, tmp_path, url, reason):
    done = command("run", url, "-o", tmp_path / "out")
    assert done.exit_code == 2 and reason in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert "77881" not in done.stderr


def test_a_missing_package_is_one_sentence(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dicomweb_client.api", None)
    done = command("run", "dicomweb+http://h/dicom-web?PatientID=77881", "-o", tmp_path / "out")
    assert done.exit_code == 2 and "pip install 'tumorlens[cluster]'" in done.stderr and "77881" not in done.stderr


def test_results_are_not_written_to_a_server(command, tmp_path):
    done = command("run", tmp_path, "-o", "dicomweb+http://h/dicom-web")
    assert done.exit_code == 2 and "results are not written to DICOMweb servers" in done.stderr


@contextmanager
def answering(answers):
    """A server with answers by the ends of paths, and two results of a search a page. None is a 404. Gives its URL."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition("?")
            content = next((content for end, content in answers.items() if path.endswith(end)), None)
            if isinstance(content, list):  # one answer after the other
                content = content.pop(0)
            if str(content).startswith("[") and (offset := re.search(r"offset=(\d+)", query)):
                content = json.dumps(json.loads(content)[int(offset[1]) :][:2])
            self.send_response(404 if content is None else 200)
            data = content if isinstance(content, bytes) else (content or "").encode()
            self.send_header("Content-Type", "multipart/related; type=application/dicom; boundary=x")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"dicomweb+http://127.0.0.1:{server.server_port}"
        server.shutdown()


def uids(tag, *values):
    return json.dumps([{tag: {"vr": "UI", "Value": [value]}} for value in values])


def header(instance):
    """What the metadata say of an image."""
    image = {"vr": "US", "Value": [4]}
    found = json.loads(uids("00080018", instance))[0] | {"00280010": image, "00280011": image}
    return found | {"00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.4"]}}


def test_a_search_goes_on_to_its_last_page(tmp_path):
    """Orthanc 1.10 cannot show it: it looks for the later pages in the first one."""
    answers = {
        "/studies": uids("0020000D", *(f"1.{n}" for n in range(5))),
        "/series": uids("0020000E", "2.1", "2.2", "2.3"),
        "/metadata": json.dumps([header("3.1")]),
    }
    with answering(answers) as url:
        (found,) = mirror_inputs([url], tmp_path, None).remote
    assert len(list(found.root.glob("*/*/3.1.dcm"))) == 15 and not found.problems


def test_a_study_whose_series_cannot_be_listed_does_not_stop_the_others(tmp_path):
    answers = {
        "/studies": uids("0020000D", "1.1", "../1.2", "1.3", "1.4"),
        "1.3/series": uids("0020000E", "2.1", "../2.2"),
        "1.4/series": uids("0020000E", "2.1"),
        "/metadata": json.dumps([header("3.1")]),
    }
    with answering(answers) as url:
        inputs = mirror_inputs([url], tmp_path, None)
    (found,) = inputs.remote
    assert [file.relative_to(found.root).as_posix() for file in found.root.rglob("*.dcm")] == ["1.4/2.1/3.1.dcm"]
    not_a_uid = "an answer of the DICOMweb server holds something else than a UID"
    assert {job.name: job.with_path(job.error) for job in inputs.problems} == {
        "1.1": f"{url}/studies/1.1: its series cannot be looked for: it answers with HTTP 404",
        "_._1.2": f"{url}: {not_a_uid}",
        "1.3": f"{url}: {not_a_uid}",
    }


@pytest.mark.parametrize("fails_once", ["1.1/series", "1.1/series/2.1/metadata"])
def test_queries_of_one_server_share_their_problems(tmp_path, fails_once):
    answers = {
        "1.2/series": None,
        "/studies": uids("0020000D", "1.1", "1.2"),
        "/series": uids("0020000E", "2.1"),
        "/metadata": json.dumps([header("3.1")]),
    }
    good = next(text for end, text in answers.items() if text and fails_once.endswith(end))
    with answering({fails_once: [None, *4 * [good]]} | answers) as url:
        inputs = mirror_inputs([url, f"{url}?PatientID=1"], tmp_path, None)
    assert [job.name for job in inputs.problems] == ["1.2"] and len(inputs.remote) == len(inputs.paths) == 1
    assert len(list(Path(inputs.paths[0]).rglob("*.dcm"))) == 1


def test_a_password_goes_to_one_server_only(tmp_path, monkeypatch):
    answers = {
        "/studies": uids("0020000D", "1.1"),
        "/series": uids("0020000E", "1.2"),
        "/metadata": json.dumps([header("1.3")]),
    }
    with answering(answers) as one, answering(answers) as other:
        monkeypatch.setenv(AUTH, "me:secret")
        with pytest.raises(InputError, match=f"{AUTH} would go to several DICOMweb servers"):
            mirror_inputs([one, other], tmp_path / "1", None)
        mirror_inputs([one, f"{one}?PatientID=1"], tmp_path / "2", None)
        monkeypatch.delenv(AUTH)
        assert len(mirror_inputs([one, other], tmp_path / "3", None).paths) == 2


def test_one_result_of_a_search_may_come_without_a_list(tmp_path):
    answers = {
        "/studies": uids("0020000D", "1.1")[1:-1],
        "/series": uids("0020000E", "1.2")[1:-1],
        "/metadata": json.dumps([header("1.3")]),
    }
    with answering(answers) as url:
        (found,) = mirror_inputs([url], tmp_path, None).remote
    assert len(list(found.root.glob("1.1/1.2/1.3.dcm"))) == 1


@pytest.mark.parametrize(
    "text", ['{"error": "Doe"}', '{"0020000D": "Doe"}', '[["Doe"]]', '[{"0020000D": {}}]', "7", '"x"']
)
def test_a_search_without_uids_raises_what_a_puller_expects(text):
    with answering({"/studies": text}) as url, pytest.raises(ValueError):
        Server(url.removeprefix("dicomweb+"), "cluster").search("")


def test_files_that_tell_instead_of_metadata_are_not_held_at_once(monkeypatch):
    fetched = []

    def objects(*_):
        for n in range(3):
            fetched.append(n)
            yield b"", f"1.{n}"

    monkeypatch.setattr(Server, "objects", objects)
    with answering({"/metadata": '[{"00080018": 7}]'}) as url:
        files = Studies(url.removeprefix("dicomweb+")).headers("1.1/1.2")
        assert next(files)[0] == "1.1/1.2/1.0.dcm" and fetched == [0]


def test_where_metadata_break_the_standard_the_files_tell(tmp_path):
    (path, *_) = series(tmp_path / "in", SICK, StudyInstanceUID="1.1", SeriesInstanceUID="1.2")
    broken = [{"00280010": {"vr": "US", "Value": ["many"]}, "00080018": {"vr": "UI", "Value": ["1.3"]}}]
    answers = {
        "/studies": uids("0020000D", "1.1"),
        "/series": uids("0020000E", "1.2"),
        "/metadata": json.dumps(broken),
        "/series/1.2": b"--x\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--x--",
    }
    with answering(answers) as url:
        (found,) = mirror_inputs([url], tmp_path / "urls", None).remote
    (file,) = found.root.rglob("*.dcm")
    assert file.read_bytes() == path.read_bytes()


def test_names_of_a_server_lead_out_of_no_folder(tmp_path):
    (tmp_path / "precious").mkdir()
    for study, uid, instance in (("../precious", "1.2", "1.3"), ("1.1", "..", "1.3"), ("1.1", "1.2", "../../../x")):
        answers = {
            "/studies": uids("0020000D", study),
            "/series": uids("0020000E", uid),
            "/metadata": json.dumps([header(instance)]),
        }
        with answering(answers) as url, pytest.raises(InputError, match="something else than a UID"):
            mirror_inputs([url], tmp_path / "urls", None)
    assert [path.name for path in tmp_path.rglob("*") if "urls" not in path.parts] == ["precious"]
    assert not [path for path in (tmp_path / "urls").rglob("*") if path.is_file()]


@pytest.mark.parametrize("end", ["/studies", "/series", "/metadata"])
def test_an_answer_that_is_not_dicom_is_one_sentence(tmp_path, end):
    answers = {"/studies": uids("0020000D", "1.1"), "/series": uids("0020000E", "1.2"), "/metadata": "[]"}
    for text in ("<html>Doe</html>", '[["Doe"]]', '[{"0020000D": "Doe"}]', "7", ""):
        with answering(answers | {end: text}) as url, pytest.raises(InputError) as error:
            mirror_inputs([url], tmp_path / "urls", None)
        assert str(error.value).startswith(url) and "Doe" not in str(error.value)
