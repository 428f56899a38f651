"""A real Orthanc on loopback ports."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import until

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
PLUGINS = Path("/usr/share/orthanc/plugins")
needs_orthanc = pytest.mark.skipif(
    ORTHANC is None or not (PLUGINS / "libOrthancDicomWeb.so").exists(),
    reason="Orthanc with its DICOMweb plugin is not installed (Debian: orthanc, orthanc-dicomweb)",
)


@dataclass(frozen=True)
class Server:
    """The ports of a running server."""

    http: int
    dicom: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def get(self, path):
        """What its REST interface says, from JSON."""
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=20) as answer:
            return json.load(answer)

    def post(self, path, body):
        """Post bytes or JSON; returns the answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.url}/{path}", content, timeout=60) as answer:
            return json.load(answer)

    def upload(self, files):
        """Store files."""
        for file in files:
            self.post("instances", file.read_bytes())

    def instances(self, modality):
        """The stored objects of a modality: Orthanc's id of each."""
        found = self.post("tools/find", {"Level": "Series", "Query": {"Modality": modality}})
        return [id for series in found for id in self.get(f"series/{series}")["Instances"]]

    def file(self, id):
        """The DICOM file of an object."""
        with urllib.request.urlopen(f"{self.url}/instances/{id}/file", timeout=20) as answer:
            return answer.read()


@contextmanager
def free_port() -> Iterator[int]:
    """A port of this machine at which nobody listens, and which nobody else gets before the block ends."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@contextmanager
def running_orthanc(folder: Path, **settings: object) -> Iterator[Server]:
    """Run a server that keeps its files in a folder."""
    server, process = _start(folder, settings)
    log = folder / "log"
    try:
        if not _answers(server, process, log) and "already in use" in log.read_text():  # a port, by somebody else
            server, process = _start(folder, settings)
            _answers(server, process, log)
        assert process.poll() is None, log.read_text()
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)


def _start(folder: Path, settings: dict[str, object]) -> tuple[Server, subprocess.Popen[bytes]]:
    assert ORTHANC is not None
    folder.mkdir(parents=True, exist_ok=True)
    with free_port() as http, free_port() as dicom:
        known = {
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
            "HttpPort": http,
            "HttpServerEnabled": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomPort": dicom,
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps({**known, **settings}))
    with (folder / "log").open("w") as log:
        command = [ORTHANC, str(folder / "orthanc.json")]
        return Server(http, dicom), subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _answers(server: Server, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether a server has begun to answer; otherwise it has ended."""

    def is_up() -> bool:
        try:
            server.get("system")
        except urllib.error.HTTPError:  # it wants a password
            return True
        except OSError:
            return False
        return True

    until(lambda: is_up() or process.poll() is not None, seconds=30, what=log.read_text)
    return process.poll() is None
