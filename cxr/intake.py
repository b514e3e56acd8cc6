"""Taking in raw films: every file of a set is read and ends as taken, with what describes it, or as refused.

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

from cxr.errors import SourceError
from cxr.films import Film, bytes_at_most, examine
from cxr.layouts import LAYOUTS, LayoutName, Placement, Refusal, files_of, find_set, nothing_found

UNREADABLE = "unreadable"
OUTWARD_LINK = "link out of the folder"

_WAITING_PER_WORKER = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class RawFile:
    """A file of a set: `path` is relative to `folder`, the set's own."""

    source: str
    layout: LayoutName
    folder: Path
    path: PurePosixPath


@dataclass(frozen=True)
class Taken:
    """A film that is readable and placed by its path; `patient_id` is unique across sources."""

    source: str
    path: str
    location: Path
    placement: Placement
    film: Film

    @property
    def image_id(self) -> str:
        """Stable between runs: source and the first 16 digits of the SHA-256."""
        return f"{self.source}-{self.film.sha256[:16]}"

    @property
    def patient_id(self) -> str:
        """Source, official part and patient: numbers restart between parts."""
        return f"{self.source}/{self.placement.official_split}/{self.placement.patient}"


@dataclass(frozen=True)
class Refused:
    """A file that is left out, and why."""

    source: str
    path: str
    refusal: Refusal


def list_files(source: str, layout: LayoutName, location: Path, *, all_of_it: bool) -> list[RawFile]:
    """Return every file of a set in `location`, sorted.

    Args:
        source: name of the source.
        layout: how the set lies there.
        location: the set's own folder or the one above it.
        all_of_it: count what lies beside the set's folder too, other sets' folders aside: right for
            an archive, where each entry came in; not for a folder of the user's, where anything may lie.

    Raises:
        SourceError: there is no set there, or a folder cannot be read.
    """
    folder = find_set(location, LAYOUTS[layout])
    found = [RawFile(source, layout, folder, path) for path in files_of(folder)]
    if not found:
        raise nothing_found(location, LAYOUTS[layout])
    if all_of_it and folder != location.resolve():
        sets = {known.folder for known in LAYOUTS.values()}
        beside = (path for path in files_of(location) if path.parts[0] not in sets)
        found += [RawFile(source, layout, folder, PurePosixPath("..", path)) for path in beside]
    return found


def take_in(files: Iterable[RawFile], *, max_pixels: int, workers: int) -> Iterator[Taken | Refused]:
    """Read each file, in order.

    Args:
        files: what to take in.
        max_pixels: larger films are refused before they are decoded.
        workers: threads; 0 means one a core.
    """

    def take(file: RawFile) -> Taken | Refused:
        return _take(file, max_pixels)

    return _in_order(take, files, workers or os.cpu_count() or 1)


def read_again(film: Taken) -> bytes:
    """Return the bytes of a film that was taken in.

    Raises:
        SourceError: the file is gone or is another one by now.
    """
    try:
        data = film.location.read_bytes()
    except OSError as error:
        raise SourceError(f"{film.location} cannot be read any more ({error.strerror}); run ingest again") from error
    if hashlib.sha256(data).hexdigest() != film.film.sha256:
        raise SourceError(f"{film.location} changed while it was taken in; run ingest again when it is left alone")
    return data


def _take(file: RawFile, max_pixels: int) -> Taken | Refused:
    path = str(file.path)
    readable = _read(file, max_pixels)
    if isinstance(readable, Refusal):
        shown = path.encode("utf-8", "backslashreplace").decode()
        return Refused(file.source, shown, readable)
    film = examine(readable, name=path, max_pixels=max_pixels)
    if isinstance(film, Refusal):
        return Refused(file.source, path, film)
    placement = LAYOUTS[file.layout].place(file.path)
    if isinstance(placement, Refusal):
        return Refused(file.source, path, placement)
    return Taken(file.source, path, file.folder / file.path, placement, film)


def _read(file: RawFile, max_pixels: int) -> bytes | Refusal:
    path = file.folder / file.path
    if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in str(file.path)):  # control, not UTF-8
        return Refusal(UNREADABLE, "the file name has characters that cannot be written; rename it")
    if path.is_symlink() and not path.resolve().is_relative_to(file.folder):
        return Refusal(OUTWARD_LINK, "points outside the set's folder; put the file itself there")
    try:
        if not path.is_file():
            return Refusal(UNREADABLE, "not a plain file, or a link that leads nowhere")
        size = path.stat().st_size
        if size > bytes_at_most(max_pixels):
            return Refusal("larger than the pixel limit", f"{size} bytes; a film of {max_pixels} pixels has fewer")
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
