"""Answers of a DICOMweb service that Orthanc does not give."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest

from cxr.common.errors import SourceError
from cxr.pacs import dicomweb
from cxr.pacs.dicomweb import DicomWeb
from cxr.pacs.feed import PacsUnavailableError
from cxr.pacs.journal import digest_of
from tests.support.faults import fault
from tests.support.services.dicomweb_service import DicomWebService, serve_dicomweb
from tests.support.services.pacs_worker import image

STUDY, IMAGE = "1.2.3", "1.2.3.4.5"


@pytest.fixture
def service() -> Iterator[DicomWebService]:
    with serve_dicomweb() as served:
        served.images = {STUDY: [IMAGE]}
        yield served


@pytest.fixture
def pacs(service: DicomWebService, tmp_path: Path) -> DicomWeb:
    return DicomWeb(service.url, tmp_path / "state.found", days=7)


def found(pacs: DicomWeb) -> list[str]:
    return [line.resource for line in pacs.changes(pacs.last_change(), 100).lines]


def test_a_file_comes_unread_and_one_that_the_service_does_not_send_is_none(
    pacs: DicomWeb, service: DicomWebService
) -> None:
    (resource,) = found(pacs)
    for sent in (image(1), b"Sorrowful^Jane"):
        service.file = sent
        assert pacs.file(resource) == sent
    service.file = b""
    assert pacs.file(resource) is None
    for rejected in (406, 410, 500):
        service.status["GET file"] = rejected
        assert pacs.file(resource) is None


@pytest.mark.parametrize("status", [400, 404])
def test_a_wrong_path_is_an_error_and_not_an_empty_feed(pacs: DicomWeb, service: DicomWebService, status: int) -> None:
    service.status["GET studies"] = status
    with pytest.raises(SourceError, match=rf"is not a DICOMweb service \(status {status}\); check the address"):
        found(pacs)


def test_a_rejected_question_for_reports_is_not_a_study_without_reports(
    pacs: DicomWeb, service: DicomWebService
) -> None:
    service.status["GET series"] = 404
    assert pacs.report_uids(STUDY) == frozenset()  # the study was deleted
    service.status["GET series"] = 400
    with pytest.raises(SourceError, match="status 400"):
        pacs.report_uids(STUDY)


def test_a_duplicate_is_stored_whatever_the_service_says(pacs: DicomWeb, service: DicomWebService) -> None:
    answer = image(1, StudyInstanceUID=STUDY, SOPInstanceUID="1.2.9")
    for rejected in (409, 413):
        service.status["POST studies"] = rejected
        assert not pacs.store(answer)
    service.images[STUDY].append("1.2.9")
    assert pacs.store(answer)


@pytest.mark.parametrize("status", [202, 409])
@fault("PACS", "the PACS is out of resources for a report", "the worker waits and sends it again", "out of resources")
def test_a_service_without_room_is_asked_again_and_one_that_cannot_take_an_object_is_not(
    pacs: DicomWeb, service: DicomWebService, status: int
) -> None:
    answer = image(1, StudyInstanceUID=STUDY, SOPInstanceUID="1.2.9")
    service.status["POST studies"], service.failure_reason = status, 0xA700
    with pytest.raises(PacsUnavailableError, match="out of resources"):
        pacs.store(answer)
    service.failure_reason = 0x0122  # its SOP class is not supported
    assert not pacs.store(answer)


@pytest.mark.parametrize(
    "says",
    [
        (b"<html>Please sign in</html>", "text/html"),
        (b"<html>", "application/dicom+json"),
        (b"", "application/dicom+json"),
        (b"{}", "application/dicom+json"),
        (b"[1]", "application/dicom+json"),
        (b'{"00081199": {"vr": "UI", "Value": ["1.2.9"]}}', "application/dicom+json"),
        (b'{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.8"]}}]}}', "application/json"),
    ],
)
@fault(
    "PACS", "status 200 for a report, without a word of DICOM that it is stored", "the worker looks for it, waits, "
    "and sends it again", "does not say that it stored an answer",
)  # fmt: skip
def test_only_an_answer_that_names_the_object_says_that_it_is_stored(
    pacs: DicomWeb, service: DicomWebService, says: tuple[bytes, str]
) -> None:
    answer = image(1, StudyInstanceUID=STUDY, SOPInstanceUID="1.2.9")
    service.says = says
    with pytest.raises(PacsUnavailableError, match="does not say that it stored an answer"):
        pacs.store(answer)
    service.images[STUDY].append("1.2.9")  # such as a service that answers in XML
    assert pacs.store(answer)
    service.images[STUDY].remove("1.2.9")
    service.says = None
    assert pacs.store(answer)


def test_an_answer_is_sent_to_no_other_address(pacs: DicomWeb, service: DicomWebService) -> None:
    service.status["POST studies"] = 307
    service.says = (b"", "text/html")
    with pytest.raises(PacsUnavailableError, match="sign-in page"):
        pacs.store(image(1, StudyInstanceUID=STUDY, SOPInstanceUID="1.2.9"))
    assert len(service.received) == 1


@pytest.mark.parametrize("body", [b"<html>", b'{"00080018": 1}', b'[{"00080018": {"Value": 3}}]', b"[1]"])
@fault(
    "PACS", "the service answers a search with garbage", "nothing is taken for an image, and nothing for answered",
    "one line with the address",
)  # fmt: skip
def test_an_answer_without_objects_is_one_line(pacs: DicomWeb, service: DicomWebService, body: bytes) -> None:
    service.garbage = body
    with pytest.raises(SourceError, match=f"{service.url}.*check the address"):
        found(pacs)


@pytest.mark.parametrize(("page", "ignores_offset", "after_last"), [(2, False, 200), (2, False, 404), (99, True, 200)])
def test_a_service_with_small_pages_or_without_an_offset_is_read_to_its_end(
    pacs: DicomWeb, service: DicomWebService, page: int, ignores_offset: bool, after_last: int
) -> None:
    service.images = {f"1.2.{study}": [f"1.2.{study}.{number}" for number in range(5)] for study in range(3)}
    service.page, service.ignores_offset, service.after_last = page, ignores_offset, after_last
    assert len(found(pacs)) == 15


def test_a_retake_in_place_of_a_deleted_image_is_found(
    pacs: DicomWeb, service: DicomWebService, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(pacs)
    service.images[STUDY] = ["1.2.3.6"]
    assert not found(pacs)  # not at each look
    monkeypatch.setattr(dicomweb, "_AGAIN_SECONDS", -1)
    assert found(pacs) == [digest_of("1.2.3.6")]


@pytest.mark.parametrize("days", [-1, 1, 3])
@fault("PACS", "the clock of the worker is a day behind, or some days ahead", "images of today are found", "nothing")
def test_images_of_today_are_found_whatever_the_clock_says(
    pacs: DicomWeb, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    monkeypatch.setattr(dicomweb, "date", Mock(today=lambda: date.today() + timedelta(days)))
    assert found(pacs) == [digest_of(IMAGE)]
