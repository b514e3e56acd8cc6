"""The images of a folder or of `s3://bucket/prefix`, listed first and read one at a time."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cxr.common.errors import SourceError
from cxr.common.files import expanded
from cxr.imaging.decode import SUFFIXES, is_image_file

BUCKET_SCHEME = "s3://"

log = logging.getLogger("cxr.inference")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image as it was listed.

    path        below the location, with slashes; a byte that is not UTF-8 stands in it as \\xe9
    size_bytes  as listed
    changed     modification time in nanoseconds, or the ETag of an object; it changes with the bytes
    """

    path: str
    size_bytes: int
    changed: str


@dataclass(frozen=True)
class Location:
    """The images of a location in the order of their paths, and a function to read one.

    `name` is the same with and without a slash at its end.
    `read` takes a path and may be called from several threads. It raises OSError when an image cannot be opened and
    SourceError when the location no longer answers.
    """

    name: str
    images: tuple[ImageFile, ...]
    read: Callable[[str], bytes]


def open_location(location: str) -> Location:
    """List the images of a folder, down to its last subfolder, or of an S3 prefix; there may be none.

    A subfolder that may not be read is left out with a warning: the disk of a share has such ones of its own.

    Raises:
        SourceError: there is no such folder, or it may not be read; or the bucket cannot be reached or refuses.
    """
    return _bucket(location) if location.startswith(BUCKET_SCHEME) else _folder(location)


def images_below(path: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted, without hidden files; of a file, the file itself.

    Raises:
        SourceError: the folder has no images, or may not be read.
    """
    if not path.is_dir():
        return [path]
    found = _images(path)
    if not found:
        endings = ", ".join(sorted(SUFFIXES))
        raise SourceError(f"{path} has no images: expected files that end in {endings}; name another folder")
    return found


def _images(folder: Path) -> list[Path]:
    def unlisted(error: OSError) -> None:
        if error.filename == os.fspath(folder):
            raise SourceError(f"{folder} cannot be listed: {error.strerror}; give this user the right to it")
        if not isinstance(error, FileNotFoundError):  # else removed meanwhile
            log.warning("%s cannot be listed, its images are left out: %s", error.filename, error.strerror)

    files = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=unlisted) for name in names)
    return sorted(file for file in files if not file.name.startswith(".") and file.is_file() and is_image_file(file))


def _folder(location: str) -> Location:
    folder = expanded(location)
    if not folder.is_dir():
        raise SourceError(
            f"{location}: the folder does not exist; create it with images in it, or name another location: a folder "
            "or s3://bucket/prefix"
        )

    renamed: dict[str, Path] = {}

    def listed() -> Iterator[ImageFile]:
        for file in _images(folder):
            with suppress(FileNotFoundError):  # moved since it was listed
                state = file.stat()
                name = file.relative_to(folder).as_posix()
                path = _as_text(name)
                if path != name:
                    while (folder / path).exists() or path in renamed:
                        path = f"{path}_"
                    renamed[path] = file
                yield ImageFile(path, state.st_size, str(state.st_mtime_ns))

    def read(path: str) -> bytes:
        return renamed.get(path, folder / path).read_bytes()

    return Location(_as_text(str(Path(location))), tuple(listed()), read)


def _as_text(name: str) -> str:
    """Return the name of a file as text that can be stored: names may hold any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _bucket(location: str) -> Location:
    """List by name only: reading the signature of objects without a suffix would cost a request each."""
    from cxr.common.s3 import Prefix  # boto3 takes a second to import, which folders do not need

    name = location.rstrip("/")
    prefix = Prefix(name)
    objects = {path: item for path, item in prefix.objects().items() if _is_image_name(path)}
    images = tuple(ImageFile(path, objects[path].size_bytes, objects[path].etag) for path in sorted(objects))

    def read(path: str) -> bytes:
        return prefix.read(objects[path].key)

    return Location(name, images, read)


def _is_image_name(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
