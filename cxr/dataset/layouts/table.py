"""The table of layouts of raw images, and the file names of the two public sets.

A new layout is one entry in `LAYOUTS`: a `ClassFolders` with its own function from file name to label, patient and
acquisition, or a class of its own that provides `cxr.dataset.layouts.raw_set.Layout`.

`chest_xray`  Kermany, Zhang, Goldbaum 2018 (doi 10.17632/rscbjbr9sj.2)
              chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/
              personN_bacteria_M.jpeg, personN_virus_M.jpeg; IM-NNNN-MMMM.jpeg, NORMAL2-IM-NNNN-MMMM.jpeg
`covid19`     Kaggle pranavraikokte/covid19-image-dataset
              Covid19-dataset/{train,test}/{Covid,Normal,Viral Pneumonia}/
`labelled`    images in any folder structure, DICOM included, and labels.csv: see cxr/dataset/layouts/labelled_folder.py

A patient ID holds source and part. Where file names do not show whether two images are of one patient, both get the
same patient ID. A split may then be coarser than necessary, but no patient leaks.

The numbers of `chest_xray` follow the order of acquisition, each agent and each prefix by itself, through all parts
(see docs/decisions.md). Those of `covid19` number the files of a collection, so they say nothing about time.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cxr.common.archives import BAD_ZIP
from cxr.common.classes import Label
from cxr.common.errors import ParamsError, SourceError
from cxr.dataset.layouts.class_folders import UNKNOWN_NAME, ClassFolders, NameFacts
from cxr.dataset.layouts.labelled_folder import LabelledFolder
from cxr.dataset.layouts.raw_set import MOST_DIGITS, Acquisition, Layout, Rejection

_PNEUMONIA = re.compile(r"person(?P<number>\d+)_(?P<agent>bacteria|virus)_", re.IGNORECASE)
# NORMAL2-IM-0383 and IM-0383 count as one patient: only the number groups (see docs/decisions.md).
_NORMAL = re.compile(r"(?P<series>(?:NORMAL\d*-)?IM)-(?P<number>\d+)", re.IGNORECASE)
# COVID-00003a and COVID-00003b, auntminnie-a-... and auntminnie-b-... are views of one patient.
_VIEW_LETTER = re.compile(r"(?<=\d)[a-z]$|(?<=^auntminnie)-[a-z](?=-)")


def _kermany_facts(folder: str, stem: str) -> NameFacts | Rejection:
    pneumonia = _PNEUMONIA.match(stem)
    if folder == "NORMAL":
        if pneumonia:
            return Rejection(UNKNOWN_NAME, f"the file is in NORMAL and its name says {pneumonia['agent'].lower()}")
        normal = _NORMAL.match(stem)
        if not normal:
            return NameFacts("normal", stem)
        acquired = _acquisition(normal["series"].upper(), normal["number"])
        return NameFacts("normal", f"IM-{normal['number']}", acquired)
    if not pneumonia:
        return Rejection(
            UNKNOWN_NAME, "the file is in PNEUMONIA and its name is not personN_bacteria_M or personN_virus_M"
        )
    agent = pneumonia["agent"].lower()
    patient = f"person{pneumonia['number']}"
    return NameFacts("viral" if agent == "virus" else "bacterial", patient, _acquisition(agent, pneumonia["number"]))


def _acquisition(series: str, digits: str) -> Acquisition | None:
    """Return the acquisition; None where so many digits stand that they are no running number."""
    return Acquisition(series, int(digits)) if len(digits) <= MOST_DIGITS else None


def _covid19_facts(folder: str, stem: str) -> NameFacts:
    labels: dict[str, Label] = {"Covid": "covid", "Normal": "normal", "Viral Pneumonia": "viral"}
    return NameFacts(labels[folder], f"{folder}/{_VIEW_LETTER.sub('', stem)}")


KERMANY = ClassFolders(
    source_name="kermany",
    marker="chest_xray",
    parts=("train", "val", "test"),
    class_folders=("NORMAL", "PNEUMONIA"),
    facts_of=_kermany_facts,
    published={"train": 5216, "val": 16, "test": 624},
)
COVID19 = ClassFolders(
    source_name="covid19",
    marker="Covid19-dataset",
    parts=("train", "test"),
    class_folders=("Covid", "Normal", "Viral Pneumonia"),
    facts_of=_covid19_facts,
)

LAYOUTS: Mapping[str, Layout] = {"chest_xray": KERMANY, "covid19": COVID19, "labelled": LabelledFolder()}
"""Name of the layout in params.yaml -> layout."""


def layout_named(name: str) -> Layout:
    """Return a layout by its name in params.yaml. Raises ParamsError for an unknown name."""
    if name not in LAYOUTS:
        raise ParamsError(f"ingest.sources: unknown layout {name!r}; expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def published_images(name: str) -> Mapping[str, int]:
    """Return the number of images of each part of the published set with a layout; empty if it is not known."""
    layout = layout_named(name)
    return layout.published if isinstance(layout, ClassFolders) else {}


def layouts_in(location: Path) -> list[str]:
    """Return the names of the layouts whose sets are in `location`, a folder or a zip, in the order of `LAYOUTS`.

    Raises:
        SourceError: `location` does not exist, is neither a folder nor a zip, or holds no set.
    """
    names = _top_names(location)
    found = [name for name, layout in LAYOUTS.items() if layout.marker in names | {location.name}]
    if not found:
        expected = ", ".join(layout.marker for layout in LAYOUTS.values())
        raise SourceError(
            f"{location}: expected one of {expected} at its top, as Kaggle's archives unpack; "
            f"found {', '.join(sorted(names)[:5]) or 'nothing'}"
        )
    return [name for name in found if LAYOUTS[name].covers_location][:1] or found


def _top_names(location: Path) -> set[str]:
    if location.is_dir():
        return {entry.name for entry in location.iterdir()}
    if not location.exists():
        raise SourceError(f"{location}: there is no such folder or zip of images")
    try:
        with zipfile.ZipFile(location) as archive:
            return {parts[0] for name in archive.namelist() if (parts := PurePosixPath(name).parts)}  # none of `./`
    except BAD_ZIP:
        raise SourceError(f"{location}: neither a folder nor a zip") from None
