"""Description of one raw image: digest, perceptual hash, size and grey levels."""

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.imaging.decode import Header, open_image
from cxr.imaging.mosaic import is_mosaic

THUMBNAIL_SIDE_PX = 32
_HASH_SIDE = 8
# Enough for statistics, hash and thumbnail; large JPEG images decode several times faster at reduced scale.
_DECODED_SIDE_PX = 256


@dataclass(frozen=True)
class InspectedImage:
    """Description of a readable image.

    phash          64-bit perceptual hash
    width, height  pixels as stored
    mode           see cxr.imaging.decode.Header
    grey_*         of the decoded image, 0 to 255; saturated_share: share of pixels that are 0 or 255
    thumbnail      (32, 32) uint8, area-averaged
    is_mosaic      whether it consists of flat tiles; see cxr.imaging.mosaic
    """

    sha256: str
    phash: int
    width: int
    height: int
    mode: str
    bytes: int
    grey_mean: float
    grey_std: float
    grey_p01: float
    grey_p99: float
    saturated_share: float
    thumbnail: NDArray[np.uint8]
    is_mosaic: bool


def inspect_image(data: bytes, *, name: str, max_pixels: int) -> InspectedImage:
    """Decode an image at reduced scale and describe it.

    The header is read first, so that a small file that claims a huge size costs nothing.

    Raises:
        ImageError: `data` is not an image that can be read; see cxr.imaging.decode.open_image.
    """
    image = open_image(data, name=name, max_pixels=max_pixels)
    return _describe(data, image.grey(min_side_px=_DECODED_SIDE_PX), image.header)


def _describe(data: bytes, grey: NDArray[np.uint8], header: Header) -> InspectedImage:
    thumbnail = thumbnail_of(grey)
    shares = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel().astype(np.float64) / grey.size
    levels = np.arange(256)
    mean = float(shares @ levels)
    cumulated = np.cumsum(shares)
    return InspectedImage(
        sha256=hashlib.sha256(data).hexdigest(),
        phash=perceptual_hash(thumbnail),
        width=header.width,
        height=header.height,
        mode=header.mode,
        bytes=len(data),
        grey_mean=mean,
        grey_std=float(np.sqrt(shares @ (levels - mean) ** 2)),
        grey_p01=float(np.searchsorted(cumulated, 0.01)),
        grey_p99=float(np.searchsorted(cumulated, 0.99)),
        saturated_share=float(shares[0] + shares[255]),
        thumbnail=thumbnail,
        is_mosaic=is_mosaic(grey),
    )


def thumbnail_of(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the (32, 32) area-averaged thumbnail of grey levels (H, W), by which duplicates are found."""
    side = THUMBNAIL_SIDE_PX
    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def perceptual_hash(thumbnail: NDArray[np.uint8]) -> int:
    """Return the 64-bit hash of a (32, 32) thumbnail: its 8 x 8 lowest DCT terms, above their median or not.

    The median excludes the constant term, so that exposure does not change it.
    """
    lowest = cv2.dct(thumbnail.astype(np.float32))[:_HASH_SIDE, :_HASH_SIDE].ravel()
    bits = np.packbits(lowest > np.median(lowest[1:]))
    return int.from_bytes(bits.tobytes(), "big")
