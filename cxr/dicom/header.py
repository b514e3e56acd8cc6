"""Parse the header of a DICOM image, and reject files that are not frontal chest X-rays.

Accepted are single grey frames of CR, DX and RG, frontal, of the chest. An empty body part or view is accepted, because
many hospitals leave them empty. Messages have no values of free-text tags.

FieldOfViewRotation and FieldOfViewHorizontalFlip are not applied: they describe what was already done to the image, and
PatientOrientation describes the result (PS3.3 C.8.11.5).
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from cxr.dicom.codec import SYNTAXES as COMPRESSED
from cxr.dicom.tags import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    DicomError,
    code_meanings,
    code_string,
    items,
    number,
    numbers,
    read_dicom,
    text,
    values_of,
)

MODALITIES = ("CR", "DX", "RG")
_OTHER_MODALITIES = {
    "CT": "computed tomography",
    "MR": "magnetic resonance",
    "US": "ultrasound",
    "MG": "mammography",
    "PT": "positron emission tomography",
    "NM": "nuclear medicine",
    "XA": "angiography",
    "RF": "fluoroscopy",
    "IO": "intra-oral radiography",
    "PX": "panoramic radiography",
    "OT": "other, such as a secondary capture or an overlay of this software",
    "SC": "secondary capture",
    "XC": "photography",
    "ES": "endoscopy",
    "SM": "microscopy",
    "ECG": "a waveform",
}
_WITHOUT_PIXELS = {"SR", "PR", "KO", "DOC", "RTPLAN", "RTSTRUCT", "REG", "SEG"}
_DIRECTORY = "1.2.840.10008.1.3.10"
_CHEST_WORDS = ("CHEST", "THORA", "TORAX", "LUNG", "CXR")
_LATERAL_CODES = {
    "R-10224", "R-10228", "R-10232", "R-10236", "399067008", "399173006", "399198007", "399352003",
}  # fmt: skip
_LATERAL_VIEWS = (
    "LL",
    "RL",
    "LAT",
    "LPO",
    "RPO",
    "LAO",
    "RAO",
)  # as prefixes: LL and RL also match LLD, RLD, LLO and RLO

BASELINE, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"
NATIVE = frozenset({IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED})
SYNTAXES = NATIVE | COMPRESSED | {BASELINE}

Level = TypeVar("Level", np.uint8, np.uint16)

_SQUARE_WITHIN = 0.001
_ASPECT_AT_MOST = 4.0


@dataclass(frozen=True)
class Turn:
    """Transposition and flips, in this order, that turn stored pixels to the usual display orientation."""

    transpose: bool = False
    left_right: bool = False
    up_down: bool = False

    def apply(self, pixels: NDArray[Level]) -> NDArray[Level]:
        """Return `pixels` (rows, columns) turned."""
        turned = pixels.T if self.transpose else pixels
        turned = turned[:, ::-1] if self.left_right else turned
        return np.ascontiguousarray(turned[::-1] if self.up_down else turned)


@dataclass(frozen=True)
class DicomHeader:
    """The header of an image, without any data of the patient.

    aspect         height of a stored pixel divided by its width; 1.0: square
    width, height  of the image that `DicomImage.grey` returns: square pixels, display orientation
    view, laterality   as codes, such as PA and L; empty where the header does not say
    """

    modality: str
    transfer_syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    inverted: bool
    aspect: float
    turn: Turn
    view: str = ""
    laterality: str = ""

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self._square_shape()[0] if self.turn.transpose else self._square_shape()[1]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self._square_shape()[1] if self.turn.transpose else self._square_shape()[0]

    def with_square_pixels(self, pixels: NDArray[Level]) -> NDArray[Level]:
        """Return the stored pixels resampled to square ones; the side with the finer resolution is reduced."""
        rows, columns = self._square_shape()
        if (rows, columns) == pixels.shape:
            return pixels
        return np.asarray(cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA), pixels.dtype)

    def _square_shape(self) -> tuple[int, int]:
        if abs(self.aspect - 1.0) <= _SQUARE_WITHIN:
            return self.rows, self.columns
        if self.aspect > 1.0:
            return self.rows, max(1, round(self.columns / self.aspect))
        return max(1, round(self.rows * self.aspect)), self.columns


def parse_header(dataset: Dataset, max_pixels: int) -> DicomHeader:
    """Return the header of an image.

    Raises:
        DicomError: it is not a readable chest X-ray, or has more than `max_pixels` pixels.
    """
    _reject_other_objects(dataset)
    _reject_other_views(dataset)
    _reject_unreadable_pixels(dataset)
    rows, columns = number(dataset, "Rows"), number(dataset, "Columns")
    if rows * columns > max_pixels:
        raise DicomError(
            "larger than the pixel limit",
            f"is larger than the pixel limit: {columns} x {rows} pixels, allowed {max_pixels}; "
            "raise max_pixels in params.yaml if such images are expected",
        )
    bits_stored = number(dataset, "BitsStored")
    return DicomHeader(
        modality=code_string(dataset, "Modality"),
        transfer_syntax=str(dataset.file_meta.TransferSyntaxUID),
        rows=rows,
        columns=columns,
        bits_allocated=number(dataset, "BitsAllocated"),
        bits_stored=bits_stored,
        high_bit=number(dataset, "HighBit", bits_stored - 1),
        signed=number(dataset, "PixelRepresentation", 0) == 1,
        inverted=code_string(dataset, "PhotometricInterpretation") == "MONOCHROME1"
        or code_string(dataset, "PresentationLUTShape") == "INVERSE",
        aspect=_aspect(dataset),
        turn=_turn(dataset),
        view=code_string(dataset, "ViewPosition"),
        laterality=code_string(dataset, "ImageLaterality") or code_string(dataset, "Laterality"),
    )


def sop_instance_uid(data: bytes) -> str:
    """Return the UID that a DICOM image has in its study, "" where its header has none.

    Raises:
        DicomError: the header cannot be read.
    """
    return text(read_dicom(data, ["SOPInstanceUID"]), "SOPInstanceUID")


def is_other_body_part(part: str) -> bool:
    """Return whether a header's body part is not the chest; False for an empty one."""
    named = part.upper()
    return bool(named) and ("SPINE" in named or not any(chest in named for chest in _CHEST_WORDS))


