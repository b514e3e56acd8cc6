"""The overlay lies on the original image, on one scale for all images and classes, and says what it shows."""

from typing import Any, Literal

import cv2
import numpy as np
import pytest

from cxr.imaging.overlay import MIN_SIDE_PX, SCALE_START, Caption, colours, draw_overlay, heat_layer
from cxr.imaging.preprocess import Preprocessing, prepare

SIDE_PX = 64
HEIGHT, WIDTH = 120, 180
PLAIN = Preprocessing(SIDE_PX, "stretch", "none", 2.0, 8, 10**6)
CAPTION = Caption("viral", 0.9, "version 3", synthetic=False)


def spot() -> np.ndarray[Any, np.dtype[np.float32]]:
    """A heat map whose largest value, 1, is left of the middle."""
    heat = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    heat[28:36, 12:20] = 1
    return heat


def centre_of(levels: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the centre of the bright pixels, as fractions of height and width."""
    rows, columns = np.nonzero(levels > 0.5 * levels.max())
    return rows.mean() / levels.shape[0], columns.mean() / levels.shape[1]


@pytest.mark.parametrize("border_crop", [0.0, 0.2])
@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_the_heat_lies_on_what_the_model_used(fit: Literal["stretch", "letterbox"], border_crop: float) -> None:
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[40:50, 120:135] = 255
    preprocessing = Preprocessing(SIDE_PX, fit, "none", 2.0, 8, 10**6, border_crop)
    heat = prepare(image, preprocessing).astype(np.float32) / 255  # of a model that uses bright pixels
    layer = heat_layer(heat, 1.0, (HEIGHT, WIDTH), preprocessing)
    assert layer.shape == (HEIGHT, WIDTH, 4)
    assert centre_of(layer[..., 3]) == pytest.approx(centre_of(image), abs=0.02)


@pytest.mark.parametrize(("shape", "shown"), [((120, 180), (683, 1024)), ((1624, 1944), (1624, 1944))])
def test_the_image_keeps_its_aspect_and_has_at_least_1024_pixels(
    shape: tuple[int, int], shown: tuple[int, int]
) -> None:
    grey = np.tile(np.linspace(60, 200, shape[1]).astype(np.uint8), (shape[0], 1))
    picture = draw_overlay(grey, spot(), PLAIN, CAPTION)
    assert max(shown) >= MIN_SIDE_PX
    assert picture.shape[1] == shown[1]
    image, caption = picture[: shown[0]], picture[shown[0] :]
    without_heat = cv2.resize(grey, (shown[1], shown[0]), interpolation=cv2.INTER_CUBIC)[:, -200:]
    assert np.abs(image[:, -200:].astype(int) - without_heat[..., None]).max() <= 1
    assert image[shown[0] // 2, shown[1] // 4, 0] != image[shown[0] // 2, shown[1] // 4, 2]  # coloured
    assert caption.max() > 200  # text


def test_the_scale_is_absolute() -> None:
    strengths = [heat_layer(spot(), share, (64, 64), PLAIN)[..., 3].max() for share in (0.0009, 0.05, 0.3, 0.9)]
    assert strengths[0] == strengths[1] == 0  # a class that is not believed in does not glow
    assert 0 < strengths[2] < strengths[3]


def test_below_the_start_of_the_scale_all_is_transparent() -> None:
    opacity = colours(np.array([[0.0, SCALE_START, SCALE_START + 0.05, 1.0]], np.float32))[0, :, 3]
    assert opacity[0] == opacity[1] == 0
    assert 0 < opacity[2] < opacity[3]


def test_the_caption_says_what_is_shown() -> None:
    text = " ".join(Caption("viral", 0.0004, "version 3", synthetic=True, warning="looks upside down").lines())
    for part in ("AI, research only", "viral < 0.1%", "version 3", "synthetic", "NO ANSWER: looks upside down",
                 "transparent"):  # fmt: skip
        assert part in text
    assert text.index("NO ANSWER") < text.index("viral")
    assert "NO ANSWER" not in " ".join(CAPTION.lines())


def test_a_narrow_image_gets_a_higher_caption() -> None:
    wide, narrow = (
        draw_overlay(np.zeros(shape, np.uint8), spot(), PLAIN, CAPTION) for shape in ((1024, 1024), (1024, 300))
    )
    assert narrow.shape[0] > wide.shape[0]
