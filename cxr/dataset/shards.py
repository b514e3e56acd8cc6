"""Images packed in a few zip files, the shards, which DVC tracks in place of thousands of small files.

A shard is a zip of uncompressed members, named as in the manifest; any zip tool opens it. A hash of the image's path
decides its shard, so that a changed image changes one shard. The number of shards is a power of two that grows with the
set, so that a shard has some tens of megabytes; when it doubles, all shards are rewritten. The same images give the
same bytes, in any order. The manifest holds the SHA-256 of each image, and the checksums of the zip reveal a damaged
shard when it is read.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cxr.common.archives import BAD_ZIP
from cxr.common.errors import DataError

# Far fewer objects than images, and little to upload when one image changes (benchmarks/tracking_files.py).
SHARD_BYTES = 32 << 20

_LOCAL_HEADER_BYTES = 30  # its last four bytes are the lengths of the name and the extra field that follow
_REGULAR_FILE = 0o100644 << 16


def shard_count(total_bytes: int, *, shard_bytes: int = SHARD_BYTES) -> int:
    """Return the smallest power of two for which the mean shard has at most `shard_bytes`."""
    return 1 << max(0, (total_bytes - 1) // shard_bytes).bit_length()


def shard_of(path: str, count: int) -> int:
    """Return the number of the shard that holds the image `path`; `count` is a power of two."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % count


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], bytes],
    *,
    workers: int,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[int]:
    """Pack images into `folder`, one thread per shard; yield the number of images of each finished shard.

    Args:
        folder: a new folder, usually within cxr.common.files.atomic_folder.
        sizes: path of each image -> size in bytes; decides the number of shards.
        read: returns an image's bytes; called from several threads.
        workers: threads.
        shard_bytes: largest mean size of a shard.
    """
    folder.mkdir()
    count = shard_count(sum(sizes.values()), shard_bytes=shard_bytes)
    members: list[list[str]] = [[] for _ in range(count)]
    for path in sizes:
        members[shard_of(path, count)].append(path)

    def pack(number: int) -> int:
        _pack(folder / f"{number:04d}.zip", sorted(members[number]), read)
        return len(members[number])

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(pack, range(count))


def _pack(shard: Path, paths: Iterable[str], read: Callable[[str], bytes]) -> None:
    with zipfile.ZipFile(shard, "x", zipfile.ZIP_STORED) as opened:
        for path in paths:
            member = zipfile.ZipInfo(path)  # dated 1980, not now, so that equal images give equal bytes
            member.create_system, member.external_attr = 3, _REGULAR_FILE
            opened.writestr(member, read(path))


@dataclass(frozen=True, slots=True)
class _Member:
    shard: Path
    offset: int
    bytes: int
    crc: int


class Shards:
    """The images in the shards of a folder. Safe to read from several threads; no file stays open."""

    def __init__(self, folder: Path) -> None:
        """List the images.

        Raises:
            DataError: there are no shards, or the member list of a shard cannot be read.
        """
        shards = sorted(folder.glob("*.zip"))
        if not shards:
            raise DataError(f"{folder} holds no shards of images (*.zip); run `./run dvc repro ingest`")
        self._members: dict[str, _Member] = {}
        for shard in shards:
            try:
                with zipfile.ZipFile(shard) as opened:
                    for member in opened.infolist():
                        self._members[member.filename] = _Member(
                            shard, member.header_offset, member.file_size, member.CRC
                        )
            except (*BAD_ZIP, OSError) as error:
                raise _damaged(shard, str(error)) from error

    def __contains__(self, path: str) -> bool:
        """Return whether a shard holds the image `path`."""
        return path in self._members

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._members)

    def read(self, path: str) -> bytes:
        """Return an image byte for byte.

        Raises:
            DataError: no shard holds `path`, or its bytes in the shard are damaged.
        """
        member = self._members.get(path)
        if member is None:
            raise DataError(
                f"{path} is in no shard of images; run `./run dvc repro --force ingest` to pack the images again"
            )
        try:
            with member.shard.open("rb", buffering=0) as file:
                file.seek(member.offset)
                name_bytes, extra_bytes = struct.unpack_from("<HH", file.read(_LOCAL_HEADER_BYTES), 26)
                file.seek(name_bytes + extra_bytes, 1)
                data = file.read(member.bytes)
        except (OSError, struct.error) as error:
            raise _damaged(member.shard, f"{path}: {error}") from error
        if zlib.crc32(data) != member.crc:
            raise _damaged(member.shard, f"{path} has another checksum")
        return data


def _damaged(shard: Path, found: str) -> DataError:
    return DataError(
        f"{shard} is damaged ({found}); run `./run dvc checkout --force` to restore it from DVC's cache, "
        "`./run dvc pull` if it is not there, or `./run dvc repro --force ingest` to pack the images again"
    )