def _reject_other_objects(dataset: Dataset) -> None:
    modality = code_string(dataset, "Modality")
    is_directory = code_string(dataset.file_meta, "MediaStorageSOPClassUID") == _DIRECTORY
    if is_directory or modality in _WITHOUT_PIXELS or ("PixelData" not in dataset and modality in MODALITIES):
        raise DicomError("no pixels", "has no pixels, like a report or a DICOMDIR; give the images")
    if modality not in MODALITIES:
        named = _OTHER_MODALITIES.get(modality, "missing or unknown")
        raise DicomError(
            "other modality",
            f"is not a radiograph: its modality is {named}; expected {', '.join(MODALITIES)}; remove it",
        )
    if code_string(dataset, "PresentationIntentType") == "FOR PROCESSING":
        raise DicomError("for processing", "holds raw detector values; give the image FOR PRESENTATION")


def _reject_other_views(dataset: Dataset) -> None:
    part = code_string(dataset, "BodyPartExamined") or code_meanings(dataset, "AnatomicRegionSequence")
    if is_other_body_part(part):
        raise DicomError("other body part", "shows another body part, according to its header; remove it")
    views = [text(item, "CodeValue") for item in items(dataset, "ViewCodeSequence")]
    view_meanings = code_meanings(dataset, "ViewCodeSequence")
    axes = _orientation(dataset)
    if (
        code_string(dataset, "ViewPosition").startswith(_LATERAL_VIEWS)
        or not _LATERAL_CODES.isdisjoint(views)
        or "LATERAL" in view_meanings.replace("LATERALITY", "")
        or "OBLIQUE" in view_meanings
        or not {"A", "P"}.isdisjoint(axes)
    ):
        raise DicomError("lateral view", "is a lateral or oblique view, according to its header; give a frontal image")


def _reject_unreadable_pixels(dataset: Dataset) -> None:
    frames = number(dataset, "NumberOfFrames", 1)
    if frames > 1:
        raise DicomError("several frames", f"has {frames} frames; expected one; export its frames separately")
    photometric = code_string(dataset, "PhotometricInterpretation")
    if number(dataset, "SamplesPerPixel", 1) != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise DicomError("colour", "is in colour; expected a grey image: MONOCHROME1 or MONOCHROME2")
    if str(dataset.file_meta.TransferSyntaxUID) not in SYNTAXES:
        raise DicomError("unsupported encoding", "has a transfer syntax that cannot be decoded; export it uncompressed")
    allocated, stored = number(dataset, "BitsAllocated"), number(dataset, "BitsStored")
    high_bit = number(dataset, "HighBit", stored - 1)
    if allocated not in (8, 16) or stored < 2 or not stored - 1 <= high_bit < allocated:
        raise DicomError(
            "unsupported encoding",
            f"stores {stored} of {allocated} bits per sample, up to bit {high_bit}; expected 2 or more of 8 or 16",
        )
    if number(dataset, "Rows") < 1 or number(dataset, "Columns") < 1:
        raise DicomError("no pixels", "has no rows or columns, according to its header; export it again")


def _aspect(dataset: Dataset) -> float:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        pair = numbers(dataset, keyword)
        if len(pair) == 2 and all(math.isfinite(number) and number > 0 for number in pair):
            aspect = pair[0] / pair[1]
            if not 1 / _ASPECT_AT_MOST <= aspect <= _ASPECT_AT_MOST:
                raise DicomError(
                    "not an image", f"has pixels {aspect:.3g} times as high as wide; correct its pixel spacing"
                )
            return aspect
    return 1.0


def _orientation(dataset: Dataset) -> tuple[str, ...]:
    """Return the directions of rows and columns as one letter each; empty if missing."""
    axes = tuple(str(axis).strip().upper()[:1] for axis in values_of(dataset, "PatientOrientation"))
    return axes if len(axes) == 2 and all(axes) else ()


def _turn(dataset: Dataset) -> Turn:
    """Return the turn to display orientation: rows to the patient's left, columns to the feet (L, F)."""
    axes = _orientation(dataset)
    transpose = axes[:1] in {("F",), ("H",)}
    rows, columns = (axes[::-1] if transpose else axes) or ("", "")
    if rows not in {"L", "R"} or columns not in {"F", "H"}:
        return Turn()
    return Turn(transpose, left_right=rows == "R", up_down=columns == "H")
