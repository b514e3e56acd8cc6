"""Back up a team's stores: MLflow's and Prefect's databases, MLflow's files, DVC's remote.

Reads   the stores that the servers' own variables name (tasks/services/stores.py); the servers may run
Writes  FOLDER/<time>: dumps of the databases, objects.csv and backup.json; FOLDER/objects: the contents of the objects,
        each once, named by its SHA-256, shared by all backups of the folder

A backup appears completely or not at all. Only objects that are new since the last one are downloaded. The databases
come first, since what they refer to is in the bucket before.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from cxr.common.cli import answer_help, command_parser, run_command


def command_line() -> ArgumentParser:
    """Return the parser of this command."""
    parser = command_parser(sys.modules[__name__])
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="where backups are kept; on another disk or machine"
    )
    return parser


if __name__ == "__main__":
    answer_help(command_line())

import csv
import logging
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from cxr.common.files import atomic_folder, sha256_of, write_json
from cxr.common.s3 import Prefix, RemoteObject
from tasks.services.stores import Stores, stores_of_environment

OBJECTS, TABLE, RECORD = "objects", "objects.csv", "backup.json"
_CONNECTIONS = 8

log = logging.getLogger("cxr.backup")


@dataclass(frozen=True)
class StoredObject:
    """An object of the bucket as a backup lists it; `path` is below the place's prefix."""

    place: str
    path: str
    etag: str
    sha256: str


def back_up(stores: Stores, folder: Path) -> Path:
    """Make a backup below `folder`; return its own folder."""
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    with atomic_folder(folder / name) as partial:
        dumps = {}
        for database in stores.databases:
            file = partial / f"{database.name}.dump"
            database.run("pg_dump", "--format=custom", f"--file={file}")
            dumps[database.name] = sha256_of(file)
            log.info("backup: database %s, %.1f MB", database.name, file.stat().st_size / 1e6)
        known = {(one.place, one.path, one.etag): one.sha256 for one in _listed_before(folder)}
        listed = [one for place in stores.prefixes for one in _copy(place, stores.prefixes[place], folder, known)]
        _write_table(partial / TABLE, listed)
        write_json(
            partial / RECORD,
            {"name": name, "databases": dumps, "places": list(stores.prefixes), "table": sha256_of(partial / TABLE)},
        )
    log.info("backup: %s, %d objects", folder / name, len(listed))
    return folder / name


def path_of(folder: Path, sha256: str) -> Path:
    """Return where `FOLDER/objects` keeps a content."""
    return folder / OBJECTS / sha256[:2] / sha256


def read_table(path: Path) -> list[StoredObject]:
    """Read objects.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return [StoredObject(**row) for row in csv.DictReader(file)]


def _write_table(path: Path, listed: list[StoredObject]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["place", "path", "etag", "sha256"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(one) for one in listed)


def _listed_before(folder: Path) -> Iterator[StoredObject]:
    """Yield the objects of the newest backup whose content is still there."""
    for table in sorted(folder.glob(f"2*/{TABLE}"))[-1:]:
        yield from (one for one in read_table(table) if path_of(folder, one.sha256).is_file())


def _copy(place: str, address: str, folder: Path, known: dict[tuple[str, str, str], str]) -> list[StoredObject]:
    """Copy the objects below an address that are not known yet; return all of them."""
    prefix = Prefix(address)
    objects = sorted(prefix.objects().items())

    def copied(item: tuple[str, RemoteObject]) -> StoredObject | None:
        path, remote = item
        digest = known.get((place, path, remote.etag)) or _download(prefix, remote, folder)
        return StoredObject(place, path, remote.etag, digest) if digest else None

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return [one for one in pool.map(copied, objects) if one]


def _download(prefix: Prefix, remote: RemoteObject, folder: Path) -> str:
    """Put an object's content into `FOLDER/objects`; return its SHA-256, "" where it has been deleted meanwhile."""
    (folder / OBJECTS).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder / OBJECTS) as scratch:
        fetched = Path(scratch) / "object"
        try:
            prefix.download(remote, fetched)
        except FileNotFoundError:
            return ""
        digest = sha256_of(fetched)
        path_of(folder, digest).parent.mkdir(exist_ok=True)
        fetched.replace(path_of(folder, digest))
    return digest


def main() -> None:
    """Back up what the environment names."""
    print(back_up(stores_of_environment(), command_line().parse_args().folder))


if __name__ == "__main__":
    run_command(main)
