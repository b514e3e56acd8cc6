"""Takes the picture of the web app for the documents: the sample's champion and synthetic images, in a real browser.

python -m tests.support.webapp_screenshot docs/page.png      # after `make run`, from the project's root
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import httpx
import numpy as np
from playwright.sync_api import expect, sync_playwright

from tests.support.dicom_images import dicom_image
from tests.support.servers import free_ports
from tests.support.webapp_server import synthetic

SIZE = {"width": 1400, "height": 900}
LABELS = ("normal", "viral", "bacterial", "viral", "bacterial")
SELECTED = 1


def main() -> None:
    """Serve, drop images, take the picture."""
    port = free_ports(1)[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([sys.executable, "-m", "tasks.app", "--port", str(port)]) as server,
    ):
        try:
            _wait(f"http://127.0.0.1:{port}/ready")
            _take(f"http://127.0.0.1:{port}", _images(Path(folder)), Path(sys.argv[1]))
        finally:
            server.terminate()


def _images(folder: Path) -> list[Path]:
    """Write synthetic images, one of them as DICOM, and a text file."""
    for number, label in enumerate(LABELS):
        image = synthetic(label, seed=300 + number)
        path = folder / f"image-{number + 1}.png"
        if number == 2:
            path.with_suffix(".dcm").write_bytes(dicom_image(image.astype(np.uint16)))
        else:
            cv2.imwrite(str(path), image)
    (folder / "notes.txt").write_text("Not an image.\n")
    return sorted(folder.iterdir())


def _take(address: str, images: list[Path], picture: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(address)
        page.set_input_files("#file", images)
        expect(page.locator("#count")).to_have_text(f"{len(images)} of {len(images)}", timeout=120_000)
        page.locator(".row").nth(SELECTED).click()
        expect(page.locator(".stack .heat")).to_be_visible(timeout=120_000)
        page.mouse.move(0, 0)
        page.screenshot(path=picture)
        browser.close()


def _wait(address: str) -> None:
    for _ in range(1200):
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.25)
    raise SystemExit("the service did not become ready")


if __name__ == "__main__":
    main()
