"""The server, with pynetdicom and dcmtk as its peers: who may call, what is taken, what each limit refuses."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
import subprocess
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from tests.pipeline.services.dicom_node.conftest import LIMITS, associate, send
from tests.scans.dicom import IDENTIFIERS, save_enhanced
from tests.scans.studies import AFFINE, SMALL_STUDY, T1C, VOLUME, save_study
from tests.waiting import until
from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.dicom_node.receiver import ANOTHER, BROKEN, FULL, SUCCESS, tls_of
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits


@pytest.fixture
def study(tmp_path):
    return [pydicom.dcmread(path) for path in save_study(tmp_path / "study", T1C)]


def test_a_study_arrives(listening, intake, study):
    with listening() as port:
        association = associate(port, study)
        assert association.send_c_echo().Status == SUCCESS
        association.release()
        assert send(port, study) == [SUCCESS] * len(study)
    names = {path.stem for path in intake.spool.folder.rglob("*.dcm")}
    assert names == {ds.SOPInstanceUID for ds in study}


@pytest.mark.parametrize(
    ("callers", "title", "called", "sentence"),
    [
        (("PACS", "MR1"), "MR2", "TUMORLENS", "MR2@127.0.0.1 was refused: its title is not one of --caller"),
        (("PACS",), "PACS", "OTHER", "PACS@127.0.0.1 was refused: it calls another title than TUMORLENS (--title)"),
    ],
)
def test_unknown_titles_are_refused(listening, caplog, callers, title, called, sentence):
    with listening(callers=callers) as port:
        assert associate(port, title=title, called=called).is_rejected
        assert is_let_in(port, title="PACS")
    assert caplog.messages == [sentence]


def test_everybody_may_send_if_no_caller_is_named(listening):
    with listening(callers=()) as port:
        assert is_let_in(port, title="ANYBODY")


def is_let_in(port, **settings):
    association = associate(port, **settings)
    is_established = association.is_established
    association.release()
    return is_established


def test_more_associations_than_allowed_are_refused(listening, caplog):
    with listening(replace(LIMITS, associations=2)) as port:
        open_ones = [associate(port), associate(port)]
        assert all(association.is_established for association in open_ones)
        assert associate(port).is_rejected
        for association in open_ones:
            association.release()
        until(lambda: is_let_in(port))  # their threads may end late
    assert set(caplog.messages) == {"PACS@127.0.0.1 was refused: there are 2 associations already (--associations)"}


def test_a_large_object_is_refused_and_the_next_one_taken(listening, intake, study, caplog):
    large, small = study[0], study[1]
    large.Rows, large.Columns, large.PixelData = 1000, 1000, bytes(2_000_000)
    with listening(replace(LIMITS, object_mb=1)) as port:
        assert send(port, [large, small]) == [FULL, SUCCESS]
    assert [path.stem for path in intake.spool.folder.rglob("*.dcm")] == [small.SOPInstanceUID]
    assert "an object of more than 1 MB was refused (--object-mb)" in caplog.text


def test_a_full_folder_answers_out_of_resources(listening, intake, study):
    intake.limits = replace(LIMITS, spool_gb=0.0)
    with listening() as port:
        assert send(port, study[:2]) == [FULL, FULL]
        intake.limits = LIMITS
        assert send(port, study[:2]) == [SUCCESS, SUCCESS]


def test_a_study_for_which_the_disk_has_no_room_is_sent_again(listening, intake, study, monkeypatch, caplog):
    make = Path.mkdir

    def mkdir(path, *args, **kwargs):
        if path.parent == intake.spool.folder / "jobs":
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(path, *args, **kwargs)

    with listening() as port:
        with monkeypatch.context() as disk:
            disk.setattr(Path, "mkdir", mkdir)
            assert send(port, study[:1]) == [FULL]
        assert send(port, study[:1]) == [SUCCESS]
    assert "an object was refused" in caplog.text and "internal error" not in caplog.text


def test_broken_objects_among_good_ones(listening, intake, study, caplog):
    nobody = pydicom.dcmread(Path(study[0].filename))
    del nobody.StudyInstanceUID
    with listening() as port:
        association = associate(port, study)
        statuses = [association.send_c_store(study[0]).Status, association.send_c_store(nobody).Status]
        statuses.append(send_as(association, study[1], "1.2.3"))
        statuses.append(association.send_c_store(study[2]).Status)
        association.release()
    assert statuses == [SUCCESS, BROKEN, ANOTHER, SUCCESS]
    assert len(list((intake.spool.folder / "aside").iterdir())) == 2
    assert not [word for word in IDENTIFIERS if word in caplog.text]


def send_as(association, dataset, instance):
    """Send an object under the UID of another."""
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    (context,) = [c for c in association.accepted_contexts if c.abstract_syntax == dataset.SOPClassUID]
    request = C_STORE()
    request.MessageID, request.Priority = 77, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = dataset.SOPClassUID, instance
    request.DataSet = BytesIO(encode(dataset, False, True))
    association._reactor_checkpoint.clear()  # as `send_c_store` does: the answer is for us
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return answer.Status


SYNTAX_FILES = {
    ImplicitVRLittleEndian: "MR_small_implicit.dcm",
    ExplicitVRBigEndian: "MR_small_bigendian.dcm",
    RLELossless: "MR_small_RLE.dcm",
    JPEG2000Lossless: "MR_small_jp2klossless.dcm",
    DeflatedExplicitVRLittleEndian: "image_dfl.dcm",
    JPEGLosslessSV1: "SC_rgb_jpeg_gdcm.dcm",
}


@pytest.mark.parametrize("syntax", SYNTAX_FILES, ids=lambda uid: uid.keyword)
def test_transfer_syntaxes_are_taken_as_they_are(listening, intake, syntax):
    dataset = pydicom.dcmread(get_testdata_file(SYNTAX_FILES[syntax]))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    with listening() as port:
        assert send(port, [dataset]) == [SUCCESS]
    (file,) = intake.spool.folder.rglob("*.dcm")
    kept = pydicom.dcmread(file)
    assert kept.file_meta.TransferSyntaxUID == syntax and kept.PixelData == dataset.PixelData


def test_an_enhanced_series_is_taken(listening, intake, tmp_path):
    dataset = pydicom.dcmread(save_enhanced(tmp_path / "enhanced.dcm", VOLUME, AFFINE))
    with listening() as port:
        assert send(port, [dataset]) == [SUCCESS]
    assert len(list(intake.spool.folder.rglob("*.dcm"))) == 1


def test_dcmtk_can_send(listening, intake, tmp_path):
    tools = [Path("/usr/bin") / name for name in ("echoscu", "storescu")]  # pynetdicom has tools of these names
    if not all(tool.exists() for tool in tools):
        pytest.skip("dcmtk is not installed")
    save_study(tmp_path / "study", T1C)
    with listening() as port:
        peer = ["-aet", "PACS", "-aec", "TUMORLENS", "127.0.0.1", str(port)]
        subprocess.run([tools[0], *peer], check=True, capture_output=True)
        subprocess.run([tools[1], "+sd", *peer, tmp_path / "study"], check=True, capture_output=True)
    assert len(list((intake.spool.folder).rglob(f"{SMALL_STUDY}/*.dcm"))) == 9


def test_an_object_on_its_way_keeps_its_study_open(listening, intake, study):
    """The next one may take longer than --study-timeout."""
    with listening() as port:
        association = associate(port, study)
        association.send_c_store(study[0])
        assert close_all(intake) == []
        association.release()
        assert len(closed(intake)) == 1


def test_the_next_study_does_not_keep_the_one_before_it_open(listening, intake, study):
    second = pydicom.dcmread(Path(study[0].filename))
    second.StudyInstanceUID, second.SOPInstanceUID = "1.2.3.4", "1.2.3.4.5"
    second.file_meta.MediaStorageSOPInstanceUID = second.SOPInstanceUID
    with listening() as port:
        association = associate(port, study)
        association.send_c_store(study[0])
        association.send_c_store(second)
        assert [job.details["study"] for job in closed(intake)] == [study[0].StudyInstanceUID]
        assert len(close_all(intake)) == 1
        association.release()


def close_all(intake):
    """The jobs after a pause of --study-timeout, where no other may come."""
    time.sleep(LIMITS.study_timeout + 0.1)
    intake.close_complete()
    return intake.spool.jobs()


def closed(intake):
    """The jobs once there are some: the thread of an association may end late."""

    def jobs():
        intake.close_complete()
        return intake.spool.jobs()

    return until(jobs)


def cut_off(association):
    association.dul.socket._shutdown_socket()


@pytest.mark.parametrize("end", [lambda association: association.abort(), cut_off], ids=["abort", "lost"])
def test_a_study_that_is_cut_off_waits_for_the_rest(listening, intake, study, caplog, end):
    with listening() as port:
        association = associate(port, study)
        for dataset in study[:5]:
            association.send_c_store(dataset)
        assert close_all(intake) == [], "the sender has not said that this is all"
        end(association)
        assert close_all(intake) == []
        until(lambda: f"its studies may be incomplete: {SMALL_STUDY}" in caplog.text)
        assert close_all(intake) == []
        send(port, study)
        assert len(closed(intake)) == 1
    assert "run as it is" not in caplog.text


def test_a_study_of_which_nothing_more_comes_is_run_as_it_is(listening, intake, study, caplog):
    with listening() as port:
        association = associate(port, study)
        association.send_c_store(study[0])
        association.abort()
        assert close_all(intake) == []
        intake.limits = replace(LIMITS, incomplete_timeout=0.1)
        assert len(closed(intake)) == 1
    assert f"study {SMALL_STUDY}: may be incomplete" in caplog.text


@pytest.mark.parametrize("n_before", [0, 5], ids=["the first", "all of an association"])
def test_a_study_of_which_an_object_was_refused_waits(listening, intake, study, n_before):
    with listening() as port:
        send(port, study[:n_before])
        association = associate(port, study)
        intake.limits = replace(LIMITS, spool_gb=0.0)
        assert association.send_c_store(study[n_before]).Status == FULL
        intake.limits = LIMITS
        if not n_before:
            association.send_c_store(study[1])
        association.release()
        assert close_all(intake) == []
        send(port, study)
        assert len(closed(intake)) == 1


def test_messages_of_absurd_length_end_the_connection(listening):
    with listening() as port, socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(struct.pack(">BBL", 1, 0, 2**31))
        peer.settimeout(10)
        assert peer.recv(100) == b""
        assert is_let_in(port)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the command prints one line
@pytest.mark.parametrize("fragment", [b"\x03no command", b"\x02no command before", b"\x03" + bytes(40)], ids=len)
def test_garbage_ends_its_own_association_only(listening, study, fragment):
    with listening() as port:
        good, bad = associate(port, study), associate(port, study)
        item = struct.pack(">LB", len(fragment) + 1, 1) + fragment
        bad.dul.socket.send(struct.pack(">BBL", 4, 0, len(item)) + item)
        assert good.send_c_store(study[0]).Status == SUCCESS
        good.release()
        until(lambda: bad.is_aborted, seconds=20)
        assert send(port, study[1:2]) == [SUCCESS]


def test_silent_connections_do_not_pile_up(listening):
    limits = NodeLimits(associations=1, idle_timeout=1.0, free_gb=0.0)
    with listening(limits) as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
        silent[-1].settimeout(30)
        assert silent[-1].recv(10) == b""
        until(lambda: is_let_in(port), seconds=45)  # ARTIM: 30 s by pynetdicom, or ours
        for peer in silent:
            peer.close()


@pytest.fixture
def client(certificate):
    """The TLS side of a sender that trusts the certificate."""
    return ssl.create_default_context(cafile=str(certificate[0]))


def test_objects_are_taken_by_tls_only(listening, study, certificate, client, caplog):
    with listening(tls=tls_of(*certificate, None)) as port:
        assert send(port, study[:2], tls=client) == [SUCCESS, SUCCESS]
        assert not associate(port).is_established
        sentence = "127.0.0.1: the connection failed before an association was asked for: it does not speak TLS"
        until(lambda: sentence in caplog.text, what=lambda: caplog.text)


def test_a_sender_that_does_not_shake_hands_keeps_nobody_waiting(listening, study, certificate, client):
    patient = replace(LIMITS, idle_timeout=60.0)
    with listening(patient, tls=tls_of(*certificate, None)) as port, socket.create_connection(("127.0.0.1", port)):
        begun = time.monotonic()
        assert send(port, study[:1], tls=client) == [SUCCESS]
        assert time.monotonic() - begun < 20


def test_senders_may_need_a_certificate(listening, study, certificate, client, other_certificate, caplog):
    with listening(tls=tls_of(*certificate, certificate[0])) as port:
        assert not associate(port, tls=client).is_established
        until(lambda: "it shows no certificate" in caplog.text, what=lambda: caplog.text)
        client.load_cert_chain(*other_certificate)
        assert not associate(port, tls=client).is_established
        sentence = "its certificate is not accepted (self-signed certificate)"
        until(lambda: sentence in caplog.text, what=lambda: caplog.text)
        client.load_cert_chain(*certificate)
        assert send(port, study[:1], tls=client) == [SUCCESS]


def test_the_file_that_is_no_certificate_is_named(certificate, tmp_path):
    junk = tmp_path / "ca.pem"
    junk.write_text("no certificate")
    with pytest.raises(InputError, match=r"^[^,]*ca\.pem: not a PEM with certificates"):
        tls_of(*certificate, junk)
