"""Mosaics and posterised pictures are recognised; X-rays, smooth pictures and plain ones are not."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.dataset.synthetic_image import COVID19_LOOK, KERMANY_LOOK, draw_anatomy, draw_finding, draw_image
from cxr.imaging.mosaic import FLAT_SHARE, flat_shares, is_mosaic
from tests.support.images.planted_sets import mosaic
from tests.support.images.real_data import RAW, TEST_DATA, needs_real_images

Grey = NDArray[np.uint8]


def drawn(look: object = KERMANY_LOOK) -> Grey:
    rng = np.random.default_rng(3)
    assert look in (KERMANY_LOOK, COVID19_LOOK)
    return draw_image(draw_anatomy(rng), draw_finding("viral", rng), look, rng)  # type: ignore[arg-type]


def recompressed(image: Grey) -> Grey:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [1, 90])[1], cv2.IMREAD_GRAYSCALE), np.uint8)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (mosaic(drawn()), True),
        (recompressed(mosaic(drawn(), tile_px=24)), True),
        (cv2.GaussianBlur(drawn(), (0, 0), 2) // 32 * 32, True),  # posterised
        (drawn(), False),
        (drawn(COVID19_LOOK), False),
        (recompressed(drawn()), False),
        (np.full((300, 300), 90, np.uint8), False),  # plain: the data-quality gate rejects it
        (np.tile(np.linspace(20, 230, 2000).astype(np.uint8), (1500, 1)), False),  # a ramp
        (cv2.resize(cv2.GaussianBlur(drawn(), (0, 0), 8), (3000, 3000)), False),  # smooth and large
        (np.zeros((300, 300), np.uint8), False),
        (np.full((1, 300), 90, np.uint8), False),
    ],
)
def test_what_counts_as_a_mosaic(picture: Grey, expected: bool) -> None:
    assert is_mosaic(picture) is expected


@needs_real_images
def test_the_five_known_mosaics_and_no_real_image_are_recognised() -> None:
    def shares(folder: Path, step: int = 1) -> list[float]:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        return [flat_shares(np.asarray(cv2.imread(os.fspath(path), 0), np.uint8))[0] for path in files[::step]]

    assert min(shares(TEST_DATA / "mosaics")) > FLAT_SHARE + 0.1
    assert max(shares(RAW, step=25)) < FLAT_SHARE - 0.2
