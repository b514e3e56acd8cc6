"""Recognise pictures that were cut into flat tiles (superpixel mosaics) or posterised: no X-ray a detector made.

Neighbouring pixels of an X-ray differ by noise, so few grey ones equal their right and lower neighbours exactly. In a
mosaic most do, and where they do not, the step is large. Measured at a reduced size, at which the tiles of all known
mosaics are still several pixels wide: in five mosaics 73 to 82% of the grey pixels are flat, in 5,653 real images at
most 22% (docs/data-forensics.md).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

FLAT_SHARE = 0.5
"""From this share of flat grey pixels a picture is a mosaic or posterised."""

_SIDE_PX = 256
_GREY = (8, 247)  # darker and brighter pixels are background or saturated, which is flat in real images as well
_FEWEST_GREY = 0.02  # share of grey pixels; an almost black or white picture is judged by the data-quality gate
_MOST_STEPS_OF_ONE = 0.5


def is_mosaic(grey: NDArray[np.uint8]) -> bool:
    """Return whether a picture (H, W) consists of flat tiles.

    A smooth picture whose neighbours differ by one grey level at most, such as a plain or upsampled one, does not.
    """
    flat, nearly_flat = flat_shares(grey)
    if flat < FLAT_SHARE or flat == 1:
        return False
    return (nearly_flat - flat) / (1 - flat) < _MOST_STEPS_OF_ONE


def flat_shares(grey: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the share of grey pixels that equal their right and lower neighbours, exactly and within one level.

    (0, 0) for a picture with hardly any grey pixels.
    """
    levels = _reduced(grey).astype(np.int16)
    here = levels[:-1, :-1]
    is_grey = (here > _GREY[0]) & (here < _GREY[1])
    if not is_grey.size or is_grey.mean() < _FEWEST_GREY:  # none of a picture one pixel high or wide
        return 0.0, 0.0
    step = np.maximum(np.abs(levels[:-1, 1:] - here), np.abs(levels[1:, :-1] - here))[is_grey]
    return float((step == 0).mean()), float((step <= 1).mean())


def _reduced(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture with a shorter side of 256 to 511 px, if it is larger."""
    factor = min(grey.shape) // _SIDE_PX
    if factor < 2:
        return grey
    size = (grey.shape[1] // factor, grey.shape[0] // factor)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
