"""Statuses of a DICOM node that Orthanc does not give, and images that arrive in an unlucky way."""

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import DigitalXRayImageStorageForPresentation
from pynetdicom import AE, evt

from cxr.pacs import arriving, listener
from cxr.pacs.feed import PacsUnavailableError
from cxr.pacs.listener import Listener, Node
from tests.support.faults import fault
from tests.support.images.hostile_files import many_items
from tests.support.services.pacs_worker import DECODERS, UID_ROOT, ImpatientOnce, image
from tests.support.services.servers import free_ports
from tests.support.waiting import wait_for

SR = "1.2.840.10008.5.1.4.1.1.88.34"
MOST_BYTES = 4 << 20
LARGE_BYTES = MOST_BYTES * 9 // 10
ANSWER = image(1, SOPClassUID=SR, Modality="SR")


@dataclass
class Archive:
    """A node that gives one status to all objects."""

    port: int
    status: int = 0


@pytest.fixture
def archive() -> Iterator[Archive]:
    (port,) = free_ports(1)
    served, node = Archive(port), AE("ARCHIVE")
    node.add_supported_context(SR)
    server = node.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: served.status)]
    )
    yield served
    server.shutdown()


@pytest.fixture
def pacs(archive: Archive, tmp_path: Path) -> Listener:
    (port,) = free_ports(1)
    own, to = Node("CXR", "127.0.0.1", port), Node("ARCHIVE", "127.0.0.1", archive.port)
    return Listener(own, to, tmp_path / "state.received", DECODERS, most_bytes=MOST_BYTES)


@pytest.mark.parametrize("status", [0x0000, 0xB007, 0x0111])
def test_success_a_warning_and_a_duplicate_are_stored(archive: Archive, pacs: Listener, status: int) -> None:
    archive.status = status
    assert pacs.store(ANSWER)
    assert len(pacs.report_uids(f"{UID_ROOT}.1")) == 1


@pytest.mark.parametrize("status", [0x0122, 0xA900])
def test_an_object_of_a_kind_that_the_node_rejects_is_not_sent_again(
    archive: Archive, pacs: Listener, status: int
) -> None:
    archive.status = status
    assert not pacs.store(ANSWER)
    assert not pacs.report_uids(f"{UID_ROOT}.1")


@pytest.mark.parametrize("status", [0x0110, 0x0124, 0xA700, 0xC123])
def test_any_other_status_is_tried_again(archive: Archive, pacs: Listener, status: int) -> None:
    archive.status = status
    with pytest.raises(PacsUnavailableError, match=f"status {status:04X}"):
        pacs.store(ANSWER)


class _Closed:
    """An association that the node closed after it was looked at."""

    is_established = True

    def __init__(self, link: Any) -> None:
        link.abort()
        self._link = link

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


