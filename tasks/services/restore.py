"""Restore a backup of tasks.services.backup onto empty services.

Reads   FOLDER/<time>, and the addresses that the servers' own variables name (tasks/services/stores.py)
Writes  the databases and the bucket

First infra/databases.sh, then this, then start MLflow and Prefect. A database that holds tables is never written to. A
restore that was killed goes on when the same command is run again.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryFile

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument(
        "backup", type=Path, metavar="FOLDER/TIME", help="one backup, such as backups/2026-11-26T03-00-00Z"
    )
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cxr.common.errors import DataError, RegistryError
from cxr.common.files import read_json, sha256_of
from cxr.common.s3 import Prefix, RemoteObject
from tasks.services.backup import RECORD, TABLE, StoredObject, path_of, read_table
from tasks.services.stores import Database, Stores, stores_of_environment

_CONNECTIONS = 8

log = logging.getLogger("cxr.restore")


def restore(stores: Stores, backup: Path) -> None:
    """Write a backup into empty stores. The bucket comes first: what the databases refer to is there before them.

    Raises:
        DataError: the backup is incomplete or changed; nothing was written.
        RegistryError: a database is not empty; nothing was written.
    """
    record = _checked(backup)
    for database in stores.databases:
        database.wait_for_script()
    waiting = [database for database in stores.databases if database.comment != _mark(record)]
    if full := [database.name for database in waiting if not database.is_empty]:
        raise RegistryError(
            f"the database {', '.join(full)} is not empty; stop its server, drop it, make it again by "
            "infra/databases.sh, then run the same command"
        )
    if not waiting:  # and the bucket, which came before them; what was written to it since stays
        log.info(
            "restore: the databases were restored from %s before, so nothing was written; to do it again, stop the "
            "servers, drop the databases and make them by infra/databases.sh",
            record["name"],
        )
        return
    objects = read_table(backup / TABLE)
    for place, address in stores.prefixes.items():
        _upload([one for one in objects if one.place == place], address, backup.parent)
    for database in waiting:
        _fill(database, backup / f"{database.name}.dump", _mark(record))
        log.info("restore: database %s", database.name)


def _fill(database: Database, dump: Path, mark: str) -> None:
    """Write a dump and its mark in one transaction: psql goes on when the process that started it is killed."""
    # An extension and its comment belong to the administrator, who has made it.
    options = ["--no-owner", "--no-privileges", "--no-comments", "--file=-"]
    # A file without a name, since accounts are in it and a kill must leave nothing; beside the dump: there is room.
    with TemporaryFile(dir=dump.parent) as script:
        database.run("pg_restore", *options, str(dump), stdout=script)
        script.seek(0)
        database.run_script(script, f"COMMENT ON DATABASE \"{database.address.database}\" IS '{mark}'")


def _mark(record: Mapping[str, Any]) -> str:
    return f"restored from {record['name']}"


def _checked(backup: Path) -> dict[str, Any]:
    """Return the record of a backup all of whose files are as they were written."""
    if not (backup / RECORD).is_file():
        raise DataError(f"{backup} is no backup: it has no {RECORD}; expected the folder that `backup` has printed")
    record: dict[str, Any] = read_json(backup / RECORD)
    files = {f"{name}.dump": digest for name, digest in record["databases"].items()} | {TABLE: record["table"]}
    wrong = [name for name, digest in files.items() if not _is(backup / name, digest)]
    wrong += [one.path for one in read_table(backup / TABLE) if not path_of(backup.parent, one.sha256).is_file()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(f"{backup} is not as it was written: {', '.join(wrong[:3])}{more}; take another backup")
    return record


def _is(file: Path, sha256: str) -> bool:
    return file.is_file() and sha256_of(file) == sha256


def _upload(objects: list[StoredObject], address: str, folder: Path) -> None:
    """Upload what is not there yet, each content checked against its digest first."""
    prefix = Prefix(address)
    present = prefix.objects()

    def upload(one: StoredObject) -> None:
        file = path_of(folder, one.sha256)
        if one.path in present and _is_same(one, present[one.path], file.stat().st_size):
            return
        if sha256_of(file) != one.sha256:
            raise DataError(f"{file} has been changed since it was backed up ({one.path}); take another backup")
        prefix.upload(file, one.path)

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(upload, objects))
    log.info("restore: %d objects below %s", len(objects), address)


def _is_same(one: StoredObject, present: RemoteObject, size_bytes: int) -> bool:
    """Say whether the bucket still holds the content; the paths of DVC's remote are digests of theirs.

    An ETag may differ all the same, as of an encrypted object: it is then uploaded once more.
    """
    return present.size_bytes == size_bytes and (one.place == "dvc" or present.etag == one.etag)


def main() -> None:
    """Restore into what the environment names."""
    restore(stores_of_environment(), command_line().parse_args().backup)


if __name__ == "__main__":
    run_command(main)
