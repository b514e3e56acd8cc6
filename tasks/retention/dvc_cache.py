"""DVC's cache as items: the objects that no dvc.lock in use names.

An object is in use where a dvc.lock names it, itself or in a folder's listing (`.dir`), and so is what a `.dvc` file of
the checkout names. A record of the run cache goes with the objects that it would restore.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from cxr.common.errors import DataError
from tasks.retention.items import Item

_FOLDER = ".dir"
_MD5 = re.compile(r"\bmd5: '?([0-9a-f]{32}(?:\.dir)?)\b")


def named_objects(locks: Iterable[Path]) -> set[str]:
    """Return the MD5 of every object that dvc.lock and .dvc files name, inputs too, without the contents of folders.

    Raises:
        DataError: a file cannot be read, so that what it names is not known.
    """
    found: set[str] = set()
    for lock in locks:
        try:
            found.update(_digests(YAML(typ="safe").load(lock.read_text(encoding="utf-8"))))
        except (YAMLError, ValueError, OSError) as error:
            raise DataError(f"{lock} cannot be read, so nothing of DVC's cache is removed: {error}") from error
    return found


def recorded_objects(locks: Iterable[Path]) -> set[str]:
    """Return what `named_objects` does, of files that have the digest with which they were recorded.

    Nothing can be wrong with those, so they are searched as text: parsing a thousand takes ten seconds.
    """
    return {digest for lock in locks for digest in _MD5.findall(lock.read_text(encoding="utf-8"))}


def _digests(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("md5"), str):
            yield value["md5"]
        for inner in value.values():
            yield from _digests(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _digests(inner)


def cache_items(cache: Path, named: set[str], kept_as: Callable[[Path], str]) -> Iterator[Item]:
    """Yield the objects of a cache; those in use are kept as "in use", for others `kept_as` decides.

    What a run at work removes meanwhile is left out.
    """
    used = named | {digest for name in named if name.endswith(_FOLDER) for digest in _listed(cache, name)}
    for path in sorted((cache / "files" / "md5").glob("??/*")):
        digest = path.parent.name + path.name
        try:
            size_bytes = path.stat().st_size
            reason = "in use" if digest in used else kept_as(path)
        except FileNotFoundError:
            continue

        def remove(path: Path = path) -> None:
            path.unlink(missing_ok=True)

        yield Item("DVC object", digest, size_bytes, reason, remove)


def _listed(cache: Path, name: str) -> Iterator[str]:
    listing = cache / "files" / "md5" / name[:2] / name[2:]
    if listing.is_file():
        yield from (entry["md5"] for entry in json.loads(listing.read_bytes()))


def forget_runs(cache: Path) -> None:
    """Remove the records of the run cache whose outputs are no longer there."""
    for record in sorted((cache / "runs").glob("??/*/*")):
        with suppress(FileNotFoundError):  # a run at work has removed it
            outputs = [out.get("md5", "") for out in (YAML(typ="safe").load(record.read_text()) or {}).get("outs", [])]
            if not all((cache / "files" / "md5" / digest[:2] / digest[2:]).is_file() for digest in outputs):
                record.unlink()
