"""A running web app and a browser for the tests of this folder."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.pages.browsers import launch_browser
from tests.support.services.webapp_server import Served, serve_here, tiny_classifier

expect.set_options(timeout=60_000.0)  # long, for a busy machine


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve_here(tiny_classifier()) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as launched:
        yield launched


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The open page; it must load nothing from elsewhere and raise no error."""
    with browser.new_context() as context:
        page = context.new_page()
        urls: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(served.address)
        expect(page.locator("#model")).to_be_enabled()
        yield page
        elsewhere = [url for url in urls if not url.startswith((served.address, "data:", "blob:"))]
        assert (elsewhere, errors) == ([], [])
