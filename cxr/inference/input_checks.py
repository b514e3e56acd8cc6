"""Reject pictures that are not chest X-rays at all, by cheap checks on the decoded pixels before the network runs.

A network answers any picture. These checks reject colour photographs, blank pictures, pages and screenshots of a few
flat grey levels, strips and thumbnails. A picture that passes and is still out of distribution gets a warning
(cxr/inference/ood.py). Each limit lies between the values of 2,000 real images and those of such pictures; the figures
stand beside it. The limits hold for any image, so they do not depend on the model.

Only images to predict are checked here. What a model is trained and tested on, ingest and its gates decide.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.imaging.decode import EncodedImage
from cxr.imaging.preprocess import Preprocessing, min_decoded_side_px, prepare

NOT_A_CHEST_XRAY = "not a chest X-ray"

_GRID = 64  # side of the small copy that colour and contrast are measured on
_SAMPLES_A_SIDE = 512  # on the shorter side, roughly: large images are sampled, so that they cost no more
_MIN_SHORTER_SIDE_PX = 32  # below, no rib is wider than a pixel
_MAX_ASPECT_RATIO = 4.0  # real images up to 2.4
_MIN_SPREAD = 5.0  # grey levels; real images from 19 up, blank ones with scanner noise below 1
_FLAT_LEVELS, _MAX_FLAT = 4, 0.65  # real images up to 0.33, screenshots from 0.69 and text pages from 0.80 up
_STRONG_CHROMA = 40  # of 255: well above the tint of a scanned or toned image
_MAX_COLOURED = 0.7  # real images up to 0.44, where half of the picture was marked in green
_MAX_SECOND_HUE = 4.0  # of 255; images, marked in one colour, up to 1.8; photographs of several colours 4.9 to 45


def prepare_chest_xray(image: EncodedImage, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Decode and prepare one image, bit for bit as cxr.imaging.decode.image_from_bytes does, or reject it.

    Returns:
        (image_size_px, image_size_px) uint8.

    Raises:
        ImageError: it cannot be decoded; or with the reason "colour" or NOT_A_CHEST_XRAY.
    """
    grey, colour = image.with_colour(min_side_px=min_decoded_side_px(preprocessing))
    reject_colour(colour, name=image.name)
    reject_flat(grey, name=image.name)
    return prepare(grey, preprocessing)


def reject_colour(colour: NDArray[np.uint8] | None, *, name: str) -> None:
    """Reject a picture (H, W, 3), blue first, of several hues or coloured nearly everywhere; None is all grey.

    An image may be tinted, or marked in one colour: that is one hue. Two hues are a photograph.

    Raises:
        ImageError: with the reason "colour".
    """
    if colour is None:
        return
    small = cv2.resize(colour, (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    coloured = float((np.ptp(small, axis=2) > _STRONG_CHROMA).mean())
    second_hue = _second_hue(np.asarray(small, np.uint8))
    if coloured > _MAX_COLOURED or second_hue > _MAX_SECOND_HUE:
        found = "several colours" if second_hue > _MAX_SECOND_HUE else f"{coloured:.0%} of it strongly coloured"
        raise ImageError(
            f"{name} is a colour picture ({found}); expected a chest X-ray in grey, marked in one colour at most; "
            "export it from its source in grey",
            reason="colour",
        )


def reject_flat(grey: NDArray[np.uint8], *, name: str) -> None:
    """Reject a picture (H, W) that is too small or too long, blank, or of a few flat grey levels.

    Raises:
        ImageError: with the reason NOT_A_CHEST_XRAY.
    """
    height, width = grey.shape
    if min(height, width) < _MIN_SHORTER_SIDE_PX:
        raise _not_a_chest_xray(name, f"has {width} x {height} pixels", f"at least {_MIN_SHORTER_SIDE_PX} a side")
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise _not_a_chest_xray(
            name, f"is a strip of {width} x {height}", f"sides of at most {_MAX_ASPECT_RATIO:.0f} to 1"
        )
    step = max(1, min(height, width) // _SAMPLES_A_SIDE)
    sampled = np.ascontiguousarray(grey[::step, ::step])
    spread = float(cv2.resize(sampled, (_GRID, _GRID), interpolation=cv2.INTER_AREA).std())
    if spread < _MIN_SPREAD:
        raise _not_a_chest_xray(
            name,
            f"is blank or nearly so: its grey levels vary by {spread:.1f}",
            f"{_MIN_SPREAD:.0f} or more of 255",
        )
    flat = _share_of_few_levels(sampled)
    if flat > _MAX_FLAT:
        raise _not_a_chest_xray(
            name,
            f"looks like a page, a drawing or a screenshot: {_FLAT_LEVELS} grey levels fill {flat:.0%} of it",
            f"{_MAX_FLAT:.0%} at most",
        )


def _second_hue(small: NDArray[np.uint8]) -> float:
    """Return the root mean square of the colour beside the main hue, 0 to 255: near 0 for a picture of one hue."""
    chroma = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2YCrCb)[..., 1:].reshape(-1, 2) - 0.5
    moments = chroma.T @ chroma / len(chroma)
    return 255 * float(np.sqrt(max(np.linalg.eigvalsh(moments)[0], 0)))


def _share_of_few_levels(grey: NDArray[np.uint8]) -> float:
    """Return the share of pixels that have one of the most frequent grey levels."""
    counts = np.bincount(grey.ravel(), minlength=256)
    return float(np.sort(counts)[-_FLAT_LEVELS:].sum() / counts.sum())


def _not_a_chest_xray(name: str, found: str, expected: str) -> ImageError:
    return ImageError(
        f"{name} {found}; expected of a chest X-ray: {expected}; export the image itself from its source",
        reason=NOT_A_CHEST_XRAY,
    )
