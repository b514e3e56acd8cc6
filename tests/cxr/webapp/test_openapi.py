"""The service against its own OpenAPI description, with requests that schemathesis makes up."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cxr.webapp.limits import MEDIA_TYPES
from cxr.webapp.service import PAGE_FILES, PATHS
from tests.support.dicom_images import dicom_image
from tests.support.webapp_server import serve_here, synthetic, tiny_classifier

IMAGES = [
    cv2.imencode(".png", synthetic())[1].tobytes(),
    cv2.imencode(".jpg", synthetic())[1].tobytes(),
    dicom_image(synthetic().astype(np.uint16)),
]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def cut(image: bytes, at: int, changed: bytes) -> bytes:
    """Return an image with some bytes changed; cut off there where they are many."""
    place = at % len(image)
    return image[:place] + changed + (b"" if len(changed) > 6 else image[place + len(changed) :])


bodies = st.one_of(
    st.sampled_from(IMAGES),
    st.builds(cut, st.sampled_from(IMAGES), st.integers(0, 10**6), st.binary(max_size=8)),
    st.binary(),
)
for media_type in MEDIA_TYPES:
    schemathesis.openapi.media_type(media_type, bodies)


@pytest.fixture(scope="module")
def api() -> Iterator[schemathesis.BaseSchema]:
    with serve_here(tiny_classifier()) as served:
        yield schemathesis.openapi.from_url(f"{served.address}/openapi.json")


@pytest.mark.parametrize("path", sorted(PATHS - set(PAGE_FILES) - {"/openapi.json"}))
def test_every_answer_is_one_that_is_described(api: schemathesis.BaseSchema, path: str) -> None:
    (operation,) = (found for each in api.get_all_operations() if (found := each.ok()).path == path)

    # Not through its pytest plugin, whose tests pytest 9 cannot run.
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()


def test_every_route_but_the_page_is_described(api: schemathesis.BaseSchema) -> None:
    assert set(api.raw_schema["paths"]) == {"/predict", "/health", "/ready", "/model", "/metrics"}
