"""The words of `tumorlens dicom-node`; tests/pipeline/services/dicom_node runs it."""

from __future__ import annotations

import threading

import pytest

from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.dicom_node.settings import Peer
from tumorlens.pipeline.services.spool import DICOM, open_spool


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name the AE titles that may send with --caller, or let everybody send with --any-caller"),
        (["--caller", "A", "--any-caller"], "name the AE titles that may send with --caller, or let everybody send"),
        (["--caller", "A" * 17], "is not an AE title: 1 to 16 ASCII characters without backslash"),
        (["--any-caller", "--title", "a\\b"], "is not an AE title"),
        (["--any-caller", "--send-to", "PACS:104"], "'PACS:104' is not TITLE@HOST:PORT, such as PACS@192.168.1.5:4242"),
        (["--any-caller", "--tls-cert", "c.pem"], "give --tls-cert and --tls-key together"),
        (["--any-caller", "--tls-client-ca", "c.pem"], "--tls-client-ca needs --tls-cert and --tls-key"),
        (["--any-caller", "--tls-cert", "c.pem", "--tls-key", "k.pem"], "not a PEM certificate with its key"),
        (["--any-caller", "--send-ca", "c.pem"], "--send-ca needs --send-to"),
        (["--any-caller", "--send-to", "A@b:1", "--send-ca", "c.pem"], "c.pem: certificates cannot be read"),
        (["--orthanc", "http://a", "--dicomweb", "http://a"], "give --orthanc or --dicomweb, not both"),
        (["--orthanc", "http://a", "--caller", "A"], "with --orthanc no port is opened"),
        (["--any-caller", "--days", "3"], "--days needs --dicomweb"),
        (["--orthanc", "http://a", "--days", "3"], "--days needs --dicomweb"),
        (["--any-caller", "--poll", "3"], "--poll needs --orthanc or --dicomweb"),
        (["--orthanc", "ftp://a"], "give an address such as http://localhost:8042"),
        (["--dicomweb", "http://me:secret@a"], "put USER:PASSWORD into TUMORLENS_DICOMWEB_AUTH"),
        (["--any-caller", "--host", "no such host"], "cannot be used"),
    ],
)
def test_wrong_use_is_one_sentence(command, tmp_path, arguments, sentence):
    pytest.importorskip("pynetdicom")
    result = command("dicom-node", "--spool", tmp_path / "spool", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr and "secret" not in result.stderr
    # A model that is converted for the first time says so on a line of its own.
    assert [line for line in result.stderr.splitlines() if "converting" not in line] == [result.stderr.splitlines()[-1]]


def test_a_folder_has_one_node(command, tmp_path):
    pytest.importorskip("pynetdicom")
    with open_spool(tmp_path / "spool", DICOM):
        answers = []
        words = ("dicom-node", "--spool", tmp_path / "spool", "--any-caller")
        other = threading.Thread(target=lambda: answers.append(command(*words)))
        other.start()
        other.join()
    assert answers[0].exit_code == 2 and "another run" in answers[0].stderr


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("PACS@10.0.0.1:104", Peer("PACS", "10.0.0.1", 104)),
        ("MY PACS@pacs.example:11112", Peer("MY PACS", "pacs.example", 11112)),
        ("A@[::1]:104", Peer("A", "::1", 104)),
    ],
)
def test_peers(text, peer):
    assert Peer.from_text(text) == peer


@pytest.mark.parametrize(
    "text", ["", "PACS", "PACS@host", "PACS@host:", "PACS@:1", "PACS@host:0", "PACS@host:65536", "@h:1"]
)
def test_what_names_no_peer(text):
    with pytest.raises(InputError):
        Peer.from_text(text)
