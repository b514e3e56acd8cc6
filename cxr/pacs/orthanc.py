"""An Orthanc, a small PACS, over its REST API: what came in, in order, and answers stored beside it.

Nothing here says a patient's name, number or UID: errors and log lines name the address without its password, and
images by Orthanc's own ID, a digest.
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

_CONNECT_SECONDS, _ANSWER_SECONDS = 10, 120
_LOST = 500  # also what Orthanc says of a file that its storage has lost: the others are well
_REFUSED = frozenset({400, 404, 409, 415, 422})
"""Statuses that speak of one object; any other, such as 507 for a full disk, stops the link until it is mended."""


class OrthancAwayError(SourceError):
    """Orthanc does not answer, or cannot just now: what was asked may be asked again later."""


@dataclass(frozen=True)
class Change:
    """A line of the feed. `number` grows; `mark` tells the line from another database's of that number."""

    number: int
    kind: str
    resource: str
    mark: str


@dataclass(frozen=True)
class Changes:
    """Lines of the feed; `last`: where to go on; `done`: there are no more now."""

    lines: tuple[Change, ...]
    last: int
    done: bool


@dataclass(frozen=True)
class Instance:
    """What Orthanc's index says of one object; nothing is read from its file. Texts are empty where it is silent."""

    sop_uid: str
    modality: str
    body_part: str


class Orthanc:
    """A client of one Orthanc; for one thread.

    Args:
        url: http(s)://[user:password@]host[:port]; `CXR_PACS_USER` and `CXR_PACS_PASSWORD` come first.

    Raises:
        SourceError: it is no such address.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            parts, port = urlsplit(""), ""
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SourceError("expected a PACS such as http://127.0.0.1:8042, got something else; check the address")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.address = f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"
        """The address without user and password, fit for the screen."""
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy is given an image, and no .netrc another password
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        given = [os.environ.get(name) for name in ACCOUNT_VARIABLES]
        user = given[0] or unquote(parts.username or "")
        if user:
            password = given[1] or unquote(parts.password or "")
            self._session.auth = (_utf_8(user), _utf_8(password))
        self._series = lru_cache(maxsize=256)(self._read_series)

    def changes(self, since: int, limit: int) -> Changes:
        """Return up to `limit` lines of the feed after line `since`."""
        said = self._json("GET", f"/changes?since={since}&limit={limit}")
        lines = tuple(_change(line) for line in said["Changes"])
        # Older versions say 0 or `since` when there is nothing new; the place never goes back here.
        return Changes(lines, max([since, *(line.number for line in lines)]), bool(said["Done"]))

    def last_change(self) -> int:
        """Return the number of the newest line; 0 before the first."""
        return int(self._json("GET", "/changes?last")["Last"])

    def line(self, number: int) -> Change | None:
        """Return one line of the feed; None where it is gone with what it told of."""
        found = self.changes(number - 1, 1).lines
        return found[0] if found and found[0].number == number else None

    def instance(self, resource: str) -> Instance | None:
        """Return what the index says of an instance; None where it has been deleted."""
        found = self._known(f"/instances/{quote(resource)}")
        series = self._series(found["ParentSeries"]) if found else None
        if found is None or series is None:
            return None
        modality, body_part = series
        return Instance(str(found["MainDicomTags"].get("SOPInstanceUID", "")), modality, body_part)

    def file(self, resource: str) -> bytes | None:
        """Return an instance's DICOM file; None where it has been deleted, or is lost from the storage."""
        answer = self._asked("GET", f"/instances/{quote(resource)}/file", may_be=_REFUSED | {_LOST})
        return answer.content if answer.ok else None

    def has(self, uid: str) -> bool:
        """Say whether something with this UID is stored: a study, a series or an instance."""
        return bool(self._json("POST", "/tools/lookup", uid.encode()))

    def store(self, dicom: bytes) -> bool:
        """Store an object; one that is stored already stays. Says whether it is there now: False means refused."""
        return self._asked("POST", "/instances", dicom).status_code not in _REFUSED

    def version(self) -> str:
        """Return Orthanc's own version."""
        return str(self._json("GET", "/system").get("Version", "unknown"))

    def _read_series(self, resource: str) -> tuple[str, str] | None:
        tags = (self._known(f"/series/{quote(resource)}") or {}).get("MainDicomTags")
        return None if tags is None else (str(tags.get("Modality", "")), str(tags.get("BodyPartExamined", "")))

    def _known(self, path: str) -> dict[str, Any] | None:
        answer = self._asked("GET", path)
        return None if answer.status_code in _REFUSED else self._decoded(answer)

    def _json(self, method: str, path: str, body: bytes | None = None) -> Any:
        answer = self._asked(method, path, body)
        if answer.status_code in _REFUSED:
            raise SourceError(f"{self.address} answers like no Orthanc ({answer.status_code}); check the address")
        return self._decoded(answer)

    def _decoded(self, answer: requests.Response) -> Any:
        try:
            return answer.json()
        except requests.JSONDecodeError:
            raise SourceError(f"{self.address} answers like no Orthanc: not in JSON; check the address") from None

    def _asked(
        self, method: str, path: str, body: bytes | None = None, *, may_be: Set[int] = _REFUSED
    ) -> requests.Response:
        times = (_CONNECT_SECONDS, _ANSWER_SECONDS)
        try:
            answer = self._session.request(method, self.address + path, data=body, timeout=times, allow_redirects=False)
        except requests.RequestException as error:
            kind = type(error).__name__  # its words hold the whole address
            raise OrthancAwayError(f"{self.address} does not answer ({kind}); start Orthanc there") from None
        if answer.status_code in {401, 403}:
            raise SourceError(
                f"{self.address} refuses user and password; set {' and '.join(ACCOUNT_VARIABLES)} to those of "
                "RegisteredUsers in Orthanc's configuration"
            )
        if not answer.ok and answer.status_code not in may_be:
            raise OrthancAwayError(f"{self.address} cannot do its work now ({answer.status_code}); see Orthanc's log")
        return answer


def _change(line: dict[str, Any]) -> Change:
    mark = f"{line['Date']}/{line['ID']}"
    return Change(int(line["Seq"]), str(line["ChangeType"]), str(line["ID"]), mark)


def _utf_8(word: str) -> str:
    return word.encode().decode("latin-1")  # which requests encodes again: UTF-8 on the wire
