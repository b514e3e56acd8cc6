"""Read every file of the raw sets and accept it with its description and annotation, or reject it with the reason.

What is known of an accepted image, a 32 x 32 thumbnail included, goes to disk: in memory are its file's name and where
to find the rest. Accepted images are read a second time to be packed.
"""

import hashlib
import os
import unicodedata
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cxr.common.classes import Label
from cxr.common.errors import ImageError, SourceError
from cxr.common.files import printable
from cxr.common.on_disk import Spool
from cxr.dataset.inspect import InspectedImage, inspect_image
from cxr.dataset.layouts.raw_set import Annotation, RawSet, Rejection, files_below
from cxr.dataset.layouts.table import LAYOUTS, layout_named
from cxr.imaging.decode import max_file_bytes
from cxr.imaging.unattended import decode_each

Described = tuple[Annotation, InspectedImage]
"""What is known of an accepted image, but for its file."""

UNREADABLE = "unreadable"
OUTWARD_LINK = "link out of the folder"


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of a raw set; `name` is its path relative to the set's folder."""

    source: str
    raw_set: RawSet
    name: str

    @property
    def path(self) -> PurePosixPath:
        """Path relative to the set's folder."""
        return PurePosixPath(self.name)

    @property
    def location(self) -> Path:
        """The file on this machine."""
        return self.raw_set.folder / self.name

    def stored_bytes(self, data: bytes, max_pixels: int) -> bytes:
        """Return the bytes to store for the file. Raises ImageError: see `cxr.dataset.layouts.raw_set.RawSet`."""
        return self.raw_set.stored_bytes(self.path, data, max_pixels=max_pixels)


@dataclass(frozen=True)
class Accepted:
    """A readable image with its annotation; `patient_id` is unique across sources."""

    file: RawFile
    annotation: Annotation
    image: InspectedImage

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.file.source

    @property
    def path(self) -> str:
        """Path below the set's folder."""
        return self.file.name

    @property
    def image_id(self) -> str:
        """Source and the first 16 digits of the SHA-256; stable between runs."""
        return f"{self.source}-{self.image.sha256[:16]}"

    @property
    def patient_id(self) -> str:
        """Source and patient."""
        return f"{self.source}/{self.annotation.patient}"


class AcceptedImages(Sequence[Accepted]):
    """Accepted images in a spool: an item is made anew each time it is asked for."""

    def __init__(self, described: Spool[Described]) -> None:
        self._described = described
        self._files: list[RawFile] = []

    def append(self, image: Accepted) -> None:
        """Add an image."""
        self._described.append((image.annotation, image.image))
        self._files.append(image.file)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._files)

    def __getitem__(self, row: Any) -> Any:
        """Return image `row`, from 0; a range of them is not offered."""
        return Accepted(self._files[row], *self._described[row])


class ChosenImages(Sequence[Accepted]):
    """Rows of other images, in an order of their own, some with another label."""

    def __init__(self, images: Sequence[Accepted], rows: Sequence[int], labels: Mapping[int, Label]) -> None:
        """Choose.

        Args:
            images: to choose from.
            rows: of `images`.
            labels: row of `images` -> its label in place of the present one.
        """
        self._images, self._rows, self._labels = images, array("Q", rows), labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        """Return image `row`, from 0; a range of them is not offered."""
        chosen = self._rows[row]
        image = self._images[chosen]
        label = self._labels.get(chosen)
        return image if label is None else replace(image, annotation=replace(image.annotation, label=label))


@dataclass(frozen=True)
class Rejected:
    """A rejected file and the reason."""

    source: str
    path: str
    rejection: Rejection


