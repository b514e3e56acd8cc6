"""A set that the model has never seen: which images it has, with label, patient and groups where these are known.

Labels come from the first of these that there is:

1. a table: the one that is named, or labels.csv at the top of the folder (UTF-8, with a header line)
   `file` or `path`   the image, relative to the folder
   `label`            one of EXTERNAL_LABELS, in upper or lower case
   `patient_id`       optional; groups images, is never written anywhere
   `official_split`, `acquired`   those of a hospital's own folder; ignored, as a day says when somebody was ill
   other columns      groups for slices, such as hospital or view
2. class folders, in any depth: NORMAL and PNEUMONIA as Kaggle lays out chest_xray, where the file name says viral or
   bacterial (else the label is `pneumonia`), those of Covid19-dataset, or folders called viral, bacterial, covid, ...
3. nothing: the images have no labels.

Folders above the images are groups as well. A kind of group with more than MOST_GROUPS values is ignored: where each
patient has a folder, its slices would say nothing.

The label `pneumonia` says that the kind is not known. Such an image counts where pneumonia is told from normal.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from cxr.common.classes import LABELS
from cxr.common.errors import SourceError
from cxr.common.files import is_special
from cxr.dataset.layouts.class_folders import ClassFolders
from cxr.dataset.layouts.labelled_folder import require_each_once
from cxr.dataset.layouts.raw_set import Rejection
from cxr.dataset.layouts.table import COVID19, KERMANY

PNEUMONIA = "pneumonia"
EXTERNAL_LABELS = (*LABELS, PNEUMONIA)
MOST_GROUPS = 50
ALL_PARTS = "all"

_PARTS = KERMANY.parts
_FOLDER_LABELS = {
    **{name: name for name in EXTERNAL_LABELS},
    "virus": "viral",
    "viral pneumonia": "viral",
    "bacteria": "bacterial",
    "bacterial pneumonia": "bacterial",
    "covid19": "covid",
    "covid-19": "covid",
}
_FILE_COLUMNS = ("file", "path")
_KNOWN_COLUMNS = {*_FILE_COLUMNS, "label", "patient_id", "official_split", "acquired"}


@dataclass(frozen=True)
class ExternalImage:
    """An image of the set. Its repr shows no patient.

    path      below the folder, with slashes
    label     one of EXTERNAL_LABELS; None: not labelled
    patient   groups the images of one patient; None: not known
    groups    kind of group -> its name, such as folder -> "clinic-a"
    """

    path: str
    label: str | None
    patient: str | None = field(repr=False)
    groups: Mapping[str, str]


@dataclass(frozen=True)
class ExternalSet:
    """The images of a set in the order of their paths; `labelled_by`: "table", "folders", or None without labels."""

    images: tuple[ExternalImage, ...]
    labelled_by: str | None


def read_external_set(name: str, paths: Sequence[str], *, table: Path | None, part: str | None) -> ExternalSet:
    """Return the images of a set with what is known of each.

    Args:
        name: what errors call the folder.
        paths: of all its images, below it.
        table: labels, where there is a table.
        part: "train", "val" or "test": only images of that official part; "all": of every part; None where the set has
            at most one.

    Raises:
        SourceError: there are no images; the set has several parts and none was named; the table is invalid, names an
            image twice or one that does not exist; only some images lie in class folders.
    """
    paths = _without_mirror(paths, PurePosixPath(name).name)
    if not paths:
        raise SourceError(f"{name} has no images; expected jpg, png, bmp, tif or DICOM files in it or below it")
    paths = _of_part(name, paths, part)
    if table is None:
        return _by_folders(name, paths)
    rows = _read_table(table)
    known = set(paths)
    if missing := next(((path, line) for path, (line, _) in rows.items() if path not in known), None):
        raise SourceError(
            f"{table}, line {missing[1]}: {missing[0]} is no image of {name}; correct the line, or add the file"
        )
    groups = _group_columns([row for _, row in rows.values()])
    return ExternalSet(_of_few_groups([_of_row(path, rows.get(path, (0, {}))[1], groups) for path in paths]), "table")


def _without_mirror(paths: Iterable[str], root: str) -> list[str]:
    """Leave out the second copy of the set that Kaggle's archive of chest_xray holds inside itself."""
    kept: dict[tuple[str, ...], str] = {}
    for path in sorted(paths, key=lambda one: (one.count("/"), one)):
        parts = (root, *PurePosixPath(path).parts)
        once = tuple(part for n, part in enumerate(parts) if not (n and part == KERMANY.marker == parts[n - 1]))
        kept.setdefault(once, path)
    return sorted(kept.values())


def _of_part(name: str, paths: list[str], part: str | None) -> list[str]:
    found = {path: _official_part(path) for path in paths}
    counts = Counter(one for one in found.values() if one)
    if part is None and len(counts) > 1:
        listed = ", ".join(f"{one} ({count} images)" for one, count in sorted(counts.items()))
        raise SourceError(
            f"{name} has the parts {listed}: name one with --part, such as --part test, or take all with --part all"
        )
    if part in {None, ALL_PARTS}:
        return paths
    if not counts[part]:
        raise SourceError(f"{name} has no part {part}; found {', '.join(sorted(counts)) or 'no parts'}")
    return [path for path in paths if found[path] == part]


def _official_part(path: str) -> str:
    """Return the folder train, val or test that holds the class folder of an image; "" for none."""
    folders = PurePosixPath(path).parts[:-1]
    return next((folder for folder in reversed(folders[:-1]) if folder in _PARTS), "")


