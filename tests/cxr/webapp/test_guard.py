"""The service serves its own page and programs only, and keeps patient data to itself."""

import contextlib
import socket
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from cxr.webapp.service import PAGE_FILES
from tests.support.faults import fault
from tests.support.images.dicom_images import SECRETS, dicom_image
from tests.support.pages.browsers import launch_browser
from tests.support.services.webapp_server import BYTES, IMAGE, Served, send, synthetic


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
        ({"Host": "127.0.0.1.elsewhere.example"}, 421),  # a name of another site that resolves to this machine
        ({"Host": "elsewhere.example:8000@localhost"}, 421),
        ({"Host": "localhost/elsewhere.example"}, 421),
        ({"Host": "localhost,elsewhere.example"}, 421),
        ({"Host": "localhost:x"}, 421),
        ({"Origin": "ftp://{own}"}, 403),
        ({"Origin": "http://{own}.elsewhere.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another service of this machine
        ({"Origin": "http://{own}", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "LOCALHOST:8000"}, 200),
    ],
)
@fault("web app", "a page of another site, or an unknown host name", "refused", "status 403 or 421")
def test_other_sites_and_unknown_host_names_are_rejected(served: Served, headers: dict[str, str], status: int) -> None:
    own = served.address.removeprefix("http://")
    filled = {name: value.replace("{own}", own) for name, value in headers.items()}
    response = httpx.post(f"{served.address}/predict", content=IMAGE, headers=BYTES | filled, timeout=60)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("method", "mode", "dest", "status"),
    [
        ("GET", "navigate", "document", 200),  # a person follows a link
        ("GET", "navigate", "iframe", 403),
        ("GET", "no-cors", "image", 403),
        ("GET", "cors", "empty", 403),
        ("HEAD", "navigate", "document", 403),
        ("POST", "navigate", "document", 403),  # a form
    ],
)
@fault(
    "web app",
    "a page of another site embeds an address of the service, or posts a form to it",
    "refused; a link is followed",
    "status 403",
)
def test_another_site_can_link_here_and_no_more(served: Served, method: str, mode: str, dest: str, status: int) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    assert httpx.request(method, f"{served.address}/example", headers=headers, timeout=60).status_code == status


def test_two_host_names_are_none(served: Served) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: elsewhere.example\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(head)
        answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert answer.split()[1] in {b"400", b"421"}


def test_a_rebound_name_and_a_cross_site_form_get_nothing_in_a_real_browser(served: Served) -> None:
    """The browser is led here by the other site's own name, as DNS rebinding does; then a form posts here."""
    with launch_browser("--host-resolver-rules=MAP elsewhere.example 127.0.0.1") as rebound:
        page = rebound.new_page()
        answer = page.goto(f"http://elsewhere.example:{served.port}/model")
        assert answer is not None
        assert answer.status == 421
        page.goto("about:blank")
        form = f"<form method='post' enctype='text/plain' action='{served.address}/predict'><input name='a'></form>"
        page.set_content(form)
        with page.expect_response("**/predict") as posted:
            page.evaluate("document.forms[0].submit()")
        assert posted.value.status == 403


def test_the_own_page_is_accepted(served: Served) -> None:
    response = httpx.post(
        f"{served.address}/predict", content=IMAGE, headers=BYTES | {"Origin": served.address}, timeout=60
    )
    assert response.status_code == 200


@pytest.mark.parametrize("path", sorted(PAGE_FILES))
def test_the_page_has_no_external_resource_and_no_inline_script(served: Served, path: str) -> None:
    response = httpx.get(f"{served.address}{path}", timeout=60)
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
        httpx.get(f"{served.address}/Sorrowful.png", timeout=60),
        httpx.request("JANE", f"{served.address}/predict", timeout=60),
        httpx.get(f"{served.address}/metrics", timeout=60),
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
