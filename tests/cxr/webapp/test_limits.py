"""What the service accepts, and how it rejects the rest: size, type, number and time."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import cv2
import httpx
import numpy as np
import pytest

from tests.support.faults import fault
from tests.support.images.dicom_images import dicom_image
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
)
from tests.support.waiting import wait_for


@fault("web app", "an upload over the limit", "refused before a byte of it arrives", "status 413")
def test_an_announced_upload_over_the_limit_is_rejected_before_it_arrives(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LIMITS.max_upload_bytes + 1}\r\n\r\n"
        client.sendall(head.encode())
        assert b" 413 " in client.recv(100)  # no byte of the image was sent


def test_an_upload_of_unknown_length_is_rejected_at_the_limit(served: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(LIMITS.max_upload_bytes // 2**20 + 1):
            yield bytes(2**20)

    response = httpx.post(f"{served.address}/predict", content=chunks(), headers=BYTES, timeout=60)
    assert (response.status_code, reason(response)) == (413, "upload too large")


@pytest.mark.parametrize("media_type", ["text/plain", "multipart/form-data; boundary=x", "application/json"])
def test_a_body_of_another_media_type_is_rejected(served: Served, media_type: str) -> None:
    response = httpx.post(f"{served.address}/predict", content=IMAGE, headers={"Content-Type": media_type}, timeout=60)
    assert (response.status_code, reason(response)) == (415, "unsupported media type")


@fault("web app", "a header of 200 KB", "refused", "status 400")
def test_a_giant_header_is_rejected_and_the_service_keeps_running(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        try:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
            answer = client.recv(100)
        except ConnectionError:  # closed before all of it was sent
            answer = b""
    assert answer == b"" or b" 400 " in answer
    assert httpx.get(f"{served.address}/health", timeout=60).json() == {"status": "alive"}


def slow_upload(served: Served) -> socket.socket:
    """Start to send an image and stop half-way."""
    client = socket.create_connection(("127.0.0.1", served.port))
    client.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(IMAGE)}\r\n\r\n".encode())
    client.sendall(IMAGE[: len(IMAGE) // 2])
    return client


def test_a_full_service_responds_busy_until_there_is_room() -> None:
    with serve_here(tiny_classifier(), limits=replace(LIMITS, max_queued_images=1)) as served:
        with slow_upload(served) as client:
            wait_for(lambda: served.metric("cxr_images_in_progress") == 1)
            busy = send(served, IMAGE)
            assert (busy.status_code, reason(busy)) == (429, "busy")
            assert int(busy.headers["retry-after"]) > 0
            client.sendall(IMAGE[len(IMAGE) // 2 :])
            assert b" 200 " in client.recv(100)
        assert send(served, IMAGE).status_code == 200
        assert served.metric("cxr_images_rejected_total", reason="busy") == 1


def test_the_bytes_of_images_in_progress_are_limited() -> None:
    room_for_one = replace(LIMITS, max_queued_bytes=len(IMAGE) + 10)
    with serve_here(tiny_classifier(), limits=room_for_one) as served, slow_upload(served):
        wait_for(lambda: served.metric("cxr_images_in_progress") == 1)
        assert send(served, IMAGE).status_code == 429


@fault("web app", "an upload stalls", "it is ended", "status 408")
def test_a_stalled_upload_times_out() -> None:
    limits = replace(LIMITS, upload_timeout_s=0.5)
    with serve_here(tiny_classifier(), limits=limits) as served, slow_upload(served) as client:
        assert b" 408 " in client.recv(100)


@fault("web app", "a client disconnects in the middle of an upload", "its place is free again", "nothing")
def test_a_disconnected_client_frees_its_slot() -> None:
    with serve_here(tiny_classifier(), limits=replace(LIMITS, max_queued_images=1)) as served:
        slow_upload(served).close()
        wait_for(lambda: send(served, IMAGE).status_code == 200)
        assert served.metric("cxr_images_in_progress") == 0


def test_an_image_that_takes_too_long_to_decode_is_rejected() -> None:
    large = cv2.resize(synthetic(), (2400, 2400)).astype(np.uint16)
    frames = dicom_image(large, syntax="1.2.840.10008.1.2.4.70")  # decoded in a process: a second
    with serve_here(tiny_classifier(), limits=replace(LIMITS, decode_timeout_s=0.001)) as served:
        response = send(served, frames)
        assert (response.status_code, reason(response)) == (422, "too slow")


@fault("web app", "the model takes longer than every image that waits for it may",
       "further images are refused; the next after it has caught up is answered",
       "status 503, then 429 `busy`")  # fmt: skip
def test_images_behind_a_slow_model_are_refused_once_as_many_wait_as_may() -> None:
    held = threading.Event()
    classifier = tiny_classifier()
    answer = classifier.answer
    object.__setattr__(classifier, "answer", lambda images: held.wait(300) and answer(images))
    limits = replace(LIMITS, max_queued_images=4, inference_timeout_s=0.2)
    with serve_here(classifier, limits=limits) as served:
        try:
            refused = [send(served, IMAGE) for _ in range(limits.max_queued_images + 3)]
        finally:
            held.set()
        wait_for(lambda: send(served, IMAGE).status_code == 200)
    statuses = [response.status_code for response in refused]
    assert statuses == [503] * (limits.max_queued_images + 1) + [429] * 2, refused[-1].text
    assert reason(refused[-1]) == "busy"
