"""A spool, an intake, and a receiver on a loopback port; a peer that takes what the node sends."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from io import BytesIO

import pydicom
import pytest

pytest.importorskip("pynetdicom")

from tumorlens.pipeline.services.dicom_node.intake import Intake
from tumorlens.pipeline.services.dicom_node.receiver import Receiver
from tumorlens.pipeline.services.dicom_node.settings import NodeLimits
from tumorlens.pipeline.services.spool import Spool

LIMITS = NodeLimits(study_timeout=0.5, free_gb=0.0, idle_timeout=10.0)


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.close()


@pytest.fixture
def intake(spool):
    return Intake(spool, LIMITS)


@pytest.fixture
def listening(intake):
    """Runs a receiver for a while: `with listening(callers=("PACS",)) as port`."""

    @contextmanager
    def run(limits=LIMITS, callers=("PACS",), tls=None):
        receiver = Receiver(intake, limits, "TUMORLENS", callers, tls)
        try:
            yield receiver.start("127.0.0.1", 0)
        finally:
            receiver.stop()

    return run


def bytes_of(dataset):
    """A data set as the bytes of a DICOM file."""
    with BytesIO() as file:
        dataset.save_as(file, enforce_file_format=True)
        return file.getvalue()


def stored(intake, paths):
    """Store files; returns what `Intake.store` says of each."""
    return [intake.store(path.read_bytes(), str(pydicom.dcmread(path).SOPInstanceUID)) for path in paths]


def associate(port, datasets=(), title="PACS", called="TUMORLENS", tls=None, syntaxes=None):
    """An association that offers the classes and syntaxes of some data sets, and Verification."""
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification

    entity = AE(title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
    entity.add_requested_context(Verification)
    for uid, syntax in dict.fromkeys((ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in datasets):
        entity.add_requested_context(uid, syntaxes or syntax)
    return entity.associate("127.0.0.1", port, ae_title=called, tls_args=(tls, "localhost") if tls else None)


def send(port, datasets, **settings):
    """The status of each data set that is sent in one association."""
    association = associate(port, datasets, **settings)
    assert association.is_established
    try:
        return [association.send_c_store(dataset).Status for dataset in datasets]
    finally:
        association.release()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for localhost that has signed itself, and its key."""
    return new_certificate(tmp_path_factory)


@pytest.fixture(scope="session")
def other_certificate(tmp_path_factory):
    """As `certificate`, of somebody else."""
    return new_certificate(tmp_path_factory)


def new_certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*words, "-addext", names, "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)
    return files


@contextmanager
def running_peer(port=0, statuses=(), syntaxes=None, tls=None):
    """A storage peer called PACS; gives its port, and the list of data sets that it gets.

    Args:
        port: Where it listens; 0 takes any that is free.
        statuses: What it answers to the first objects; then it takes all.
        syntaxes: Transfer syntaxes that it knows; by default all without compression.
        tls: Its side of TLS; None speaks in the clear.
    """
    from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt

    received, answers = [], iter(statuses)

    def store(event):
        status = next(answers, 0x0000)
        if status == 0x0000:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            received.append(dataset)
        return status

    entity = AE("PACS")
    entity.require_called_aet = True
    entity.require_calling_aet = ["TUMORLENS"]
    contexts = AllStoragePresentationContexts
    entity.supported_contexts = [build_context(c.abstract_syntax, syntaxes or c.transfer_syntax) for c in contexts]
    handlers = [(evt.EVT_C_STORE, store)]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=tls)
    try:
        yield server.server_address[1], received
    finally:
        server.shutdown()
