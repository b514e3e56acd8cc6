"""A client of Orthanc, a small PACS, over its REST API: reads the feed of changes and stores reports.

No error or log line holds a patient's name, number or UID: they name the address without its password, and images by
Orthanc's own ID, a digest.
"""

import json
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import requests

from cxr.common.errors import SourceError
from cxr.pacs.feed import (
    REJECTED,
    Change,
    Changes,
    Instance,
    PacsUnavailableError,
    rejected_account,
    web_address,
)

_OTHER_FORM = (AttributeError, KeyError, TypeError, ValueError)
_STORED, _NOT_STORED = ("Success", "AlreadyStored"), ("Failure", "FilteredOut")
_LOST = 500  # also the status of a file that is missing from the storage, which does not affect other files


class Orthanc:
    """A client of one Orthanc server, a `cxr.pacs.feed.Pacs`; for one thread.

    Args:
        url: http(s)://[user:password@]host[:port]; `CXR_PACS_USER` and `CXR_PACS_PASSWORD` take precedence.

    Raises:
        SourceError: the address is invalid.
    """

    def __init__(self, url: str) -> None:
        self.address, self._session = web_address(url)
        self._series = lru_cache(maxsize=256)(self._read_series)

    def changes(self, since: int, limit: int) -> Changes:
        """Return up to `limit` lines of the feed after line `since`."""
        response = self._json("GET", f"/changes?since={since}&limit={limit}")
        with self._expected():
            lines = tuple(_change(line) for line in response["Changes"])
            # Older versions return 0 or `since` as Last when there is nothing new; the position must never go back.
            return Changes(lines, max([since, *(line.number for line in lines)]), bool(response["Done"]))

    def last_change(self) -> int:
        """Return the number of the newest line; 0 before the first."""
        response = self._json("GET", "/changes?last")
        with self._expected():
            return int(response["Last"])

    def line(self, number: int) -> Change | None:
        """Return one line of the feed; None if it was deleted with its object."""
        found = self.changes(number - 1, 1).lines
        return found[0] if found and found[0].number == number else None

    def instance(self, resource: str) -> Instance | None:
        """Return an instance as in the index; None if it was deleted."""
        found = self._known(f"/instances/{quote(resource)}")
        with self._expected():
            series = None if found is None else self._series(found["ParentSeries"])
            if found is None or series is None:
                return None
            study_uid, modality, body_part = series
            return Instance(study_uid, str(found["MainDicomTags"].get("SOPInstanceUID", "")), modality, body_part)

    def file(self, resource: str) -> bytes | None:
        """Return the DICOM file of an instance; None if it was deleted or is missing from the storage."""
        response = self._request("GET", f"/instances/{quote(resource)}/file", accept=REJECTED | {_LOST})
        return response.content if response.ok else None

    def sender(self, resource: str) -> str:
        """Return the application entity that sent an instance by DICOM; else this server's address."""
        response = self._request("GET", f"/instances/{quote(resource)}/metadata/RemoteAET")
        return response.text if response.ok and response.text else self.address

    def report_uids(self, study_uid: str) -> frozenset[str]:
        """Return the UIDs of all Structured Reports of a study."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study_uid, "Modality": "SR"}, "Expand": True}
        found = self._json("POST", "/tools/find", json.dumps(query).encode())
        with self._expected():
            return frozenset(str(one["MainDicomTags"].get("SOPInstanceUID", "")) for one in found)

    def has_series(self, uid: str) -> bool:
        """Return whether a series with this UID is stored."""
        return bool(self._json("POST", "/tools/lookup", uid.encode()))

    def store(self, dicom: bytes) -> bool:
        """Store an object, keeping an existing one with its UID. Returns False if Orthanc rejects it.

        Raises:
            SourceError: the answer is not Orthanc's, whatever its status.
        """
        response = self._request("POST", "/instances", dicom)
        if response.status_code in REJECTED:
            return False
        answer = self._decode(response)
        with self._expected():
            status = answer.get("Status")
        if status not in {*_STORED, *_NOT_STORED}:
            raise PacsUnavailableError(f"{self.address} does not say that it stored an answer; see Orthanc's log")
        return status in _STORED

    def version(self) -> str:
        """Return Orthanc's own version."""
        return str(self._json("GET", "/system").get("Version", "unknown"))

    def _read_series(self, resource: str) -> tuple[str, str, str] | None:
        """Return study UID, modality and body part of a series; None if it was deleted."""
        series = self._known(f"/series/{quote(resource)}")
        study = self._known(f"/studies/{quote(series['ParentStudy'])}") if series else None
        if series is None or study is None:
            return None
        tags = series["MainDicomTags"]
        study_uid = str(study["MainDicomTags"].get("StudyInstanceUID", ""))
        return study_uid, str(tags.get("Modality", "")), str(tags.get("BodyPartExamined", ""))

    def _known(self, path: str) -> dict[str, Any] | None:
        response = self._request("GET", path)
        return None if response.status_code in REJECTED else self._decode(response)

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        response = self._request(method, path, body)
        if response.status_code in REJECTED:
            raise SourceError(f"{self.address} is not an Orthanc (status {response.status_code}); check the address")
        return self._decode(response)

    def _decode(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except requests.JSONDecodeError:
            raise self._foreign("no JSON") from None

    @contextmanager
    def _expected(self) -> Iterator[None]:
        """Turn what reading an answer of another form raises into a SourceError."""
        try:
            yield
        except _OTHER_FORM:
            raise self._foreign("JSON of another form") from None

    def _foreign(self, what: str) -> SourceError:
        return SourceError(f"{self.address} is not an Orthanc: it returns {what}; check the address")

    def _request(
        self, method: str, path: str, body: bytes | None = None, *, accept: Set[int] = REJECTED
    ) -> requests.Response:
        try:
            response = self._session.request(method, self.address + path, data=body, allow_redirects=False)
        except requests.RequestException as error:
            kind = type(error).__name__  # its message holds the whole address
            raise PacsUnavailableError(f"{self.address} does not respond ({kind}); is Orthanc running there?") from None
        if response.status_code in {401, 403}:
            raise rejected_account(self.address)
        if not response.ok and response.status_code not in accept:
            raise PacsUnavailableError(f"{self.address} fails with status {response.status_code}; see Orthanc's log")
        return response


def _change(line: dict[str, Any]) -> Change:
    mark = f"{line['Date']}/{line['ID']}"
    return Change(int(line["Seq"]), str(line["ChangeType"]), str(line["ID"]), mark)
