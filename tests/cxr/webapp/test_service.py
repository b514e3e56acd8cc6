"""The web app as a service: answers, limits, and what strangers send."""

import base64
import contextlib
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.webapp.service import PAGE_FILES
from tests.support.dicom_images import SECRETS, dicom_image
from tests.support.prefect_servers import wait_for
from tests.support.registry_project import CLASSES
from tests.support.webapp_server import BYTES, LIMITS, Served, serve_here, synthetic, tiny_classifier, use

IMAGE = cv2.imencode(".png", synthetic())[1].tobytes()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve_here(tiny_classifier()) as served:
        yield served


def send(served: Served, data: bytes, **wanted: str) -> httpx.Response:
    return httpx.post(f"{served.address}/predict", params=wanted, content=data, headers=BYTES, timeout=60)


def reason(response: httpx.Response) -> str:
    """Return the reason of an error that looks as every error should."""
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["reason", "message"]
    return str(body["error"]["reason"])


def test_an_answer_is_that_of_the_core(served: Served) -> None:
    classifier = tiny_classifier()
    (expected,) = classifier.answer(classifier.read(IMAGE, name="image")[None])
    told = send(served, IMAGE).json()
    assert told["probabilities"] == pytest.approx(dict(expected.probabilities), abs=0)
    assert told["predicted_class"] == expected.predicted_class
    assert (told["refer"], told["warning"]) == (expected.refer, expected.warning)
    assert (told["model"], told["model_version"], told["engine"]) == ("chest-xray-pneumonia", "1", "torch")
    assert told["synthetic"] is True
    assert "not for clinical use" in told["disclaimer"]
    assert (told["image"], told["heat"]) == (None, None)


def test_a_dicom_image_is_answered_as_its_pixels_are(served: Served) -> None:
    assert (
        send(served, dicom_image(synthetic().astype(np.uint16))).json()["probabilities"]
        == send(served, IMAGE).json()["probabilities"]
    )


def test_pictures_come_when_asked_and_the_heat_has_the_shape_of_the_image(served: Served) -> None:
    told = send(served, IMAGE, image="true", heat="true", **{"class": "viral"}).json()
    assert told["heat"]["of_class"] == "viral"
    image, heat = picture(told["image"]), picture(told["heat"]["image"])
    assert image.shape[:2] == synthetic().shape
    assert heat.shape[2] == 4
    assert heat.shape[0] / heat.shape[1] == pytest.approx(image.shape[0] / image.shape[1], rel=0.02)


def picture(data_url: str) -> NDArray[np.uint8]:
    encoded = base64.b64decode(data_url.partition("base64,")[2])
    return np.asarray(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED))


def test_heat_is_that_of_the_predicted_class_where_none_is_named(served: Served) -> None:
    told = send(served, IMAGE, heat="true").json()
    assert told["heat"]["of_class"] == told["predicted_class"]


