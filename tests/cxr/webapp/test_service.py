"""The responses of the service, for images and for hostile files."""

import base64
import io
import json
import struct
import zlib

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from cxr.common.notices import NOT_CLINICAL
from tests.support.faults import fault
from tests.support.images.dicom_images import dicom_image
from tests.support.projects.registry_project import CLASSES
from tests.support.services.webapp_server import (
    BYTES,
    IMAGE,
    LIMITS,
    Served,
    reason,
    send,
    serve_here,
    synthetic,
    tiny_classifier,
    use,
)


def test_a_prediction_equals_the_answer_of_the_classifier(served: Served) -> None:
    classifier = tiny_classifier()
    (expected,) = classifier.answer(classifier.read(IMAGE, name="image")[None])
    result = send(served, IMAGE).json()
    assert result["probabilities"] == pytest.approx(dict(expected.probabilities), abs=0)
    assert result["predicted_class"] == expected.predicted_class
    assert (result["refer"], result["warning"]) == (expected.refer, expected.warning)
    assert (result["model"], result["model_version"], result["engine"]) == ("chest-xray-pneumonia", "1", "torch")
    assert result["synthetic"] is True
    assert result["disclaimer"].startswith(NOT_CLINICAL)
    assert (result["image"], result["heat"]) == (None, None)


def test_a_dicom_image_and_a_png_with_its_pixels_get_the_same_prediction(served: Served) -> None:
    assert (
        send(served, dicom_image(synthetic().astype(np.uint16))).json()["probabilities"]
        == send(served, IMAGE).json()["probabilities"]
    )


def test_pictures_are_returned_on_request_and_the_heat_map_has_the_aspect_of_the_image(served: Served) -> None:
    result = send(served, IMAGE, image="true", heat="true", **{"class": "viral"}).json()
    assert result["heat"]["of_class"] == "viral"
    image, heat = picture(result["image"]), picture(result["heat"]["image"])
    assert image.shape[:2] == synthetic().shape
    assert heat.shape[2] == 4
    assert heat.shape[0] / heat.shape[1] == pytest.approx(image.shape[0] / image.shape[1], rel=0.02)


def picture(data_url: str) -> NDArray[np.uint8]:
    encoded = base64.b64decode(data_url.partition("base64,")[2])
    return np.asarray(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED))


def test_the_heat_map_defaults_to_the_predicted_class(served: Served) -> None:
    result = send(served, IMAGE, heat="true").json()
    assert result["heat"]["of_class"] == result["predicted_class"]


