"""The stores of a team as its servers' own variables name them, and PostgreSQL's programs run on them.

MLFLOW_BACKEND_STORE_URI, MLFLOW_AUTH_DATABASE_URI      MLflow's databases
PREFECT_SERVER_DATABASE_CONNECTION_URL                  Prefect's database
MLFLOW_ARTIFACTS_DESTINATION                            s3://bucket/prefix: MLflow's files
CXR_DVC_REMOTE                                          s3://bucket/prefix: DVC's remote; left out where it is not set
AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...                the bucket, as boto3 reads them
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from cxr.common.errors import ParamsError, RegistryError

_DATABASES = {
    "mlflow": "MLFLOW_BACKEND_STORE_URI",
    "mlflow_auth": "MLFLOW_AUTH_DATABASE_URI",
    "prefect": "PREFECT_SERVER_DATABASE_CONNECTION_URL",
}
_PREFIXES = {"artifacts": "MLFLOW_ARTIFACTS_DESTINATION", "dvc": "CXR_DVC_REMOTE"}
_OPTIONAL = {"CXR_DVC_REMOTE"}

_TABLES = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
_OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
# Any number will do; an advisory lock is one database's own and ends with its transaction.
_LOCK = "SELECT pg_advisory_xact_lock(20261126)"
_COMMENT = (
    "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = current_database()"
)


@dataclass(frozen=True)
class Database:
    """One PostgreSQL database; `address` holds its owner's password."""

    name: str
    address: URL

    @property
    def uri(self) -> str:
        """The address with its password, for libraries: never print it."""
        return self.address.render_as_string(hide_password=False)

    def run(
        self, program: str, *arguments: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None
    ) -> str:
        """Run psql, pg_dump or pg_restore on the database, the password in its environment; return what it prints,
        unless that goes to a file.

        Raises:
            ParamsError: the program is not installed.
            RegistryError: it failed; carries its last line.
        """
        if shutil.which(program) is None:
            raise ParamsError(f"{program} is not on PATH; install PostgreSQL's client programs, or use the image")
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, **self._settings()},
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RegistryError(f"{program} failed on the database {self.name}: {said}")
        return done.stdout or ""

    def ask(self, query: str) -> str:
        """Return the one value of a query."""
        return self.run("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", query).strip()

    def run_script(self, script: IO[bytes], last: str) -> None:
        """Run a file of SQL and one more statement in one transaction, which `wait_for_script` waits for."""
        options = ["--no-psqlrc", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1"]
        self.run("psql", *options, f"--command={_LOCK}", "--file=-", f"--command={last}", stdin=script)

    def wait_for_script(self) -> None:
        """Return when no script is running, one that a killed process has left behind included."""
        self.ask(_LOCK)

    @property
    def is_empty(self) -> bool:
        """Whether no server has made its tables yet."""
        return self.ask(_TABLES) == "0"

    @property
    def is_in_use(self) -> bool:
        """Whether anybody else is connected."""
        return self.ask(_OTHERS) != "0"

    @property
    def comment(self) -> str:
        """The database's comment, "" for none."""
        return self.ask(_COMMENT)

    def _settings(self) -> dict[str, str]:
        address = self.address
        given = {
            "PGHOST": address.host,
            "PGPORT": str(address.port or 5432),
            "PGUSER": address.username,
            "PGPASSWORD": str(address.password) if address.password is not None else None,
            "PGDATABASE": address.database,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Stores:
    """The databases, MLflow's two and Prefect's, and place -> s3://bucket/prefix."""

    databases: tuple[Database, ...]
    prefixes: Mapping[str, str]


def stores_of_environment() -> Stores:
    """Return what the environment names.

    Raises:
        ParamsError: a variable is missing or not an address of the right kind; names each.
    """
    variables = [*_DATABASES.values(), *_PREFIXES.values()]
    if missing := [name for name in variables if not os.environ.get(name) and name not in _OPTIONAL]:
        raise ParamsError(f"{', '.join(missing)}: set as for the servers (infra/README.md)")
    databases = tuple(Database(name, _postgresql(variable)) for name, variable in _DATABASES.items())
    prefixes = {place: os.environ[variable] for place, variable in _PREFIXES.items() if os.environ.get(variable)}
    for place, address in prefixes.items():
        if not address.startswith("s3://"):
            raise ParamsError(f"{_PREFIXES[place]} is {address}; expected s3://bucket/prefix")
    return Stores(databases, prefixes)


def _postgresql(variable: str) -> URL:
    try:
        address = make_url(os.environ[variable])
    except ArgumentError:
        raise ParamsError(f"{variable} is no address; expected postgresql+DRIVER://USER:...@HOST/NAME") from None
    if not address.drivername.startswith("postgresql"):
        raise ParamsError(f"{variable} is of {address.drivername}; only PostgreSQL can be backed up")
    return address
