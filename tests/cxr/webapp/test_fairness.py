"""One client cannot silence the service: costly images are refused before they are decoded, and the queue is shared."""

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest

from cxr.webapp.fair_turns import CLIENT, FairTurns
from tests.support.faults import fault
from tests.support.images.dicom_images import dicom_image, picture
from tests.support.images.hostile_files import many_scans
from tests.support.services.webapp_server import (
    IMAGE,
    LIMITS,
    Served,
    reason,
    send,
    send_from,
    serve_here,
    tiny_classifier,
)
from tests.support.waiting import wait_for


def claiming_9_megapixels(syntax: str, bits: int) -> bytes:
    """Return a DICOM file of a few kilobytes whose compressed frame claims 3000 x 3000 pixels."""
    data = dicom_image(picture(48, 60, bits), bits=bits, syntax=syntax)
    for element in (0x0010, 0x0011):
        at = data.index(struct.pack("<HH", 0x0028, element) + b"US") + 8
        data = data[:at] + struct.pack("<H", 3000) + data[at + 2 :]
    return data


COSTLY: dict[str, Callable[[], bytes]] = {
    "a progressive JPEG of 136 scans": lambda: many_scans(3000, 3000, 130),
    "a JPEG-LS frame of a few bytes": lambda: claiming_9_megapixels("1.2.840.10008.1.2.4.80", 12),
    "a JPEG 2000 frame of a few bytes": lambda: claiming_9_megapixels("1.2.840.10008.1.2.4.90", 12),
    "a JPEG of a few bytes in DICOM": lambda: claiming_9_megapixels("1.2.840.10008.1.2.4.50", 8),
}


@pytest.mark.parametrize("kind", COSTLY)
@fault(
    "web app",
    "a JPEG of a hundred scans, or a DICOM frame of a few bytes that claims 9 million pixels",
    "refused before it is decoded; others are answered",
    "status 422, too costly to decode",
)
def test_an_image_that_would_take_long_to_decode_is_refused_before(served: Served, kind: str) -> None:
    data = COSTLY[kind]()
    assert len(data) < 200_000
    refused = send(served, data)
    assert (refused.status_code, reason(refused)) == (422, "too costly to decode")
    assert send(served, IMAGE).status_code == 200


@fault("web app", "one client fills its share of the queue", "another client is answered", "status 429 for the first")
def test_a_client_that_fills_its_share_leaves_room_for_another() -> None:
    with serve_here(tiny_classifier(), limits=replace(LIMITS, max_queued_images=4)) as served, ExitStack() as held:
        head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(IMAGE)}\r\n\r\n".encode()
        for _ in range(3):
            client = held.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            client.sendall(head + IMAGE[:100])
        wait_for(lambda: served.metric("cxr_images_in_progress") == 3)
        assert send(served, IMAGE).status_code == 429
        assert send_from("127.0.0.2", served).status_code == 200


def test_turns_go_from_client_to_client() -> None:
    async def served_in_order() -> list[str]:
        turns, order = FairTurns(1), list[str]()

        async def work(client: str) -> None:
            CLIENT.set(client)
            await turns.take()
            order.append(client)
            await asyncio.sleep(0)
            turns.give_back()

        await asyncio.gather(*(work(client) for client in ("many", "many", "many", "one", "many", "other")))
        return order

    assert asyncio.run(served_in_order()) == ["many", "many", "one", "other", "many", "many"]


def test_a_turn_given_to_a_client_that_has_left_goes_to_the_next() -> None:
    async def left() -> None:
        turns = FairTurns(1)
        await turns.take()
        gone, stays = (asyncio.create_task(turns.take()) for _ in range(2))
        await asyncio.sleep(0)
        turns.give_back()
        gone.cancel()
        await asyncio.wait_for(stays, 60)

    asyncio.run(left())
