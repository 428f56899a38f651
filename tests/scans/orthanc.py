"""A real Orthanc on loopback ports."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def running_orthanc(folder: Path, **settings: object) -> Iterator[Server]:
    """Run a server that keeps its files in a folder."""
    assert ORTHANC is not None
    server = Server(free_port(), free_port())
    known = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [str(PLUGINS / "libOrthancDicomWeb.so")],
        "HttpPort": server.http,
        "HttpServerEnabled": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": server.dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps({**known, **settings}))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(150):
            try:
                server.get("system")
                break
            except urllib.error.HTTPError:  # it wants a password
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        else:
            pytest.fail((folder / "log").read_text())
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)
