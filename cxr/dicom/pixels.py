"""Decode DICOM images to grey levels: display orientation, square pixels, bone bright.

This module reads only the tags in `IMAGE_TAGS`, and none of them identifies the patient. cxr/dicom/deidentify.py reads
those of study and patient.
"""

import math
import struct
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame

from cxr.dicom.codec import FrameError, decompress
from cxr.dicom.cost import COSTLY, MOST_SCANNED_PIXELS, is_compressed_beyond_reason, scanned_pixels
from cxr.dicom.greyscale import GreyRules, Preset, Table, WideLevels, Window, WindowKind, table
from cxr.dicom.header import BASELINE, NATIVE, RLE, DicomHeader, parse_header
from cxr.dicom.opencv import decoded
from cxr.dicom.tags import (
    BIG_ENDIAN,
    DicomError,
    code_string,
    image_errors,
    integers,
    items,
    numbers,
    read_dicom,
    text,
    truncated,
    values_of,
)

IMAGE_TAGS = (
    "SOPClassUID", "Modality", "BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence",
    "PresentationIntentType", "PatientOrientation", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames",
    "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept",
    "RescaleSlope", "RescaleType", "ModalityLUTSequence", "VOILUTSequence", "WindowCenter", "WindowWidth",
    "WindowCenterWidthExplanation", "VOILUTFunction",
    "PresentationLUTShape", "ImageLaterality", "Laterality", "PixelData",
)  # fmt: skip

_MOST_PRESETS = 16  # of thousands that a file may name
_UNSPECIFIED = "US"


@dataclass(frozen=True, eq=False)
class DicomImage:
    """A DICOM image whose header has been read and accepted; `name` names the file in messages."""

    name: str
    header: DicomHeader
    _dataset: Dataset

    def grey(self) -> NDArray[np.uint8]:
        """Decode to grey levels, in display orientation, with square pixels.

        Returns:
            (height, width) uint8; bone is bright, air and padding are dark.

        Raises:
            ImageError: the pixels are truncated or damaged.
        """
        with image_errors(self.name):
            samples = samples_of(self._dataset, self.header)
            grey = grey_rules(self._dataset, self.header).apply(samples)
            return self.header.turn.apply(self.header.with_square_pixels(grey))

    def wide(self) -> WideLevels:
        """Decode to 16-bit levels, in the geometry and polarity of `grey`, for a viewer that applies the window itself.

        Raises:
            ImageError: the pixels are truncated or damaged.
        """
        with image_errors(self.name):
            wide = grey_rules(self._dataset, self.header).wide(samples_of(self._dataset, self.header))
            return replace(wide, levels=self.header.turn.apply(self.header.with_square_pixels(wide.levels)))

    def presets(self) -> list[Preset]:
        """Return the windows that the file offers, the first one first; none where a VOI LUT takes their place."""
        with image_errors(self.name):
            if self._has_voi_lut():
                return []
            names = [str(name).strip(" \0") for name in values_of(self._dataset, "WindowCenterWidthExplanation")]
            windows = zip_longest(_windows(self._dataset)[:_MOST_PRESETS], names[:_MOST_PRESETS], fillvalue=None)
            return [Preset(name or "", window.centre, window.width) for window, name in windows if window]

    def unit(self) -> str:
        """Return the unit of a viewer's levels, such as HU; empty where the file names none."""
        with image_errors(self.name):
            named = text(self._dataset, "RescaleType")
            return "" if named == _UNSPECIFIED or self._has_voi_lut() else named

    def _has_voi_lut(self) -> bool:
        return bool(items(self._dataset, "VOILUTSequence"))


def open_dicom(data: bytes, *, name: str, max_pixels: int) -> DicomImage:
    """Read the header of an image without decoding it.

    Args:
        data: the file's bytes.
        name: name of the file in messages.
        max_pixels: larger images are rejected.

    Raises:
        ImageError: it is not a readable chest X-ray; see its reasons. The message has no patient data.
    """
    with image_errors(name):
        dataset = read_dicom(data, IMAGE_TAGS)
        return DicomImage(name, parse_header(dataset, max_pixels), dataset)


def grey_rules(dataset: Dataset, header: DicomHeader) -> GreyRules:
    """Return the rules from samples to grey levels. Its exceptions are to be handled by `image_errors`."""
    little_endian = header.transfer_syntax != BIG_ENDIAN

    def lut(keyword: str, *, signed: bool) -> Table | None:
        for item in items(dataset, keyword):
            descriptor = integers(item["LUTDescriptor"].value, little_endian=little_endian)
            data = item["LUTData"].value
            numbers = data if isinstance(data, bytes) else integers(data, little_endian=little_endian)
            return table(descriptor, numbers, signed=signed, little_endian=little_endian)
        return None

    modality = lut("ModalityLUTSequence", signed=header.signed)
    rescale = numbers(dataset, "RescaleSlope")[:1] + numbers(dataset, "RescaleIntercept")[:1]
    usable = len(rescale) == 2 and all(map(math.isfinite, rescale)) and rescale[0] != 0
    slope, intercept = (rescale[0], rescale[1]) if usable else (1.0, 0.0)
    measured_signed = modality is None and (header.signed or intercept < 0 or slope < 0)
    return GreyRules(
        bits_stored=header.bits_stored,
        signed=header.signed,
        modality=modality or (slope, intercept),
        voi=lut("VOILUTSequence", signed=measured_signed) or _window(dataset),
        padding=_padding(dataset, header),
        inverted=header.inverted,
    )


