"""A coarse outline of lungs and thorax on a frontal image, by classical image processing without a trained model.

A morphological opening removes bright narrow structures (ribs, markers), and air beside the body is left out. The lung
of each side is the largest area that is darker than its surroundings and near the usual position. Its convex hull is
the outline. An opaque side without such an area mirrors the other side; an image without any gets a fixed template.

The error is some tenths of a lung's width: good enough to black out lungs and to measure shares of a heat map, not to
measure anatomy. The hull of a lung omits the part behind the heart; the thorax includes it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

_SIDE = 96  # of the small copy on which all is found
_SMALLEST_BODY_PX, _LEAST_SPREAD = 500, 4.0  # of the small copy; below, the image shows nothing
_AIR_LEVEL = 45  # darker areas that reach the edge of the image are air, not body
_PRIOR_WEIGHT, _THRESHOLD = 0.8, 0.3  # chosen by eye on images of both sets, prepared with and without CLAHE
_LEAST_CORE_SHARE, _LEAST_HEIGHT, _LEAST_AREA = 0.35, 0.3, 0.04
_LEAST_AGAINST_OTHER_SIDE = 0.5  # of the other lung's area
_MARGIN = 0.03  # of the image's side, around the hull of both lungs
_LEFT, _RIGHT = -1, 1  # of the image
_X, _Y = np.meshgrid(np.linspace(-0.5, 0.5, _SIDE, dtype=np.float32), np.linspace(0, 1, _SIDE, dtype=np.float32))


@dataclass(frozen=True)
class Outlines:
    """Lungs and thorax of N images, both (N, H, W), and whether the fixed template was used, (N,)."""

    lungs: Mask
    thorax: Mask
    from_template: Mask


def outline(images: NDArray[np.uint8]) -> Outlines:
    """Return the outlines of images (N, H, W); about half a millisecond an image."""
    shape = (len(images), *images.shape[1:])
    lungs, thorax, from_template = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(len(images), bool)
    size = (images.shape[2], images.shape[1])
    for row, image in enumerate(images):
        found = _find_lungs(np.asarray(image))
        from_template[row] = found is None
        small = _TEMPLATE if found is None else found
        lungs[row] = _enlarged(small, size)
        thorax[row] = _enlarged(_widened_hull(small), size)
    return Outlines(lungs, thorax, from_template)


def thorax_mask(images: NDArray[np.uint8]) -> Mask:
    """Return the thorax of images (N, H, W) as (N, H, W) bool: the hull of both lungs with a margin."""
    return outline(images).thorax


def _near_lung(side: int) -> NDArray[np.float32]:
    """Return 1 in the middle of the usual position of a lung, 0 at its edge, negative outside; from the mean image."""
    across, along = _X * side - 0.19 - 0.16 * (_Y - 0.46), _Y - 0.46
    return np.asarray(1 - np.square(across / 0.15) - np.square(along / 0.37), np.float32)


_NEAR = {side: _near_lung(side) for side in (_LEFT, _RIGHT)}
_CORE = {side: near > 0 for side, near in _NEAR.items()}
_TEMPLATE: NDArray[np.uint8] = (_CORE[_LEFT] | _CORE[_RIGHT]).astype(np.uint8)
_ALLOWED = {side: (near > -1.6) & (_X * side > 0.02) & (_X * side < 0.45) & (_Y > 0.03) for side, near in _NEAR.items()}


def _find_lungs(image: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return both lungs on the small grid; None without a plausible area."""
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    opened = cv2.morphologyEx(small, cv2.MORPH_OPEN, _disc(7))
    smooth = np.asarray(cv2.GaussianBlur(opened, (0, 0), 1.5), np.float32)
    air = _air(smooth)
    body = smooth[~air]
    if body.size < _SMALLEST_BODY_PX or float(body.std()) < _LEAST_SPREAD:
        return None
    filled = np.where(air, np.float32(body.mean()), smooth)
    darker = np.asarray(cv2.GaussianBlur(filled, (0, 0), _SIDE * 0.16), np.float32) - filled
    darker /= max(float(darker[(_NEAR[_LEFT] > -1) | (_NEAR[_RIGHT] > -1)].std()), 1e-6)
    sides = {}
    for side, near in _NEAR.items():
        score = darker + _PRIOR_WEIGHT * np.clip(near, -3, 1)
        lung = _largest_hull((score > _THRESHOLD) & _ALLOWED[side] & ~air, _CORE[side])
        if lung is not None:
            sides[side] = lung
    return _both(sides, _midline(smooth)) if sides else None


