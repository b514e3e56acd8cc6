"""A folder of images in any structure, DICOM included, with their labels in labels.csv at its top.

labels.csv (UTF-8, with a header line):

`path`            the image, relative to the folder, with forward slashes
`label`           one of cxr.common.classes.LABELS
`patient_id`      optional; the hospital's own patient number
`official_split`  optional; a part that the hospital has set aside, such as `test`; empty: `all`
`acquired`        optional; when the image was taken: whole numbers that grow with time, or dates as YYYY-MM-DD; in
                  every row or in none

Without a `patient_id` in labels.csv, the patient of a DICOM image is its PatientID. Neither is stored: both are
replaced by a digest (see cxr/dicom/deidentify.py). An image without a patient counts as a patient of its own.

Without `acquired`, a DICOM image was acquired on its StudyDate, where it has one. Dates are stored as numbers of days,
all shifted by the same secret number.
"""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path, PurePosixPath

from cxr.common.classes import LABELS, Label
from cxr.common.errors import ImageError, SourceError
from cxr.common.files import is_special
from cxr.dataset.layouts.raw_set import MOST_DIGITS, Acquisition, Annotation, Rejection, files_below
from cxr.dicom.deidentify import Identity, deidentified, patient_digest, patient_key, read_identity, shifted_day
from cxr.imaging.decode import is_dicom

LABELS_FILE = "labels.csv"
NOT_LABELLED = "not in labels.csv"

_REQUIRED = ("path", "label")
_OPTIONAL = ("patient_id", "official_split", "acquired")
_ACQUIRED = "expected a whole number, or a date as YYYY-MM-DD, in every row or in none, and all rows alike"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of labels.csv; `acquired` is None without the column."""

    label: Label
    official_split: str
    patient_id: str = field(repr=False)
    acquired: int | date | None = field(repr=False)


@dataclass(frozen=True)
class LabelledSet:
    """The images of a folder with labels.csv. Its repr shows no patient."""

    folder: Path
    paths: Sequence[str]
    rows: Mapping[str, Row] = field(repr=False)
    key: bytes = field(repr=False)

    def annotate(self, path: PurePosixPath, data: bytes) -> Annotation | Rejection:
        """Return the annotation of an image, with the digest of its patient, or why it has none."""
        row = self.rows.get(str(path))
        if row is None:
            return Rejection(NOT_LABELLED, f"the file has no line in {LABELS_FILE}; add one or remove the file")
        try:
            identity = read_identity(data, name=str(path)) if is_dicom(data) else None
        except ImageError as error:
            return Rejection(error.reason, str(error))
        patient, issuer = _patient(row, path, identity)
        digest = patient_digest(patient, issuer=issuer, key=self.key)
        return Annotation(row.label, row.official_split, digest, self._acquisition(row, identity))

    def _acquisition(self, row: Row, identity: Identity | None) -> Acquisition | None:
        acquired = row.acquired
        if acquired is None and identity is not None:
            acquired = _study_date(identity.study_date)
        if isinstance(acquired, date):
            acquired = shifted_day(acquired, key=self.key)
        return None if acquired is None else Acquisition("acquired", acquired)

    def stored_bytes(self, path: PurePosixPath, data: bytes, *, max_pixels: int) -> bytes:
        """Return a DICOM image without its patient, and any other file unchanged.

        Raises:
            ImageError: a DICOM file is not a readable image.
        """
        return deidentified(data, name=str(path), max_pixels=max_pixels) if is_dicom(data) else data


@dataclass(frozen=True)
class LabelledFolder:
    """The layout of a folder with labels.csv."""

    source_name: str = "hospital"
    marker: str = LABELS_FILE
    covers_location: bool = True

    def open(self, location: Path) -> LabelledSet:
        """Read labels.csv and the key of the patient digests, and list the files.

        Raises:
            SourceError: labels.csv is missing or invalid (names the line) or names absent files, or there is no key.
        """
        rows = _read_rows(location / LABELS_FILE)
        folder = location.resolve()
        paths = [str(path) for path in files_below(folder) if path != PurePosixPath(LABELS_FILE)]
        if missing := sorted(rows.keys() - set(paths)):
            raise SourceError(
                f"{folder / LABELS_FILE} names {len(missing)} files that do not exist, such as {missing[0]}; "
                "add the files or remove their lines"
            )
        return LabelledSet(folder, paths, rows, patient_key())


def _read_rows(table: Path) -> dict[str, Row]:
    if is_special(table):
        raise SourceError(f"{table} is not a regular file; write the table there")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(table, reader.fieldnames or ())
            rows = _rows(table, reader)
    except FileNotFoundError:
        raise SourceError(f"{table} is missing: expected a table with the columns {', '.join(_REQUIRED)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{table} cannot be read as CSV in UTF-8: {type(error).__name__}; write it again") from None
    if not rows:
        raise SourceError(f"{table} has no line below its header; expected one line per image")
    return rows


def _check_columns(table: Path, columns: Sequence[str]) -> None:
    missing = [column for column in _REQUIRED if column not in columns]
    if missing:
        raise SourceError(
            f"{table}: its header lacks {', '.join(missing)}; "
            f"expected {', '.join(_REQUIRED)}, and optionally {', '.join(_OPTIONAL)}"
        )
    require_each_once(table, [column for column in columns if column in {*_REQUIRED, *_OPTIONAL}])


def require_each_once(table: Path, columns: Sequence[str]) -> None:
    """Check that no column has the name of another. Raises SourceError: of two labels, nobody knows which is meant."""
    if twice := sorted(name for name, n in Counter(columns).items() if n > 1):
        raise SourceError(f"{table}: its header names {', '.join(twice)} more than once; keep one column of each name")


def _rows(table: Path, reader: "csv.DictReader[str]") -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for line in reader:
        values = {column: (line.get(column) or "").strip() for column in (*_REQUIRED, *_OPTIONAL)}
        path = PurePosixPath(values["path"])
        where = f"{table}, line {reader.line_num}"
        if not values["path"] or path.is_absolute() or ".." in path.parts:
            raise SourceError(f"{where}: path must name a file below the folder, relative to it")
        if values["label"] not in LABELS:
            raise SourceError(f"{where}: label must be one of {', '.join(LABELS)}, got {values['label']!r}")
        if str(path) in rows:
            raise SourceError(f"{where}: {path} has a line already; keep one")
        label = next(label for label in LABELS if label == values["label"])
        acquired = _acquired(values["acquired"], where)
        if rows and type(acquired) is not type(next(iter(rows.values())).acquired):
            raise SourceError(f"{where}: acquired is {values['acquired']!r}, unlike in the lines above; {_ACQUIRED}")
        rows[str(path)] = Row(label, values["official_split"] or "all", values["patient_id"], acquired)
    return rows


def _acquired(value: str, where: str) -> int | date | None:
    """Return the number or the date of the column `acquired`; None if it is empty."""
    if not value:
        return None
    try:
        return int(value) if value.isdecimal() and len(value) <= MOST_DIGITS else date.fromisoformat(value)
    except ValueError:
        raise SourceError(f"{where}: acquired is {value!r}; {_ACQUIRED}") from None


def _study_date(value: str) -> date | None:
    """Return the date of a DICOM header, or None if it is missing or not a date."""
    try:
        return datetime.strptime(value.replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None


def _patient(row: Row, path: PurePosixPath, identity: Identity | None) -> tuple[str, str]:
    """Return the patient number and its issuer; for an image without a patient its path."""
    if row.patient_id:
        return row.patient_id, ""
    if identity is not None and identity.patient_id:
        return identity.patient_id, identity.issuer
    return str(path), "path"
