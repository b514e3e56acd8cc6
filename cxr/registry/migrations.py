"""Bring MLflow's databases to the tables of the installed MLflow, by its own migrations.

`mlflow db upgrade` takes the address as an argument, where every user of the machine can read the password.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cxr.common.errors import RegistryError

if TYPE_CHECKING:
    from sqlalchemy import Engine


def migrate_store(uri: str) -> None:
    """Migrate the database of runs and models. Raises RegistryError; the database is then as before."""
    from mlflow.store.db import utils

    with _opened(uri, "MLflow's runs and models") as engine:
        utils._upgrade_db(engine)  # type: ignore[no-untyped-call]


def migrate_accounts(uri: str) -> None:
    """Migrate the database of accounts and permissions. Raises RegistryError; the database is then as before."""
    from mlflow.server.auth.db import utils

    with _opened(uri, "MLflow's accounts") as engine:
        utils.migrate(engine, "head")


@contextmanager
def _opened(uri: str, what: str) -> Iterator[Engine]:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        yield engine
    except Exception as error:  # the driver's, SQLAlchemy's or Alembic's own
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise RegistryError(f"the database of {what} could not be migrated, and is as it was before: {said}") from error
    finally:
        engine.dispose()
