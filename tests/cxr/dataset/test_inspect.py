import hashlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.dataset.inspect import Image, examine
from cxr.dataset.layouts import Refusal
from cxr.imaging.decode import max_file_bytes


def encoded(grey: NDArray[np.generic], suffix: str = ".jpeg") -> bytes:
    return bytes(cv2.imencode(suffix, grey)[1])


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def examined(data: bytes) -> Image:
    image = examine(data, name="f", max_pixels=10_000_000)
    assert isinstance(image, Image)
    return image


def test_a_image_is_described_by_size_digest_and_grey_levels() -> None:
    grey = noise(60, 90)
    grey[0] = 255
    grey[1] = 0
    data = encoded(grey, ".png")
    image = examined(data)
    assert (image.width, image.height, image.mode, image.bytes) == (90, 60, "L", len(data))
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.grey_mean == pytest.approx(grey.mean())
    assert image.grey_std == pytest.approx(grey.std())
    assert image.grey_p01 == np.percentile(grey, 1, method="inverted_cdf")
    assert image.grey_p99 == np.percentile(grey, 99, method="inverted_cdf")
    assert image.saturated_share == pytest.approx(((grey == 0) | (grey == 255)).mean())
    assert image.thumbnail.shape == (32, 32)


def test_a_large_jpeg_is_measured_at_reduced_scale_and_reported_at_its_own() -> None:
    smooth = cv2.resize(noise(8, 8), (1200, 1100), interpolation=cv2.INTER_CUBIC)
    image = examined(encoded(smooth))
    assert (image.width, image.height) == (1200, 1100)
    assert image.grey_mean == pytest.approx(smooth.mean(), abs=1)
    assert image.grey_std == pytest.approx(smooth.std(), abs=1)


def test_sixteen_bits_are_told_from_eight() -> None:
    assert examined(encoded(noise(40, 40).astype(np.uint16) * 200, ".png")).mode == "L16"


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"", Refusal("empty", "f is empty; copy it again from its source")),
        (
            b"text",
            Refusal(
                "not an image", "f is not an image: expected JPEG, PNG, BMP, TIFF, DICOM; remove it or export it again"
            ),
        ),
        (
            encoded(noise(64, 64))[:-300],
            Refusal("truncated", "f is truncated: its end is missing; copy it again from its source"),
        ),
        (
            encoded(noise(64, 64), ".png")[:-300],
            Refusal("truncated", "f is truncated: its end is missing; copy it again from its source"),
        ),
        (
            encoded(np.zeros((1001, 1000), np.uint8), ".png"),
            Refusal(
                "larger than the pixel limit",
                "f is larger than the pixel limit: 1000 x 1001 pixels, allowed 1000000; "
                "raise max_pixels in params.yaml if such images are expected",
            ),
        ),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(data: bytes, refusal: Refusal) -> None:
    assert examine(data, name="f", max_pixels=1_000_000) == refusal


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm() -> None:
    whole = encoded(noise(64, 64))
    assert examined(whole + bytes(5000)).phash == examined(whole).phash


def test_an_uncompressed_image_at_the_pixel_limit_is_below_the_byte_limit() -> None:
    assert max_file_bytes(64 * 64) > len(encoded(np.zeros((64, 64, 4), np.uint16), ".tiff"))
