"""Bring the databases of MLflow and Prefect to the installed versions: a backup first, then all migrations in order.

Reads   the stores that the servers' own variables name (tasks/services/stores.py)
Writes  a backup below FOLDER (tasks/services/backup.py), then the databases: MLflow's runs and models, MLflow's
        accounts, Prefect

The servers must be stopped. Each database is migrated completely or not at all; after an interruption run the same
command again. To go back: the earlier release, and `services.restore` of the backup that this made.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where backups are kept")
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import logging
import os
import subprocess

from cxr.common.errors import RegistryError
from cxr.registry.migrations import migrate_accounts, migrate_store
from tasks.services.backup import back_up
from tasks.services.stores import Database, stores_of_environment

log = logging.getLogger("cxr.upgrade")


def migrate_prefect(uri: str) -> None:
    """Migrate Prefect's database by its own command, which takes the address from the environment."""
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    environment = {**os.environ, "PREFECT_SERVER_DATABASE_CONNECTION_URL": uri}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise RegistryError(f"Prefect's database could not be migrated: {lines[-1]}")


MIGRATIONS = {"mlflow": migrate_store, "mlflow_auth": migrate_accounts, "prefect": migrate_prefect}
"""Database -> its migration, in order."""


def upgrade(databases: tuple[Database, ...]) -> None:
    """Migrate every database that a server has filled; an empty one is filled by its server's first start.

    Raises:
        RegistryError: a migration failed; the databases before it are migrated, it and those after it are as before.
    """
    by_name = {database.name: database for database in databases}
    for name, migrate in MIGRATIONS.items():
        if by_name[name].is_empty:
            log.info("upgrade: %s is empty; its server makes the tables when it starts", name)
            continue
        migrate(by_name[name].uri)
        log.info("upgrade: %s is up to date", name)


def main() -> None:
    """Back up, then upgrade, what the environment names."""
    folder, stores = command_line().parse_args().folder, stores_of_environment()
    if used := [database.name for database in stores.databases if database.is_in_use]:
        raise RegistryError(f"somebody is connected to {', '.join(used)}; stop MLflow, Prefect and workers first")
    print(back_up(stores, folder))
    upgrade(stores.databases)


if __name__ == "__main__":
    run_command(main)
