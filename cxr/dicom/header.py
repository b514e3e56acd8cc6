"""What a DICOM image's header says of its picture, and which files are refused for what it says.

Taken are single grey frames of CR, DX and RG, frontal, of the chest. An empty body part or view refuses nothing:
many hospitals leave them empty. Messages repeat no value of a tag that holds free text.

FieldOfViewRotation and FieldOfViewHorizontalFlip are not applied: they say what was done to the image already, and
PatientOrientation describes the result (PS3.3 C.8.11.5).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.dicom.codec import SYNTAXES as COMPRESSED
from cxr.dicom.tags import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    UnfitError,
    items,
    listed,
    meanings,
    number,
    numbers,
    text,
    word,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

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
    "OT": "other, such as a secondary capture or an answer of this software",
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
_LATERAL_VIEWS = ("LL", "RL", "LAT", "LPO", "RPO", "LAO", "RAO")  # LLD, RLD, LLO and RLO begin like the first two

BASELINE, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"
NATIVE = frozenset({IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED})
SYNTAXES = NATIVE | COMPRESSED | {BASELINE}

_SQUARE_WITHIN = 0.001
_ASPECT_AT_MOST = 4.0


@dataclass(frozen=True)
class Turn:
    """How the stored picture is brought the usual way up: first transposed, then flipped."""

    transpose: bool = False
    left_right: bool = False
    up_down: bool = False

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return `picture` turned."""
        turned = picture.T if self.transpose else picture
        turned = turned[:, ::-1] if self.left_right else turned
        return np.ascontiguousarray(turned[::-1] if self.up_down else turned)


@dataclass(frozen=True)
class DicomHeader:
    """What an image's header says of its picture; nothing in it is the patient's.

    aspect         height of a stored pixel as a share of its width; 1.0: square
    width, height  of the image as `decode_dicom` returns it: square pixels, the usual way up
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

    @property
    def width(self) -> int:
        """Pixels from side to side."""
        return self._square()[0] if self.turn.transpose else self._square()[1]

    @property
    def height(self) -> int:
        """Pixels from head to foot."""
        return self._square()[1] if self.turn.transpose else self._square()[0]

    def square(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the stored picture in square pixels; the finer side is shrunk, so that it never grows."""
        rows, columns = self._square()
        if (rows, columns) == picture.shape:
            return picture
        return np.asarray(cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)

    def _square(self) -> tuple[int, int]:
        if abs(self.aspect - 1.0) <= _SQUARE_WITHIN:
            return self.rows, self.columns
        if self.aspect > 1.0:
            return self.rows, max(1, round(self.columns / self.aspect))
        return max(1, round(self.rows * self.aspect)), self.columns


def header_of(dataset: "Dataset", max_pixels: int) -> DicomHeader:
    """Return what the picture is like.

    Raises:
        UnfitError: it is no chest X-ray that can be read, or has more than `max_pixels` pixels.
    """
    _refuse_other_objects(dataset)
    _refuse_other_views(dataset)
    _refuse_unreadable_pixels(dataset)
    rows, columns = number(dataset, "Rows"), number(dataset, "Columns")
    if rows * columns > max_pixels:
        raise UnfitError(
            "larger than the pixel limit",
            f"is larger than the pixel limit: {columns} x {rows} pixels, allowed {max_pixels}; "
            "raise max_pixels in params.yaml if such images are expected",
        )
    bits_stored = number(dataset, "BitsStored")
    return DicomHeader(
        modality=word(dataset, "Modality"),
        transfer_syntax=str(dataset.file_meta.TransferSyntaxUID),
        rows=rows,
        columns=columns,
        bits_allocated=number(dataset, "BitsAllocated"),
        bits_stored=bits_stored,
        high_bit=number(dataset, "HighBit", bits_stored - 1),
        signed=number(dataset, "PixelRepresentation", 0) == 1,
        inverted=word(dataset, "PhotometricInterpretation") == "MONOCHROME1"
        or word(dataset, "PresentationLUTShape") == "INVERSE",
        aspect=_aspect(dataset),
        turn=_turn(dataset),
    )


def is_other_body_part(part: str) -> bool:
    """Say whether a body part, as a header names it, is another than the chest; one that is not named is none."""
    named = part.upper()
    return bool(named) and ("SPINE" in named or not any(chest in named for chest in _CHEST_WORDS))


