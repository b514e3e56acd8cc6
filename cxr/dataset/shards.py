"""Images packed in a few zip files, the shards: what DVC tracks in place of thousands of small files.

A shard is an ordinary zip of stored members, named as in the manifest; any zip tool opens it. Which shard holds an image
follows from a hash of the image's path, so that a changed image changes one shard. The number of shards is a power of
two that grows with the set, so that a shard stays at some tens of megabytes; where it doubles, all are written anew.
The same images give the same bytes, in whatever order they come. What each image must be stands in the manifest (its
SHA-256); a zip's own checksums find a damaged shard at the first read.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cxr.common.errors import DataError

# `python -m benchmarks.tracking_files`: far fewer objects than images, and still little to send when one image changes.
SHARD_BYTES = 32 << 20

_LOCAL_HEADER_BYTES = 30  # then the name and the extra field, whose lengths are its last four bytes
_REGULAR_FILE = 0o100644 << 16


def shard_count(total_bytes: int, *, shard_bytes: int = SHARD_BYTES) -> int:
    """Return the least power of two that keeps the mean shard at `shard_bytes` or less."""
    return 1 << max(0, (total_bytes - 1) // shard_bytes).bit_length()


def shard_of(path: str, count: int) -> int:
    """Return which of `count` shards, a power of two, holds the image `path`."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % count


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], bytes],
    *,
    workers: int,
    shard_bytes: int = SHARD_BYTES,
) -> Iterator[int]:
    """Pack images into `folder`, a thread a shard; yields how many images each finished shard took.

    Args:
        folder: new; the caller makes it appear whole (see cxr.common.files.atomic_folder).
        sizes: path of each image -> bytes; decides the number of shards.
        read: returns an image's bytes; called from several threads.
        workers: threads.
        shard_bytes: most bytes of a shard, on average.
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
            member = zipfile.ZipInfo(path)  # of 1980, as zip has it: no clock, so that equal images give equal bytes
            member.create_system, member.external_attr = 3, _REGULAR_FILE
            opened.writestr(member, read(path))


@dataclass(frozen=True)
class _Place:
    shard: Path
    offset: int
    bytes: int
    crc: int


class Shards:
    """The images in the shards of a folder. Any number of threads may read; nothing stays open."""

    def __init__(self, folder: Path) -> None:
        """Read which images there are.

        Raises:
            DataError: there are no shards, or one has no readable list of members.
        """
        shards = sorted(folder.glob("*.zip"))
        if not shards:
            raise DataError(f"{folder} holds no shards of images (*.zip); run `dvc repro ingest` to make them")
        self._places: dict[str, _Place] = {}
        for shard in shards:
            try:
                with zipfile.ZipFile(shard) as opened:
                    for member in opened.infolist():
                        place = _Place(shard, member.header_offset, member.file_size, member.CRC)
                        self._places[member.filename] = place
            except (zipfile.BadZipFile, OSError) as error:
                raise _damaged(shard, str(error)) from error

    def __contains__(self, path: str) -> bool:
        """Say whether the image `path` is in a shard."""
        return path in self._places

    def __len__(self) -> int:
        """Count the images."""
        return len(self._places)

    def read(self, path: str) -> bytes:
        """Return an image byte for byte.

        Raises:
            DataError: no shard holds `path`, or the shard is damaged there.
        """
        place = self._places.get(path)
        if place is None:
            raise DataError(f"{path} is in no shard of images; run `dvc repro --force ingest` to pack the images anew")
        try:
            with place.shard.open("rb", buffering=0) as file:
                file.seek(place.offset)
                name_bytes, extra_bytes = struct.unpack_from("<HH", file.read(_LOCAL_HEADER_BYTES), 26)
                file.seek(name_bytes + extra_bytes, 1)
                data = file.read(place.bytes)
        except (OSError, struct.error) as error:
            raise _damaged(place.shard, f"{path}: {error}") from error
        if zlib.crc32(data) != place.crc:
            raise _damaged(place.shard, f"{path} has another checksum")
        return data


def _damaged(shard: Path, found: str) -> DataError:
    return DataError(
        f"{shard} is damaged ({found}); run `dvc checkout --force` to take it from DVC's cache, `dvc pull` where it is "
        "not there, or `dvc repro --force ingest` to pack the images anew"
    )
