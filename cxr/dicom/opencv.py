"""Decode an image with OpenCV, and tell too little memory from damaged contents, for which it has one answer."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_MOST_BYTES_A_PIXEL = 16


def decoded(data: bytes, flag: int, *, pixels: int) -> NDArray[np.generic] | None:
    """Return the image in `data`; None where its contents are damaged.

    Args:
        data: an encoded image.
        flag: one of cv2.IMREAD_*, or several.
        pixels: that the image has by its header.

    Raises:
        MemoryError: this process does not get the memory that such an image may need, so nothing is known about it.
    """
    image = _decoded(data, flag)
    if image is not None:
        return image
    np.empty(_MOST_BYTES_A_PIXEL * pixels, np.uint8)  # only reserved, never written
    return _decoded(data, flag)  # other threads may have had that memory until now


def _decoded(data: bytes, flag: int) -> NDArray[np.generic] | None:
    # Otherwise OpenCV writes a line, for some files thousands, about what is reported as an error.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None
