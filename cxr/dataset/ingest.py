"""Taking in raw images: every file of a set is read and ends as taken, with what describes it, or as refused.

Streams: of a file's pixels only a 32 x 32 thumbnail stays in memory. What is kept is read again to be packed.
"""

import hashlib
import os
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from cxr.common.errors import ImageError, SourceError
from cxr.dataset.inspect import Image, examine
from cxr.dataset.labelled_folder import LABELLED, LABELS_FILE, LabelledFolder, read_labelled_folder
from cxr.dataset.layouts import LAYOUTS, Layout, Placement, Refusal, files_of, find_set, nothing_found
from cxr.imaging.decode import max_file_bytes

UNREADABLE = "unreadable"
OUTWARD_LINK = "link out of the folder"

_WAITING_PER_WORKER = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RawFile:
    """A file of a set: `path` is relative to `folder`, the set's own; `known_by` tells what it is of."""

    source: str
    known_by: Layout | LabelledFolder
    folder: Path
    path: PurePosixPath

    @property
    def location(self) -> Path:
        """Where the file lies."""
        return self.folder / self.path

    def place(self, data: bytes) -> Placement | Refusal:
        """Return label, part and patient of the image, or why it is not taken."""
        known_by = self.known_by
        return known_by.place(self.path) if isinstance(known_by, Layout) else known_by.place(self.path, data)

    def kept(self, data: bytes, max_pixels: int) -> bytes:
        """Return what of the file's bytes goes on. Raises ImageError: see LabelledFolder.kept."""
        if isinstance(self.known_by, Layout):
            return data
        return self.known_by.kept(self.path, data, max_pixels=max_pixels)


@dataclass(frozen=True)
class Taken:
    """An image that is readable and placed; `patient_id` is unique across sources."""

    file: RawFile
    placement: Placement
    image: Image

    @property
    def source(self) -> str:
        """Name of the set."""
        return self.file.source

    @property
    def path(self) -> str:
        """Below the set's folder."""
        return str(self.file.path)

    @property
    def image_id(self) -> str:
        """Stable between runs: source and the first 16 digits of the SHA-256."""
        return f"{self.source}-{self.image.sha256[:16]}"

    @property
    def patient_id(self) -> str:
        """Source and patient."""
        return f"{self.source}/{self.placement.patient}"


@dataclass(frozen=True)
class Refused:
    """A file that is left out, and why."""

    source: str
    path: str
    refusal: Refusal


def list_files(source: str, layout: str, location: Path, *, all_of_it: bool) -> list[RawFile]:
    """Return every file of a set in `location`, sorted.

    Args:
        source: name of the source.
        layout: how the set lies there: a name in LAYOUTS, or LABELLED.
        location: the set's own folder or the one above it.
        all_of_it: count what lies beside the set's folder too, other sets' folders aside: right for
            an archive, where each entry came in; not for a folder of the user's, where anything may lie.

    Raises:
        SourceError: there is no set there, or a folder cannot be read.
    """
    if layout == LABELLED:
        return _labelled_files(source, location)
    known_by = next(known for name, known in LAYOUTS.items() if name == layout)
    folder = find_set(location, known_by)
    found = [RawFile(source, known_by, folder, path) for path in files_of(folder)]
    if not found:
        raise nothing_found(location, known_by)
    if all_of_it and folder != location.resolve():
        sets = {known.folder for known in LAYOUTS.values()}
        beside = (path for path in files_of(location) if path.parts[0] not in sets)
        found += [RawFile(source, known_by, folder, PurePosixPath("..", path)) for path in beside]
    return found


def _labelled_files(source: str, location: Path) -> list[RawFile]:
    labelled = read_labelled_folder(location)
    paths = [path for path in files_of(labelled.folder) if path != PurePosixPath(LABELS_FILE)]
    if missing := sorted(map(str, labelled.rows.keys() - set(paths))):
        raise SourceError(
            f"{labelled.folder / LABELS_FILE} names {len(missing)} files that are not there, such as {missing[0]}; "
            "put them there or take their lines out"
        )
    return [RawFile(source, labelled, labelled.folder, path) for path in paths]


def take_in(files: Iterable[RawFile], *, max_pixels: int, workers: int) -> Iterator[Taken | Refused]:
    """Read each file, in order.

    Args:
        files: what to take in.
        max_pixels: larger images are refused before they are decoded.
        workers: threads; 0 means one a core.
    """

    def take(file: RawFile) -> Taken | Refused:
        return _take(file, max_pixels)

    return _in_order(take, files, workers or os.cpu_count() or 1)


def read_again(image: Taken, *, max_pixels: int) -> bytes:
    """Return what is kept of an image that was taken in.

    Raises:
        SourceError: the file is gone or is another one by now.
    """
    location = image.file.location
    try:
        data = image.file.kept(location.read_bytes(), max_pixels)
    except OSError as error:
        raise SourceError(f"{location} cannot be read any more ({error.strerror}); run ingest again") from error
    except ImageError:
        data = b""
    if hashlib.sha256(data).hexdigest() != image.image.sha256:
        raise SourceError(f"{location} changed while it was taken in; run ingest again when it is left alone")
    return data


def _take(file: RawFile, max_pixels: int) -> Taken | Refused:
    path = str(file.path)
    readable = _read(file, max_pixels)
    if isinstance(readable, Refusal):
        shown = path.encode("utf-8", "backslashreplace").decode()
        return Refused(file.source, shown, readable)
    try:
        image = examine(file.kept(readable, max_pixels), name=path, max_pixels=max_pixels)
    except ImageError as error:
        image = Refusal(error.reason, str(error))
    if isinstance(image, Refusal):
        return Refused(file.source, path, image)
    placement = file.place(readable)
    if isinstance(placement, Refusal):
        return Refused(file.source, path, placement)
    return Taken(file, placement, image)


def _read(file: RawFile, max_pixels: int) -> bytes | Refusal:
    path = file.location
    if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in str(file.path)):  # control, not UTF-8
        return Refusal(UNREADABLE, "the file name has characters that cannot be written; rename it")
    if path.is_symlink() and not path.resolve().is_relative_to(file.folder):
        return Refusal(OUTWARD_LINK, "points outside the set's folder; put the file itself there")
    try:
        if not path.is_file():
            return Refusal(UNREADABLE, "not a plain file, or a link that leads nowhere")
        size = path.stat().st_size
        if size > max_file_bytes(max_pixels):
            return Refusal("larger than the pixel limit", f"{size} bytes; an image of {max_pixels} pixels has fewer")
        return path.read_bytes()
    except OSError as error:
        return Refusal(UNREADABLE, f"{error.strerror}; mend its permissions or copy it again")


def _in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Map with threads, keeping the order, with a bounded number of items under way."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= workers * _WAITING_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
