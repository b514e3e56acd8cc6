"""Takes the pictures of the web app for the documents: the sample's champion and synthetic images, in a real browser.

python -m tests.support.webapp_screenshot docs [OPTIONS OF tasks.app]   # after `make run` on the sample
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from playwright.sync_api import Page, expect

from tests.support.browsers import launch_browser
from tests.support.dicom_images import dicom_image
from tests.support.servers import free_ports
from tests.support.webapp_server import synthetic

LABELS = ("normal", "viral", "bacterial", "viral", "bacterial")
SELECTED = 1
PICTURES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "page.png": (1400, 900, {}),
    "assets/page-1024.webp": (1024, 768, {"color_scheme": "dark"}),
    "assets/page-phone.webp": (390, 844, {}),
    "assets/page-high-contrast.webp": (1400, 900, {"forced_colors": "active", "color_scheme": "dark"}),
    "assets/page-keyboard.webp": (1400, 900, {}),
}
"""Width and height of the window, and options of the browser, by file."""
WEBP_QUALITY = 80


def main() -> None:
    """Serve, drop images, take the picture."""
    port = free_ports(1)[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([sys.executable, "-m", "tasks.app", "--port", str(port), *sys.argv[2:]]) as server,
    ):
        try:
            _wait(f"http://127.0.0.1:{port}/ready")
            for name, (width, height, options) in PICTURES.items():
                size = {"width": width, "height": height}
                with launch_browser() as browser, browser.new_context(viewport=size, **options) as context:
                    _take(
                        context.new_page(), f"http://127.0.0.1:{port}", _images(Path(folder)), Path(sys.argv[1]) / name
                    )
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


def _take(page: Page, address: str, images: list[Path], picture: Path) -> None:
    page.goto(address)
    page.set_input_files("#file", images)
    expect(page.locator("#count")).to_have_text(f"{len(images)} of {len(images)}", timeout=300_000)
    page.locator(".row").nth(SELECTED).click()
    page.locator("#tool-heat" if page.viewport_size and page.viewport_size["width"] < 1200 else "#tool-side").click()
    expect(page.locator("#stage-note")).to_have_text("", timeout=300_000)
    page.wait_for_timeout(1000)
    if page.viewport_size and page.viewport_size["width"] < 700:
        page.evaluate("document.querySelector('#stage').scrollIntoView()")
    page.mouse.move(0, 0)
    if "keyboard" in picture.name:
        page.locator("#canvas").focus()
        page.keyboard.press("Tab")
    data = page.screenshot()
    if picture.suffix == ".webp":
        shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        data = cv2.imencode(".webp", shown, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1].tobytes()
    picture.write_bytes(data)


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
