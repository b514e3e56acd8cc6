"""Pictures for the page, as data URLs: the image, and the heat map to lay over it.

The model's input is cropped, resized and contrast-enhanced; people see the original image. The heat map is therefore
mapped back to the geometry of the original.
"""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.imaging.decode import EncodedImage
from cxr.imaging.encode import jpeg_data_url
from cxr.imaging.preprocess import Preprocessing

IMAGE_SIDE_PX = 720
_HEAT_SIDE_PX = 180  # a cell is a fifth of the image wide: more pixels would add no detail


def render_image(image: EncodedImage) -> tuple[str, tuple[int, int]]:
    """Return the image as a JPEG with at most IMAGE_SIDE_PX on its longer side, and its height and width.

    Raises:
        ImageError: see cxr.imaging.decode.EncodedImage.grey.
    """
    shown = _shrink(image.grey(min_side_px=IMAGE_SIDE_PX), IMAGE_SIDE_PX)
    return jpeg_data_url(shown), (shown.shape[0], shown.shape[1])


def render_heat(heat: NDArray[np.float32], size: tuple[int, int], preprocessing: Preprocessing) -> str:
    """Return a heat map as a PNG to lay over the image, transparent where there is no heat.

    Args:
        heat: (H, W), 0 to 1, in the geometry of the model's input.
        size: height and width of the displayed image.
        preprocessing: how the image was prepared.
    """
    scale = min(1.0, _HEAT_SIDE_PX / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    mapped = _to_original(heat, height, width, preprocessing)
    levels = np.rint(mapped * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    encoded = cv2.imencode(".png", np.dstack([colours, levels]))[1]
    return f"data:image/png;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _to_original(
    heat: NDArray[np.float32], height: int, width: int, preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """Undo border crop and fit: (H, W) of the model's input to (height, width) of the original, 0 in the border."""
    top, left = int(height * preprocessing.border_crop), int(width * preprocessing.border_crop)
    inner_height, inner_width = height - 2 * top, width - 2 * left
    if preprocessing.fit == "letterbox":
        heat = _without_bars(heat, inner_height, inner_width)
    mapped = np.zeros((height, width), np.float32)
    inner = cv2.resize(heat, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR)
    mapped[top : top + inner_height, left : left + inner_width] = inner
    return mapped


def _without_bars(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    side, longer = heat.shape[0], max(height, width)
    shown_height, shown_width = max(1, round(side * height / longer)), max(1, round(side * width / longer))
    top, left = (side - shown_height) // 2, (side - shown_width) // 2
    return heat[top : top + shown_height, left : left + shown_width]


def _shrink(grey: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    scale = side_px / max(grey.shape)
    if scale >= 1:
        return grey
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
