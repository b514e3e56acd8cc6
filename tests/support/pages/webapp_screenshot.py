"""Takes the pictures of the web app for the documents: the sample's champion and synthetic images, in a real browser.

python -m tests.support.pages.webapp_screenshot docs [OPTIONS OF tasks.app]   # after `make run` on the sample
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from playwright.sync_api import Page, expect

from tests.support.images.dicom_images import dicom_image
from tests.support.pages.browsers import launch_browser
from tests.support.services.servers import free_ports
from tests.support.services.webapp_server import synthetic
from tests.support.waiting import wait_for

LABELS = ("normal", "viral", "bacterial", "viral", "bacterial")
SELECTED = 1
MANY = 500
PICTURES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "page.png": (1400, 900, {}),
    "assets/page-1024.webp": (1024, 768, {"color_scheme": "dark"}),
    "assets/page-phone.webp": (390, 844, {}),
    "assets/page-high-contrast.webp": (1400, 900, {"forced_colors": "active", "color_scheme": "dark"}),
    "assets/page-keyboard.webp": (1400, 900, {}),
}
"""Width and height of the window, and options of the browser, by file."""
WEBP_QUALITY = 80
_LONG_MS = 600_000


def main() -> None:
    """Serve, drop images, take the pictures; the last one when the service has ended."""
    port, folder = free_ports(1)[0], Path(sys.argv[1])
    address = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory() as made,
        subprocess.Popen([sys.executable, "-m", "tasks.app", "--port", str(port), *sys.argv[2:]]) as server,
    ):
        few, many = _few_images(Path(made)), _many_images(Path(made))
        try:
            wait_for(lambda: httpx.get(f"{address}/ready").status_code == 200)
            for name, (width, height, options) in PICTURES.items():
                with _page(width, height, **options) as page:
                    _take(page, address, few, folder / name)
            with _page(1400, 900) as page:
                _take_many(page, address, many, folder / "assets/page-500.webp")
            with _page(1400, 900) as page:
                _drop(page, address, few)
                server.terminate()
                server.wait()
                _take_offline(page, few, folder / "assets/page-offline.webp")
        finally:
            server.terminate()


@contextmanager
def _page(width: int, height: int, **options: Any) -> Iterator[Page]:
    size = {"width": width, "height": height}
    with launch_browser() as browser, browser.new_context(viewport=size, **options) as context:
        yield context.new_page()


def _few_images(folder: Path) -> list[Path]:
    """Write synthetic images, one of them as DICOM, and a text file."""
    paths = [folder / f"image-{number + 1}.png" for number in range(len(LABELS))]
    for number, (path, label) in enumerate(zip(paths, LABELS, strict=True)):
        image = synthetic(label, seed=300 + number)
        if number == 2:
            paths[number] = path.with_suffix(".dcm")
            paths[number].write_bytes(dicom_image(image.astype(np.uint16)))
        else:
            cv2.imwrite(str(path), image)
    (folder / "notes.txt").write_text("Not an image.\n")
    return [*paths, folder / "notes.txt"]


def _many_images(folder: Path) -> list[Path]:
    paths = [folder / f"chest-{number:03d}.jpg" for number in range(MANY)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), synthetic(LABELS[number % 3], seed=1000 + number))
    return paths


def _drop(page: Page, address: str, images: list[Path]) -> None:
    """Give the page images and wait for all answers."""
    page.goto(address)
    page.set_input_files("#file", images)
    expect(page.locator("#count")).to_have_text(f"{len(images)} of {len(images)}", timeout=_LONG_MS)


def _take(page: Page, address: str, images: list[Path], picture: Path) -> None:
    width = page.viewport_size["width"] if page.viewport_size else 0
    _drop(page, address, images)
    page.locator(".row").nth(SELECTED).click()
    page.locator("#tool-heat" if width < 1200 else "#tool-side").click()
    expect(page.locator("#stage-note")).to_have_text("", timeout=_LONG_MS)
    if width < 700:
        page.evaluate("document.querySelector('#stage').scrollIntoView()")
    if "keyboard" in picture.name:
        page.locator("#canvas").focus()
        page.keyboard.press("Tab")
    _save(page, picture)


def _take_many(page: Page, address: str, images: list[Path], picture: Path) -> None:
    _drop(page, address, images)
    page.select_option("#order", "refer")
    page.locator(".row").first.click()
    _save(page, picture)


def _take_offline(page: Page, images: list[Path], picture: Path) -> None:
    """Drop two more images, and wait until the page says that nobody answers."""
    page.set_input_files("#file", images[:2])
    expect(page.locator("#model")).to_have_class(re.compile("is-away"), timeout=_LONG_MS)
    expect(page.locator(".row").nth(len(images) + 1)).to_contain_text("could not be sent", timeout=_LONG_MS)
    _save(page, picture)


def _save(page: Page, picture: Path) -> None:
    page.wait_for_timeout(1000)
    page.mouse.move(0, 0)
    data = page.screenshot()
    if picture.suffix == ".webp":
        shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        data = cv2.imencode(".webp", shown, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1].tobytes()
    picture.write_bytes(data)


if __name__ == "__main__":
    main()
