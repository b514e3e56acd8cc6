"""Description of raw images: digest, perceptual hash, size and grey levels."""

import hashlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cxr.common.errors import ImageError
from cxr.dataset.inspect import InspectedImage, inspect_image
from cxr.imaging.decode import max_file_bytes


def encoded(grey: NDArray[np.generic], suffix: str = ".jpeg") -> bytes:
    return bytes(cv2.imencode(suffix, grey)[1])


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def inspected(data: bytes) -> InspectedImage:
    return inspect_image(data, name="f", max_pixels=10_000_000)


def test_an_image_is_described_by_size_digest_and_grey_levels() -> None:
    grey = noise(60, 90)
    grey[0] = 255
    grey[1] = 0
    data = encoded(grey, ".png")
    image = inspected(data)
    assert (image.width, image.height, image.mode, image.bytes) == (90, 60, "L", len(data))
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.grey_mean == pytest.approx(grey.mean())
    assert image.grey_std == pytest.approx(grey.std())
    assert image.grey_p01 == np.percentile(grey, 1, method="inverted_cdf")
    assert image.grey_p99 == np.percentile(grey, 99, method="inverted_cdf")
    assert image.saturated_share == pytest.approx(((grey == 0) | (grey == 255)).mean())
    assert image.thumbnail.shape == (32, 32)


def test_a_large_jpeg_is_decoded_at_reduced_scale_and_keeps_its_size() -> None:
    smooth = cv2.resize(noise(8, 8), (1200, 1100), interpolation=cv2.INTER_CUBIC)
    image = inspected(encoded(smooth))
    assert (image.width, image.height) == (1200, 1100)
    assert image.grey_mean == pytest.approx(smooth.mean(), abs=1)
    assert image.grey_std == pytest.approx(smooth.std(), abs=1)


def test_16_bit_images_have_their_own_mode() -> None:
    assert inspected(encoded(noise(40, 40).astype(np.uint16) * 200, ".png")).mode == "L16"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"text", "not an image"),
        (encoded(noise(64, 64))[:-300], "truncated"),
        (encoded(noise(64, 64), ".png")[:-300], "truncated"),
        (encoded(np.zeros((1001, 1000), np.uint8), ".png"), "larger than the pixel limit"),
    ],
)
def test_a_file_that_is_not_an_image_is_rejected_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        inspect_image(data, name="f", max_pixels=1_000_000)
    assert caught.value.reason == reason


def test_bytes_after_the_end_of_a_jpeg_are_ignored() -> None:
    whole = encoded(noise(64, 64))
    assert inspected(whole + bytes(5000)).phash == inspected(whole).phash


def test_an_uncompressed_image_at_the_pixel_limit_is_below_the_byte_limit() -> None:
    assert max_file_bytes(64 * 64) > len(encoded(np.zeros((64, 64, 4), np.uint16), ".tiff"))
