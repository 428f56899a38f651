"""Results on their way out, to a real storage peer: order, attempts, restarts, and what is not sent."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from dataclasses import replace

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from tests.pipeline.services.dicom_node.conftest import LIMITS, running_peer
from tests.scans.dicom_results import saved, written
from tests.scans.orthanc import free_port
from tests.waiting import until
from tumorlens.data.formats.open import open_scan
from tumorlens.pipeline.services.dicom_node import delivery
from tumorlens.pipeline.services.dicom_node.delivery import Delivery
from tumorlens.pipeline.services.dicom_node.destinations import PeerDestination, client_tls
from tumorlens.pipeline.services.dicom_node.receiver import tls_of
from tumorlens.pipeline.services.dicom_node.settings import Peer
from tumorlens.pipeline.services.jobs import DONE, FAILED
from tumorlens.pipeline.services.spool import DICOM

STUDY = "1.2.840.1"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch, caplog):
    monkeypatch.setattr(delivery, "_FIRST_PAUSE_S", 0.3)
    monkeypatch.setattr(delivery, "_LOOK_S", 0.05)
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """SEG, SR and a secondary capture of a series."""
    folder = tmp_path_factory.mktemp("results")
    saved(folder / "in", "axial")
    seg, sr, sc = written(folder, open_scan(folder / "in" / "axial"))
    return {"mask.dcm": seg, "measurements.dcm": sr, "overlay.dcm": sc}


def ended_job(spool, files=(), state=DONE, error="", source="ab"):
    """A job that has ended, with results."""
    job = spool.accept(spool.receive(DICOM), details={"study": STUDY})
    spool.claim(10)
    folder = job.results / "1"
    folder.mkdir(parents=True)
    for name, file in dict(files).items():
        (folder / name).write_bytes(file.read_bytes())
    scan = {"name": "MR series 5", "error": error, "folder": "1", "files": list(dict(files)), "label": "glioma"}
    spool.finish(job.id, state, error, [scan | {"confidence": 0.9, "source_sha256": source, "seconds": 1.0}])
    return job.id


@contextmanager
def delivering(spool, port, limits=LIMITS, tls=None):
    sender = Delivery(spool, PeerDestination(Peer("PACS", "127.0.0.1", port), "TUMORLENS", tls), limits)
    sender.start()
    try:
        yield
    finally:
        sender.close()


def state(spool, id):
    return spool.job(id).details.get("delivery", {}).get("state")


def test_the_mask_goes_first_then_the_report(spool, results, caplog):
    with running_peer() as (port, received), delivering(spool, port):
        id = ended_job(spool, results)
        until(lambda: state(spool, id) == "sent")
    assert [ds.Modality for ds in received] == ["SEG", "SR", "OT"]
    assert received[0] == pydicom.dcmread(results["mask.dcm"])
    assert f"study {STUDY}: MR series 5: glioma" in caplog.messages


def test_a_peer_may_know_the_default_syntax_only(spool, results):
    with running_peer(syntaxes=[ImplicitVRLittleEndian]) as (port, received), delivering(spool, port):
        id = ended_job(spool, results)
        until(lambda: state(spool, id) == "sent")
    assert received[0].file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert received[0].PixelData == pydicom.dcmread(results["mask.dcm"]).PixelData


def test_results_go_by_tls(spool, results, certificate, other_certificate, caplog):
    with running_peer(tls=tls_of(*certificate, certificate[0])) as (port, received):
        with delivering(spool, port):
            id = ended_job(spool, results)
            until(lambda: "not sent" in caplog.text)
        with delivering(spool, port, tls=client_tls(other_certificate[0], *certificate)):
            until(lambda: "its certificate is not accepted (self-signed certificate)" in caplog.text)
        with delivering(spool, port, tls=client_tls(certificate[0], *certificate)):
            until(lambda: state(spool, id) == "sent")
    assert len(received) == 3


def test_a_peer_that_is_not_there_is_tried_again_also_after_a_restart(spool, results, caplog):
    with free_port() as port, delivering(spool, port):
        id = ended_job(spool, results)
        until(lambda: spool.job(id).details.get("delivery", {}).get("attempts", 0) >= 2)
    assert "not sent to PACS@127.0.0.1:" in caplog.text and "it does not answer; next attempt in" in caplog.text
    with running_peer(port) as (_, received), delivering(spool, port):
        until(lambda: state(spool, id) == "sent")
    assert len(received) == 3
    pauses = [message.rpartition("next attempt in ")[2] for message in caplog.messages if "next attempt" in message]
    assert pauses[:2] == ["0 s", "1 s"]  # 0.3 and 0.6, rounded


def test_a_peer_that_is_full_gets_the_rest_later(spool, results, caplog):
    with running_peer(statuses=(0x0000, 0xA700)) as (port, received), delivering(spool, port):
        id = ended_job(spool, results)
        until(lambda: state(spool, id) == "sent")
    assert [ds.Modality for ds in received] == ["SEG", "SEG", "SR", "OT"]  # the same mask twice does no harm
    assert received[0].SOPInstanceUID == received[1].SOPInstanceUID
    assert "it refuses a SR object with the status 0xA700" in caplog.text


def test_it_gives_up_after_a_while(spool, results, caplog):
    with free_port() as port, delivering(spool, port, replace(LIMITS, retry_hours=0.0)):
        id = ended_job(spool, results)
        until(lambda: state(spool, id) == "given up")
    assert f"given up, the results lie in jobs/dicom.{id}/results" in caplog.text


def test_what_was_given_up_is_kept_from_then_on(spool, results):
    id = ended_job(spool, results)
    with spool._write() as db:
        db.execute("UPDATE jobs SET ended = ended - 80 * 3600")
    with free_port() as port, delivering(spool, port):
        until(lambda: state(spool, id) == "given up")
        time.sleep(0.5)
        assert spool.job(id) is not None
        details = spool.job(id).details
        old = details["delivery"] | {"next": time.time() - 25 * 3600}
        spool.set_details(id, details | {"delivery": old})
        until(lambda: spool.job(id) is None)


def test_why_there_is_nothing_to_send_is_logged(spool, caplog, tmp_path):
    reason = "the DICOM source has no SeriesInstanceUID, so no DICOM result can refer to it"
    (tmp_path / "result.json").write_text(json.dumps({"review": [reason]}))
    with free_port() as port, delivering(spool, port):
        id = ended_job(spool, {"result.json": tmp_path / "result.json"})
        until(lambda: state(spool, id) == "nothing")
    assert f"study {STUDY}: MR series 5: there is nothing to send: {reason}" in caplog.messages


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_result_that_cannot_be_read_keeps_no_other(spool, results, caplog, tmp_path, content):
    files = {}
    if content is not None:
        files["result.json"] = tmp_path / "result.json"
        files["result.json"].write_text(content)
    with running_peer() as (port, _), delivering(spool, port):
        damaged, good = ended_job(spool, files), ended_job(spool, results, source="cd")
        until(lambda: state(spool, good) == "sent")
    assert state(spool, damaged) == "nothing"
    assert f"study {STUDY}: MR series 5: there is nothing to send: its result.json cannot be read" in caplog.messages


def test_a_fault_with_one_job_keeps_no_other(spool, results, caplog):
    odd, good = ended_job(spool), ended_job(spool, results, source="cd")
    spool.set_details(odd, {})
    with running_peer() as (port, _), delivering(spool, port):
        until(lambda: state(spool, good) == "sent")
    assert "tumorlens: a result: internal error, please report it (KeyError)" in caplog.messages


def test_the_same_scan_is_answered_once(spool, results, caplog):
    with running_peer() as (port, received), delivering(spool, port):
        first = ended_job(spool, results)
        until(lambda: state(spool, first) == "sent")
        second, other = ended_job(spool, results), ended_job(spool, results, source="cd")
        until(lambda: state(spool, second) == "nothing" and state(spool, other) == "sent")
    assert len(received) == 6
    assert "was answered before" in caplog.text


def test_a_failed_study_is_one_sentence(spool, caplog):
    with free_port() as port, delivering(spool, port):
        id = ended_job(spool, state=FAILED, error="MR series 5: the pixel data are damaged")
        until(lambda: state(spool, id) == "nothing")
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert message == f"study {STUDY}: set aside in jobs/dicom.{id}: MR series 5: the pixel data are damaged"


def test_what_was_sent_is_deleted_after_a_while_and_what_was_not_stays(spool, results):
    with running_peer() as (port, _), delivering(spool, port, replace(LIMITS, keep_hours=0.0)):
        sent = ended_job(spool, results)
        until(lambda: spool.job(sent) is None)
    with free_port() as port, delivering(spool, port, replace(LIMITS, keep_hours=0.0)):
        waiting = ended_job(spool, results)
        until(lambda: spool.job(waiting).details.get("delivery", {}).get("attempts", 0) >= 1)
    assert spool.job(waiting) is not None
