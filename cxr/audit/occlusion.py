"""Images with a part removed, to measure what a model still predicts without it.

The removed part is filled with one grey level: black, or the mean of the rest. The mean of the whole image would still
reveal the brightness of the removed part.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cxr.audit.thorax_mask import Mask

BORDER = 0.1  # of the image's side; at 0.15 a ninth of the lungs lies in it, at 0.1 a fortieth (real images, 160 px)

Grey = NDArray[np.uint8]


def border_mask(height: int, width: int) -> Mask:
    """Return the outer BORDER of an image, (H, W)."""
    rows, columns = max(round(BORDER * height), 1), max(round(BORDER * width), 1)
    mask = np.ones((height, width), np.bool_)
    mask[rows:-rows, columns:-columns] = False
    return mask


def keep_only(images: Grey, kept: Mask, *, black: bool = False) -> Grey:
    """Return images (N, H, W) with all but `kept`, (N, H, W) or (H, W), in black or the mean of the kept part."""
    masks = np.broadcast_to(kept, images.shape)
    fill = np.zeros(len(images))
    if not black:
        counts = np.maximum(masks.sum(axis=(1, 2)), 1)
        fill = np.where(masks, images, 0).sum(axis=(1, 2), dtype=np.float64) / counts
    return np.where(masks, images, np.rint(fill).astype(np.uint8)[:, None, None])


View = Callable[[Grey, Mask], Grey]
"""Images (N, H, W) and their thorax -> images with a part removed."""

VIEWS: dict[str, View] = {
    "whole": lambda images, _thorax: images,
    "thorax_blanked": lambda images, thorax: keep_only(images, ~thorax),
    "thorax_black": lambda images, thorax: keep_only(images, ~thorax, black=True),
    "border_only": lambda images, _thorax: keep_only(images, border_mask(*images.shape[1:])),
    "thorax_only": keep_only,
}
