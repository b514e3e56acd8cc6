"""The heat map lies on the right part of the image, whatever preprocessing cropped and resized."""

import base64
from typing import Any, Literal

import cv2
import numpy as np
import pytest

from cxr.imaging.preprocess import Preprocessing, prepare
from cxr.webapp.overlays import render_heat

SIDE_PX = 64
HEIGHT, WIDTH = 120, 180


def centre_of(picture: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the centre of the bright pixels, as fractions of height and width."""
    rows, columns = np.nonzero(picture > 0.5 * picture.max())
    return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]


@pytest.mark.parametrize("border_crop", [0.0, 0.2])
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_the_heat_map_covers_what_the_model_used(fit: Literal["stretch", "letterbox"], border_crop: float) -> None:
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[40:50, 120:135] = 255
    preprocessing = Preprocessing(SIDE_PX, fit, "none", 2.0, 8, 10**6, border_crop)
    heat = prepare(image, preprocessing).astype(np.float32) / 255  # of a model that uses bright pixels
    encoded = base64.b64decode(render_heat(heat, (HEIGHT, WIDTH), preprocessing).partition(",")[2])
    layer = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    assert layer[..., 3].shape == (HEIGHT, WIDTH)
    assert centre_of(layer[..., 3]) == pytest.approx(centre_of(image), abs=0.02)
