"""A client of any PACS with DICOMweb: finds images by QIDO-RS, reads them by WADO-RS and stores answers by STOW-RS.

DICOMweb has no feed of changes. The client searches again and again and writes what it finds for the first time into a
journal, which is the feed. Errors and log lines hold no name, number or UID: images have a digest of their UID there.
"""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread

from cxr.common.errors import SourceError
from cxr.dicom.header import MODALITIES
from cxr.dicom.tags import quiet_libraries
from cxr.pacs.feed import (
    REJECTED,
    Change,
    Changes,
    Instance,
    PacsUnavailableError,
    rejected_account,
    web_address,
)
from cxr.pacs.journal import Journal, digest_of

Value = TypeVar("Value")
Json = dict[str, Any]

_STUDY, _SERIES, _SOP, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_BODY_PART, _COUNT, _DATE = "00180015", "00201208", "00080020"
_GONE = frozenset({404, 410})  # of a study that was deleted after it was found
_LOST = 500  # as Orthanc answers for a file that is missing from the storage
_PAGE = 200
_NOT_DICOM = (AttributeError, KeyError, TypeError, ValueError)  # of a client that reads something else
_NONE_STORED = 409  # of STOW-RS; the body says why (DICOM PS3.18 I.2)
_NO_ROOM_NOW = frozenset({*range(0xA700, 0xA800), 0x0213})  # out of resources, resource limitation
_BOUNDARY = "cxr-7d1f0c7e5b0f4b6e"  # of what is sent; no object holds it
_BOUNDARY_OF = re.compile(r'boundary="?([^";]+)')
_AGAIN_SECONDS = 600  # between two searches of recent studies whose number of objects is the same


@dataclass(frozen=True)
class _Found:
    series_uid: str
    instance: Instance


@dataclass(frozen=True)
class _Said:
    """What a service says of an object that it was sent: it `is_stored`, or the `failures` why not; or nothing."""

    is_stored: bool = False
    failures: tuple[int, ...] = ()

    @classmethod
    def of(cls, response: requests.Response, sop_uid: str) -> _Said:
        """Read the body of an answer of STOW-RS; one that is not DICOM JSON says nothing."""
        try:
            answer = Dataset.from_json(response.json())
            failures = tuple(int(one.get("FailureReason") or 0) for one in answer.get("FailedSOPSequence", []))
            stored = {one.get("ReferencedSOPInstanceUID") for one in answer.get("ReferencedSOPSequence", [])}
        except (requests.JSONDecodeError, *_NOT_DICOM):
            return cls()
        return cls(sop_uid in stored and not failures, failures)


