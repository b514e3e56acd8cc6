"""Answers that come from the address of an Orthanc, and not from Orthanc."""

import pytest

from cxr.common.errors import SourceError
from cxr.pacs.feed import PacsUnavailableError
from cxr.pacs.orthanc import Orthanc
from tests.support.faults import fault
from tests.support.services.dicomweb_service import serve_dicomweb


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"<html>Please sign in</html>", SourceError, "it returns no JSON; check the address"),
        (b"[]", SourceError, "it returns JSON of another form; check the address"),
        (b'{"Status": "Busy"}', PacsUnavailableError, "does not say that it stored an answer"),
    ],
)
@fault("PACS", "status 200 for a report, by something else than Orthanc", "it does not count as stored", "one line")
def test_only_an_answer_of_orthanc_says_that_an_object_is_stored(
    body: bytes, error: type[Exception], message: str
) -> None:
    with serve_dicomweb() as service:
        service.says = (body, "text/html")
        with pytest.raises(error, match=message):
            Orthanc(service.url).store(b"report")


@pytest.mark.parametrize(
    ("status", "is_stored"), [("Success", True), ("AlreadyStored", True), ("Failure", False), ("FilteredOut", False)]
)
def test_a_status_of_orthanc_decides(status: str, is_stored: bool) -> None:
    with serve_dicomweb() as service:
        service.says = (f'{{"Status": "{status}"}}'.encode(), "application/json")
        assert Orthanc(service.url).store(b"report") == is_stored
