"""What style says about one image: border, grey levels, sharpness, size and compression; and its pixels, small.

None of these numbers says where in the image something is, but for the border, in which hardly any lung lies.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from cxr.dataset.shards import Shards
from cxr.imaging.decode import open_image
from cxr.imaging.unattended import decode_kept

NETWORK_SIDE_PX = 224
THUMBNAIL_SIDE_PX = 64
HISTOGRAM_BINS = 32
_COARSE_SIDE, _RING = 20, 2  # the outer tenth of each side

STYLE_FAMILIES = ("border", "histogram", "sharpness", "size", "compression")
"""The kinds of style, by the names of the attributes of MeasuredImage."""


@dataclass(frozen=True)
class MeasuredImage:
    """One image.

    pixels       (224, 224) uint8, stretched; what a network gets
    thumbnail    (64, 64) uint8
    border       (144,) grey levels of the outer tenth of a 20 x 20 copy, 0 to 255
    histogram    (32,) shares of the grey levels
    sharpness    (4,) of `pixels`: log of the Laplacian's variance; mean steps across and down; share of the Laplacian's
                 energy that a blur of 1 px leaves
    size         (3,) width and height in pixels as stored, width / height
    compression  (3,) bytes a pixel; mean quantiser of luma, 0 if not JPEG; 1 for JPEG
    """

    pixels: NDArray[np.uint8]
    thumbnail: NDArray[np.uint8]
    border: NDArray[np.float32]
    histogram: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    size: NDArray[np.float32]
    compression: NDArray[np.float32]


def measure_image(data: bytes, *, name: str, max_pixels: int) -> MeasuredImage:
    """Decode and measure one image. Raises ImageError: see cxr.imaging.decode.open_image."""
    image = open_image(data, name=name, max_pixels=max_pixels)
    grey = image.grey(min_side_px=NETWORK_SIDE_PX)
    pixels = _resized(grey, NETWORK_SIDE_PX)
    shares = cv2.calcHist([grey], [0], None, [HISTOGRAM_BINS], [0, 256]).ravel() / grey.size
    width, height = image.header.width, image.header.height
    return MeasuredImage(
        pixels=pixels,
        thumbnail=_resized(pixels, THUMBNAIL_SIDE_PX),
        border=_border(pixels),
        histogram=np.asarray(shares, np.float32),
        sharpness=_sharpness(pixels),
        size=np.array([width, height, width / height], np.float32),
        compression=np.array([len(data) / (width * height), *_quantiser(data, image.header.format)], np.float32),
    )


def measure_each(shards: Shards, paths: Sequence[str], *, max_pixels: int, workers: int) -> Iterator[MeasuredImage]:
    """Measure the images `paths` of `shards`, in their order, in threads of a child process; 0 means one per core.

    Raises:
        DataError: an image is missing or a shard is damaged.
        ImageError: an image cannot be decoded; a DecoderError, at the end, where its decoder does not survive it.
    """

    def measure(path: str, data: bytes) -> MeasuredImage:
        return measure_image(data, name=path, max_pixels=max_pixels)

    return decode_kept(shards.read, measure, paths, max_pixels=max_pixels, workers=workers)


def _resized(grey: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    interpolation = cv2.INTER_AREA if grey.size > side * side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, (side, side), interpolation=interpolation), np.uint8)


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    outer = np.ones((_COARSE_SIDE, _COARSE_SIDE), bool)
    outer[_RING:-_RING, _RING:-_RING] = False
    return _resized(pixels, _COARSE_SIDE)[outer].astype(np.float32)


def _sharpness(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    grey = pixels.astype(np.float32)
    variance = float(cv2.Laplacian(grey, cv2.CV_32F).var())
    blurred = float(cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 1.0), cv2.CV_32F).var())
    across, down = np.abs(np.diff(grey, axis=1)).mean(), np.abs(np.diff(grey, axis=0)).mean()
    return np.array([np.log1p(variance), across, down, blurred / max(variance, 1e-6)], np.float32)


def _quantiser(data: bytes, image_format: str) -> tuple[float, float]:
    """Return the mean of the luma quantisation table, which falls with the quality of a JPEG, and whether it is one."""
    if image_format != "JPEG":
        return 0.0, 0.0
    with JpegImageFile(io.BytesIO(data)) as opened:
        luma = opened.quantization.get(
            opened.layer[0][3], [0]
        )  # a component names its table, which need not be the first
    return float(np.mean(luma)), 1.0
