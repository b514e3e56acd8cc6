"""Films with a part taken away, for asking a model what it still answers.

What is taken away is filled with one grey: black, or the mean of what is left. Never the mean of the whole film,
which would still tell how bright the hidden part was.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cxr.audit.thorax_mask import Mask

BORDER = 0.1  # of the film's side; at 0.15 a ninth of the lungs lies in it, at 0.1 a fortieth (real films, 160 px)

Grey = NDArray[np.uint8]


def border_mask(height: int, width: int) -> Mask:
    """Return the outer BORDER of a film, (H, W)."""
    rows, columns = max(round(BORDER * height), 1), max(round(BORDER * width), 1)
    mask = np.ones((height, width), np.bool_)
    mask[rows:-rows, columns:-columns] = False
    return mask


def keep_only(films: Grey, kept: Mask, *, black: bool = False) -> Grey:
    """Return films (N, H, W) with all but `kept`, (N, H, W) or (H, W), filled by black or the mean of what is kept."""
    masks = np.broadcast_to(kept, films.shape)
    fill = np.zeros(len(films))
    if not black:
        counts = np.maximum(masks.sum(axis=(1, 2)), 1)
        fill = np.where(masks, films, 0).sum(axis=(1, 2), dtype=np.float64) / counts
    return np.where(masks, films, np.rint(fill).astype(np.uint8)[:, None, None])


View = Callable[[Grey, Mask], Grey]
"""Films (N, H, W) and their thorax -> films with a part taken away."""

VIEWS: dict[str, View] = {
    "whole": lambda films, _thorax: films,
    "thorax_blanked": lambda films, thorax: keep_only(films, ~thorax),
    "thorax_black": lambda films, thorax: keep_only(films, ~thorax, black=True),
    "border_only": lambda films, _thorax: keep_only(films, border_mask(*films.shape[1:])),
    "thorax_only": keep_only,
}
