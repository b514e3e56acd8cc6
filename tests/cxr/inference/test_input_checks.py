"""Pictures that are not chest X-rays are rejected before the network runs; chest X-rays are not."""

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cxr.common.errors import ImageError
from cxr.dataset.synthetic_image import COVID19_LOOK, KERMANY_LOOK, draw_anatomy, draw_finding, draw_image
from cxr.imaging.decode import decode_grey, image_from_bytes, open_image
from cxr.imaging.preprocess import Preprocessing
from cxr.inference.input_checks import NOT_A_CHEST_XRAY, prepare_chest_xray
from tests.support.images.dicom_images import dicom_image

PLAIN = Preprocessing(64, "stretch", "none", 2.0, 8, 10_000_000)
GREEN = (40, 230, 30)


def image(seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    look = COVID19_LOOK if seed % 2 else KERMANY_LOOK
    return draw_image(draw_anatomy(rng), draw_finding("normal", rng), look, rng)


def png(pixels: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


def read(data: bytes, name: str) -> NDArray[np.uint8]:
    return prepare_chest_xray(open_image(data, name=name, max_pixels=PLAIN.max_pixels), PLAIN)


def as_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)


def photograph() -> NDArray[np.uint8]:
    """Sky, grass and a red roof, as far as colours go."""
    picture = np.random.default_rng(3).integers(0, 60, (240, 320, 3)).astype(np.uint8)
    picture[:90] += np.array([190, 120, 60], np.uint8)
    picture[90:180] += np.array([30, 150, 60], np.uint8)
    picture[100:150, 100:200] = (30, 40, 190)
    return picture


def page() -> NDArray[np.uint8]:
    page = np.full((900, 640), 255, np.uint8)
    for line in range(40, 880, 24):
        cv2.putText(page, "The quick brown fox jumps over the dog", (30, line), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 0, 2)
    return page


@pytest.mark.parametrize("seed", range(6))
def test_checks_do_not_change_the_pixels_of_grey_colour_and_inverted_files(seed: int) -> None:
    for pixels in (image(seed), 255 - image(seed), as_rgb(image(seed))):
        assert np.array_equal(read(png(pixels), "a.png"), image_from_bytes(png(pixels), PLAIN, name="a.png"))


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "JPEG", {"quality": 95}),
        ("RGB", "JPEG", {"quality": 30, "progressive": True}),
        ("CMYK", "JPEG", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
    ],
)
@pytest.mark.parametrize("smallest", [None, 40])
def test_a_grey_picture_in_a_colour_file_gives_the_levels_of_the_grey_decoder(
    mode: str, kind: str, options: dict[str, object], smallest: int | None
) -> None:
    written = io.BytesIO()
    Image.fromarray(as_rgb(image())).convert(mode).save(written, kind, **options)
    data = written.getvalue()
    grey, _ = open_image(data, name="image", max_pixels=10**7).with_colour(min_side_px=smallest)
    assert np.array_equal(grey, decode_grey(data, name="image", max_pixels=10**7, min_side_px=smallest))


def test_a_tinted_image_or_one_marked_in_one_colour_is_accepted() -> None:
    tinted = (as_rgb(image()) * np.array([0.85, 0.95, 1.0])).astype(np.uint8)
    marked = as_rgb(image())
    cv2.circle(marked, (80, 80), 30, GREEN, 4)
    cv2.rectangle(marked, (10, 10), (60, 60), GREEN, -1)
    for pixels in (tinted, marked):
        assert read(png(pixels), "a.png").shape == (64, 64)


@pytest.mark.parametrize("colours", ["several", "one, all over"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_colour_picture_is_rejected(colours: str, suffix: str) -> None:
    pixels = photograph() if colours == "several" else (as_rgb(image()) * np.array([0.2, 0.5, 1.0])).astype(np.uint8)
    data = bytes(cv2.imencode(suffix, pixels)[1].tobytes())
    with pytest.raises(ImageError, match=r"^photo is a colour picture") as caught:
        read(data, "photo")
    assert caught.value.reason == "colour"


NOT_CHEST_XRAYS = {
    "black": (np.zeros((200, 200), np.uint8), "blank"),
    "white with scanner noise": (
        np.random.default_rng(0).integers(248, 255, (200, 200)).astype(np.uint8),
        "blank",
    ),
    "a page": (page(), "grey levels fill"),
    "two levels": (
        ((np.add.outer(np.arange(200), np.arange(200)) // 20 % 2) * 200).astype(np.uint8),
        "grey levels fill",
    ),
    "a long strip": (cv2.resize(image(), (400, 60)), "is a strip of 400 x 60"),
    "a thumbnail": (cv2.resize(image(), (24, 24)), "has 24 x 24 pixels"),
}


@pytest.mark.parametrize("what", NOT_CHEST_XRAYS)
def test_a_picture_that_is_no_chest_x_ray_is_rejected_with_what_was_found_and_expected(what: str) -> None:
    pixels, found = NOT_CHEST_XRAYS[what]
    with pytest.raises(ImageError, match=found) as caught:
        read(png(np.asarray(pixels, np.uint8)), "x.png")
    assert caught.value.reason == NOT_A_CHEST_XRAY
    assert str(caught.value).startswith("x.png ")


def test_a_dicom_image_is_checked_too() -> None:
    assert read(dicom_image(image()), "a.dcm").shape == (64, 64)
    with pytest.raises(ImageError, match="blank") as caught:
        read(dicom_image(np.full((64, 64), 90, np.uint8)), "a.dcm")
    assert caught.value.reason == NOT_A_CHEST_XRAY
