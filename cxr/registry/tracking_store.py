"""The tracking store itself: where it is, whether it answers, and its errors as one line.

The store is `MLFLOW_TRACKING_URI`, or `mlruns/mlflow.db` below the current directory with the artifacts in
`mlruns/artifacts`. `CXR_MLRUNS` names another `mlruns` folder: a run in a git worktree shares the main checkout's.

MLflow takes 4 seconds to import and reads some of its settings as it is imported. So no module of cxr.registry but
pyfunc imports it at module level; functions import its parts after `client()`, which makes the settings.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from cxr.common.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

STORE_VARIABLE = "MLFLOW_TRACKING_URI"
FOLDER_VARIABLE = "CXR_MLRUNS"

# MLflow's own limits: 7 retries with back-off keep a dead server's client busy for four minutes.
_CLIENT_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # It prints the address with the password in it as a run ends, and what a stage prints is in Prefect's log.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_CONNECT_SECONDS = 5
_CONNECT_LIMITS = {"pg8000": "timeout", **dict.fromkeys(("psycopg", "psycopg2", "pymysql"), "connect_timeout")}
"""What a driver calls its limit of time."""


def mlruns_folder() -> Path:
    """Return the folder of the local store: `CXR_MLRUNS`, else `mlruns` in the current directory."""
    return Path(os.environ.get(FOLDER_VARIABLE) or "mlruns")


def tracking_uri() -> str:
    """Return the address of the tracking store and registry with its credentials: never print it."""
    return os.environ.get(STORE_VARIABLE) or f"sqlite:///{mlruns_folder() / 'mlflow.db'}"


def is_server(uri: str) -> bool:
    """Say whether an address is that of an MLflow server, not of a database."""
    return uri.startswith(("http://", "https://"))


def public_uri() -> str:
    """Return the address of the store as it may be printed and written: no user, no password, no query.

    The local store is always `sqlite:///mlruns/mlflow.db`, so that a receipt is the same on every machine.
    """
    uri = tracking_uri()
    return "sqlite:///mlruns/mlflow.db" if _is_local(uri) else without_credentials(uri)


def _is_local(uri: str) -> bool:
    """Say whether an address is that of the local store, however it is written."""
    local = (mlruns_folder() / "mlflow.db").resolve()
    return uri.startswith("sqlite:///") and Path(uri.removeprefix("sqlite:///")).resolve() == local


def without_credentials(uri: str) -> str:
    """Return `uri` without its user, password and query."""
    return re.sub(r"://[^/]*@", "://", uri).partition("?")[0]


def client() -> MlflowClient:
    """Return a client of the store; the local store is made when it is missing.

    Raises:
        RegistryError: the store does not answer within seconds.
    """
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    take_password_out_of_address()
    uri = tracking_uri()
    with store_errors("opening it"):
        _check_answers(uri)
        from mlflow import MlflowClient

        # Warnings of each retry, and a traceback for each lost connection, would bury the one line that says what is
        # wrong.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        for library in ("sqlalchemy.pool", "mlflow.store.db.utils"):
            logging.getLogger(library).setLevel(logging.CRITICAL)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def take_password_out_of_address() -> None:
    """Move a server's account from the address to MLflow's own variables: its threads log the address on failure."""
    parts = urlsplit(os.environ.get(STORE_VARIABLE) or "")
    if parts.scheme in {"http", "https"} and parts.username and parts.password and parts.hostname:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        os.environ[STORE_VARIABLE] = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@contextmanager
def named_to_mlflow() -> Iterator[None]:
    """Set the store for MLflow's own functions; some read no other setting (3.17: versions of logged models).

    MLflow writes the address into the environment for child processes and leaves it there: it is restored.
    """
    import mlflow

    given = os.environ.get(STORE_VARIABLE)
    mlflow.set_tracking_uri(tracking_uri())
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # None is its start value
        if given is not None:
            os.environ[STORE_VARIABLE] = given


def fetch_file(root: str, path: str, target: Path) -> Path | None:
    """Copy one file below an artifact location into `target`; None where there is no such file.

    Raises:
        RegistryError: the store does not answer.
    """
    client()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with store_errors(f"fetching {path}"), named_to_mlflow():
        files = get_artifact_repository(root)
        if path not in {file.path for file in files.list_artifacts(path.rpartition("/")[0])}:
            return None
        target.mkdir(parents=True, exist_ok=True)
        return Path(files.download_artifacts(path, str(target)))  # type: ignore[no-untyped-call]


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Turn whatever the store raises inside the block into a RegistryError without credentials."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # the store may be a file, a database or a server, each with errors of its own
        if _account_is_rejected(error):
            raise RegistryError(
                f"the tracking store {public_uri()} rejected the account while {doing}; set MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD to an account with the right to do it, then run the same command again"
            ) from None
        if (full := os.strerror(errno.ENOSPC)) in str(error):  # MLflow's own first line does not say so
            raise RegistryError(
                f"the tracking store {public_uri()} failed while {doing}: {full}, in the store or on this machine in "
                f"{tempfile.gettempdir()}; free some space, then run the same command again"
            ) from None
        raise RegistryError(
            f"the tracking store {public_uri()} failed while {doing}: {_plain(error)}; "
            f"check that it runs and that {STORE_VARIABLE} is right, then run the same command again"
        ) from None


def unless_absent(ask: Callable[[], T]) -> T | None:
    """Return what the store answers, None where it has no such thing."""
    try:
        return ask()
    except Exception as error:
        if getattr(error, "error_code", "") in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise


def unless_present(make: Callable[[], T]) -> T | None:
    """Return what the store has made, None where it has one of that name already."""
    try:
        return make()
    except Exception as error:
        if getattr(error, "error_code", "") == "RESOURCE_ALREADY_EXISTS":
            return None
        raise


def _account_is_rejected(error: Exception) -> bool:
    """Say whether a server answered 401 or 403: no account, a wrong password, or no right."""
    if getattr(error, "error_code", "") in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        return True
    return bool(re.search(r"failed with error code 40[13]\b|\b40[13] Client Error", str(error)))


def _check_answers(uri: str) -> None:
    """Fail at once where MLflow would retry for minutes."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    elif parts.hostname:
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme.partition("+")[0])
        if port:
            socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
        if not is_server(uri):
            _sign_in(uri)


@cache  # once a process: MLflow opens its connections once, and then keeps them
def _sign_in(uri: str) -> None:
    """Open a connection to a database that may stay silent or reject the account: MLflow would try for an hour."""
    import sqlalchemy

    limit = _CONNECT_LIMITS.get(sqlalchemy.make_url(uri).get_driver_name())
    if limit:
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args={limit: _CONNECT_SECONDS})
        engine.connect().close()


def _plain(error: Exception) -> str:
    """Return the first line of an error, short, without any part of the store's credentials."""
    uri = tracking_uri()
    text = str(error).strip() or type(error).__name__
    text = text.replace(uri, public_uri()).splitlines()[0][:300]
    password = urlsplit(uri).password
    return without_credentials(text.replace(password, "***") if password else text)
