"""TLS before the web app: a real nginx with infra/proxy.conf, a certificate of this test, a real browser."""

import contextlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from cxr.webapp.limits import MEGABYTE
from tests.support.pages.browsers import drop, launch_browser
from tests.support.project import PROJECT
from tests.support.services.servers import free_ports
from tests.support.services.webapp_server import BYTES, IMAGE, Served, serve_here, tiny_classifier
from tests.support.waiting import wait_for

TOKEN = "of-the-tests-" + "y" * 32


@dataclass(frozen=True)
class Proxied:
    """The proxy, and the web app behind it."""

    address: str
    certificate: Path
    folder: Path
    app: Served

    def client(self) -> httpx.Client:
        """Return a client that accepts the certificate of this test alone, and sends the token."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(verify=context, timeout=60, headers={"Authorization": f"Bearer {TOKEN}"})


@contextlib.contextmanager
def proxy(folder: Path, app: Served) -> Iterator[Proxied]:
    """Run nginx with the configuration of compose.yaml, its names and folders those of this test."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None and not os.environ.get("CI"):
        pytest.skip("needs nginx: apt-get install nginx")
    port, configuration = free_ports(1)[0], folder / "proxy.conf"
    certificate, key = folder / "tls_certificate", folder / "tls_key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    text = (PROJECT / "infra" / "proxy.conf").read_text()
    names = {"/tmp": folder, "/run/secrets": folder, "http://app:8000": app.address, "8443": str(port)}
    for stands, here in names.items():
        assert stands in text
        text = text.replace(stands, str(here))
    configuration.write_text(text)
    log = folder / "log"
    with (
        log.open("w") as out,
        subprocess.Popen([str(program), "-c", str(configuration)], stdout=out, stderr=out) as server,
    ):
        try:
            proxied = Proxied(f"https://localhost:{port}", certificate, folder, app)
            with proxied.client() as client:
                wait_for(lambda: client.get(f"{proxied.address}/health").status_code == 200, log=log)
            yield proxied
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with (
        serve_here(tiny_classifier(), token=TOKEN, proxies=["127.0.0.1"]) as app,
        proxy(tmp_path_factory.mktemp("proxy"), app) as proxied,
    ):
        yield proxied


def test_an_image_passes_and_is_never_written_to_a_file(proxied: Proxied) -> None:
    large = IMAGE + b"\0" * (6 * MEGABYTE)  # a proxy that buffers would write it to a file
    before = {path: path.stat().st_mtime_ns for path in proxied.folder.rglob("*") if path.is_file()}
    with proxied.client() as client:
        for data in (IMAGE, large):
            assert client.post(f"{proxied.address}/predict", content=data, headers=BYTES).status_code == 200
        answer = client.get(f"{proxied.address}/model")
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    assert {path: path.stat().st_mtime_ns for path in proxied.folder.rglob("*") if path.is_file()} == before
    for folder in ("body", "proxy"):
        assert not any(path.stat().st_mtime_ns > max(before.values()) for path in (proxied.folder / folder).rglob("*"))


def test_what_a_client_says_of_its_address_is_dropped(proxied: Proxied) -> None:
    with proxied.client() as client:
        client.get(f"{proxied.address}/example", headers={"X-Forwarded-For": "192.0.2.7"})
    assert set(proxied.app.webapp.service.rate._buckets) == {"127.0.0.1"}


def test_another_host_name_and_another_site_are_refused_through_the_proxy(proxied: Proxied) -> None:
    with proxied.client() as client:
        assert client.get(f"{proxied.address}/model", headers={"Host": "elsewhere.example"}).status_code == 421
        for origin, status in (("https://elsewhere.example", 403), (proxied.address, 200)):
            headers = BYTES | {"Origin": origin}
            assert client.post(f"{proxied.address}/predict", content=IMAGE, headers=headers).status_code == status


def test_a_reader_signs_in_with_a_cookie_for_tls_alone(proxied: Proxied) -> None:
    with launch_browser() as browser, browser.new_context(ignore_https_errors=True) as context:
        page = context.new_page()
        page.goto(proxied.address)
        page.get_by_label("Access token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_be_enabled(timeout=60_000)
        (cookie,) = context.cookies()
        assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
        drop(page, {"image.png": IMAGE})
        expect(page.locator("#count")).to_have_text("1 of 1", timeout=60_000)
