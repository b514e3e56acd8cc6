"""Prepare grey levels for the model: crop the border, resize, enhance the contrast.

Grey levels, contrast enhancement and resizing to 224 x 224 follow Pham and Nguyen 2023 (section 3.1). Cropping the
border is an addition: it removes letters, tubes and collimation, from which a network can learn shortcuts.
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Preprocessing:
    """How an image is prepared; saved with the model, so that training and prediction prepare images equally.

    `border_crop` is the share of height and width that is cut off at each side, 0 to 0.25.
    """

    image_size_px: int
    fit: Literal["stretch", "letterbox"]
    contrast: Literal["clahe", "equalize", "none"]
    clahe_clip_limit: float
    clahe_tiles: int
    max_pixels: int
    border_crop: float = 0.0  # models saved before this field existed have none


def prepare(grey: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Crop the border, resize and enhance the contrast of one image.

    Args:
        grey: (height, width), any size.
        preprocessing: size, border and contrast.

    Returns:
        (image_size_px, image_size_px) uint8.
    """
    sized = _fit(_without_border(grey, preprocessing.border_crop), preprocessing)
    if preprocessing.contrast == "equalize":
        return np.asarray(cv2.equalizeHist(sized), np.uint8)
    if preprocessing.contrast == "clahe":
        tiles = (preprocessing.clahe_tiles, preprocessing.clahe_tiles)
        return np.asarray(cv2.createCLAHE(preprocessing.clahe_clip_limit, tiles).apply(sized), np.uint8)
    return sized


def min_decoded_side_px(preprocessing: Preprocessing) -> int:
    """Return the length in pixels of the shorter side at which decoding at reduced scale loses no detail."""
    return math.ceil(preprocessing.image_size_px / (1 - 2 * preprocessing.border_crop))


def _without_border(grey: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Cut off `share` of the image at each side, rounded down."""
    height, width = grey.shape
    top, left = int(height * share), int(width * share)
    return grey[top : height - top, left : width - left]


def _fit(grey: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    size = preprocessing.image_size_px
    height, width = grey.shape
    if (height, width) == (size, size):
        return grey
    if preprocessing.fit == "stretch":
        return _resize(grey, width=size, height=size)
    scale = size / max(height, width)
    inner = _resize(grey, width=max(1, round(width * scale)), height=max(1, round(height * scale)))
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    canvas = np.zeros((size, size), np.uint8)
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas


def _resize(grey: NDArray[np.uint8], *, width: int, height: int) -> NDArray[np.uint8]:
    shrinks = width * height < grey.shape[0] * grey.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, (width, height), interpolation=interpolation), np.uint8)