def test_a_closed_association_is_tried_again(pacs: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    associate = AE.associate
    monkeypatch.setattr(AE, "associate", lambda *given, **named: _Closed(associate(*given, **named)))
    with pytest.raises(PacsUnavailableError, match="does not say whether it stored"):
        pacs.store(ANSWER)


def test_an_image_that_arrives_twice_at_once_is_kept_once(pacs: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    event = SimpleNamespace(request=SimpleNamespace(AffectedSOPInstanceUID="1.2.3", DataSet=BytesIO(b"")))
    statuses: list[int] = []
    second = threading.Thread(target=lambda: statuses.append(pacs._take(event)))

    def head(_: Any) -> bytes:
        if second.ident is None:
            second.start()
            second.join(0.5)  # it finishes here unless it waits for its turn
        return b"image"

    monkeypatch.setattr(listener, "_head", head)
    statuses.append(pacs._take(event))
    second.join()
    assert statuses == [0, 0]
    assert pacs.last_change() == 1


@fault(
    "PACS", "an image of millions of tags is received", "the process that reads them is killed", "the next is answered"
)
def test_an_image_whose_tags_take_long_to_read_does_not_hold_the_listener(archive: Archive, tmp_path: Path) -> None:
    for name, dicom in (("1", many_items(1_500_000)), ("2", image(2))):
        (tmp_path / f"{name}.dcm").write_bytes(dicom)
    with ImpatientOnce(1, seconds=3) as decoders:  # it takes most of a minute
        own, to = Node("CXR", "127.0.0.1", 1), Node("ARCHIVE", "127.0.0.1", archive.port)
        listener = Listener(own, to, tmp_path, decoders, most_bytes=MOST_BYTES)
        slow, usual = listener.instance("1"), listener.instance("2")
    assert slow is not None
    assert (slow.study_uid, slow.modality) == ("", "CR")  # the worker rejects it with its reason
    assert usual is not None
    assert (usual.study_uid, usual.modality) == (f"{UID_ROOT}.2", "DX")


def test_what_a_kill_left_of_an_arriving_image_is_removed(archive: Archive, tmp_path: Path) -> None:
    half = tmp_path / ".1.dcm.partial"
    half.write_bytes(b"Sorrowful^Jane")
    own, to = Node("CXR", "127.0.0.1", 1), Node("ARCHIVE", "127.0.0.1", archive.port)
    Listener(own, to, tmp_path, DECODERS, most_bytes=MOST_BYTES)
    assert not half.exists()


def image_of(number: int, size_bytes: int) -> bytes:
    """Return an image with as many bytes of pixels, whatever its other tags say."""
    dicom, file = dcmread(BytesIO(image(number))), BytesIO()
    dicom.PixelData = bytes(size_bytes)
    dicom.save_as(file)
    return file.getvalue()


def associated(pacs: Listener) -> Any:
    """Return an association with the listener."""
    node = AE("MODALITY")
    node.add_requested_context(DigitalXRayImageStorageForPresentation)
    link = node.associate("127.0.0.1", pacs._own.port, ae_title="CXR")
    assert link.is_established
    return link


def close(link: Any) -> None:
    """Close the socket of an association: pynetdicom leaks it where the peer has closed its side."""
    if link.dul.socket.socket is not None:
        link.dul.socket.socket.close()


def sent(pacs: Listener, *images: bytes) -> list[int | None]:
    """Send images in one association and return their statuses; None where it was closed."""
    link, statuses = associated(pacs), list[int | None]()
    for each in images:
        if link.is_established:
            statuses.append(link.send_c_store(dcmread(BytesIO(each))).get("Status"))
    link.release()
    close(link)
    return statuses


@fault(
    "PACS",
    "an image of more than 400 MB is sent to the listener",
    "its connection is closed before the rest is read; other images are kept",
    "`an image has more than 419430400 bytes`, and the option",
)
def test_an_image_that_is_too_large_closes_its_connection_and_no_other(
    pacs: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    with pacs:
        assert sent(pacs, image_of(1, LARGE_BYTES), image_of(2, MOST_BYTES)) == [0, None]
        assert f"an image has more than {MOST_BYTES} bytes; raise --max-object-mb" in caplog.text
        assert sent(pacs, image(3)) == [0]
        assert pacs.last_change() == 2


def test_many_images_of_one_connection_are_no_large_one(pacs: Listener) -> None:
    with pacs:
        assert sent(pacs, *(image_of(number, LARGE_BYTES) for number in range(4))) == [0, 0, 0, 0]
        assert pacs.last_change() == 4


def test_images_that_arrive_at_the_same_time_share_a_limit(pacs: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, may_end, take, statuses = threading.Semaphore(0), threading.Event(), pacs._take, list[int | None]()

    def take_later(event: Any) -> int:
        arrived.release()
        may_end.wait(60)
        return take(event)

    monkeypatch.setattr(pacs, "_take", take_later)
    with pacs:
        each = [
            threading.Thread(target=lambda n=n: statuses.extend(sent(pacs, image_of(n, LARGE_BYTES)))) for n in (1, 2)
        ]
        for thread in each:
            thread.start()
        assert all(arrived.acquire(timeout=60) for _ in each)
        assert sent(pacs, image_of(3, LARGE_BYTES)) == [None]
        may_end.set()
        for thread in each:
            thread.join()
        assert statuses == [0, 0]
        assert sent(pacs, image_of(3, LARGE_BYTES)) == [0]


def test_a_part_of_a_message_that_announces_megabytes_is_not_read(pacs: Listener) -> None:
    with pacs, socket.create_connection(("127.0.0.1", pacs._own.port), 10) as stranger:
        stranger.sendall(struct.pack(">BBL", 0x01, 0, 2 << 20))
        assert stranger.recv(1) == b""  # closed, where it would have waited for the rest


@fault(
    "PACS",
    "a sender of C-STORE falls silent in the middle of a message",
    "its connection is closed after a minute, and what it had sent no longer counts",
    "nothing; the listener goes on, and ends when it is told to",
)
def test_a_sender_that_falls_silent_is_let_go(pacs: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "_SILENT_SECONDS", 0.5)
    with pacs:
        for _ in range(12):  # ten at a time are accepted
            link = associated(pacs)
            link.dul.socket.socket.sendall(struct.pack(">BBL", 0x04, 0, 1 << 19) + bytes(1000))
            wait_for(lambda link=link: not link.is_established, seconds=30)
            close(link)
        assert sent(pacs, image_of(1, LARGE_BYTES)) == [0]


def test_an_association_ends_with_the_listener(pacs: Listener) -> None:
    with pacs:
        link = associated(pacs)
    wait_for(lambda: not link.is_established, seconds=30)
    close(link)
