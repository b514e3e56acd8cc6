"""What every layout of raw images provides: the files of a set, and label, official part and patient of each image."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from cxr.common.classes import Label
from cxr.common.errors import SourceError

MOST_DIGITS = 15
"""Of the number of an acquisition: exact in a float, through which pandas takes columns with gaps."""


@dataclass(frozen=True)
class Rejection:
    """Why a file is rejected: `reason` is one of a few fixed texts, `detail` describes this file."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Acquisition:
    """When an image was taken, relative to others: `number` grows with time within `series`, a name in its source."""

    series: str
    number: int


@dataclass(frozen=True)
class Annotation:
    """Label, official part, patient and acquisition of an image; `patient` is unique within its source."""

    label: Label
    official_split: str
    patient: str
    acquisition: Acquisition | None = None


class RawSet(Protocol):
    """One set of raw images in a folder on this machine."""

    @property
    def folder(self) -> Path:
        """The set's own folder, absolute."""

    @property
    def paths(self) -> Sequence[str]:
        """All files of the set, relative to `folder`, sorted; a path object would take five times the memory."""

    def annotate(self, path: PurePosixPath, data: bytes) -> Annotation | Rejection:
        """Return the annotation of the image `path` with the bytes `data`, or why it has none."""

    def stored_bytes(self, path: PurePosixPath, data: bytes, *, max_pixels: int) -> bytes:
        """Return the bytes to store for an image: `data`, or `data` without the patient's identity.

        Raises:
            ImageError: the identity cannot be removed, because the file is not a readable image.
        """


class Layout(Protocol):
    """How a set of raw images is laid out; `cxr.dataset.layouts.table.LAYOUTS` lists all layouts."""

    @property
    def source_name(self) -> str:
        """Name that `tasks.configure` gives to a source with this layout."""

    @property
    def marker(self) -> str:
        """Folder or file at the top of a location that shows that the location holds a set with this layout."""

    @property
    def covers_location(self) -> bool:
        """Whether the set is all of its location, so that no other set can be beside it."""

    def open(self, location: Path) -> RawSet:
        """Find the set in `location` and list its files.

        Raises:
            SourceError: there is no set with this layout in `location`, or a folder cannot be read.
        """


def files_below(folder: Path) -> Iterator[PurePosixPath]:
    """Yield every file below `folder`, and every link to a folder, as sorted paths relative to it.

    Raises:
        SourceError: a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise SourceError(f"{error.filename}: cannot read the folder ({error.strerror}); check its permissions")

    for parent, folders, files in os.walk(folder, onerror=stop):
        folders.sort()
        here = Path(parent)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted(files + links):
            yield PurePosixPath((here / name).relative_to(folder).as_posix())