def list_files(source: str, layout: str, location: Path, *, is_archive: bool) -> list[RawFile]:
    """Return every file of the set in `location`, sorted.

    Args:
        source: name of the source.
        layout: a name in `cxr.dataset.layouts.table.LAYOUTS`.
        location: the set's folder or the folder above it.
        is_archive: `location` holds the contents of one archive. Every entry of an archive has to be accounted for, so
            files beside the set's folder count too, except those in other sets' folders.

    Raises:
        ParamsError: the layout is unknown.
        SourceError: there is no such set in `location`, or a folder cannot be read.
    """
    raw_set = layout_named(layout).open(location)
    names = list(raw_set.paths)
    if is_archive and raw_set.folder != location.resolve():
        markers = {known.marker for known in LAYOUTS.values() if not known.covers_location}
        names += [f"../{path}" for path in files_below(location) if path.parts[0] not in markers]
    return [RawFile(source, raw_set, name) for name in names]


def examine_files(files: Sequence[RawFile], *, max_pixels: int, workers: int) -> Iterator[Accepted | Rejected]:
    """Read each file and accept or reject it, in order; one that its decoder does not survive is rejected too.

    Args:
        files: the files to read.
        max_pixels: larger images are rejected before they are decoded.
        workers: threads; 0 means one per core.
    """

    def read(file: RawFile) -> bytes | Rejection:
        return _read(file, max_pixels)

    def examine(file: RawFile, data: bytes | Rejection) -> Described | Rejection:
        return data if isinstance(data, Rejection) else _examine(file, data, max_pixels)

    def refuse(_: RawFile, error: ImageError) -> Rejection:
        return Rejection(error.reason, str(error))

    found = decode_each(
        read, examine, files, name=lambda file: file.name, refused=refuse, max_pixels=max_pixels, workers=workers
    )
    for file, one in zip(files, found, strict=True):
        if isinstance(one, Rejection):
            yield Rejected(file.source, printable(file.name), one)
        else:
            yield Accepted(file, *one)


def reread(image: Accepted, *, max_pixels: int) -> bytes:
    """Return the bytes to store for an accepted image.

    Raises:
        SourceError: the file was removed or changed since it was accepted.
    """
    location = image.file.location
    try:
        data = image.file.stored_bytes(location.read_bytes(), max_pixels)
    except OSError as error:
        raise SourceError(f"{location} cannot be read any more ({error.strerror}); run ingest again") from error
    except ImageError:
        data = b""
    if hashlib.sha256(data).hexdigest() != image.image.sha256:
        raise SourceError(f"{location} changed during ingest; run ingest again when nothing writes to it")
    return data


def _examine(file: RawFile, data: bytes, max_pixels: int) -> Described | Rejection:
    """Describe an image; without its file, which holds the names of the whole set and would be sent with each."""
    try:
        image = inspect_image(file.stored_bytes(data, max_pixels), name=file.name, max_pixels=max_pixels)
    except ImageError as error:
        return Rejection(error.reason, str(error))
    annotation = file.raw_set.annotate(file.path, data)
    return annotation if isinstance(annotation, Rejection) else (annotation, image)


def _read(file: RawFile, max_pixels: int) -> bytes | Rejection:
    path = file.location
    if any(map(_cannot_be_written, file.name)):
        return Rejection(UNREADABLE, "the file name has characters that cannot be written; rename the file")
    # Path.resolve would raise for a link that leads back to itself.
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(file.raw_set.folder):
        return Rejection(OUTWARD_LINK, "the link points outside the set's folder; copy the file into the folder")
    try:
        if not path.is_file():
            return Rejection(UNREADABLE, "not a regular file, or a link without a target")
        size = path.stat().st_size
        if size > max_file_bytes(max_pixels):
            return Rejection("larger than the pixel limit", f"{size} bytes; an image of {max_pixels} pixels has fewer")
        return path.read_bytes()
    except OSError as error:
        return Rejection(UNREADABLE, f"{error.strerror}; check its permissions or copy it again")


def _cannot_be_written(letter: str) -> bool:
    """Return whether a letter is a control character, or stands for a byte that is not UTF-8."""
    return unicodedata.category(letter) in {"Cc", "Cs"}
