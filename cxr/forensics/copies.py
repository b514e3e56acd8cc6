"""Copies of one picture that survive recompression, other grey levels, a mosaic of small tiles, and a crop.

Thumbnails of any two chest X-rays correlate: they share ribs, heart and diaphragm. Their fine detail, what a blur
removes, does not. So pictures are compared by the correlation of their fine detail, whole against whole, and window
against whole for windows that leave out a tenth or a fifth. The best candidates of each image are aligned by an affine
map that maximises the correlation (Evangelidis and Psarakis 2008); what reaches the limit then is a copy.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.evaluation.rates import Floats, Ints
from cxr.forensics.measure import THUMBNAIL_SIDE_PX

_COARSE_PX = 32
_BLUR = 1 / 16  # of the side
_MARGIN_PX = 3  # of the aligned thumbnail, where the warp has no pixels
_LEAST_COARSE = 0.5  # copies cut by a fifth reach 0.6 (docs/data-forensics.md)
_CANDIDATES = 2
_ROWS_AT_A_TIME = 512
_MOST_ZOOM, _MOST_SHEAR = (0.6, 1.1), 0.1
_ECC = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)

Window = tuple[float, float, float]
"""Side of a square window and where it begins, across and down, as shares of the image."""

WINDOWS: tuple[Window, ...] = (
    (1.0, 0.0, 0.0),
    *(
        (1 - cut, cut * across, cut * down)
        for cut in (0.1, 0.2)
        for across, down in ((0.5, 0.5), (0, 0), (0, 1), (1, 0), (1, 1))
    ),
)


@dataclass(frozen=True)
class Copy:
    """A pair of rows, the smaller first, and the correlation of their aligned fine detail."""

    one: int
    other: int
    correlation: float


def find_copies(thumbnails: NDArray[np.uint8], *, limit: float) -> list[Copy]:
    """Return the pairs whose aligned fine detail correlates at `limit` or more, the most alike first.

    Args:
        thumbnails: (N, 64, 64).
        limit: 0 to 1.
    """
    found: dict[tuple[int, int], float] = {}
    for (row, other), window in _candidates(thumbnails).items():
        correlation = aligned_correlation(thumbnails[row], thumbnails[other], window)
        if correlation >= limit:
            pair = (min(row, other), max(row, other))
            found[pair] = max(correlation, found.get(pair, 0.0))
    return sorted((Copy(*pair, value) for pair, value in found.items()), key=lambda copy: -copy.correlation)


def aligned_correlation(part: NDArray[np.uint8], whole: NDArray[np.uint8], window: Window) -> float:
    """Return the correlation of the fine detail of `part` with its place in `whole`; -1 where none is found.

    Args:
        part, whole: (64, 64).
        window: roughly where `part` lies in `whole`.
    """
    start = _warp(window, THUMBNAIL_SIDE_PX)
    try:
        _, warp = cv2.findTransformECC(
            _fine(part), _fine(whole), start, cv2.MOTION_AFFINE, _ECC, np.ones_like(part), _MARGIN_PX
        )
    except cv2.error:  # it did not converge
        return -1.0
    zooms, shears = (warp[0, 0], warp[1, 1]), (warp[0, 1], warp[1, 0])
    if not all(_MOST_ZOOM[0] < zoom < _MOST_ZOOM[1] for zoom in zooms) or max(map(abs, shears)) > _MOST_SHEAR:
        return -1.0
    inner = slice(_MARGIN_PX, -_MARGIN_PX)
    aligned = _fine(_windowed(whole, np.asarray(warp, np.float32)))
    pair = _standardised(np.stack([_fine(part)[inner, inner], aligned[inner, inner]]))
    return float(pair[0] @ pair[1])


def _candidates(thumbnails: NDArray[np.uint8]) -> dict[tuple[int, int], Window]:
    """Return (image, image that may hold it) -> the window of the second that looks most like the first."""
    small = [cv2.resize(image, (_COARSE_PX, _COARSE_PX), interpolation=cv2.INTER_AREA) for image in thumbnails]
    whole = _standardised(np.stack([_fine(image) for image in small]))
    found: dict[tuple[int, int], tuple[float, Window]] = {}
    for window in WINDOWS:
        warp = _warp(window, _COARSE_PX)
        windowed = _standardised(np.stack([_fine(_windowed(image, warp)) for image in small]))
        for start in range(0, len(whole), _ROWS_AT_A_TIME):
            alike = whole[start : start + _ROWS_AT_A_TIME] @ windowed.T
            alike[np.arange(len(alike)), start + np.arange(len(alike))] = -1
            for row, others in enumerate(_best(alike), start):
                for other in others:
                    value = float(alike[row - start, other])
                    if value >= max(_LEAST_COARSE, found.get((row, int(other)), (0.0, window))[0]):
                        found[row, int(other)] = (value, window)
    return {pair: window for pair, (_, window) in _most_alike(found).items()}


def _best(alike: NDArray[np.float32]) -> Ints:
    count = min(_CANDIDATES, alike.shape[1])
    return np.argpartition(-alike, count - 1, axis=1)[:, :count]


def _most_alike(found: dict[tuple[int, int], tuple[float, Window]]) -> dict[tuple[int, int], tuple[float, Window]]:
    """Keep _CANDIDATES for each image over all windows."""
    of_row: dict[int, list[tuple[float, int]]] = {}
    for (row, other), (value, _) in found.items():
        of_row.setdefault(row, []).append((value, other))
    return {
        (row, other): found[row, other]
        for row, values in of_row.items()
        for _, other in sorted(values, reverse=True)[:_CANDIDATES]
    }


def _warp(window: Window, side_px: int) -> NDArray[np.float32]:
    side, across, down = window
    return np.array([[side, 0, across * side_px], [0, side, down * side_px]], np.float32)


def _windowed(image: NDArray[np.uint8], warp: NDArray[np.float32]) -> NDArray[np.uint8]:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(image, warp, image.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def _fine(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the fine detail: the image without what a wide blur keeps."""
    grey = image.astype(np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), image.shape[0] * _BLUR), np.float32)


def _standardised(images: Floats | NDArray[np.float32]) -> NDArray[np.float32]:
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), np.float32)
