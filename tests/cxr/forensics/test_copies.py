"""Copies of one picture: found after recompression, other grey levels, tiles and crops; no strangers."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.dataset.synthetic_image import KERMANY_LOOK, draw_anatomy, draw_finding, draw_image
from cxr.forensics.copies import find_copies
from tests.support.images.planted_sets import mosaic

Grey = NDArray[np.uint8]
STRANGERS = 25


def thumbnail(image: Grey) -> Grey:
    return np.asarray(cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA), np.uint8)


def pictures() -> list[Grey]:
    rng = np.random.default_rng(11)
    return [draw_image(draw_anatomy(rng), draw_finding("viral", rng), KERMANY_LOOK, rng) for _ in range(STRANGERS)]


def recompressed(image: Grey) -> Grey:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [1, 15])[1], cv2.IMREAD_GRAYSCALE), np.uint8)


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        lambda image: (255 * (image / 255) ** 0.6).astype(np.uint8),  # another exposure
        lambda image: image // 32 * 32,  # posterised
        lambda image: image[20:-20, 20:-20],  # cropped at each side
        lambda image: image[: int(0.85 * len(image)), int(0.12 * len(image)) :],  # cropped at two sides
        lambda image: mosaic(image, tile_px=8, tiles=48),
    ],
)
def test_a_changed_copy_is_found_among_strangers(change: Callable[[Grey], Grey]) -> None:
    images = pictures()
    thumbnails = np.stack([thumbnail(image) for image in [*images, change(images[3])]])
    found = find_copies(thumbnails, limit=0.85)
    assert [(copy.one, copy.other) for copy in found] == [(3, STRANGERS)]


def test_strangers_are_no_copies() -> None:
    assert find_copies(np.stack([thumbnail(image) for image in pictures()]), limit=0.85) == []