def png_header(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its data do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HOSTILE = {
    "nothing": (b"", 422, "empty"),
    "text": (b"Not an image.\n" * 100, 422, "not an image"),
    "a page": (b"<html><script>alert(1)</script>", 422, "not an image"),
    "an archive": (b"PK\x03\x04" + bytes(200), 422, "not an image"),
    "a truncated image": (IMAGE[: len(IMAGE) // 2], 422, "truncated"),
    "a decompression bomb": (png_header(60_000, 60_000), 413, "larger than the pixel limit"),
    "an image and a DICOM file in one": (IMAGE[:100] + bytes(28) + b"DICM" + IMAGE[132:], 422, "not an image"),
    "a DICOM file of nothing": (bytes(128) + b"DICM" + bytes(64), 422, None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_rejected_with_a_reason(served: Served, case: str) -> None:
    data, status, expected = HOSTILE[case]
    response = send(served, data, image="true", heat="true")
    assert response.status_code == status, response.text
    assert expected in {None, reason(response)}


@fault(
    "web app",
    "images with random bytes changed",
    "classified or refused",
    "status 200, 413 or 422 with the reason",
)
def test_damaged_images_are_rejected_or_classified_and_never_an_internal_error(served: Served) -> None:
    generator = np.random.default_rng(3)
    sources = [IMAGE, cv2.imencode(".jpg", synthetic())[1].tobytes(), dicom_image(synthetic().astype(np.uint16))]
    for number in range(60):
        data = bytearray(sources[number % len(sources)])
        for at in generator.integers(0, len(data), generator.integers(1, 30)):
            data[at] = generator.integers(0, 256)
        response = send(served, bytes(data[: generator.integers(1, len(data) + 1)]), image="true")
        assert response.status_code in {200, 413, 422}, response.text


def test_an_unknown_class_and_an_invalid_parameter_are_named(served: Served) -> None:
    unknown = send(served, IMAGE, heat="true", **{"class": "covid"})
    assert (unknown.status_code, reason(unknown)) == (422, "unknown class")
    assert all(name in unknown.json()["error"]["message"] for name in CLASSES)
    wrong = send(served, IMAGE, heat="perhaps")
    assert (wrong.status_code, reason(wrong)) == (422, "invalid parameter")
    assert "heat" in wrong.json()["error"]["message"]


def test_without_torch_a_heat_map_is_refused_with_its_reason(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxr.common.engines.find_spec", lambda _: None)
    refused = send(served, IMAGE, heat="true")
    assert (refused.status_code, reason(refused)) == (501, "no heat maps")
    assert send(served, IMAGE).status_code == 200


def test_the_service_is_alive_but_not_ready_before_the_model_is_loaded() -> None:
    with serve_here(None) as served:
        assert httpx.get(f"{served.address}/health", timeout=60).status_code == 200
        for response in (
            httpx.get(f"{served.address}/ready", timeout=60),
            httpx.get(f"{served.address}/model", timeout=60),
            send(served, IMAGE),
        ):
            assert (response.status_code, reason(response)) == (503, "not ready")
            assert int(response.headers["retry-after"]) > 0
        use(served.webapp, tiny_classifier())
        assert httpx.get(f"{served.address}/ready", timeout=60).json() == {"status": "ready"}


def test_metrics_count_predictions_rejections_and_the_model_version() -> None:
    with serve_here(tiny_classifier("7")) as served:
        predicted = send(served, IMAGE).json()["predicted_class"]
        send(served, b"no image")
        assert served.metric("cxr_model", version="7", engine="torch") == 1
        assert served.metric("cxr_images_classified_total", predicted_class=predicted, refer="none") == 1
        assert served.metric("cxr_images_rejected_total", reason="not an image") == 1
        assert served.metric("cxr_requests_total", method="POST", path="/predict", status="200") == 1
        exposition = httpx.get(f"{served.address}/metrics", timeout=60)
        assert exposition.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "cxr_request_seconds_bucket" in exposition.text


def test_the_picture_of_a_large_image_is_reduced(served: Served) -> None:
    wide = cv2.resize(synthetic(), (2000, 1000))
    shown = picture(send(served, cv2.imencode(".png", wide)[1].tobytes(), image="true").json()["image"])
    assert shown.shape[:2] == (360, 720)


def test_the_model_card_and_the_client_limits_are_served(served: Served) -> None:
    result = httpx.get(f"{served.address}/model", timeout=60).json()
    assert (result["model_version"], result["classes"], result["synthetic"]) == ("1", list(CLASSES), True)
    assert result["limits"]["upload_bytes"] == LIMITS.max_upload_bytes
    assert result["measured"] is None
    assert result["disclaimer"].startswith(NOT_CLINICAL)


def test_the_page_shows_the_disclaimer_without_scripts(served: Served) -> None:
    page = httpx.get(served.address, timeout=60).text
    assert NOT_CLINICAL in page
    assert "{{" not in page


def test_the_viewer_gets_every_pixel_of_an_image_and_all_bits_of_a_dicom_image(served: Served) -> None:
    wide = synthetic().astype(np.uint16) * 16
    for data, bits, expected in ((IMAGE, 8, synthetic()), (dicom_image(wide, bits=12), 16, None)):
        response = httpx.post(f"{served.address}/pixels", content=data, headers=BYTES, timeout=60)
        described = json.loads(response.headers["x-image"])
        assert described["bits"] == bits
        levels = np.frombuffer(response.content, f"<u{bits // 8}").reshape(described["height"], described["width"])
        if expected is not None:
            assert np.array_equal(levels, expected)
        assert len(np.unique(levels)) == len(np.unique(synthetic()))


def test_the_overlay_to_download_is_the_whole_image_with_its_caption(served: Served) -> None:
    response = httpx.post(
        f"{served.address}/overlay", params={"class": "viral"}, content=IMAGE, headers=BYTES, timeout=60
    )
    assert response.headers["content-type"] == "image/png"
    shown = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    assert max(shown.shape) >= 1024


def test_a_dicom_image_gets_its_report_and_another_image_an_error(served: Served) -> None:
    data = dicom_image(synthetic().astype(np.uint16))
    response = httpx.post(f"{served.address}/report", content=data, headers=BYTES, timeout=60)
    assert response.headers["content-type"] == "application/dicom"
    report = dcmread(io.BytesIO(response.content))
    assert (report.Modality, report.StudyInstanceUID) == ("SR", "1.2.3")
    rejected = httpx.post(f"{served.address}/report", content=IMAGE, headers=BYTES, timeout=60)
    assert (rejected.status_code, reason(rejected)) == (422, "not DICOM")
