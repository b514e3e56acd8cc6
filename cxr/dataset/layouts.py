"""How the two public sets lie in their folders: label, official part and patient of an image from its path.

`chest_xray`  Kermany, Zhang, Goldbaum 2018 (doi 10.17632/rscbjbr9sj.2)
              chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/
              personN_bacteria_M.jpeg, personN_virus_M.jpeg; IM-NNNN-MMMM.jpeg, NORMAL2-IM-NNNN-MMMM.jpeg
`covid19`     Kaggle pranavraikokte/covid19-image-dataset
              Covid19-dataset/{train,test}/{Covid,Normal,Viral Pneumonia}/

Numbers restart between the official parts, so a patient's id holds source and part. Where names
leave open whether two images are of one person, they count as one: a split may then be coarser
than it had to be, and never leaks.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from cxr.common.classes import Label
from cxr.common.errors import SourceError

LayoutName = Literal["chest_xray", "covid19"]
"""Of the public sets; a hospital's own folder has the layout `labelled`, see cxr.dataset.labelled_folder."""

UNKNOWN_FOLDER = "unknown class folder"
UNKNOWN_NAME = "unknown class in the file name"

_PNEUMONIA = re.compile(r"person(?P<number>\d+)_(?P<agent>bacteria|virus)_", re.IGNORECASE)
# NORMAL2-IM-0383 and IM-0383 are taken for one person: the number alone groups (see docs/decisions.md).
_NORMAL = re.compile(r"(?:NORMAL\d*-)?IM-(?P<number>\d+)", re.IGNORECASE)
# COVID-00003a and COVID-00003b, auntminnie-a-... and auntminnie-b-... are views of one person.
_VIEW_LETTER = re.compile(r"(?<=\d)[a-z]$|(?<=^auntminnie)-[a-z](?=-)")


@dataclass(frozen=True)
class Refusal:
    """Why a file is not taken: `reason` groups, `detail` says what was found."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Placement:
    """What is known of an image beside its pixels; `patient` is unique in its source."""

    label: Label
    official_split: str
    patient: str


@dataclass(frozen=True)
class Layout:
    """One set's layout: the folder that holds the set, its parts and class folders."""

    folder: str
    parts: tuple[str, ...]
    class_folders: tuple[str, ...]
    place_name: Callable[[str, str], tuple[Label, str] | Refusal]

    def place(self, path: PurePosixPath) -> Placement | Refusal:
        """Return what `path`, relative to the set's folder, says of the image, or why it says too little."""
        folders = list(path.parts[:-1])
        while folders and folders[0] == self.folder:  # some zips hold the set a second time inside itself
            folders.pop(0)
        if len(folders) != 2 or folders[0] not in self.parts or folders[1] not in self.class_folders:
            return Refusal(UNKNOWN_FOLDER, f"lies in {'/'.join(path.parts[:-1]) or '.'}; expected {self.expected}")
        named = self.place_name(folders[1], path.stem)
        return named if isinstance(named, Refusal) else Placement(named[0], folders[0], f"{folders[0]}/{named[1]}")

    @property
    def expected(self) -> str:
        """The layout on one line, for messages."""
        return f"{{{','.join(self.parts)}}}/{{{','.join(self.class_folders)}}}"


def _place_kermany(folder: str, stem: str) -> tuple[Label, str] | Refusal:
    pneumonia = _PNEUMONIA.match(stem)
    if folder == "NORMAL":
        if pneumonia:
            return Refusal(UNKNOWN_NAME, f"lies in NORMAL and its name says {pneumonia['agent'].lower()}")
        normal = _NORMAL.match(stem)
        return "normal", f"IM-{normal['number']}" if normal else stem
    if not pneumonia:
        return Refusal(UNKNOWN_NAME, "lies in PNEUMONIA and its name is not personN_bacteria_M or personN_virus_M")
    return ("viral" if pneumonia["agent"].lower() == "virus" else "bacterial"), f"person{pneumonia['number']}"


def _place_covid19(folder: str, stem: str) -> tuple[Label, str] | Refusal:
    labels: dict[str, Label] = {"Covid": "covid", "Normal": "normal", "Viral Pneumonia": "viral"}
    return labels[folder], f"{folder}/{_VIEW_LETTER.sub('', stem)}"


LAYOUTS: dict[LayoutName, Layout] = {
    "chest_xray": Layout("chest_xray", ("train", "val", "test"), ("NORMAL", "PNEUMONIA"), _place_kermany),
    "covid19": Layout("Covid19-dataset", ("train", "test"), ("Covid", "Normal", "Viral Pneumonia"), _place_covid19),
}


def find_set(location: Path, layout: Layout) -> Path:
    """Return the folder that holds the set's parts: `location` itself or the set's own folder below it.

    Raises:
        SourceError: neither has one of the parts; names the folder and the layout that was expected.
    """
    for folder in (location / layout.folder, location):
        parts = [inside / part for inside in (folder, folder / layout.folder) for part in layout.parts]
        if any(part.is_dir() for part in parts):
            return folder.resolve()
    raise nothing_found(location, layout)


def nothing_found(location: Path, layout: Layout) -> SourceError:
    """Return the error for a location without an image, which says what is expected there."""
    return SourceError(
        f"{location}: no images of the set found; expected {layout.folder}/{layout.expected} below it; "
        "unpack the set's zip there, or name the right folder, zip or address"
    )


def files_of(folder: Path) -> Iterator[PurePosixPath]:
    """Yield every file below `folder`, and every link to a folder, as sorted paths relative to it."""

    def stop(error: OSError) -> None:
        raise SourceError(f"{error.filename}: the folder cannot be read ({error.strerror}); mend its permissions")

    for parent, folders, files in os.walk(folder, onerror=stop):
        folders.sort()
        here = Path(parent)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted(files + links):
            yield PurePosixPath((here / name).relative_to(folder).as_posix())
