"""What the worker needs of any PACS: a feed of numbered changes, objects by their line, and a place for answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote, urlsplit

import requests

from cxr.common.errors import SourceError
from cxr.pacs.transport import limited_session

ACCOUNT_VARIABLES = ("CXR_PACS_USER", "CXR_PACS_PASSWORD")

REJECTED = frozenset({400, 404, 406, 409, 410, 413, 415, 422})
"""Statuses that concern one object; any other, such as 507 for a full disk, stops the worker until it is resolved."""

NEW_INSTANCE = "NewInstance"
"""The kind of a change that the worker looks at."""


class PacsUnavailableError(SourceError):
    """The PACS does not respond or cannot at the moment; the request may be retried."""


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
    """An object as in the PACS's index; its file is not read. Missing values are empty."""

    study_uid: str
    sop_uid: str
    modality: str
    body_part: str


class Pacs(Protocol):
    """A PACS with a feed of its new objects; for one thread.

    Every method raises PacsUnavailableError if the PACS does not respond, and SourceError if it rejects the account or
    is none.
    """

    address: str
    """Without user and password, safe to print."""

    def changes(self, since: int, limit: int) -> Changes:
        """Return up to `limit` lines of the feed after line `since`; all up to `since` are processed."""

    def last_change(self) -> int:
        """Return the number of the newest line; 0 before the first."""

    def line(self, number: int) -> Change | None:
        """Return one line of the feed; None if it was deleted with its object."""

    def instance(self, resource: str) -> Instance | None:
        """Return an object; None if it was deleted."""

    def file(self, resource: str) -> bytes | None:
        """Return the DICOM file of an object; None if it was deleted or is missing from the storage."""

    def sender(self, resource: str) -> str:
        """Return who sent an object, as far as the PACS knows, for the audit log."""

    def report_uids(self, study_uid: str) -> frozenset[str]:
        """Return the UIDs of all Structured Reports of a study."""

    def has_series(self, uid: str) -> bool:
        """Return whether a series with this UID is stored."""

    def store(self, dicom: bytes) -> bool:
        """Store an object, keeping an existing one with its UID. Returns False if the PACS rejects it."""


def web_address(url: str) -> tuple[str, requests.Session]:
    """Return an address without its account, and a session that signs in with it.

    Args:
        url: http(s)://[user:password@]host[:port][/path]; `CXR_PACS_USER` and `CXR_PACS_PASSWORD` take precedence.

    Raises:
        SourceError: the address is invalid.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SourceError("the address of the PACS is invalid; expected one such as http://127.0.0.1:8042")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    session = limited_session()
    session.trust_env = False  # images must not go through a proxy, and .netrc must not override the account
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    given = [os.environ.get(name) for name in ACCOUNT_VARIABLES]
    user = given[0] or unquote(parts.username or "")
    if user:
        password = given[1] or unquote(parts.password or "")
        session.auth = (_utf_8(user), _utf_8(password))
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}", session


def rejected_account(address: str) -> SourceError:
    """Return the error for a status 401 or 403."""
    return SourceError(
        f"{address} rejects the account; set {' and '.join(ACCOUNT_VARIABLES)} to one that it knows (Orthanc: one of "
        "RegisteredUsers in its configuration)"
    )


def _utf_8(text: str) -> str:
    return text.encode().decode("latin-1")  # requests encodes it as Latin-1: UTF-8 on the wire