def _window(dataset: Dataset) -> Window | None:
    """Return the first window, or None if its centre or width is missing or invalid."""
    return next(iter(_windows(dataset)), None)


def _windows(dataset: Dataset) -> list[Window | None]:
    """Return the windows; None for one whose centre or width is invalid."""
    function = code_string(dataset, "VOILUTFunction")
    kind = cast(WindowKind, function if function in {"LINEAR_EXACT", "SIGMOID"} else "LINEAR")
    least = 1.0 if kind == "LINEAR" else math.ulp(0.0)
    return [
        Window(centre, width, kind) if math.isfinite(centre) and math.isfinite(width) and width >= least else None
        for centre, width in zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False)
    ]


def _padding(dataset: Dataset, header: DicomHeader) -> tuple[int, int] | None:
    little_endian = header.transfer_syntax != BIG_ENDIAN

    def value(keyword: str) -> int | None:
        if keyword not in dataset:
            return None
        found = integers(dataset[keyword].value, little_endian=little_endian)
        if not found:
            return None
        pattern = found[0] % (1 << header.bits_stored)
        negative = header.signed and pattern >> (header.bits_stored - 1)
        return pattern - (1 << header.bits_stored) if negative else pattern

    one, other = value("PixelPaddingValue"), value("PixelPaddingRangeLimit")
    if one is None:
        return None
    other = one if other is None else other
    return min(one, other), max(one, other)


def samples_of(dataset: Dataset, header: DicomHeader) -> NDArray[np.uint16]:
    """Return the bit patterns of the samples (rows, columns), shifted and masked to the stored bits."""
    if header.transfer_syntax in NATIVE:
        patterns = _native(dataset, header) >> np.uint16(header.high_bit + 1 - header.bits_stored)
    else:
        patterns = _decompressed(dataset, header)
    return patterns & np.uint16((1 << header.bits_stored) - 1)


def _native(dataset: Dataset, header: DicomHeader) -> NDArray[np.uint16]:
    element = dataset["PixelData"]
    big_endian = header.transfer_syntax == BIG_ENDIAN
    expected = header.rows * header.columns * (header.bits_allocated // 8)
    data = element.value
    if not isinstance(data, bytes) or len(data) < expected:
        raise truncated()
    if header.bits_allocated == 16:
        stored = np.frombuffer(data[:expected], ">u2" if big_endian else "<u2")
    elif big_endian and element.VR == "OW":  # two samples per word, and the words are swapped
        stored = np.frombuffer(data[: len(data) // 2 * 2], np.uint8).reshape(-1, 2)[:, ::-1].ravel()[:expected]
    else:
        stored = np.frombuffer(data[:expected], np.uint8)
    if stored.size < header.rows * header.columns:
        raise truncated()
    return stored.astype(np.uint16).reshape(header.rows, header.columns)


def _decompressed(dataset: Dataset, header: DicomHeader) -> NDArray[np.uint16]:
    frame = get_frame(dataset["PixelData"].value, 0, number_of_frames=1)
    if header.transfer_syntax != RLE:
        frame = frame.rstrip(b"\0")
        if not frame.endswith(b"\xff\xd9"):  # the end of every JPEG, JPEG-LS and JPEG 2000 codestream
            raise truncated()
    scanned = scanned_pixels(frame, width=header.columns, height=header.rows)
    if is_compressed_beyond_reason(frame, rows=header.rows, columns=header.columns) or (
        header.transfer_syntax == BASELINE and scanned > MOST_SCANNED_PIXELS
    ):
        raise DicomError(COSTLY, "describes more pixels or scans than its bytes can hold; export it uncompressed")
    try:
        if header.transfer_syntax == BASELINE:
            return _baseline(frame, header)
        return decompress(
            frame,
            header.transfer_syntax,
            rows=header.rows,
            columns=header.columns,
            bits_allocated=header.bits_allocated,
            bits_stored=header.bits_stored,
            signed=header.signed,
        )
    except FrameError as error:
        raise DicomError("not an image", f"has damaged pixels ({error}); copy it again") from None


def _baseline(frame: bytes, header: DicomHeader) -> NDArray[np.uint16]:
    if _jpeg_size(frame) != (header.rows, header.columns, 1):
        raise FrameError("its JPEG has another size or is in colour")
    flag = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    grey = decoded(frame, flag, pixels=header.rows * header.columns)
    if grey is None or grey.shape != (header.rows, header.columns):
        raise FrameError("the decoder failed")
    return np.asarray(grey).astype(np.uint16)


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return rows, columns and components from the frame header of a JPEG, without decoding it."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            rows, columns, components = struct.unpack(">HHB", frame[at + 5 : at + 10])
            return rows, columns, components
        at += 2 + length
    return None
