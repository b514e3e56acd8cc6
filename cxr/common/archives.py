"""Unpack untrusted zips: completely or not at all, and never outside their folder."""

import errno
import lzma
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from cxr.common.errors import SourceError
from cxr.common.files import atomic_folder, sha256_of

BAD_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)
"""What zipfile raises for a file that is not a zip or is damaged; ValueError for names that are not in UTF-8."""


class DamagedArchiveError(SourceError):
    """The file is not a zip or is damaged; downloading it again may help."""


def unpack(archive: Path, downloads: Path, *, sha256: str | None = None) -> Path:
    """Unpack a zip below `downloads`, into a folder named by the zip's digest; once per digest.

    Args:
        archive: the zip.
        downloads: folder for unpacked zips.
        sha256: the expected digest, if known.

    Returns:
        The folder with the entries.

    Raises:
        SourceError: the zip has another digest, is damaged or encrypted, does not fit on the disk, or has entries
            outside its folder.
    """
    try:
        digest = sha256_of(archive)
    except OSError as error:
        raise SourceError(f"{archive} cannot be read ({error.strerror}); check its permissions") from error
    if sha256 is not None and digest != sha256.lower():
        raise SourceError(
            f"{archive} has the sha256 {digest}, expected {sha256.lower()}; download it again or correct ingest.sources"
        )
    folder = downloads / f"unpacked-{digest[:16]}"
    if not folder.is_dir():
        with atomic_folder(folder) as partial:
            _unpack(archive, partial)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.filename.endswith("/")]  # is_dir needs a name
            _check(archive, entries, free_bytes=shutil.disk_usage(folder).free)
            for entry in tqdm(entries, desc=f"unpack {archive.name}", unit="file", disable=None):
                path = folder / entry.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as packed, path.open("xb") as file:
                    shutil.copyfileobj(packed, file)
    except BAD_ZIP as error:
        raise DamagedArchiveError(f"{archive} is not a zip or is damaged ({error}); download it again") from error
    except OSError as error:
        if error.filename is None and error.errno in {None, errno.EINVAL}:  # bzip2's data; an offset before the start
            raise DamagedArchiveError(f"{archive} is damaged ({error}); download it again") from error
        raise SourceError(f"{archive} cannot be unpacked ({error.strerror}: {error.filename})") from error


def _check(archive: Path, entries: list[zipfile.ZipInfo], *, free_bytes: int) -> None:
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if not path.parts:
            raise DamagedArchiveError(f"{archive} has an entry without a name; nothing was unpacked; download it again")
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise SourceError(f"{archive}: the entry {entry.filename!r} is outside the folder; nothing was unpacked")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise SourceError(f"{archive}: the entry {entry.filename!r} is a link; nothing was unpacked")
        if entry.flag_bits & 1:
            raise SourceError(f"{archive}: the entry {entry.filename!r} is encrypted; give the unpacked folder")
    size = sum(entry.file_size for entry in entries)
    if size > free_bytes:
        raise SourceError(f"{archive} unpacks to {size:,} bytes, but {free_bytes:,} are free; free some space first")
