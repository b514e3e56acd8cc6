"""Pictures for the page, as data URLs: the image, and over it where the model looked.

The model sees a prepared image, cut, squeezed and raised in contrast. People see the image as it is, so the heat is
brought back to where it belongs on it.
"""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.imaging.decode import decode_grey
from cxr.imaging.preprocess import Preprocessing

IMAGE_SIDE_PX = 720
_HEAT_SIDE_PX = 180  # its cells are a fifth of an image wide: more pixels would show nothing more
_JPEG_QUALITY = 88


def image_layer(data: bytes, *, name: str, max_pixels: int) -> tuple[str, tuple[int, int]]:
    """Return the image as a picture of IMAGE_SIDE_PX at most on its longer side, and its height and width.

    Raises:
        ImageError: see cxr.imaging.decode.decode_grey.
    """
    grey = decode_grey(data, name=name, max_pixels=max_pixels, min_side_px=IMAGE_SIDE_PX)
    shown = _at_most(grey, IMAGE_SIDE_PX)
    encoded = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return _data_url("image/jpeg", encoded), (shown.shape[0], shown.shape[1])


def heat_layer(heat: NDArray[np.float32], size: tuple[int, int], preprocessing: Preprocessing) -> str:
    """Return a heat map as a picture to lay over the image: clear where there is no heat.

    Args:
        heat: (H, W), 0 to 1, on the prepared image.
        size: height and width of the image as people see it.
        preprocessing: how the image was prepared.
    """
    scale = min(1.0, _HEAT_SIDE_PX / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    placed = _on_image(heat, height, width, preprocessing)
    levels = np.rint(placed * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    encoded = cv2.imencode(".png", np.dstack([colours, levels]))[1]
    return _data_url("image/png", encoded)


def _on_image(heat: NDArray[np.float32], height: int, width: int, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Undo border crop and fit: (H, W) on the prepared image to (height, width) on the whole one, 0 in the border."""
    top, left = int(height * preprocessing.border_crop), int(width * preprocessing.border_crop)
    inner_height, inner_width = height - 2 * top, width - 2 * left
    if preprocessing.fit == "letterbox":
        heat = _without_bars(heat, inner_height, inner_width)
    placed = np.zeros((height, width), np.float32)
    inner = cv2.resize(heat, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR)
    placed[top : top + inner_height, left : left + inner_width] = inner
    return placed


def _without_bars(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    side, longer = heat.shape[0], max(height, width)
    shown_height, shown_width = max(1, round(side * height / longer)), max(1, round(side * width / longer))
    top, left = (side - shown_height) // 2, (side - shown_width) // 2
    return heat[top : top + shown_height, left : left + shown_width]


def _at_most(grey: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    scale = side_px / max(grey.shape)
    if scale >= 1:
        return grey
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _data_url(media_type: str, encoded: NDArray[np.uint8]) -> str:
    return f"data:{media_type};base64,{base64.b64encode(encoded.tobytes()).decode()}"
