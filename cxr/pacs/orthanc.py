"""A client of Orthanc, a small PACS, over its REST API: reads the feed of changes and stores reports.

No error or log line holds a patient's name, number or UID: they name the address without its password, and images by
Orthanc's own ID, a digest.
"""

import os
from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import requests

from cxr.common.errors import SourceError

ACCOUNT_VARIABLES = ("CXR_PACS_USER", "CXR_PACS_PASSWORD")

_CONNECT_SECONDS, _RESPONSE_SECONDS = 10, 120
_LOST = 500  # also the status of a file that is missing from the storage, which does not affect other files
_REJECTED = frozenset({400, 404, 409, 415, 422})
"""Statuses that concern one object; any other, such as 507 for a full disk, stops the worker until it is resolved."""


class OrthancUnavailableError(SourceError):
    """Orthanc does not respond or cannot at the moment; the request may be retried."""


@dataclass(frozen=True)
class Change:
    """A line of the feed. `number` increases; `mark` differs between databases that share a line number."""

    number: int
    kind: str
    resource: str
    mark: str


@dataclass(frozen=True)
class Changes:
    """Lines of the feed; `last`: number to continue after; `done`: the end of the feed."""

    lines: tuple[Change, ...]
    last: int
    done: bool


@dataclass(frozen=True)
class Instance:
    """An object as in Orthanc's index; its file is not read. Missing values are empty."""

    sop_uid: str
    modality: str
    body_part: str


class Orthanc:
    """A client of one Orthanc server; for one thread.

    Args:
        url: http(s)://[user:password@]host[:port]; `CXR_PACS_USER` and `CXR_PACS_PASSWORD` take precedence.

    Raises:
        SourceError: the address is invalid.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            parts, port = urlsplit(""), ""
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SourceError("the address of the PACS is invalid; expected one such as http://127.0.0.1:8042")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.address = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
        """The address without user and password, safe to print."""
        self._session = requests.Session()
        self._session.trust_env = False  # images must not go through a proxy, and .netrc must not override the account
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        given = [os.environ.get(name) for name in ACCOUNT_VARIABLES]
        user = given[0] or unquote(parts.username or "")
        if user:
            password = given[1] or unquote(parts.password or "")
            self._session.auth = (_utf_8(user), _utf_8(password))
        self._series = lru_cache(maxsize=256)(self._read_series)

    def changes(self, since: int, limit: int) -> Changes:
        """Return up to `limit` lines of the feed after line `since`."""
        response = self._json("GET", f"/changes?since={since}&limit={limit}")
        lines = tuple(_change(line) for line in response["Changes"])
        # Older versions return 0 or `since` as Last when there is nothing new; the position must never go back.
        return Changes(lines, max([since, *(line.number for line in lines)]), bool(response["Done"]))

    def last_change(self) -> int:
        """Return the number of the newest line; 0 before the first."""
        return int(self._json("GET", "/changes?last")["Last"])

    def line(self, number: int) -> Change | None:
        """Return one line of the feed; None if it was deleted with its object."""
        found = self.changes(number - 1, 1).lines
        return found[0] if found and found[0].number == number else None

    def instance(self, resource: str) -> Instance | None:
        """Return an instance as in the index; None if it was deleted."""
        found = self._known(f"/instances/{quote(resource)}")
        series = self._series(found["ParentSeries"]) if found else None
        if found is None or series is None:
            return None
        modality, body_part = series
        return Instance(str(found["MainDicomTags"].get("SOPInstanceUID", "")), modality, body_part)

    def file(self, resource: str) -> bytes | None:
        """Return the DICOM file of an instance; None if it was deleted or is missing from the storage."""
        response = self._request("GET", f"/instances/{quote(resource)}/file", accept=_REJECTED | {_LOST})
        return response.content if response.ok else None

    def has(self, uid: str) -> bool:
        """Return whether a study, series or instance with this UID is stored."""
        return bool(self._json("POST", "/tools/lookup", uid.encode()))

    def store(self, dicom: bytes) -> bool:
        """Store an object, keeping an existing one with its UID. Returns False if Orthanc rejects it."""
        return self._request("POST", "/instances", dicom).status_code not in _REJECTED

    def version(self) -> str:
        """Return Orthanc's own version."""
        return str(self._json("GET", "/system").get("Version", "unknown"))

    def _read_series(self, resource: str) -> tuple[str, str] | None:
        tags = (self._known(f"/series/{quote(resource)}") or {}).get("MainDicomTags")
        return None if tags is None else (str(tags.get("Modality", "")), str(tags.get("BodyPartExamined", "")))

    def _known(self, path: str) -> dict[str, Any] | None:
        response = self._request("GET", path)
        return None if response.status_code in _REJECTED else self._decode(response)

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        response = self._request(method, path, body)
        if response.status_code in _REJECTED:
            raise SourceError(f"{self.address} is not an Orthanc (status {response.status_code}); check the address")
        return self._decode(response)

    def _decode(self, response: requests.Response) -> Any:
        try:
            return response.json()
        except requests.JSONDecodeError:
            raise SourceError(f"{self.address} is not an Orthanc: it returns no JSON; check the address") from None

    def _request(
        self, method: str, path: str, body: bytes | None = None, *, accept: Set[int] = _REJECTED
    ) -> requests.Response:
        timeouts = (_CONNECT_SECONDS, _RESPONSE_SECONDS)
        try:
            response = self._session.request(
                method, self.address + path, data=body, timeout=timeouts, allow_redirects=False
            )
        except requests.RequestException as error:
            kind = type(error).__name__  # its message holds the whole address
            raise OrthancUnavailableError(
                f"{self.address} does not respond ({kind}); is Orthanc running there?"
            ) from None
        if response.status_code in {401, 403}:
            raise SourceError(
                f"{self.address} rejects the account; set {' and '.join(ACCOUNT_VARIABLES)} to one of RegisteredUsers "
                "in Orthanc's configuration"
            )
        if not response.ok and response.status_code not in accept:
            raise OrthancUnavailableError(f"{self.address} fails with status {response.status_code}; see Orthanc's log")
        return response


def _change(line: dict[str, Any]) -> Change:
    mark = f"{line['Date']}/{line['ID']}"
    return Change(int(line["Seq"]), str(line["ChangeType"]), str(line["ID"]), mark)


def _utf_8(text: str) -> str:
    return text.encode().decode("latin-1")  # requests encodes it as Latin-1: UTF-8 on the wire