def _refuse_other_objects(dataset: "Dataset") -> None:
    modality = word(dataset, "Modality")
    is_directory = word(dataset.file_meta, "MediaStorageSOPClassUID") == _DIRECTORY
    if is_directory or modality in _WITHOUT_PIXELS or ("PixelData" not in dataset and modality in MODALITIES):
        raise UnfitError("no pixels", "has no picture, as a report or DICOMDIR has none; give the images")
    if modality not in MODALITIES:
        named = _OTHER_MODALITIES.get(modality, "not named, or of a kind unknown here")
        raise UnfitError(
            "other modality",
            f"is not a radiograph: its modality is {named}; expected {', '.join(MODALITIES)}; leave it out",
        )
    if word(dataset, "PresentationIntentType") == "FOR PROCESSING":
        raise UnfitError("for processing", "holds a detector's raw values; give the image that is FOR PRESENTATION")


def _refuse_other_views(dataset: "Dataset") -> None:
    part = word(dataset, "BodyPartExamined") or meanings(dataset, "AnatomicRegionSequence")
    if is_other_body_part(part):
        raise UnfitError(
            "other body part", "shows another part of the body than the chest, its header says; leave it out"
        )
    views = [text(item, "CodeValue") for item in items(dataset, "ViewCodeSequence")]
    meant = meanings(dataset, "ViewCodeSequence")
    axes = _orientation(dataset)
    if (
        word(dataset, "ViewPosition").startswith(_LATERAL_VIEWS)
        or not _LATERAL_CODES.isdisjoint(views)
        or "LATERAL" in meant.replace("LATERALITY", "")
        or "OBLIQUE" in meant
        or not {"A", "P"}.isdisjoint(axes)
    ):
        raise UnfitError("lateral view", "is a lateral or oblique view, its header says; give a frontal image")


def _refuse_unreadable_pixels(dataset: "Dataset") -> None:
    frames = number(dataset, "NumberOfFrames", 1)
    if frames > 1:
        raise UnfitError(
            "several frames", f"has {frames} frames; expected an image of one; export its frames one by one"
        )
    photometric = word(dataset, "PhotometricInterpretation")
    if number(dataset, "SamplesPerPixel", 1) != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise UnfitError("colour", "is stored in colour; expected a grey image: MONOCHROME1 or MONOCHROME2")
    if str(dataset.file_meta.TransferSyntaxUID) not in SYNTAXES:
        raise UnfitError("unsupported encoding", "has a transfer syntax that cannot be decoded; export it uncompressed")
    allocated, stored = number(dataset, "BitsAllocated"), number(dataset, "BitsStored")
    high_bit = number(dataset, "HighBit", stored - 1)
    if allocated not in (8, 16) or stored < 2 or not stored - 1 <= high_bit < allocated:
        raise UnfitError(
            "unsupported encoding",
            f"has {stored} of {allocated} bits a sample, up to bit {high_bit}; expected 2 or more of 8 or 16",
        )
    if number(dataset, "Rows") < 1 or number(dataset, "Columns") < 1:
        raise UnfitError("no pixels", "has no rows or no columns, its header says; export it again")


def _aspect(dataset: "Dataset") -> float:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        pair = numbers(dataset, keyword)
        if len(pair) == 2 and all(math.isfinite(number) and number > 0 for number in pair):
            aspect = pair[0] / pair[1]
            if not 1 / _ASPECT_AT_MOST <= aspect <= _ASPECT_AT_MOST:
                raise UnfitError("not an image", f"has pixels {aspect:.3g} times as high as wide; correct its spacing")
            return aspect
    return 1.0


def _orientation(dataset: "Dataset") -> tuple[str, ...]:
    """Return where the rows and the columns run to, as one letter each; empty when not said."""
    axes = tuple(str(axis).strip().upper()[:1] for axis in listed(dataset, "PatientOrientation"))
    return axes if len(axes) == 2 and all(axes) else ()


def _turn(dataset: "Dataset") -> Turn:
    """The usual way up: rows run to the patient's left, columns to the feet (L, F)."""
    axes = _orientation(dataset)
    transpose = axes[:1] in {("F",), ("H",)}
    rows, columns = (axes[::-1] if transpose else axes) or ("", "")
    if rows not in {"L", "R"} or columns not in {"F", "H"}:
        return Turn()
    return Turn(transpose, left_right=rows == "R", up_down=columns == "H")
