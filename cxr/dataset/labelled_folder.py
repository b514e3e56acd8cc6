"""A folder of a hospital's own: images anywhere below it, and labels.csv at its top that says what they are.

labels.csv (UTF-8, with a header line):

`path`            the image, relative to the folder, with forward slashes
`label`           one of cxr.common.classes.LABELS
`patient_id`      optional; who the image is of, in the hospital's words
`official_split`  optional; a part that the hospital has set aside, such as `test`; empty: `all`

Who a DICOM image is of stands in its PatientID; a `patient_id` in labels.csv comes first. Neither is kept: what goes
on is a digest (see cxr/dicom/deidentify.py). An image that names nobody counts as a person of its own.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cxr.common.classes import LABELS, Label
from cxr.common.errors import ImageError, SourceError
from cxr.dataset.layouts import Placement, Refusal
from cxr.dicom.deidentify import patient_digest, patient_key, read_identity, without_patient
from cxr.imaging.decode import is_dicom

LABELLED = "labelled"
"""The layout's name in params.yaml."""

LABELS_FILE = "labels.csv"
NOT_LABELLED = "not in labels.csv"

_COLUMNS = ("path", "label")
_OPTIONAL = ("patient_id", "official_split")


@dataclass(frozen=True)
class LabelledFolder:
    """A folder whose images are labelled by a table. Its repr shows no patient."""

    folder: Path
    rows: Mapping[PurePosixPath, "Row"] = field(repr=False)
    key: bytes = field(repr=False)

    def place(self, path: PurePosixPath, data: bytes) -> Placement | Refusal:
        """Return what is known of the image `path`, relative to the folder, or why it is not taken."""
        row = self.rows.get(path)
        if row is None:
            return Refusal(NOT_LABELLED, f"has no line in {LABELS_FILE}; add one, or leave the file out")
        try:
            patient, issuer = _patient(row, path, data)
        except ImageError as error:
            return Refusal(error.reason, str(error))
        return Placement(row.label, row.official_split, patient_digest(patient, issuer=issuer, key=self.key))

    def kept(self, path: PurePosixPath, data: bytes, *, max_pixels: int) -> bytes:
        """Return what of the image may be kept: of a DICOM image its picture, of another the file as it came.

        Raises:
            ImageError: a DICOM file is no image that can be read.
        """
        return without_patient(data, name=str(path), max_pixels=max_pixels) if is_dicom(data) else data


@dataclass(frozen=True)
class Row:
    """A line of labels.csv."""

    label: Label
    official_split: str
    patient_id: str = field(repr=False)


def read_labelled_folder(folder: Path) -> LabelledFolder:
    """Read a folder's labels.csv, and the key for its patients' digests.

    Raises:
        SourceError: labels.csv is missing or not what is expected (names the line), or there is no key.
    """
    table = folder / LABELS_FILE
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(table, reader.fieldnames or ())
            rows = _rows(table, reader)
    except FileNotFoundError:
        raise SourceError(f"{table} is missing: expected a table with the columns {', '.join(_COLUMNS)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{table} cannot be read as CSV in UTF-8: {type(error).__name__}; write it again") from None
    if not rows:
        raise SourceError(f"{table} has no line below its header; expected one an image")
    return LabelledFolder(folder.resolve(), rows, patient_key())


def _check_columns(table: Path, columns: Sequence[str]) -> None:
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise SourceError(
            f"{table}: missing in its header: {', '.join(missing)}; "
            f"expected {', '.join(_COLUMNS)}, and where known {', '.join(_OPTIONAL)}"
        )


def _rows(table: Path, reader: "csv.DictReader[str]") -> dict[PurePosixPath, Row]:
    rows: dict[PurePosixPath, Row] = {}
    for line in reader:
        values = {column: (line.get(column) or "").strip() for column in (*_COLUMNS, *_OPTIONAL)}
        path = PurePosixPath(values["path"])
        where = f"{table}, line {reader.line_num}"
        if not values["path"] or path.is_absolute() or ".." in path.parts:
            raise SourceError(f"{where}: path has to be of a file below the folder, relative to it")
        if values["label"] not in LABELS:
            raise SourceError(f"{where}: label has to be one of {', '.join(LABELS)}, got {values['label']!r}")
        if path in rows:
            raise SourceError(f"{where}: {path} has a line already; keep one")
        label = next(label for label in LABELS if label == values["label"])
        rows[path] = Row(label, values["official_split"] or "all", values["patient_id"])
    return rows


def _patient(row: Row, path: PurePosixPath, data: bytes) -> tuple[str, str]:
    """Return a patient's number and who issued it; for an image that names nobody its own path."""
    if row.patient_id:
        return row.patient_id, ""
    if is_dicom(data):
        identity = read_identity(data, name=str(path))
        if identity.patient_id:
            return identity.patient_id, identity.issuer
    return str(path), "path"
