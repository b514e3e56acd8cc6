"""Encode images for HTML pages."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

JPEG_QUALITY = 88


def jpeg_data_url(image: NDArray[np.uint8]) -> str:
    """Return an image, grey (H, W) or RGB (H, W, 3), as a JPEG in a `data:` URL."""
    in_cv2_order = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", in_cv2_order, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
