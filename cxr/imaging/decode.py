"""From the bytes of an image file, DICOM included, to grey levels."""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cxr.common.errors import ImageError
from cxr.common.warning_filters import ignore_warnings_of
from cxr.dicom.cost import COSTLY, MOST_SCANNED_PIXELS, scanned_pixels
from cxr.dicom.opencv import decoded
from cxr.imaging.preprocess import Preprocessing, min_decoded_side_px, prepare

if TYPE_CHECKING:
    from cxr.dicom.pixels import DicomImage

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "DICOM")
# By signature and not by Image.open, which warns of large images; warnings cannot be silenced safely in threads.
_READERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    _PNG_SIGNATURE: PngImageFile,
    b"BM": BmpImageFile,
    b"II*\x00": TiffImageFile,
    b"MM\x00*": TiffImageFile,
}
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".dcm", ".dicom"})

_DICOM_PREFIX_OFFSET, _DICOM_PREFIX = 128, b"DICM"
_FIRST_VRS = {b"UL", b"UI", b"CS", b"OB", b"SH", b"LO", b"DA"}
_MAX_FIRST_LENGTH = 64

_GREY = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    1: cv2.IMREAD_GRAYSCALE,
}
_COLOUR = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR,
}
_PHOTOMETRIC = 262  # tag of TIFF; 0: the lowest level is white
_JPEG_START_OF_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True)
class Header:
    """The header of an image. `mode` is "L" (8-bit grey), "L16" (16-bit grey), "RGB" or "RGBA"; `format` in FORMATS.

    The size is as stored; of a DICOM image as decoded, in display orientation with square pixels. `is_negative`: a deep
    TIFF whose level 0 is white; OpenCV inverts those of 8 bits only.
    """

    width: int
    height: int
    mode: str
    format: str
    is_negative: bool = False


