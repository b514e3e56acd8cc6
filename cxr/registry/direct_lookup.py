"""One version, read from the store without MLflow's client, whose import takes three seconds.

    local store   the tables of MLflow's model registry, in one read transaction; only in the layout known here
    server        MLflow's REST API: `registered-models/get` and `model-versions/get`

Nothing is kept between calls, so a moved alias, a changed tag and a deleted version are seen at once. Only the ordinary
answer is given: the version is there, and the alias `champion` agrees with a sound audit log. For everything else, such
as an alias moved by hand, a locked store or a rejected account, `find` returns None: cxr.registry.versions then asks
MLflow, which also finds the words for what is wrong. A server that sends its answer byte by byte is not asked again,
because MLflow's client would wait for ever.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlencode, urlsplit
from weakref import WeakSet

from cxr.common.deadline import LateError, cut_after, noting_sockets
from cxr.common.errors import RegistryError
from cxr.registry import tracking_store
from cxr.registry.audit_log_store import agrees
from cxr.registry.stored_names import CHAMPION, MODEL

if TYPE_CHECKING:
    from http.client import HTTPConnection
    from socket import socket

LAYOUT = "dc11669786a5"
"""The revision of the tables of MLflow 3.17 (its table `alembic_version`)."""

_WAIT_SECONDS = 5
_ANSWER_SECONDS = 60.0
"""Of all that is asked for one version."""
_KNOWN_SETTINGS = {
    tracking_store.STORE_VARIABLE,
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
}
_DELETED = "Deleted_Internal"  # the stage of a version whose row MLflow has emptied


@dataclass(frozen=True)
class StoredVersion:
    """A version as it is stored; the attributes are those of MLflow's own ModelVersion."""

    version: str
    run_id: str
    source: str
    tags: Mapping[str, str]
    model_id: str = ""


@dataclass(frozen=True)
class _Model:
    """The registered model: alias -> version number, and its tags."""

    aliases: Mapping[str, str]
    tags: Mapping[str, str]


class _Store(Protocol):
    """Both methods raise LookupError where there is no such thing."""

    def model(self) -> _Model: ...

    def version(self, number: str) -> StoredVersion: ...


def find(which: str) -> StoredVersion | None:
    """Return a version by number or alias; None where MLflow has to be asked, see the module.

    Raises:
        RegistryError: a server began an answer and did not end it in time.
    """
    if _has_other_settings():
        return None
    tracking_store.take_password_out_of_address()
    from http.client import HTTPException  # only a server needs it

    try:
        with _opened(tracking_store.tracking_uri()) as store:
            return store.version(which if which.isdecimal() else _number_of(which, store.model()))
    except (HTTPException, LookupError, OSError, OverflowError, TypeError, ValueError, sqlite3.Error):
        return None


def _has_other_settings() -> bool:
    """Say whether MLflow's client was told to reach the store in a way that is not known here, or another workspace."""
    other = ("MLFLOW_TRACKING_", "MLFLOW_WORKSPACE", "MLFLOW_ENABLE_WORKSPACES")
    return any(name.startswith(other) and name not in _KNOWN_SETTINGS for name in os.environ)


def _number_of(alias: str, model: _Model) -> str:
    if alias == CHAMPION and not agrees(model.aliases[alias], model.tags):
        raise LookupError("the audit log contradicts the alias or is not sound")
    return model.aliases[alias]


def _opened(uri: str) -> contextlib.AbstractContextManager[_Store]:
    return _server(uri) if tracking_store.is_server(uri) else _local_store(uri)


@contextlib.contextmanager
def _local_store(uri: str) -> Iterator[_Store]:
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not path.is_file():
        raise LookupError("no local store")
    address = f"{path.resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS, isolation_level=None)) as opened:
        opened.execute("BEGIN")  # all that follows is of one moment
        if opened.execute("SELECT version_num FROM alembic_version").fetchall() != [(LAYOUT,)]:
            raise LookupError("tables of another release of MLflow")
        yield _LocalStore(opened)


@contextlib.contextmanager
def _server(uri: str) -> Iterator[_Store]:
    from http.client import HTTPConnection, HTTPSConnection

    parts = urlsplit(uri)
    sockets: WeakSet[socket] = WeakSet()
    connect = noting_sockets(HTTPSConnection if parts.scheme == "https" else HTTPConnection, sockets)
    with contextlib.closing(connect(parts.hostname or "", parts.port, timeout=_WAIT_SECONDS)) as connection:
        try:
            with cut_after(_ANSWER_SECONDS, sockets):
                yield _Server(connection, f"{parts.path.rstrip('/')}/api/2.0/mlflow")
        except LateError as late:
            raise RegistryError(
                f"the tracking store {tracking_store.public_uri()} sends {late}; check that it is not overloaded, then "
                "run the same command again"
            ) from None


class _LocalStore:
    """MLflow's SQLite database."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def model(self) -> _Model:
        aliases = self._rows("SELECT alias, CAST(version AS TEXT) FROM registered_model_aliases")
        return _Model(dict(aliases), dict(self._rows("SELECT key, value FROM registered_model_tags")))

    def version(self, number: str) -> StoredVersion:
        of_number = " AND version = ?"
        columns = "SELECT run_id, source, current_stage FROM model_versions"
        ((run_id, source, stage),) = self._rows(columns, of_number, int(number))
        if stage == _DELETED:
            raise LookupError(f"version {number} was deleted")
        tags = self._rows("SELECT key, value FROM model_version_tags", of_number, int(number))
        return StoredVersion(str(int(number)), run_id or "", source or "", dict(tags))

    def _rows(self, select: str, condition: str = "", *values: int) -> list[Any]:
        where = " WHERE workspace = 'default' AND name = ?"
        return self._connection.execute(select + where + condition, (MODEL, *values)).fetchall()


class _Server:
    """MLflow's server."""

    def __init__(self, connection: HTTPConnection, path: str) -> None:
        self._connection, self._path = connection, path

    def model(self) -> _Model:
        found = self._get("registered-models/get", name=MODEL)["registered_model"]
        aliases = {each["alias"]: each["version"] for each in found.get("aliases", ())}
        return _Model(aliases, _tags(found))

    def version(self, number: str) -> StoredVersion:
        found = self._get("model-versions/get", name=MODEL, version=number)["model_version"]
        return StoredVersion(
            found["version"], found.get("run_id", ""), found.get("source", ""), _tags(found), found.get("model_id", "")
        )

    def _get(self, what: str, **query: str) -> Any:
        """Return the server's answer. A redirect is not followed: the account is for this server alone."""
        self._connection.request("GET", f"{self._path}/{what}?{urlencode(query)}", headers=_account())
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise LookupError(f"status {answer.status}")
        return json.loads(content)


def _tags(found: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in found.get("tags", ())}


def _account() -> dict[str, str]:
    """Return the header with the account or the token that MLflow's client would send."""
    user, password, token = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN"))
    if user and password:
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}
