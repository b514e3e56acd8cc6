"""A running web app for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.webapp_server import Served, serve_here, tiny_classifier


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve_here(tiny_classifier()) as served:
        yield served