def _air(smooth: NDArray[np.float32]) -> Mask:
    """Return the dark areas that reach the image's left, right or upper edge."""
    level = min(_AIR_LEVEL, float(smooth.mean()) * 0.5)
    _, areas = cv2.connectedComponents((smooth < level).astype(np.uint8))
    at_edge = np.unique(np.concatenate([areas[:, 0], areas[:, -1], areas[0]]))
    return np.isin(areas, at_edge[at_edge > 0])


def _largest_hull(dark: Mask, core: Mask) -> NDArray[np.uint8] | None:
    """Return the hull of the area that covers most of `core`; None if it is too small for a lung."""
    count, areas = cv2.connectedComponents(cv2.morphologyEx(dark.astype(np.uint8), cv2.MORPH_OPEN, _disc(5)))
    if count == 1:
        return None
    best = 1 + int(np.bincount(areas[core], minlength=count)[1:].argmax())
    rows, columns = np.nonzero(areas == best)
    hull = _hull(rows, columns)
    plausible = (
        float(hull[core].mean()) > _LEAST_CORE_SHARE
        and float(np.ptp(rows)) > _LEAST_HEIGHT * _SIDE
        and float(hull.mean()) > _LEAST_AREA
    )
    return hull if plausible else None


def _both(sides: dict[int, NDArray[np.uint8]], midline: int) -> NDArray[np.uint8]:
    """Return both lungs as one mask; a side that is missing or much smaller also gets the mirror image of the other."""
    lungs = np.zeros((_SIDE, _SIDE), np.uint8)
    for side in (_LEFT, _RIGHT):
        own, other = sides.get(side), sides.get(-side)
        if own is not None:
            lungs |= own
        if other is not None and (own is None or own.sum() < _LEAST_AGAINST_OTHER_SIDE * other.sum()):
            lungs |= _mirrored(other, midline)
    return lungs


def _midline(smooth: NDArray[np.float32]) -> int:
    """Return the brightest column of the middle third between apex and heart: the spine."""
    first, last = _SIDE // 3, _SIDE - _SIDE // 3
    return first + int(smooth[_SIDE // 5 : _SIDE * 3 // 5, first:last].mean(axis=0).argmax())


def _mirrored(lung: NDArray[np.uint8], midline: int) -> NDArray[np.uint8]:
    rows, columns = np.nonzero(lung)
    across = 2 * midline - columns
    inside = (across >= 0) & (across < _SIDE)
    mirrored = np.zeros_like(lung)
    mirrored[rows[inside], across[inside]] = 1
    return mirrored


def _widened_hull(lungs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.dilate(_hull(*np.nonzero(lungs)), _disc(2 * round(_MARGIN * _SIDE) + 1)), np.uint8)


def _hull(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint8]:
    hull = np.zeros((_SIDE, _SIDE), np.uint8)
    points = np.stack([columns, rows], axis=1).astype(np.int32)
    return np.asarray(cv2.fillConvexPoly(hull, cv2.convexHull(points), 1), np.uint8)


def _disc(diameter: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter)), np.uint8)


def _enlarged(small: NDArray[np.uint8], size: tuple[int, int]) -> Mask:
    """Return a mask of the small grid at `size` (width, height), with smooth edges."""
    return np.asarray(cv2.resize(small * np.float32(1), size, interpolation=cv2.INTER_LINEAR) > 0.5, np.bool_)
