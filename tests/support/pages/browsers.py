"""A real browser without a window, and files for its pages."""

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def launch_browser(*options: str) -> Iterator[Browser]:
    """Start the browser of this machine; without one the test is skipped, in CI it fails."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *options])
        yield launched
        launched.close()


def drop(page: Page, files: dict[str, bytes]) -> None:
    """Drop files on the page of the web app, all at once."""
    encoded = [[name, base64.b64encode(data).decode()] for name, data in files.items()]
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, data] of files)
                transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
            return transfer;
        }""",
        encoded,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def file(name: str, data: bytes) -> dict[str, Any]:
    """Return a file for a file chooser."""
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}