def is_image_file(path: Path) -> bool:
    """Return whether a file may be an image, by its suffix; a file without a suffix of letters, by its signature.

    A PACS writes DICOM files as IM000001 or 1.2.840.113.5.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if any(letter.isalpha() for letter in suffix):
        return False
    with path.open("rb") as file:
        return is_dicom(file.read(_DICOM_PREFIX_OFFSET + len(_DICOM_PREFIX)))


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image file whose header has been read and accepted; it can be decoded several times.

    data     the file's bytes
    name     name of the file in messages
    header   of the file
    """

    data: bytes
    name: str
    header: Header
    _dicom: "DicomImage | None" = None

    def grey(self, *, min_side_px: int | None = None) -> NDArray[np.uint8]:
        """Decode to grey levels.

        Colour is converted to luma (ITU-R BT.601), transparency is dropped, EXIF rotation is applied, and 16-bit images
        are stretched from their darkest and brightest level to 0 and 255.

        Args:
            min_side_px: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (in the DCT domain) as long as
                its shorter side has at least this length.

        Returns:
            (height, width) uint8.

        Raises:
            ImageError: the decoder fails ("not an image").
        """
        if self._dicom is not None:
            return self._dicom.grey()
        return _grey(self.data, self.name, self.header, _reduction(self.header, min_side_px))

    def wide(self) -> "WidePixels":
        """Decode at full size and depth, for a viewer that applies the window itself.

        Raises:
            ImageError: see `grey`.
        """
        if self._dicom is not None:
            return self._wide_dicom(self._dicom)
        if self.header.mode != "L16":
            return WidePixels(self.grey(), (0.0, 255.0))
        deep = _pixels(self.data, self.name, cv2.IMREAD_ANYDEPTH, self.header)
        if deep.dtype != np.uint16:
            return WidePixels(self.grey(), (0.0, 255.0))
        return WidePixels(np.asarray(deep, np.uint16), (float(deep.min()), float(deep.max())))

    def _wide_dicom(self, image: "DicomImage") -> "WidePixels":
        view, laterality = image.header.view, image.header.laterality
        if self.header.mode != "L16":
            return WidePixels(self.grey(), (0.0, 255.0), view=view, laterality=laterality)
        wide = image.wide()
        presets = tuple((preset.name, preset.centre, preset.width) for preset in image.presets())
        return WidePixels(wide.levels, wide.window, wide.zero, wide.step, image.unit(), presets, view, laterality)

    def with_colour(self, *, min_side_px: int | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Decode like `grey`, and also in colour if the image has any.

        Most colour files are grey: their three channels are equal to each other and to the result of `grey`. Such an
        image is decoded once.

        Returns:
            (height, width) uint8, and None for a grey image or (height, width, 3) uint8 in the order blue, green, red.

        Raises:
            ImageError: see `grey`.
        """
        if self._dicom is not None or self.header.mode in {"L", "L16"}:
            return self.grey(min_side_px=min_side_px), None
        colour = _pixels(self.data, self.name, _COLOUR[_reduction(self.header, min_side_px)], self.header)
        if colour.ndim != 3 or colour.dtype != np.uint8:
            return self.grey(min_side_px=min_side_px), None
        blue, green, red = cv2.split(np.asarray(colour, np.uint8))
        if cv2.norm(blue, green, cv2.NORM_INF) == 0 and cv2.norm(green, red, cv2.NORM_INF) == 0:
            return np.asarray(blue, np.uint8), None
        return self.grey(min_side_px=min_side_px), np.asarray(colour, np.uint8)


@dataclass(frozen=True, eq=False)
class WidePixels:
    """An image at full size and depth.

    levels      (H, W), uint8 or uint16; bone is bright
    window      lowest and highest level of the window to start with
    zero, step  a level stands for the value `zero + step * level`; `step` may be negative
    unit        of a value, such as HU; empty where the file names none
    presets     name, centre and width of each window that the file offers, in values; a name may be empty
    view, laterality   DICOM codes, such as PA and L; empty where the file does not say
    """

    levels: NDArray[np.uint8] | NDArray[np.uint16]
    window: tuple[float, float]
    zero: float = 0.0
    step: float = 1.0
    unit: str = ""
    presets: tuple[tuple[str, float, float], ...] = ()
    view: str = ""
    laterality: str = ""


def open_image(data: bytes, *, name: str, max_pixels: int) -> EncodedImage:
    """Read the header of an image without decoding, and reject files that must not be decoded.

    Args:
        data: the file's bytes.
        name: name of the file in messages.
        max_pixels: larger images are rejected.

    Raises:
        ImageError: the file is empty, not in FORMATS, truncated, has more than `max_pixels` pixels, or would take too
            long to decode (cxr/dicom/cost.py); for DICOM see cxr.dicom.pixels.open_dicom.
    """
    if not data:
        raise ImageError(f"{name} is empty; copy it again from its source", reason="empty")
    if is_dicom(data):
        return _open_dicom(data, name=name, max_pixels=max_pixels)
    return EncodedImage(data, name, _read_header(data, name=name, max_pixels=max_pixels))


def decode_grey(data: bytes, *, name: str, max_pixels: int, min_side_px: int | None = None) -> NDArray[np.uint8]:
    """Open an image and decode it to grey levels; see open_image and EncodedImage.grey."""
    return open_image(data, name=name, max_pixels=max_pixels).grey(min_side_px=min_side_px)


def image_from_bytes(data: bytes, preprocessing: Preprocessing, *, name: str) -> NDArray[np.uint8]:
    """Decode and prepare one image; (image_size_px, image_size_px) uint8. Raises ImageError."""
    grey = decode_grey(
        data, name=name, max_pixels=preprocessing.max_pixels, min_side_px=min_decoded_side_px(preprocessing)
    )
    return prepare(grey, preprocessing)


def is_dicom(data: bytes) -> bool:
    """Return whether a file is DICOM. Without preamble, the first element needs group 2 or 8 and a plausible length."""
    if data[_DICOM_PREFIX_OFFSET : _DICOM_PREFIX_OFFSET + len(_DICOM_PREFIX)] == _DICOM_PREFIX:
        return True
    if len(data) < 12 or data[:2] not in {b"\x02\x00", b"\x08\x00"} or data[3] != 0:
        return False
    return data[4:6] in _FIRST_VRS or int.from_bytes(data[4:8], "little") <= _MAX_FIRST_LENGTH


def _read_header(data: bytes, *, name: str, max_pixels: int) -> Header:
    reader = next((reader for signature, reader in _READERS.items() if data.startswith(signature)), None)
    ignore_warnings_of("PIL")  # its warnings about missing tags are irrelevant here
    try:
        if reader is None:
            raise SyntaxError("no known signature")
        with reader(io.BytesIO(data)) as image:
            mode = _mode(image.mode)
            is_negative = mode == "L16" and isinstance(image, TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
            header = Header(image.width, image.height, mode, image.format or "", is_negative)
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ImageError(
            f"{name} is not an image: expected {', '.join(FORMATS)}; remove it or export it again",
            reason="not an image",
        ) from error
    if header.width * header.height > max_pixels:
        raise _too_large(name, f"{header.width} x {header.height} pixels", max_pixels)
    if header.format == "JPEG" and scanned_pixels(data, width=header.width, height=header.height) > MOST_SCANNED_PIXELS:
        raise ImageError(f"{name} has more scans than an image needs; export it as baseline JPEG", reason=COSTLY)
    if _is_truncated(data, header.format):
        raise ImageError(f"{name} is truncated: its end is missing; copy it again from its source", reason="truncated")
    return header


def _open_dicom(data: bytes, *, name: str, max_pixels: int) -> EncodedImage:
    from cxr.dicom.pixels import open_dicom  # pydicom takes 0.4 s to import, few images need it

    _reject_two_formats(data, name)
    image = open_dicom(data, name=name, max_pixels=max_pixels)
    mode = "L" if image.header.bits_stored <= 8 else "L16"
    return EncodedImage(data, name, Header(image.header.width, image.header.height, mode, "DICOM"), image)


def _reject_two_formats(data: bytes, name: str) -> None:
    # Some scanners write a TIFF signature into the preamble of DICOM files; none writes another signature.
    if any(data.startswith(signature) for signature, reader in _READERS.items() if reader is not TiffImageFile):
        raise ImageError(
            f"{name} has two formats in one file; export the image again in one format", reason="not an image"
        )


def _mode(pillow_mode: str) -> str:
    if pillow_mode.startswith("I"):
        return "L16"
    if pillow_mode in {"1", "L", "LA", "F"}:
        return "L"
    return "RGBA" if pillow_mode in {"RGBA", "PA"} else "RGB"


def _too_large(name: str, size: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"{name} is larger than the pixel limit: {size}, allowed {max_pixels}; "
        "raise max_pixels in params.yaml if such images are expected",
        reason="larger than the pixel limit",
    )


def _is_truncated(data: bytes, image_format: str) -> bool:
    # Inside a JPEG's compressed data every 0xff is stuffed, so these markers cannot occur by chance. A complete file
    # has an end marker after its last scan, even if a thumbnail with its own end marker comes first.
    if image_format == "JPEG":
        end = data.rfind(_JPEG_END)
        return end < 0 or data.find(_JPEG_START_OF_SCAN, end) >= 0
    return image_format == "PNG" and not _is_complete_png(data)


def _is_complete_png(data: bytes) -> bool:
    """Return whether all chunks are in the file. OpenCV allocates the size that a chunk claims."""
    at, size = len(_PNG_SIGNATURE), len(data)
    while at + 12 <= size:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return True
        if kind == b"IHDR" and at > len(_PNG_SIGNATURE):  # a second one could have another size than the checked one
            return False
        at += 12 + int(length)
    return False


def _reduction(header: Header, min_side_px: int | None) -> int:
    """Return the factor by which a JPEG may be reduced; 1 for other formats."""
    if min_side_px is None or header.format != "JPEG":
        return 1
    shorter = min(header.width, header.height)
    return next((factor for factor in _GREY if shorter // factor >= min_side_px), 1)


def _grey(data: bytes, name: str, header: Header, reduction: int) -> NDArray[np.uint8]:
    grey = _pixels(data, name, cv2.IMREAD_ANYDEPTH if header.mode == "L16" else _GREY[reduction], header)
    return np.asarray(grey, np.uint8) if grey.dtype == np.uint8 else _to_8_bit(grey)


def _pixels(data: bytes, name: str, flag: int, header: Header) -> NDArray[np.generic]:
    pixels = decoded(data, flag, pixels=header.width * header.height)
    if pixels is None:
        raise ImageError(f"{name} cannot be decoded: its contents are damaged; copy it again", reason="not an image")
    return np.invert(pixels) if header.is_negative and pixels.dtype.kind in "iu" else pixels


def _to_8_bit(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    low, high = int(grey.min()), int(grey.max())
    scale = 255.0 / max(high - low, 1)
    return np.asarray(np.rint((grey.astype(np.float32) - low) * scale), np.uint8)


_MAX_BYTES_PER_PIXEL = 8  # 16-bit RGBA, uncompressed


def max_file_bytes(max_pixels: int) -> int:
    """Return the largest size in bytes of a file with an image of `max_pixels` pixels, metadata included."""
    return max_pixels * _MAX_BYTES_PER_PIXEL + (1 << 20)
