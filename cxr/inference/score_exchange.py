"""Parts of scored images in a bucket, by which machines without a common folder share them.

`<address>/version-<n>/<part>.parquet`: names and bytes are those of cxr/inference/score_store.py. A part never changes,
so parts of one name are equal, and each object appears whole or not at all.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from cxr.common.errors import SourceError
from cxr.common.files import atomic_file
from cxr.inference.score_store import parts_below

if TYPE_CHECKING:
    from cxr.common.s3 import RemoteObject

_AT_ONCE = 8


def exchanged_parts(address: str) -> dict[str, list[RemoteObject]]:
    """Return name of a version's folder -> its parts in the exchange `address`.

    Raises:
        SourceError: the bucket cannot be reached or denies access.
    """
    from cxr.common.s3 import Prefix

    found: dict[str, list[RemoteObject]] = {}
    for path, item in sorted(Prefix(address).objects().items()):
        folder, _, name = path.partition("/")
        if re.fullmatch(r"version-\d+", folder) and _is_part(name):
            found.setdefault(folder, []).append(item)
    return found


def _is_part(name: str) -> bool:
    return Path(name).match("[!.]*.parquet") and "/" not in name


class Exchange:
    """The parts of one version in a folder of this machine and in a bucket.

    Raises, in every method:
        SourceError: the bucket cannot be reached or denies access, or a part was removed meanwhile.
    """

    def __init__(self, folder: Path, address: str) -> None:
        """Open the exchange.

        Args:
            folder: of the version's parts (cxr.inference.score_store.version_folder).
            address: s3://bucket/prefix of the parts of all versions.
        """
        from cxr.common.s3 import Prefix  # boto3 takes a second to import, which a common folder does not need

        self._folder, self._address = folder, f"{address.rstrip('/')}/{folder.name}"
        self._prefix = Prefix(self._address)

    def synchronize(self) -> None:
        """Copy parts so that the folder and the bucket hold the same."""
        here = {part.name: part for part in parts_below(self._folder)}
        there = {name: item for name, item in self._prefix.objects().items() if _is_part(name)}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self.send, (here[name] for name in sorted(here.keys() - there.keys()))))
            list(pool.map(self._fetch, (there[name] for name in sorted(there.keys() - here.keys()))))

    def send(self, part: Path) -> None:
        """Copy a part of the folder to the bucket."""
        self._prefix.upload(part, part.name)

    def _fetch(self, item: RemoteObject) -> None:
        with atomic_file(self._folder / Path(item.key).name) as partial:
            try:
                self._prefix.download(item, partial)
            except FileNotFoundError as error:
                raise SourceError(
                    f"{self._address}: {Path(item.key).name} was removed while parts were fetched; run the same "
                    "command again"
                ) from error
