"""Pictures for pages: JPEG as an address that a page can hold."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

JPEG_QUALITY = 88


def jpeg_data_url(picture: NDArray[np.uint8]) -> str:
    """Return a picture, grey (H, W) or RGB (H, W, 3), as a `data:` address that a page can hold."""
    in_cv2_order = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", in_cv2_order, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
