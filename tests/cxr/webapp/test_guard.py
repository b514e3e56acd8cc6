"""The service serves its own page and programs only, and keeps patient data to itself."""

import contextlib
import socket
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from cxr.webapp.service import PAGE_FILES
from tests.support.dicom_images import SECRETS, dicom_image
from tests.support.faults import fault
from tests.support.webapp_server import BYTES, IMAGE, Served, send, synthetic


@pytest.mark.parametrize("path", ["/nowhere", "/..%2f..%2fetc/passwd", "/static/../../params.yaml", "/docs", "/redoc"])
def test_no_other_path_is_served(served: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:  # httpx would normalise the path
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert b" 404 " in answer.splitlines()[0]
    assert b'{"error":' in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        ({"Host": "elsewhere.example"}, 421),
        ({"Host": "localhost.elsewhere.example"}, 421),
        ({"Host": ""}, 421),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "LOCALHOST:8000"}, 200),
    ],
)
@fault("web app", "a page of another site, or an unknown host name", "refused", "status 403 or 421")
def test_other_sites_and_unknown_host_names_are_rejected(served: Served, headers: dict[str, str], status: int) -> None:
    response = httpx.post(f"{served.address}/predict", content=IMAGE, headers=BYTES | headers, timeout=60)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


def test_the_own_page_is_accepted(served: Served) -> None:
    response = httpx.post(
        f"{served.address}/predict", content=IMAGE, headers=BYTES | {"Origin": served.address}, timeout=60
    )
    assert response.status_code == 200


@pytest.mark.parametrize("path", sorted(PAGE_FILES))
def test_the_page_has_no_external_resource_and_no_inline_script(served: Served, path: str) -> None:
    response = httpx.get(f"{served.address}{path}")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    addresses = response.text.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in addresses
    assert "https:" not in addresses
    assert response.headers["x-content-type-options"] == "nosniff"


def test_patient_tags_and_urls_are_not_logged_or_counted(
    served: Served, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    good = dicom_image(synthetic().astype(np.uint16))
    broken = dicom_image(synthetic().astype(np.uint16), PatientBirthDate=("DA", "Sorrowful"), Rows=7)
    answers = [
        send(served, good, image="true", heat="true"),
        send(served, broken),
        send(served, good[:-900]),
        send(served, good, name="Sorrowful.png"),
        httpx.get(f"{served.address}/Sorrowful.png"),
        httpx.request("JANE", f"{served.address}/predict"),
        httpx.get(f"{served.address}/metrics"),
    ]
    written = capfd.readouterr()
    output = "".join(answer.text for answer in answers) + caplog.text + written.out + written.err
    assert [secret for secret in SECRETS if secret in output] == []
    assert 'path="other"' in answers[-1].text


def test_images_are_never_written_to_a_file(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    large = cv2.imencode(".png", np.random.default_rng(1).integers(0, 256, (1500, 1500), np.uint8))[1].tobytes()
    assert len(large) > 2**21  # a form parser would spool it to a file
    before = open_files()
    assert send(served, large, image="true").status_code in {200, 422}
    assert list(tmp_path.iterdir()) == []
    assert not any("deleted" in name for name in open_files() - before)


def open_files() -> set[str]:
    """Return the open files of this process; an unnamed temporary file is listed as deleted."""
    names = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.add(str(link.readlink()))
    return names
