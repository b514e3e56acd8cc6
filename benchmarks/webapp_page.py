"""How the web app's page does with many images in a real browser: first answer, all answers, scrolling, memory.

Run   ./run benchmarks.webapp_page FOLDER [--images 500] [--picture FILE] [OPTIONS OF tasks.app]

FOLDER holds images, in any depth; those taken are spread over it. A service is started on loopback with the champion
and opened in Chromium without a window, at 1400 x 900. The images are chosen as a person would, all at once, and times
start when all are in the list. The list is scrolled down and up with the mouse's wheel, first while answers arrive,
then when all are there; a gap is the time between two frames that the browser draws. Memory is that of the page's
JavaScript after a collection.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
from playwright.sync_api import expect

from tests.support.pages.browsers import launch_browser
from tests.support.services.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import CDPSession, Page

_SUFFIXES = {".jpg", ".jpeg", ".png", ".dcm"}
_WHEEL_PX = 400
_LONG_MS = 600_000
_GAPS = """() => { window.gaps = []; let last = performance.now();
    const frame = (now) => { window.gaps.push(now - last); last = now; if (window.gaps) requestAnimationFrame(frame); };
    requestAnimationFrame(frame); }"""


def main() -> None:
    """Read the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--picture", type=Path, help="where to save what the page looks like at the end")
    given, of_app = parser.parse_known_args()
    files = _spread([path for path in sorted(given.folder.rglob("*")) if path.suffix in _SUFFIXES], given.images)
    print("| what | measured |\n|---|---|")
    with (
        _served(of_app) as address,
        launch_browser() as browser,
        browser.new_context(viewport={"width": 1400, "height": 900}) as context,
    ):
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#model")).to_be_enabled(timeout=_LONG_MS)
        _measure(page, context.new_cdp_session(page), files)
        if given.picture:
            page.screenshot(path=given.picture)


@contextmanager
def _served(options: list[str]) -> Iterator[str]:
    """Yield the address of a service that is ready."""
    address = f"http://127.0.0.1:{(port := free_ports(1)[0])}"
    command = [sys.executable, "-m", "tasks.app", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            while server.poll() is None and not _is_ready(address):
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready").status_code == 200
    except httpx.TransportError:
        return False


def _spread(files: list[Path], count: int) -> list[Path]:
    return [files[number] for number in np.linspace(0, len(files) - 1, count).round().astype(int)]


def _measure(page: Page, session: CDPSession, files: list[Path]) -> None:
    session.send("Performance.enable")
    _say("page without images: JavaScript, MB", _heap_mb(session))
    with _timed(f"{len(files)} images are in the list, s"):
        page.set_input_files("#file", files)
        expect(page.locator(".row")).to_have_count(len(files), timeout=_LONG_MS)
    start = time.perf_counter()
    page.locator(".row .outcome", has_text="%").first.wait_for(timeout=_LONG_MS)
    _say("first answer after that, s", time.perf_counter() - start)
    _scroll(page, "while answers arrive")
    expect(page.locator("#count")).to_have_text(f"{len(files)} of {len(files)}", timeout=_LONG_MS)
    _say("all answers, s", time.perf_counter() - start)
    _scroll(page, "with all answers")
    with _timed("sorted, refer first, s"):
        page.select_option("#order", "refer")
        page.evaluate("() => new Promise(requestAnimationFrame)")
    with _timed("another image is drawn, s"):
        page.locator(".row").nth(len(files) // 2).click()
        expect(page.locator("#readout")).to_contain_text("px", timeout=_LONG_MS)
    _say("page with all images: JavaScript, MB", _heap_mb(session))
    with _timed("after a reload the list is back, s"):
        page.reload()
        expect(page.locator(".row")).to_have_count(len(files), timeout=_LONG_MS)


def _scroll(page: Page, when: str) -> None:
    """Scroll the list to its end and back, and print how evenly the browser drew meanwhile."""
    page.locator("#list").hover()
    page.evaluate(_GAPS)
    for way in (_WHEEL_PX, -_WHEEL_PX):
        for _ in range(60):
            page.mouse.wheel(0, way)
            page.wait_for_timeout(16)
    gaps = np.array(page.evaluate("() => { const all = window.gaps; window.gaps = null; return all; }"))
    half, most, longest = np.percentile(gaps, [50, 95, 100])
    _say(f"scrolling {when}: gaps between frames, p50, p95, longest, ms", f"{half:.0f}, {most:.0f}, {longest:.0f}")


def _heap_mb(session: CDPSession) -> float:
    session.send("HeapProfiler.collectGarbage")
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["JSHeapUsedSize"]) / 1e6


@contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    _say(what, time.perf_counter() - start)


def _say(what: str, value: float | str) -> None:
    print(f"| {what} | {value if isinstance(value, str) else format(value, '.2f')} |", flush=True)


if __name__ == "__main__":
    main()