def _by_folders(name: str, paths: list[str]) -> ExternalSet:
    images = [_of_folders(path) for path in paths]
    without = [image.path for image in images if image.label is None]
    if without and len(without) < len(images):
        raise SourceError(
            f"{name}: {len(without)} of {len(images)} images, such as {without[0]}, lie in no class folder (normal, "
            "pneumonia, viral, bacterial, covid) and the others do; move them, or name a table with --labels"
        )
    return ExternalSet(_of_few_groups(images), None if without else "folders")


def _of_folders(path: str) -> ExternalImage:
    pure = PurePosixPath(path)
    folders = list(pure.parts[:-1])
    named = next((n for n in reversed(range(len(folders))) if folders[n].casefold() in _FOLDER_LABELS), None)
    if named is None:
        return ExternalImage(path, None, None, _groups(path, folders))
    above, class_folder = folders[:named], folders[named]
    label, patient = _label_and_patient(path, class_folder, pure.stem)
    return ExternalImage(path, label, patient and f"{'/'.join(above)}/{patient}", _groups(path, above))


def _label_and_patient(path: str, class_folder: str, stem: str) -> tuple[str, str | None]:
    """Return label and, in the layouts of the public sets, the patient."""
    layout = next((one for one in (KERMANY, COVID19) if class_folder in one.class_folders), None)
    if layout is None:
        return _FOLDER_LABELS[class_folder.casefold()], None
    return _of_layout(path, layout, class_folder, stem)


def _of_layout(path: str, layout: ClassFolders, class_folder: str, stem: str) -> tuple[str, str | None]:
    found = layout.facts_of(class_folder, stem)
    if not isinstance(found, Rejection):  # a name that names no patient stands for itself
        return found.label, None if found.patient == stem else found.patient
    if class_folder == "NORMAL":
        raise SourceError(f"{path} has two labels: {found.detail}; move or rename the file")
    return PNEUMONIA, None


def _groups(path: str, above: Sequence[str]) -> Mapping[str, str]:
    """Return the official part, and the first folder that is neither part nor class nor the set's own."""
    public = {*_PARTS, KERMANY.marker, COVID19.marker}
    own = [folder for folder in above if folder not in public and folder.casefold() not in _FOLDER_LABELS]
    part = _official_part(path)
    return MappingProxyType(({"part": part} if part else {}) | ({"folder": own[0]} if own else {}))


def _read_table(table: Path) -> dict[str, tuple[int, dict[str, str]]]:
    """Return path -> line number and row."""
    if is_special(table):
        raise SourceError(f"{table} is not a regular file; name a table with the columns file and label")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = [str(name).strip().casefold() for name in reader.fieldnames or ()]
            _check_columns(table, columns)
            reader.fieldnames = columns
            return _rows(table, reader)
    except FileNotFoundError:
        raise SourceError(f"{table} does not exist; expected a table with the columns file and label") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{table} cannot be read as CSV in UTF-8: {type(error).__name__}; write it again") from None


def _check_columns(table: Path, columns: Sequence[str]) -> None:
    if len(set(columns) & set(_FILE_COLUMNS)) != 1 or "label" not in columns:
        raise SourceError(
            f"{table}: expected a header with the columns file (or path) and label, and optionally patient_id; "
            f"found {', '.join(columns) or 'an empty file'}"
        )
    require_each_once(table, [column for column in columns if column])


def _rows(table: Path, reader: "csv.DictReader[str]") -> dict[str, tuple[int, dict[str, str]]]:
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    for given in reader:
        row = {name: (value or "").strip() for name, value in given.items() if isinstance(name, str)}
        line = reader.line_num
        path = str(PurePosixPath(next(row[name] for name in _FILE_COLUMNS if name in row).replace("\\", "/")))
        row["label"] = row["label"].casefold()
        if row["label"] not in EXTERNAL_LABELS:
            expected = ", ".join(EXTERNAL_LABELS)
            raise SourceError(f"{table}, line {line}: label must be one of {expected}, got {row['label']!r}")
        if path in rows:
            before, first = rows[path][0], rows[path][1]["label"]
            labels = f"the labels {first} and {row['label']}" if first != row["label"] else "two lines"
            raise SourceError(f"{table}: {path} has {labels} (lines {before} and {line}); keep one")
        rows[path] = (line, row)
    if not rows:
        raise SourceError(f"{table} has no line below its header; expected one line per image")
    return rows


def _group_columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the columns that group images: those that are not known by name."""
    return sorted({name for row in rows for name in row if name} - _KNOWN_COLUMNS)


def _of_few_groups(images: Sequence[ExternalImage]) -> tuple[ExternalImage, ...]:
    """Return the images without their kinds of groups that have more than MOST_GROUPS values in the set."""
    kinds = {kind for image in images for kind in image.groups}
    few = {kind for kind in kinds if len({image.groups.get(kind) for image in images}) <= MOST_GROUPS}
    return tuple(
        replace(image, groups={kind: name for kind, name in image.groups.items() if kind in few}) for image in images
    )


def _of_row(path: str, row: Mapping[str, str], group_columns: Sequence[str]) -> ExternalImage:
    groups = {**_groups(path, PurePosixPath(path).parts[:-1]), **{name: row.get(name, "") for name in group_columns}}
    patient = row.get("patient_id") or None
    return ExternalImage(path, row.get("label"), patient, {name: value for name, value in groups.items() if value})
