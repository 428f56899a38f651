"""The node as a whole: how it begins; and, with a real Orthanc, the way of studies that it sends, or that are fetched
from it, until SEG and SR are back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import date

import pydicom
import pytest

from tests.conftest import REPOSITORY
from tests.pipeline.services.dicom_node.conftest import LIMITS
from tests.scans.dicom import IDENTIFIERS
from tests.scans.dicom_results import errors_in
from tests.scans.orthanc import free_port, needs_orthanc, running_orthanc
from tests.scans.studies import SICK, STUDY, series
from tests.waiting import until
from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.dicom_node.archive import Archive
from tumorlens.pipeline.services.dicom_node.destinations import WebDestination
from tumorlens.pipeline.services.dicom_node.node import Node
from tumorlens.pipeline.services.dicom_node.puller import Puller
from tumorlens.pipeline.services.spool import DICOM

PAGE = (REPOSITORY / "docs" / "how-to" / "run-a-dicom-node.md").read_text(encoding="utf-8")


def documented(language):
    """The first example of a language on the page about the node."""
    return re.search(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)[1]


def check_answers(server, tmp_path):
    """One mask and one report are there, which the validator accepts, and they are of the study."""
    (mask,), (report,) = server.instances("SEG"), server.instances("SR")
    for name, id in (("mask", mask), ("report", report)):
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(server.file(id))
        assert errors_in(path) == []
        assert pydicom.dcmread(path).StudyInstanceUID == STUDY
    assert len(server.get("studies")) == 1
    assert pydicom.dcmread(tmp_path / "mask.dcm").pixel_array.any()


def test_a_node_that_cannot_begin_leaves_no_thread(spool, pipeline, monkeypatch):
    """Each would keep the process alive."""

    def recover():
        raise InputError("the server's file of jobs cannot be read or written (database or disk is full)")

    monkeypatch.setattr(spool, "recover", recover)
    before = set(threading.enumerate())
    with pytest.raises(InputError, match="disk is full"), Node(spool, lambda: pipeline, LIMITS, None):
        pass
    until(lambda: set(threading.enumerate()) <= before, seconds=60, what=threading.enumerate)


@pytest.mark.slow
@needs_orthanc
def test_orthanc_routes_studies_to_a_node_that_is_killed_twice(tmp_path):
    paths = series(tmp_path / "in")
    (tmp_path / "route.lua").write_text(documented("lua"))
    held, log = ExitStack(), tmp_path / "node.log"
    port = held.enter_context(free_port())
    settings = json.loads(documented("json"))
    del settings["DicomPort"]
    settings["DicomModalities"]["tumorlens"][2] = port
    settings |= {"LuaScripts": [str(tmp_path / "route.lua")], "StableAge": 1}

    def start(server, *words):
        command = [sys.executable, "-m", "tumorlens.pipeline.cli.app", "dicom-node", "--spool", str(tmp_path / "spool")]
        command += ["--port", str(port), "--caller", "ORTHANC", "--send-to", f"ORTHANC@127.0.0.1:{server.dicom}"]
        with log.open("a") as file:
            process = subprocess.Popen([*command, "--free-gb", "0", *words], stdout=file, stderr=file)
        until(lambda: log.read_text().count("listens on") == started + 1 or process.poll() is not None)
        return process

    def kill(process):
        process.kill()
        process.wait()

    with held, running_orthanc(tmp_path / "orthanc", **settings) as server:
        started = 0
        server.upload(paths)  # and the node is away: Orthanc does not send again by itself
        until(lambda: [job for job in server.get("jobs?expand") if job["State"] == "Failure"])
        held.close()
        node = start(server)
        try:
            again = next(line for line in PAGE.splitlines() if line.startswith("curl -s 'http://localhost:8042/jobs?"))
            subprocess.run(again.replace("http://localhost:8042", server.url), shell=True, check=True)
            until(lambda: len(list((tmp_path / "spool").rglob("1*.dcm"))) == len(paths))
            kill(node)  # all objects are there, the study is open
            started = 1
            # It cannot know that all has come, and Orthanc does not send again by itself.
            node = start(server, "--study-timeout", "1", "--incomplete-timeout", "1")
            until(lambda: "complete with 16 objects, queued" in log.read_text())
            kill(node)  # before, or while, the models see it
            started = 2
            node = start(server, "--study-timeout", "1")
            until(lambda: server.instances("SR"), what=log.read_text)
            # The answer makes the study stable again, so Orthanc sends all of it once more.
            until(lambda: "nothing new in 16 objects" in log.read_text(), what=log.read_text)
            node.send_signal(signal.SIGTERM)
            assert node.wait(60) == 143
        finally:
            node.kill()
            node.wait()
        check_answers(server, tmp_path)
    text = log.read_text()
    assert "meningioma" in text and text.count("sent mask.dcm, measurements.dcm to ORTHANC@") == 1
    assert "Traceback" not in text
    assert not [word for word in IDENTIFIERS if word in text]


@pytest.mark.slow
@needs_orthanc
@pytest.mark.parametrize("is_orthanc", [True, False], ids=["orthanc", "dicomweb"])
def test_studies_are_fetched_and_answers_stored(tmp_path, pipeline, spool, is_orthanc):
    paths = series(tmp_path / "in", SICK, StudyDate=f"{date.today():%Y%m%d}")
    with running_orthanc(tmp_path / "orthanc", StableAge=1) as server:
        archive = Archive(server.url if is_orthanc else f"{server.url}/dicom-web", is_orthanc)

        def fetching():
            node = Node(spool, lambda: pipeline, LIMITS, WebDestination(archive))
            return node, Puller(node.intake, archive, is_orthanc, 1, LIMITS)

        def poll(puller, is_true):
            def poll_and_see():
                puller.poll()
                return is_true()

            until(poll_and_see)

        node, puller = fetching()
        puller.poll()  # Orthanc's studies of the time before the first look are left alone
        server.upload(paths)
        with node:
            poll(puller, lambda: server.instances("SR"))
            changes = server.get("changes?last")["Last"]
            until(lambda: server.get("changes?last")["Last"] > changes)  # with the answer, stable again
            poll(puller, lambda: True)
        check_answers(server, tmp_path)
        node, puller = fetching()  # after a restart
        with node:
            poll(puller, lambda: True)
            time.sleep(1)
            poll(puller, lambda: True)
        assert len(spool.jobs(DICOM)) == 1
        check_answers(server, tmp_path)
