"""A real Orthanc on loopback, with the configuration of infra/, that can be killed and restarted on its storage."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.project import PROJECT
from tests.support.services.servers import free_ports
from tests.support.waiting import wait_for

CONFIGURATION = PROJECT / "infra" / "orthanc.json"
USER = "cxr"
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@dataclass
class OrthancServer:
    """An Orthanc with its data in `folder`; it keeps ports and password when it is killed and restarted."""

    folder: Path
    http_port: int
    dicom_port: int
    password: str = field(default_factory=lambda: secrets.token_hex(12))
    storage: str = "db"
    dicomweb: bool = False
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """The address, without user and password."""
        return f"http://127.0.0.1:{self.http_port}"

    def start(self) -> None:
        """Start it and wait until it responds."""
        storage = self.folder / self.storage
        storage.mkdir(exist_ok=True)
        own = {
            "StorageDirectory": str(storage),
            "IndexDirectory": str(storage),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "RemoteAccessAllowed": False,
            "Plugins": [str(DICOMWEB)] if self.dicomweb else [],
        }
        file = self.folder / "orthanc.json"
        file.write_text(json.dumps(json.loads(CONFIGURATION.read_text()) | own))
        with (self.folder / "orthanc.log").open("ab") as log:
            environment = {**os.environ, "ORTHANC_PASSWORD": self.password}
            self._process = subprocess.Popen([program("Orthanc"), str(file)], env=environment, stdout=log, stderr=log)
        wait_for(lambda: self.get("/system").is_success, log=self.folder / "orthanc.log")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def get(self, path: str) -> httpx.Response:
        """GET a path of its REST API."""
        return httpx.get(f"{self.url}{path}", auth=(USER, self.password), timeout=60)

    def send(self, *images: bytes, title: str = "CXR", port: int | None = None) -> None:
        """Send images as a modality does, with storescu over DICOM; to another node by `title` and `port`."""
        folder = self.folder / "sent"
        folder.mkdir(exist_ok=True)
        files = []
        for number, image in enumerate(images):
            files.append(str(folder / f"{number}.dcm"))
            Path(files[-1]).write_bytes(image)
        command = [program("storescu"), "-aec", title, "127.0.0.1", str(port or self.dicom_port), *files]
        subprocess.run(command, check=True, timeout=120)

    def instances(self, **tags: str) -> list[str]:
        """Return the Orthanc IDs of the instances whose tags have these values."""
        query = {"Level": "Instance", "Query": tags}
        response = httpx.post(f"{self.url}/tools/find", json=query, auth=(USER, self.password), timeout=60)
        found: list[str] = response.raise_for_status().json()
        return found

    def file(self, instance: str) -> bytes:
        """Return the DICOM file of an instance."""
        return self.get(f"/instances/{instance}/file").raise_for_status().content


@contextlib.contextmanager
def serve_orthanc(folder: Path, *, dicomweb: bool = False) -> Iterator[OrthancServer]:
    """Serve an Orthanc with an empty storage on free ports, with its DICOMweb if asked for; user `cxr`."""
    if dicomweb and not DICOMWEB.exists():
        pytest.fail(f"{DICOMWEB} is missing; the tests of DICOMweb need it: apt-get install orthanc-dicomweb")
    http_port, dicom_port = free_ports(2)
    folder.mkdir(exist_ok=True)
    server = OrthancServer(folder, http_port, dicom_port, dicomweb=dicomweb)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def program(name: str) -> str:
    """Return the path of a system program; fail if it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.fail(f"{name} is not installed; the tests need it: apt-get install orthanc dcmtk dicom3tools")
    return found