def test_images_that_come_together_are_answered_as_those_that_come_alone(served: Served) -> None:
    images = [cv2.imencode(".png", synthetic(seed=seed))[1].tobytes() for seed in range(12)]
    alone = [send(served, image).json()["probabilities"] for image in images]
    with ThreadPoolExecutor(12) as pool:
        together = [told.json()["probabilities"] for told in pool.map(lambda image: send(served, image), images)]
    assert together == alone
    assert len({tuple(shares.values()) for shares in alone}) == len(images)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds little."""
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
def test_what_is_no_image_gets_a_clear_refusal(served: Served, case: str) -> None:
    data, status, expected = HOSTILE[case]
    response = send(served, data, image="true", heat="true")
    assert response.status_code == status, response.text
    assert expected in {None, reason(response)}


def test_damaged_images_are_refused_or_answered_and_nothing_else(served: Served) -> None:
    generator = np.random.default_rng(3)
    sources = [IMAGE, cv2.imencode(".jpg", synthetic())[1].tobytes(), dicom_image(synthetic().astype(np.uint16))]
    for number in range(60):
        data = bytearray(sources[number % len(sources)])
        for at in generator.integers(0, len(data), generator.integers(1, 30)):
            data[at] = generator.integers(0, 256)
        response = send(served, bytes(data[: generator.integers(1, len(data) + 1)]), image="true")
        assert response.status_code in {200, 413, 422}, response.text


def test_more_bytes_than_allowed_are_refused_before_they_arrive(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LIMITS.upload_bytes + 1}\r\n\r\n"
        client.sendall(head.encode())
        assert b" 413 " in client.recv(100)  # of the image itself not a byte was sent


def test_more_bytes_than_allowed_are_refused_where_no_length_was_announced(served: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(LIMITS.upload_bytes // 2**20 + 1):
            yield bytes(2**20)

    response = httpx.post(f"{served.address}/predict", content=chunks(), headers=BYTES, timeout=60)
    assert (response.status_code, reason(response)) == (413, "upload too large")


@pytest.mark.parametrize("media_type", ["text/plain", "multipart/form-data; boundary=x", "application/json"])
def test_a_body_that_says_it_is_something_else_is_refused(served: Served, media_type: str) -> None:
    response = httpx.post(f"{served.address}/predict", content=IMAGE, headers={"Content-Type": media_type})
    assert (response.status_code, reason(response)) == (415, "unsupported media type")


def test_an_unknown_class_and_a_wrong_parameter_are_named(served: Served) -> None:
    unknown = send(served, IMAGE, heat="true", **{"class": "covid"})
    assert (unknown.status_code, reason(unknown)) == (422, "unknown class")
    assert all(name in unknown.json()["error"]["message"] for name in CLASSES)
    wrong = send(served, IMAGE, heat="perhaps")
    assert (wrong.status_code, reason(wrong)) == (422, "invalid parameter")
    assert "heat" in wrong.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/nowhere", "/..%2f..%2fetc/passwd", "/static/../../params.yaml", "/docs", "/redoc"])
def test_nothing_else_is_served(served: Served, path: str) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:  # httpx would tidy the path up
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert b" 404 " in answer.splitlines()[0]
    assert b'{"error":' in answer


def test_a_giant_header_is_refused_and_the_service_lives(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        try:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
            answer = client.recv(100)
        except ConnectionError:  # closed before all of it was sent
            answer = b""
    assert answer == b"" or b" 400 " in answer
    assert httpx.get(f"{served.address}/health").json() == {"status": "alive"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        ({"Host": "elsewhere.example"}, 421),
        ({"Host": "localhost.elsewhere.example"}, 421),
        ({"Host": ""}, 421),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "LOCALHOST:8000"}, 200),
    ],
)
def test_pages_of_other_sites_and_bent_names_are_refused(served: Served, headers: dict[str, str], status: int) -> None:
    response = httpx.post(f"{served.address}/predict", content=IMAGE, headers=BYTES | headers, timeout=60)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


def test_its_own_page_may_ask(served: Served) -> None:
    response = httpx.post(
        f"{served.address}/predict", content=IMAGE, headers=BYTES | {"Origin": served.address}, timeout=60
    )
    assert response.status_code == 200


@pytest.mark.parametrize("path", sorted(PAGE_FILES))
def test_the_page_loads_nothing_from_elsewhere_and_runs_no_inline_script(served: Served, path: str) -> None:
    response = httpx.get(f"{served.address}{path}")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    addresses = response.text.replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in addresses
    assert "https:" not in addresses
    assert response.headers["x-content-type-options"] == "nosniff"


def test_before_the_model_is_loaded_it_lives_and_is_not_ready() -> None:
    with serve_here(None) as served:
        assert httpx.get(f"{served.address}/health").status_code == 200
        for response in (
            httpx.get(f"{served.address}/ready"),
            httpx.get(f"{served.address}/model"),
            send(served, IMAGE),
        ):
            assert (response.status_code, reason(response)) == (503, "not ready")
            assert int(response.headers["retry-after"]) > 0
        use(served.page, tiny_classifier())
        assert httpx.get(f"{served.address}/ready").json() == {"status": "ready"}


def slow_upload(served: Served) -> socket.socket:
    """Begin to send an image and stop half-way."""
    client = socket.create_connection(("127.0.0.1", served.port))
    client.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(IMAGE)}\r\n\r\n".encode())
    client.sendall(IMAGE[: len(IMAGE) // 2])
    return client


def test_a_full_service_says_busy_and_answers_again_when_there_is_room() -> None:
    with serve_here(tiny_classifier(), limits=replace(LIMITS, waiting=1)) as served:
        with slow_upload(served) as client:
            wait_for(lambda: served.metric("cxr_page_requests_in_work") == 1)
            busy = send(served, IMAGE)
            assert (busy.status_code, reason(busy)) == (429, "busy")
            assert int(busy.headers["retry-after"]) > 0
            client.sendall(IMAGE[len(IMAGE) // 2 :])
            assert b" 200 " in client.recv(100)
        assert send(served, IMAGE).status_code == 200
        assert served.metric("cxr_page_refused_total", reason="busy") == 1


def test_images_in_work_have_their_bytes_counted() -> None:
    room_for_one = replace(LIMITS, waiting_bytes=len(IMAGE) + 10)
    with serve_here(tiny_classifier(), limits=room_for_one) as served, slow_upload(served):
        wait_for(lambda: served.metric("cxr_page_requests_in_work") == 1)
        assert send(served, IMAGE).status_code == 429


def test_an_upload_that_does_not_arrive_is_given_up() -> None:
    limits = replace(LIMITS, upload_seconds=0.5)
    with serve_here(tiny_classifier(), limits=limits) as served, slow_upload(served) as client:
        assert b" 408 " in client.recv(100)


def test_a_client_that_goes_away_leaves_its_place() -> None:
    with serve_here(tiny_classifier(), limits=replace(LIMITS, waiting=1)) as served:
        slow_upload(served).close()
        wait_for(lambda: send(served, IMAGE).status_code == 200)
        assert served.metric("cxr_page_requests_in_work") == 0


def test_images_on_their_way_are_answered_by_the_version_they_were_made_for() -> None:
    old, new = tiny_classifier("1", seed=1), tiny_classifier("2", seed=2)
    expected = {each.number: each.answer(each.read(IMAGE, name="image")[None])[0].probabilities for each in (old, new)}
    with serve_here(old) as served:
        told: list[httpx.Response] = []

        def ask() -> None:
            with httpx.Client(timeout=60) as client:
                told.extend(client.post(f"{served.address}/predict", content=IMAGE, headers=BYTES) for _ in range(25))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(20):
            wait_for(lambda number=number: len(told) > 4 * number or not threads[0].is_alive())
            use(served.page, (new, old)[number % 2])
        for thread in threads:
            thread.join()
    assert [response.status_code for response in told] == [200] * 100
    assert {response.json()["model_version"] for response in told} == {"1", "2"}
    for response in told:
        answer = response.json()
        assert answer["probabilities"] == pytest.approx(dict(expected[answer["model_version"]]), abs=0)


def test_no_tag_of_a_patient_and_nothing_of_an_address_is_logged_or_counted(
    served: Served, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    good = dicom_image(synthetic().astype(np.uint16))
    broken = dicom_image(synthetic().astype(np.uint16), PatientBirthDate=("DA", "Sorrowful"), Rows=7)
    answers = [
        send(served, good, image="true", heat="true"),
        send(served, broken),
        send(served, good[:-900]),
        send(served, good, name="Sorrowful.png"),
        httpx.get(f"{served.address}/Sorrowful.png"),
        httpx.request("JANE", f"{served.address}/predict"),
        httpx.get(f"{served.address}/metrics"),
    ]
    written = capfd.readouterr()
    told = "".join(answer.text for answer in answers) + caplog.text + written.out + written.err
    assert [secret for secret in SECRETS if secret in told] == []
    assert 'path="other"' in answers[-1].text


def test_nothing_is_written_to_a_file(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    large = cv2.imencode(".png", np.random.default_rng(1).integers(0, 256, (1500, 1500), np.uint8))[1].tobytes()
    assert len(large) > 2**21  # more than a form parser would keep in memory
    before = open_files()
    assert send(served, large, image="true").status_code in {200, 422}
    assert list(tmp_path.iterdir()) == []
    assert not any("deleted" in name for name in open_files() - before)


def open_files() -> set[str]:
    """Return what this process has open; a temporary file without a name is told as deleted."""
    names = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.add(str(link.readlink()))
    return names


def test_metrics_tell_what_was_answered_and_by_whom() -> None:
    with serve_here(tiny_classifier("7")) as served:
        predicted = send(served, IMAGE).json()["predicted_class"]
        send(served, b"no image")
        assert served.metric("cxr_page_model", version="7", engine="torch") == 1
        assert served.metric("cxr_page_images_total", predicted_class=predicted, refer="none") == 1
        assert served.metric("cxr_page_refused_total", reason="not an image") == 1
        assert served.metric("cxr_page_requests_total", method="POST", path="/predict", status="200") == 1
        exposition = httpx.get(f"{served.address}/metrics")
        assert exposition.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "cxr_page_request_seconds_bucket" in exposition.text


def test_a_image_that_needs_too_long_is_refused() -> None:
    frames = dicom_image(synthetic().astype(np.uint16), syntax="1.2.840.10008.1.2.4.70")  # decoded by a process: 70 ms
    with serve_here(tiny_classifier(), limits=replace(LIMITS, read_seconds=0.001)) as served:
        response = send(served, frames)
        assert (response.status_code, reason(response)) == (422, "too slow")


def test_a_large_image_is_shown_smaller(served: Served) -> None:
    wide = cv2.resize(synthetic(), (2000, 1000))
    shown = picture(send(served, cv2.imencode(".png", wide)[1].tobytes(), image="true").json()["image"])
    assert shown.shape[:2] == (360, 720)


def test_the_model_says_what_it_is_and_what_may_be_sent(served: Served) -> None:
    told = httpx.get(f"{served.address}/model").json()
    assert (told["model_version"], told["classes"], told["synthetic"]) == ("1", list(CLASSES), True)
    assert told["limits"]["upload_bytes"] == LIMITS.upload_bytes
    assert told["measured"] is None
    assert told["disclaimer"].startswith("Research software")
