"""A client of any PACS with DICOMweb: finds images by QIDO-RS, reads them by WADO-RS and stores answers by STOW-RS.

DICOMweb has no feed of changes. The client searches again and again and writes what it finds for the first time into a
journal, which is the feed. Errors and log lines hold no name, number or UID: images have a digest of their UID there.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread

from cxr.common.errors import SourceError
from cxr.dicom.header import MODALITIES
from cxr.dicom.tags import quiet_libraries
from cxr.pacs.feed import (
    REJECTED,
    TIMEOUTS_SECONDS,
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
_AGAIN_SECONDS = 600  # between two searches of recent studies whose number of objects is the same


@dataclass(frozen=True)
class _Found:
    series_uid: str
    instance: Instance


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
        self.address, session = web_address(url)
        self._client = DICOMwebClient(self.address, session=_with_timeouts(session))
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
        """Return the DICOM file of an object; None if it was deleted or cannot be read."""
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

        Raises:
            PacsUnavailableError: the service has no room for it now.
        """
        dataset = dcmread(io.BytesIO(dicom))
        response = self._ask(lambda: self._stow(dataset), absent=None, absent_at=REJECTED)
        failed = [] if response is None else response.get("FailedSOPSequence", [])
        if response is not None and not failed:
            return True
        if self._is_stored(dataset.StudyInstanceUID, dataset.SOPInstanceUID):
            return True
        if any(one.get("FailureReason") in _NO_ROOM_NOW for one in failed):
            raise PacsUnavailableError(f"{self.address} is out of resources; see the log of the PACS")
        return False

    def _stow(self, dataset: Dataset) -> Dataset:
        try:
            return self._client.store_instances([dataset])
        except requests.HTTPError as error:
            if error.response.status_code != _NONE_STORED:
                raise
            with suppress(*_NOT_DICOM):
                answer = Dataset.from_json(error.response.json())
                if answer.get("FailedSOPSequence"):
                    return answer
            raise

    def _is_stored(self, study_uid: str, sop_uid: str) -> bool:
        """Return whether an object is stored: services reject a duplicate in several ways, not all of which say so."""
        query = {"SOPInstanceUID": sop_uid}
        search = partial(self._client.search_for_instances, study_uid, search_filters=query)
        return any(_value(one, _SOP) == sop_uid for one in self._list(search, absent_at=REJECTED))

    def _retrieve(self, found: _Found) -> bytes | None:
        asked = found.instance
        stored = (("application/dicom", "*"),)  # in whichever transfer syntax it is stored
        file = io.BytesIO()
        try:
            self._client.retrieve_instance(
                asked.study_uid, found.series_uid, asked.sop_uid, media_types=stored
            ).save_as(file, enforce_file_format=True)
        except requests.RequestException:
            raise
        except Exception:  # of any kind, as pydicom's: the object is damaged, and its tags must not be quoted
            return None
        return file.getvalue()

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


def _with_timeouts(session: requests.Session) -> requests.Session:
    class Adapter(requests.adapters.HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> requests.Response:
            return super().send(*args, **(options | {"timeout": TIMEOUTS_SECONDS}))

    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter())
    return session
