"""The heat lies on the image where the model saw it, whatever was cut off and squeezed on the way to the model."""

import base64
from typing import Any, Literal

import cv2
import numpy as np
import pytest

from cxr.imaging.preprocess import Preprocessing, prepare
from cxr.webapp.overlays import heat_layer

SIDE_PX = 64
HEIGHT, WIDTH = 120, 180


def centre_of(picture: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the centre of what is bright, as shares of height and width."""
    rows, columns = np.nonzero(picture > 0.5 * picture.max())
    return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]


@pytest.mark.parametrize("border_crop", [0.0, 0.2])
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_heat_lies_where_the_image_is_bright(fit: Literal["stretch", "letterbox"], border_crop: float) -> None:
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[40:50, 120:135] = 255
    preprocessing = Preprocessing(SIDE_PX, fit, "none", 2.0, 8, 10**6, border_crop)
    seen = prepare(image, preprocessing).astype(np.float32) / 255  # a model that looks at what is bright
    encoded = base64.b64decode(heat_layer(seen, (HEIGHT, WIDTH), preprocessing).partition(",")[2])
    layer = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    assert layer[..., 3].shape == (HEIGHT, WIDTH)
    assert centre_of(layer[..., 3]) == pytest.approx(centre_of(image), abs=0.02)