class DicomWeb:
    """A client of one DICOMweb service, a `cxr.pacs.feed.Pacs`; for one thread.

    Args:
        url: of the service, such as http://127.0.0.1:8042/dicom-web; the account as in `cxr.pacs.feed.web_address`.
        journal: file with the images found so far.
        days: studies of this many days are searched, today's included; 0: all.

    Raises:
        SourceError: the address is invalid.
    """

    def __init__(self, url: str, journal: Path, *, days: int) -> None:
        quiet_libraries()
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL + 1)  # its log lines hold UIDs
        self.address, self._session = web_address(url)
        self._client = DICOMwebClient(self.address, session=self._session)
        self._client.set_http_retry_params(retry=False)
        self._journal, self._days = Journal(journal), days
        self._found: dict[str, _Found] = {}
        self._counts: dict[str, str] = {}
        self._searched = False
        self._searched_again_at = time.monotonic()

    def changes(self, since: int, limit: int) -> Changes:
        """Return up to `limit` lines of the feed after line `since`; at its end, search for new images first."""
        if since >= len(self._journal) or not self._searched:
            self._search()
        return self._journal.changes(since, limit)

    def last_change(self) -> int:
        """Return the number of the newest line; 0 before the first."""
        return len(self._journal)

    def line(self, number: int) -> Change | None:
        """Return one line of the feed."""
        found = self._journal.changes(number - 1, 1).lines
        return found[0] if found else None

    def instance(self, resource: str) -> Instance | None:
        """Return an object as in the index; None if no search finds it any more."""
        found = self._found.get(resource)
        return found.instance if found else None

    def file(self, resource: str) -> bytes | None:
        """Return the DICOM file of an object, as it came; None if it was deleted or the service sends none."""
        found = self._found[resource]
        return self._ask(partial(self._retrieve, found), absent=None, absent_at=REJECTED | {_LOST})

    def sender(self, resource: str) -> str:
        """Return the address of the service: DICOMweb does not say who sent an object."""
        del resource
        return self.address

    def report_uids(self, study_uid: str) -> frozenset[str]:
        """Return the UIDs of all Structured Reports of a study."""
        series = self._list(partial(self._series, study_uid, "SR"), absent_at=_GONE)
        found = [one for each in series for one in self._list(partial(self._instances, each), absent_at=_GONE)]
        return frozenset(_value(one, _SOP) for one in found)

    def has_series(self, uid: str) -> bool:
        """Return whether a series with this UID is stored."""
        query = {"SeriesInstanceUID": uid}
        return bool(self._list(lambda: self._client.search_for_series(search_filters=query), absent_at=REJECTED))

    def store(self, dicom: bytes) -> bool:
        """Store an object. Returns False if the service rejects it.

        A status of success is not enough: a proxy may give it with a page for people.

        Raises:
            PacsUnavailableError: the service has no room for it now, or nothing shows that it was stored.
        """
        sent = dcmread(io.BytesIO(dicom), stop_before_pixels=True)
        said = self._ask(partial(self._stow, dicom, sent.SOPInstanceUID), absent=None, absent_at=REJECTED)
        if said is not None and said.is_stored:
            return True
        if self._is_stored(sent.StudyInstanceUID, sent.SOPInstanceUID):
            return True
        if said is None or said.failures:
            if said is not None and not _NO_ROOM_NOW.isdisjoint(said.failures):
                raise PacsUnavailableError(f"{self.address} is out of resources; see the log of the PACS")
            return False
        raise PacsUnavailableError(
            f"{self.address} does not say that it stored an answer, and does not find it; is it a DICOMweb service, "
            "without a proxy or a sign-in page before it?"
        )

    def _stow(self, dicom: bytes, sop_uid: str) -> _Said:
        """Send an object and return what the service says of it."""
        start = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        response = self._session.post(
            f"{self.address}/studies",
            data=start + dicom + f"\r\n--{_BOUNDARY}--\r\n".encode(),
            headers={
                "Content-Type": f'multipart/related; type="application/dicom"; boundary="{_BOUNDARY}"',
                "Accept": "application/dicom+json",
            },
            allow_redirects=False,  # an answer holds patients' tags, and is for this address alone
        )
        said = _Said.of(response, sop_uid)
        if response.status_code != _NONE_STORED or not said.failures:
            response.raise_for_status()
        return said

    def _is_stored(self, study_uid: str, sop_uid: str) -> bool:
        """Return whether an object is stored: services reject a duplicate in several ways, not all of which say so."""
        query = {"SOPInstanceUID": sop_uid}
        search = partial(self._client.search_for_instances, study_uid, search_filters=query)
        return any(_value(one, _SOP) == sop_uid for one in self._list(search, absent_at=REJECTED))

    def _retrieve(self, found: _Found) -> bytes | None:
        """Return an object's bytes, unread: reading a stranger's file is the work of a process that can be killed."""
        uids = (found.instance.study_uid, found.series_uid, found.instance.sop_uid)
        study, series, instance = (quote(uid, safe="") for uid in uids)
        response = self._session.get(
            f"{self.address}/studies/{study}/series/{series}/instances/{instance}",
            # in whichever transfer syntax it is stored
            headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
        )
        response.raise_for_status()
        boundary = _BOUNDARY_OF.search(response.headers.get("Content-Type", ""))
        if boundary is None:
            return None
        mark = f"--{boundary[1]}".encode()
        part = response.content.partition(mark)[2].partition(b"\r\n\r\n")[2]
        file, end, _ = part.partition(b"\r\n" + mark)
        return file if end and file else None

    def _search(self) -> None:
        """Add the new images of all studies whose number of objects has changed to the journal.

        A retake leaves it as it was where the image that it replaces was deleted, so recent studies are searched again
        from time to time.
        """
        is_time = time.monotonic() - self._searched_again_at > _AGAIN_SECONDS
        recent = f"{date.today() - timedelta(days=1):%Y%m%d}"
        for study_uid, study in self._studies().items():
            count = _value(study, _COUNT)
            is_same = count and self._counts.get(study_uid) == count
            if is_same and not (is_time and _value(study, _DATE) >= recent):
                continue
            self._search_study(study_uid)
            self._counts[study_uid] = count
        self._searched = True
        if is_time:
            self._searched_again_at = time.monotonic()

    def _search_study(self, study_uid: str) -> None:
        for modality in MODALITIES:
            for series in self._list(partial(self._series, study_uid, modality), absent_at=_GONE):
                self._add(study_uid, series)

    def _studies(self) -> dict[str, Json]:
        """Return the studies with images, by UID."""
        first = date.today() - timedelta(days=self._days - 1)
        query = {"StudyDate": f"{first:%Y%m%d}-"} if self._days else {}
        found: dict[str, Json] = {}
        for modality in MODALITIES:
            search = partial(self._client.search_for_studies, search_filters=query | {"ModalitiesInStudy": modality})
            found |= {_value(study, _STUDY): study for study in self._list(partial(_pages, search, _STUDY))}
        return found

    def _add(self, study_uid: str, series: Json) -> None:
        modality, body_part = _value(series, _MODALITY), _value(series, _BODY_PART)
        for one in self._list(partial(self._instances, series), absent_at=_GONE):
            sop_uid = _value(one, _SOP)
            resource = digest_of(sop_uid)
            instance = Instance(study_uid, sop_uid, modality, body_part)
            self._found[resource] = _Found(_value(series, _SERIES), instance)
            self._journal.append(resource)

    def _series(self, study_uid: str, modality: str) -> list[Json]:
        filters = {"Modality": modality}
        search = partial(self._client.search_for_series, study_uid, fields=["BodyPartExamined"], search_filters=filters)
        found = _pages(search, _SERIES)
        return [{_STUDY: {"Value": [study_uid]}} | one for one in found if _value(one, _MODALITY) == modality]

    def _instances(self, series: Json) -> list[Json]:
        return _pages(partial(self._client.search_for_instances, _value(series, _STUDY), _value(series, _SERIES)), _SOP)

    def _list(self, request: Callable[[], list[Json]], *, absent_at: Set[int] = frozenset()) -> list[Json]:
        nothing: list[Json] = []
        return self._ask(request, absent=nothing, absent_at=absent_at)

    def _ask(self, request: Callable[[], Value], *, absent: Value, absent_at: Set[int]) -> Value:
        """Return the response to a request; `absent` at the statuses by which the service has or takes no such object.

        Raises:
            SourceError: the service rejects the request itself, or the account.
        """
        try:
            return request()
        except requests.HTTPError as error:
            status = error.response.status_code
            if status in absent_at:
                return absent
            if status in {401, 403}:
                raise rejected_account(self.address) from None
            if status in REJECTED:
                raise SourceError(
                    f"{self.address} is not a DICOMweb service (status {status}); check the address"
                ) from None
            raise PacsUnavailableError(f"{self.address} fails with status {status}; see the log of the PACS") from None
        except requests.JSONDecodeError:
            raise SourceError(f"{self.address} is no DICOMweb service: it returns no JSON; check the address") from None
        except requests.RequestException as error:
            kind = type(error).__name__  # its message holds the whole address
            raise PacsUnavailableError(f"{self.address} does not respond ({kind}); is the PACS running?") from None
        except _NOT_DICOM:
            raise SourceError(
                f"{self.address} is no DICOMweb service: it returns no DICOM objects; check the address"
            ) from None


def _pages(search: Callable[..., list[Json]], uid: str) -> list[Json]:
    """Return what a search finds, page by page, until one brings nothing new: services choose the size of a page."""
    found: dict[str, Json] = {}
    read = 0
    while True:
        try:
            page = search(limit=_PAGE, offset=read)
        except requests.HTTPError as error:
            if not read or error.response.status_code not in REJECTED:
                raise
            page = []  # some services have no page after the last
        new = {_value(one, uid): one for one in page}
        if new.keys() <= found.keys():
            return list(found.values())
        found |= new
        read += len(page)


def _value(found: Json, tag: str) -> str:
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])
